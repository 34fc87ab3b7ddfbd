"""What a server without 8BITMIME is given instead of 8-bit text (RFC 6152 s. 3).

What our users send is in seven bits before it is signed (`msa.fixup`), so this is about mail that is passed on. The RFC
leaves two ways, to encode it or to return it. A message that somebody signed (DKIM, ARC, S/MIME, PGP) is returned with
5.6.3: Postfix would encode it, and the next server would see a forgery. Others are encoded, as Postfix does.
"""

from __future__ import annotations

import asyncio

from pymx.mail import header
from pymx.mail.transfer import MAX_ENCODED_OCTETS, CannotEncodePart, seven_bit
from pymx.spool import Content

_SIGNATURES = ("dkim-signature", "arc-message-signature")
_INLINE_OCTETS = 65_536


class CannotDowngrade(Exception):
    """The message can't be had in seven bits."""


async def in_seven_bits(content: Content) -> Content:
    """The message without octets above 127 in its body; itself when it has none. Raises CannotDowngrade, OSError."""
    if content.in_memory and content.size_octets <= _INLINE_OCTETS:
        return _downgraded(content)
    return await asyncio.get_running_loop().run_in_executor(None, _downgraded, content)


def _downgraded(content: Content) -> Content:
    if all(piece.isascii() for piece in content.body_chunks()):
        return content
    for name in _SIGNATURES:
        if header.first(content.head, name) is not None:
            raise CannotDowngrade("the message has 8-bit text and is signed, and the server does not offer 8BITMIME")
    if content.size_octets > MAX_ENCODED_OCTETS:
        raise CannotDowngrade("the message has 8-bit text and is large, and the server does not offer 8BITMIME")
    try:
        return Content.from_bytes(seven_bit(content.read()))
    except CannotEncodePart as e:
        raise CannotDowngrade(f"{e}, and the server does not offer 8BITMIME") from None
