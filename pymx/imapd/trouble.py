"""What a failure becomes for an IMAP client: one table of response codes (RFC 5530)."""

from __future__ import annotations

from pymx.ms.errors import (
    InvalidName,
    LimitReached,
    MailboxExists,
    NoSuchMailbox,
    OverQuota,
    ReadOnly,
    Stopped,
    StorageFull,
    StoreError,
    Unavailable,
)
from pymx.proto.imap.errors import No
from pymx.proto.imap.response import text_line

_CODES: dict[type[StoreError], str] = {
    NoSuchMailbox: "NONEXISTENT",
    MailboxExists: "ALREADYEXISTS",
    InvalidName: "CANNOT",
    OverQuota: "OVERQUOTA",
    StorageFull: "OVERQUOTA",
    ReadOnly: "NOPERM",
    LimitReached: "LIMIT",
    Stopped: "",  # by the client itself: no code speaks of that
    Unavailable: "UNAVAILABLE",
}


def refusal(error: StoreError, *, creatable: bool = False) -> No:
    """The answer to a store error. `creatable`: the target of APPEND, COPY or MOVE (RFC 3501 s. 7.1: TRYCREATE)."""
    code = _CODES.get(type(error), "UNAVAILABLE")
    if creatable and code == "NONEXISTENT":
        code = "TRYCREATE"
    return No(str(error.args[0]) if error.args else "Not possible now", code=code)


def no_text(refused: No) -> bytes:
    """`NO [CODE] text`."""
    code = f"[{refused.code}] " if refused.code else ""
    return b"NO " + text_line(code + refused.text)
