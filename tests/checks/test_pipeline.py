"""How checks are run and merged, whatever they check."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from pymx.checks.check import Facts, Stage
from pymx.checks.pipeline import Pipeline
from pymx.checks.verdict import Level, Verdict, merge
from pymx.mail.address import Address, parse_address
from pymx.mail.envelope import Listener, Origin, Recipient
from pymx.proto.smtp import reply as replies
from pymx.proto.smtp.reply import SmtpError
from pymx.spool import Content

ORIGIN = Origin(Listener.SMTP, "s1", "192.0.2.7", "mail.far.test")
MESSAGE = Content.from_bytes(b"From: x@far.test\r\nX-A: 1\r\nX-B: 1\r\nX-A: 2\r\nX-A: 3\r\n\r\nbody\r\n")

Run = Callable[[Stage, Facts], Awaitable[Verdict]]


class Scripted:
    """A check that does what a test wants."""

    def __init__(self, name: str, run: Run, *, stage: Stage = Stage.DATA, needs: tuple[str, ...] = ()) -> None:
        self.name = name
        self.stages = (stage,)
        self.needs = needs
        self._run = run
        self.closed = False

    async def run(self, stage: Stage, facts: Facts) -> Verdict:
        return await self._run(stage, facts)

    def unavailable(self, facts: Facts, reason: str) -> Verdict:
        return Verdict(word="unknown", reason=reason)

    async def close(self) -> None:
        self.closed = True


def saying(name: str, verdict: Verdict, *, stage: Stage = Stage.DATA) -> Scripted:
    async def run(stage: Stage, facts: Facts) -> Verdict:
        return verdict

    return Scripted(name, run, stage=stage)


def pipeline(*checks: Scripted, timeout_s: float = 5, trusted: tuple[str, ...] = ()) -> Pipeline:
    return Pipeline(checks, hostname="mx.example.test", timeout_s=timeout_s, junk_score=5, trusted=trusted)


def facts() -> Facts:
    return Facts(ORIGIN, "Q1", parse_address("x@far.test"), [Recipient(parse_address("alice@example.test"))])


@pytest.mark.parametrize(
    ("levels", "scores", "level"),
    [
        ([], [], Level.ACCEPT),
        ([Level.ACCEPT, Level.JUNK], [0, 0], Level.JUNK),
        ([Level.JUNK, Level.DEFER, Level.ACCEPT], [0, 0, 0], Level.DEFER),
        ([Level.REJECT, Level.DEFER], [0, 0], Level.REJECT),
        ([Level.ACCEPT], [4.99], Level.ACCEPT),
        ([Level.ACCEPT, Level.ACCEPT], [2.5, 2.5], Level.JUNK),
        ([Level.ACCEPT], [500], Level.JUNK),
        ([Level.ACCEPT, Level.ACCEPT], [6, -2], Level.ACCEPT),
        ([Level.DEFER], [500], Level.DEFER),
        ([Level.JUNK], [-50], Level.JUNK),
    ],
)
def test_the_worst_verdict_counts_and_hints_make_junk_at_most(
    levels: list[Level], scores: list[float], level: Level
) -> None:
    """accept < junk < defer < reject; a good mark does not undo another check's verdict."""
    verdicts = [
        (str(i), Verdict(each, reason=f"r{i}", score=score))
        for i, (each, score) in enumerate(zip(levels, scores, strict=True))
    ]
    assert merge(verdicts, 5).level is level


def test_the_reply_is_that_of_the_check_that_decides() -> None:
    merged = merge(
        [
            ("a", Verdict(Level.DEFER, replies.TRY_LATER, "later")),
            ("b", Verdict(Level.REJECT, replies.SPAM, "spam")),
            ("c", Verdict(Level.REJECT, replies.REJECTED_BY_POLICY, "policy")),
        ],
        5,
    )
    assert merged.reply is replies.SPAM
    assert merged.reason == "spam; policy"


async def test_checks_of_the_data_run_side_by_side() -> None:
    """Each waits for the other: one after the other they would not end."""
    here = [asyncio.Event(), asyncio.Event()]

    def meeting(mine: int) -> Run:
        async def run(stage: Stage, facts: Facts) -> Verdict:
            here[mine].set()
            await here[1 - mine].wait()
            return Verdict()

        return run

    both = pipeline(Scripted("a", meeting(0)), Scripted("b", meeting(1)))
    await both.begin(facts()).message(MESSAGE)
    await both.close()
    assert all(check.closed for check in both.checks)  # type: ignore[attr-defined]


async def test_a_check_that_needs_another_sees_what_it_found() -> None:
    order: list[str] = []

    def noting(name: str, pause: int = 0) -> Run:
        async def run(stage: Stage, facts: Facts) -> Verdict:
            for _ in range(pause):
                await asyncio.sleep(0)
            order.append(name)
            return Verdict()

        return run

    checks = pipeline(
        Scripted("last", noting("last"), needs=("slow", "early", "not there")),
        Scripted("slow", noting("slow", 20)),
        Scripted("early", noting("early", 10), stage=Stage.CONNECT),
    )
    await checks.begin(facts()).message(MESSAGE)
    assert order == ["early", "slow", "last"]


async def test_early_checks_run_before_the_message_is_there() -> None:
    done = asyncio.Event()

    async def run(stage: Stage, facts: Facts) -> Verdict:
        assert facts.content is None
        done.set()
        return Verdict()

    checks = pipeline(Scripted("early", run, stage=Stage.MAIL))
    checks.begin(facts())
    await asyncio.wait_for(done.wait(), 5)
    await checks.close()


