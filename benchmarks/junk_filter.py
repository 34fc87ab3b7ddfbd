"""What an account's own junk filter costs a delivery: CPU per message, judged, silent, and learned.

    python benchmarks/junk_filter.py [--messages 500] [--learned 600]

Prints one JSON line. The messages have 4 KB, about 300 different words each, half of them new to the filter; what was
learned before is the size of a filter that has been used for some months.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from pymx.config.model import Junk
from pymx.junk.filter import Filter
from pymx.junk.learn import Kind
from pymx.spool import Content

ACCOUNT = "alice@example.test"


def message(number: int, words: list[str], chance: random.Random, octets: int = 4096) -> bytes:
    body: list[str] = []
    while sum(map(len, body)) + len(body) < octets - 450:
        body.append(chance.choice(words) if chance.random() < 0.4 else words[chance.randrange(300)])
    head = (
        f"From: Somebody <s{number}@host{number % 50}.test>\r\nTo: {ACCOUNT}\r\nSubject: {' '.join(body[:5])}\r\n"
        f"Date: Tue, 24 Nov 2026 10:00:00 +0000\r\nMessage-ID: <{number}@x>\r\nX-Padding: {'x' * 200}\r\n\r\n"
    )
    return (head + " ".join(body) + "\r\n").encode()


async def cpu_ms(count: int, one: Callable[[int], Awaitable[object]]) -> float:
    started = time.process_time()
    for number in range(count):
        await one(number)
    return round((time.process_time() - started) / count * 1000, 3)


async def measure(count: int, learned: int) -> dict[str, float]:
    chance = random.Random(1)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(3, 10))) for _ in range(60_000)]
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        for account in (ACCOUNT, "new@example.test"):
            (home / account).mkdir()
        own = Filter(home.joinpath, Junk(), hostname="mx.example.test", taught=home / "junk.taught")
        lessons = [message(number, words, chance) for number in range(learned)]
        teaching = await cpu_ms(learned, lambda n: own.teach(ACCOUNT, lessons[n], Kind.SPAM if n % 2 else Kind.HAM))
        fresh = [Content.from_bytes(message(learned + number, words, chance)) for number in range(count)]
        large = Content.from_bytes(message(0, words, chance) + b"and other words\r\n" * 300_000)
        out = {
            "judged_ms": await cpu_ms(count, lambda n: own.judge([ACCOUNT], fresh[n])),
            "silent_ms": await cpu_ms(count, lambda n: own.judge(["new@example.test"], fresh[n])),
            "judged_5_mb_ms": await cpu_ms(20, lambda n: own.judge([ACCOUNT], large)),
            "learned_ms": teaching,
            "file_octets": (home / ACCOUNT / "pymx.junk").stat().st_size,
        }
        await own.close()
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=500)
    parser.add_argument("--learned", type=int, default=600)
    args = parser.parse_args()
    print(json.dumps(asyncio.run(measure(args.messages, args.learned))))


if __name__ == "__main__":
    main()
