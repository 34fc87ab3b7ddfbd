"""QRESYNC (RFC 7162 s. 3.2) where the server has forgotten, and where a client's copy is checked against the truth."""

from __future__ import annotations

import random
import re
from array import array
from pathlib import Path

import pytest
from imap_rig import ALICE, Client, Rig, running
from support.tls import TlsFiles

MESSAGE = b"From: a@example.test\r\nSubject: hello\r\n\r\nText\r\n"
_HIGHEST = re.compile(rb"HIGHESTMODSEQ (\d+)")
_VALIDITY = re.compile(rb"UIDVALIDITY (\d+)")
_VANISHED = re.compile(rb"\* VANISHED \(EARLIER\) ([\d:,]+)")
_FETCH = re.compile(rb"\* \d+ FETCH \(UID (\d+) FLAGS \(([^)]*)\) MODSEQ \(\d+\)\)")


def _number(pattern: re.Pattern[bytes], lines: list[bytes]) -> int:
    found = pattern.search(b"\n".join(lines))
    assert found, lines
    return int(found[1])


def _uids(text: bytes) -> list[int]:
    pairs = [part.split(b":") for part in text.split(b",")]
    return [uid for pair in pairs for uid in range(int(pair[0]), int(pair[-1]) + 1)]


async def _enabled(rig: Rig) -> Client:
    client = await rig.login()
    await client.ok("ENABLE QRESYNC")
    return client


