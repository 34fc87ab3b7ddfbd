"""Arguments of MAIL and RCPT (RFC 5321 s. 4.1.2, RFC 1870, 3461, 4954, 6152, 6531)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.mail.address import Address
from pymx.proto.smtp import reply
from pymx.proto.smtp.arguments import MailArguments, parse_mail, parse_rcpt
from pymx.proto.smtp.reply import SmtpError
from pymx.proto.smtp.xtext import XtextError, decode_xtext, encode_xtext

ALICE = Address("alice", "example.com")

MAIL = [
    ("FROM:<>", MailArguments(None)),
    ("FROM:<alice@example.com>", MailArguments(ALICE)),
    ("from:<alice@EXAMPLE.com>", MailArguments(ALICE)),
    ("FROM: <alice@example.com>", MailArguments(ALICE)),
    ("FROM:<@relay.example:alice@example.com>", MailArguments(ALICE)),
    ('FROM:<"a b"@example.com>', MailArguments(Address("a b", "example.com"))),
    ("FROM:<alice@example.com> SIZE=0", MailArguments(ALICE, size=0)),
    ("FROM:<alice@example.com>  BODY=8BITMIME   size=5", MailArguments(ALICE, size=5, body="8BITMIME")),
    ("FROM:<alice@example.com> RET=FULL ENVID=aB+3D", MailArguments(ALICE, ret="FULL", envid="aB=")),
    ("FROM:<alice@example.com> AUTH=<>", MailArguments(ALICE)),
    ("FROM:<ä@example.com> SMTPUTF8", MailArguments(Address("ä", "example.com"), smtputf8=True)),
]

BAD_MAIL = [
    ("", 501),
    ("FROM", 501),
    ("FROM:", 501),
    ("FROM:alice@example.com", 501),
    ("FROM:<alice@example.com", 501),
    ("FROM:<alice>", 501),
    ("FROM:<postmaster>", 501),
    ("FROM:<us er@example.com>", 501),
    ("FROM:<user(comment)@example.com>", 501),
    ("FROM:<alice@exa\x01mple.com>", 501),
    ("FROM:<alice@example.com>SIZE=1", 501),
    ("FROM:<alice@example.com> SIZE", 501),
    ("FROM:<alice@example.com> SIZE=", 501),
    ("FROM:<alice@example.com> SIZE=-1", 501),
    ("FROM:<alice@example.com> SIZE=1e3", 501),
    ("FROM:<alice@example.com> SIZE=" + "9" * 21, 501),
    ("FROM:<alice@example.com> SIZE=1 SIZE=1", 501),
    ("FROM:<alice@example.com> SMTPUTF8=YES", 501),
    ("FROM:<alice@example.com> RET=SOME", 501),
    ("FROM:<alice@example.com> ENVID=a+0D+0A", 501),
    ("FROM:<alice@example.com> ENVID=a+0d", 501),
    ("FROM:<alice@example.com> ENVID=" + "a" * 101, 501),
    ("FROM:<alice@example.com> =x", 501),
    ("FROM:<alice@example.com> X=a=b", 501),
    ("FROM:<alice@example.com> NOTIFY=NEVER", 555),
    ("FROM:<alice@example.com> MT-PRIORITY=3", 555),
    ("FROM:<ä@example.com>", 553),
]

RCPT = [
    ("TO:<alice@example.com>", frozenset(), ""),
    ("TO:<alice@example.com> NOTIFY=NEVER", {"NEVER"}, ""),
    ("TO:<alice@example.com> NOTIFY=SUCCESS,delay", {"SUCCESS", "DELAY"}, ""),
    ("TO:<alice@example.com> ORCPT=rfc822;Bob+2B1@X.example", frozenset(), "rfc822;Bob+1@X.example"),
    ("TO:<alice@example.com> ORCPT=utf-8;b\\x{F8}b@x.example", frozenset(), "utf-8;b\\x{F8}b@x.example"),
]

BAD_RCPT = [
    ("TO:<>", 501),
    ("TO:alice@example.com", 501),
    ("FROM:<alice@example.com>", 501),
    ("TO:<alice@example.com> NOTIFY=", 501),
    ("TO:<alice@example.com> NOTIFY=NEVER,SUCCESS", 501),
    ("TO:<alice@example.com> NOTIFY=SUCCESS,SUCCESS", 501),
    ("TO:<alice@example.com> ORCPT=bob@x.example", 501),
    ("TO:<alice@example.com> ORCPT=rfc822;", 501),
    ("TO:<alice@example.com> ORCPT=rfc822;a+0Ab", 501),
    ("TO:<alice@example.com> SIZE=5", 555),
    ("TO:<ä@example.com>", 553),
]


@pytest.mark.parametrize(("argument", "expected"), MAIL)
def test_mail_is_read(argument, expected):
    assert parse_mail(argument) == expected


@pytest.mark.parametrize(("argument", "code"), BAD_MAIL)
def test_bad_mail_is_refused(argument, code):
    with pytest.raises(SmtpError) as caught:
        parse_mail(argument)
    assert caught.value.reply.code == code


@pytest.mark.parametrize(
    ("argument", "asked"),
    [("FROM:<> REQUIRETLS", True), ("FROM:<> requiretls SIZE=5", True), ("FROM:<> SIZE=5", False)],
)
def test_requiretls_is_a_parameter_where_it_is_offered(argument, asked):
    """RFC 8689 s. 4.1."""
    assert parse_mail(argument, requiretls=True).requiretls is asked


@pytest.mark.parametrize(
    ("argument", "offered", "code"),
    [
        ("FROM:<> REQUIRETLS=YES", True, 501),
        ("FROM:<> REQUIRETLS REQUIRETLS", True, 501),
        ("FROM:<> REQUIRETLS", False, 555),
    ],
)
def test_requiretls_is_refused_with_a_value_twice_or_where_it_is_not_offered(argument, offered, code):
    """RFC 8689 s. 4.1, RFC 5321 s. 4.1.1.11."""
    with pytest.raises(SmtpError) as caught:
        parse_mail(argument, requiretls=offered)
    assert caught.value.reply.code == code


@pytest.mark.parametrize(("argument", "notify", "orcpt"), RCPT)
def test_rcpt_is_read(argument, notify, orcpt):
    recipient = parse_rcpt(argument, smtputf8=False)
    assert (recipient.address, recipient.notify, recipient.orcpt) == (ALICE, notify, orcpt)


@pytest.mark.parametrize(("argument", "code"), BAD_RCPT)
def test_bad_rcpt_is_refused(argument, code):
    with pytest.raises(SmtpError) as caught:
        parse_rcpt(argument, smtputf8=False)
    assert caught.value.reply.code == code


def test_postmaster_needs_no_domain():
    """RFC 5321 s. 4.1.1.3."""
    assert parse_rcpt("TO:<PostMaster>", smtputf8=False).address == Address("postmaster", "")


likely = st.text(alphabet='<>@:;,.=+"\\ \t\r\n\0abFROMTsizeNEVR0129ä[]()', max_size=60)


@given(st.one_of(st.text(max_size=60), likely, likely.map(lambda t: "FROM:<a@b.example> " + t)))
def test_mail_raises_nothing_but_smtp_errors(argument):
    """The parser is the first thing that a hostile peer meets; what it lets through is free of line breaks."""
    try:
        parsed = parse_mail(argument)
    except SmtpError as error:
        refused = error.reply
    else:
        refused = reply.OK
        assert not set(f"{parsed.mail_from}{parsed.envid}{parsed.ret}") & set("\r\n\0")
    assert refused.wire().count(b"\r\n") == 1


@given(st.one_of(st.text(max_size=60), likely, likely.map(lambda t: "TO:<a@b.example> " + t)), st.booleans())
def test_rcpt_raises_nothing_but_smtp_errors(argument, smtputf8):
    try:
        parsed = parse_rcpt(argument, smtputf8=smtputf8)
    except SmtpError as error:
        refused = error.reply
    else:
        refused = reply.OK
        assert not set(f"{parsed.address}{parsed.orcpt}") & set("\r\n\0")
    assert refused.wire().count(b"\r\n") == 1


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126)))
def test_xtext_round_trip(text):
    """RFC 3461 s. 4."""
    encoded = encode_xtext(text)
    assert decode_xtext(encoded) == text
    assert not set(encoded) & set("= ")


@pytest.mark.parametrize("text", ["+", "+4", "+4g", "+3d", "a b", "a=b", "ä", "+0A", "+FF"])
def test_malformed_xtext_is_refused(text):
    with pytest.raises(XtextError):
        decode_xtext(text)
