"""What users say by moving mail: from the changes of the message store to the lessons of the junk filter."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator
from pathlib import Path

from pymx import log
from pymx.junk.learn import Kind, Learner, Lesson, Teacher, TeacherUnavailable, kind_of_move
from pymx.mail.flags import DELETED, SEEN
from pymx.ms.change import Change
from pymx.ms.errors import InvalidName, NoSuchMailbox, StoreError
from pymx.ms.mailbox import Mailbox
from pymx.ms.owner import Owner
from pymx.ms.store import Store

_JUNK = "\\Junk"
_INBOX = "INBOX"
_LOOKED_AT = 500  # newest messages of INBOX
_STAYED_S = 2 * 86400
_STAYED_AT_ONCE = 20
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
            account = change.owner.email
            self._learner.learn(Lesson(account, change.target, change.uidvalidity, change.uids, kind))
            if kind is Kind.SPAM:
                # who learns what is unwanted has to learn as much of what is wanted
                self._learner.learn(Lesson(account, _INBOX, 0, (), Kind.STAYED))

    async def _read(self, lesson: Lesson) -> AsyncGenerator[tuple[int, bytes], None]:
        """The messages of a lesson that are still there. Raises TeacherUnavailable."""
        assert self._store is not None
        try:
            mailbox = await self._store.open(_owner(lesson.account), lesson.mailbox, read_only=True)
        except NoSuchMailbox:
            return
        except StoreError as e:
            raise TeacherUnavailable(e.reason) from None
        try:
            if lesson.kind is Kind.STAYED:
                uids = await _stayed(mailbox, time.time())
            elif mailbox.uidvalidity == lesson.uidvalidity:
                uids = list(lesson.uids)
            else:
                return
            async for uid, message in mailbox.messages(uids):
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


async def _stayed(mailbox: Mailbox, now: float) -> list[int]:
    """The newest messages that have been read and are still there after some days."""
    stayed: list[int] = []
    async for rows in mailbox.rows(mailbox.uids[-_LOOKED_AT:]):
        for uid, _, flags, _, _, internaldate, savedate in rows:
            if flags & SEEN and not flags & DELETED and max(internaldate, savedate) < now - _STAYED_S:
                stayed.append(uid)
    return stayed[-_STAYED_AT_ONCE:]


def mail_home(root: str, account: str) -> Path:
    """Where an account's mail lies. Raises FileNotFoundError for what can't be one."""
    try:
        return Path(os.fsdecode(_owner(account).path(os.fsencode(root))))
    except InvalidName as e:
        raise FileNotFoundError(f"{account}: {e}") from None


def _owner(account: str) -> Owner:
    local_part, _, domain = account.rpartition("@")
    return Owner(domain, local_part)
