"""Header fields made fit to travel: 8-bit text as encoded words (RFC 2047) or RFC 2231 parameters, long lines folded.

PURE. What has no 7-bit form (an address with a non-ASCII local part, a Message-ID) raises `CannotEncode`, whose text
the submitter may see; such mail needs SMTPUTF8 (RFC 6531). Text that is not UTF-8 is taken for Windows-1252, which is
what clients that send undeclared 8-bit headers mean.
"""

from __future__ import annotations

import base64
import re
import urllib.parse
from collections.abc import Iterator

from pymx.mail.address import AddressError, domain_to_ascii
from pymx.mail.header import Field, build_field

MAX_LINE_OCTETS = 998  # RFC 5322 s. 2.1.1, without the CRLF

_ADDRESS_FIELDS = frozenset(
    {
        "from",
        "sender",
        "reply-to",
        "to",
        "cc",
        "bcc",
        "resent-from",
        "resent-sender",
        "resent-to",
        "resent-cc",
        "resent-bcc",
        "disposition-notification-to",
        "return-receipt-to",
        "mail-followup-to",
    }
)
_PARAMETER_FIELDS = frozenset({"content-type", "content-disposition"})
# No place for encoded words in these (RFC 2047 s. 5)
_TOKEN_FIELDS = frozenset(
    {
        "message-id",
        "in-reply-to",
        "references",
        "resent-message-id",
        "date",
        "resent-date",
        "received",
        "return-path",
        "mime-version",
        "content-transfer-encoding",
        "content-id",
        "dkim-signature",
        "list-id",
        "list-unsubscribe",
        "list-post",
    }
)
_WORD_OCTETS = 36  # of UTF-8 in one encoded word: 60 octets in all, so that it fits behind a field's name
# What is not closed reaches to the end (or to a nested comment), so that no octet is looked at twice
_TOKEN = re.compile(
    r'(?P<quoted>"(?:[^"\\]|\\.)*+(?:"|\\?\Z))|(?P<comment>\((?:[^()\\]|\\.)*+(?:\)|(?=\()|\\?\Z))'
    r"|(?P<angle><[^<>]*+>)|(?P<end>[,:;])|(?P<space>[ \t]+)|(?P<word>[^ \t\"(),:;<>]+)|(?P<other>.)",
    re.DOTALL,
)
_PARAMETER = re.compile(r';[ \t]*+([A-Za-z0-9!#$&+.^_`{|}~-]++)[ \t]*+=[ \t]*+(?:"((?:[^"\\]|\\.)*+)"|([^;"\s]++))')
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


class CannotEncode(ValueError):
    """The field has no form that may travel."""


def text_of(raw: bytes) -> str:
    """Header octets as text: UTF-8, else Windows-1252, else Latin-1."""
    for charset in ("utf-8", "cp1252"):
        try:
            return raw.decode(charset)
        except UnicodeDecodeError:
            continue
    return raw.decode("latin-1")


def needs_folding(raw: bytes) -> bool:
    """Has the field a line of more than 998 octets?"""
    return len(raw) > MAX_LINE_OCTETS and any(len(line) > MAX_LINE_OCTETS for line in raw.split(b"\r\n"))


def seven_bit(field: Field) -> bytes:
    """The field in ASCII. Raises CannotEncode."""
    name, value = _name(field), text_of(field.value)
    if field.name in _ADDRESS_FIELDS:
        value = _encode_addresses(value)
    elif field.name in _PARAMETER_FIELDS:
        value = _encode_parameters(value)
    elif field.name not in _TOKEN_FIELDS:
        value = _encode_text(value)
    if not value.isascii():
        raise CannotEncode(f"{name} holds characters that need SMTPUTF8")
    return _built(name, value)


def folded(field: Field) -> bytes:
    """The field with lines of at most 998 octets. Raises CannotEncode when there is nowhere to break."""
    name, value = _name(field), field.value.decode("utf-8", "surrogateescape")
    if field.name in _ADDRESS_FIELDS:
        value = "".join(
            m[0] + " " if m["end"] == "," and m.end() < len(value) and value[m.end()] not in " \t" else m[0]
            for m in _TOKEN.finditer(value)
        )
    elif field.name not in _TOKEN_FIELDS | _PARAMETER_FIELDS and _longest_word(value) > MAX_LINE_OCTETS - 80:
        value = " ".join(_encoded_words(text_of(field.value)))
    return _built(name, value)


