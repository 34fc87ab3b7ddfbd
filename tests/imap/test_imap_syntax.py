"""Parsers of the commands: tables of what they make, round trips, and nothing but their own errors."""

from __future__ import annotations

import datetime
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.imapd.commands import TABLE
from pymx.imapd.namespace import Namespace
from pymx.mail import search
from pymx.proto.imap.commands.acl import parse_about_identifier, parse_setacl
from pymx.proto.imap.commands.append import UrlPart, parse_append
from pymx.proto.imap.commands.compress import parse_compress
from pymx.proto.imap.commands.copy import parse_copy, parse_uid_copy
from pymx.proto.imap.commands.expunge import parse_uid_expunge
from pymx.proto.imap.commands.fetch import BodyItem, parse_fetch, parse_uid_fetch
from pymx.proto.imap.commands.folder import parse_create, parse_mailbox, parse_rename
from pymx.proto.imap.commands.identity import parse_enable, parse_id
from pymx.proto.imap.commands.list import ListMailboxes, matcher, parse_list, parse_lsub
from pymx.proto.imap.commands.login import parse_authenticate, parse_login
from pymx.proto.imap.commands.metadata import metadata_response, parse_getmetadata, parse_setmetadata
from pymx.proto.imap.commands.notify import EventGroup, Notify, parse_notify
from pymx.proto.imap.commands.plain import parse_nothing
from pymx.proto.imap.commands.quota import parse_getquota
from pymx.proto.imap.commands.replace import parse_replace, parse_uid_replace
from pymx.proto.imap.commands.search import (
    Age,
    AllOf,
    EitherOf,
    HasId,
    InSet,
    Known,
    NotKey,
    Window,
    parse_search,
    resolve,
)
from pymx.proto.imap.commands.select import parse_examine, parse_select
from pymx.proto.imap.commands.status import parse_status
from pymx.proto.imap.commands.store import parse_store, parse_uid_store
from pymx.proto.imap.dates import internaldate, parse_date_time
from pymx.proto.imap.errors import Bad, ImapError, No
from pymx.proto.imap.lexer import Cursor
from pymx.proto.imap.mailbox import decoded, encoded
from pymx.proto.imap.response import astring, string
from pymx.proto.imap.section import Section
from pymx.proto.imap.sequence import SequenceSet, runs, select

PARSERS = [
    parse_about_identifier,
    parse_append,
    parse_authenticate,
    parse_compress,
    parse_copy,
    parse_create,
    parse_enable,
    parse_examine,
    parse_fetch,
    parse_getmetadata,
    parse_getquota,
    parse_id,
    parse_list,
    parse_login,
    parse_lsub,
    parse_mailbox,
    parse_nothing,
    parse_notify,
    parse_rename,
    parse_replace,
    parse_search,
    parse_select,
    parse_setacl,
    parse_setmetadata,
    parse_status,
    parse_store,
    parse_uid_copy,
    parse_uid_expunge,
    parse_uid_fetch,
    parse_uid_replace,
    parse_uid_store,
]
WORDS = st.sampled_from(
    b' |(|)|"|""|"a"|1|1:*|*|,|ALL|FAST|BODY|BODY[|BODY.PEEK[|]|<0.1>|1.2.HEADER|HEADER.FIELDS|TEXT|MIME|FLAGS|+FLAGS'
    b"|-FLAGS.SILENT|\\Seen|$kw|RETURN (|STATUS|MIN|NOT|OR|UID|KEYWORD|SINCE|1-Feb-2020|CHARSET|UTF-8|X|NIL|INBOX"
    b"|{3}\r\n|%|&|&AOQ-|SUBSCRIBED|RECURSIVEMATCH|(CHANGEDSINCE|(UNCHANGEDSINCE|MODSEQ|99999999999999999999|MESSAGES"
    b"|$|QRESYNC (|VANISHED|PARTIAL|-1:-2|(LAZY)|PREVIEW|BINARY[|BINARY.SIZE[|YOUNGER|EMAILID"
    b"|USE (|UTF8 (|~{3}\r\n|CATENATE (|URL|TEXT|/private/comment|DEPTH|MAXSIZE|infinity"
    b"|SET|NONE|STATUS|SELECTED|SUBTREE|MessageNew|MessageExpunge|FlagChange".split(b"|")
)


@pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__name__)
@given(words=st.lists(st.one_of(WORDS, st.binary(max_size=4)), max_size=14), spaced=st.booleans())
def test_parsers_raise_only_our_errors(parse: object, words: list[bytes], spaced: bool) -> None:
    """Whatever is in the command, it is understood, Bad or No."""
    text = b" " + (b" " if spaced else b"").join(words)
    try:
        parse(Cursor(text, [b"abc", [b"sink"], b"\xff"]))  # type: ignore[operator]
    except ImapError:
        return


def test_deep_nesting_is_refused() -> None:
    """Parentheses and NOTs are limited before Python's stack is."""
    for text in (
        b" " + b"(" * 5000 + b"ALL" + b")" * 5000,
        b" " + b"NOT " * 5000 + b"ALL",
        b" " + b"OR ALL " * 5000 + b"ALL",
    ):
        with pytest.raises(Bad):
            parse_search(Cursor(text))


def items(text: bytes) -> tuple[object, ...]:
    return parse_fetch(Cursor(b" 1 " + text)).items


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"fast", ("FLAGS", "INTERNALDATE", "RFC822.SIZE")),
        (b"(flags Uid FLAGS)", ("FLAGS", "UID")),
        (b"body", ("BODY",)),
        (b"BODY[]", (BodyItem(b"BODY[]", Section(), peek=False),)),
        (b"body.peek[1.2.text]<5.10>", (BodyItem(b"BODY[1.2.TEXT]<5>", Section((1, 2), "TEXT"), True, (5, 10)),)),
        (b"BODY[3.MIME]", (BodyItem(b"BODY[3.MIME]", Section((3,), "MIME"), peek=False),)),
        (
            b'BODY[HEADER.FIELDS.NOT (a "b c")]',
            (BodyItem(b'BODY[HEADER.FIELDS.NOT (a "b c")]', Section((), "HEADER.FIELDS.NOT", (b"a", b"b c")), False),),
        ),
        (b"BINARY[]", (BodyItem(b"BINARY[]", Section(), False, None, "binary"),)),
        (b"binary.peek[1.2]<0.9>", (BodyItem(b"BINARY[1.2]<0>", Section((1, 2)), True, (0, 9), "binary"),)),
        (b"BINARY.SIZE[2]", (BodyItem(b"BINARY.SIZE[2]", Section((2,)), True, None, "size"),)),
        (b"(EMAILID SAVEDATE PREVIEW (LAZY) PREVIEW)", ("EMAILID", "SAVEDATE", "PREVIEW")),
        (b"preview (lazy)", ("PREVIEW (LAZY)",)),
        (b"RFC822.HEADER", (BodyItem(b"RFC822.HEADER", Section((), "HEADER"), peek=True),)),
        (b"rfc822.peek", (BodyItem(b"RFC822", Section(), peek=True),)),
        (b"RFC822.TEXT.PEEK", (BodyItem(b"RFC822.TEXT", Section((), "TEXT"), peek=True),)),
    ],
)
def test_fetch_items(text: bytes, expected: tuple[object, ...]) -> None:
    """RFC 3501 s. 6.4.5."""
    assert items(text) == expected


@pytest.mark.parametrize(
    "text",
    b"|()|(FLAGS|BODY[MIME]|BODY[0]|BODY[1.]|BODY[.1]|BODY[HEADER.FIELDS]|BODY[]<1>|BODY[HEADER.FIELDS ()]"
    b"|BODY[]<0.0>|XYZ|(ALL)|BODY[1HEADER]|FLAGS UID|BINARY|BINARY[TEXT]"
    b"|BINARY.SIZE[1]<0.1>|PREVIEW (X)|FLAGS (VANISHED)".split(b"|"),
)
def test_wrong_fetch_items_are_bad(text: bytes) -> None:
    """What the grammar does not have."""
    with pytest.raises(Bad):
        items(text)


def test_uid_fetch_always_has_the_uid() -> None:
    """RFC 3501 s. 6.4.8."""
    assert parse_uid_fetch(Cursor(b" 1:* FLAGS")).items == ("UID", "FLAGS")


