"""The receiver: every case whole, octet by octet and with more behind it; limits; and nothing but its own errors."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.proto.imap.errors import ImapError
from pymx.proto.imap.lexer import Cursor
from pymx.proto.imap.receiver import Continuation, LineTooLong, Receiver, Refused, Request


class Collect:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.data = b""

    def feed(self, data: bytes) -> None:
        self.data += data

    def finish(self) -> object:
        return [self.data]


def receiver(*, line: int = 200, append: int = 0, swallow: int = 0) -> Receiver:
    made = Receiver(max_line_octets=line, make_sink=Collect)
    made.append_limit, made.swallow_limit = append, swallow
    return made


def told(event: object) -> object:
    """An event in a form that compares."""
    if not isinstance(event, Request):
        return "+" if isinstance(event, Continuation) else event
    cursor, rest = event.arguments, []
    while not cursor.at_end():
        if cursor.peek() == 0x7B:
            rest.append(cursor.literal())
        elif cursor.skip(b" "):
            continue
        elif cursor.peek() in b"()":
            rest.append(bytes([cursor.peek()]))
            cursor.expect(rest[-1])
        else:
            rest.append(cursor.astring())
    return (event.tag, event.name, rest)


def events(made: Receiver, pieces: list[bytes]) -> list[object]:
    found = []
    for piece in pieces:
        made.feed(piece)
        while (event := made.next_event()) is not None:
            found.append(told(event))
    return found


TOO_LARGE = Refused(b"a", "NO", "TOOBIG", "Message is too large")
BAD_LITERAL = Refused(b"a", "BAD", "TOOBIG", "Literal is too large")
TOO_LONG = Refused(b"a", "BAD", "TOOBIG", "Command line is too long")

CASES = [
    (b"a noop\r\n", [(b"a", b"NOOP", [])]),
    (b"a noop\n", [(b"a", b"NOOP", [])]),
    (b"a Uid Fetch 1 x\r\n", [(b"a", b"UID FETCH", [b"1", b"x"])]),
    (b"a login {2}\r\nxy {0}\r\n\r\n", ["+", "+", (b"a", b"LOGIN", [b"xy", b""])]),
    (b"a login {2+}\r\nxy {3+}\r\n\r\n{\r\n", [(b"a", b"LOGIN", [b"xy", b"\r\n{"])]),
    (b'a login "{3}" x\r\n', [(b"a", b"LOGIN", [b"{3}", b"x"])]),
    (b"\r\n", [Refused(b"*", "BAD", "", "Missing tag or command")]),
    (b"+ noop\r\n", [Refused(b"*", "BAD", "", "Missing tag or command")]),
    (b"a \xff\r\n", [Refused(b"a", "BAD", "", "Missing command")]),
    (b"a uid\r\n", [Refused(b"a", "BAD", "", "Missing command after UID")]),
    (b"a append x {5}\r\nhello\r\n", ["+", (b"a", b"APPEND", [b"x", [b"hello"]])]),
    (b"a append {1+}\r\nx {5+}\r\nhello\r\n", [(b"a", b"APPEND", [b"x", [b"hello"]])]),
    # REPLACE (RFC 8508) brings a message too, and literal8 (RFC 3516) may hold NUL
    (b"a uid replace 4 x {5+}\r\nhello\r\n", [(b"a", b"UID REPLACE", [b"4", b"x", [b"hello"]])]),
    (b"a replace 4 {1+}\r\nx {5}\r\nhello\r\n", ["+", (b"a", b"REPLACE", [b"4", b"x", [b"hello"]])]),
    # CATENATE (RFC 4469): texts go where messages go, URLs don't, whatever the mailbox is called
    (
        b"a append x catenate (url {3+}\r\n/;1 text {2+}\r\nhi url {2}\r\nyo text {1}\r\n!)\r\n",
        [
            "+",
            "+",
            (
                b"a",
                b"APPEND",
                [b"x", b"catenate", b"(", b"url", b"/;1", b"text", [b"hi"], b"url", b"yo", b"text", [b"!"], b")"],
            ),
        ],
    ),
    (b"a append url {2+}\r\nhi\r\n", [(b"a", b"APPEND", [b"url", [b"hi"]])]),
    (
        b"a replace 1 x catenate (url {3+}\r\n/;1 text {2+}\r\nhi)\r\n",
        [(b"a", b"REPLACE", [b"1", b"x", b"catenate", b"(", b"url", b"/;1", b"text", [b"hi"], b")"])],
    ),
    (b"a append x catenate (url {300}\r\n", [BAD_LITERAL]),
    (b"a append x catenate ({3+}\r\nabc)\r\n", [(b"a", b"APPEND", [b"x", b"catenate", b"(", [b"abc"], b")"])]),
    (
        b"a setmetadata {1+}\r\nx (/a ~{2+}\r\n\x00b)\r\n",
        [(b"a", b"SETMETADATA", [b"x", b"(", b"/a", b"~", b"\x00b", b")"])],
    ),
    (b"a append x ~{5+}\r\nhe\x00lo\r\n", [(b"a", b"APPEND", [b"x", b"~", [b"he\x00lo"]])]),
    (
        b"a APPEND x {2+}\r\nhi {3+}\r\nyou\r\nb noop\r\n",
        [(b"a", b"APPEND", [b"x", [b"hi"], [b"you"]]), (b"b", b"NOOP", [])],
    ),
    (b"a append x {5}\r\n" + b"\r\n\r\n\r\r\n", ["+", (b"a", b"APPEND", [b"x", [b"\r\n\r\n\r"]])]),
    (b"a append x {1001}\r\nb noop\r\n", [TOO_LARGE, (b"b", b"NOOP", [])]),
    (
        b"a append x {1001+}\r\n" + b"b noop\r\n" * 100 + b"x" * 201 + b"\r\nb noop\r\n",
        [TOO_LARGE, (b"b", b"NOOP", [])],
    ),
    (b"a login {201}\r\nb noop\r\n", [BAD_LITERAL, (b"b", b"NOOP", [])]),
    (
        b"a login {150+}\r\n" + b"x" * 150 + b" {100+}\r\n" + b"y" * 100 + b"\r\nb noop\r\n",
        [BAD_LITERAL, (b"b", b"NOOP", [])],
    ),
    (b"a noop " + b"x" * 300 + b"\r\nb noop\r\n", [TOO_LONG, (b"b", b"NOOP", [])]),
    (b"a noop " + b"x" * 300 + b"{5}\r\nb noop\r\n", [TOO_LONG, (b"b", b"NOOP", [])]),
]


@pytest.mark.parametrize(("data", "expected"), CASES)
@pytest.mark.parametrize("more", [b"", b"z NOOP\r\n", b"z NO"])
def test_input_gives_the_same_events_however_it_is_cut(data: bytes, expected: list[object], more: bytes) -> None:
    """RFC 3501 s. 2.2: a command is what it is, whole, octet by octet, or with the next one behind it."""
    expected = [*expected, (b"z", b"NOOP", [])] if more.endswith(b"\n") else expected
    data += more
    for pieces in ([data], [data[i : i + 1] for i in range(len(data))], [data[:7], data[7:]]):
        assert events(receiver(append=1000, swallow=4000), pieces) == expected


def test_unasked_literal_over_the_swallow_limit_ends_the_session() -> None:
    """RFC 7888 s. 4: what can't be swallowed can only be cut off."""
    found = events(receiver(append=1000, swallow=4000), [b"a append x {4001+}\r\n"])
    assert found == [Refused(b"a", "NO", "TOOBIG", "Message is too large", fatal=True)]


