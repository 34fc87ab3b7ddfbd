"""Events from the log to the store and back, and what happens when the store or the runner fails."""

from __future__ import annotations

import logging
import os
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.wait import wait_for

from pymx import log
from pymx.events.event import as_stored, from_row, is_kept, to_row
from pymx.events.feed import Feed
from pymx.events.keeping import keep_events, store_path
from pymx.events.recorder import Recorder
from pymx.events.store import EventStore, StoreError
from pymx.events.story import messages, refusal, story


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EventStore]:
    opened = EventStore(tmp_path / "events.sqlite")
    opened.open()
    yield opened
    opened.close()


def put(store: EventStore, name: str, at_s: float = 1000.0, **fields: object) -> None:
    store.add([to_row(at_s, logging.INFO, "mta", name, fields)])


def reading(tmp_path: Path) -> EventStore:
    store = EventStore(store_path(tmp_path))
    store.open_to_read()
    return store


def stored(directory: Path, queue_id: str) -> list[str]:
    """Names of the message's events in a store that somebody else writes; none before it is there."""
    try:
        store = reading(directory)
    except FileNotFoundError:
        return []
    try:
        return [event.name for event in store.of_messages([queue_id])]
    finally:
        store.close()


@pytest.fixture
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("r")


def kept(directory: Path, runtime: Path, *, records: bool = True) -> object:
    return keep_events(directory, runtime, keep_days=30, max_mb=16, records=records)


@given(
    st.dictionaries(
        st.text(min_size=1).filter(lambda k: k not in ("level", "room", "event")),
        st.one_of(st.text(min_size=1), st.integers(-(2**53), 2**53), st.booleans()),
    )
)
def test_event_is_read_as_it_was_written(fields: dict[str, object]) -> None:
    """Whatever peers say, in any alphabet and with any controls."""
    event = from_row(to_row(1.5, logging.INFO, "mta", "message_accepted", fields))
    ids = {name: str(fields[name]) for name in ("queue_id", "session") if fields.get(name)}
    assert event.fields == {k: v for k, v in fields.items() if k not in ("queue_id", "session")}
    assert {"queue_id": event.queue_id, "session": event.session} == {"queue_id": "", "session": "", **ids}
    assert (event.at_s, event.level, event.room, event.name) == (1.5, logging.INFO, "mta", "message_accepted")


@pytest.mark.parametrize("field", ["reason", "queue_id", "session"])
def test_octets_that_are_no_text_do_not_end_the_feed(field: str, tmp_path: Path, runtime: Path) -> None:
    """What a peer sent outside UTF-8 is a surrogate in a str; the events after it are kept too."""
    with kept(tmp_path, runtime):
        log.get("mta").info("message_checked", **({"queue_id": "q1"} | {field: "caf\udce9"}))
        log.get("mta").info("message_accepted", queue_id="q2")
        wait_for(lambda: stored(tmp_path, "q2") == ["message_accepted"])
    store = reading(tmp_path)
    assert [e.name for e in store.containing(["caf\\udce9"])] == ["message_checked"]
    store.close()


@given(st.text(min_size=1))
def test_text_is_found_in_what_is_stored(text: str) -> None:
    """Whatever JSON does to quotes, controls and other letters."""
    assert as_stored(text) in to_row(1, 20, "mta", "x", {"reason": f"a {text} b"})[3]


@pytest.mark.parametrize(
    ("level", "name", "fields", "kept"),
    [
        (logging.INFO, "message_accepted", {"queue_id": "A"}, True),
        (logging.INFO, "rcpt_refused", {"session": "s"}, True),
        (logging.INFO, "smtp_session", {"session": "s", "messages": 1, "recipients": 1}, True),
        (logging.INFO, "smtp_session", {"session": "s", "messages": 0, "recipients": 0}, False),
        (logging.INFO, "login_refused", {"session": "s"}, False),
        (logging.INFO, "imap_session", {"account": "a"}, False),
        (logging.WARNING, "dns_failed", {"key": "a.test A"}, True),
    ],
)
def test_what_speaks_of_a_message_or_of_trouble_is_kept(
    level: int, name: str, fields: dict[str, object], kept: bool
) -> None:
    """A password guesser must not push the messages out of the store."""
    assert is_kept(level, name, fields) is kept


