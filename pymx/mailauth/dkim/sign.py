"""DKIM signatures (RFC 6376 s. 5), relaxed/relaxed, RSA and, where a domain has such a key, Ed25519 beside it.

Fields that must not be added or replaced on the way are over-signed: named once more than they occur, so that another
one breaks the signature (s. 8.15). Those that a mailing list adds to the mail it passes on (Sender, List-…) are
covered where the message has them, as RFC 8058 s. 4 wants it for List-Unsubscribe and List-Unsubscribe-Post, and not
where it has none. No l= tag: it would let anybody append to the body. The body is hashed once, in pieces, however many
keys sign.

`Signer.sign` is synchronous, may be called from several threads, and takes 0.35 ms for an RSA-2048 key and a small
message, most of it without the GIL. Raises `keys.KeyUnusable` when the domain's keys can't be read, OSError when the
content can't.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol

from pymx.mail.address import AddressError, domain_to_ascii
from pymx.mail.header import build_field, iter_fields
from pymx.mailauth.dkim.canonical import RelaxedBody, relaxed_field
from pymx.mailauth.dkim.keys import KeyRing, SigningKey

# Signed, and once more than they occur: nobody may add another one.
_ALWAYS = (
    "from", "to", "cc", "subject", "date", "message-id", "reply-to", "in-reply-to", "references", "mime-version",
    "content-type", "content-transfer-encoding",
)  # fmt: skip
# The same, but only where they occur: mailing lists add them to what they pass on, and change nothing else.
_WHERE_PRESENT = (
    "sender", "list-id", "list-post", "list-help", "list-subscribe", "list-unsubscribe", "list-unsubscribe-post",
    "list-owner", "list-archive", "resent-from", "resent-to", "resent-date", "resent-message-id",
)  # fmt: skip


class Signable(Protocol):
    """A message: its header block, and its body in pieces, the first of which begins with the empty line."""

    @property
    def head(self) -> bytes: ...

    def body_chunks(self) -> Iterator[bytes]: ...


class Signer:
    """Signs messages with the keys under `directory` (see `keys`)."""

    def __init__(
        self,
        directory: Path,
        *,
        clock: Callable[[], float] = time.time,
        complain: Callable[[Path, str], None] | None = None,
    ) -> None:
        self._ring = KeyRing(directory, complain=complain)
        self._clock = clock

    def sign(self, domain: str, content: Signable) -> bytes:
        """The DKIM-Signature fields for `content`, to be put above it; b"" when `domain` has no key."""
        try:
            domain = domain_to_ascii(domain)
        except AddressError:
            return b""
        keys = self._ring.keys(domain)
        if not keys:
            return b""
        hashed = body_hash(content)
        names, signed = select(content.head)
        now = int(self._clock())
        return b"".join(_signature(key, now, names, signed, hashed) for key in keys)


def body_hash(content: Signable) -> str:
    """The bh= of a message (s. 3.7)."""
    digest = hashlib.sha256()
    body = RelaxedBody(digest)
    # the first two octets are the empty line between header and body
    skip = 2
    for piece in content.body_chunks():
        body.update(piece[skip:] if skip else piece)
        skip = max(0, skip - len(piece))
    body.finish()
    return base64.b64encode(digest.digest()).decode("ascii")


def select(head: bytes, present_too: tuple[str, ...] = ()) -> tuple[list[str], bytes]:
    """The names for h=, and the fields they select in canonical form (s. 5.4.2: from the bottom up).

    `present_too` are signed as often as they occur.
    """
    present: dict[str, list[bytes]] = {}
    for field in iter_fields(head):
        present.setdefault(field.name, []).append(field.raw)
    names: list[str] = []
    signed: list[bytes] = []
    for name in (*_ALWAYS, *_WHERE_PRESENT, *present_too):
        raws = present.get(name, [])
        if name in _ALWAYS or (raws and name in _WHERE_PRESENT):
            names += [name] * (len(raws) + 1)
        else:
            names += [name] * len(raws)
        signed += [relaxed_field(raw) + b"\r\n" for raw in reversed(raws)]
    return names, b"".join(signed)


def _signature(key: SigningKey, now: int, names: list[str], signed: bytes, body_hash: str) -> bytes:
    tags = (
        f"v=1; a={key.algorithm}; c=relaxed/relaxed; d={key.domain}; s={key.selector}; t={now}; "
        f"h={spaced(names)}; bh={body_hash}; b="
    )
    # s. 3.7: the signature's own field is hashed too, last, without its CRLF and with an empty b=
    own = relaxed_field(build_field("DKIM-Signature", tags)[:-2])
    return build_field("DKIM-Signature", tags + grouped(key.sign(signed + own)))


def grouped(signature: bytes) -> str:
    """A signature for b=, with spaces at which the field can be folded."""
    value = base64.b64encode(signature).decode("ascii")
    return " ".join(value[i : i + 70] for i in range(0, len(value), 70))


def spaced(names: list[str]) -> str:
    """The names joined by colons, with a space here and there at which the field can be folded."""
    rest = iter(names)
    return ": ".join(iter(lambda: ":".join(islice(rest, 6)), ""))
