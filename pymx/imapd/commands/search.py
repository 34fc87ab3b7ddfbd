"""SEARCH (RFC 3501 s. 6.4.4), ESEARCH (RFC 4731), SAVE (RFC 5182), PARTIAL (RFC 9394), MODSEQ (RFC 7162 s. 3.1.5)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

from pymx.imapd.client import Client
from pymx.imapd.criteria import criterion
from pymx.ms.mailbox import Mailbox
from pymx.proto.imap.commands.search import CHARSETS, Search
from pymx.proto.imap.errors import No
from pymx.proto.imap.response import string
from pymx.proto.imap.sequence import runs


async def search(client: Client, arguments: Search) -> bytes:
    mailbox = client.selected
    view = mailbox.uids
    keys = None if arguments.bad_charset else await criterion(client, arguments.key)
    if arguments.saves:
        client.saved = ()  # RFC 5182 s. 2.1: empty if the search fails with NO
    if keys is None:
        raise No("Unknown charset", code=f"BADCHARSET ({' '.join(CHARSETS)})")
    if arguments.modseq:
        client.enable_condstore()
    uids = await mailbox.search(keys)
    if arguments.saves:
        client.saved = decisive(uids, arguments)
    found = uids if arguments.by_uid else [bisect_left(view, uid) + 1 for uid in uids]
    modseq = 0
    if arguments.modseq and uids:
        modseq = await highest_modseq(mailbox, decisive(uids, arguments))
    if client.rev2 and arguments.returns is None:
        arguments = replace(arguments, returns=frozenset({"ALL"}))  # RFC 9051 s. 6.4.4: always ESEARCH
    if arguments.returns is None:
        text = str(found)[1:-1].replace(",", "").encode()
        client.write(b"* SEARCH%b%b%b\r\n" % (b" " if text else b"", text, b" (MODSEQ %d)" % modseq if modseq else b""))
    elif arguments.returns != {"SAVE"}:  # RFC 5182 s. 2.1: alone, it tells nothing
        client.write(esearch(client.tag, found, arguments, modseq))
    await client.drain()
    return b"OK Search completed."


def decisive(uids: Sequence[int], arguments: Search) -> Sequence[int]:
    """The messages that MODSEQ tells of and SAVE saves: MIN, MAX and PARTIAL alone mean just those.

    RFC 7162 s. 3.1.5, RFC 5182 s. 2.4, RFC 9394 s. 3.4.
    """
    returns = arguments.returns
    if not uids or not returns or returns & {"ALL", "COUNT"} or not returns & {"MIN", "MAX", "PARTIAL"}:
        return uids
    chosen = set(arguments.window.of(uids)) if arguments.window is not None else set()
    if "MIN" in returns:
        chosen.add(uids[0])
    if "MAX" in returns:
        chosen.add(uids[-1])
    return sorted(chosen)


async def highest_modseq(mailbox: Mailbox, uids: Sequence[int]) -> int:
    """The highest modseq of `uids` (ascending)."""
    highest = 0
    async for rows in mailbox.rows(uids):
        highest = max(highest, max((row[1] for row in rows), default=0))
    return highest


def esearch(tag: bytes, found: Sequence[int], arguments: Search, modseq: int) -> bytes:
    """An ESEARCH response; `found` in the order it is to be told in."""
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
    if arguments.window is not None:
        parts.append(b"PARTIAL (%b %b)" % (arguments.window.label, runs(arguments.window.of(found)) or b"NIL"))
    if modseq:
        parts.append(b"MODSEQ %d" % modseq)
    return b" ".join(parts) + b"\r\n"