def test_logged_lines_are_in_the_store_within_a_second(tmp_path: Path, runtime: Path) -> None:
    """The ordinary log call is all there is; a level that leaves it out of the log does not leave it out here."""
    logging.getLogger("pymx").setLevel(logging.WARNING)
    try:
        with kept(tmp_path, runtime):
            log.get("mta").bind(session="s1").info("message_accepted", queue_id="A1", rcpt_to=Path("/x"), account="")
            wait_for(lambda: stored(tmp_path, "A1"), what="the event")
            event = reading(tmp_path)
            (found,) = event.of_messages(["A1"])
            event.close()
    finally:
        logging.getLogger("pymx").setLevel(logging.NOTSET)
    assert (found.session, found.room, dict(found.fields)) == ("s1", "mta", {"rcpt_to": "/x"})


def test_last_events_of_all_processes_are_kept(tmp_path: Path, runtime: Path) -> None:
    """What was logged just before the end is written, also by a session process that outlives the runner."""
    with kept(tmp_path, runtime, records=False):
        with kept(tmp_path, runtime):
            log.get("mta").info("message_accepted", queue_id="B1")
        log.get("mta").info("message_delivered", queue_id="B1")
    assert stored(tmp_path, "B1").count("message_delivered") == 1
    assert "message_accepted" in stored(tmp_path, "B1")


def test_events_wait_for_a_runner_that_is_replaced(tmp_path: Path, runtime: Path) -> None:
    """Nobody listens for a while; nothing is lost if it is not too much."""
    with kept(tmp_path, runtime, records=False):
        log.get("mta").info("message_accepted", queue_id="C1")
        recorder = Recorder(EventStore(store_path(tmp_path)), runtime / "events.sock", keep_days=1, max_octets=1 << 24)
        recorder.start()
        wait_for(lambda: stored(tmp_path, "C1"), what="the event")
        recorder.close()


def test_too_many_events_are_dropped_and_counted(tmp_path: Path, runtime: Path) -> None:
    """Mail does not wait: `take` returns at once, whatever becomes of it."""
    (tmp_path / "events").mkdir()
    feed = Feed(runtime / "events.sock", EventStore(store_path(tmp_path)), max_waiting=10)
    feed.start()
    try:
        for number in range(50):
            log.get("mta").info("message_accepted", queue_id=f"D{number}")
        recorder = Recorder(EventStore(store_path(tmp_path)), runtime / "events.sock", keep_days=1, max_octets=1 << 24)
        recorder.start()

        def dropped() -> int:
            try:
                store = reading(tmp_path)
            except FileNotFoundError:
                return 0
            try:
                found = [e for e in store.containing(["events_dropped"]) if e.name == "events_dropped"]
                return sum(int(e.fields["count"]) for e in found)
            finally:
                store.close()

        wait_for(lambda: dropped(), what="the count of the dropped")
        assert dropped() == 40
    finally:
        feed.close()
        recorder.close()


def test_feed_never_waits_for_a_recorder_that_does_not_read(tmp_path: Path, runtime: Path) -> None:
    """A runner that hangs with a full socket: the caller notices nothing."""
    (tmp_path / "events").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stuck:
        stuck.bind(str(runtime / "events.sock"))
        feed = Feed(runtime / "events.sock", EventStore(store_path(tmp_path)), max_waiting=100_000)
        feed.start()
        began = time.monotonic()
        for number in range(20_000):
            feed.take(20, "mta", "message_accepted", {"queue_id": f"E{number}", "reason": "x" * 100})
        took = time.monotonic() - began
        feed.close()
    assert took < 5
    assert len(stored(tmp_path, "E19999")) == 1  # written at the end, by the process itself


def test_damaged_store_is_moved_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture, runtime: Path) -> None:
    """It is a log, not the mail: a new one is begun."""
    path = store_path(tmp_path)
    path.parent.mkdir()
    path.write_bytes(b"no database at all" * 1000)
    with kept(tmp_path, runtime):
        log.get("mta").info("message_accepted", queue_id="F1")
        wait_for(lambda: "event_store_damaged" in caplog.messages, what="the line in the log")
    assert stored(tmp_path, "F1") == ["message_accepted"]
    assert len(list(path.parent.glob("*.damaged-*"))) == 1