def key(text: bytes) -> object:
    return parse_search(Cursor(b" " + text)).key


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"ALL", search.All()),
        (b"1,3:5", InSet(SequenceSet(((1, 1), (3, 5))), by_uid=False)),
        (b"UNSEEN (DELETED OR FLAGGED 2)", None),
        (b'SUBJECT "a b"', search.Header("Subject", "a b")),
        (b"HEADER X-Spam yes", search.Header("X-Spam", "yes")),
        (b"SINCE 1-Feb-2020", search.Date("internal", "since", datetime.date(2020, 2, 1))),
        (b'SENTBEFORE "31-Dec-1999"', search.Date("sent", "before", datetime.date(1999, 12, 31))),
        (b"KEYWORD $Junk", search.Keyword("$Junk", want=True)),
        (b"SMALLER 10", search.Octets(larger=False, octets=10)),
        (b"NOT UID 7:*", NotKey(InSet(SequenceSet(((7, 0),)), by_uid=True))),
        (b'MODSEQ "/flags/\\\\draft" all 620162338', search.ModSeq(620162338)),
        (b"$", InSet(SequenceSet((), saved=True), by_uid=False)),
        (b"UID $", InSet(SequenceSet((), saved=True), by_uid=True)),
        (b"YOUNGER 60", Age(younger=True, seconds=60)),
        (b"OLDER 60", Age(younger=False, seconds=60)),
        (b"EMAILID M-1_a", HasId("M-1_a")),
        (b"THREADID T1", NotKey(search.All())),
        (b"SAVEDBEFORE 1-Feb-2020", search.Date("saved", "before", datetime.date(2020, 2, 1))),
        (b"CHARSET utf-8 BODY {3}\r\n", search.Text("ä!", headers=False)),
    ],
)
def test_search_keys(text: bytes, expected: object) -> None:
    """RFC 3501 s. 6.4.4."""
    found = parse_search(Cursor(b" " + text, ["ä!".encode()])).key
    if expected is not None:
        assert found == expected
    else:
        assert isinstance(found, AllOf)
        assert isinstance(found.keys[1], AllOf)
        assert isinstance(found.keys[1].keys[1], EitherOf)


@pytest.mark.parametrize(
    "text", [b"", b"BEFORE 31-Feb-2020", b"FROM", b"OR ALL", b"NOT", b"()", b"(ALL", b"ALL)", b"LARGER x", b"OLDER 0"]
)
def test_wrong_search_keys_are_bad(text: bytes) -> None:
    """What the grammar does not have."""
    with pytest.raises(Bad):
        key(text)


@given(st.integers(1, 12), st.integers(1, 12), st.booleans(), st.integers(0, 10))
def test_windows_are_what_the_rfc_says(one: int, two: int, from_end: bool, count: int) -> None:
    """RFC 9394 s. 3.1: results by their number, from the first or from the last; either end may come first."""
    sign = "-" if from_end else ""
    found = parse_search(Cursor(f" RETURN (PARTIAL {sign}{one}:{sign}{two}) ALL".encode()))
    assert isinstance(found.window, Window)
    results = list(range(100, 100 + count))
    ordered = results[::-1] if from_end else results
    wanted = [uid for number, uid in enumerate(ordered, 1) if min(one, two) <= number <= max(one, two)]
    assert found.window.of(results) == sorted(wanted)


def test_unknown_charset_is_left_to_the_session() -> None:
    """RFC 3501 s. 6.4.4, 7.1; RFC 5182 s. 2.1: with SAVE the refusal has an effect."""
    found = parse_search(Cursor(b" RETURN (SAVE) CHARSET X-UNKNOWN ALL"))
    assert found.bad_charset
    assert found.saves


def test_sets_in_search_become_uids_of_the_view() -> None:
    """Only the session knows what a sequence number means."""
    view = array("I", [10, 20, 30])

    def ranges(messages: SequenceSet, by_uid: bool) -> tuple[tuple[int, int], ...]:
        at = messages.uids(view) if by_uid else messages.numbers(view)
        return tuple((view[a], view[b - 1]) for a, b in at)

    found = resolve(key(b"OR 2:* NOT UID 5:25"), Known(ranges, lambda _: (), 0))  # type: ignore[arg-type]
    assert found == search.Or(search.Uids(((20, 30),)), search.Not(search.Uids(((10, 20),))))


sets = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=8).map(
    lambda ranges: SequenceSet(tuple(ranges))
)


@given(sets)
def test_sequence_set_round_trip(messages: SequenceSet) -> None:
    """parse ∘ write = id."""
    assert SequenceSet.parse(bytes(messages)) == messages


