"""IMAP URLs of messages (RFC 5092): a table, a round trip, and nothing but BadUrl."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.proto.imap.section import Section
from pymx.proto.imap.url import BadUrl, MessageUrl, parse_url


def url(
    mailbox: str | None,
    uid: int,
    *,
    user: str | None = None,
    host: str | None = None,
    validity: int | None = None,
    section: Section | None = None,
    partial: tuple[int, int | None] | None = None,
) -> MessageUrl:
    return MessageUrl(user, host, mailbox, validity, uid, section or Section(), partial)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/INBOX/;UID=1", url("INBOX", 1)),
        ("/INBOX;UIDVALIDITY=785799047/;UID=113330", url("INBOX", 113330, validity=785799047)),
        ("/a;uidvalidity=7/;uid=1/;section=1.5.9.mime", url("a", 1, validity=7, section=Section((1, 5, 9), "MIME"))),
        (
            "/a/;UID=1/;SECTION=HEADER.FIELDS%20(Subject%20To)",
            url("a", 1, section=Section((), "HEADER.FIELDS", (b"Subject", b"To"))),
        ),
        ("/a/b%20c/;UID=20/;PARTIAL=0.1024", url("a/b c", 20, partial=(0, 1024))),
        ("/a/;UID=20/;SECTION=TEXT/;PARTIAL=10", url("a", 20, section=Section((), "TEXT"), partial=(10, None))),
        ("/%E2%98%BA/;UID=20", url("☺", 20)),
        (";UID=20/;SECTION=1.2", url(None, 20, section=Section((1, 2)))),
        ("/;UID=20", url(None, 20)),
        ("imap://minbari.example.org/gray-council;UIDVALIDITY=385759045/;UID=20/;PARTIAL=0.1024",
         url("gray-council", 20, host="minbari.example.org", validity=385759045, partial=(0, 1024))),
        ("IMAP://joe;AUTH=*@Example.COM:143/INBOX/;UID=20", url("INBOX", 20, user="joe", host="example.com:143")),
    ],
)  # fmt: skip
def test_urls(text: str, expected: MessageUrl) -> None:
    """RFC 5092 s. 11."""
    assert parse_url(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "/INBOX",
        "/INBOX/;UID=0",
        "/INBOX/;UID=4294967296",
        "/INBOX;UID=1",
        "/INBOX/;UID=1/;SECTION=",
        "/INBOX/;UID=1/;SECTION=NONSENSE",
        "/INBOX/;UID=1/;PARTIAL=1.0",
        "/INBOX/;UID=1;URLAUTH=anonymous:internal:00",
        "/INBOX/;UID=1;EXPIRE=2030-01-01T00:00:00Z;URLAUTH=anonymous",
        "/%FF/;UID=1",
        "/%/;UID=1",
        "/a b/;UID=1",
        "imap://host;UID=1",
        "imap://host/;UID=1",
        "http://host/INBOX/;UID=1",
        "INBOX/;UID=1",
    ],
)
def test_what_is_no_url_of_a_message_is_refused(text: str) -> None:
    """URLAUTH among it: it is not understood, so it must not be passed over."""
    with pytest.raises(BadUrl):
        parse_url(text)


@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12),
    st.integers(1, 0xFFFFFFFF),
    st.none() | st.integers(1, 0xFFFFFFFF),
    st.none() | st.tuples(st.integers(0, 10**12), st.none() | st.integers(1, 10**12)),
)
def test_urls_round_trip(mailbox: str, uid: int, validity: int | None, partial: tuple[int, int | None] | None) -> None:
    """What a client writes is what is understood, whatever the mailbox is called."""
    text = "/" + quote(mailbox, safe="")
    text += f";UIDVALIDITY={validity}" if validity else ""
    text += f"/;UID={uid}"
    if partial:
        text += f"/;PARTIAL={partial[0]}" + (f".{partial[1]}" if partial[1] else "")
    assert parse_url(text) == url(mailbox, uid, validity=validity, partial=partial)


@given(st.text(st.sampled_from("/;:=.%@0192aUIDimapSECTON*() "), max_size=60))
def test_anything_else_is_refused_by_name(text: str) -> None:
    """Never anything but our error."""
    for tried in (text, "/INBOX/;UID=1" + text, "imap://" + text):
        try:
            parse_url(tried)
        except BadUrl:
            continue
