"""What is done to a submitted message before it is signed (RFC 6409 s. 8), so that nobody has to touch it afterwards.

PURE. In order: a header without the lines that are none; fields that must not leave us removed; From, Date and
Message-ID added where they are missing; undeclared 8-bit fields as encoded words; long header lines folded; body lines
over 998 octets mended by encoding their part; 8-bit parts encoded. Line ends are the engine's, which reads submitted
mail leniently.

Without `repair` fields, long header and body lines are refused instead. 8-bit parts are legal, but a server without
8BITMIME on the way would have to encode them and break the signature (RFC 6376 s. 5.3: signers SHOULD convert first).
Where that is not possible (something signed by the user, over 16 MiB) they stay.

Errors: `Refused`, whose text the submitter may see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pymx.mail import header
from pymx.mail.address import Address
from pymx.mail.date import format_date
from pymx.mail.transfer import MAX_ENCODED_OCTETS, CannotEncodePart, seven_bit
from pymx.msa import encode, longlines
from pymx.msa.encode import CannotEncode
from pymx.spool import Content

_LONG_LINE = f"The message has a line of more than {longlines.MAX_LINE_OCTETS} octets"
_EIGHT_BIT_HEADER = "The header holds characters outside ASCII without SMTPUTF8"
_NOT_A_HEADER = "The header holds a line that is no field"


class Refused(ValueError):
    """The message can't be sent as it is."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """The message to sign; `is_eight_bit` when its body needs 8BITMIME (RFC 6152)."""

    content: Content
    is_eight_bit: bool


class FixUp:
    """The fix-up with its settings."""

    __slots__ = ("_repair", "_strip")

    def __init__(self, *, strip_fields: Sequence[str], repair: bool) -> None:
        strip = {name.lower() for name in strip_fields}
        if "bcc" in strip:
            strip.add("resent-bcc")
        strip.add("return-path")  # RFC 5321 s. 4.4: not in mail that is still on its way
        self._strip = frozenset(strip)
        self._repair = repair

    def __call__(self, content: Content, *, mail_from: Address, now: float, message_id: str, smtputf8: bool) -> Fixed:
        """The message mended. `message_id` (without angle brackets) is used when it has none. Raises Refused."""
        content = _with_true_header(content)
        if b"\0" in content.head:
            raise Refused("The header holds a NUL")
        head = self._fixed_head(content.head, smtputf8=smtputf8)
        names = {field.name for field in header.iter_fields(head)}
        try:
            if "from" not in names:
                head += header.build_field("From", f"<{mail_from}>")
            if "date" not in names:
                head += header.build_field("Date", format_date(now))
            if "message-id" not in names:
                head += header.build_field("Message-ID", f"<{message_id}>")
        except header.HeaderError as e:
            raise Refused(str(e)) from None
        return self._fixed_body(content.with_head(head))

    def _fixed_head(self, block: bytes, *, smtputf8: bool) -> bytes:
        out: list[bytes] = []
        for field in header.iter_fields(block):
            if field.name in self._strip:
                continue
            try:
                out.append(self._fixed_field(field, smtputf8=smtputf8))
            except CannotEncode as e:
                raise Refused(str(e)) from None
        return b"".join(out)

    def _fixed_field(self, field: header.Field, *, smtputf8: bool) -> bytes:
        if not smtputf8 and not field.raw.isascii():
            if not self._repair:
                raise Refused(_EIGHT_BIT_HEADER)
            return encode.seven_bit(field)
        if encode.needs_folding(field.raw):
            if not self._repair:
                raise Refused(_LONG_LINE)
            return encode.folded(field)
        return field.raw

    def _fixed_body(self, content: Content) -> Fixed:
        if longlines.has_long_line(content.body_chunks()):
            if not self._repair or content.size_octets > MAX_ENCODED_OCTETS:
                raise Refused(_LONG_LINE)
            try:
                content = Content.from_bytes(longlines.mended(content.read()))
            except longlines.CannotMend:
                raise Refused(_LONG_LINE) from None
        if all(chunk.isascii() for chunk in content.body_chunks()):
            return Fixed(content, is_eight_bit=False)
        if content.size_octets > MAX_ENCODED_OCTETS:
            return Fixed(content, is_eight_bit=True)
        try:
            return Fixed(Content.from_bytes(seven_bit(content.read())), is_eight_bit=False)
        except CannotEncodePart:
            return Fixed(content, is_eight_bit=True)


def _with_true_header(content: Content) -> Content:
    """The header ends where the first line is that is no field; an mbox "From " line above it goes."""
    block = content.head
    if block and not block.endswith(b"\r\n"):
        block += b"\r\n"
    position = 0
    for index, field in enumerate(header.iter_fields(block)):
        if field.name:
            position += len(field.raw)
        elif index == 0 and field.raw.startswith((b"From ", b">From ")) and field.raw.count(b"\n") == 1:
            block = block[len(field.raw) :]
        elif content.in_memory:
            body = b"".join(content.body_chunks())
            return Content(block[:position], b"\r\n" + block[position:] + body)
        else:
            raise Refused(_NOT_A_HEADER)
    return content if block == content.head else content.with_head(block)