class _Copy:
    """What an offline client keeps: flags by UID, UIDVALIDITY and the modseq."""

    def __init__(self) -> None:
        self.flags: dict[int, bytes] = {}
        self.validity = 0
        self.modseq = 0

    async def synchronize(self, client: Client, *, known: bool, match: bool) -> None:
        parameter = f"QRESYNC ({self.validity} {self.modseq}" if self.validity else ""
        uids = sorted(self.flags)
        if parameter and known and uids:
            parameter += " " + ",".join(map(str, uids))
            if match:
                at = sorted({1, len(uids) // 2 + 1, len(uids)})
                parameter += f" ({','.join(map(str, at))} {','.join(str(uids[n - 1]) for n in at)})"
        lines = await client.ok(f"SELECT INBOX ({parameter}))" if parameter else "SELECT INBOX")
        if not self.validity:
            lines += await client.ok("UID FETCH 1:* (FLAGS MODSEQ)")
        vanished = [number for number, line in enumerate(lines) if _VANISHED.match(line)]
        fetched = [number for number, line in enumerate(lines) if _FETCH.match(line)]
        assert not fetched or not vanished or max(vanished) < min(fetched)
        for line in lines:
            if found := _VANISHED.fullmatch(line):
                for uid in _uids(found[1]):
                    self.flags.pop(uid, None)
            elif found := _FETCH.fullmatch(line):
                self.flags[int(found[1])] = found[2].replace(b"\\Recent", b"").strip()
        self.validity = _number(_VALIDITY, lines)
        self.modseq = _number(_HIGHEST, lines)
        if known:  # what is new is asked for apart
            for line in await client.ok(f"UID FETCH {max(self.flags, default=0) + 1}:* (FLAGS MODSEQ)"):
                if found := _FETCH.fullmatch(line):
                    self.flags[int(found[1])] = found[2].replace(b"\\Recent", b"").strip()
        await client.ok("UNSELECT")


async def _truth(client: Client) -> dict[int, bytes]:
    await client.ok("EXAMINE INBOX")
    found = [_FETCH.fullmatch(line) for line in await client.ok("UID FETCH 1:* (FLAGS MODSEQ)")]
    await client.ok("UNSELECT")
    return {int(match[1]): match[2].replace(b"\\Recent", b"").strip() for match in found if match}


@pytest.mark.parametrize("seed", range(4))
async def test_offline_copy_is_right_after_each_resynchronization(rig: Rig, seed: int) -> None:
    """RFC 7162 s. 3.2.5: with or without known UIDs and sequence matches, what SELECT tells makes the copy equal."""
    chance = random.Random(seed)
    for _ in range(12):
        await rig.deliver(MESSAGE)
    other, client = await rig.select(), await _enabled(rig)
    asker = await _enabled(rig)
    copy = _Copy()
    for _ in range(12):
        await copy.synchronize(client, known=chance.random() < 0.6, match=chance.random() < 0.5)
        assert copy.flags == await _truth(asker)
        for _ in range(chance.randint(0, 4)):
            uids = f"{chance.randint(1, 25)}:{chance.randint(1, 25)}"
            match chance.randrange(4):
                case 0:
                    await rig.deliver(MESSAGE)
                case 1:
                    await other.ok(f"UID STORE {uids} +FLAGS.SILENT (\\Flagged)")
                case 2:
                    await other.ok(f"UID STORE {uids} FLAGS.SILENT (work)")
                case _:
                    await other.ok(f"UID STORE {chance.randint(1, 25)} +FLAGS.SILENT (\\Deleted)")
                    await other.ok("EXPUNGE")
    for each in (other, client, asker):
        await each.close()


async def test_uids_expunged_before_the_index_was_lost_are_told(tmp_path: Path, tls_files: TlsFiles) -> None:
    """Below the floor of what is remembered, every known UID that does not exist has vanished."""
    async with running(tmp_path, tls_files) as rig:
        for _ in range(4):
            await rig.deliver(MESSAGE)
        client = await _enabled(rig)
        lines = await client.ok("SELECT INBOX")
        validity, modseq = _number(_VALIDITY, lines), _number(_HIGHEST, lines)
        await client.ok("UID STORE 2:3 +FLAGS.SILENT (\\Deleted)")
        await client.ok("EXPUNGE")
        await client.ok("UNSELECT")
        for path in (tmp_path / "mail" / "example.test" / "alice").glob("pymx.index*"):
            path.unlink()
        lines = await client.ok(f"SELECT INBOX (QRESYNC ({validity} {modseq} 1:3))")
        assert b"* VANISHED (EARLIER) 2:3" in lines
        assert [int(found[1]) for line in lines if (found := _FETCH.fullmatch(line))] == [1]
        await client.close()


async def test_forgotten_changes_leave_out_nothing(rig: Rig) -> None:
    """When old runs are trimmed, the floor rises and older clients are told all that is missing."""
    for _ in range(6):
        await rig.deliver(MESSAGE)
    mailbox = await rig.store.open(ALICE, "INBOX", read_only=False)
    since = mailbox.highestmodseq
    await mailbox.store_flags([1, 4, 5], "add", 8, ())
    await mailbox.expunge(None)
    await mailbox.refresh()
    assert await mailbox.vanished([(1, 6)], since) == [(1, 1), (4, 5)]
    assert await mailbox.vanished([(5, 5)], since) == [(5, 5)]
    assert await mailbox.vanished([(1, 6)], mailbox.highestmodseq) == []
    assert await mailbox.vanished([(1, 4294967295)], 0) == [(1, 1), (4, 5)]
    assert mailbox.uids == array("I", [2, 3, 6])
    mailbox.close()


async def test_expunge_held_back_is_not_earlier_and_lowers_the_modseq(rig: Rig) -> None:
    """RFC 7162 s. 3.2.10.1: EARLIER tells of messages that have no sequence number in this session."""
    for _ in range(3):
        await rig.deliver(MESSAGE)
    client = await _enabled(rig)
    modseq = _number(_HIGHEST, await client.ok("SELECT INBOX"))
    other = await rig.select()
    await other.ok("STORE 2 +FLAGS.SILENT (\\Deleted)")
    await other.ok("EXPUNGE")
    held = await client.ok("FETCH 1 (FLAGS MODSEQ)")
    # s. 6: a client that goes away now must not remember a modseq above that of the expunge
    assert b"* OK [HIGHESTMODSEQ %d] Expunged messages are not told yet." % modseq in held
    lines = await client.ok(f"UID FETCH 1:3 (FLAGS) (CHANGEDSINCE {modseq} VANISHED)")
    assert not any(line.startswith(b"* VANISHED (EARLIER)") for line in lines)
    assert b"* VANISHED 2" in lines
    assert lines.index(b"* VANISHED 2") < len(lines) - 2
    assert _number(_HIGHEST, lines) > modseq
    assert _HIGHEST.search(b"".join(await client.ok("NOOP"))) is None
    for each in (client, other):
        await each.close()
