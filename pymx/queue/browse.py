"""The queue as an administrator sees it: pages of it, one message in full, and what can be done to some of them.

Blocking; on a state database opened for this, while the daemon runs or not. Changes are noticed by the runner within a
second, at once when it is told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pymx.queue.files import Files
from pymx.queue.item import QueueId
from pymx.queue.lock import shared
from pymx.queue.state import State, translated

_Delivery = tuple[int, str, str]  # id, queue id, destination
_BATCH = 200  # deliveries altered in one transaction
_MAX_PAUSE_S = 0.25


@dataclass(frozen=True, slots=True)
class Selection:
    """Which messages. Several conditions narrow it; none and `everything` False selects nothing."""

    queue_ids: Sequence[str] = ()
    sender: str = ""
    domain: str = ""  # of a recipient; deliveries to others of the same message are not meant
    everything: bool = False

    @property
    def is_empty(self) -> bool:
        return not (self.queue_ids or self.sender or self.domain or self.everything)

    def where(self) -> tuple[str, list[object]]:
        """SQL over `delivery d`, and its values."""
        conditions, values = ["1"], list[object]()
        if self.queue_ids:
            conditions.append(f"d.queue_id IN ({','.join('?' * len(self.queue_ids))})")
            values += self.queue_ids
        if self.sender:
            conditions.append("d.queue_id IN (SELECT queue_id FROM message WHERE mail_from = ? COLLATE NOCASE)")
            values.append("" if self.sender == "<>" else self.sender)
        if self.domain:
            conditions.append(
                "EXISTS (SELECT 1 FROM recipient r WHERE r.queue_id = d.queue_id AND r.destination = d.destination"
                " AND r.domain = ?)"
            )
            values.append(self.domain.lower())
        return " AND ".join(conditions), values


@dataclass(frozen=True, slots=True)
class Line:
    """A delivery in a list: a message and one of its destinations."""

    queue_id: str
    arrived_s: float
    size_octets: int
    mail_from: str
    destination: str
    recipients: tuple[str, ...]
    state: str  # new, active, deferred, held
    attempts: int
    next_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class AttemptLine:
    at_s: float
    number: int
    address: str
    result: str
    status: str
    mx: str
    ip: str
    tls: str
    reply: str


def _state_word(held: int, lease: int, fresh: int) -> str:
    if held:
        return "held"
    if lease:
        return "active"
    return "new" if fresh else "deferred"


def lines(state: State, selection: Selection, *, limit: int = 0, offset: int = 0) -> list[Line]:
    """A page of the queue, oldest first; `limit` 0 is all of it."""
    where, values = selection.where()
    with translated():
        rows = state.db.execute(  # the condition is built from constants above
            "SELECT d.queue_id, m.arrived_s, m.size_octets, m.mail_from, d.destination, d.held, d.lease, d.fresh,"  # noqa: S608
            " d.attempts, d.next_s, d.reason FROM delivery d JOIN message m ON m.queue_id = d.queue_id"
            f" WHERE {where} ORDER BY d.id LIMIT ? OFFSET ?",
            (*values, limit or -1, offset),
        ).fetchall()
        return [
            Line(
                queue_id, arrived_s, size, mail_from, destination,
                tuple(
                    address
                    for (address,) in state.db.execute(
                        "SELECT address FROM recipient WHERE queue_id = ? AND destination = ? ORDER BY number",
                        (queue_id, destination),
                    )
                ),
                _state_word(held, lease, fresh), attempts, next_s, reason,
            )
            for queue_id, arrived_s, size, mail_from, destination, held, lease, fresh, attempts, next_s, reason in rows
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Totals:
    """The queue in numbers. `oldest_s` is when its oldest message arrived (0: it is empty), `deliveries` by state."""

    messages: int
    oldest_s: float
    deliveries: dict[str, int]


def totals(state: State) -> Totals:
    """Reads every row once: some milliseconds for each 10,000 messages."""
    counts = dict.fromkeys(("new", "active", "deferred", "held"), 0)
    with translated():
        messages, oldest_s = state.db.execute("SELECT count(*), min(arrived_s) FROM message").fetchone()
        rows = state.db.execute("SELECT held, lease != 0, fresh, count(*) FROM delivery GROUP BY 1, 2, 3").fetchall()
    for held, lease, fresh, count in rows:
        counts[_state_word(held, lease, fresh)] += count
    return Totals(messages, oldest_s or 0.0, counts)


def history(state: State, queue_id: str) -> list[AttemptLine]:
    """Every recorded attempt of a message that still waits."""
    with translated():
        rows = state.db.execute(
            "SELECT at_s, number, address, result, status, mx, ip, tls, reply FROM attempt"
            " WHERE queue_id = ? ORDER BY at_s, rowid",
            (queue_id,),
        ).fetchall()
    return [AttemptLine(*row) for row in rows]


def _in_batches(
    state: State, selection: Selection, alter: Callable[[list[_Delivery]], None],
    committed: Callable[[], None] = lambda: None,
) -> int:  # fmt: skip
    """Have what is selected now altered, oldest first, each batch in a transaction of its own; how many messages.

    While one is made nobody else can write: with 100,000 messages in one the server would take no mail for seconds. So
    they are small, and as long as one took the others have their turn. What arrives meanwhile is not meant.

    A batch, and `committed` after it, happen before a rebuild or after it. After one it begins anew, since everything
    has other ids then: what was altered in the old state has come back with the holds gone.
    """
    if selection.is_empty:
        return 0
    began_s = time.time()
    where, values = selection.where()
    names: set[str] = set()
    after, last = 0, -1
    while True:
        with shared(state.path.parent), translated():
            if state.was_replaced():
                state.close()
                state.open()
                after, last = 0, -1
                where += " AND (SELECT m.arrived_s FROM message m WHERE m.queue_id = d.queue_id) <= ?"
                values.append(began_s)
            if last < 0:
                last = state.db.execute("SELECT max(id) FROM delivery").fetchone()[0] or 0
            began = time.monotonic()
            with state.transaction():
                rows = state.db.execute(
                    "SELECT d.id, d.queue_id, d.destination FROM delivery d"  # noqa: S608
                    f" WHERE d.id > ? AND d.id <= ? AND {where} ORDER BY d.id LIMIT ?",
                    (after, last, *values, _BATCH),
                ).fetchall()
                if rows:
                    alter(rows)
            committed()
        names.update(row[1] for row in rows)
        if len(rows) < _BATCH:
            return len(names)
        after = rows[-1][0]
        time.sleep(min(time.monotonic() - began, _MAX_PAUSE_S))


def hold(state: State, selection: Selection) -> int:
    """Keep deliveries from being tried; how many messages."""
    return _in_batches(state, selection, lambda rows: state.hold([row[0] for row in rows]))


def retry(state: State, selection: Selection, now: float, *, release: bool) -> int:
    """Try now; held ones only when `release`."""
    return _in_batches(state, selection, lambda rows: state.retry([row[0] for row in rows], now, release=release))


def remove(state: State, files: Files, selection: Selection) -> int:
    """Take deliveries out without telling anybody; a message whose last one goes is deleted.

    With a domain, only the recipients there are dropped. Their marks in the files are synced before the commit, as in
    the committer.
    """
    gone: list[QueueId] = []

    def alter(rows: list[_Delivery]) -> None:
        for delivery, name, destination in rows:
            queue_id = QueueId(name)
            if _remove_one(state, files, selection.domain.lower(), delivery, queue_id, destination):
                gone.append(queue_id)
        state.changed()

    def committed() -> None:
        while gone:
            files.remove(gone.pop())

    return _in_batches(state, selection, alter, committed)


def _remove_one(state: State, files: Files, domain: str, delivery: int, queue_id: QueueId, destination: str) -> bool:
    """Drop one delivery, or its recipients in `domain`; whether that was the last of its message."""
    others = state.db.execute(
        "SELECT 1 FROM delivery WHERE queue_id = ? AND id != ? LIMIT 1", (queue_id, delivery)
    ).fetchone()
    kept = (
        bool(domain)
        and state.db.execute(
            "SELECT 1 FROM recipient WHERE queue_id = ? AND destination = ? AND domain != ? LIMIT 1",
            (queue_id, destination, domain),
        ).fetchone()
    )
    if not others and not kept:
        state.delete([queue_id])
        return True
    condition, values = "queue_id = ? AND destination = ?", [queue_id, destination]
    if domain:
        condition += " AND domain = ?"
        values.append(domain)
    numbers = state.db.execute(f"SELECT number FROM recipient WHERE {condition}", values).fetchall()  # noqa: S608
    files.mark_done(queue_id, [n for (n,) in numbers])
    state.db.execute(f"DELETE FROM recipient WHERE {condition}", values)  # noqa: S608
    if not kept:
        state.db.execute("DELETE FROM delivery WHERE id = ?", (delivery,))
    return False
