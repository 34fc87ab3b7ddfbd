"""A large mailbox as another server left it, and what the index says of it while its rows are written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ms_scenarios import account
from ms_support import row_of

from pymx.mail.flags import SEEN
from pymx.ms import firstsight
from pymx.ms.account import Account
from pymx.ms.box import Box
from pymx.ms.disk import Disk
from pymx.ms.flagging import HOLD_MESSAGES

MESSAGES = 2 * HOLD_MESSAGES + 500
TEXT = b"Subject: x\n\nbody\n"
INBOX = ("INBOX",)
Found = dict[int, tuple[bytes, int, int, int]]  # UID: base, flags, keywords, octets


def base(uid: int) -> str:
    return f"1700000000.M{uid:06d}P1.mx,S={len(TEXT)},W={len(TEXT) + 3}"


def name(uid: int) -> str:
    return f"{base(uid)}:2,{'' if uid == 7 else 'S'}{'a' if uid == 9 else ''}"


def fill(directory: Path, *, lines: int = MESSAGES, without: int = 0) -> Path:
    """What another server left: files, lines of the first `lines` of them, a keyword; `without` W."""
    for part in ("cur", "new", "tmp"):
        (directory / part).mkdir(parents=True)
    first = directory / "tmp" / "text"
    first.write_bytes(TEXT)
    for uid in range(1, MESSAGES + 1):
        os.link(first, directory / "cur" / (name(uid).replace(",W=20", "") if uid == without else name(uid)))
    if lines:
        header = f"3 V1700000000 N{lines + 1} G{'ab' * 16}\n"
        text = "".join(
            f"{uid} :{base(uid).replace(',W=20', '') if uid == without else base(uid)}\n" for uid in range(1, lines + 1)
        )
        (directory / "dovecot-uidlist").write_text(header + text)
    (directory / "dovecot-keywords").write_text("0 $Word\n")
    return directory


class Opened:
    """A process's account on the directory, closed at the end."""

    def __init__(self) -> None:
        self.accounts: list[Account] = []

    def __call__(self, directory: Path, boot: str = "one") -> Box:
        there = account(os.fsencode(directory), Disk(), boot)
        self.accounts.append(there)
        return there.box(INBOX)


def found(box: Box) -> Found:
    """What the index says, as it stands."""
    with box.home.index.read() as db:
        return {
            uid: (name.partition(b":")[0], flags, bits, octets)
            for uid, name, flags, bits, octets in db.execute(
                "SELECT id & 4294967295, name, flags, keywords, octets FROM message"
            )
        }


def expected(first: int = 1, last: int = MESSAGES) -> Found:
    return {
        uid: (base(uid).encode(), 0 if uid == 7 else SEEN, int(uid == 9), len(TEXT) + 3)
        for uid in range(first, last + 1)
    }


def counted(box: Box) -> None:
    """Counters are those of the rows."""
    row, there = row_of(box), found(box)
    assert row.messages == len(there)
    assert row.unseen == sum(not flags & SEEN for _, flags, _, _ in there.values())
    assert row.octets == sum(octets for *_, octets in there.values())


def between(box: Box, work: Callable[[], None], *, hold: int = 1) -> None:
    """Write the rows, with `work` done before the hold of this number."""
    turns = 0

    def turn() -> bool:
        nonlocal turns
        if turns == hold:
            work()
        turns += 1
        return False

    firstsight.complete(box, turn)
    assert turns > hold
