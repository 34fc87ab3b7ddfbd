"""Messages whose envelope or header is far larger than usual are as safe in the queue as others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from queue_samples import ALICE

from pymx.config.model import Outbound
from pymx.mail.address import Address
from pymx.mail.envelope import Envelope, Listener, Origin, Recipient
from pymx.queue.files import Files
from pymx.queue.item import Copy, new_queue_id
from pymx.queue.queue import Queue
from pymx.spool import Content


def to_many(count: int) -> Copy:
    """Aliases multiply: max_recipients of a message, each expanded to max_alias_targets."""
    recipients = tuple(Recipient(Address(f"r{n}", "far.test")) for n in range(count))
    envelope = Envelope(ALICE, recipients, Origin(Listener.SUBMISSION, account="alice@example.test"))
    return Copy(new_queue_id(), envelope, Content(b"A: b\r\n", b"\r\nx\r\n"), False)


def written(directory: Path, copy: Copy) -> Files:
    files = Files(directory / "queue")
    files.open()
    fd = files.write(copy, 5.0)
    files.link(fd, copy.queue_id)
    os.close(fd)
    return files


@pytest.mark.parametrize("count", [4000, 4100, 70_000])
@pytest.mark.parametrize("with_content", [True, False])
def test_any_number_of_recipients_is_read_back(tmp_path: Path, count: int, with_content: bool) -> None:
    copy = to_many(count)
    files = written(tmp_path, copy)
    try:
        read = files.read(copy.queue_id, content=with_content)
    finally:
        files.close()
    assert len(read.envelope.recipients) == len(read.done) == count
    assert read.content.read() == (copy.content.read() if with_content else b"")


def test_a_header_of_any_size_is_read_back(tmp_path: Path) -> None:
    """`[smtp] max_header_octets` says what is taken; what was taken must come out."""
    head = b"".join(b"X-%d: %s\r\n" % (n, b"y" * 900) for n in range(9000))
    copy = Copy(new_queue_id(), to_many(1).envelope, Content(head, b"\r\nbody\r\n"), False)
    files = written(tmp_path, copy)
    try:
        read = files.read(copy.queue_id).content
        assert (read.head, b"".join(read.body_chunks())) == (head, b"\r\nbody\r\n")
        del read
    finally:
        files.close()


async def test_a_rebuild_keeps_a_message_to_thousands(tmp_path: Path) -> None:
    """It was acknowledged: losing the state database must not lose it."""
    copy = to_many(5000)
    queue = Queue(tmp_path / "queue", Outbound())
    await queue.start()
    try:
        await queue.enqueue([copy])
        assert await queue.rebuild() == 1
        assert len((await queue.load(copy.queue_id)).envelope.recipients) == 5000
    finally:
        await queue.close()
