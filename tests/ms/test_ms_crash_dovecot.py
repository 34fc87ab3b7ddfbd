"""A real Dovecot on what a kill or a power cut left behind of every scenario: all that was promised, the same in pymx,
and not a word in Dovecot's log.

After a kill Dovecot is the first to look, and pymx must then see what Dovecot saw. After a power cut pymx mends first.
One Dovecot serves the module; it goes through a batch of states, each an account, with one command.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from ms_dovecot import DOVEADM
from ms_promises import Seen, check, token_of
from ms_recorder import Recorder, State, cut_states, kill_states, materialise
from ms_scenarios import INBOX, LAYOUT, SCENARIOS, Violation, account, run
from support.dovecot import Dovecot

from pymx.mail.flags import SYSTEM_FLAGS
from pymx.ms import delivering, folders, letters, names, reading
from pymx.ms.account import Account
from pymx.ms.disk import Disk
from pymx.ms.layout import Levels

pytestmark = pytest.mark.skipif(DOVEADM is None, reason="no doveadm on this machine")
BATCH = 60
EVERY_CUT = 8  # of how many power-cut states one is tried, but in the long form
_boots = itertools.count(1)
View = dict[Levels, Seen]


@dataclass(frozen=True)
class Shown:
    """What Dovecot has of each account: mailboxes, subscriptions."""

    views: dict[str, View]
    subscribed: dict[str, set[Levels]]


class Reader:
    """The running Dovecot, and the accounts below its root: `s<n>` is alice in the nth state, `b<n>` is bob."""

    def __init__(self, top: Path) -> None:
        self.homes = top / "homes"
        self.server = Dovecot(top / "dovecot")
        users = [f"{kind}{n}@x" for n in range(BATCH) for kind in "sb"]
        self._config = self.server.serve(self.homes, users=users).config

    def place(self, states: Sequence[State], recorder: Recorder) -> None:
        shutil.rmtree(self.homes / "x", ignore_errors=True)
        (self.homes / "x").mkdir()
        for number, state in enumerate(states):
            after = self.homes / "after"
            materialise(state, recorder.root, os.fsencode(after))
            (after / "alice").rename(self.homes / "x" / f"s{number}")
            if (after / "bob").is_dir():
                (after / "bob").rename(self.homes / "x" / f"b{number}")

    def _doveadm(self, *arguments: str) -> list[dict[str, str]]:
        command = [*self.server.command(self.homes, "doveadm"), "-c", str(self._config), "-f", "json", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
        bad = [line for line in done.stderr.splitlines() if re.search("Error|Warning|Fatal|Panic", line)]
        assert not done.returncode
        assert not bad, bad
        assert self.server.errors() == []
        rows: list[dict[str, str]] = json.loads(done.stdout)
        return rows

    def look(self) -> Shown:
        there: dict[str, dict[str, dict[int, tuple[str, frozenset[str]]]]] = {}
        for row in self._doveadm("fetch", "-u", "*", "mailbox uid flags text", "mailbox", "*"):
            flags = frozenset(row["flags"].split()) - {"\\Recent"}
            user = there.setdefault(row["username"].partition("@")[0], {})
            user.setdefault(row["mailbox"], {})[int(row["uid"])] = (token_of(row["text"]), flags)
        views: dict[str, View] = {}
        for row in self._doveadm("mailbox", "status", "-u", "*", "uidvalidity uidnext", "*"):
            user_name = row["username"].partition("@")[0]
            messages = there.get(user_name, {}).get(row["mailbox"], {})
            seen = Seen(int(row["uidvalidity"]), int(row["uidnext"]), messages)
            views.setdefault(user_name, {})[LAYOUT.levels(row["mailbox"])] = seen
        subscribed: dict[str, set[Levels]] = {}
        for row in self._doveadm("mailbox", "list", "-s", "-u", "*"):
            subscribed.setdefault(row["username"].partition("@")[0], set()).add(LAYOUT.levels(row["mailbox"]))
        return Shown(views, subscribed)


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    """In memory where possible: that Dovecot syncs is not what is looked at."""
    top = Path(tempfile.mkdtemp(prefix="pymx-dc-crash-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    top.chmod(0o755)
    reader = Reader(top)
    try:
        yield reader
    finally:
        reader.server.close()
        shutil.rmtree(top)


def pymx_view(there: Account) -> View:
    """As Dovecot shows it: without keywords beyond the letters, which it has no place for."""
    out: View = {}
    for place in LAYOUT.mailboxes(there.home.root):
        box = there.box(place)
        row = delivering.told_row(box)
        with there.home.index.read() as db:
            known = letters.keyword_names(db, row)[: names.LETTERS]
            rows = db.execute(
                "SELECT id & 4294967295, flags, keywords FROM message WHERE id BETWEEN ? AND ?", (row.low, row.high)
            ).fetchall()
        messages = {}
        for uid, bits, keywords in rows:
            flags = {name for name, bit in SYSTEM_FLAGS.items() if bits & bit}
            flags |= {name for bit, name in enumerate(known) if keywords >> bit & 1}
            messages[uid] = (token_of((reading.read_message(box, uid) or b"").decode()), frozenset(flags))
        out[place] = Seen(row.uidvalidity, row.uidnext, messages)
    return out


def opened_by_pymx(home: Path) -> tuple[View, set[Levels]]:
    there = account(os.fsencode(home), Disk(), f"boot {next(_boots)}")
    try:
        listed = {LAYOUT.levels(f.name) for f in folders.listing(there.home, LAYOUT, {}) if f.subscribed}
        return pymx_view(there), listed
    finally:
        there.close()


def _leave_locks_of_the_dead(home: Path) -> None:
    """Their owner, this process, is alive. Dovecot waits until they are 2 s old, for an empty one two minutes."""
    child = subprocess.Popen(["true"])
    child.wait()
    for path in home.rglob("dovecot*.lock"):
        content = path.read_bytes()
        if content:
            path.write_bytes(b"%d:" % child.pid + content.partition(b":")[2])
            os.utime(path, (time.time() - 10, time.time() - 10))
        else:
            path.unlink()


def _check_first(bob: View, state: State) -> None:
    """The first delivery to an account nobody had mail for."""
    for fact in state.facts:
        if isinstance(fact, tuple):
            assert bob[INBOX].uidvalidity == fact[1], "UIDVALIDITY of an account's first mailbox changed"
            assert "a" in {token for token, _ in bob[INBOX].messages.values()}, "first message lost"


def look_at(states: Sequence[State], recorder: Recorder, reader: Reader) -> None:
    reader.place(states, recorder)
    homes = reader.homes / "x"
    before: list[View] = []
    for number, state in enumerate(states):
        if state.cut:
            before.append(opened_by_pymx(homes / f"s{number}")[0])
            if (homes / f"b{number}").exists():
                opened_by_pymx(homes / f"b{number}")
    _leave_locks_of_the_dead(homes)
    try:
        shown = reader.look()
    except (AssertionError, Violation) as error:
        raise AssertionError(f"among {[state.what for state in states]}: {error}") from error
    for number, state in enumerate(states):
        user = f"s{number}"
        try:
            view, subscribed = shown.views[user], shown.subscribed.get(user, set())
            check(state.facts, view, subscribed, cut=state.cut)
            _check_first(shown.views.get(f"b{number}", {}), state)
            if state.cut:
                # of a CREATE that nobody was answered Dovecot shows the empty directory; without `cur` pymx does not
                begun = {place for place, box in view.items() if place not in before[number] and not box.messages}
                assert {place: box for place, box in view.items() if place not in begun} == before[number]
            else:
                assert opened_by_pymx(homes / user) == (view, subscribed)
        except Exception as error:
            raise AssertionError(f"{state.what}: {error!r}") from error


def every(states: Iterator[State], step: int) -> Iterator[list[State]]:
    """One of `step` states, in batches."""
    chosen = itertools.islice(states, 0, None, step)
    while batch := list(itertools.islice(chosen, BATCH)):
        yield batch


@pytest.mark.parametrize("name", SCENARIOS)
def test_dovecot_finds_what_was_promised_after_a_kill(reader: Reader, tmp_path: Path, name: str) -> None:
    """Every call of every scenario; no repair by pymx in between."""
    recorder = run(os.fsencode(tmp_path), name)
    for states in every(kill_states(recorder), 1):
        look_at(states, recorder, reader)


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("step", [EVERY_CUT, pytest.param(1, marks=pytest.mark.soak)])
def test_dovecot_finds_what_was_promised_after_a_power_cut(
    reader: Reader, tmp_path: Path, name: str, step: int
) -> None:
    """With and without an index that outlived it."""
    recorder = run(os.fsencode(tmp_path), name)
    for states in every(cut_states(recorder), step):
        look_at(states, recorder, reader)
