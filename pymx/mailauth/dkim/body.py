"""The hashes of a body that the signatures above it ask for, taken as the body passes.

Each canonical form is made once, however many signatures use it, in time linear in the body's length; l= is counted on
the way. Only SHA-256: signatures with SHA-1 are not checked (RFC 8301).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from pymx.mail.header import find
from pymx.mailauth.dkim.canonical import RelaxedBody, SimpleBody
from pymx.mailauth.dkim.signature import SignatureError, parse_signature

MAX_FIELDS = 64  # signature fields looked at for what they need
_SMALL_OCTETS = 4096  # pieces smaller than this are collected first


class _Digest:
    """Takes canonical octets: hashes all of them, and the first `length` for each l=."""

    __slots__ = ("limited", "octets", "whole")

    def __init__(self, lengths: Iterable[int]) -> None:
        self.whole = hashlib.sha256()
        self.octets = 0
        self.limited = {length: hashlib.sha256() for length in lengths}

    def update(self, data: bytes, /) -> None:
        self.whole.update(data)
        for length, digest in self.limited.items():
            if self.octets < length:
                digest.update(data[: length - self.octets])
        self.octets += len(data)


class BodyHashes:
    """Feed it the body in pieces, as `Content.body_chunks()` has them: they begin with the empty line.

    `head` is the header block of the message; the signatures in it say which forms are needed. A message without
    signatures costs nothing.
    """

    __slots__ = ("_bodies", "_digests", "_finished", "_skip", "_waiting")

    def __init__(self, head: bytes) -> None:
        needed = _needed(head)
        self._digests = {form: _Digest(lengths) for form, lengths in needed.items()}
        self._bodies = [(RelaxedBody if form == "relaxed" else SimpleBody)(d) for form, d in self._digests.items()]
        self._skip = 2  # the empty line between header and body
        self._waiting = bytearray()
        self._finished = False

    @property
    def is_needed(self) -> bool:
        """Is there a signature that wants a hash?"""
        return bool(self._bodies)

    def update(self, data: bytes) -> None:
        """The next octets of the body."""
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        if len(data) < _SMALL_OCTETS and self._bodies:
            self._waiting += data
            if len(self._waiting) < _SMALL_OCTETS:
                return
            data = self._waiting_octets()
        elif self._waiting:
            data = self._waiting_octets() + data
        for body in self._bodies:
            body.update(data)

    def _waiting_octets(self) -> bytes:
        data = bytes(self._waiting)
        self._waiting.clear()
        return data

    def finish(self) -> None:
        """The body is complete. A second call does nothing."""
        if not self._finished:
            self._finished = True
            rest = self._waiting_octets()
            for body in self._bodies:
                body.update(rest)
                body.finish()

    def digest(self, form: str, length: int | None = None) -> bytes | None:
        """The hash of the body, or of its first `length` octets; None when no signature in the head asked for it."""
        digest = self._digests.get(form)
        if digest is None:
            return None
        chosen = digest.whole if length is None else digest.limited.get(length)
        return chosen.digest() if chosen else None

    def octets(self, form: str) -> int:
        """The length of the body in this form."""
        digest = self._digests.get(form)
        return digest.octets if digest else 0


def body_hashes(head: bytes, body: Iterable[bytes] | BodyHashes) -> BodyHashes:
    """The finished hashes of a body that comes in pieces or was hashed already."""
    hashes = body if isinstance(body, BodyHashes) else BodyHashes(head)
    if not isinstance(body, BodyHashes):
        for piece in body:
            hashes.update(piece)
    hashes.finish()
    return hashes


def _needed(head: bytes) -> dict[str, set[int]]:
    """Each form of the body that is needed, with the values of l=."""
    needed: dict[str, set[int]] = {}
    for name in ("dkim-signature", "arc-message-signature"):
        for seen, (_, field) in enumerate(find(head, name)):
            if seen == MAX_FIELDS:
                break
            try:
                signature = parse_signature(field, arc=name != "dkim-signature")
            except SignatureError:
                continue
            lengths = needed.setdefault(signature.body_form, set())
            if signature.length is not None:
                lengths.add(signature.length)
    return needed
