"""Learning from what users move into and out of Junk: a bounded queue and one worker, off every command's path.

`learn` takes a lesson and returns at once. The worker reads the messages of one lesson after the other, in the order in
which they were moved, and gives each to the teacher (rspamd's controller, or our own filter). A message that has moved
on meanwhile is not there to be read, and the lesson of its next move holds.

Failures: a teacher that can't be reached is asked `TRIES` times with growing pauses, then the message is given up, and
until it answers again those after it get one try each; the log says so once a minute. What it refuses is logged and not
tried again. When more than `MAX_WAITING` messages wait, further ones are left out: learning is a favour, mail is not
held up for it. A process that ends leaves out what still waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from typing import Protocol

from pymx import log, metrics

MAX_WAITING = 1000
TRIES = 3
_PAUSE_S = 5.0
_LOG_EVERY_S = 60.0
_JUNK = "\\Junk"
# What lies there is not what somebody else sent, or nobody has judged it: a message thrown away is not wanted mail.
_SAYS_NOTHING = frozenset({"\\Trash", "\\Sent", "\\Drafts"})

_log = log.get("junk")


class Kind(enum.Enum):
    """What a move says of a message."""

    SPAM = "spam"  # into Junk
    HAM = "ham"  # out of Junk
    KEPT = "kept"  # out of INBOX into a folder of the user's own
    STAYED = "stayed"  # in INBOX, read, for some days


class TeacherUnavailable(Exception):
    """Not now; the text says why."""


class LessonRefused(Exception):
    """Never; the text says why."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """Messages of one mailbox of an account that are of one kind. STAYED names none: they are found when it is read."""

    account: str
    mailbox: str
    uidvalidity: int
    uids: tuple[int, ...]
    kind: Kind


class Teacher(Protocol):
    """Who learns."""

    @property
    def kinds(self) -> frozenset[Kind]: ...

    async def teach(self, account: str, message: bytes, kind: Kind) -> bool:
        """Learn one message. False: it was known. Raises TeacherUnavailable, LessonRefused."""

    async def close(self) -> None: ...


Read = Callable[[Lesson], AsyncGenerator[tuple[int, bytes], None]]
"""The messages of a lesson that are still there, (UID, wire form) each. Raises TeacherUnavailable."""


def kind_of_move(source: str, source_use: str, target_use: str) -> Kind | None:
    """What a move from a mailbox with one special use to one with another says; None: nothing."""
    if source_use == target_use == _JUNK or _SAYS_NOTHING & {source_use, target_use}:
        return None
    if target_use == _JUNK:
        return Kind.SPAM
    if source_use == _JUNK:
        return Kind.HAM
    return Kind.KEPT if source == "INBOX" else None


class Learner:
    """The queue and its worker; `start` it in the loop, `close` it."""

    def __init__(self, teacher: Teacher, read: Read, *, pause_s: float = _PAUSE_S) -> None:
        self._teacher = teacher
        self._read = read
        self._pause_s = pause_s
        self._lessons: deque[Lesson] = deque()
        self._waiting = 0  # messages in them
        self._staying: set[str] = set()  # accounts with a lesson of what stayed among them
        self._more = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_down = False
        self._complained: dict[str, float] = {}
        self._left_out = 0

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._work())

    def learn(self, lesson: Lesson) -> None:
        """Take a lesson; never blocks."""
        if lesson.kind not in self._teacher.kinds:
            return
        room = MAX_WAITING - self._waiting
        if len(lesson.uids) > room:
            self._left_out += len(lesson.uids) - room
            lesson = replace(lesson, uids=lesson.uids[:room])
            if self._may_complain("full"):
                _log.warning(
                    "lessons_left_out", account=lesson.account, count=self._left_out, reason="too many are waiting"
                )
        if lesson.kind is Kind.STAYED:
            if lesson.account in self._staying:
                return  # the one that waits finds as much
            self._staying.add(lesson.account)
        elif not lesson.uids:
            return
        self._lessons.append(lesson)
        self._waiting += len(lesson.uids)
        self._more.set()

    async def close(self) -> None:
        """End the worker; what waits is left out."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._waiting:
            _log.info("lessons_left_out", count=self._waiting, reason="the server stops")
        await self._teacher.close()

    async def _work(self) -> None:
        while True:
            while not self._lessons:
                self._more.clear()
                await self._more.wait()
            lesson = self._lessons.popleft()
            if lesson.kind is Kind.STAYED:
                self._staying.discard(lesson.account)
            try:
                async with contextlib.aclosing(self._read(lesson)) as messages:
                    async for uid, message in messages:
                        await self._teach(lesson, uid, message)
            except TeacherUnavailable as e:
                self._failed(lesson, str(e))
            except Exception:
                # whatever one message holds, the worker goes on with the next lesson
                _log.exception("learning_crashed", account=lesson.account, mailbox=lesson.mailbox)
            finally:
                self._waiting -= len(lesson.uids)

    async def _teach(self, lesson: Lesson, uid: int, message: bytes) -> None:
        where = {"account": lesson.account, "mailbox": lesson.mailbox, "uid": uid, "verdict": lesson.kind.value}
        for tries in range(1, TRIES + 1):
            try:
                new = await self._teacher.teach(lesson.account, message, lesson.kind)
            except LessonRefused as e:
                _log.warning("lesson_refused", **where, reason=str(e))
                return
            except TeacherUnavailable as e:
                if self._is_down or tries == TRIES:
                    self._is_down = True
                    self._failed(lesson, str(e))
                    return
                await asyncio.sleep(self._pause_s * 2 ** (tries - 1))
            else:
                self._is_down = False
                metrics.add(f"junk_learned_{lesson.kind.value}")
                if new or lesson.kind is not Kind.STAYED:  # the same ones stay there time and again
                    _log.info("message_learned", **where, reason="" if new else "was known")
                return

    def _failed(self, lesson: Lesson, reason: str) -> None:
        metrics.add("junk_lessons_failed")
        if self._may_complain("down"):
            _log.error("learning_failed", account=lesson.account, mailbox=lesson.mailbox, reason=reason)

    def _may_complain(self, what: str) -> bool:
        """Once a minute."""
        now = time.monotonic()
        if now - self._complained.get(what, -_LOG_EVERY_S) < _LOG_EVERY_S:
            return False
        self._complained[what] = now
        return True
