"""What `pymxctl status` and `trace` print of facts that the tests decide."""

from __future__ import annotations

import time
from typing import Any

import pytest

from pymx.admin.status import _screen
from pymx.admin.trace import _next
from pymx.admin.wording import sentence, word
from pymx.events.event import from_row, to_row
from pymx.queue.browse import Line

FACTS: dict[str, Any] = {
    "version": "1.2.3",
    "problems": [],
    "processes": [
        {"process": "session-1", "pid": 7, "up_s": 7300, "late": False, "memory_octets": 71_000_000, "cpu_s": 3.25,
         "lag_s": 0.0123, "sessions": 4.0},
        {"process": "runner", "pid": 8, "up_s": 9, "late": True, "memory_octets": 1, "cpu_s": 0, "lag_s": 0,
         "sessions": 0},
    ],
    "gauges": {
        'sessions{listener="smtp"}': 3, 'sessions{listener="imap"}': 1,
        "queue_messages": 2, "queue_oldest_seconds": 7300,
        'queue_deliveries{state="deferred"}': 2, 'queue_deliveries{state="held"}': 0, "bans": 5,
        'disk_free_octets{path="mail"}': 5_000_000, "certificate_expiry_seconds": 86400.0,
    },
    "counters": {"events_dropped": 4},
    "rates": {"received": {"1 min": 2.0, "15 min": 0.3}},
}  # fmt: skip


def rows(title: str, facts: dict[str, Any]) -> dict[str, list[str]]:
    (section,) = (s for s in _screen(facts, []) if s.title == title)
    return {row[0]: list(row[1:]) for row in section.rows}


def test_overview_says_what_is_unusual() -> None:
    """Full disks, certificates that end, dropped events."""
    said = rows("pymx 1.2.3", FACTS)
    assert said["state"] == ["all processes serve"]
    assert said["sessions"] == ["3 smtp, 1 imap"]
    assert said["queue"] == ["2 messages, oldest 2 h 2 min; 2 deferred"]
    assert said["bans"] == ["5"]
    assert said["disk of mail"] == ["5 MiB free — LOW"]
    assert said["certificate"] == ["expires in 24 h 0 min — SOON"] or said["certificate"] == [
        "expires in 1 d 0 h — SOON"
    ]
    assert said["events dropped"] == ["4"]


def test_expired_certificate_and_trouble_are_said() -> None:
    facts = {
        **FACTS,
        "problems": ["runner (pid 8) has not been heard of for 30 s"],
        "gauges": {"certificate_expiry_seconds": -1.0},
    }
    said = rows("pymx 1.2.3", facts)
    assert said["state"] == ["runner (pid 8) has not been heard of for 30 s"]
    assert said["certificate"] == ["HAS EXPIRED"]
    assert said["sessions"] == ["none"]
    assert "queue" not in said


def test_processes_have_a_line_each() -> None:
    assert rows("Processes", FACTS) == {
        "session-1": ["7", "2 h 2 min", "4", "68 MiB", "3.2 s", "12 ms"],
        "runner": ["8", "not heard of", "0", "1 B", "0.0 s", "0 ms"],
    }


@pytest.mark.parametrize(
    ("state", "in_s", "said"),
    [
        ("deferred", 605, "will be tried again at "),
        ("deferred", -5, "is being tried"),
        ("new", 0, "is being tried"),
        ("held", 100, "held; pymxctl queue release Q1"),
    ],
)
def test_what_waits_says_until_when(state: str, in_s: float, said: str) -> None:
    now = time.time()
    line = Line("Q1", now, 1, "a@x.test", "y.test", ("b@y.test",), state, 1, now + in_s, "")
    assert _next(line, now).startswith(said)


@pytest.mark.parametrize(
    ("name", "fields", "words", "text"),
    [
        ("local_delivery_failed", {"rcpt_to": "b@x.test", "verdict": "over_quota", "reason": "full"}, "not stored",
         "b@x.test: over_quota, full"),
        ("message_refused", {"mail_from": "a@y.test", "rcpt_to": "b@x.test", "peer_ip": "192.0.2.1", "helo": "m.y.test",
         "reply": "554 5.4.6", "reason": "loop"}, "refused",
         "message to b@x.test from a@y.test by 192.0.2.1 (m.y.test): 554 5.4.6; loop"),
        ("local_delivery_queued", {"queue_id": "C", "rcpt_to": "b@x.test"}, "waits",
         "b@x.test: its mailbox can't take it now; a copy waits in the queue as C"),
        ("outbound_tls_failed", {"mx": "mx.x.test", "reason": "handshake"}, "no TLS", "mx.x.test: handshake"),
        ("something_new", {"queue_id": "C", "key": "a", "count": 2}, "something new", "key=a count=2"),
        ("something_new", {"reason": "red \x1b[31m\r\nline"}, "something new", "reason=red \ufffd[31m\ufffd\ufffdline"),
    ],
)  # fmt: skip
def test_event_is_told_in_words(name: str, fields: dict[str, object], words: str, text: str) -> None:
    """Also one that nobody has words for; controls from the wire do not reach the terminal."""
    event = from_row(to_row(1, 20, "mta", name, fields))
    assert (word(event), sentence(event)) == (words, text)
