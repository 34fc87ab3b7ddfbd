"""A mailbox's row in the index: what it is, what it counts, and what its files looked like when that was right."""

from __future__ import annotations

from dataclasses import dataclass, fields

from pymx.ms.index import UID_BITS, UID_MASK

# uidlist inode, size, mtime; mtimes of cur/ and new/
Stamp = tuple[int, int, int, int, int]
POWER_CUT = -1.0  # dirty_since of a mailbox not yet looked at after a power cut
FILLING = -2.0  # dirty_since of one whose rows are still being written (`pymx.ms.firstsight`)


@dataclass(slots=True)
class Row:
    """The index's row of a mailbox."""

    id: int
    name: str
    guid: str = ""
    uidvalidity: int = 0
    uidnext: int = 1
    highestmodseq: int = 1
    expunge_floor: int = 0
    first_recent: int = 1
    special_use: str = ""
    messages: int = 0
    unseen: int = 0
    deleted: int = 0
    octets: int = 0
    uidlist_ino: int = 0
    uidlist_size: int = 0
    uidlist_mtime: int = 0
    cur_mtime: int = 0
    new_mtime: int = 0
    dirty_since: float = 0.0

    @property
    def stamp(self) -> Stamp:
        return (self.uidlist_ino, self.uidlist_size, self.uidlist_mtime, self.cur_mtime, self.new_mtime)

    @property
    def low(self) -> int:
        """The smallest message id of this mailbox."""
        return self.id << UID_BITS

    @property
    def high(self) -> int:
        return self.id << UID_BITS | UID_MASK


COLUMNS = ", ".join(f.name for f in fields(Row))
