"""Authentication-Results as others write them, in headers and quoted in texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.mail.authreading import find_in_text, read
from pymx.mail.authres import Result, authentication_results

GMAIL = """mx.google.com;
       dkim=pass header.i=@example.com header.s=202611rsa header.b=AbCdEf12;
       dkim=neutral (no key) header.i=@example.com header.s=202611ed25519;
       spf=pass (google.com: domain of alice@example.com designates 192.0.2.1 as
 permitted sender) smtp.mailfrom=alice@example.com;
       dmarc=pass (p=QUARANTINE sp=QUARANTINE dis=NONE) header.from=example.com"""
OUTLOOK = """spf=pass (sender IP is 192.0.2.1) smtp.mailfrom=example.com; dkim=fail (body hash did not verify)
 header.d=example.com;dmarc=fail action=quarantine header.from=example.com;compauth=pass reason=130"""


@pytest.mark.parametrize(
    ("value", "server", "results"),
    [
        (GMAIL, "mx.google.com", [("dkim", "pass"), ("dkim", "neutral"), ("spf", "pass"), ("dmarc", "pass")]),
        ("mx.example.com 1; none", "mx.example.com", []),
        ("mx.example.com; spf/1=FAIL (a (nested) one) smtp.mailfrom=x", "mx.example.com", [("spf", "fail")]),
        ('mx.example.com; dkim=pass reason="2; 3" header.d="example.com"', "mx.example.com", [("dkim", "pass")]),
        ("", "", []),
    ],
)
def test_fields_of_others(value: str, server: str, results: list[tuple[str, str]]) -> None:
    """RFC 8601 s. 2.2."""
    found = read(value)
    assert found.server == server
    assert [(r.method, r.result) for r in found.results] == results


def test_properties_and_several_signatures() -> None:
    found = read(GMAIL)
    assert found.passes("dkim")
    assert found.of("dkim")[0].properties["header.s"] == "202611rsa"
    assert not found.passes("arc")


def test_a_field_without_the_servers_name_as_outlook_writes_it() -> None:
    """Against RFC 8601 the first result stands where the server's name should be."""
    found = read(OUTLOOK)
    assert (found.passes("spf"), found.passes("dkim"), found.passes("dmarc")) == (True, False, False)
    assert found.server == ""


def test_what_we_write_is_read_back() -> None:
    field = authentication_results("mx.example.com", [Result("spf", "pass", (("smtp.mailfrom", "a@example.com"),))])
    found = read(field.decode().partition(":")[2])
    assert (found.server, found.passes("spf")) == ("mx.example.com", True)


@pytest.mark.parametrize(
    "text",
    [
        "Sent:\n\n> Authentication-Results: mx.other.test;\n>  spf=pass smtp.mailfrom=a@b;\n>  dkim=pass\n> From: a\n",
        "Authentication-Results: mx.other.test; spf=pass; dkim=pass\r\nFrom: a\r\n",
        "==== Summary ====\nSPF check:          SPF=pass\nDKIM check: dkim=pass\n",
        "SPF: pass\nDKIM: pass\n",
    ],
)
def test_quoted_in_a_reflectors_answer(text: str) -> None:
    found = find_in_text(text)
    assert found is not None
    assert (found.passes("spf"), found.passes("dkim")) == (True, True)


def test_a_text_that_says_nothing() -> None:
    assert find_in_text("Thank you for your message.") is None


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    read(text)
    find_in_text(text)
