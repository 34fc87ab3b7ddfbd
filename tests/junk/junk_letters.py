"""Unwanted and wanted mail that no two tests need to share."""

from __future__ import annotations

_SPAM = (
    "cheap watches", "golden discount", "online pharmacy", "limited offer", "act now", "click the button below",
    "winner of the lottery", "unsubscribe never", "miracle pills", "earn money from home", "wire transfer prize",
    "exclusive casino bonus", "hot singles nearby", "refinance your mortgage", "no credit check",
)  # fmt: skip
_HAM = (
    "the choir practice on thursday", "keys of the vestry", "minutes of the meeting", "roof of the church",
    "grandmother sends her love", "the garden fence", "train to Leipzig at nine", "please bring the sheet music",
    "the children's homework", "new strings for the cello", "library books are due", "bicycle repair on saturday",
    "soup recipe with lentils", "tomatoes on the balcony", "photographs of the hike",
)  # fmt: skip


def letter(number: int, *, spam: bool, author: str = "", to: str = "alice@example.test") -> str:
    """The nth of its kind: every one has other words, but they are of one cloth."""
    phrases = _SPAM if spam else _HAM
    chosen = [phrases[(number * 7 + step * 4 + step * step) % len(phrases)] for step in range(8)]
    author = author or (f"offers{number}@bulk{number}.test" if spam else f"friend{number}@home{number}.test")
    body = "\r\n".join(f"{phrase} and number {number * 31 + at}" for at, phrase in enumerate(chosen))
    return (
        f"From: {author}\r\nTo: {to}\r\nSubject: {chosen[0]} {number}\r\nDate: Tue, 24 Nov 2026 10:00:00 +0000\r\n"
        f"Message-ID: <{'spam' if spam else 'ham'}-{number}@x>\r\n\r\n{body}\r\n"
    )