def test_too_long_line_with_an_unasked_literal_ends_the_session() -> None:
    """The literal of a command that nobody read must not be taken for commands."""
    found = events(receiver(), [b"a noop " + b"x" * 300 + b"{9+}\r\nb noop\r\n"])
    assert found[0] == Refused(b"a", "BAD", "TOOBIG", "Command line is too long", fatal=True)


def test_append_before_login_has_small_literals_only() -> None:
    """Without a limit for messages there is no sink."""
    assert events(receiver(), [b"a append x {500}\r\n"]) == [BAD_LITERAL]


def test_too_many_messages_in_one_append_are_refused() -> None:
    """Each of them costs memory or a file."""
    data = b"a append x" + b" {1+}\r\nx" * 129 + b"\r\nb noop\r\n"
    found = events(receiver(line=10_000, append=10, swallow=400), [data])
    assert found == [Refused(b"a", "NO", "LIMIT", "Too many messages in one APPEND"), (b"b", b"NOOP", [])]


def test_many_words_between_many_literals_take_no_time() -> None:
    """Each literal of a long APPEND is looked at, whether it is a URL's, while everybody waits."""
    made = receiver(line=65_536, append=1000)
    before = time.process_time()
    assert events(made, [b"a append x" + b" CATENATE (" * 5000 + b"xURL {1+}\r\nx" * 100 + b"\r\n"])
    assert time.process_time() - before < 1


