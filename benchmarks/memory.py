"""Memory of a running server: proportional set size (PSS) of a process and its children, and of sessions in IDLE.

    python benchmarks/memory.py PID [--idle 1000 --rounds 3 --users DIRECTORY/users.txt --imaps 3993]

With --idle it opens so many TLS sessions, each with INBOX selected and in IDLE, measures, closes them, measures again.
The files of Python and its libraries count in parts when other Python processes run, so what is not of files (anonymous
memory) is shown beside the sum.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import ssl
from pathlib import Path


def family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [pid, *(int(child) for child in children.split())]


def measure(pid: int) -> tuple[float, float]:
    """(PSS, anonymous part of it) of all processes, in MiB."""
    found = {"Pss:": 0, "Pss_Anon:": 0}
    for process in family(pid):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            words = line.split()
            if words[0] in found:
                found[words[0]] += int(words[1])
    return found["Pss:"] / 1024, found["Pss_Anon:"] / 1024


def show(what: str, pid: int) -> None:
    total, anonymous = measure(pid)
    print(f"{what:28} {total:6.1f} MiB, anonymous {anonymous:6.1f}", flush=True)


async def open_idle(port: int, login: str, password: str, gate: asyncio.Semaphore) -> asyncio.StreamWriter:
    tls = ssl.create_default_context()
    tls.check_hostname = False
    tls.verify_mode = ssl.CERT_NONE
    async with gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
        await reader.readline()
        for command in (f"a LOGIN {login} {password}", "b SELECT INBOX", "c IDLE"):
            writer.write(f"{command}\r\n".encode())
            while not (line := await reader.readline()).startswith((command[:1].encode(), b"+")):
                assert line, "the server has closed"
            assert b" OK" in line or line.startswith(b"+"), line
    return writer


async def idle_rounds(pid: int, arguments: argparse.Namespace) -> None:
    users = [line.split() for line in arguments.users.read_text().splitlines()]
    gate = asyncio.Semaphore(20)
    for number in range(1, arguments.rounds + 1):
        writers = await asyncio.gather(
            *(open_idle(arguments.imaps, *users[i % len(users)], gate) for i in range(arguments.idle))
        )
        await asyncio.sleep(3)
        show(f"round {number}, {arguments.idle} in IDLE", pid)
        for writer in writers:
            writer.close()
        await asyncio.sleep(8)
        show(f"round {number}, closed", pid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pid", type=int)
    parser.add_argument("--idle", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--users", type=Path)
    parser.add_argument("--imaps", type=int, default=3993)
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    for process in family(arguments.pid):
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
        print(process, *(" ".join(line.split()[:2]) for line in text.splitlines() if line.startswith(("Pss:", "Rss:"))))
    show("all", arguments.pid)
    if arguments.idle:
        asyncio.run(idle_rounds(arguments.pid, arguments))


if __name__ == "__main__":
    main()
