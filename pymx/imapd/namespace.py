"""Names of mailboxes as clients see them and as the store has them (RFC 2342).

There is one personal namespace with a prefix (often empty, `INBOX.` on servers that came from Courier or Cyrus) and a
separator. INBOX stands outside the prefix and has one spelling, also as the first level of another name.
"""

from __future__ import annotations

from pymx.proto.imap.errors import No
from pymx.proto.imap.mailbox import encoded
from pymx.proto.imap.response import string, utf8_string

INBOX = "INBOX"


class Namespace:
    """Adds and takes off the prefix."""

    __slots__ = ("prefix", "separator")

    def __init__(self, prefix: str, separator: str) -> None:
        self.prefix = prefix
        self.separator = separator

    def folded(self, name: str) -> str:
        """The name with its first level written INBOX if it is that in any case."""
        if name[:5].upper() == INBOX and (len(name) == 5 or name[5] == self.separator):
            return INBOX + name[5:]
        return name

    def to_store(self, name: str, *, create: bool = False) -> str:
        """A client's name without the prefix. Raises No for what lies outside of the namespace."""
        name = self.folded(name)
        if name == INBOX or not self.prefix:
            return name
        inner = self.folded(name[len(self.prefix) :]) if name.startswith(self.prefix) else ""
        if inner and inner != INBOX:  # INBOX.INBOX is another name, and must not mean INBOX
            return inner
        if create:
            raise No(f"Mailbox names here begin with {self.prefix}", code="CANNOT")
        raise No("No such mailbox", code="NONEXISTENT")

    def to_client(self, name: str) -> str:
        return name if name == INBOX else self.prefix + name

    def on_wire(self, name: str, *, utf8: bool = False) -> bytes:
        """A name of the store as it stands in a response."""
        return encoded(self.to_client(name), utf8=utf8)

    def response(self, *, utf8: bool) -> bytes:
        return b"* NAMESPACE ((%b %b)) NIL NIL\r\n" % (
            utf8_string(self.prefix) if utf8 else string(encoded(self.prefix).strip(b'"')),
            string(self.separator.encode()),
        )
