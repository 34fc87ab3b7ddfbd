"""Text of headers and bodies as people read it: RFC 2047 words, transfer encodings, charsets, folding for search.

Nothing here raises on what a message holds: an unknown charset is read as UTF-8 or else Latin-1, broken base64 or
quoted-printable is decoded as far as it goes. `fold` maps texts that search should not tell apart to one string, as
i;unicode-casemap does (RFC 5051), only that it folds a little more (RFC 3501 asks for "case-insensitive" and no more).
"""

from __future__ import annotations

import binascii
import codecs
import html
import re
import unicodedata

from pymx.mail.mime import Part

MAX_BODY = 4 * 1024 * 1024  # octets of one part that are decoded

# RFC 2047 s. 2; spaces inside the text are forbidden but seen.
_ENCODED_WORD = re.compile(rb"=\?([A-Za-z0-9_.:\-+]{1,60})(?:\*[A-Za-z0-9\-]{0,40})?\?([QqBb])\?([^?\r\n]*+)\?=")
_FOREIGN_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # which no octet was decoded to
_FOLDS = re.compile(rb"\r?\n(?=[ \t])|[\r\n]++\Z")
_ADDED = re.compile(rb"(?<![ \t])[ \t]++(?=\r?\n|\Z)")
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]+")
_HAS_NOISE = re.compile(r"<(?:!--|s(?:cript|tyle)\b)", re.IGNORECASE)
# What is not closed reaches to the end; so every search succeeds, and time is linear.
_HTML_NOISE = re.compile(r"<!--.*?(?:-->|\Z)|<(script|style)\b.*?(?:</\1\s*+>|\Z)", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"<[/!]?([A-Za-z0-9]*+)[^<>]*+>")
_INLINE = frozenset(
    {"a", "abbr", "b", "bdi", "bdo", "big", "cite", "code", "del", "em", "font", "i", "ins", "kbd", "mark", "q", "s"}
    | {"small", "span", "strong", "sub", "sup", "tt", "u", "wbr"}
)
# Putting a run of combining marks in order takes the square of its length, so long runs are folded in blocks; marks
# are not ASCII, so a cut beside ASCII changes nothing, and one inside so long a run matters to nobody.
_LONG_RUN = re.compile(r"[^\x00-\x7f]{256}")
_BLOCK = re.compile(r"[^\x00-\x7f]{1,256}|[\x00-\x7f]+")
_UUENCODED = (b"x-uuencode", b"uuencode", b"x-uue", b"uue")

_CHARSETS = {
    "gb2312": "gb18030",  # what calls itself GB2312 is often more
    "gbk": "gb18030",
    "ks_c_5601-1987": "cp949",
    "euc-kr": "cp949",
    "iso-8859-1": "cp1252",  # what calls itself Latin-1 is often Windows'
    "us-ascii": "utf-8",
    "ascii": "utf-8",
    "unknown-8bit": "utf-8",
    "x-unknown": "utf-8",
    "iso-8859-8-i": "iso-8859-8",
    "x-sjis": "cp932",
    "shift_jis": "cp932",
}
# Codecs that hide text from whoever doesn't decode it, or cost more than their input's length: read as UTF-8.
_UNWANTED = frozenset({"idna", "punycode", "utf-7", "undefined", "unicode-escape", "raw-unicode-escape"})


def decode_header(value: bytes | str) -> str:
    """An unfolded or folded field value with its encoded words decoded."""
    if isinstance(value, str):
        value = value.encode("utf-8", "replace" if _FOREIGN_SURROGATE.search(value) else "surrogateescape")
    if b"\n" in value or b"\r" in value:
        value = _FOLDS.sub(b"", value)
    if b"=?" not in value:
        return _plain(value)
    out: list[str] = []
    pending: list[bytes] = []  # adjacent words of one charset: a character may be split between them
    charset = ""
    position = 0
    for match in _ENCODED_WORD.finditer(value):
        between = value[position : match.start()]
        word_charset = match[1].decode("ascii").lower()
        # RFC 2047 s. 6.2: white space between adjacent encoded words is not shown.
        if pending and (between.strip(b" \t\r\n") or word_charset != charset):
            out.append(decode_charset(b"".join(pending), charset))
            pending = []
        if between.strip(b" \t\r\n") or not position:
            out.append(_plain(between))
        charset = word_charset
        pending.append(_word(match[2], match[3]))
        position = match.end()
    if pending:
        out.append(decode_charset(b"".join(pending), charset))
    out.append(_plain(value[position:]))
    return "".join(out)


