"""What a message is made of, as the filter sees it: words of subject and text, hosts of links, who it is from, what is
attached. Each is kept as 64 bits of a hash, so that nobody reads mail in the filter's file.

The text is what a reader sees: transfer encodings, charsets and HTML are undone by `mail.text`. The first `_MAX_TEXT`
characters of the first parts are enough, and keep the time short whatever a message holds; attachments are not read.
Any octets will do; nothing raises.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from hashlib import blake2b

from pymx.mail.header import find
from pymx.mail.mime import Part, parse
from pymx.mail.text import decode_body, decode_header, html_to_text

MAX_OCTETS = 262_144  # of a message that are looked at
MAX_TOKENS = 300
_MAX_TEXT = 32_768
_MAX_PARTS = 8
_MAX_FIELD = 4096
# Words; where a script has no spaces between words, pairs of characters.
_WORD = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]{2}|[^\W_][\w$€£'’-]{1,19}(?![\w$])")
# A run is taken whole or not at all: without "++" a long one without "@" is looked through from each of its characters.
_ADDRESS = re.compile(r"(?<![^\s<>@,;:\"()])[^\s<>@,;:\"()]++@([^\s<>@,;:\"()]+)")
_LINK = re.compile(r"https?://([a-z0-9.-]{4,80})")
_FIELDS = ("reply-to", "list-id", "x-mailer", "user-agent")


def words_of(message: bytes) -> list[str]:
    """The tokens in clear, each once, the telling ones of the header first."""
    found: dict[str, None] = {}
    message = message[:MAX_OCTETS]
    root = parse(message)
    for word in _of_header(message[root.header_start : root.header_end], root):
        found[word] = None
    for word in _of_parts(root, message):
        found[word] = None
        if len(found) >= MAX_TOKENS:
            break
    return list(found)


def hashes(words: Iterable[str]) -> list[int]:
    """One signed 64-bit number for each word, as SQLite has them."""
    from_bytes = int.from_bytes
    return [
        from_bytes(blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "big", signed=True)
        for word in words
    ]


def message_key(head: bytes) -> int:
    """By what a message is known again wherever it lies: what its sender wrote above it."""
    parts: list[bytes] = []
    for name in ("message-id", "date", "from", "subject"):
        parts += [field.value[:_MAX_FIELD] for _, field in find(head, name)][:1] or [b""]
    return int.from_bytes(blake2b(b"\0".join(parts), digest_size=8).digest(), "big", signed=True)


def sender_of(head: bytes) -> str:
    """The address in From, in lower case; "" when there is not exactly one."""
    fields = [field for _, field in find(head, "from")]
    if len(fields) != 1:
        return ""
    text = decode_header(fields[0].value[:_MAX_FIELD]).lower()
    quoted = text.rpartition("<")[2].partition(">")[0] if "<" in text else text
    found = [match[0] for match in _ADDRESS.finditer(quoted)]
    return found[0] if len(found) == 1 else ""


def _of_header(head: bytes, root: Part) -> Iterator[str]:
    subject = decode_header((root.first(b"subject") or b"")[:_MAX_FIELD])
    for word in _WORD.findall(subject.lower()):
        yield f"subject:{word}"
    author = decode_header((root.first(b"from") or b"")[:_MAX_FIELD]).lower()
    for match in _ADDRESS.finditer(author):
        yield f"from:{match[0]}"
        yield f"from:{match[1]}"
    for word in _WORD.findall(author.partition("<")[0])[:10]:
        yield f"author:{word}"
    for name in _FIELDS:
        for _, field in find(head, name):
            text = decode_header(field.value[:_MAX_FIELD]).lower()
            hosts = [match[1] for match in _ADDRESS.finditer(text)]
            for word in (hosts or _WORD.findall(text))[:10]:
                yield f"{name}:{word}"
            break
    yield f"type:{root.type.decode('ascii', 'replace')}/{root.subtype.decode('ascii', 'replace')}"


def _of_parts(root: Part, message: bytes) -> Iterator[str]:
    left = _MAX_TEXT
    for number, part in enumerate(_leaves(root)):
        if number == _MAX_PARTS or left <= 0:
            return
        if part.type != b"text":
            disposition = part.disposition
            name = next((v for k, v in disposition[1] if k.lower() == b"filename"), b"") if disposition else b""
            name = name or part.parameter(b"name") or b""
            yield f"attached:{part.subtype.decode('ascii', 'replace')}"
            if b"." in name:
                yield f"extension:{name[-8:].rpartition(b'.')[2].lower().decode('ascii', 'replace')}"
            continue
        # four octets a character at the most; what an encoding adds is little beside that
        short = Part(0, 0, part.body_start, min(part.body_end, part.body_start + 4 * left))
        short.fields, short.params = part.fields, part.params
        text = decode_body(short, message)[: 2 * left].lower()
        for host in _LINK.findall(text):
            yield f"link:{host}"
            yield f"link:{'.'.join(host.split('.')[-2:])}"
        if part.subtype == b"html":
            text = html_to_text(text)
        text = text[:left]
        left -= len(text)
        yield from _WORD.findall(text)


def _leaves(part: Part) -> Iterator[Part]:
    """The leaf parts in order; those of an enclosed message too."""
    waiting = [part]
    while waiting:
        part = waiting.pop()
        if part.message is not None:
            waiting.append(part.message)
        elif part.children:
            waiting.extend(reversed(part.children))
        else:
            yield part
