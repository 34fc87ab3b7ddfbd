"""pymxctl queue, on a queue whose daemon does not run."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from queue_samples import copy, outcomes, want

from pymx.admin import ctl
from pymx.config.model import Outbound
from pymx.queue import browse
from pymx.queue.browse import Selection
from pymx.queue.files import Files
from pymx.queue.item import Attempt, Copy, Outcome, Result
from pymx.queue.pace import Pace, Rules
from pymx.queue.pacefile import save
from pymx.queue.place import Kind, Limits, Strain
from pymx.queue.queue import Queue
from pymx.queue.state import Finished, State


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "pymx.toml"
    path.write_text(
        f'hostname = "mx.ours.test"\ndata_dir = "{tmp_path}/data"\nuser = "none"\n'
        f'[control]\nsocket = "{tmp_path}/no/s"\n'
    )
    return path


async def fill(config: Path, *messages: Copy) -> None:
    queue = Queue(config.parent / "data" / "queue", Outbound())
    queue.wake = lambda: None
    await queue.start()
    try:
        for message in messages:
            await queue.enqueue([message])
        taken = await queue.take(want())
        for item in taken.items[:1]:
            message = await queue.load(item.queue_id)
            attempt = Attempt(
                item.queue_id, item.destination, message.envelope, message.content, False, 1, message.arrived_s
            )
            ended = outcomes(attempt, Result.DEFERRED, "450 4.2.1 mailbox busy")
            await queue.record([Finished(item, message.arrived_s, list(zip(item.numbers, ended, strict=True)), 3e9)])
        await queue.give_back([item.delivery for item in taken.items[1:]])
    finally:
        await queue.close()


def pymxctl(config: Path, *words: str) -> int:
    return ctl.main(["--config", str(config), "queue", *words])


def listed(config: Path, capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, object]]:
    assert pymxctl(config, "list", "--json", *words) == 0
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return found


async def test_list_and_show(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Envelope, header, attempts with the remote's words, next try and why."""
    first, second = copy("a@one.test", text="secret plans"), copy("b@two.test", "c@three.test")
    await fill(config, first, second)
    lines = listed(config, capsys)
    assert [(x["queue_id"], x["destination"], x["state"]) for x in lines] == [
        (first.queue_id, "one.test", "deferred"),
        (second.queue_id, "two.test", "new"),
        (second.queue_id, "three.test", "new"),
    ]
    assert listed(config, capsys, "--domain", "two.test", "--sender", "alice@example.test")[0]["rcpt_to"] == [
        "b@two.test"
    ]
    assert listed(config, capsys, "--limit", "1", "--offset", "1")[0]["queue_id"] == second.queue_id
    assert pymxctl(config, "show", first.queue_id) == 0
    shown = capsys.readouterr().out
    for words in (
        "alice@example.test",
        "Subject: secret plans",
        "450 4.2.1 mailbox busy",
        "mx.remote.test",
        "deferred",
    ):
        assert words in shown
    assert pymxctl(config, "show", first.queue_id, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["attempts"][0]["number"], facts["recipients"][0]["why"]) == (1, "450 4.2.1 mailbox busy")
    assert pymxctl(config, "list") == 0
    assert "a@one.test" in capsys.readouterr().out


