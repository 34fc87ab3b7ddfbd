"""The server's own filter, for an appliance without rspamd: one for each account, taught by what its user does.

`judge` is asked at delivery. It is silent (None) until the account has learned `[junk] min_learned` messages of either
kind; then it says how sure it is that the message is junk, and files it from `threshold_percent` on. It never refuses.
A sender is known if the account has written to him or has kept mail of his. Mail of one who is known is not filed if
DMARC proves that it is his; if it proves nothing, only what is beyond `_SURE` is. If DMARC failed, knowing him counts
for nothing.

It learns (`teach`) from moves into and out of Junk, and carefully from what stays: what was moved from INBOX to a
folder of the user's own, and what lies in INBOX and has been read, two days later. See `pymx.junk.learn`.

All work is done in a thread of its own. An account whose filter was silent is not asked again until somebody has taught
one (`taught`): for who never did, the way to the thread and back would be a tenth of a delivery. Who was written to is
noted for all messages of some seconds at once: with more senders than open notebooks, a note for each message would
open and close one, which costs a submission as much again in CPU and three syncs. Whatever goes wrong, mail is
delivered: after `_PATIENCE_S` it goes to INBOX. One line a minute says what is wrong.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pymx import log, metrics
from pymx.config.model import Junk
from pymx.junk import bayes
from pymx.junk.learn import Kind, LessonRefused, TeacherUnavailable
from pymx.junk.notebook import Notebook, Notebooks, NotebookUnusable
from pymx.junk.taught import Taught
from pymx.junk.tokens import MAX_OCTETS, hashes, message_key, sender_of, words_of
from pymx.mail.authres import stated
from pymx.mail.header import split_head
from pymx.mail.spam import Opinion
from pymx.spool import Content

_PATIENCE_S = 2.0
_SURE = 0.999
_LOG_EVERY_S = 60.0
_SILENT_S = 60.0  # for what changes in another way: a mailbox that was restored
_MAX_SILENT = 10_000
_MAX_NOTES = 1000  # of who was written to, waiting to be written down
_NOTE_AFTER_S = 2.0
_SHOWN = 5

_log = log.get("junk")


class Filter:
    """The filters of all accounts. `home` says where an account's mail lies; `hostname` is who proves with DMARC;
    `taught` is the file by which processes tell each other of lessons; `note_after_s` is how long notes are collected.
    """

    kinds = frozenset({Kind.SPAM, Kind.HAM, Kind.KEPT, Kind.STAYED})

    def __init__(
        self, home: Callable[[str], Path], settings: Junk, *, hostname: str, taught: Path,
        note_after_s: float = _NOTE_AFTER_S,
    ) -> None:  # fmt: skip
        self._notebooks = Notebooks(home, max_tokens=settings.max_tokens)
        self._settings = settings
        self._hostname = hostname
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="junk")
        self._taught = Taught(taught)
        self._silent: dict[str, tuple[bytes, float]] = {}  # account → as long as the mark is this, and until when
        self._note_after_s = note_after_s
        self._wrote: dict[str, list[str]] = {}  # account → to whom, not yet noted
        self._notes = 0
        self._is_closed = False
        self._complained: float | None = None

    async def judge(self, accounts: Sequence[str], content: Content) -> list[Opinion | None]:
        """What each account's filter thinks of one message. Never raises, and never takes long."""
        if self._is_closed:  # a session that did not end in time is still delivering
            return [None] * len(accounts)
        loop = asyncio.get_running_loop()
        mark, now = self._taught.mark(), loop.time()
        if mark and all(self._was_silent(account, mark, now) for account in accounts):
            return [None] * len(accounts)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                opinions = await loop.run_in_executor(self._thread, self._judge, accounts, content)
            for account, opinion in zip(accounts, opinions, strict=True):
                if opinion is None:
                    self._note_silent(account, mark, now)
            return opinions
        except TimeoutError:
            self._complain(f"not done within {_PATIENCE_S:g} s")
        except (NotebookUnusable, OSError) as e:
            self._complain(str(e))
        return [None] * len(accounts)

    async def teach(self, account: str, message: bytes, kind: Kind) -> bool:
        """Learn one message. Raises TeacherUnavailable, LessonRefused."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, self.learn, account, message, kind)
        except NotebookUnusable as e:
            raise TeacherUnavailable(str(e)) from None

    def _was_silent(self, account: str, mark: bytes, now: float) -> bool:
        known = self._silent.get(account)
        return known is not None and known[0] == mark and now < known[1]

    def _note_silent(self, account: str, mark: bytes, now: float) -> None:
        if len(self._silent) >= _MAX_SILENT:
            self._silent.clear()
        self._silent[account] = (mark, now + _SILENT_S)

    def wrote_to(self, account: str, addresses: Sequence[str]) -> None:
        """The account has sent mail to these; written down soon, by the thread. To be called in the loop."""
        if self._notes >= _MAX_NOTES or self._is_closed:
            return
        if not self._wrote:
            asyncio.get_running_loop().call_later(self._note_after_s, self._write_down)
        self._wrote.setdefault(account, []).extend(addresses)
        self._notes += len(addresses)

    def _write_down(self) -> None:
        wrote, self._wrote, self._notes = self._wrote, {}, 0
        if wrote and not self._is_closed:
            self._thread.submit(self._note, wrote)

    async def close(self) -> None:
        """Finish what the thread has to do; from now on there are no opinions."""
        self._write_down()
        self._is_closed = True
        await asyncio.to_thread(self._thread.shutdown)
        self._notebooks.close()
        self._taught.close()

    # In the thread

    def _judge(self, accounts: Sequence[str], content: Content) -> list[Opinion | None]:
        message = _Message(content)
        return [self._notebooks.use(account, lambda notebook: self._opinion(notebook, message)) for account in accounts]

    def _opinion(self, notebook: Notebook, message: _Message) -> Opinion | None:
        learned = notebook.learned()
        if min(learned) < self._settings.min_learned:
            return None
        clear = message.clear
        known = notebook.sender(message.author) if message.author else (0, 0)
        telling = bayes.telling(notebook.counts(list(clear)), *learned)
        sure = bayes.combined([p for p, _ in telling])
        metrics.add("junk_messages_judged")
        threshold = self._settings.threshold_percent / 100
        note = ""
        if any(known) and (proven := stated(message.head, self._hostname, "dmarc")) != "fail":
            note = "; you have written to the sender" if known[0] else "; you have kept mail of the sender"
            threshold = 2.0 if proven == "pass" else max(threshold, _SURE)
        is_junk = sure >= threshold
        if is_junk:
            metrics.add("junk_messages_filed")
        return Opinion(is_junk, _in_words(sure, is_junk, telling, clear, learned) + note)

    def learn(self, account: str, message: bytes, kind: Kind) -> bool:
        """Learn one message; False if it was known. Raises NotebookUnusable, LessonRefused."""
        head = split_head(message[:MAX_OCTETS])[0]
        found = hashes(words_of(message))
        key = message_key(head)
        now = time.time()
        careful = kind in (Kind.KEPT, Kind.STAYED)
        spam = kind is Kind.SPAM

        def learn(notebook: Notebook) -> bool:
            new = notebook.learn(key, found, spam=spam, now=now, unless_known=careful)
            author = sender_of(head)
            if new and author:
                if spam:
                    notebook.forget_sender(_hash(author))
                else:
                    notebook.note_senders([_hash(author)], written=False, now=now)
            return new

        new = self._notebooks.use(account, learn, make=True)
        self._taught.change()
        if new is None:
            raise LessonRefused("the account has no mail directory")
        return new

    def _note(self, wrote: dict[str, list[str]]) -> None:
        for account, addresses in wrote.items():
            try:
                self._note_all(account, addresses)
            except (NotebookUnusable, OSError) as e:
                self._complain(str(e))

    def _note_all(self, account: str, addresses: Sequence[str]) -> None:
        noted = [_hash(address.lower()) for address in addresses]
        now = time.time()
        self._notebooks.use(account, lambda n: n.note_senders(noted, written=True, now=now), make=True)

    def _complain(self, reason: str) -> None:
        metrics.add("junk_filter_failed")
        now = time.monotonic()
        if self._complained is None or now - self._complained >= _LOG_EVERY_S:
            self._complained = now
            _log.error("junk_filter_failed", reason=f"{reason}; mail is delivered unfiltered")


class _Message:
    """A message to be judged: its tokens are made when the first account wants them."""

    def __init__(self, content: Content) -> None:
        self.head = content.head
        self._content = content

    @functools.cached_property
    def clear(self) -> dict[int, str]:
        """The words by their hashes. Raises OSError from the spool."""
        words = words_of(_beginning(self._content))
        return dict(zip(hashes(words), words, strict=True))

    @functools.cached_property
    def author(self) -> int | None:
        author = sender_of(self.head)
        return _hash(author) if author else None


def _hash(address: str) -> int:
    return hashes([f"sender:{address}"])[0]


def _beginning(content: Content) -> bytes:
    """As much of the message as is looked at. Raises OSError from the spool."""
    parts: list[bytes] = []
    size = 0
    for chunk in content.chunks():
        parts.append(chunk)
        size += len(chunk)
        if size >= MAX_OCTETS:
            break
    return b"".join(parts)


def _in_words(
    sure: float,
    is_junk: bool,
    telling: Sequence[tuple[float, int]],
    clear: dict[int, str],
    learned: tuple[int, int],
) -> str:
    """`97.4 % like the 61 messages in Junk rather than the 212 that were kept; most telling: casino, bonus`."""
    text = f"{sure * 100:.4g} % sure that it is junk, after {learned[0]} messages of junk and {learned[1]} others"
    side = [clear[token] for p, token in telling if (p > 0.5) == (sure > 0.5)][:_SHOWN]
    if is_junk and side:
        text += f"; most telling: {', '.join(side)}"
    return text
