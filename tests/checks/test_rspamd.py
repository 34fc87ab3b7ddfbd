"""rspamd: a real one for what it says, a stand-in for how it fails."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest
from checks_rig import ALICE, OTHER_IP, Rig, Start, letter, results
from hypothesis import given, settings
from hypothesis import strategies as st
from support.clock import loop_clock
from support.rspamd import RealRspamd

from pymx.checks.breaker import Breaker
from pymx.checks.check import Facts, Stage
from pymx.checks.retries import AFTER_S, Retries
from pymx.checks.rspamd import RspamdCheck
from pymx.config.model import Checks, Rspamd
from pymx.junk.rspamd import Rspamd as Client
from pymx.junk.rspamd import RspamdUnavailable, read_answer
from pymx.mail.address import parse_address
from pymx.mail.envelope import Listener, Origin, Recipient
from pymx.spool import Content

QUIET = Checks(spf=False, dkim=False, dmarc=False, arc=False, iprev=False, helo=False, early_talker=False)


@pytest.fixture(scope="module")
def rspamd() -> Iterator[RealRspamd]:
    if not shutil.which("rspamd"):
        pytest.skip("rspamd is not installed")
    server = RealRspamd()
    yield server
    server.stop()


@pytest.fixture
async def scanned(checked: Start, rspamd: RealRspamd) -> AsyncIterator[Rig]:
    """Only rspamd looks at mail."""
    async with checked(checks=QUIET, rspamd=Rspamd(url=rspamd.url)) as running:
        yield running


def about(subject: str, **parts: str) -> str:
    return letter(**parts).replace("Subject: hi", f"Subject: {subject}")


async def test_no_action_is_the_inbox_with_the_score(scanned: Rig) -> None:
    assert (await scanned.send(about("score 1.25")))[0] == 250
    message = scanned.only()
    assert message["X-Spam-Score"] == "1.25"
    assert " ".join(message["X-Spam-Status"].split()) == "No, score=1.25 required=15.00 tests=TEST_SUBJECT(1.25)"
    assert "X-Spam-Flag" not in message
    (line,) = scanned.lines("message_checked")
    assert line["check"] == "rspamd=no-action(1.25/15)"
    assert line["symbols"] == "TEST_SUBJECT(1.25)"


async def test_rspamd_is_told_of_the_session(scanned: Rig) -> None:
    await scanned.send(about("hello"), to=[ALICE, "bob@example.test"])
    told = dict(pair.split("=", 1) for pair in scanned.only()["X-Told"].split())
    (accepted,) = scanned.lines("message_accepted")
    assert told["ip"] == "127.0.0.2"
    assert told["helo"] == "mail.good.test"
    assert told["from"] == "x@good.test"
    assert told["rcpt"] == "alice@example.test,bob@example.test"
    assert told["queue_id"] == accepted["queue_id"]
    assert told["mta"] == "mx.example.test"
    assert int(told["size"]) == len(about("hello"))


async def test_the_null_sender_is_told(scanned: Rig) -> None:
    assert (await scanned.send(about("hello"), sender=""))[0] == 250
    assert "from= " in " ".join(scanned.only()["X-Told"].split()) + " "


async def test_a_large_message_is_streamed(scanned: Rig) -> None:
    """More than is kept in memory: it comes from the spool file, octet for octet."""
    body = ("x" * 70 + "\r\n") * 8000
    assert (await scanned.send(about("hello", body=body)))[0] == 250
    told = " ".join(scanned.only()["X-Told"].split())
    assert told.endswith(f"size={len(about('hello', body=body))}")


@pytest.mark.parametrize(
    ("subject", "reply"),
    [
        ("score 4.5", (451, "4.7.1 Not now, try again later")),
        ("action soft reject: 4.7.1 Come back later", (451, "4.7.1 Come back later")),
        ("score 16", (550, "5.7.1 This message looks like spam")),
        ("action reject: Not this one", (550, "5.7.1 Not this one")),
    ],
)
async def test_refusals(subject: str, reply: tuple[int, str], scanned: Rig) -> None:
    """greylist and soft reject are 451, reject is 550; rspamd's own text is told."""
    assert await scanned.send(about(subject)) == reply
    assert scanned.folder(ALICE) == []
    (line,) = scanned.lines("message_checked")
    assert line["verdict"] == ("defer" if reply[0] == 451 else "reject")