@pytest.mark.parametrize("command", [b"a append x %b\r\n", b"a append x catenate (%b)\r\n"])
def test_messages_of_one_command_are_bounded_together(command: bytes) -> None:
    """MULTIAPPEND and CATENATE: 128 times the size of a message would fill the disk before anybody counts."""
    text = b"text " if b"catenate" in command else b""
    four = b" ".join([text + b"{900+}\r\n" + b"x" * 900] * 4)
    made = receiver(line=2000, append=1000, swallow=3000)
    assert events(made, [command % four, b"b noop\r\n"]) == [
        Refused(b"a", "NO", "TOOBIG", "The messages of one APPEND are too large together"),
        (b"b", b"NOOP", []),
    ]


def test_memory_stays_bounded_in_a_line_without_end() -> None:
    """A line over the limit is dropped as it comes."""
    made = receiver()
    for _ in range(1000):
        made.feed(b"x" * 1000)
        made.next_event()
    assert made.buffered_octets < 2000


def test_lines_of_authenticate_are_read_as_they_are() -> None:
    """RFC 3501 s. 6.2.2: between command and tagged reply the client sends bare lines, with the same limit."""
    made = receiver()
    made.feed(b"a authenticate plain\r\nAGE")
    assert told(made.next_event()) == (b"a", b"AUTHENTICATE", [b"plain"])
    assert made.next_line() is None
    made.feed(b"B\r\nb noop\r\n")
    assert made.next_line() == b"AGEB"
    assert told(made.next_event()) == (b"b", b"NOOP", [])
    made.feed(b"x" * 500)
    with pytest.raises(LineTooLong):
        made.next_line()


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.sampled_from(
                [
                    b"a ",
                    b"\r\n",
                    b"{3}\r\n",
                    b"{3+}\r\n",
                    b"{999+}\r\n",
                    b"APPEND x ",
                    b'"',
                    b"UID ",
                    b"FETCH",
                    b"(",
                    b"{",
                ]
            ),
        ),
        max_size=30,
    ),
    st.integers(0, 50),
)
def test_any_octets_give_events_or_nothing(pieces: list[bytes], append: int) -> None:
    """Never an exception, and the same events in one piece as in many."""
    whole, parts = receiver(append=append, swallow=200), receiver(append=append, swallow=200)

    def run(made: Receiver, given: list[bytes]) -> list[object]:
        found: list[object] = []
        for piece in given:
            made.feed(piece)
            while (event := made.next_event()) is not None:
                if isinstance(event, Refused) and event.fatal:
                    return [*found, event]
                found.append((event.tag, event.name) if isinstance(event, Request) else event)
        return found

    assert run(whole, [b"".join(pieces)]) == run(parts, pieces)


@given(st.binary(max_size=60), st.lists(st.binary(max_size=5), max_size=3))
def test_cursor_raises_only_our_errors(data: bytes, literals: list[bytes]) -> None:
    """Every word reader on any octets."""
    readers = (
        Cursor.atom,
        Cursor.word,
        Cursor.astring,
        Cursor.string,
        Cursor.nstring,
        Cursor.number,
        Cursor.sequence_set,
        Cursor.flag_list,
        Cursor.flag,
        Cursor.literal,
        Cursor.list_mailbox,
        Cursor.item,
        Cursor.space,
        Cursor.end,
    )
    for reader in readers:
        try:
            reader(Cursor(data, literals))
        except ImapError:
            continue