def _name(field: Field) -> str:
    return field.raw.partition(b":")[0].rstrip(b" \t").decode("ascii")


def _built(name: str, value: str) -> bytes:
    try:
        raw = build_field(name, value)
    except ValueError as e:  # a bare CR or NUL
        raise CannotEncode(str(e)) from None
    if needs_folding(raw):
        raise CannotEncode(f"{name} has a line of more than {MAX_LINE_OCTETS} octets and no place to fold it")
    return raw


def _longest_word(value: str) -> int:
    return max((len(word.encode("utf-8", "surrogateescape")) for word in value.split()), default=0)


def _encoded_words(text: str) -> Iterator[str]:
    """`text` as encoded words, cut between characters (RFC 2047 s. 5)."""
    piece: list[str] = []
    octets = 0
    for char in text:
        size = len(char.encode("utf-8", "replace"))
        if octets + size > _WORD_OCTETS:
            yield _encoded_word("".join(piece))
            piece, octets = [], 0
        piece.append(char)
        octets += size
    if piece:
        yield _encoded_word("".join(piece))


def _encoded_word(text: str) -> str:
    return f"=?utf-8?b?{base64.b64encode(text.encode('utf-8', 'replace')).decode('ascii')}?="


def _encode_text(value: str) -> str:
    """Unstructured text: from the first word outside ASCII to the last one everything is encoded."""
    words = re.split(r"([ \t]+)", value)
    foreign = [i for i, word in enumerate(words) if not word.isascii()]
    if not foreign:
        return value
    head, middle, tail = words[: foreign[0]], words[foreign[0] : foreign[-1] + 1], words[foreign[-1] + 1 :]
    return "".join(head) + " ".join(_encoded_words("".join(middle))) + "".join(tail)


def _encode_addresses(value: str) -> str:
    """Display names and comments as encoded words, domains as A-labels."""
    out: list[str] = []
    phrase: list[str] = []  # what may turn out to be a display name, or a bare address

    def flush(*, is_name: bool) -> None:
        text = "".join(phrase)
        phrase.clear()
        if text.isascii():
            out.append(text)
        elif is_name:
            blank = " " if text[:1] in " \t" else ""
            out.append(blank + " ".join(_encoded_words(_unquoted(text).strip(" \t"))) + " ")
        else:
            out.append(_ascii_address(text))

    for match in _TOKEN.finditer(value):
        text = match[0]
        if match["angle"]:
            flush(is_name=True)
            out.append(text if text.isascii() else f"<{_ascii_address(text[1:-1])}>")
        elif match["end"]:
            flush(is_name=text == ":")
            out.append(text)
        elif match["comment"] and text.endswith(")") and not text.isascii():
            comment = _ESCAPE.sub(r"\1", text[1:-1])
            phrase.append(f"({' '.join(_encoded_words(comment))})")
        else:
            phrase.append(text)
    flush(is_name=False)
    return "".join(out)


def _unquoted(text: str) -> str:
    return "".join(
        _ESCAPE.sub(r"\1", match[0][1:-1]) if match["quoted"] else match[0] for match in _TOKEN.finditer(text)
    )


def _ascii_address(text: str) -> str:
    local, at, domain = text.rpartition("@")
    try:
        return local + at + domain_to_ascii(domain.strip(" \t"))
    except AddressError as e:
        raise CannotEncode(str(e)) from None


def _encode_parameters(value: str) -> str:
    """Parameters outside ASCII in the form of RFC 2231 s. 4."""

    def encoded(match: re.Match[str]) -> str:
        text = _ESCAPE.sub(r"\1", match[2]) if match[2] is not None else match[3]
        if text.isascii():
            return match[0]
        return f"; {match[1]}*=utf-8''{urllib.parse.quote(text, safe='')}"

    return _PARAMETER.sub(encoded, value)
