"""A client that goes away, or says so, takes its search and sort with it."""

from __future__ import annotations

import threading
import zlib

import pytest
from imap_rig import ALICE, Client, Rig
from support.wait import wait_until

from pymx.ms.keys import Keys
from pymx.ms.store import Append
from pymx.proto.imap.receiver import Receiver
from pymx.proto.imap.render import render
from pymx.spool import Content


class Gate:
    """Headers are read one by one, and only once the gate is open."""

    def __init__(self) -> None:
        self.opened, self.reached, self.calls = threading.Event(), threading.Event(), 0

    def __call__(self, message: bytes) -> tuple[bytes, bytes, Keys | None]:
        self.calls += 1
        self.reached.set()
        assert self.opened.wait(20)
        return render(message)


async def gated(rig: Rig) -> Gate:
    """450 messages whose headers nobody has read yet."""
    rig.store.render = None
    items = [Append(Content.from_bytes(b"Subject: %d\r\n\r\n" % number), 0, (), None) for number in range(450)]
    await rig.store.append(ALICE, "INBOX", items)
    gate = Gate()
    rig.store.render = gate
    return gate


async def running(client: Client, gate: Gate, command: bytes) -> None:
    client.send(command)
    await wait_until(gate.reached.is_set, what="the command reads headers")


async def test_a_sort_ends_when_its_client_is_gone(rig: Rig) -> None:
    """Nothing more is read for somebody who does not wait for it, and the next sort is complete."""
    gate = await gated(rig)
    client = await rig.select()
    await running(client, gate, b"a SORT (SUBJECT) UTF-8 ALL\r\n")
    client.writer.transport.abort()
    (session,) = rig.sessions._live
    await wait_until(lambda: session._gone, what="the server sees the end")  # type: ignore[attr-defined]
    gate.opened.set()
    await wait_until(lambda: not len(rig.sessions), what="the session ends")
    assert gate.calls <= 200
    client = await rig.select()
    assert len((await client.ok("SORT (ARRIVAL) UTF-8 ALL"))[0].split()) == 452
    assert len((await client.ok("SORT (SUBJECT) UTF-8 ALL"))[0].split()) == 452
    assert gate.calls == 450
    await client.close()


async def all_received(rig: Rig) -> None:
    (session,) = rig.sessions._live
    await wait_until(
        lambda: session._client.mailbox._stopped,  # type: ignore[attr-defined]
        what="the server sees LOGOUT",
    )


@pytest.mark.parametrize(
    "command", ["SEARCH SUBJECT 44", "UID SEARCH SUBJECT 44", "UID SORT (SUBJECT) UTF-8 ALL", "THREAD REFS UTF-8 ALL"]
)
async def test_logout_stops_what_only_looks(rig: Rig, command: str) -> None:
    """The command that is stopped gets its NO and no half answer, and everything before LOGOUT is still done."""
    gate = await gated(rig)
    client = await rig.select()
    await running(client, gate, f"a {command}\r\n".encode())
    client.send(b"b STORE 1 +FLAGS.SILENT (\\Flagged)\r\nc logout\r\n")
    await all_received(rig)
    gate.opened.set()
    assert await client.answer("a") == [b"NO Stopped by LOGOUT"]
    assert (await client.answer("b"))[-1] == b"OK Store completed."
    assert await client.answer("c") == [b"* BYE Logging out", b"OK Logout completed."]
    assert await client.line() == b""
    assert gate.calls <= 200
    await client.close()
    client = await rig.select()
    assert await client.ok("SEARCH FLAGGED") == [b"* SEARCH 1", b"OK Search completed."]
    await client.close()


async def test_logout_stops_a_search_of_a_compressed_session(rig: Rig) -> None:
    """RFC 4978: what waits is unpacked to be looked at."""
    gate = await gated(rig)
    client = await rig.select()
    await client.ok("COMPRESS DEFLATE")
    packer, unpacker = zlib.compressobj(wbits=-15), zlib.decompressobj(-15)

    def packed(data: bytes) -> bytes:
        return packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH)

    await running(client, gate, packed(b"a SEARCH SUBJECT 44\r\n"))
    client.send(packed(b"b LOGOUT\r\n"))
    await all_received(rig)
    gate.opened.set()
    answer = unpacker.decompress(await client.reader.read())
    assert answer.splitlines() == [b"a NO Stopped by LOGOUT", b"* BYE Logging out", b"b OK Logout completed."]
    await client.close()


async def test_who_sends_search_and_logout_at_once_gets_the_answer(rig: Rig) -> None:
    """RFC 3501 s. 5.5: the client need not wait for one answer to send the next command."""
    gate = await gated(rig)
    client = await rig.select()
    await running(client, gate, b"a SEARCH SUBJECT 449\r\nb LOGOUT\r\n")
    gate.opened.set()
    assert await client.answer("a") == [b"* SEARCH 450", b"OK Search completed."]
    assert (await client.answer("b"))[-1] == b"OK Logout completed."
    await client.close()


@pytest.mark.parametrize(
    ("waiting", "found"),
    [
        (b"b LOGOUT\r\n", True),
        (b"b logout\n", True),
        (b"b NOOP\r\nc LogOut\r\n", True),
        (b"b APPEND x {9+}\r\nc LOGOUT\r\n", False),  # nine of its octets are the literal
        (b"b APPEND x {10+}\r\nc LOGOUT\r\n", False),
        (b"b APPEND x {10}\r\nc LOGOUT\r\n", False),
        (b"b APPEND x {10+}\r\nc LOGOUT\r\n\r\nd LOGOUT\r\n", True),
        (b"b LOGOUT", False),
        (b"b LOGOUT now\r\n", False),
        (b"b FETCH 1 LOGOUT\r\n", False),
        (b" LOGOUT\r\n", False),
        (b"LOGOUT\r\n", False),
        (b"", False),
    ],
)
def test_logout_among_what_waits(waiting: bytes, found: bool) -> None:
    """A line of its own and nothing in a literal; looking takes nothing away."""

    def sink() -> object:
        raise AssertionError

    receiver = Receiver(max_line_octets=1000, make_sink=sink)  # type: ignore[arg-type]
    for at in range(len(waiting)):
        receiver.feed(waiting[at : at + 1])
        assert not receiver.logout_waits() or found
    assert receiver.logout_waits() is found
    assert receiver.buffered_octets == len(waiting)
