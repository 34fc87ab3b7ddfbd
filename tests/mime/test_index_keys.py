"""What the index keeps of headers for SEARCH, SORT and THREAD."""

from __future__ import annotations

import time
from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mime_corpus import corpus, wire

from pymx.proto.imap.envelope import envelope_of_fields
from pymx.proto.imap.keys import MAX_REFERENCES, Keys, keys_of_fields
from pymx.proto.imap.render import render


def keys(header: bytes) -> Keys:
    return render(header.replace(b"\n", b"\r\n") + b"\r\n")[2]


def ids(*names: bytes) -> bytes:
    """Empty: no id."""
    return b"".join(blake2b(name, digest_size=8).digest() if name else bytes(8) for name in names)


@pytest.mark.parametrize(
    ("field", "mailbox", "shown"),
    [
        (b"From: Ann Lee <ann@x.test>\n", b"ANN", b"ANN LEE"),
        (b"From: ann@x.test\n", b"ANN", b"ANN@X.TEST"),
        (b"From: ann@x.test (Ann Lee)\n", b"ANN", b"ANN LEE"),
        (b'From: "" <ann@x.test>, bob@x.test\n', b"ANN", b"ANN@X.TEST"),
        (b"From: =?utf-8?q?J=C3=B6rg?= <j@x.test>\n", b"J", "JO\u0308RG".encode()),
        (b"From: friends: bob@x.test;\n", b"FRIENDS", b"FRIENDS"),
        (b"From:\n", b"", b""),
        (b"Subject: x\n", b"", b""),
    ],
)
def test_the_first_address_is_what_is_sorted_by(field: bytes, mailbox: bytes, shown: bytes) -> None:
    """RFC 5256 s. 3 (FROM), RFC 5957 s. 3."""
    found = keys(field)
    assert (found[9], found[12]) == (mailbox, shown)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"Message-ID: <a@x>\n", ids(b"a@x")),
        (b'Message-ID: <"a"@x>\n', ids(b"a@x")),
        (b"Message-ID: no id\nReferences: <b@x> rubbish <c@x>\n", ids(b"", b"b@x", b"c@x")),
        (b"References: <b@x>\nIn-Reply-To: <c@x>\n", ids(b"", b"b@x")),
        (b"References: none\nIn-Reply-To: your mail <c@x> of <d@x>\n", ids(b"", b"c@x")),
        (b"", ids(b"")),
    ],
)
def test_message_ids_are_those_of_the_rfc(header: bytes, expected: bytes) -> None:
    """RFC 5256 s. 3, REFERENCES step 1."""
    assert keys(header)[14] == expected


def test_of_many_references_the_last_count() -> None:
    names = [b"%d@x" % number for number in range(MAX_REFERENCES + 50)]
    found = keys(b"References: " + b"\n ".join(b"<%b>" % name for name in names) + b"\n")
    assert found[14] == ids(b"", *names[-MAX_REFERENCES:])


@pytest.mark.parametrize(
    ("header", "sent", "day"),
    [
        (b"Date: Thu, 1 Jan 1970 00:30:00 +0100\n", -1800, 719_163),
        (b"Date: Thu, 1 Jan 1970\n", 0, 719_163),
        (b"Date: rubbish\n", None, 0),
        (b"", None, 0),
    ],
)
def test_the_day_is_the_senders_and_the_moment_is_utc(header: bytes, sent: int | None, day: int) -> None:
    """RFC 3501 s. 6.4.4 (SENTON) without, RFC 5256 s. 2.2 with the time zone."""
    assert keys(header)[:2] == (sent, day)


def test_what_is_too_long_or_doubtful_is_left_to_the_header() -> None:
    assert keys(b"Subject: " + b"x" * 9000 + b"\nFrom: a@x\n")[2:7] == (b"a@x\n", b"", b"", b"", None)
    assert render(b"Subject: a\rb\r\n\r\n")[2][1:7] == (None,) * 6
    assert keys(b"A: b\n" * 10_001)[1:7] == (None,) * 6


@pytest.mark.parametrize("name", sorted(corpus()))
def test_a_header_alone_gives_the_keys_of_its_message(name: str) -> None:
    message = wire(corpus()[name])
    end = message.find(b"\r\n\r\n")
    header = b"\r\n" if message.startswith(b"\r\n") else message if end < 0 else message[: end + 4]
    assert render(header)[2] == render(message)[2]


@given(st.binary(max_size=300), st.sampled_from([b"From", b"Subject", b"References", b"Date", b"Message-ID"]))
def test_any_octets_have_keys(value: bytes, name: bytes) -> None:
    found = render(name + b": " + value + b"\r\n\r\n")[2]
    assert len(found) == 15
    assert len(found[14]) % 8 == 0


@pytest.mark.parametrize(
    "piece", [b"<", b"<a@", b'<"', b"<a@b> ", b'<"\\', b"re: ", b"[a]", b"=?utf-8?q?a?=", b"(", b"<a "]
)
def test_a_hostile_megabyte_has_keys_in_well_under_a_second(piece: bytes) -> None:
    filling = piece * ((1 << 18) // len(piece))
    header = b"".join(name + b": " + filling + b"\r\n" for name in (b"From", b"Subject", b"References", b"In-Reply-To"))
    started = time.process_time()
    render(header + b"\r\n")
    assert time.process_time() - started < 2.0


@pytest.mark.parametrize(
    "value",
    [
        b"Bob <bob@example.test>",
        b"=?utf-8?q?J=C3=BCrgen?= <j@example.test>",
        b"a(x)@b.test",
        b"Group: a@b.test;",
        b"",
        b"\xff <",
    ],
)
def test_keys_of_a_field_kept_from_the_message_before_are_those_made_anew(value: bytes) -> None:
    """Short fields that stand alone are kept; beside an empty field of the same name nothing is."""
    for _ in range(2):
        kept = keys_of_fields({b"from": [value], b"to": [value]}, complete=True)
        made = keys_of_fields({b"from": [value, b""], b"to": [value, b""]}, complete=True)
        assert (kept[9], kept[10], kept[12], kept[13]) == (made[9], made[10], made[12], made[13])
        for at in (2, 3):
            assert sorted(filter(None, _lines(kept[at]))) == sorted(filter(None, _lines(made[at])))
        assert envelope_of_fields({b"from": [value]}) == envelope_of_fields({b"from": [value, b""]})


def _lines(text: object) -> list[bytes]:
    assert isinstance(text, bytes)
    return text.split(b"\n")