def _word(kind: bytes, text: bytes) -> bytes:
    if kind in b"Qq":
        return binascii.a2b_qp(text, header=True)
    return decode_base64(text)


def _plain(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def decode_base64(data: bytes) -> bytes:
    """Base64 as far as it goes: foreign octets are skipped, a torn end is dropped, padding ends it."""
    try:
        return binascii.a2b_base64(data)
    except binascii.Error:
        data = _NOT_BASE64.sub(b"", data.partition(b"=")[0])
        data = data[: len(data) - 1] if len(data) % 4 == 1 else data
        return binascii.a2b_base64(data + b"=" * (-len(data) % 4))


def decode_quoted_printable(data: bytes) -> bytes:
    """Quoted-printable; white space at the end of a line was added on the way (RFC 2045 s. 6.7, rule 3)."""
    return binascii.a2b_qp(_ADDED.sub(b"", data))


def decode_charset(data: bytes, charset: str) -> str:
    """`data` by `charset`; unknown or wrong ones fall back to UTF-8, then Latin-1."""
    name = _CHARSETS.get(charset, charset)
    if name not in ("", "utf-8", "utf8"):
        try:
            if codecs.lookup(name).name.replace("_", "-") not in _UNWANTED:
                return data.decode(name, "replace")
        except (LookupError, ValueError):  # unknown, no charset (zlib and the like), or no possible name
            return _plain(data)
    return _plain(data)


def decode_body(part: Part, message: bytes) -> str:
    """The text of one leaf part of `message`, transfer encoding and charset undone; HTML keeps its tags."""
    data = message[part.body_start : min(part.body_end, part.body_start + MAX_BODY)]
    encoding = part.encoding.lower()
    if encoding == b"base64":
        data = decode_base64(data)
    elif encoding == b"quoted-printable":
        data = decode_quoted_printable(data)
    elif encoding in _UUENCODED:
        data = _uudecode(data)
    return decode_charset(data, charset_of(part))


def charset_of(part: Part) -> str:
    """The charset parameter in lower case, "" when there is none."""
    charset = part.parameter(b"charset")
    return charset.strip(b" \t'").decode("ascii", "replace").lower() if charset else ""


def _uudecode(data: bytes) -> bytes:
    """What stands between `begin` and `end`, line by line; broken lines are left out."""
    begin = data.find(b"begin ")
    if begin < 0:
        return data
    out: list[bytes] = []
    for line in data[begin:].split(b"\n")[1:]:
        if line.rstrip(b"\r") == b"end":
            break
        try:
            out.append(binascii.a2b_uu(line.rstrip(b"\r")))
        except binascii.Error:
            continue
    return b"".join(out)


def html_to_text(markup: str) -> str:
    """HTML without comments, scripts, styles and tags, entities decoded: for search, not for display.

    A tag within a word leaves the word whole; one of a block parts it.
    """
    if "<" in markup:
        if _HAS_NOISE.search(markup):
            markup = _HTML_NOISE.sub(" ", markup)
        markup = _TAG.sub(_instead_of_tag, markup)
    return html.unescape(markup) if "&" in markup else markup


def _instead_of_tag(match: re.Match[str]) -> str:
    return "" if match[1].lower() in _INLINE else " "


def fold(text: str) -> str:
    """`text` for comparison: caseless and decomposed by compatibility (RFC 5051 s. 2.3, with full case folding)."""
    if text.isascii():
        return text.lower()
    if _LONG_RUN.search(text):
        return "".join([_folded(block) for block in _BLOCK.findall(text)])
    return _folded(text)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
