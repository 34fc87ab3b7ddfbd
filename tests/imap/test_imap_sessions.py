"""Sessions as a whole: TLS, limits, time, streaming, push, and a client we did not write."""

from __future__ import annotations

import asyncio
import email
import gc
import imaplib
import logging
import ssl
import weakref
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from imap_rig import ALICE, Client, Rig, running
from support.tls import TlsFiles
from support.wait import wait_until

from pymx.config.model import Imap
from pymx.imapd.session import Session
from pymx.ms.store import Append
from pymx.spool import Content

MESSAGE = b"From: a@example.test\r\nTo: b@example.test\r\nSubject: hello\r\n\r\nText\r\n"


def sessions_of(rig: Rig) -> list[Session]:
    return [each for each in rig.sessions._live if isinstance(each, Session)]


async def ended(client: Client) -> list[bytes]:
    """What is said until the connection ends."""
    lines = []
    while line := await client.line():
        lines.append(line)
    return lines


async def test_login_is_refused_before_tls_and_works_after_it(rig: Rig) -> None:
    """RFC 3501 s. 6.2.1, 6.2.3: LOGINDISABLED; capabilities change with STARTTLS."""
    client = await rig.connect(starttls=True)
    assert b"STARTTLS LOGINDISABLED" in (await client.ask("CAPABILITY"))[0]
    assert (await client.ask("LOGIN alice@example.test secret"))[-1].startswith(b"NO [PRIVACYREQUIRED]")
    assert (await client.ask("AUTHENTICATE PLAIN"))[-1].startswith(b"NO [PRIVACYREQUIRED]")
    await client.ok("STARTTLS")
    await client.writer.start_tls(rig.tls, server_hostname="localhost")
    assert b"LOGINDISABLED" not in (await client.ask("CAPABILITY"))[0]
    await client.ok("LOGIN alice@example.test secret")
    assert (await client.ask("STARTTLS"))[-1].startswith(b"BAD")
    await client.ok("SELECT INBOX")
    await client.close()


async def test_what_follows_starttls_in_plain_text_is_dropped(rig: Rig) -> None:
    """RFC 3501 s. 6.2.1, CVE-2011-0411: a man in the middle must not put a command in front of the client's."""
    client = await rig.connect(starttls=True)
    client.send(b"a STARTTLS\r\nb CAPABILITY\r\n")
    assert (await client.line()).startswith(b"a OK")
    await client.writer.start_tls(rig.tls, server_hostname="localhost")
    client.send(b"c NOOP\r\n")
    assert await client.line() == b"c OK NOOP completed."
    await client.close()


async def test_broken_tls_handshake_ends_the_session(rig: Rig) -> None:
    """Nothing may be left behind by a client that says STARTTLS and then nonsense."""
    client = await rig.connect(starttls=True)
    client.send(b"a STARTTLS\r\n")
    await client.line()
    client.send(b"this is no handshake\r\n" * 10)
    await wait_until(lambda: len(rig.sessions) == 0)
    await client.close()


async def test_database_away_is_temporary(rig: Rig) -> None:
    """RFC 5530: UNAVAILABLE, not AUTHENTICATIONFAILED, or clients ask for a new password."""
    rig.accounts.down = True
    client = await rig.connect()
    assert (await client.ask("LOGIN alice@example.test secret"))[-1].startswith(b"NO [UNAVAILABLE]")
    await client.close()


async def test_folders_are_made_and_subscribed_at_first_login(rig: Rig) -> None:
    """Special uses can be found by RFC 6154 and by name."""
    client = await rig.login()
    lines = await client.ok('LIST (SUBSCRIBED) "" "*"')
    assert {line.split()[-1] for line in lines[:-1]} >= {b"Drafts", b"Sent", b"Junk", b"Trash", b"Archive"}
    await client.close()


async def test_logout_says_bye_and_closes_tls(rig: Rig) -> None:
    """RFC 3501 s. 6.1.3; clients wait for the close_notify."""
    client = await rig.select()
    assert await client.ask("LOGOUT") == [b"* BYE Logging out", b"OK Logout completed."]
    assert await client.line() == b""
    await client.close()
    await wait_until(lambda: len(rig.sessions) == 0)