@pytest.mark.parametrize(("score", "action"), [("7", "add header"), ("11", "rewrite subject")])
async def test_junk(score: str, action: str, scanned: Rig) -> None:
    """Filed to Junk; the subject stays what it was."""
    assert (await scanned.send(about(f"score {score}")))[0] == 250
    message = scanned.only(ALICE, "Junk")
    assert message["Subject"] == f"score {score}"
    assert message["X-Spam-Flag"] == "YES"
    why = " ".join(message["X-Pymx-Junk"].split())
    assert why == f"rspamd: {action}, score {score} of 15 (TEST_SUBJECT({score}.00))"


async def test_fields_are_added_and_removed_as_told(scanned: Rig) -> None:
    """Folded values are unfolded, bad names left out, ours give way to rspamd's."""
    fields = "X-Old: 1\r\nX-Second: a\r\nX-Old: 2\r\nX-Second: b\r\nX-Second: c\r\n"
    await scanned.send(about("fields", fields=fields))
    message = scanned.only()
    assert sorted(message.get_all("X-Added")) == ["one", "two folded"]
    assert message.get_all("X-Old") is None
    assert message.get_all("X-Second") == ["a", "c"]
    assert message.get_all("X-Spam-Score") == ["mine"]
    (line,) = scanned.lines("field_not_added")
    assert "X-Bad Name" in line["reason"]


async def test_forged_spam_fields_are_removed_before_ours_are_added(scanned: Rig) -> None:
    await scanned.send(about("score 7", fields="X-Spam-Flag: NO\r\nX-Spam-Score: -10\r\nX-Spam: No\r\n"))
    message = scanned.only(ALICE, "Junk")
    assert message.get_all("X-Spam-Flag") == ["YES"]
    assert message.get_all("X-Spam-Score") == ["7.00"]
    assert message["X-Spam"] is None


async def test_all_checks_and_rspamd_together(checked: Start, rspamd: RealRspamd) -> None:
    """Side by side; DMARC's refusal stands whatever rspamd thinks, and rspamd's junk whatever passes."""
    async with checked(rspamd=Rspamd(url=rspamd.url)) as rig:
        assert (await rig.send(about("score 1"), peer=OTHER_IP))[0] == 550
        assert (await rig.send(about("score 7")))[0] == 250
        message = rig.only(ALICE, "Junk")
        assert "dmarc=pass" in results(message)
        assert "hostname=mail.good.test" in " ".join(message["X-Told"].split())


class StandIn:
    """Answers every request with `answer`, or in ways that no server should."""

    def __init__(self) -> None:
        self.answer: bytes | None = b""  # None: never
        self.requests: list[bytes] = []

    def says(self, text: str, status: str = "200 OK") -> None:
        self.answer = f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            self.requests.append(head + await reader.readexactly(length))
            if self.answer is None:
                await reader.read()
            else:
                writer.write(self.answer)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def stand_in() -> AsyncIterator[tuple[StandIn, str]]:
    standing = StandIn()
    server = await asyncio.start_server(standing.serve, "127.0.0.1", 0)
    try:
        yield standing, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\nno", "status 500"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nnot json!", "unreadable answer"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"score": 1}', "unreadable answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", "ClientPayloadError"),
        (b"", "ServerDisconnectedError"),
        (b"\xff\xff\xff\r\n\r\n", "ClientResponseError"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n" + b"x" * 2000000, "more than"),
        (None, "no answer within 1 s"),
    ],
)
async def test_a_failing_rspamd_is_as_good_as_none(answer: bytes | None, why: str, checked: Start) -> None:
    """The default: mail is accepted, and the log says what is the matter."""
    async with stand_in() as (standing, url):
        standing.answer = answer
        async with checked(checks=QUIET, rspamd=Rspamd(url=url, timeout_s=1)) as rig:
            assert (await rig.send(letter()))[0] == 250
            assert rig.folder(ALICE)
            (line,) = rig.lines("rspamd_unavailable")
            assert why in line["reason"]
            assert rig.lines("message_checked")[0]["check"] == "rspamd=unavailable"


