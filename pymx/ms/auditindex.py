"""Does the index say of a mailbox what its files say? Looks only.

What the index has not taken in yet is no fault: foreign changes are found at the next access. So rows are compared with
files only where the index claims to be up to date; what contradicts itself is wrong in any case.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pymx.ms import keywords, letters, names, uidlist
from pymx.ms.auditfiles import Problem, claimed_sizes
from pymx.ms.fault import some
from pymx.ms.index import Connection
from pymx.ms.row import COLUMNS, POWER_CUT, Row, Stamp

MessageRow = tuple[int, int, int, int, int, bytes]  # UID, flags, keywords, octets, in_new, name


@dataclass(slots=True)
class Indexed:
    """What the index holds of one mailbox."""

    row: Row
    messages: list[MessageRow]
    keywords: list[str]


def read(db: Connection, name: str) -> Indexed | None:
    """In one snapshot with what else `db` is asked in its transaction."""
    found = db.execute(f"SELECT {COLUMNS} FROM mailbox WHERE name=?", (name,)).fetchone()  # noqa: S608
    if found is None or not found[2]:
        return None
    row = Row(*found)
    messages = db.execute(
        "SELECT id & 4294967295, flags, keywords, octets, in_new, name FROM message WHERE id BETWEEN ? AND ?",
        (row.low, row.high),
    ).fetchall()
    return Indexed(row, messages, letters.keyword_names(db, row))


def problems(
    there: Indexed,
    stamp: Stamp,
    listed: tuple[set[bytes], set[bytes]],
    found: uidlist.UidList | None,
    letter_file: bytes,
) -> Iterator[Problem]:
    """The index against the uidlist (None if unreadable), `cur/` and `new/`, and dovecot-keywords."""
    row = there.row
    if found is not None:
        header = found.header
        if row.uidvalidity != header.uidvalidity or (header.guid and header.guid.lower() != row.guid.lower()):
            text = (
                "dovecot-uidlist has another UIDVALIDITY or GUID than the index: another mailbox was put in its place"
            )
            yield "mailbox_replaced", text, False
            return
        yield from _against_uidlist(there, found)
    yield from _counters(there)
    if row.dirty_since == POWER_CUT or row.stamp != stamp:
        yield (
            "index_behind",
            "the files changed since the index was last used; that is taken in at the next access",
            False,
        )
        return
    yield from _against_files(there, *listed, found)
    known = keywords.parse(letter_file)
    if any(name != (there.keywords[n] if n < len(there.keywords) else "") for n, name in enumerate(known)):
        yield "index_keywords", "the index names keyword letters otherwise than dovecot-keywords", True


def _against_uidlist(there: Indexed, found: uidlist.UidList) -> Iterator[Problem]:
    lines = {uid: base for uid, _, base in found.records}
    lost = [str(m[0]) for m in there.messages if m[0] not in lines]
    if lost:
        yield "uidlist_lines_lost", f"dovecot-uidlist has no line for UIDs that were given: {some(lost)}", True
    other = [str(m[0]) for m in there.messages if m[0] in lines and lines[m[0]] != names.base_of(m[5])]
    if other:
        text = f"by the index these UIDs are other messages than by dovecot-uidlist: {some(other)}"
        yield "uid_two_messages", text, True


def _counters(there: Indexed) -> Iterator[Problem]:
    row = there.row
    counted = (
        len(there.messages),
        sum(1 for m in there.messages if not m[1] & 1),
        sum(1 for m in there.messages if m[1] >> 3 & 1),
        sum(m[3] for m in there.messages),
    )
    noted = (row.messages, row.unseen, row.deleted, row.octets)
    wrong = [
        f"{what} is {before}, should be {now}"
        for what, before, now in zip(("messages", "unseen", "deleted", "octets"), noted, counted, strict=True)
        if before != now
    ]
    if wrong:
        yield "index_counters", f"the index counts wrongly: {'; '.join(wrong)}", True
    if there.messages and row.uidnext <= there.messages[-1][0]:
        yield "index_uidnext", f"the index would give UID {row.uidnext} a second time", True


def _against_files(
    there: Indexed, cur: set[bytes], new: set[bytes], found: uidlist.UidList | None
) -> Iterator[Problem]:
    rows = {m[5] for m in there.messages}
    gone = [str(m[0]) for m in there.messages if m[5] not in (new if m[4] else cur)]
    if gone:
        yield "index_no_file", f"the index has messages that have no file: UID {some(gone)}", True
    unknown = sorted(n.decode("utf-8", "replace") for n in (cur | new) - rows if names.base_of(n))
    if unknown:
        yield "index_no_row", f"the index does not know files that are there: {some(unknown)}", True
    flags = [str(m[0]) for m in there.messages if names.flags_of(m[5]) != (m[1] & 63, m[2] & names.LETTER_MASK)]
    if flags:
        yield "index_flags", f"the index has other flags than the file names: UID {some(flags)}", True
    keys = {base: line_keys for _, line_keys, base in found.records} if found else {}
    sizes = []
    for m in there.messages:
        wire = claimed_sizes(m[5], keys.get(names.base_of(m[5]), b""))[1]
        if wire is not None and wire != m[3]:
            sizes.append(str(m[0]))
    if sizes:
        yield "index_octets", f"the index has other sizes than the file names: UID {some(sizes)}", True
