"""The content files: a message and its envelope survive in one file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from queue_samples import content, copy

from pymx.mail.address import Address
from pymx.mail.envelope import Envelope, Listener, Origin, Recipient
from pymx.queue.files import DamagedFile, Files
from pymx.queue.item import Copy, new_queue_id
from pymx.spool import Content

_text = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20)
_address = st.builds(Address, _text, _text)
_envelope = st.builds(
    Envelope,
    st.none() | _address,
    st.lists(
        st.builds(Recipient, _address, st.frozensets(st.sampled_from(["SUCCESS", "FAILURE", "DELAY"])), _text),
        min_size=1, max_size=5,
    ).map(tuple),
    st.builds(
        Origin, st.sampled_from(Listener), _text, _text, _text, st.booleans(), _text, _text, _text,
        sender_proven=st.booleans(),
    ),
    st.sampled_from(["7BIT", "8BITMIME"]),
    st.booleans(),
    st.sampled_from(["", "FULL", "HDRS"]),
    _text,
)  # fmt: skip


def store(files: Files, message: Copy, arrived_s: float = 5.0) -> None:
    import os

    fd = files.write(message, arrived_s)
    files.link(fd, message.queue_id)
    os.close(fd)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    found = Files(tmp_path / "queue")
    found.open()
    yield found
    found.close()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(_envelope, st.binary(max_size=300))
def test_what_was_written_is_read_back(files: Files, envelope: Envelope, body: bytes) -> None:
    """Envelope and content, octet for octet."""
    message = Copy(new_queue_id(), envelope, Content(b"A: b\r\n", b"\r\n" + body), True)
    store(files, message)
    read = files.read(message.queue_id)
    assert (read.envelope, read.local, read.arrived_s) == (envelope, True, 5.0)
    assert read.content.read() == message.content.read()
    assert not any(read.done)


@pytest.mark.parametrize("octets", [0, 4000, 262_143, 262_144, 262_145, 3_000_000])
def test_contents_of_every_size_come_back_whole(files: Files, octets: int) -> None:
    """Large ones stay in the file and are read in pieces."""
    message = Copy(new_queue_id(), copy("a@b.test").envelope, Content(b"A: b\r\n", b"\r\n" + b"x" * octets), False)
    store(files, message)
    read = files.read(message.queue_id)
    assert read.content.read() == message.content.read()
    assert read.content.in_memory == (message.content.size_octets <= 262_144)


def test_marks_are_kept_by_recipient(files: Files) -> None:
    """A rebuilt queue knows from them who has the message."""
    message = copy("a@b.test", "c@d.test", "e@f.test")
    store(files, message)
    files.mark_done(message.queue_id, [1])
    read = files.read(message.queue_id)
    assert read.done == (False, True, False)
    assert read.content.read() == message.content.read()


def test_every_cut_off_file_is_seen_as_damaged(files: Files) -> None:
    """Whatever a power cut leaves of a file is never taken for a message."""
    message = Copy(new_queue_id(), copy("a@b.test").envelope, content(), False)
    store(files, message)
    path = files.directory / message.queue_id
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedFile):
            files.read(message.queue_id)
    path.write_bytes(whole + b"x")
    with pytest.raises(DamagedFile):
        files.read(message.queue_id)


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_octets_give_a_message_or_our_error(files: Files, octets: bytes) -> None:
    """Nothing else is ever raised for what lies on the disk."""
    queue_id = new_queue_id()
    (files.directory / queue_id).write_bytes(b"pymx-queue-1 00000010 -\n" + octets)
    with pytest.raises(DamagedFile):
        files.read(queue_id)


def test_queue_ids_sort_by_time() -> None:
    """Their order is the order of arrival, to the millisecond; none comes twice."""
    ids = [new_queue_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(len(i) == len(ids[0]) for i in ids)
