"""Interleavings of three IMAP sessions in two processes, deliveries and a foreign program, against a model.

Hypothesis chooses the kinds of the sessions and what is done. After each command the session must have been told just
what the model says, and at the end a fresh look must find it (RFC 3501 s. 5.2, 7.4.1; RFC 4315 s. 3; RFC 6851 s. 3;
RFC 7162 s. 3; RFC 9051 s. 7.5; RFC 9586 s. 3). What the rules mean by `mask` chooses among the messages of a view.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule, run_state_machine_as_test
from imap_company import FLAGS, LETTERS, MODES, SYSTEM, Company, Session, Stage, listed, message, spaced, staged
from imap_model import FOREIGN, Box, Flags, subsets, uids_of
from support.tls import TlsFiles

sessions = st.integers(0, 2)
masks = st.sampled_from([*range(1, 64), *[63] * 16])  # 63 is all
boxes = st.sampled_from([0, 0, 0, 1])
by_uids = st.sampled_from([False, False, True])
flag_sets = st.sets(st.sampled_from(FLAGS), max_size=2).map(frozenset)
some_flags = st.sets(st.sampled_from(FLAGS), min_size=1, max_size=2).map(frozenset)
points = st.sampled_from([None, 0, 0, 1, 2, 3, 6])  # how far back among the HIGHESTMODSEQs told

_ALWAYS = settings(deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))


class Sessions(Company):
    """What may happen."""

    # --- beginning and end

    @initialize(modes=st.lists(st.sampled_from([*MODES, "plain", "qresync"]), min_size=3, max_size=3))
    def begin(self, modes: list[str]) -> None:
        self.play(self._begin(modes))

    # --- mailboxes

    @rule(number=sessions, at=boxes, read_only=st.booleans(), point=points)
    def select(self, number: int, at: int, read_only: bool, point: int | None) -> None:
        async def act() -> None:
            session = await self.ready(number)
            await self._select(session, self.box(at), read_only=read_only, point=point)

        self.play(act())

    @rule(number=sessions)
    def come_back(self, number: int) -> None:
        """Out of the mailbox and in again with what was kept of it (RFC 7162 s. 3.2.5, and 6 for which modseq)."""

        async def act() -> None:
            session = await self.selected(number)
            box, read_only = session.view.box, session.view.read_only
            await self._select(session, box, read_only=read_only, point=0)

        self.play(act())

    @rule(number=sessions, expunge=st.booleans())
    def leave(self, number: int, expunge: bool) -> None:
        """CLOSE removes what is deleted without a word (RFC 3501 s. 6.4.2), UNSELECT does not (RFC 3691)."""

        async def act() -> None:
            session = await self.selected(number)
            if expunge:
                await self._close(session)
            else:
                self._leave(session)
                await self.ask(session, "UNSELECT")

        self.play(act())

    @rule(number=sessions)
    def rename(self, number: int) -> None:
        """Who has it selected goes on (RFC 3501 s. 6.3.5); others are told to go."""

        async def act() -> None:
            session = await self.ready(number)
            old = self.box(0).name
            new = old.replace("A", "C") if "A" in old else old.replace("C", "A")
            others = {name: box for name, box in self.world.boxes.items() if name != old}
            self.world.rename(old, new)
            for name in others:  # its place among the two stays
                self.world.boxes[name] = self.world.boxes.pop(name)
            if session.ear.view is not None and session.view.name == old:
                session.view.name = new
            await self.tell(session, f"RENAME {old} {new}")
            for other in list(self.sessions):
                if other.idling and not other.view.alive:
                    await self._dismissed(other)

        self.play(act())

    @rule(number=sessions, at=boxes)
    def status(self, number: int, at: int) -> None:
        async def act() -> None:
            await self._status(await self.ready(number), self.box(at))

        self.play(act())

    # --- messages come in

    @rule(number=sessions, at=boxes, flags=flag_sets)
    def append(self, number: int, at: int, flags: Flags) -> None:
        async def act() -> None:
            await self._append(await self.ready(number), self.box(at), flags)

        self.play(act())

    async def _append(self, session: Session, box: Box, flags: Flags) -> None:
        token = self.world.token()
        text = message(token)
        uid = self.world.add(box, token, flags)
        command = f"APPEND {box.name} ({spaced(flags)}) {{{len(text)}+}}\r\n".encode() + text
        heard = await self.tell(session, command)
        found = heard.code(rb"\[APPENDUID (\d+) (\d+)\]")
        assert found, heard.tagged
        assert (int(found[1]), int(found[2])) == (box.uidvalidity, uid)

    @rule(at=boxes)
    def deliver(self, at: int) -> None:
        self.play(self._deliver(self.box(at)))

    @rule(number=sessions, mask=masks, at=boxes, by_uid=by_uids, move=st.booleans())
    def copy(self, number: int, mask: int, at: int, by_uid: bool, move: bool) -> None:
        """COPYUID names what was copied, in order; a MOVE's comes before the EXPUNGEs (RFC 6851 s. 4.3)."""

        async def act() -> None:
            session = await self.selected(number)
            view, target = session.view, self.box(at)
            name, chosen, _ = self._chosen(session, mask, by_uid)
            if not chosen:
                return
            verb = name.format(verb="MOVE" if move else "COPY")
            if move and view.read_only:
                await self.ask(session, f"{verb} {target.name}", ok=False)
                return
            there = [uid for uid in chosen if uid in view.box.messages]
            made = self.world.copy(view.box, there, target)
            if move:
                self.world.remove(view.box, there)
            heard = await self.tell(session, f"{verb} {target.name}")
            found = heard.code(rb"\[COPYUID (\d+) ([\d:,]+) ([\d:,]+)\]")
            told = (int(found[1]), uids_of(found[2]), uids_of(found[3])) if found else (target.uidvalidity, [], [])
            assert told == (target.uidvalidity or told[0], there, made)
            if move and there:
                assert b"COPYUID" in heard.lines[0]

        self.play(act())

    # --- messages change

    @rule(
        number=sessions,
        mask=masks,
        by_uid=by_uids,
        sign=st.sampled_from(["+", "+", "-", ""]),
        flags=some_flags,
        silent=st.booleans(),
        point=points,
    )
    def store(
        self, number: int, mask: int, by_uid: bool, sign: str, flags: Flags, silent: bool, point: int | None
    ) -> None:
        """STORE, also conditional (RFC 7162 s. 3.1.3)."""

        async def act() -> None:
            session = await self.selected(number)
            await self._store(session, mask, by_uid, sign, flags, silent, point)

        self.play(act())

    async def _store(
        self, session: Session, mask: int, by_uid: bool, sign: str, flags: Flags, silent: bool, point: int | None
    ) -> None:
        view = session.view
        name, chosen, uid_form = self._chosen(session, mask, by_uid)
        if not chosen:
            return
        since, condition = self.world.now, ""
        if point is not None and session.ear.condstore:
            modseq, since = view.box.points[-point] if 0 < point <= len(view.box.points) else (0, -1)
            condition = f" (UNCHANGEDSINCE {modseq})"
        item = f"{sign}FLAGS{'.SILENT' if silent else ''} ({spaced(flags)})"
        command = f"{name.format(verb='STORE')}{condition} {item}"
        if view.read_only:
            await self.ask(session, command, quiet=not uid_form, ok=False)
            return
        there = [uid for uid in chosen if uid in view.box.messages]
        failed = [uid for uid in there if view.box.messages[uid].changed > since]
        passed = [uid for uid in there if uid not in failed]
        view.box.named = view.box.named or (sign != "-" and not flags <= SYSTEM)
        for uid in passed:
            self.world.flag(view.box, uid, self._with(view.box.messages[uid].flags, sign, flags), session.number)
            if silent:
                view.flags[uid] = self._with(view.flags[uid], sign, flags)
        heard = await self.tell(session, command, () if silent else passed, quiet=not uid_form)
        if not silent or session.ear.condstore:
            assert set(passed) <= set(heard.fetched), f"{command} did not tell of all"
        modified = heard.code(rb"\[MODIFIED ([\d:,]+)\]")
        shown = failed if uid_form else [view.sure.index(uid) + 1 for uid in failed]
        assert (uids_of(modified[1]) if modified else []) == shown
        if not uid_form and not failed:
            assert (b"[EXPUNGEISSUED]" in heard.tagged) == (len(there) < len(chosen))

    @rule(number=sessions, mask=masks, how=st.sampled_from(["EXPUNGE", "UID EXPUNGE", "marked", "marked"]))
    def expunge(self, number: int, mask: int, how: str) -> None:
        """EXPUNGE and UID EXPUNGE, of messages in the session's view; also of such that it marks first."""

        async def act() -> None:
            await self._expunge(await self.selected(number), mask, how)

        self.play(act())

    async def _expunge(self, session: Session, mask: int, how: str) -> None:
        view = session.view
        chosen = view.sure if how == "EXPUNGE" else list(subsets(view.sure, mask))
        if how == "marked":
            chosen = [uid for uid in chosen if uid in view.box.messages][:2]
        if how != "EXPUNGE" and not chosen:
            return
        command = how if how == "EXPUNGE" else f"UID EXPUNGE {listed(chosen)}"
        if view.read_only:
            await self.ask(session, command, ok=False)
            return
        if how == "marked":
            for uid in chosen:
                self.world.flag(view.box, uid, view.box.messages[uid].flags | {b"\\Deleted"}, session.number)
            await self.tell(session, f"UID STORE {listed(chosen)} +FLAGS (\\Deleted)", chosen)
            await self._listen_to_all()
        self.world.remove(view.box, view.box.deleted(chosen))
        await self.tell(session, command)

    @rule(
        number=sessions,
        mask=masks,
        then=st.sampled_from(["store", "fetch", "search"]),
        flags=some_flags,
        silent=st.booleans(),
        back=st.booleans(),
    )
    def fall_behind(self, number: int, mask: int, then: str, flags: Flags, silent: bool, back: bool) -> None:
        """It is not told of an expunge during FETCH, STORE and SEARCH, and may leave right after, knowing of none."""

        async def act() -> None:
            able = [one.number for one in self.sessions if one.mode == "qresync"] if back or silent else []
            session = await self.selected(able[0] if able else number)
            box = session.view.box
            other = await self.ready((session.number + 1) % 3)
            if other.ear.view is None or other.view.box is not box or other.view.read_only:
                await self._select(other, box, read_only=False, point=None)
            await self._expunge(other, mask, "marked")
            await self._listen_to_all()
            if then == "store" or back:
                await self._store(session, ~mask & 63, False, "+", flags, silent, None)
            elif then == "fetch":
                await self._fetch(session, 63, silent, 0 if silent else None)
            else:
                await self._search(session, False, "ALL", 1)
            if back:
                await self._select(session, box, read_only=session.view.read_only, point=0)

        self.play(act())

    @rule(number=sessions, close=st.booleans())
    def expunge_blindly(self, number: int, close: bool) -> None:
        """EXPUNGE and CLOSE spare what the session has not been told of."""

        async def act() -> None:
            session = await self.selected(number)
            await self._append(await self.ready((number + 1) % 3), session.view.box, frozenset({b"\\Deleted"}))
            await self._listen_to_all()
            if close:
                await self._close(session)
            else:
                await self._expunge(session, 63, "EXPUNGE")

        self.play(act())

    # --- looking

    @rule(number=sessions, command=st.sampled_from(["NOOP", "NOOP", "CHECK"]))
    def noop(self, number: int, command: str) -> None:
        async def act() -> None:
            await self.tell(await self.selected(number), command)

        self.play(act())

    @rule(number=sessions)
    def idle(self, number: int) -> None:
        """From now on it hears of everything at once, until it has something else to do."""

        async def act() -> None:
            session = await self.selected(number)
            session.idling = True
            session.client.send(b"i IDLE\r\n")
            while (line := await session.client.line()) != b"+ idling":
                session.ear.take([line])

        self.play(act())

    @rule(number=sessions, mask=masks, by_uid=by_uids, point=points)
    def fetch(self, number: int, mask: int, by_uid: bool, point: int | None) -> None:
        """FLAGS and MODSEQ, also of what changed or vanished since (RFC 7162 s. 3.1.4.1, 3.2.6)."""

        async def act() -> None:
            await self._fetch(await self.selected(number), mask, by_uid, point)

        self.play(act())

    async def _fetch(self, session: Session, mask: int, by_uid: bool, point: int | None) -> None:
        view, box = session.view, session.view.box
        name, chosen, uid_form = self._chosen(session, mask, by_uid)
        if not chosen:
            return
        expected = {uid for uid in chosen if uid in box.messages}
        modifier, since, vanishes = "", -1, False
        if session.ear.condstore and point is not None and box.points:
            modseq, since = box.points[-point % len(box.points)]
            vanishes = uid_form and session.ear.qresync
            modifier = f" (CHANGEDSINCE {modseq}{' VANISHED' if vanishes else ''})"
            expected &= box.changed_since(since)
        gone = box.gone_since(since) - set(view.sure)
        if mask != 63:
            gone &= set(chosen)
        items = "(UID FLAGS MODSEQ)" if session.ear.condstore else "(UID FLAGS)"
        heard = await self.tell(session, f"{name.format(verb='FETCH')} {items}{modifier}", expected, quiet=not uid_form)
        assert expected <= set(heard.fetched), "FETCH left out"
        if vanishes:
            last = max(view.box.uidnext, 2)
            assert sorted(heard.earlier) == sorted(uid for uid in gone if uid < last), "VANISHED (EARLIER)"
        if not uid_form and since < 0:
            lost = any(uid not in box.messages for uid in chosen)
            assert (b"[EXPUNGEISSUED]" in heard.tagged) == lost

    @rule(number=sessions, mask=masks, by_uid=by_uids)
    def read(self, number: int, mask: int, by_uid: bool) -> None:
        """BODY[] gives the message that the number or UID stands for, and makes it \\Seen (RFC 3501 s. 6.4.5)."""

        async def act() -> None:
            session = await self.selected(number)
            view = session.view
            name, chosen, uid_form = self._chosen(session, mask, by_uid)
            if not chosen:
                return
            there = [uid for uid in chosen if uid in view.box.messages]
            if not view.read_only:
                for uid in there:
                    self.world.flag(view.box, uid, view.box.messages[uid].flags | {b"\\Seen"}, number)
            heard = await self.tell(session, f"{name.format(verb='FETCH')} (UID BODY[])", there, quiet=not uid_form)
            for uid in there:
                assert f"Subject: {view.box.messages[uid].token}\r\n".encode() in heard.fetched[uid]

        self.play(act())

    @rule(
        number=sessions,
        by_uid=by_uids,
        key=st.sampled_from(["ALL", "SEEN", "UNSEEN", "DELETED", "KEYWORD work", "UNKEYWORD $Label", "MODSEQ"]),
        point=st.integers(1, 6),
    )
    def search(self, number: int, by_uid: bool, key: str, point: int) -> None:
        """Of the session's view, by what the messages are now."""

        async def act() -> None:
            await self._search(await self.selected(number), by_uid, key, point)

        self.play(act())

    async def _search(self, session: Session, by_uid: bool, key: str, point: int) -> None:
        view, there = session.view, session.view.box.messages
        if key == "MODSEQ" and not (session.ear.condstore and view.box.points):
            return
        since, text = -1, key
        if key == "MODSEQ":
            modseq, since = view.box.points[-point % len(view.box.points)]
            text = f"MODSEQ {modseq + 1}"
        wanted = [uid for uid in view.sure if uid in there and view.box.matches(uid, key, since)]
        uid_form = by_uid or session.ear.uidonly
        before = view.sure
        heard = await self.tell(session, f"{'UID ' if uid_form else ''}SEARCH {text}", quiet=not uid_form)
        line = next(line for line in heard.lines if line.startswith((b"* SEARCH", b"* ESEARCH")))
        if line.startswith(b"* ESEARCH"):
            found = re.search(rb" ALL ([\d:,]+)", line)
            told = uids_of(found[1]) if found else []
        else:
            told = list(map(int, line.partition(b" (")[0].split()[2:]))
        uids = told if uid_form else [before[number - 1] for number in told]
        # one whose expunge was not told yet may still be found
        assert [uid for uid in uids if uid in there or uid not in before] == wanted

    # --- a foreign program

    @rule(at=boxes)
    def foreign_drop(self, at: int) -> None:
        async def act() -> None:
            box = self.box(at)
            await self._noticed(box)
            self.foreign.drop(box, token := self.world.token())
            self.world.add(box, token, frozenset())
            box.unseen = True

        self.play(act())

    @precondition(lambda self: any(box.messages for box in self.world.boxes.values()))
    @rule(
        at=boxes,
        pick=st.integers(0, 5),
        what=st.sampled_from(["unlink", "flag", "flag", "move"]),
        letters=st.sampled_from(sorted(LETTERS)),
    )
    def foreign_change(self, at: int, pick: int, what: str, letters: bytes) -> None:
        async def act() -> None:
            box, target = self.box(at), self.box(1 - at)
            if not box.messages:
                box, target = target, box
            await self._noticed(box)
            box.unseen = True
            uid = box.uids[pick % len(box.messages)]
            told = box.messages[uid]
            if what == "unlink":
                self.foreign.unlink(box, uid)
                self.world.remove(box, [uid])
            elif what == "flag":
                self.foreign.rename(box, uid, letters.decode())
                self.world.flag(box, uid, told.flags - SYSTEM | LETTERS[letters], FOREIGN)
            else:
                await self._noticed(target)
                self.foreign.rename(box, uid, letters.decode(), target)
                self.world.remove(box, [uid])
                self.world.add(target, told.token, frozenset(LETTERS[letters]))
                target.unseen = True

        self.play(act())

    # --- at the same time

    @rule(
        pair=st.sampled_from([(0, 1), (0, 2), (1, 2)]),
        kinds=st.lists(
            st.sampled_from(["append", "flag", "unsee", "expunge", "noop", "fetch", "deliver"]), min_size=2, max_size=2
        ),
        mask=masks,
    )
    def race(self, pair: tuple[int, int], kinds: list[str], mask: int) -> None:
        """Two sessions at once, with what comes to the same in either order."""
        self.play(self._race(pair, kinds, mask))

    async def _race(self, pair: tuple[int, int], kinds: list[str], mask: int) -> None:
        for number in range(3):
            await self.ready(number)
        racers = [await self.selected(number) for number in pair]
        for session in racers:
            await self.tell(session, "NOOP")
        self.raced = []
        commands: list[Coroutine[object, object, list[bytes] | int]] = []
        for session, kind in zip(racers, kinds, strict=True):
            commands.append(self._racing(session, kind, mask))
        answers = await asyncio.gather(*commands)
        came = []
        for session, answer in zip(racers, answers, strict=True):
            box = session.view.box
            if isinstance(answer, int):
                came.append((box.name, answer))
            elif found := re.search(rb"\[APPENDUID \d+ (\d+)\]", answer[-1]):
                came.append((box.name, int(found[1])))
        tokens = {(name, uid): token for (name, uid), token in zip(came, self.raced, strict=True)}
        for name, uid in sorted(came):
            assert self.world.add(self.world.boxes[name], tokens[name, uid], frozenset()) == uid
        for session, answer in zip(racers, answers, strict=True):
            if not isinstance(answer, int):
                session.ear.take(answer, racing=True)
        for session in racers:
            await self._finish(session)


@pytest.fixture(scope="module")
def stage(tls_files: TlsFiles) -> Iterator[Stage]:
    with staged(tls_files) as stage:
        yield stage


def _play(stage: Stage, chosen: settings) -> None:
    run_state_machine_as_test(lambda: Sessions(stage), settings=chosen)


@pytest.mark.timeout(600)  # one that fails is minimised
def test_sessions_are_told_what_the_model_says(stage: Stage) -> None:
    """The same examples each time."""
    _play(stage, settings(_ALWAYS, max_examples=75, stateful_step_count=40, derandomize=True, database=None))


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_sessions_are_told_what_the_model_says_for_long(stage: Stage) -> None:
    """Other examples each time."""
    _play(stage, settings(_ALWAYS, max_examples=1000, stateful_step_count=60, derandomize=False))
