"""The capabilities offered, by state: a short list before login, the whole one after it.

Deviation: RFC 2971 s. 3 wants no operational changes by what ID says. A client that enables an extension and then does
not speak it shows no mail at all, so it is not offered that extension.
"""

from __future__ import annotations

_ALWAYS = "IMAP4rev1 IMAP4rev2 LITERAL+ SASL-IR ID ENABLE"
_LOGGED_IN = (
    "IDLE NAMESPACE CHILDREN UIDPLUS UNSELECT MOVE SPECIAL-USE LIST-EXTENDED LIST-STATUS STATUS=SIZE ESEARCH"
    " CONDSTORE QRESYNC SEARCHRES WITHIN PARTIAL MULTIAPPEND"
    " COMPRESS=DEFLATE QUOTA QUOTA=RES-STORAGE QUOTA=RES-MESSAGE OBJECTID SAVEDATE PREVIEW BINARY REPLACE"
    " CREATE-SPECIAL-USE UTF8=ACCEPT INPROGRESS CATENATE METADATA NOTIFY ACL RIGHTS=texk LIST-MYRIGHTS UIDONLY"
)

# What a client is not offered, by its name in ID. The service of Microsoft that reads mail for the new Outlook and for
# Outlook on phones enables UIDONLY and goes on with sequence numbers, which RFC 9586 s. 3.1 has refused.
_WITHHELD = {"Microsoft Office 365": b"UIDONLY"}
_SORTING = "SORT SORT=DISPLAY ESORT THREAD=ORDEREDSUBJECT THREAD=REFERENCES THREAD=REFS"


def before_login(*, starttls: bool, login_allowed: bool) -> bytes:
    """`starttls`: it can be begun now; without `login_allowed` LOGIN is refused (RFC 3501 s. 6.2.3)."""
    words = _ALWAYS
    if starttls:
        words += " STARTTLS"
    words += " AUTH=PLAIN AUTH=LOGIN" if login_allowed else " LOGINDISABLED"
    return words.encode()


def after_login(append_limit: int) -> bytes:
    return f"{_ALWAYS} {_LOGGED_IN} {_SORTING} APPENDLIMIT={append_limit}".encode()


def offered_to(client_id: str, capabilities: bytes) -> bytes:
    """Those after login, without what this client can't do. `client_id`: name and version, as ID told them."""
    for name, withheld in _WITHHELD.items():
        if client_id.startswith(name):
            return b" ".join(word for word in capabilities.split() if word != withheld)
    return capabilities
