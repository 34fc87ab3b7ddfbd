"""Keys of SORT: the base subject (RFC 5256 s. 2.1) and i;unicode-casemap (RFC 5051)."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.mail.collation import base_subject, casemap


@pytest.mark.parametrize(
    ("subject", "base", "reply"),
    [
        ("Hello", "Hello", False),
        ("  a \t b\r\n c ", "a b c", False),
        ("Re: Hello", "Hello", True),
        ("RE : Hello", "Hello", True),
        ("Fw: Fwd: re: Hello", "Hello", True),
        ("Re[2]: Hello", "Hello", True),
        ("[list] Hello", "Hello", False),
        ("[list] Re: [other] Hello", "Hello", True),
        ("Re: [list]", "[list]", True),
        ("[a][b]", "[b]", False),
        ("[a] ", "[a]", False),
        ("Hello (fwd)", "Hello", True),
        ("Hello (fwd) (FWD) ", "Hello", True),
        ("[fwd: Re: Hello]", "Hello", True),
        ("[Fwd: [fwd: Hello (fwd)]]", "Hello", True),
        ("Re:", "", True),
        ("", "", False),
        ("Reply: Hello", "Reply: Hello", False),
        ("Hello [list]", "Hello [list]", False),
        ("[un[closed] x", "[un[closed] x", False),
    ],
)
def test_base_subjects(subject: str, base: str, reply: bool) -> None:
    assert base_subject(subject) == (base, reply)


@given(st.text(alphabet="rewfd:[]() ax\t", max_size=60))
def test_a_base_subject_is_its_own_base(subject: str) -> None:
    """RFC 5256 s. 2.1: the steps are repeated until nothing is left to remove."""
    base, _ = base_subject(subject)
    assert base_subject(base)[0] == base


@pytest.mark.parametrize("piece", ["[]", "[a] ", "re:", "[fwd:", "(fwd)", " ", "[", "re[", "fw []"])
def test_hostile_subjects_are_read_quickly(piece: str) -> None:
    started = time.process_time()
    base_subject(piece * 100_000)
    base_subject(piece * 100_000 + "]" * 1000)
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize(("one", "other"), [("hello", "HELLO"), ("ärger", "ÄRGER"), ("ǆ", "Ǆ"), ("a\u0308", "ä")])
def test_texts_that_differ_in_case_or_form_only_are_equal(one: str, other: str) -> None:
    assert casemap(one) == casemap(other)


def test_order_is_that_of_titlecase_octets() -> None:
    """RFC 5051 s. 2: capitals stand before "_", small letters are not what is compared."""
    assert casemap("z") < casemap("_")
    assert casemap("a") < casemap("ä") < casemap("b")
    assert casemap("straße") != casemap("strasse")  # the simple mapping has no title case for it


@given(st.text())
def test_keys_are_short_whatever_the_text(text: str) -> None:
    assert len(casemap(text * 50)) <= 255
