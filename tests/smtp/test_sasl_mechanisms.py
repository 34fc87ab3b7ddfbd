"""SASL PLAIN (RFC 4616) and LOGIN."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.proto.sasl.login import Login
from pymx.proto.sasl.mechanism import Challenge, Credentials, SaslError
from pymx.proto.sasl.mechanisms import MECHANISMS
from pymx.proto.sasl.plain import Plain


def test_plain():
    assert Plain().initial() == Challenge(b"")
    assert Plain().step(b"\0alice\0geheim") == Credentials("alice", "geheim")
    assert Plain().step(b"alice\0alice\0p\xc3\xa4ss") == Credentials("alice", "päss", "alice")


@pytest.mark.parametrize(
    "response",
    [b"", b"alice", b"\0alice", b"\0\0geheim", b"\0alice\0", b"bob\0alice\0geheim", b"\0a\0b\0c", b"\0\xff\0geheim"],
)
def test_bad_plain_is_refused(response):
    """Also another authorization identity: nobody acts for others here."""
    with pytest.raises(SaslError):
        Plain().step(response)


def test_login():
    mechanism = Login()
    assert mechanism.initial() == Challenge(b"Username:")
    assert mechanism.step(b"alice") == Challenge(b"Password:")
    assert mechanism.step(b"geheim") == Credentials("alice", "geheim")


@pytest.mark.parametrize("responses", [[b""], [b"alice", b""], [b"a\0b"], [b"\xff"], [b"alice", b"a\0b"]])
def test_bad_login_is_refused(responses):
    mechanism = Login()
    *earlier, last = responses
    for response in earlier:
        mechanism.step(response)
    with pytest.raises(SaslError):
        mechanism.step(last)


def test_password_is_not_in_the_repr():
    """A traceback must not tell it."""
    assert "geheim" not in repr(Credentials("alice", "geheim"))


@given(st.sampled_from(sorted(MECHANISMS)), st.lists(st.binary(max_size=20), min_size=1, max_size=3))
def test_mechanisms_raise_nothing_but_sasl_errors(name, responses):
    mechanism = MECHANISMS[name]()
    for response in responses:
        try:
            step = mechanism.step(response)
        except SaslError:
            return
        if isinstance(step, Credentials):
            assert step.login
            assert step.password
            return
