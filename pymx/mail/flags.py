"""Message flags: IMAP system flags as bits, and their letters in Maildir names (RFC 3501 s. 2.3.2, Maildir).

A message's flags are one int of the bits below; keywords are a second int whose bit n is the mailbox's keyword n.
"""

from __future__ import annotations

SEEN = 1
ANSWERED = 2
FLAGGED = 4
DELETED = 8
DRAFT = 16
PASSED = 32  # Maildir's P: IMAP has no system flag for it; kept in the name, shown to nobody

SYSTEM_FLAGS: dict[str, int] = {
    "\\Answered": ANSWERED,
    "\\Flagged": FLAGGED,
    "\\Deleted": DELETED,
    "\\Seen": SEEN,
    "\\Draft": DRAFT,
}
_BY_LOWER = {name.lower(): bit for name, bit in SYSTEM_FLAGS.items()}
# In ASCII order, as they stand in a Maildir name.
_LETTERS = ((b"D", DRAFT), (b"F", FLAGGED), (b"P", PASSED), (b"R", ANSWERED), (b"S", SEEN), (b"T", DELETED))
LETTER_BITS: dict[str, int] = {letter.decode(): bit for letter, bit in _LETTERS}

MAX_KEYWORDS = 62  # bits of a signed 64-bit integer, less a margin
MAX_KEYWORD_OCTETS = 50

_FLAG_TEXT: list[str] = [
    " ".join(name for name, bit in SYSTEM_FLAGS.items() if flags & bit) for flags in range(PASSED * 2)
]


def system_flag(name: str) -> int | None:
    """The bit of a system flag by its IMAP name, caseless; None for anything else (`\\Recent` too)."""
    return _BY_LOWER.get(name.lower())


def flags_text(flags: int) -> str:
    """The system flags as IMAP atoms joined by spaces."""
    return _FLAG_TEXT[flags & 63]


def maildir_letters(flags: int) -> str:
    """The flags' letters in ASCII order."""
    return b"".join(letter for letter, bit in _LETTERS if flags & bit).decode()
