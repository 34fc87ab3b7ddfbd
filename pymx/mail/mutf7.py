"""Modified UTF-7 for mailbox names (RFC 3501 s. 5.1.3).

`encode` (of any str without surrogates) and `decode` are inverse to each other; `decode` accepts only what `encode`
writes (ValueError otherwise), so that one mailbox has one name.
"""

from __future__ import annotations

import binascii


def _base64(text: str) -> str:
    raw = binascii.b2a_base64(text.encode("utf-16-be"), newline=False)
    return "&" + raw.rstrip(b"=").replace(b"/", b",").decode("ascii") + "-"


def encode(name: str) -> str:
    """Unicode to modified UTF-7. ValueError for lone surrogates."""
    if name.isascii() and name.isprintable():
        return name.replace("&", "&-")
    out: list[str] = []
    pending: list[str] = []
    for char in name:
        if " " <= char <= "~":
            if pending:
                out.append(_base64("".join(pending)))
                pending = []
            out.append("&-" if char == "&" else char)
        else:
            pending.append(char)
    if pending:
        out.append(_base64("".join(pending)))
    return "".join(out)


def decode(name: str) -> str:
    """Modified UTF-7 to Unicode. ValueError for anything that `encode` would not have written."""
    if not name.isascii() or not name.isprintable():
        raise ValueError("modified UTF-7 is printable ASCII")
    if "&" not in name:
        return name
    head, *pieces = name.split("&")
    out = [head]
    for piece in pieces:
        shifted, dash, rest = piece.partition("-")
        if not dash:
            raise ValueError("shift without an end")
        if shifted:
            padded = shifted.replace(",", "/").encode("ascii") + b"=" * (-len(shifted) % 4)
            try:
                out.append(binascii.a2b_base64(padded, strict_mode=True).decode("utf-16-be"))
            except (binascii.Error, UnicodeDecodeError) as error:
                raise ValueError("bad base64 in modified UTF-7") from error
        else:
            out.append("&")
        out.append(rest)
    text = "".join(out)
    if encode(text) != name:
        raise ValueError("not the canonical form")
    return text
