"""Search keys of a command as criteria of the store: sequence numbers, `$`, ages and EMAILIDs filled in.

Used by everything that takes search keys.

Deviation: RFC 3501 s. 9 has sequence numbers that are too high answered BAD; in a search they are nobody's, as with
Dovecot, so that a client that has not heard of an expunge gets an answer.
"""

from __future__ import annotations

import time

from pymx.imapd.client import Client
from pymx.mail.search import Criterion
from pymx.proto.imap.commands.search import Known, Ranges, SearchKey, resolve, wanted_ids
from pymx.proto.imap.errors import Bad
from pymx.proto.imap.sequence import SequenceSet, ranges_of


async def criterion(client: Client, key: SearchKey) -> Criterion:
    """Raises Bad for sequence numbers of a client with UIDONLY."""
    view = client.selected.uids

    def ranges(messages: SequenceSet, by_uid: bool) -> Ranges:
        if messages.saved:
            return tuple(ranges_of(client.saved_uids()))
        if client.uidonly and not by_uid:
            raise Bad("Sequence numbers are not known here", code="UIDREQUIRED")  # RFC 9586 s. 3.1
        positions = messages.uids(view) if by_uid else messages.numbers_there(view)
        return tuple((view[start], view[stop - 1]) for start, stop in positions)

    by_id: dict[str, Ranges] = {}
    wanted = wanted_ids(key)
    if wanted:
        found = await client.selected.email_ids(view)
        by_id = {each: tuple((uid, uid) for uid, email_id in found.items() if email_id == each) for each in wanted}
    return resolve(key, Known(ranges, lambda email_id: by_id[email_id], int(time.time())))