@given(sets, st.lists(st.integers(1, 60), unique=True, max_size=30))
def test_uid_sets_mean_what_the_rfc_says(messages: SequenceSet, uids: list[int]) -> None:
    """RFC 3501 s. 9: ranges in either order, `*` the largest UID, UIDs that don't exist are passed over."""
    view = array("I", sorted(uids))
    wanted = set()
    for a, b in messages.ranges:
        if view or (a and b):
            first, last = sorted((a or view[-1], b or view[-1]))
            wanted |= set(range(first, last + 1))
    assert list(select(view, messages.uids(view))) == [uid for uid in view if uid in wanted]


@given(sets, st.integers(0, 45))
def test_numbers_above_the_count_are_bad(messages: SequenceSet, count: int) -> None:
    """RFC 3501 s. 9: "the server should respond BAD to a command that uses a number greater than …"."""
    view = array("I", range(100, 100 + count))
    highest = (
        max(max(a, b) for a, b in messages.ranges if count or (a and b) or (a, b) == (-1, -1))
        if (count or any(a and b for a, b in messages.ranges))
        else 0
    )
    if highest > count:
        with pytest.raises(Bad):
            messages.numbers(view)
    else:
        assert all(0 <= a < b <= count for a, b in messages.numbers(view))


@pytest.mark.parametrize(
    "text", [b"", b"0", b"1:", b":1", b",1", b"1,,2", b"1:2:3", b"4294967296", b"01", b"1-2", b"**"]
)
def test_wrong_sets_are_bad(text: bytes) -> None:
    """No zero, no leading zero, no empty member."""
    with pytest.raises(Bad):
        SequenceSet.parse(text)


@given(st.lists(st.integers(1, 50), unique=True))
def test_runs_keep_order_and_members(numbers: list[int]) -> None:
    """UIDs of COPYUID stand in matching order on both sides (RFC 4315 s. 3)."""
    text = runs(numbers)
    if not numbers:
        assert text == b""
        return
    expanded = [n for a, b in SequenceSet.parse(text).ranges for n in range(a, b + 1)]
    assert expanded == numbers


@given(st.integers(0, 4_102_444_800))
def test_internaldate_round_trip(unix_s: int) -> None:
    """RFC 3501 s. 9, date-time."""
    text = internaldate(unix_s)
    assert len(text) == 28
    assert parse_date_time(text[1:-1]) == unix_s


@given(st.binary(max_size=40).filter(lambda text: b"\x00" not in text))
def test_strings_round_trip(text: bytes) -> None:
    """A string written is the string read, quoted or as a literal."""
    for written in (string(text), astring(text)):
        head, _, literal = written.partition(b"}\r\n")
        cursor = Cursor(head + b"}\r\n", [literal]) if written.startswith(b"{") else Cursor(written)
        assert cursor.astring() == text
        cursor.end()


@given(st.dictionaries(st.text('ab/ü\\"', min_size=1, max_size=8), st.none() | st.binary(max_size=20), max_size=3))
def test_metadata_round_trip(values: dict[str, bytes | None]) -> None:
    """RFC 5464 s. 5: what is written as a response is what SETMETADATA would take, name and values."""
    items = [("/private/" + name.encode().hex(), value) for name, value in values.items()]
    text = metadata_response(b"INBOX", items)
    literals = [value for _, value in items if value is not None]
    pieces = text.removeprefix(b"* METADATA ").removesuffix(b"\r\n")
    for value in literals:
        pieces = pieces.replace(b"}\r\n" + value, b"}\r\n", 1) if b"}\r\n" + value in pieces else pieces
    kept = [value for value in literals if not string(value).startswith(b'"')]
    if items:
        assert dict(parse_setmetadata(Cursor(b" " + pieces, kept)).values) == dict(items)


