"""SEARCH (RFC 3501 s. 6.4.4), ESEARCH (RFC 4731) and MODSEQ (RFC 7162 s. 3.1.5)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from pymx.imapd.client import Client
from pymx.ms.mailbox import Mailbox
from pymx.proto.imap.commands.search import Search, resolve
from pymx.proto.imap.response import string
from pymx.proto.imap.sequence import SequenceSet, runs


async def search(client: Client, arguments: Search) -> bytes:
    mailbox = client.selected
    view = mailbox.uids

    def ranges(messages: SequenceSet, by_uid: bool) -> tuple[tuple[int, int], ...]:
        positions = messages.uids(view) if by_uid else messages.numbers(view)
        return tuple((view[start], view[stop - 1]) for start, stop in positions)

    if arguments.modseq:
        client.enable_condstore()
    uids = await mailbox.search(resolve(arguments.key, ranges))
    found = uids if arguments.by_uid else [bisect_left(view, uid) + 1 for uid in uids]
    modseq = 0
    if arguments.modseq and uids:
        modseq = await _highest(mailbox, _decisive(uids, arguments.returns))
    if arguments.returns is None:
        text = str(found)[1:-1].replace(",", "").encode()
        client.write(b"* SEARCH%b%b%b\r\n" % (b" " if text else b"", text, b" (MODSEQ %d)" % modseq if modseq else b""))
    else:
        client.write(_esearch(client.tag, found, arguments, modseq))
    await client.drain()
    return b"OK Search completed."


def _decisive(uids: Sequence[int], returns: frozenset[str] | None) -> Sequence[int]:
    """The messages whose modseq is given back (RFC 7162 s. 3.1.5: MIN and MAX alone mean just those)."""
    if returns is None or returns & {"ALL", "COUNT"}:
        return uids
    ends = ([uids[0]] if "MIN" in returns else []) + ([uids[-1]] if "MAX" in returns else [])
    return sorted(set(ends))


async def _highest(mailbox: Mailbox, uids: Sequence[int]) -> int:
    highest = 0
    async for rows in mailbox.rows(uids):
        highest = max(highest, max((row[1] for row in rows), default=0))
    return highest


def _esearch(tag: bytes, found: Sequence[int], arguments: Search, modseq: int) -> bytes:
    assert arguments.returns is not None
    parts = [b"* ESEARCH (TAG %b)" % string(tag)]
    if arguments.by_uid:
        parts.append(b"UID")
    if found:
        if "MIN" in arguments.returns:
            parts.append(b"MIN %d" % found[0])
        if "MAX" in arguments.returns:
            parts.append(b"MAX %d" % found[-1])
        if "ALL" in arguments.returns:
            parts.append(b"ALL " + runs(found))
    if "COUNT" in arguments.returns:
        parts.append(b"COUNT %d" % len(found))
    if modseq:
        parts.append(b"MODSEQ %d" % modseq)
    return b" ".join(parts) + b"\r\n"