async def test_too_many_bad_commands_end_the_session(tmp_path: Path, tls_files: TlsFiles) -> None:
    """[imap] max_errors; a failed login counts."""
    async with running(tmp_path, tls_files, imap=Imap(max_errors=3)) as rig:
        client = await rig.connect()
        for n in range(2):
            client.send(b"a%d NONSENSE\r\n" % n)
        client.send(b"b LOGIN x y\r\n")
        lines = await ended(client)
        assert lines[-1] == b"* BYE Too many bad commands."
        await client.close()


async def test_bad_commands_now_and_then_do_not_end_a_session(tmp_path: Path, tls_files: TlsFiles) -> None:
    """A client that tries an extension in each of its rounds may go on for days."""
    async with running(tmp_path, tls_files, imap=Imap(max_errors=3)) as rig:
        client = await rig.select()
        for _ in range(5):
            assert (await client.ask("XFROB INBOX"))[-1].startswith(b"BAD")
            await client.ok("NOOP")
        await client.close()


async def test_unknown_clients_may_send_little(rig: Rig) -> None:
    """Buffers before login are small; after it a long command is in order."""
    client = await rig.connect()
    assert (await client.ask("LOGIN {40000}"))[-1] == b"BAD [TOOBIG] Literal is too large"
    assert (await client.ask("NOOP " + "x" * 40_000))[-1] == b"BAD [TOOBIG] Command line is too long"
    await client.ok("LOGIN alice@example.test secret")
    await client.ok("SELECT INBOX")
    await client.ok("UID FETCH " + ",".join(str(n) for n in range(1, 20_000, 3)) + " FLAGS")
    await client.close()


async def test_connections_over_the_cap_are_turned_away(tmp_path: Path, tls_files: TlsFiles) -> None:
    """[imap] max_connections_per_ip; a place is free again when a session ends."""
    async with running(tmp_path, tls_files, imap=Imap(max_connections_per_ip=1)) as rig:
        first = await rig.connect()
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port, ssl=rig.tls, server_hostname="localhost")
        second = Client(reader, writer, rig.tls)
        assert await second.line() == b"* BYE [UNAVAILABLE] Too many connections."
        assert await second.line() == b""
        await second.close()
        await first.ask("LOGOUT")
        await first.close()
        await wait_until(lambda: len(rig.sessions) == 0)
        third = await rig.login()
        await third.close()


async def test_silent_clients_are_logged_out(rig: Rig) -> None:
    """RFC 3501 s. 5.4: not before 30 minutes; before login much sooner; in IDLE they hear "still here" each 2 min."""
    anonymous, quiet, idling = await rig.connect(), await rig.select(), await rig.select()
    idling.send(b"a IDLE\r\n")
    assert await idling.line() == b"+ idling"
    await wait_until(lambda: all(each._task is None for each in sessions_of(rig)))
    now = asyncio.get_running_loop().time()

    def sweep(after_s: float) -> None:
        for each in sessions_of(rig):
            each.sweep(now + after_s)

    sweep(30)
    sweep(61)
    assert await ended(anonymous) == [b"* BYE Timed out waiting for a login."]
    sweep(125)
    assert await idling.line() == b"* OK Still here"
    sweep(1800)
    assert await quiet.ask("NOOP") == [b"OK NOOP completed."]
    sweep(1900)
    assert await ended(quiet) == [b"* BYE Autologout; idle for too long."]
    assert (await ended(idling))[-1] == b"* BYE Autologout; idle for too long."
    for client in (anonymous, quiet, idling):
        await client.close()


async def test_shutdown_says_bye_at_once(rig: Rig) -> None:
    """SIGTERM drains: BYE to everybody, also in IDLE and in the middle of AUTHENTICATE."""
    clients = [await rig.select(), await rig.select(), await rig.connect()]
    clients[1].send(b"a IDLE\r\n")
    assert await clients[1].line() == b"+ idling"
    clients[2].send(b"a AUTHENTICATE PLAIN\r\n")
    assert await clients[2].line() == b"+ "
    assert await rig.sessions.drain(5) == 0
    assert await ended(clients[0]) == [b"* BYE Server is shutting down."]
    assert await ended(clients[1]) == [b"* BYE Server is shutting down."]
    assert await ended(clients[2]) == [b"* BYE Server is shutting down."]
    for client in clients:
        await client.close()