def test_store_damaged_while_it_is_written_is_begun_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, runtime: Path
) -> None:
    """Pages overwritten under the runner."""
    with kept(tmp_path, runtime):
        log.get("mta").info("message_accepted", queue_id="G1")
        wait_for(lambda: stored(tmp_path, "G1"), what="the event")
        with sqlite3.connect(store_path(tmp_path)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.close()
        with store_path(tmp_path).open("r+b") as f:
            f.write(b"\xff" * os.fstat(f.fileno()).st_size)
        wait_for(lambda: _log_until(caplog, "event_store_damaged"), what="a new store")
        log.get("mta").info("message_accepted", queue_id="G2")
        wait_for(lambda: stored(tmp_path, "G2"), what="the event in the new one")


def _log_until(caplog: pytest.LogCaptureFixture, name: str) -> bool:
    log.get("mta").info("message_accepted", queue_id="G0")
    time.sleep(0.05)
    return name in caplog.messages


def test_old_events_are_forgotten(store: EventStore) -> None:
    """By age first, then the oldest until the size fits; the newest stay."""
    for number in range(3000):
        put(store, "message_accepted", 1000.0 + number, queue_id=f"H{number}", reason="x" * 300)
    assert store.forget(before_s=1500.0, max_octets=1 << 30) == 500
    before = store.octets()
    assert store.forget(before_s=0, max_octets=before // 2) > 500
    assert store.octets() <= before // 2
    left = store.containing(["message_accepted"], limit=10_000)
    assert left[0].queue_id == "H2999"
    assert len(left) == store.span()[2]


def test_search_is_exact_about_wildcards(store: EventStore) -> None:
    """What LIKE takes for wildcards is text here."""
    for name in ("a_b@x.test", "aXb@x.test", "a%b@x.test", "a|b@x.test"):
        put(store, "message_accepted", queue_id="Q", mail_from=name)
    for name in ("a_b@x.test", "a%b@x.test", "a|b@x.test", "A_B@X.test"):
        assert [e.text("mail_from").lower() for e in store.containing([name])] == [name.lower()]


def test_story_has_copies_and_notifications(store: EventStore) -> None:
    """A second copy under an id of its own, and the notification to the sender, are told with the message; other
    messages of the session are not."""
    put(store, "message_accepted", 1, queue_id="M", session="s", mail_from="a@x.test", rcpt_to="b@x.test")
    put(store, "local_delivery_queued", 1, queue_id="C", session="s", copy_of="M", rcpt_to="b@x.test")
    put(store, "message_accepted", 2, queue_id="OTHER", session="s", mail_from="a@x.test")
    put(store, "delivery_attempt", 3, queue_id="C", session="s", verdict="failed", rcpt_to="b@x.test")
    put(store, "notification_sent", 4, queue_id="C", message_id="<n@x.test>", rcpt_to="a@x.test")
    put(store, "message_accepted", 4, queue_id="N", session="s", mail_from="<>", message_id="<n@x.test>")
    put(store, "message_delivered", 5, queue_id="N", session="s", account="a@x.test")
    put(store, "smtp_session", 6, session="s", messages=2)
    told = story(store, "M")
    assert told is not None
    assert set(told.queue_ids) == {"M", "C", "N"}
    assert "OTHER" not in {e.queue_id for e in told.events}
    assert [e.name for e in told.events if not e.queue_id] == ["smtp_session"]
    assert story(store, "none") is None
    assert "M" in story(store, "C").queue_ids  # type: ignore[union-attr]  # and the other way round


def test_refusals_of_one_sender_are_told_together(store: EventStore) -> None:
    """A session may carry several messages: those of other senders are left out."""
    put(store, "rcpt_refused", 1, session="s", mail_from="a@x.test", rcpt_to="b@x.test")
    put(store, "rcpt_refused", 2, session="s", mail_from="z@x.test", rcpt_to="c@x.test")
    put(store, "smtp_session", 3, session="s", messages=0, recipients=0)
    ids, refused = messages(store.containing(["b@x.test"]))
    assert ids == []
    assert [e.name for e in refusal(store, refused[0]).events] == ["rcpt_refused", "smtp_session"]


def test_unreadable_store_is_said(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    with pytest.raises(FileNotFoundError):
        EventStore(path).open_to_read()
    path.write_bytes(b"garbage" * 1000)
    store = EventStore(path)
    with pytest.raises(StoreError):
        store.open_to_read()
    store.close()
