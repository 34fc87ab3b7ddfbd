"""Previews of messages (RFC 8970)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.mail.preview import MAX_CHARACTERS, preview


def _multipart(subtype: str, *parts: str) -> bytes:
    body = "".join(f"--b\r\n{part}\r\n" for part in parts)
    return f"Content-Type: multipart/{subtype}; boundary=b\r\n\r\n{body}--b--\r\n".encode()


PLAIN = "Content-Type: text/plain\r\n\r\nplain words"
HTML = "Content-Type: text/html\r\n\r\n<p>rich<b>er</b> words</p><script>no()</script>"
ATTACHED = "Content-Type: text/plain\r\nContent-Disposition: attachment; filename=a.txt\r\n\r\nattached"
PICTURE = "Content-Type: image/png\r\n\r\nabc"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (b"Subject: x\r\n\r\nOne\r\n\r\n  two\tthree\r\n", "One two three"),
        (b"Subject: x\r\n\r\n> quoted\r\n> more\r\nanswer\r\n", "answer"),
        (b"Subject: x\r\n\r\n> only quoted\r\n", "> only quoted"),
        (b"Subject: x\r\n\r\n", ""),
        (b"", ""),
        (b"Content-Type: image/png\r\n\r\nabc", ""),
        (_multipart("alternative", HTML, PLAIN), "plain words"),
        (_multipart("alternative", HTML), "richer words"),
        (_multipart("mixed", ATTACHED, PICTURE, HTML), "richer words"),
        (_multipart("mixed", PICTURE, ATTACHED), ""),
        (
            b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: base64\r\n\r\nR3LDvMOfZQ==\r\n",
            "Grüße",
        ),
        (b"Subject: x\r\n\r\n-------------\r\n[cid:logo]\r\nHello\r\n", "Hello"),
        (b"Subject: x\r\n\r\n" + b"word " * 100, ("word " * 100)[:MAX_CHARACTERS].rstrip()),
    ],
)
def test_preview_is_the_beginning_of_the_text(message: bytes, expected: str) -> None:
    """RFC 8970 s. 3.1: plain text, without what says nothing."""
    assert preview(message) == expected


@given(st.binary(max_size=2000))
def test_any_octets_give_a_short_line(message: bytes) -> None:
    """RFC 8970 s. 3.1: at most 200 characters, which can be sent as UTF-8."""
    text = preview(message)
    assert len(text) <= MAX_CHARACTERS
    assert not set(text.encode()) & set(b"\r\n\x00")
