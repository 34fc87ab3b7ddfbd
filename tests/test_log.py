"""The log: one line for each event whatever a peer said, in both forms, and never in anybody's way."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.wait import wait_for

from pymx import log

KEPT, WRITTEN, TOGETHER = 20_000, 22_000, 500

texts = st.text(max_size=30)


class Stream:
    """Where the log goes: may be stuck, as a journal that is not read is."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.lines: list[str] = []

    def write(self, text: str) -> int:
        self.open.wait(60)
        self.lines += text.splitlines()
        return len(text)

    def flush(self) -> None:
        """Nothing is kept back."""


@pytest.fixture
def stream() -> Iterator[Stream]:
    """The handlers of the test run are put back afterwards."""
    root, pymx = logging.getLogger(), logging.getLogger("pymx")
    before = list(root.handlers), root.level, pymx.level
    yield Stream()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    for handler in before[0]:
        root.addHandler(handler)
    root.setLevel(before[1])
    pymx.setLevel(before[2])


def test_a_stuck_journal_keeps_nobody_waiting(stream: Stream) -> None:
    """What does not fit is dropped, counted, and told of with the next line that gets through."""
    running = log.setup(timestamps=False, stream=stream)  # type: ignore[arg-type]
    stream.open.clear()
    writer = log.get("test")
    started = time.monotonic()
    for number in range(WRITTEN):
        writer.info("event_written", count=number)
    assert time.monotonic() - started < 20
    stream.open.set()
    wait_for(lambda: len(stream.lines) >= KEPT, what="what was kept is written")
    writer.info("event_after")
    running.stop()
    numbers = [line for line in stream.lines if "event=event_written" in line]
    assert numbers[0].endswith("count=0")
    assert KEPT <= len(numbers) <= KEPT + TOGETHER
    (told,) = [line for line in stream.lines if "event=log_records_dropped" in line]
    assert told.endswith(f"count={WRITTEN - len(numbers)}")


def test_newer_pythons_may_insist_on_a_lock(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.13's `Handler.handle` asks for one without looking whether there is one."""

    def handle(self: logging.Handler, record: logging.LogRecord) -> bool:
        with self.lock:  # type: ignore[union-attr]
            self.emit(record)
        return True

    monkeypatch.setattr(logging.Handler, "handle", handle)
    running = log.setup(timestamps=False, stream=stream)  # type: ignore[arg-type]
    log.get("test").info("event_written")
    running.stop()
    assert stream.lines == ["level=info room=test event=event_written"]


def test_fields_that_are_bound_stand_in_each_line(stream: Stream) -> None:
    running = log.setup(form="json", stream=stream)  # type: ignore[arg-type]
    session = log.get("smtpd").bind(session="s1")
    session.info("message_accepted", queue_id="Q1", reason="")
    try:
        raise KeyError("x")
    except KeyError:
        session.exception("smtp_error")
    session.debug("not_written")
    running.stop()
    accepted, error = [json.loads(line) for line in stream.lines]
    del accepted["ts"]
    assert accepted == {
        "level": "info", "room": "smtpd", "event": "message_accepted", "session": "s1", "queue_id": "Q1",
    }  # fmt: skip
    assert (error["level"], error["session"]) == ("error", "s1")
    assert "KeyError: 'x'" in error["traceback"]


@given(st.dictionaries(st.sampled_from(["helo", "reason", "mail_from"]), texts | st.none() | st.integers()))
def test_a_line_is_one_line_of_ascii_and_can_be_read_back(fields: dict[str, object]) -> None:
    """Invariant: no peer writes a line of its own."""
    record = logging.makeLogRecord({"name": "pymx.test", "levelname": "INFO", "msg": "some_event", "fields": fields})
    said = {key: value for key, value in fields.items() if value is not None and value != ""}
    as_json = log.JsonFormatter().format(record)
    read = json.loads(as_json)
    assert {key: read[key] for key in read.keys() & fields.keys()} == said
    line = log.LogfmtFormatter(timestamps=False).format(record)
    for text in (as_json, line):
        assert text.isascii()
        assert text.isprintable()
    rest = line.removeprefix("level=info room=test event=some_event")
    for key, value in said.items():
        head = f" {key}="
        assert rest.startswith(head)
        rest = rest[len(head) :]
        if rest.startswith('"'):
            got, end = json.JSONDecoder().raw_decode(rest)
            rest = rest[end:]
        else:
            got, _, rest = rest.partition(" ")
            rest = f" {rest}" if rest else ""
        assert str(got) == str(value)
    assert rest == ""


def test_a_process_that_forks_logs_without_a_thread() -> None:
    """The supervisor's: a thread would not live on in what it forks."""
    done = subprocess.run(
        [sys.executable, "-c", (
            "import threading\nfrom pymx import log\nlog.setup_without_thread(form='json')\n"
            "log.get('supervisor').info('process_started', count=threading.active_count())"
        )],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert json.loads(done.stderr)["count"] == 1