@pytest.mark.parametrize(
    ("when_down", "code", "folder"), [("accept", 250, ""), ("junk", 250, "Junk"), ("defer", 451, None)]
)
async def test_what_becomes_of_mail_when_nobody_listens(
    when_down: str, code: int, folder: str | None, checked: Start
) -> None:
    """One line in the log for many messages."""
    async with stand_in() as (_, url):
        pass
    async with checked(checks=QUIET, rspamd=Rspamd(url=url, when_down=when_down)) as rig:  # type: ignore[arg-type]
        for _ in range(3):
            assert (await rig.send(letter()))[0] == code
        if folder is not None:
            assert len(rig.folder(ALICE, folder)) == 3
        assert len(rig.lines("rspamd_unavailable")) == 1
        assert rig.lines("rspamd_unavailable")[0]["verdict"] == when_down


async def test_while_it_is_down_the_log_says_so_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """With how many messages it has not seen so far."""
    async with stand_in() as (_, url):
        pass
    client = Client(url, password="", timeout_s=5, hostname="mx.example.test")
    check = RspamdCheck(client, when_down="accept", max_octets=1_000_000)
    known = Facts(Origin(Listener.SMTP, peer_ip="192.0.2.7"), "Q", None)
    known.content = Content.from_bytes(letter().encode())
    with loop_clock() as forward:
        for wait_s in (0, 1, 50, 10, 1, 61):
            forward(wait_s)
            assert (await check.run(Stage.DATA, known)).word == "unavailable"
    await check.close()
    told = [vars(r)["fields"]["count"] for r in caplog.records if r.getMessage() == "rspamd_unavailable"]
    assert told == [1, 4, 6]


@pytest.mark.parametrize("action", ["quarantine", "discard"])
async def test_what_was_accepted_is_not_thrown_away(action: str, checked: Start) -> None:
    """Actions that would make a message vanish file it to Junk."""
    async with stand_in() as (standing, url), checked(checks=QUIET, rspamd=Rspamd(url=url)) as rig:
        standing.says(json.dumps({"action": action, "score": 20, "required_score": 15}))
        assert (await rig.send(letter()))[0] == 250
        assert rig.only(ALICE, "Junk")["X-Pymx-Junk"].startswith(f"rspamd: {action}, score 20 of 15")


async def test_rspamd_that_comes_back_is_used_and_said(checked: Start) -> None:
    async with stand_in() as (standing, url), checked(checks=QUIET, rspamd=Rspamd(url=url)) as rig:
        await rig.send(letter())
        standing.says(json.dumps({"action": "add header", "score": 8, "required_score": 15}))
        await rig.send(letter())
        assert len(rig.folder(ALICE)) == 1
        assert len(rig.folder(ALICE, "Junk")) == 1
        assert len(rig.lines("rspamd_available")) == 1


async def test_a_slow_rspamd_does_not_hold_a_message_longer_than_all_checks_may(checked: Start) -> None:
    async with stand_in() as (standing, url):
        standing.answer = None
        async with checked(checks=Checks(timeout_s=1), rspamd=Rspamd(url=url, timeout_s=1)) as rig:
            assert (await rig.send(letter()))[0] == 250
            assert rig.lines("message_checked")[0]["duration_ms"] < 1500
            assert "dmarc=pass" in results(rig.only())


