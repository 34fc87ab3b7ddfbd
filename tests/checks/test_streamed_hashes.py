"""The body is hashed for its signatures while it arrives, whatever pieces it comes in."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from checks_rig import ALICE, GOOD_IP, Rig, Start, letter, results
from hypothesis import given, settings
from hypothesis import strategies as st

from pymx.checks.check import Facts, Stage
from pymx.checks.verdict import Verdict
from pymx.mailauth.dkim.body import BodyHashes, body_hashes
from pymx.spool import SpoolWriter

SIGNATURES = (
    b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=x.test; s=k; h=from; bh=AAAA; b=AAAA\r\n"
    b"DKIM-Signature: v=1; a=rsa-sha256; c=simple/simple; l=7; d=x.test; s=k; h=from; bh=AAAA; b=AAAA\r\n"
)


@given(
    st.lists(st.sampled_from([b" ", b"\t", b"\r\n", b"a", b"bc ", b"\r", b"\n", b"x" * 5000]), max_size=40),
    st.lists(st.integers(1, 9000), max_size=10),
)
@settings(max_examples=200)
def test_hashes_of_a_message_in_pieces_are_those_of_the_whole(body: list[bytes], sizes: list[int]) -> None:
    """Fed from the spool writer, from the first octet of the empty line on; in memory and beyond."""
    message = SIGNATURES + b"From: a@x.test\r\n\r\n" + b"".join(body)
    streamed: list[BodyHashes] = []

    def tap(head: bytes) -> Callable[[bytes], None]:
        streamed.append(BodyHashes(head))
        return streamed[0].update

    writer = SpoolWriter(Path("/dev/shm"), memory_octets=8000, tap=tap)
    position = 0
    for size in [*sizes, len(message)]:
        writer.feed(message[position : position + size])
        position += size
    content = writer.finish()
    whole = body_hashes(content.head, content.body_chunks())
    (there,) = streamed
    there.finish()
    for form, length in (("relaxed", None), ("simple", None), ("simple", 7)):
        assert there.digest(form, length) == whole.digest(form, length)
    assert content.read() == message


def test_a_message_without_signatures_is_not_hashed() -> None:
    assert not BodyHashes(b"From: a@x.test\r\n").is_needed
    assert BodyHashes(SIGNATURES).is_needed


def drip(rig: Rig, message: bytes, size: int, *, chunking: bool = False) -> bytes:
    """Bring a message in pieces, by DATA or BDAT; the last reply."""
    with socket.create_connection(("127.0.0.1", rig.flow.ports["smtp"]), 30, source_address=(GOOD_IP, 0)) as sock:
        file = sock.makefile("rwb", buffering=0)

        def say(line: bytes, *, last: bool = True) -> bytes:
            file.write(line)
            while last:
                reply = file.readline()
                if reply[3:4] == b" ":
                    return bytes(reply)
            return b""

        file.readline()
        say(b"EHLO mail.good.test\r\n")
        say(b"MAIL FROM:<x@good.test>\r\n")
        say(b"RCPT TO:<%b>\r\n" % ALICE.encode())
        if chunking:
            pieces = [message[i : i + size] for i in range(0, len(message), size)]
            for piece in pieces[:-1]:
                say(b"BDAT %d\r\n" % len(piece) + piece)
            return say(b"BDAT %d LAST\r\n" % len(pieces[-1]) + pieces[-1])
        say(b"DATA\r\n")
        for i in range(0, len(message), size):
            file.write(message[i : i + size])
        return say(b".\r\n")


@pytest.mark.parametrize(("size", "chunking"), [(1, False), (1460, False), (700, True), (100_000, True)])
async def test_a_signature_holds_however_the_message_comes(size: int, chunking: bool, checked: Start) -> None:
    """Octet by octet, by BDAT in chunks, from memory and from a file; a changed body does not."""
    async with checked() as rig:
        body = "".join(f"line {n}  with \t spaces \r\n" for n in range(40 if size < 100 else 12_000)) + "\r\n\r\n"
        message = rig.sign("good.test", letter(body=body))
        assert (await rig.flow.blocking(lambda: drip(rig, message, size, chunking=chunking))).startswith(b"250 ")
        assert "dkim=pass" in results(rig.only())
        broken = message.replace(b"line 7 ", b"line 8 ")
        # DMARC passes by SPF, so it is taken all the same
        assert (await rig.flow.blocking(lambda: drip(rig, broken, size, chunking=chunking))).startswith(b"250 ")
        assert "dkim=fail" in results(rig.folder(ALICE)[-1])


async def test_hashes_are_there_when_the_message_is(checked: Start) -> None:
    """Nothing is read again at the final dot, even of a message that lies in a file: the checks find them."""
    async with checked() as rig:
        message = rig.sign("good.test", letter(body="a line of text\r\n" * 40_000))
        seen: list[bool] = []
        pipeline = rig.pipeline
        pipeline.checks = (_Looks(seen), *pipeline.checks)
        assert (await rig.send(message))[0] == 250
        assert "dkim=pass" in results(rig.only())
        assert seen == [True]


class _Looks:
    """A check that runs first and notes whether the body has been hashed."""

    name = "looks"
    stages = (Stage.DATA,)
    needs: tuple[str, ...] = ()

    def __init__(self, seen: list[bool]) -> None:
        self._seen = seen

    async def run(self, stage: Stage, facts: Facts) -> Verdict:
        assert facts.content is not None
        assert not facts.content.in_memory
        self._seen.append(facts.bodies is not None)
        return Verdict()

    def unavailable(self, facts: Facts, reason: str) -> Verdict:
        return Verdict()

    async def close(self) -> None:
        """Nothing is held."""