async def test_idle_hears_of_a_delivery_at_once(rig: Rig) -> None:
    """Target: half of the pushes within 20 ms of the delivery's end."""
    client = await rig.select()
    client.send(b"a IDLE\r\n")
    assert await client.line() == b"+ idling"
    loop = asyncio.get_running_loop()
    waits = []
    for n in range(1, 21):
        await rig.deliver(MESSAGE)
        start = loop.time()
        assert await client.line() == b"* %d EXISTS" % n
        waits.append(loop.time() - start)
        assert (await client.line()).endswith(b"RECENT")
    assert sorted(waits)[10] < 0.1, waits
    await client.close()


async def test_idle_at_rest_has_no_task(rig: Rig) -> None:
    """Thousands of idle sessions cost memory only, and little of that."""
    client = await rig.select()
    client.send(b"a IDLE\r\n")
    assert await client.line() == b"+ idling"
    await wait_until(lambda: all(each._task is None for each in sessions_of(rig)))
    client.send(b"DONE\r\n")
    assert await client.line() == b"a OK Idle completed."
    await client.close()


async def test_body_sets_seen_and_tells_it_once(rig: Rig) -> None:
    """RFC 3501 s. 6.4.5: BODY[] sets \\Seen and includes the flags; BODY.PEEK[] does not."""
    await rig.deliver(MESSAGE)
    client = await rig.select()
    assert b"FLAGS" not in (await client.ok("FETCH 1 BODY.PEEK[TEXT]"))[0]
    lines = await client.ok("FETCH 1 (UID BODY[TEXT])")
    assert lines[0] == b"* 1 FETCH (UID 1 FLAGS (\\Seen \\Recent) BODY[TEXT] {6}\r\nText\r\n)"
    assert len(lines) == 2
    assert b"FLAGS" not in (await client.ok("FETCH 1 BODY[TEXT]"))[0]
    await client.close()


async def test_other_session_hears_of_seen(rig: Rig) -> None:
    """Flag changes of one session reach the other at its next command."""
    await rig.deliver(MESSAGE)
    first, second = await rig.select(), await rig.select()
    await first.ok("FETCH 1 RFC822")
    assert await second.ok("NOOP") == [b"* 1 FETCH (FLAGS (\\Seen))", b"OK NOOP completed."]
    await first.close()
    await second.close()


async def test_large_message_is_streamed_whole_and_in_pieces(rig: Rig) -> None:
    """RFC 3501 s. 6.4.5: partial fetch is clamped at the end; together the pieces are the message."""
    body = b"".join(b"line %06d of a large message\r\n" % n for n in range(60_000))
    message = b"Subject: large\r\n\r\n" + body
    await rig.deliver(message)
    client = await rig.select()
    lines = await client.ok("FETCH 1 (RFC822.SIZE BODY.PEEK[])")
    head = b"* 1 FETCH (RFC822.SIZE %d BODY[] {%d}\r\n" % (len(message), len(message))
    assert lines[0] == head + message + b")"
    pieces, step = [], 300_000
    for offset in range(0, len(message) + step, step):
        line = (await client.ok(f"UID FETCH 1 BODY.PEEK[]<{offset}.{step}>"))[0]
        start = line.index(b"}\r\n") + 3
        assert line.startswith(b"* 1 FETCH (UID 1 BODY[]<%d> {%d}" % (offset, len(line) - start - 1))
        pieces.append(line[start:-1])
    assert b"".join(pieces) == message
    assert (await client.ok("FETCH 1 BODY.PEEK[HEADER]"))[0].endswith(b"{18}\r\nSubject: large\r\n\r\n)")
    await client.close()


async def test_fetch_waits_for_a_client_that_does_not_read(rig: Rig) -> None:
    """Back-pressure: what a slow client has not taken stays on disk, not in memory; then it gets everything."""
    message = b"Subject: large\r\n\r\n" + b"0123456789abcdef" * 65536
    for _ in range(3):
        await rig.deliver(message)
    client = await rig.select()
    client.send(b"x UID FETCH 1:* BODY.PEEK[]\r\n" * 10)
    await wait_until(lambda: any(each._paused for each in sessions_of(rig)))
    session = next(each for each in sessions_of(rig) if each._paused)
    assert session._client.octets_out < 30 * len(message)
    before = session._client.octets_out
    answers = 0
    while answers < 10:
        line = await client.line()
        assert message in line or line == b"x OK Fetch completed."
        answers += line.startswith(b"x")
    assert session._client.octets_out > before
    await client.close()