async def test_an_unknown_action_accepts_and_is_named(checked: Start) -> None:
    async with stand_in() as (standing, url), checked(checks=QUIET, rspamd=Rspamd(url=url)) as rig:
        standing.says(json.dumps({"action": "paint it blue"}))
        assert (await rig.send(letter()))[0] == 250
        assert rig.lines("rspamd_action_unknown")[0]["key"] == "paint it blue"


async def test_what_rspamd_says_reaches_nobody_raw(checked: Start) -> None:
    """Line ends in its texts open neither a reply line nor a header field."""
    async with stand_in() as (standing, url), checked(checks=QUIET, rspamd=Rspamd(url=url)) as rig:
        standing.says(json.dumps({"action": "reject", "messages": {"smtp_message": "no\r\n250 2.0.0 yes"}}))
        assert await rig.send(letter()) == (550, "5.7.1 no 250 2.0.0 yes")
        fields = {"X-A": "1\r\nX-B: 2", "X-C\r\nX-D": "3", "Subject: x\r\nX-E": "4"}
        symbols = {"S\r\nX-F: 5": {"score": 7}}
        standing.says(json.dumps({"action": "add header", "milter": {"add_headers": fields}, "symbols": symbols}))
        assert (await rig.send(letter()))[0] == 250
        message = rig.only(ALICE, "Junk")
        assert not {"X-B", "X-D", "X-E", "X-F"} & set(message.keys())


async def test_the_password_is_sent(checked: Start, tmp_path_factory: pytest.TempPathFactory) -> None:
    secret = tmp_path_factory.mktemp("secret") / "password"
    secret.write_text("opens it\n")
    async with stand_in() as (standing, url):
        standing.says(json.dumps({"action": "no action"}))
        async with checked(checks=QUIET, rspamd=Rspamd(url=url, password_file=str(secret))) as rig:
            await rig.send(letter())
        (request,) = standing.requests
        assert request.startswith(b"POST /checkv2 HTTP/1.1\r\n")
        assert b"\r\nPassword: opens it\r\n" in request
        assert request.endswith(letter().encode())


async def test_tls_and_login_are_told() -> None:
    """What came by TLS, and from whom if he logged in."""
    origin = Origin(
        Listener.SMTP, peer_ip="192.0.2.7", helo="x", tls="TLSv1.3 TLS_AES_256_GCM_SHA384", account="u@x.test"
    )
    async with stand_in() as (standing, url):
        standing.says(json.dumps({"action": "no action"}))
        client = Client(url, password="", timeout_s=5, hostname="mx.example.test")
        content = Content.from_bytes(letter().encode())
        await client.scan(content, origin=origin, mail_from=None, recipients=[], queue_id="Q")
        await client.close()
    head = standing.requests[0].partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert {b"TLS-Version: TLSv1.3", b"TLS-Cipher: TLS_AES_256_GCM_SHA384", b"User: u@x.test", b"From: <>"} <= set(head)
    assert not [line for line in head if line.startswith(b"Password")]


async def test_a_message_above_max_octets_is_not_shown(checked: Start) -> None:
    async with stand_in() as (standing, url):
        async with checked(checks=QUIET, rspamd=Rspamd(url=url, max_octets=100, when_down="defer")) as rig:
            assert (await rig.send(letter()))[0] == 250
        assert standing.requests == []


