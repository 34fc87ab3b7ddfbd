"""What keeping events costs: CPU of the four lines that a checked message has, without and with the event store.

    python benchmarks/events_cost.py [MESSAGES] [ROUNDS]

Everything is in one process and counted: the log calls, the sending, and the runner's writing to SQLite. Prints the
difference per message of the rounds' medians, and the room a message takes.
"""

from __future__ import annotations

import logging
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from pymx import log
from pymx.events.feed import Feed
from pymx.events.recorder import Recorder
from pymx.events.store import EventStore

MESSAGES = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
ROUNDS = int(sys.argv[2]) if len(sys.argv) > 2 else 7


def messages(count: int, rate: float) -> float:
    """The lines of that many messages at so many a second; CPU seconds of the process."""
    mta = log.get("mta")
    began, cpu = time.perf_counter(), time.process_time()
    for number in range(count):
        ids = {"session": os.urandom(5).hex(), "queue_id": f"5XK{number:010d}{os.getpid()}"}
        who = {"mail_from": "ann@far.test", "rcpt_to": "alice@example.test"}
        mta.info(
            "message_checked", **ids, **who, peer_ip="127.0.0.2", helo="mail.far.test", verdict="accept", reply="",
            check="iprev=pass helo=ok spf=pass dkim=pass arc=none dmarc=pass", reason="", score=None, symbols="",
            facts="iprev policy.iprev=127.0.0.2 (mail.far.test); spf smtp.mailfrom=ann@far.test; "
            "dkim header.d=far.test header.s=k header.a=rsa-sha256; dmarc header.from=far.test",
            size_octets=4096, duration_ms=3.2,
        )  # fmt: skip
        mta.info("message_delivered", **ids, **who, account="alice@example.test", mailbox="INBOX", uid=number,
                 size_octets=4300)  # fmt: skip
        mta.info("message_accepted", **ids, **who, listener="smtp", peer_ip="127.0.0.2", account="",
                 message_id=f"<{number}@far.test>", size_octets=4096, duration_ms=3.2)  # fmt: skip
        mta.info(
            "smtp_session", session=ids["session"], listener="smtp", peer_ip="127.0.0.2", helo="mail.far.test",
            tls="TLSv1.3 TLS_AES_256_GCM_SHA384", account="", messages=1, recipients=1, commands=6, errors=0,
            size_octets=4200, duration_ms=25, reason="quit",
        )  # fmt: skip
        late = began + number / rate - time.perf_counter()
        if late > 0:
            time.sleep(late)
    return time.process_time() - cpu


def main() -> None:
    logging.getLogger("pymx").setLevel("INFO")
    logging.getLogger().addHandler(logging.NullHandler())
    without, with_store, octets = [], [], 0.0
    for number in range(ROUNDS):
        without.append(messages(MESSAGES, 500.0))
        with tempfile.TemporaryDirectory() as directory:
            path, socket_path = Path(directory) / "events.sqlite", Path(directory) / "s"
            recorder = Recorder(EventStore(path), socket_path, keep_days=30, max_octets=1 << 28)
            recorder.start()
            feed = Feed(socket_path, EventStore(path))
            feed.start()
            cpu = time.process_time()
            messages(MESSAGES, 500.0)
            feed.close()
            recorder.close()
            with_store.append(time.process_time() - cpu)
            octets = path.stat().st_size / MESSAGES
        print(f"round {number + 1}: {1e6 * without[-1] / MESSAGES:.0f} and {1e6 * with_store[-1] / MESSAGES:.0f} us")
    added = statistics.median(with_store) - statistics.median(without)
    print(f"keeping the events of a message: {1e6 * added / MESSAGES:.0f} us of CPU, {octets:.0f} octets")


if __name__ == "__main__":
    main()
