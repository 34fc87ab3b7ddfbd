"""How SORT and THREAD compare texts: i;unicode-casemap (RFC 5051), and the base subject (RFC 5256 s. 2.1).

`casemap` gives octets whose order is the collation's. Base subjects come from the first MAX_SUBJECT characters, keys
are cut at MAX_KEY octets, so that no message makes them expensive.
"""

from __future__ import annotations

import re
import unicodedata

MAX_KEY = 255
MAX_SUBJECT = 2000

_SPACES = re.compile(r"[ \t\r\n]+")
# subj-blob, subj-refwd and subj-trailer of RFC 5256 s. 5, on text whose white space is single spaces.
_BLOB = re.compile(r"\[[^\[\]]*+\] ?")
_REPLY = re.compile(r"(?:re|fwd?) ?(?:\[[^\[\]]*+\] ?)?:", re.IGNORECASE)
_FORWARD = "[fwd:"


def casemap(text: str) -> bytes:
    """The key of `text`: titlecase and compatibility decomposition of each character, as UTF-8."""
    text = text[:MAX_KEY]
    if text.isascii():
        return text.upper().encode()
    # RFC 5051 s. 2: the simple titlecase mapping, which is always one character.
    titled = "".join([t if len(t := char.title()) == 1 else char for char in text])
    return unicodedata.normalize("NFKD", titled).encode("utf-8", "surrogatepass")[:MAX_KEY]


def base_subject(subject: str) -> tuple[str, bool]:
    """The base subject, and whether the subject is one of a reply or forward (RFC 5256 s. 2.1)."""
    text = _SPACES.sub(" ", subject[:MAX_SUBJECT])
    reply = False
    while True:
        trimmed = _without_trailer(text)
        reply = reply or len(trimmed) != len(text.rstrip(" "))
        text, prefixed = _without_prefixes(trimmed)
        reply = reply or prefixed
        # Step 6: what is forwarded within brackets is looked at like a subject of its own.
        if not (text[:5].lower() == _FORWARD and text.endswith("]")):
            return text, reply
        text = text[len(_FORWARD) : -1]
        reply = True


def _without_trailer(text: str) -> str:
    """Step 2: without "(fwd)" and white space at the end."""
    while True:
        shorter = text.rstrip(" ")
        if shorter[-5:].lower() == "(fwd)":
            shorter = shorter[:-5]
        if len(shorter) == len(text):
            return text
        text = shorter


def _without_prefixes(text: str) -> tuple[str, bool]:
    """Steps 3 to 5: without "Re:", "Fwd:" and "[list]" before something else; whether there was a reply's prefix."""
    at, reply = 0, False
    while True:
        while text.startswith(" ", at):
            at += 1
        last = end = at
        while (blob := _BLOB.match(text, end)) is not None:
            last, end = end, blob.end()
        if (prefix := _REPLY.match(text, end)) is not None:
            at, reply = prefix.end(), True
            continue
        # Step 4: a blob goes if something is left behind it, be it another blob.
        return text[end:] or text[last:], reply
