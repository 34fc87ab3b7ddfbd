"""`pymx-keywords`: the keywords of a mailbox beyond the 26 that Maildir names have letters for.

    <uid> <name>[ <name>…]

Rewritten whole, synced, whenever such a keyword of a message changes; read only when the index is lost. Dovecot has no
place for these outside its own index and does not look at the file. Lines of expunged messages stay until a rewrite.
"""

from __future__ import annotations

import os

from pymx.mail.flags import MAX_KEYWORDS
from pymx.ms import letters
from pymx.ms.box import Hold
from pymx.ms.names import LETTERS

NAME = b"pymx-keywords"


def parse(data: bytes) -> dict[int, list[str]]:
    """Names by UID; lines that say nothing are skipped."""
    out = {}
    for line in data.decode("utf-8", "replace").split("\n"):
        uid, *names = line.split(" ")
        if uid.isascii() and uid.isdigit() and len(uid) <= 10 and names:
            out[int(uid)] = [name for name in names if name]
    return out


def to_bytes(found: dict[int, list[str]]) -> bytes:
    return b"".join(f"{uid} {' '.join(names)}\n".encode() for uid, names in sorted(found.items()))


def write(hold: Hold) -> None:
    """What the rows say, into the file."""
    known = letters.keyword_names(hold.db, hold.row)
    found = {}
    for uid, bits in hold.db.execute(
        "SELECT id & 4294967295, keywords FROM message WHERE id BETWEEN ? AND ? AND keywords >> 26",
        (hold.row.low, hold.row.high),
    ):
        found[uid] = [name for bit, name in enumerate(known) if bit >= LETTERS and name and bits >> bit & 1]
    path = os.path.join(hold.box.path, NAME)
    hold.disk.replace_file(path, path + b".tmp", to_bytes(found), hold.box.home.mode)


def restore(hold: Hold) -> None:
    """Give rows made anew the keywords that only the file has."""
    try:
        with open(os.path.join(hold.box.path, NAME), "rb") as file:
            found = parse(file.read())
    except FileNotFoundError:
        return
    names = sorted({name for several in found.values() for name in several})[: MAX_KEYWORDS - LETTERS]
    bit_of = {name: LETTERS + n for n, name in enumerate(names)}
    hold.db.executemany(
        "INSERT OR REPLACE INTO keyword VALUES(?, ?, ?)", [(hold.row.id, bit, name) for name, bit in bit_of.items()]
    )
    hold.db.executemany(
        "UPDATE message SET keywords = keywords | ? WHERE id=?",
        [
            (sum(1 << bit_of[name] for name in set(several) if name in bit_of), hold.row.low | uid)
            for uid, several in found.items()
        ],
    )
    hold.saved()
