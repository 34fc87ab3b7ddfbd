"""SEARCH evaluation (RFC 3501 s. 6.4.4) against a plain model, and what it costs in files opened."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterable, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mime_corpus import corpus, wire

from pymx.mail import flags
from pymx.mail.date import parse_date
from pymx.mail.header import iter_fields, split_head
from pymx.mail.mime import Part, parse
from pymx.mail.search import (
    All,
    And,
    Criterion,
    Date,
    Flags,
    Header,
    Keyword,
    ModSeq,
    Not,
    Octets,
    Or,
    Recent,
    Text,
    Uids,
)
from pymx.mail.text import decode_body, decode_header, fold, html_to_text
from pymx.ms.search import run
from pymx.proto.imap.keys import MAX_TEXT
from pymx.proto.imap.render import render

KEYWORDS = ["$Forwarded", "Junk"]


class View:
    """A mailbox in memory that counts what was opened."""

    def __init__(
        self, messages: Sequence[tuple[tuple[int, ...], bytes | None]], first_recent: int = 0xFFFFFFFF
    ) -> None:
        self.table = {row[0]: (row, message) for row, message in messages}
        self.uids = sorted(self.table)
        self.first_recent = first_recent
        self.gone: set[int] = set()
        self.opened: list[tuple[str, int]] = []

    def rows(self, uids: Sequence[int]) -> Iterable[tuple[int, ...]]:
        return (self.table[uid][0] for uid in uids if uid not in self.gone)

    def header(self, uid: int) -> bytes | None:
        self.opened.append(("header", uid))
        message = self.message(uid)
        self.opened.pop()
        return None if message is None else split_head(message)[0]

    def message(self, uid: int) -> bytes | None:
        self.opened.append(("message", uid))
        return None if uid in self.gone else self.table[uid][1]

    def keyword_bit(self, name: str) -> int | None:
        return next((n for n, known in enumerate(KEYWORDS) if known.lower() == name.lower()), None)


def _model(criterion: Criterion, view: View) -> list[int]:
    """Every message asked everything, without short cuts."""
    return [uid for uid in view.uids if _matches(criterion, uid, *view.table[uid], view)]


def _matches(criterion: Criterion, uid: int, row: tuple[int, ...], message: bytes | None, view: View) -> bool:
    assert message is not None
    match criterion:
        case And(criteria):
            return all(_matches(one, uid, row, message, view) for one in criteria)
        case Or(first, second):
            return _matches(first, uid, row, message, view) or _matches(second, uid, row, message, view)
        case Not(inner):
            return not _matches(inner, uid, row, message, view)
        case All():
            return True
        case Flags(bits, want):
            return all(bool(row[2] & bit) is want for bit in (1, 2, 4, 8, 16) if bits & bit)
        case Keyword(name, want):
            bit = view.keyword_bit(name)
            return (bit is not None and bool(row[3] >> bit & 1)) is want
        case Recent(want):
            return (uid >= view.first_recent) is want
        case Uids(ranges):
            return any(uid in range(low, high + 1) for low, high in ranges)
        case Octets(larger, octets):
            return row[4] > octets if larger else row[4] < octets
        case ModSeq(value):
            return row[1] >= value
        case Date(which, op, day):
            if which == "internal":
                found = datetime.datetime.fromtimestamp(row[5], datetime.UTC).date()
            else:
                values = _values(split_head(message)[0], "date")
                when = parse_date(values[0]) if values else None
                if when is None:
                    return False
                found = when.date()
            return {"before": found < day, "on": found == day, "since": found >= day}[op]
        case Header(name, text):
            return any(fold(text) in fold(value) for value in _values(split_head(message)[0], name))
        case Text(text, headers):
            return any(fold(text) in place for place in _places(message, headers=headers))
    raise AssertionError(criterion)


def _values(block: bytes, name: str) -> list[str]:
    return [decode_header(field.value) for field in iter_fields(block) if field.name == name.lower()]


def _places(message: bytes, *, headers: bool) -> Iterator[str]:
    root = parse(message)
    yield ""
    if headers:
        yield from _lines(message, root)
    yield from _bodies(message, root, headers=headers)


def _lines(message: bytes, part: Part) -> Iterator[str]:
    for field in iter_fields(message[part.header_start : part.header_end]):
        yield fold(decode_header(field.raw.replace(b"\r\n", b"")))


def _bodies(message: bytes, part: Part, *, headers: bool) -> Iterator[str]:
    for child in part.children:
        if headers:
            yield from _lines(message, child)
        yield from _bodies(message, child, headers=headers)
    if part.message is not None:
        yield from _lines(message, part.message)
        yield from _bodies(message, part.message, headers=headers)
    elif part.type in (b"text", b"message") or (part.type == b"multipart" and not part.children):
        text = decode_body(part, message)
        yield fold(html_to_text(text) if part.subtype == b"html" else text)


def _row(uid: int, message: bytes) -> tuple[int, ...]:
    return (uid, uid * 7, uid % 32, uid % 4, len(message), 1_000_000_000 + uid * 40_000, 0)


MESSAGES = [wire(message) for message in corpus().values()]
# Keys of which each is somewhere in the corpus, in one case or another, plain or encoded.
KEYS = [
    "Ann",
    "EXAMPLE",
    "jörg",
    "JÖRG",
    "ö",
    "grü",
    "hello",
    "second",
    "<b>",
    "word word",
    "été",
    "ÉTÉ",
    "inner",
    "@",
    "",
    " ",
]
KEYS += [
    "report",
    "übersicht",
    "a",
    "body\r\nof",
    "b",
    "utf-8",
    "nowhere",
    "lost",
    "Reporting",
    "İ",
    "ﬁ",
    "=?",
    "two lines",
]
NAMES = ["Subject", "From", "to", "Date", "X-None", "message-id", "content-type", "cc", "Sender", "X("]

keys = st.sampled_from(KEYS)
days = st.dates(datetime.date(1996, 7, 16), datetime.date(1996, 7, 19)) | st.dates(
    datetime.date(2001, 9, 9), datetime.date(2001, 11, 20)
)
leaves: st.SearchStrategy[Criterion] = st.one_of(
    st.just(All()),
    st.builds(
        Flags, st.sampled_from([flags.SEEN, flags.DELETED, flags.ANSWERED, flags.SEEN | flags.DRAFT]), st.booleans()
    ),
    st.builds(Keyword, st.sampled_from(["$forwarded", "junk", "none"]), st.booleans()),
    st.builds(Recent, st.booleans()),
    st.builds(Uids, st.lists(st.tuples(st.integers(1, 70), st.integers(1, 140)), max_size=3).map(tuple)),
    st.builds(Octets, st.booleans(), st.integers(50, 5000)),
    st.builds(Date, st.sampled_from(["internal", "sent"]), st.sampled_from(["before", "on", "since"]), days),
    st.builds(Header, st.sampled_from(NAMES), keys),
    st.builds(Text, keys, st.booleans()),
    st.builds(ModSeq, st.integers(0, 900)),
)
criteria: st.SearchStrategy[Criterion] = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(Or, inner, inner),
        st.builds(And, st.lists(inner, max_size=4).map(tuple)),
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(criteria, st.lists(st.sampled_from(range(len(MESSAGES))), unique=True, max_size=25), st.integers(1, 140))
def test_the_result_is_that_of_asking_every_message_everything(
    criterion: Criterion, chosen: list[int], first_recent: int
) -> None:
    view = View([(_row(n + 1, MESSAGES[n]), MESSAGES[n]) for n in chosen], first_recent)
    assert run(criterion, view) == _model(criterion, view)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("headers", [False, True])
def test_texts_are_found_in_all_the_corpus_as_the_model_finds_them(key: str, headers: bool) -> None:
    view = View([(_row(n, message), message) for n, message in enumerate(MESSAGES, 1)])
    assert run(Text(key, headers), view) == _model(Text(key, headers), view)


@pytest.mark.parametrize("key", KEYS)
def test_headers_are_found_in_all_the_corpus_as_the_model_finds_them(key: str) -> None:
    view = View([(_row(n, message), message) for n, message in enumerate(MESSAGES, 1)])
    for name in NAMES:
        assert run(Header(name, key), view) == _model(Header(name, key), view)


def _small() -> View:
    messages = [
        b"Subject: =?utf-8?b?R3LDvMOfZQ==?=\r\nDate: 1 Jan 2020 23:30:00 -0500\r\n\r\nhello\r\n",
        b"Subject: other\r\nX-Empty:\r\nContent-Transfer-Encoding: base64\r\n\r\nR3LDvMOfZQ==\r\n",
        b"Subject: GR\xc3\x9cSSE\r\n\r\nhello <b>world</b>\r\n",
    ]
    return View([((n, n, n % 2, 0, len(m), 1_577_900_000, 0), m) for n, m in enumerate(messages, 1)])


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        (Header("Subject", "grüsse"), [1, 3]),
        (Header("Subject", ""), [1, 2, 3]),
        (Header("X-Empty", ""), [2]),
        (Header("X-None", ""), []),
        (Not(Header("X-None", "")), [1, 2, 3]),
        (Text("GRÜSSE", False), [2]),
        (Text("grüße", True), [1, 2, 3]),
        (Text("b>world", False), [3]),
        (Date("sent", "on", datetime.date(2020, 1, 1)), [1]),
        (Not(Date("sent", "on", datetime.date(2020, 1, 1))), [2, 3]),
        (And(()), [1, 2, 3]),
        (Uids(((3, 9), (1, 1), (1, 2))), [1, 2, 3]),
        (Uids(()), []),
    ],
)
def test_single_criteria(criterion: Criterion, expected: list[int]) -> None:
    assert run(criterion, _small()) == expected


@pytest.mark.parametrize(
    ("field", "key", "found"),
    [
        (b"From: <user (comment)@ (comment) domain.test>", "user@domain.test", True),
        (b"Cc: ann@x.test, Bob (builder) <bob . lee @ domain.test>", "bob.lee@domain.test", True),
        (b'To: "user"@domain.test', "<user@domain.test", False),
        (b'To: "us\\er"@domain.test', "USER@domain", True),
        (b"Bcc: (only) user", "missing_domain", False),
        (b"From: user (comment) @domain.test", "(comment)", True),
        (b"Subject: user (comment)@domain.test", "user@domain.test", False),
        (b"From: " + b"a (b)@c.test, " * 20_000, "a@c.test", True),
    ],
)
def test_address_is_found_however_it_is_written(field: bytes, key: str, found: bool) -> None:
    """As Dovecot finds it: what ENVELOPE shows counts too; from the header and from what the index keeps of it."""
    message = field + b"\r\n\r\n"
    name = field.partition(b":")[0].decode()
    assert run(Header(name, key), View([(_row(1, message), message)])) == [1] * found
    kept = render(message)[2][2:7]
    assert any(fold(key).encode() in (text or b"") for text in kept) is (found and len(field) < MAX_TEXT)


def test_what_a_delivery_status_says_is_found() -> None:
    """As with Dovecot: message/… is text too (RFC 3464 s. 2: fields of a report)."""
    message = (
        b"Subject: Undelivered\r\nContent-Type: multipart/report; boundary=b\r\n\r\n"
        b"--b\r\nContent-Type: text/plain\r\n\r\nSorry\r\n"
        b"--b\r\nContent-Type: message/delivery-status\r\n\r\n"
        b"Reporting-MTA: dns; mx.test\r\n\r\nFinal-Recipient: rfc822; nobody@away.test\r\nStatus: 5.1.1\r\n"
        b"--b\r\nContent-Type: message/rfc822\r\n\r\nSubject: the mail\r\n\r\nhello\r\n--b--\r\n"
    )
    view = View([(_row(1, message), message)])
    for key in ("nobody@away.test", "Status: 5.1.1", "the mail"):
        assert run(Text(key, False), view) == run(Text(key, True), view) == [1]


def test_no_file_is_opened_where_the_rows_decide() -> None:
    view = _small()
    assert run(And((Text("hello", True), Flags(flags.SEEN, True), Uids(((2, 3),)))), view) == [3]
    assert view.opened == [("message", 3)]
    view = _small()
    assert run(Or(Text("nothing", False), Flags(flags.SEEN, True)), view) == [1, 3]
    assert view.opened == [("message", 2)]
    view = _small()
    assert run(And((Text("base", False), Header("Subject", "other"))), view) == []
    assert [uid for _, uid in view.opened] == [1, 2, 2, 3]


@pytest.mark.parametrize(
    "criterion",
    [
        Flags(flags.SEEN, True),
        Not(Flags(flags.SEEN, False)),
        Header("Subject", ""),
        Not(Header("Subject", "x")),
        Text("", True),
    ],
)
def test_messages_that_are_gone_match_nothing(criterion: Criterion) -> None:
    view = _small()
    view.gone = {1}
    assert 1 not in run(criterion, view)
    assert 3 in run(criterion, view)


@pytest.mark.parametrize(
    "pattern",
    [
        b"=?utf-8?q?x?= ",
        b"=?",
        b"<",
        b"<!--",
        b"<script>",
        b"&",
        b"\xcc\x81\xcc\xa3",
        b"=",
        b"=3D",
        b"\r\n ",
        b"a:\r\n",
    ],
)
@pytest.mark.parametrize("encoding", [b"8bit", b"base64", b"quoted-printable"])
def test_a_hostile_megabyte_is_searched_in_well_under_a_second(pattern: bytes, encoding: bytes) -> None:
    filling = pattern * ((1 << 20) // len(pattern))
    in_body = b"Content-Type: text/html\r\nContent-Transfer-Encoding: %b\r\n\r\n%b" % (encoding, filling)
    in_header = b"Subject: %b\r\n\r\n" % filling
    view = View([((n, n, 0, 0, 0, 0, 0), message) for n, message in enumerate((in_body, in_header), 1)])
    started = time.process_time()
    run(Or(Text("nowhere", True), Header("Subject", "nowhere")), view)
    assert time.process_time() - started < 2.0  # two megabytes, both read twice


def test_attachments_are_found_by_name_and_not_by_content() -> None:
    message = (
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
        b"--b\r\nContent-Type: application/pdf; name=invoice.pdf\r\n\r\ncontent\r\n--b--\r\n"
    )
    view = View([(_row(1, message), message)])
    assert run(Text("invoice.pdf", True), view) == [1]
    assert run(Text("invoice.pdf", False), view) == []
    assert run(Text("content\r\n", True), view) == []
