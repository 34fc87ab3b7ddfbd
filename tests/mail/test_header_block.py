"""Header blocks and the one builder of fields."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.mail import header


@given(st.binary(max_size=300))
def test_fields_of_any_block_join_to_the_block(block: bytes) -> None:
    """Byte-exact: a message is stored as it came."""
    assert b"".join(f.raw for f in header.iter_fields(block)) == block


def test_folded_value_is_unfolded_and_names_are_caseless() -> None:
    """RFC 5322 s. 2.2.3."""
    block = b"Subject: a\r\n b\r\nFROM:x@y\r\nno field\r\n"
    assert [(f.name, f.value) for f in header.iter_fields(block)] == [
        ("subject", b"a b"),
        ("from", b"x@y"),
        ("", b""),
    ]
    field = header.first(block, "From")
    assert field is not None
    assert field.value == b"x@y"


def test_removing_a_field_leaves_every_other_octet() -> None:
    block = b"A: 1\r\nBcc: x,\r\n y\r\nB:  2 \r\nbcc: z\r\n"
    assert header.remove(block, ["Bcc"]) == b"A: 1\r\nB:  2 \r\n"


@pytest.mark.parametrize("value", ["a\rb", "a\nb", "a\r\nX: y", "a\0b"])
def test_builder_refuses_line_ends_and_nul(value: str) -> None:
    with pytest.raises(header.HeaderError):
        header.build_field("X-Test", value)


@pytest.mark.parametrize("name", ["", "a b", "a:", "ä", "a\n"])
def test_builder_refuses_what_is_no_name(name: str) -> None:
    with pytest.raises(header.HeaderError):
        header.build_field(name, "x")


@given(st.text(st.characters(blacklist_characters="\r\n\0", blacklist_categories=("Cs",)), max_size=400))
def test_built_field_is_one_field_and_keeps_its_words(value: str) -> None:
    raw = header.build_field("X-Test", value)
    (field,) = header.iter_fields(raw)
    assert field.name == "x-test"
    assert field.value.replace(b"\t", b" ").split() == value.encode().replace(b"\t", b" ").split()
    assert not any(line.strip(b" \t") == b"" for line in raw[:-2].split(b"\r\n")[1:])
