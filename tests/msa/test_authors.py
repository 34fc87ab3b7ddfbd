"""Whose address From and Sender hold (RFC 5322 s. 3.4): read strictly, in linear time."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.mail.address import Address
from pymx.mail.authors import AuthorError, authors, mailboxes

A, B = Address("alice", "example.test"), Address("bob", "example.test")

GOOD = [
    ("alice@example.test", [A]),
    ("<alice@example.test>", [A]),
    ("Alice <alice@example.test>", [A]),
    ('"Alice, the \\"first\\" <x@y>" <alice@example.test>', [A]),
    ("Alice (her <own> \\) words (nested)) <alice@example.test> (more)", [A]),
    ("alice@example.test (Alice)", [A]),
    ("(x) alice@example.test", [A]),
    ("=?utf-8?b?xIQ=?= <alice@EXAMPLE.test>", [A]),
    ("alice@example.test, Bob <bob@example.test>", [A, B]),
    ("alice@example.test,,bob@example.test,", [A, B]),
    ("Friends: alice@example.test, <bob@example.test>;", [A, B]),
    ("Friends: alice@example.test;, bob@example.test", [A, B]),
    ('"alice"@example.test', [A]),
    ('"a b"@example.test', [Address("a b", "example.test")]),
    ("<x@[IPv6:::1]>", [Address("x", "[ipv6:::1]")]),
    ("Ä Ö <alice@example.test>", [A]),
]
BAD = [
    "",
    " ",
    ",",
    "Alice",
    "Friends:;",
    "Friends: alice@example.test",
    "<alice@example.test",
    "alice@example.test>",
    "<alice@example.test> <bob@example.test>",
    "<alice@example.test> bob@example.test",
    "<alice@example.test>bob",
    "alice@example.test bob@example.test",
    "<@relay.test:alice@example.test>",
    "<alice@example.test,bob@example.test>",
    "<<alice@example.test>>",
    "alice@example.test; bob@example.test",
    '"Alice <alice@example.test>',
    "Alice (open <alice@example.test>",
    "Alice ) <alice@example.test>",
    "alice@exa mple.test",
    "alice @example.test",
    "a: b: alice@example.test;;",
    "\\alice@example.test",
    "<>",
    "alice@example.test\0",
]


@pytest.mark.parametrize(("text", "expected"), GOOD)
def test_every_mailbox_is_found(text: str, expected: list[Address]) -> None:
    assert mailboxes(text) == expected


@pytest.mark.parametrize("text", BAD)
def test_what_is_open_to_doubt_is_refused(text: str) -> None:
    with pytest.raises(AuthorError):
        mailboxes(text)


def test_from_is_there_once_and_sender_at_most_once() -> None:
    """RFC 5322 s. 3.6."""
    assert authors(b"From: alice@example.test\r\nSender: bob@example.test\r\n") == ([A], [B])
    assert authors(b"FROM : Alice\r\n <alice@example.test>\r\n") == ([A], [])
    for head in (
        b"To: x@y\r\n",
        b"From: alice@example.test\r\nfrom: bob@example.test\r\n",
        b"From: alice@example.test\r\nSender: bob@example.test\r\nSender: alice@example.test\r\n",
        b"From: alice@example.test\r\nSender: bob@example.test, alice@example.test\r\n",
        b"From: alice@example.test\r\nSender:\r\n",
        b"From: " + b"x" * 70_000 + b" <alice@example.test>\r\n",
    ):
        with pytest.raises(AuthorError):
            authors(head)


@given(st.text(alphabet='ab@.<>",:;()\\ []é\0=?', max_size=60))
def test_never_anything_but_its_own_error(text: str) -> None:
    try:
        assert mailboxes(text)
    except AuthorError:
        pass


@given(st.text(alphabet='ab@.<>",:;()\\ []é', max_size=40))
def test_no_mailbox_in_an_accepted_field_goes_unseen(text: str) -> None:
    """Whatever stands before it, an angle address is among those checked, or the field is refused."""
    try:
        found = mailboxes(f"{text} <alice@example.test>")
    except AuthorError:
        return
    quoted_or_commented = text.count('"') or text.count("(")
    assert A in found or quoted_or_commented


@pytest.mark.parametrize(
    "unit", ["(", '"', "<", ",", "a@b.c,", "\\", '("', "(\\", '"\\', ":", "x <", "()", '""', "<>", "[:"]
)
def test_hostile_fields_cost_linear_time(unit: str) -> None:
    """A megabyte of any of these is over in a moment."""
    text = unit * (1_000_000 // len(unit))
    started = time.process_time()
    for candidate in (text, f"{text} <alice@example.test>", f"<alice@example.test> {text}"):
        try:
            mailboxes(candidate)
        except AuthorError:
            pass
    try:
        mailboxes(f"<[{text}")
    except AuthorError:
        pass
    assert time.process_time() - started < 3
