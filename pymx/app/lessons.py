"""What users say by moving mail: from the changes of the message store to the lessons of the junk filter."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from pymx import log
from pymx.junk.learn import Learner, Lesson, Teacher, TeacherUnavailable, kind_of_move
from pymx.ms.change import Change
from pymx.ms.errors import NoSuchMailbox, StoreError
from pymx.ms.owner import Owner
from pymx.ms.store import Store

_JUNK = "\\Junk"
_MAX_OCTETS = 16 * 1024 * 1024  # a larger message is not read for this

_log = log.get("junk")


class Lessons:
    """Given to the store as `changed`; `start` it when the store is there."""

    def __init__(self, teacher: Teacher, *, junk_mailbox: str) -> None:
        self._learner = Learner(teacher, self._read)
        self._junk_mailbox = junk_mailbox
        self._store: Store | None = None

    def start(self, store: Store) -> None:
        self._store = store
        self._learner.start()

    async def close(self) -> None:
        await self._learner.close()

    def changed(self, change: Change) -> None:
        """Somebody has moved or copied messages."""
        source_use, target_use = (
            _JUNK if name == self._junk_mailbox else use
            for name, use in ((change.source, change.source_use), (change.target, change.target_use))
        )
        kind = kind_of_move(change.source, source_use, target_use)
        if kind is not None:
            self._learner.learn(Lesson(change.owner.email, change.target, change.uidvalidity, change.uids, kind))

    async def _read(self, lesson: Lesson) -> AsyncGenerator[tuple[int, bytes], None]:
        """The messages of a lesson that are still there. Raises TeacherUnavailable."""
        assert self._store is not None
        local_part, _, domain = lesson.account.rpartition("@")
        try:
            mailbox = await self._store.open(Owner(domain, local_part), lesson.mailbox, read_only=True)
        except NoSuchMailbox:
            return
        except StoreError as e:
            raise TeacherUnavailable(e.reason) from None
        try:
            if mailbox.uidvalidity != lesson.uidvalidity:
                return
            async for uid, message in mailbox.messages(lesson.uids):
                if message is None:
                    continue  # moved on, or expunged
                if message.octets > _MAX_OCTETS:
                    _log.info("lesson_refused", account=lesson.account, uid=uid, reason="too large to be read for it")
                    continue
                yield uid, await message.read()
        except StoreError as e:
            raise TeacherUnavailable(e.reason) from None
        finally:
            mailbox.close()