PEEK = BodyItem(b"BODY[]", Section(), peek=True)
TWO = frozenset({"MESSAGENEW", "MESSAGEEXPUNGE"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"none", Notify(())),
        (b"SET (personal none)", Notify((EventGroup("PERSONAL", (), frozenset()),))),
        (
            b"set status (selected (MessageNew (uid body[]) MessageExpunge)) (subtree Lists MailboxName)",
            Notify(
                (
                    EventGroup("SELECTED", (), TWO, ("UID", PEEK)),
                    EventGroup("SUBTREE", ("Lists",), frozenset({"MAILBOXNAME"})),
                ),
                status=True,
            ),
        ),
        # without the parentheses, as the examples of the RFC have it
        (
            b"SET (selected-delayed MessageExpunge MessageNew FlagChange)"
            b' (mailboxes (a "b c") MessageNew MessageExpunge)',
            Notify(
                (
                    EventGroup("SELECTED-DELAYED", (), TWO | {"FLAGCHANGE"}),
                    EventGroup("MAILBOXES", ("a", "b c"), TWO),
                )
            ),
        ),
        (b"SET (subscribed (SubscriptionChange)) (inboxes (ServerMetadataChange MailboxMetadataChange))", None),
    ],
)
def test_notify(text: bytes, expected: Notify | None) -> None:
    """RFC 5465 s. 8; items never make a message seen."""
    found = parse_notify(Cursor(b" " + text))
    assert expected is None or found == expected


@pytest.mark.parametrize(
    "text",
    b"|SET|SET STATUS|SET ()|SET (selected)|SET (selected ())|SET (subtree (MessageNew))|SET (mailboxes () NONE)|NONE x"
    b"|SET (everywhere NONE)|SET (personal NONE) x|SET (selected NONE"
    b"|SET (selected (MessageNew () MessageExpunge))".split(b"|"),
)
def test_wrong_notify_is_bad(text: bytes) -> None:
    """What the grammar does not have."""
    with pytest.raises(Bad):
        parse_notify(Cursor(b" " + text))


def test_catenate_of_more_parts_than_allowed_is_bad() -> None:
    """Each part may be a file to read."""
    text = b" x CATENATE (" + b" ".join([b'URL "/INBOX/;UID=1"'] * 129) + b")"
    with pytest.raises(Bad):
        parse_append(Cursor(text))
    found = parse_append(Cursor(text.replace(b' URL "/INBOX/;UID=1")', b")"))).messages[0].content
    assert found == (UrlPart("/INBOX/;UID=1"),) * 128


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_mailbox_names_round_trip(name: str) -> None:
    """RFC 3501 s. 5.1.3: what is written in modified UTF-7 is read back the same."""
    assert decoded(Cursor(encoded(name)).astring()) == name


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("*", "a.b.c", True),
        ("%", "a.b", False),
        ("%", "a", True),
        ("a.%", "a.b", True),
        ("a.%", "a.b.c", False),
        ("a*c", "a.b.c", True),
        ("%.%", "a.b", True),
        ("a.b", "a.b", True),
        ("a.b", "axb", False),
        ("%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%x", "y" * 200, False),
        ("*%*%*%*%*%*%*%*%*%*x", "y" * 200, False),
    ],
)
def test_list_patterns(pattern: str, name: str, matches: bool) -> None:
    """RFC 3501 s. 6.3.8; many wildcards cost no more than one."""
    assert matcher(pattern, ".")(name) is matches


def test_list_options() -> None:
    """RFC 5258, RFC 5819."""
    found = parse_list(Cursor(b' (SUBSCRIBED) "" ("a" b%) RETURN (CHILDREN STATUS (MESSAGES UNSEEN))'))
    assert found == ListMailboxes(
        "", ("a", "b%"), frozenset({"SUBSCRIBED"}), frozenset({"CHILDREN"}), ("MESSAGES", "UNSEEN"), extended=True
    )


def test_inbox_has_one_spelling_and_stands_outside_the_prefix() -> None:
    """RFC 3501 s. 5.1: INBOX in any case, also as a first level; nothing else is folded."""
    plain, prefixed = Namespace("", "."), Namespace("INBOX.", ".")
    assert plain.to_store("inbox") == "INBOX"
    assert plain.to_store("Inbox.sub") == "INBOX.sub"
    assert plain.to_store("inboxes") == "inboxes"
    assert prefixed.to_store("iNBOX.Trash") == "Trash"
    assert prefixed.to_store("INBOX") == "INBOX"
    assert prefixed.on_wire("Trash") == b"INBOX.Trash"
    with pytest.raises(No):
        prefixed.to_store("Trash")


def test_table_names_what_may_send_expunge() -> None:
    """RFC 3501 s. 7.4.1: FETCH, STORE and SEARCH must not; their UID forms may."""
    quiet = {name for name, row in TABLE.items() if row.changes.name == "NO_EXPUNGE"}
    assert quiet == {b"FETCH", b"STORE", b"SEARCH", b"SORT", b"THREAD"}
