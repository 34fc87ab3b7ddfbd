"""STORE on many messages at once: files and rows say the same, whatever the names look like."""

from __future__ import annotations

import os
import random
from pathlib import Path

from ms_support import OWNER, maildir, new_store

from pymx.mail import flags
from pymx.ms import names
from pymx.ms.mailbox import Mailbox

ENDINGS = [
    b"",
    b":2,",
    b":2,S",
    b":2,FS",
    b":2,DFRST",
    b":2,Sa",
    b":2,Sab",
    b":2,QSX",
    b":2,S,junk",
    b":1,odd",
    b":2,a",
]
BASES = [b"%d.M1P1.mx", b"%d.\xfc\xff.mx,S=9", b"%d.h\xc3\xa4.mx,S=9,W=10", b"%d.:2.mx"]


def scatter(directory: Path) -> None:
    """Messages of every kind of name, in no order."""
    chance = random.Random(3)
    kinds = [(base, ending) for base in BASES for ending in ENDINGS] * 3
    chance.shuffle(kinds)
    for part in ("cur", "new", "tmp"):
        (directory / part).mkdir(parents=True)
    for number, (base, ending) in enumerate(kinds):
        name = base % (1_700_000_000 + number) + ending
        part = b"cur" if b":" in ending else b"new"
        with open(os.path.join(os.fsencode(directory), part, name), "wb") as file:
            file.write(b"A: b\n\nc\n\n")


async def states(mailbox: Mailbox) -> dict[int, tuple[int, int]]:
    return {row[0]: (row[2], row[3]) async for batch in mailbox.rows(mailbox.uids) for row in batch}


async def test_every_message_is_found_under_the_name_its_row_has(tmp_path: Path) -> None:
    """The name in the row is how the file is opened; a wrong one would lose flags at the next listing."""
    scatter(maildir(tmp_path))
    store = new_store(tmp_path)
    await store.start()
    mailbox = await store.open(OWNER, "INBOX", read_only=False)
    expected = await states(mailbox)
    for mode, changed, keywords, uids in (
        ("add", flags.FLAGGED, (), list(mailbox.uids)),
        ("add", flags.SEEN, ("new",), list(mailbox.uids)[::2]),
        ("remove", flags.SEEN, (), list(mailbox.uids)[5:60]),
        ("set", flags.DELETED, ("new", "other"), list(mailbox.uids)[40:]),
        ("set", 0, (), list(mailbox.uids)[::5]),
    ):
        stored = await mailbox.store_flags(uids, mode, changed, keywords)  # type: ignore[arg-type]
        bits = {name: bit for bit, name in enumerate(mailbox.keywords)}
        mask = sum(1 << bits[name] for name in keywords)
        for uid in uids:
            old, old_bits = expected[uid]
            expected[uid] = {
                "add": (old | changed, old_bits | mask),
                "remove": (old & ~changed, old_bits & ~mask),
                "set": (changed | old & flags.PASSED, mask),
            }[mode]
        assert {row[0]: row[2:4] for row in stored.rows} == {uid: expected[uid] for uid in uids}
        assert await states(mailbox) == expected
        with mailbox._box.home.index.read() as db:
            rows = db.execute("SELECT in_new, name, flags, keywords FROM message").fetchall()
            counted = db.execute("SELECT unseen, deleted FROM mailbox WHERE name='INBOX'").fetchone()
        root = os.fsencode(maildir(tmp_path))
        assert {row[1] for row in rows} == {*os.listdir(root + b"/cur"), *os.listdir(root + b"/new")}
        assert all(not row[0] and isinstance(row[1], bytes) for row in rows)
        assert all(names.flags_of(row[1]) == row[2:4] for row in rows)
        every = [state for state, _ in expected.values()]
        assert counted == (
            sum(not state & flags.SEEN for state in every),
            sum(bool(state & flags.DELETED) for state in every),
        )
    mailbox.close()
    await store.close()