async def test_a_check_that_takes_too_long_or_breaks_counts_as_unavailable(caplog: pytest.LogCaptureFixture) -> None:
    """Neither keeps the message, nor the other checks' verdicts."""

    async def hang(stage: Stage, facts: Facts) -> Verdict:
        await asyncio.Event().wait()
        return Verdict()

    async def broken(stage: Stage, facts: Facts) -> Verdict:
        raise ZeroDivisionError

    caplog.set_level("INFO", "pymx")
    junk = Verdict(Level.JUNK, reason="really bad")
    checks = pipeline(Scripted("slow", hang), Scripted("broken", broken), saying("good", junk), timeout_s=0.1)
    found = await checks.begin(facts()).message(MESSAGE)
    assert b"X-Pymx-Junk: really bad\r\n" in found.content.head
    events = {r.getMessage(): vars(r)["fields"] for r in caplog.records}
    assert events["check_failed"]["check"] == "broken"
    assert events["message_checked"]["check"] == "slow=unknown broken=unknown good=ok"


async def test_a_check_at_rcpt_refuses_one_recipient() -> None:
    async def run(stage: Stage, facts: Facts) -> Verdict:
        if facts.recipients[-1].address.local_part == "bob":
            return Verdict(Level.DEFER, reason="not bob")
        return Verdict()

    checks = pipeline(Scripted("rcpt", run, stage=Stage.RCPT))
    known = facts()
    inspection = checks.begin(known)
    await inspection.recipient()
    known.recipients.append(Recipient(parse_address("bob@example.test")))
    with pytest.raises(SmtpError) as refused:
        await inspection.recipient()
    assert refused.value.reply is replies.TRY_LATER
    assert refused.value.reason == "rcpt: not bob"
    known.recipients.pop()
    await inspection.message(MESSAGE)  # which is for alice alone


async def test_a_server_that_stops_takes_no_message_half_checked() -> None:
    started = asyncio.Event()

    async def run(stage: Stage, facts: Facts) -> Verdict:
        started.set()
        await asyncio.Event().wait()
        return Verdict()

    checks = pipeline(Scripted("slow", run), saying("quick", Verdict()))
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(_refusal(checks))
        await started.wait()
        await checks.close()
    assert asking.result().reply is replies.TEMPORARY_FAILURE


async def _refusal(checks: Pipeline) -> SmtpError:
    with pytest.raises(SmtpError) as refused:
        await checks.begin(facts()).message(MESSAGE)
    return refused.value


@pytest.mark.parametrize(
    ("to", "refused"),
    [
        (["postmaster@example.test"], False),
        (["Abuse@example.test", "POSTMASTER@other.test"], False),
        (["postmaster"], False),
        (["postmaster@example.test", "alice@example.test"], True),
        (["postmaster.x@example.test"], True),
    ],
)
async def test_who_writes_to_the_postmaster_is_heard(to: list[str], refused: bool) -> None:
    """RFC 5321 s. 4.5.1: as junk, when nobody else gets the message."""
    checks = pipeline(saying("no", Verdict(Level.REJECT, replies.SPAM, "awful")))
    known = facts()
    known.recipients = [Recipient(parse_address(a) if "@" in a else Address(a, "")) for a in to]
    if refused:
        with pytest.raises(SmtpError):
            await checks.begin(known).message(MESSAGE)
    else:
        found = await checks.begin(known).message(MESSAGE)
        assert b"X-Pymx-Junk: awful\r\n" in found.content.head


async def test_a_session_that_goes_leaves_nothing_running() -> None:
    """`close` ends what nobody waits for any more."""
    ended = asyncio.Event()

    async def run(stage: Stage, facts: Facts) -> Verdict:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return Verdict()

    checks = pipeline(Scripted("early", run, stage=Stage.CONNECT))
    checks.begin(facts())
    await asyncio.sleep(0)
    await checks.close()
    assert ended.is_set()


@pytest.mark.parametrize(
    ("which", "left"),
    [(0, []), (1, ["2", "3"]), (2, ["1", "3"]), (-1, ["1", "2"]), (4, ["1", "2", "3"]), (-9, ["1", "2", "3"])],
)
async def test_fields_are_taken_out_by_number(which: int, left: list[str]) -> None:
    checks = pipeline(saying("a", Verdict(removals=(("x-a", which),), fields=(("X-New", "a\r\n b"),))))
    head = (await checks.begin(facts()).message(MESSAGE)).content.head.decode()
    assert [line.removeprefix("X-A: ") for line in head.splitlines() if line.startswith("X-A")] == left
    assert "X-New: a b\r\n" in head
    assert "X-B: 1\r\n" in head


@pytest.mark.parametrize(
    ("origin", "concerned"),
    [
        (ORIGIN, True),
        (Origin(Listener.SMTP, peer_ip="2001:db8::1"), True),
        (Origin(Listener.SMTP, peer_ip="fe80::1%eth0"), True),
        (Origin(Listener.LMTP, peer_ip="192.0.2.7"), False),
        (Origin(Listener.SUBMISSION, peer_ip="192.0.2.7", account="alice@example.test"), False),
        (Origin(Listener.SMTP, peer_ip=""), False),
        (Origin(Listener.SMTP, peer_ip="198.51.100.200"), False),
        (Origin(Listener.SMTP, peer_ip="::ffff:198.51.100.1"), False),
        (Origin(Listener.SMTP, peer_ip="2001:db8:1::99"), False),
    ],
)
def test_whose_mail_is_checked(origin: Origin, concerned: bool) -> None:
    """Not over LMTP, not of our users, not from trusted networks."""
    assert pipeline(trusted=("198.51.100.0/24", "2001:db8:1::/48")).concerns(origin) is concerned
