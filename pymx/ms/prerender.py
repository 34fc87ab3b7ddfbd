"""ENVELOPE and BODYSTRUCTURE of a large mailbox that came from elsewhere, made before a client asks, or while it does.

A session makes what is asked of it from the beginning, a process beside it from the end, the newest messages first:
each finds what the other has done. Nothing depends on it; `pymx.ms.reading` makes what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pymx.ms import reading
from pymx.ms.arrive import Render
from pymx.ms.box import Box

LEAST = 1000  # messages; fewer are rendered before a process has begun
_SAMPLE = 40
_PORTION = 200


def is_cold(box: Box, low: int, uids: Sequence[int]) -> bool:
    """Whether most of the mailbox has not been rendered, by a sample."""
    chosen = [low | uid for uid in uids[:: max(1, len(uids) // _SAMPLE)]]
    places = ",".join("?" * len(chosen))
    with box.home.index.read() as db:
        (there,) = db.execute(
            f"SELECT count(*) FROM rendered WHERE id IN ({places}) AND envelope IS NOT NULL",  # noqa: S608
            chosen,
        ).fetchone()
    return bool(there * 2 < len(chosen))


def run(box: Box, render: Render, stopped: Callable[[], bool] = lambda: False) -> int:
    """Render what is not yet, the newest first; how many messages were missing. Raises as `reading` does."""
    box.refresh()
    with box.home.index.read() as db:
        row = box.row(db)
        if row is None:
            return 0
        missing = [
            uid
            for (uid,) in db.execute(
                "SELECT m.id & 4294967295 FROM message m LEFT JOIN rendered r ON r.id = m.id"
                " WHERE m.id BETWEEN ? AND ? AND r.envelope IS NULL ORDER BY m.id DESC",
                (row.low, row.high),
            ).fetchall()
        ]
    for start in range(0, len(missing), _PORTION):
        if stopped():
            break
        reading.rows(box, row.low, missing[start : start + _PORTION][::-1], True, render)
    return len(missing)
