"""SORT (RFC 5256), ESORT (RFC 5267), and MODSEQ in both (RFC 7162 s. 3.1.5)."""

from __future__ import annotations

from collections.abc import Sequence

from pymx.imapd.client import Client
from pymx.imapd.commands.search import decisive, esearch, highest_modseq
from pymx.imapd.criteria import criterion
from pymx.proto.imap.commands.sort import Sort


async def sort(client: Client, arguments: Sort) -> bytes:
    mailbox = client.selected
    view = mailbox.uids
    wanted = arguments.search
    keys = await criterion(client, wanted.key)
    if wanted.modseq:
        client.enable_condstore()
    if wanted.saves:
        client.saved = ()  # RFC 5182 s. 2.1: empty if it fails with NO
    uids = await mailbox.sort(await mailbox.search(keys), arguments.order)
    if wanted.saves:
        client.saved = sorted(decisive(uids, wanted))
    found = uids if wanted.by_uid else await client.server.store.in_thread(lambda: _numbers(view, uids))
    modseq = 0
    if wanted.modseq and uids:
        modseq = await highest_modseq(mailbox, sorted(decisive(uids, wanted)))
    if wanted.returns is None:
        text = await client.server.store.in_thread(lambda: str(found)[1:-1].replace(",", "").encode())
        client.write(b"* SORT%b%b%b\r\n" % (b" " if text else b"", text, b" (MODSEQ %d)" % modseq if modseq else b""))
    elif wanted.returns != {"SAVE"}:
        client.write(esearch(client.tag, found, wanted, modseq))
    await client.drain()
    return b"OK Sort completed."


def _numbers(view: Sequence[int], uids: Sequence[int]) -> list[int]:
    """The sequence numbers of UIDs of the view, in their order."""
    numbers = dict(zip(view, range(1, len(view) + 1), strict=True))
    return [numbers[uid] for uid in uids]