async def test_client_that_goes_away_in_the_middle_leaves_nothing(rig: Rig) -> None:
    """The task ends at the next thing it wants to send."""
    await rig.deliver(b"Subject: large\r\n\r\n" + b"0123456789abcdef" * 65536)
    client = await rig.select()
    client.send(b"x UID FETCH 1:* BODY.PEEK[]\r\n" * 20)
    await wait_until(lambda: any(each._paused for each in sessions_of(rig)))
    client.writer.transport.abort()
    await wait_until(lambda: len(rig.sessions) == 0)
    await client.close()


async def test_append_is_collected_while_it_comes(rig: Rig) -> None:
    """A literal of many packets; its octets are stored as they are and counted on the wire."""
    message = b"Subject: x\r\n\r\nbare\nand \x00 and \xff\r\n" + b"y" * 300_000
    client = await rig.select()
    client.send(b"a APPEND INBOX (\\Flagged) {%d}\r\n" % len(message))
    assert await client.line() == b"+ OK"
    for start in range(0, len(message), 50_000):
        client.send(message[start : start + 50_000])
        await client.writer.drain()
    client.send(b"\r\n")
    assert [line.split()[-1] for line in (await client.answer("a"))[:2]] == [b"EXISTS", b"RECENT"]
    lines = await client.ok("FETCH 1 (FLAGS RFC822.SIZE BODY[])")
    stored = message.replace(b"bare\nand", b"bare\r\nand")
    assert lines[0].startswith(b"* 1 FETCH (FLAGS (\\Flagged \\Seen \\Recent) RFC822.SIZE %d BODY[] {" % len(stored))
    assert lines[0].endswith(stored + b")")
    await client.close()


async def test_quota_refuses_an_append(rig: Rig) -> None:
    """RFC 5530: OVERQUOTA."""
    client = await rig.select()
    session = next(iter(sessions_of(rig)))
    session._client.owner = type(ALICE)("example.test", "alice", 100)
    assert (await client.ask(b"APPEND INBOX {200+}\r\n" + b"x" * 200))[-1].startswith(b"NO [OVERQUOTA]")
    await client.close()


async def test_many_keywords_and_odd_ones(rig: Rig) -> None:
    """Clients use ] and $ in keywords; what is too long is refused with a code."""
    await rig.deliver(MESSAGE)
    client = await rig.select()
    names = ["$Forwarded", "a]b", "NonJunk", *(f"label{n}" for n in range(20))]
    await client.ok(f"STORE 1 +FLAGS.SILENT ({' '.join(names)})")
    line = (await client.ok("FETCH 1 FLAGS"))[0].decode()
    assert set(line[line.index("(FLAGS (") + 8 : -2].split()) == {"\\Recent", *names}
    assert (await client.ask(f"STORE 1 +FLAGS ({'x' * 51})"))[-1].startswith(b"NO [LIMIT]")
    await client.close()


async def test_selected_mailbox_deleted_by_another_session(rig: Rig) -> None:
    """The view of a mailbox that is gone can't be kept up: BYE, and the client comes again."""
    first, second = await rig.login(), await rig.login()
    await first.ok("CREATE gone")
    await second.ok("SELECT gone")
    await first.ok("DELETE gone")
    second.send(b"a NOOP\r\n")
    assert await ended(second) == [b"* BYE Selected mailbox is gone."]
    await first.ok("CREATE mine")
    await first.ok("SELECT mine")
    await first.ok("DELETE mine")
    assert (await first.ask("CHECK"))[-1].startswith(b"BAD")
    await first.close()
    await second.close()


