"""A process that takes messages in and sends them out until it is killed: `crashing_queue.py DIRECTORY PREFIX`.

Says "accepted N" when message N is durable; a delivered one is a line in DIRECTORY/delivered.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from queue_samples import copy, outcomes

from pymx.config.model import Outbound
from pymx.queue.item import Attempt, Outcome, Report
from pymx.queue.manager import Manager
from pymx.queue.queue import Queue


async def main(directory: Path, prefix: str) -> None:
    delivered = os.open(directory / "delivered", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def attempt(attempt: Attempt) -> list[Outcome]:
        for recipient in attempt.envelope.recipients:
            os.write(delivered, f"{recipient.address.local_part}\n".encode())
        return outcomes(attempt)

    async def told(report: Report) -> None:
        raise AssertionError("nothing fails here")

    queue = Queue(directory / "queue", Outbound())
    await queue.start()

    async def take_in(lane: int) -> None:
        for n in range(1_000_000):
            name = f"{prefix}-{lane}-{n}"
            # two destinations, so that some messages are half done when the end comes
            await queue.enqueue([copy(f"{name}@one.test", f"{name}@two.test")])
            os.write(1, f"accepted {name}\n".encode())

    async with asyncio.TaskGroup() as group:
        group.create_task(Manager(queue, attempt, told, told).run())
        if prefix:
            for lane in range(4):
                group.create_task(take_in(lane))


asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