@pytest.mark.parametrize(
    ("milter", "added", "removed"),
    [
        ({}, (), ()),
        ({"add_headers": [], "remove_headers": []}, (), ()),
        ({"add_headers": {"A": "1", "B": ["2", {"value": "3"}], "C": 4, "D": {"order": 1}}}, 3, ()),
        ({"remove_headers": {"A": 0, "B": [1, -1], "C": "x"}}, (), (("A", 0), ("B", 1), ("B", -1))),
        ({"add_headers": "nonsense", "remove_headers": 7}, (), ()),
    ],
)
def test_fields_in_answers(milter: object, added: object, removed: object) -> None:
    """All shapes that rspamd's modules use, and some that they don't."""
    scan = read_answer(json.dumps({"action": "no action", "milter": milter}).encode())
    assert (scan.added if isinstance(added, tuple) else len(scan.added)) == added
    assert scan.removed == removed


@pytest.mark.parametrize("answer", [b"", b"[]", b"null", b'{"action": 1}', b'{"action": "x", "symbols": [1]}', b"\xff"])
def test_answers_that_are_none(answer: bytes) -> None:
    with pytest.raises(RspamdUnavailable):
        read_answer(answer)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
keys = ["action", "score", "required_score", "thresholds", "symbols", "messages", "milter", "other"]


@given(st.dictionaries(st.sampled_from(keys), json_values), json_values, json_values)
@settings(max_examples=300, deadline=None)
def test_no_answer_breaks_the_reader(answer: dict[str, object], added: object, removed: object) -> None:
    """A scan, or RspamdUnavailable."""
    milter = {"add_headers": added, "remove_headers": removed}
    for each in (answer, {"action": "x", "milter": milter}):
        with contextlib.suppress(RspamdUnavailable):
            read_answer(json.dumps(each).encode())


def test_who_comes_back_has_passed_greylisting() -> None:
    """RFC 6647 s. 2.4: same network, sender and recipient; not too soon."""
    retries = Retries()

    def came(now: float, *, peer: str = "192.0.2.7", sender: str = "x@far.test", to: str = ALICE) -> bool:
        origin = Origin(Listener.SMTP, peer_ip=peer)
        facts = Facts(origin, "Q", parse_address(sender) if sender else None, [Recipient(parse_address(to))])
        return retries.came_back(facts, now)

    assert not came(0)
    assert not came(AFTER_S - 1)
    assert came(AFTER_S)
    assert came(AFTER_S, peer="192.0.2.250", sender="X@far.test")
    assert not came(AFTER_S, peer="192.0.3.7")
    assert not came(AFTER_S, sender="")
    assert not came(AFTER_S, to="bob@example.test")
    assert not came(AFTER_S, peer="2001:db8::1")
    assert came(3 * AFTER_S, peer="2001:db8::ffff")
    assert not came(10 * 86400)


async def test_after_failures_in_a_row_messages_do_not_wait_for_it(checked: Start) -> None:
    """Three wait for a hanging rspamd, the fourth does not; one line in the log for all."""
    async with stand_in() as (standing, url):
        standing.answer = None
        async with checked(
            checks=msgspec.structs.replace(QUIET, timeout_s=3), rspamd=Rspamd(url=url, timeout_s=1)
        ) as rig:
            for _ in range(5):
                assert (await rig.send(letter()))[0] == 250
            waited = [line["duration_ms"] for line in rig.lines("message_checked")]
            assert [ms > 900 for ms in waited] == [True, True, True, False, False]
            assert len(standing.requests) == 3
            assert len(rig.lines("rspamd_unavailable")) == 1


def test_an_open_breaker_lets_one_ask_in_each_pause() -> None:
    """The pause begins when the last try ended; a success closes the circuit at once."""
    breaker = Breaker(failures=2, pause_s=5)
    breaker.failed(0)
    assert breaker.may_ask(0)
    breaker.succeeded()
    breaker.failed(1)
    assert breaker.may_ask(1)
    breaker.failed(2)
    assert [breaker.may_ask(now) for now in (2, 6.9, 7, 7.1, 11, 12)] == [False, False, True, False, False, True]
    breaker.failed(20)
    assert [breaker.may_ask(now) for now in (21, 25)] == [False, True]
    breaker.succeeded()
    assert breaker.may_ask(25)
