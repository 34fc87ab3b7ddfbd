"""Looking a field up without walking the block gives the same answer as walking it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pymx.mail.header import count, find, first, iter_fields

LINES = st.lists(
    st.sampled_from(
        [b"To: a\r\n", b"TO : b\r\n", b" To: c\r\n", b"X-To: d\r\n", b"To\r\n", b"\tx\r\n", b"to:\n", b"\r", b"\n"]
    ),
    max_size=12,
)


@given(LINES)
def test_lookup_agrees_with_iteration(lines: list[bytes]) -> None:
    block = b"".join(lines)
    walked = [field for field in iter_fields(block) if field.name == "to"]
    assert count(block, "To") == len(walked)
    assert first(block, "tO") == (walked[0] if walked else None)
    assert [field for _, field in find(block, "To")] == walked
    assert all(block.startswith(field.raw, start) for start, field in find(block, "To"))