async def test_rename_of_the_selected_mailbox_keeps_it_selected(rig: Rig) -> None:
    """Also of one above it; its messages stay what they were."""
    client = await rig.login()
    await client.ok("CREATE a.b")
    await client.append(MESSAGE, "a.b")
    await client.ok("SELECT a.b")
    assert await client.ask("RENAME a c.d") == [b"OK Rename completed."]
    assert (await client.ok("FETCH 1 UID"))[0] == b"* 1 FETCH (UID 1)"
    await client.append(MESSAGE, "c.d.b")
    assert (await client.ok("FETCH 2 UID"))[0] == b"* 2 FETCH (UID 2)"
    await client.close()


async def test_failed_select_leaves_nothing_selected(rig: Rig) -> None:
    """RFC 3501 s. 6.3.1."""
    client = await rig.select()
    assert (await client.ask("SELECT nowhere"))[-1].startswith(b"NO [NONEXISTENT]")
    assert (await client.ask("FETCH 1 FLAGS"))[-1].startswith(b"BAD")
    await client.close()


async def test_users_see_their_own_mail_only(rig: Rig) -> None:
    """Two accounts on one server."""
    await rig.deliver(MESSAGE)
    client = await rig.select(user="bob", password="hidden")
    assert (await client.ok("STATUS INBOX (MESSAGES)"))[0] == b"* STATUS INBOX (MESSAGES 0)"
    await client.close()


async def test_names_that_would_leave_the_mailbox_are_refused(rig: Rig) -> None:
    """No path, no control character, no empty level becomes a directory."""
    client = await rig.login()
    for name in (
        b'"../x"',
        b'"a/../../b"',
        b'"..x"',
        b'"a..b"',
        b'""',
        b'"&AAA-"',
        b"{3+}\r\na\nb",
        b'"' + b"x" * 300 + b'"',
    ):
        answer = (await client.ask(b"CREATE " + name))[-1]
        assert answer.startswith(b"NO [CANNOT]"), (name, answer)
        assert (await client.ask(b"SELECT " + name))[-1].startswith(b"NO ["), name
    await client.close()


@dataclass
class Records(logging.Handler):
    """The log as a list."""

    def __post_init__(self) -> None:
        logging.Handler.__init__(self)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    __hash__ = object.__hash__


async def test_one_line_in_the_log_per_session(rig: Rig) -> None:
    """Who, from where, how much, and why it ended; never a password."""
    records = Records()
    logger = logging.getLogger("pymx.imapd")
    logger.addHandler(records)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        client = await rig.select()
        await client.ok('ID ("name" "Mail" "version" "1.2\\"")')
        await client.ok("LOGOUT")
        await client.close()
        await wait_until(lambda: len(rig.sessions) == 0)
    finally:
        logger.removeHandler(records)
        logger.setLevel(level)
    (record,) = records.records
    fields = record.__dict__["fields"]
    assert record.getMessage() == "imap_session"
    assert fields["account"] == "alice@example.test"
    assert fields["peer_ip"] == "127.0.0.1"
    assert fields["commands"] == 4
    assert fields["reason"] == "logout"
    assert fields["tls"] is True
    assert fields["client_id"] == 'Mail 1.2"'
    assert fields["size_octets"] > 100
    assert "secret" not in str(fields)


async def test_imaplib_as_a_client(rig: Rig, tls_files: TlsFiles) -> None:
    """A client we did not write does the round: append, search, fetch, flag, copy, expunge."""

    def work() -> None:
        with imaplib.IMAP4_SSL("localhost", rig.port, ssl_context=tls_files.client_context()) as client:
            client.login("alice@example.test", "secret")
            client.enable("CONDSTORE")
            assert client.create("Projects")[0] == "OK"
            status, data = client.append("Projects", "\\Flagged", imaplib.Time2Internaldate(1_000_000_000), MESSAGE)
            assert (status, b"APPENDUID" in data[0]) == ("OK", True)
            assert client.select("Projects") == ("OK", [b"1"])
            assert client.search(None, 'SUBJECT "hello"') == ("OK", [b"1"])
            status, fetched = client.fetch("1", "(INTERNALDATE RFC822)")
            assert isinstance(fetched[0], tuple)
            assert email.message_from_bytes(fetched[0][1])["Subject"] == "hello"
            assert imaplib.Internaldate2tuple(fetched[0][0]) is not None
            assert client.copy("1", "Archive")[0] == "OK"
            assert client.store("1", "+FLAGS", "\\Deleted")[0] == "OK"
            assert client.expunge() == ("OK", [b"1"])
            assert client.status("Archive", "(MESSAGES)") == ("OK", [b"Archive (MESSAGES 1)"])
            assert client.rename("Projects", "Old")[0] == "OK"
            assert client.namespace()[1] == [b'(("" ".")) NIL NIL']

    await asyncio.to_thread(work)