async def test_show_has_all_of_the_envelope_and_of_each_attempt(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the client asked for; time, host, address, TLS and words of each try; when the next one is, and why."""
    message = copy("a@one.test")
    (recipient,) = message.envelope.recipients
    asked = replace(recipient, notify=frozenset({"FAILURE", "DELAY"}), orcpt="rfc822;first@one.test")
    made = replace(
        message.envelope, recipients=(asked,), body="8BITMIME", smtputf8=True, requiretls=True, ret="HDRS", envid="E 1"
    )
    message = replace(message, envelope=made)
    queue = Queue(config.parent / "data" / "queue", Outbound())
    queue.wake = lambda: None
    await queue.start()
    try:
        await queue.enqueue([message])
        (item,) = (await queue.take(want())).items
        for number, words in enumerate(("451 4.3.0 not now", "450 4.2.1 mailbox busy")):
            at_s = 1_800_000_000.0 + 600 * number
            ended = Outcome(
                asked, Result.DEFERRED, words[4:9], words, "mx2.one.test", "192.0.2.7", "TLSv1.3 TLS_AES_256 dane"
            )
            await queue.record([Finished(replace(item, attempts=number), at_s, [(0, ended)], at_s + 1200)])
    finally:
        await queue.close()
    assert pymxctl(config, "show", message.queue_id, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["mail_from"], facts["account"], facts["session"]) == ("alice@example.test",) * 2 + ("s1",)
    assert facts["parameters"] == "BODY=8BITMIME SMTPUTF8 REQUIRETLS RET=HDRS ENVID=E 1"
    assert facts["recipients"] == [
        {"rcpt_to": "a@one.test", "destination": "one.test", "state": "deferred", "attempts": 2,
         "next": "2027-01-15T08:30:00+00:00", "why": "450 4.2.1 mailbox busy",
         "notice": "NOTIFY=DELAY,FAILURE ORCPT=rfc822;first@one.test"},
    ]  # fmt: skip
    assert [
        (a["at"], a["mx"], a["ip"], a["tls"], a["status"], a["reply"], a["result"]) for a in facts["attempts"]
    ] == [
        ("2027-01-15T08:00:00+00:00", "mx2.one.test", "192.0.2.7", "TLSv1.3 TLS_AES_256 dane", "4.3.0",
         "451 4.3.0 not now", "deferred"),
        ("2027-01-15T08:10:00+00:00", "mx2.one.test", "192.0.2.7", "TLSv1.3 TLS_AES_256 dane", "4.2.1",
         "450 4.2.1 mailbox busy", "deferred"),
    ]  # fmt: skip
    assert "Subject: hello" in facts["header"]
    assert pymxctl(config, "show", message.queue_id) == 0
    shown = capsys.readouterr().out
    for words in (
        "REQUIRETLS", "NOTIFY=DELAY,FAILURE", "192.0.2.7", "TLSv1.3 TLS_AES_256 dane", "451 4.3.0 not now",
        "2027-01-15T08:30:00", "Subject: hello",
    ):  # fmt: skip
        assert words in shown


async def test_hold_release_and_retry(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By id, sender, recipient domain, or all."""
    first, second = copy("a@one.test"), copy("b@two.test")
    await fill(config, first, second)
    assert pymxctl(config, "hold", first.queue_id) == 0
    assert "1 message held" in capsys.readouterr().out
    assert [x["state"] for x in listed(config, capsys)] == ["held", "new"]
    assert pymxctl(config, "retry", "--all") == 0
    capsys.readouterr()
    assert [x["state"] for x in listed(config, capsys)] == ["held", "deferred"]
    assert pymxctl(config, "release", "--domain", "one.test") == 0
    capsys.readouterr()
    assert [x["state"] for x in listed(config, capsys)] == ["deferred", "deferred"]


async def test_remove_takes_messages_or_only_some_recipients(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The files go too; a recipient that was removed does not come back with a rebuild."""
    messages = [copy("a@one.test"), copy("b@one.test", "c@two.test"), copy("d@two.test", sender=None)]
    await fill(config, *messages)
    assert pymxctl(config, "remove", "--domain", "one.test") == 0
    capsys.readouterr()
    assert [x["rcpt_to"] for x in listed(config, capsys)] == [["c@two.test"], ["d@two.test"]]
    assert pymxctl(config, "rebuild") == 0
    assert "2 messages found" in capsys.readouterr().out
    assert sorted(str(x["rcpt_to"]) for x in listed(config, capsys)) == ["['c@two.test']", "['d@two.test']"]
    assert pymxctl(config, "remove", "--sender", "<>") == 0
    assert pymxctl(config, "remove", "--all") == 0
    capsys.readouterr()
    assert listed(config, capsys) == []
    assert list((config.parent / "data" / "queue" / "messages").iterdir()) == []


async def test_mistakes_are_explained(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What to do next, and a status for scripts."""
    assert pymxctl(config, "list") == 1
    assert "is data_dir right" in capsys.readouterr().err
    await fill(config, copy("a@one.test"))
    assert pymxctl(config, "remove") == 2
    assert "--all" in capsys.readouterr().err
    assert pymxctl(config, "show", "NOSUCH") == 1
    assert pymxctl(config, "hold", "NOSUCH") == 1
    assert "no such message" in capsys.readouterr().err
    (config.parent / "data" / "queue" / "state.sqlite").write_bytes(b"x" * 5000)
    assert pymxctl(config, "list") == 1
    assert "pymxctl queue rebuild" in capsys.readouterr().err


async def test_a_page_of_a_long_queue_comes_quickly(config: Path) -> None:
    """A hundred thousand rows: a page in under 200 ms, on any machine that runs tests."""
    import time

    from pymx.queue import browse
    from pymx.queue.browse import Selection

    await fill(config, copy("a@one.test"))
    state = State(config.parent / "data" / "queue" / "state.sqlite")
    state.open()
    try:
        with state.transaction():
            state.db.execute(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)"
                " INSERT INTO message SELECT 'M' || i, 'a@b.test', '', 0, 100, 0, 0 FROM n"
            )
            state.db.execute(
                "INSERT INTO delivery(queue_id, destination, next_s) SELECT queue_id, 'd.test', 0 FROM message"
            )
        started = time.monotonic()
        assert len(browse.lines(state, Selection(), limit=100, offset=50_000)) == 100
        assert time.monotonic() - started < 0.2
    finally:
        state.close()


async def test_paces_shows_who_is_slowed_down(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the runner wrote it; what is over is not shown."""
    await fill(config)
    queue, now = config.parent / "data" / "queue", time.time()
    assert pymxctl(config, "paces") == 0
    assert "nothing is slowed down" in capsys.readouterr().out
    limits, rules = Limits(5, 100), Rules(300.0, 3600.0)
    slowed, dead, over = Pace(limits, rules), Pace(limits, rules), Pace(limits, rules)
    slowed.end(now, slowed.begin(now), Strain(Kind.SLOW, "421 4.7.28 rate limited", 900.0), accepted=False)
    for began in [dead.begin(now) for _ in range(2)]:
        dead.end(now, began, Strain(Kind.DOWN, "connection refused"), accepted=False)
    over.end(now - 1e6, over.begin(now - 1e6), Strain(Kind.SLOW, "slower", 900.0), accepted=False)
    save(queue, {"google": slowed.saved(), "mx.far.test": dead.saved(), "over": over.saved()})
    assert pymxctl(config, "paces", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [list(row.values())[:2] + list(row.values())[3:] for row in rows] == [
        ["google", "slowed down", "421 4.7.28 rate limited", 1],
        ["mx.far.test", "dead", "connection refused", 2],
    ]


async def test_a_long_queue_is_removed_while_mail_is_taken(tmp_path: Path) -> None:
    """In small transactions: in a single one nothing could be accepted until the last message was gone."""
    directory = tmp_path / "queue"
    queue = Queue(directory, Outbound())
    queue.wake = lambda: None
    await queue.start()
    state, files = State(directory / "state.sqlite"), Files(directory)
    state.open()
    files.open()
    taken, waiting = [], set()
    try:
        for _ in range(4):
            await queue.enqueue([copy(f"x{n}@d{n % 3}.test", "y@e.test") for n in range(150)])
        removing = asyncio.create_task(asyncio.to_thread(browse.remove, state, files, Selection(everything=True)))
        while not removing.done():
            taken += await queue.enqueue([copy("new@a.test")])
            old = await queue._call(
                lambda s: s.db.execute("SELECT count(*) FROM delivery WHERE destination = 'e.test'").fetchone()[0]
            )
            waiting.add(old)
        assert waiting & set(range(1, 600))
        assert await removing >= 600
        left = {path.name for path in (directory / "messages").iterdir()}
        assert left <= set(taken)
        assert set(state.queue_ids()) == left
        assert left
    finally:
        state.close()
        files.close()
        await queue.close()
