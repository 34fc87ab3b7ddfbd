"""Addresses and SMTP paths."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.mail.address import Address, AddressError, parse_address, parse_path

GOOD = [
    ("<>", None, ""),
    ("<a@b.example>", Address("a", "b.example"), ""),
    ("<A.B@B.Example> SIZE=3", Address("A.B", "b.example"), " SIZE=3"),
    ("<@relay.example,@x.example:a@b.example>", Address("a", "b.example"), ""),
    ('<"a b"@c.example>', Address("a b", "c.example"), ""),
    ('<"a\\"b>"@c.example>', Address('a"b>', "c.example"), ""),
    ("<a@[127.0.0.1]>", Address("a", "[127.0.0.1]"), ""),
    ("<a@[IPv6:::1]>", Address("a", "[ipv6:::1]"), ""),
    ("<Postmaster>", Address("postmaster", ""), ""),
    ("<jörg@bücher.example>", Address("jörg", "bücher.example"), ""),
    ("<a+b@c.example.>", Address("a+b", "c.example"), ""),
]
BAD = [
    "", "<", "a@b.example", "<a>", "<a@>", "<@b>", "<a b@c.example>", "<a@b..example>", "<a@-b.example>",
    "<.a@b.example>", "<a..b@c.example>", "<a@b.example", "<a@b c.example>", "<a\0@b.example>", "<a@b.exam\0ple>",
    '<"a"b"@c.example>', "<us er@x>", "<user(comment)@x.example>", "<" + "a" * 65 + "@b.example>",
    "<a@" + "b" * 64 + ".example>", "<a@" + "b." * 130 + "example>", "<@x.example:>", "<a@b.example\r\n>",
]  # fmt: skip


@pytest.mark.parametrize(("text", "address", "rest"), GOOD)
def test_paths_within_the_grammar_are_read(text: str, address: Address | None, rest: str) -> None:
    """RFC 5321 s. 4.1.2, appendix C for source routes, RFC 6531 s. 3.3."""
    assert parse_path(text) == (address, rest)


@pytest.mark.parametrize("text", BAD)
def test_paths_outside_the_grammar_are_refused(text: str) -> None:
    with pytest.raises(AddressError):
        parse_path(text)


@given(st.text(max_size=80))
def test_any_text_gives_an_address_or_our_error(text: str) -> None:
    try:
        address, _ = parse_path(text)
    except AddressError:
        return
    if address is not None and address.domain:
        assert parse_address(str(address)) == address


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=30))
def test_a_written_address_reads_back_as_itself(local: str) -> None:
    address = Address(local, "example.test")
    assert parse_path(f"<{address}>") == (address, "")


def test_subaddress_is_split_at_the_first_delimiter_only() -> None:
    """RFC 5233 s. 1; a leading delimiter is no detail."""
    address = Address("alice+shop+x", "d.example")
    assert address.without_detail("+") == Address("alice", "d.example")
    assert address.detail("+") == "shop+x"
    assert Address("+x", "d.example").without_detail("+") == Address("+x", "d.example")


@pytest.mark.parametrize("text", ["\udcff@example.test", "x@\udcff.test", '"\udcf9"@example.test'])
def test_octets_outside_utf8_are_no_address(text: str) -> None:
    """RFC 6532 s. 3.2: what a header field holds may be any octets, an address may not."""
    with pytest.raises(AddressError):
        parse_address(text)