async def test_plain_login_without_a_certificate_is_for_this_machine(tmp_path: Path, tls_files: TlsFiles) -> None:
    """No certificate at all: only loopback may log in, which tests and tunnels need."""
    async with running(tmp_path, tls_files, without_tls=True) as rig:
        client = await rig.connect(starttls=True)
        assert b"AUTH=PLAIN" in (await client.ask("CAPABILITY"))[0]
        await client.ok("LOGIN alice@example.test secret")
        await client.close()


async def test_commands_before_a_half_close_are_answered(tmp_path: Path, tls_files: TlsFiles) -> None:
    """A script that sends everything and closes its side still gets its answers (plain text only)."""
    async with running(tmp_path, tls_files, without_tls=True) as rig:
        client = await rig.connect(starttls=True)
        client.send(b"a LOGIN alice@example.test secret\r\nb SELECT INBOX\r\nc LOGOUT\r\n")
        client.writer.write_eof()
        lines = await ended(client)
        assert lines[-1] == b"c OK Logout completed."
        await client.close()


async def test_message_whose_row_lies_about_its_size_cuts_the_connection(rig: Rig) -> None:
    """A literal that is shorter than announced can't be repaired; the client must not take what follows for it."""
    await rig.deliver(MESSAGE + b"z" * 400_000)
    client = await rig.select()
    mailbox = sessions_of(rig)[0]._client.selected

    class Shrunk:
        """The same mailbox, with a message that is shorter than its row says."""

        def __init__(self) -> None:
            self.octets = 500_000

        async def chunks(self) -> AsyncIterator[bytes]:
            yield b"short"

    async def messages(uids: object) -> AsyncIterator[tuple[int, Shrunk]]:
        yield 1, Shrunk()

    mailbox.messages = messages  # type: ignore[assignment,method-assign]
    client.send(b"x FETCH 1 BODY.PEEK[]\r\n")
    with suppress(asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
        assert b"FETCH" not in await client.line()
    await wait_until(lambda: len(rig.sessions) == 0)
    await client.close()


async def test_flags_of_many_messages_are_streamed_in_order(rig: Rig) -> None:
    """Batches join up: every number and UID once, keywords and \\Recent right on both sides of a batch."""
    content = Content.from_bytes(MESSAGE)
    for _ in range(12):
        await rig.store.append(ALICE, "INBOX", [Append(content, 0, (), None) for _ in range(100)])
    client = await rig.select()
    await client.ok("STORE 5:1100 +FLAGS.SILENT ($x)")
    lines = await client.ok("UID FETCH 1:* (FLAGS)")
    assert len(lines) == 1201
    for number, line in enumerate(lines[:-1], 1):
        keyword = b" $x" if 5 <= number <= 1100 else b""
        assert line == b"* %d FETCH (UID %d FLAGS (\\Recent%b))" % (number, number, keyword)
    assert (await client.ok("UID SEARCH KEYWORD $X"))[0] == b"* SEARCH " + b" ".join(b"%d" % n for n in range(5, 1101))
    assert (await client.ok("SEARCH RETURN (ALL) UNKEYWORD $x"))[0].endswith(b"ALL 1:4,1101:1200")
    await client.close()


async def test_an_ended_session_does_not_wait_for_the_garbage_collector(rig: Rig) -> None:
    """In a cycle it would stay for hours: full collections are rare in a process with many objects."""
    uv = type(asyncio.get_running_loop()).__module__.startswith("uvloop")
    # asyncio's TLS has cycles of its own
    client = await (rig.select() if uv else rig.connect(starttls=True))
    await client.ask("NOOP")
    (session,) = sessions_of(rig)
    left = weakref.ref(session)
    del session
    gc.disable()
    try:
        await client.close()
        await wait_until(lambda: left() is None)
    finally:
        gc.enable()
