"""Kill and power-cut model of every step list (pymx/ms), and proof that each sync in them is needed.

A scenario runs on a recorder, which logs calls and what was told to the peer in between. Each state that a kill or a
power cut may leave is then reopened with pymx and looked at: no acknowledged message lost, none half there, no UID told
for two messages, UIDVALIDITY the same, nothing acknowledged as expunged back again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ms_recorder import Recorder, State, cut_states, kill_states, materialise
from ms_scenarios import (
    INBOX,
    LAYOUT,
    SCENARIOS,
    Folder,
    Going,
    Gone,
    HasKeyword,
    Stored,
    Subscribed,
    Told,
    Violation,
    account,
    deliver,
    run,
    uids,
)

from pymx.ms import delivering, folders, letters, uidlist
from pymx.ms.account import Account
from pymx.ms.disk import Disk
from pymx.ms.errors import NoSuchMailbox
from pymx.ms.layout import Levels

_boots = itertools.count(1)
EXPECTED_SYNCS = {"deliver": 2, "append": 4}  # APPEND of two: n + 2


@pytest.fixture
def workplace() -> Iterator[bytes]:
    """In memory where possible: what is modelled is the order of calls, not a disk."""
    base = "/dev/shm" if os.path.isdir("/dev/shm") else None
    path = tempfile.mkdtemp(prefix="pymx-crash-", dir=base)
    yield os.fsencode(path)
    shutil.rmtree(path, ignore_errors=True)


def check(state: State, recorder: Recorder, workplace: bytes, boot: str) -> None:
    """Reopen with pymx. Raises Violation."""
    top = os.path.join(workplace, b"after")
    materialise(state, recorder.root, top)
    there = account(os.path.join(top, b"alice"), Disk(), boot)
    bob = account(os.path.join(top, b"bob"), Disk(), boot)
    try:
        _check(state, there, bob)
    finally:
        there.close()
        if os.path.isdir(bob.home.root):
            bob.close()


def _check(state: State, there: Account, bob: Account) -> None:
    going = {(f.token, f.place) for f in state.facts if isinstance(f, Going)}
    for fact in state.facts:
        if isinstance(fact, Folder):
            _check_folder(fact, there, state.facts, going)
        elif isinstance(fact, Subscribed):
            there_now = {LAYOUT.levels(f.name) for f in folders.listing(there.home, LAYOUT, {}) if f.subscribed}
            if fact.place not in there_now:
                raise Violation(f"subscription {fact.place} lost")
        elif isinstance(fact, tuple):
            if "a" not in uids(bob, INBOX):
                raise Violation("first message of an account lost")
            if delivering.told_row(bob.box(INBOX)).uidvalidity != fact[1]:
                raise Violation("UIDVALIDITY of an account's first mailbox changed")
    found = {place: uids(there, place) for place in LAYOUT.mailboxes(there.home.root)}
    for fact in state.facts:
        if isinstance(fact, Stored):
            places = [p for p in fact.places if (fact.token, p) not in going and ("", p) not in going]
            promised = len(places) == len(fact.places) or (places and len(fact.places) > 1)
            if promised and not any(fact.token in found.get(place, {}) for place in fact.places):
                raise Violation(f"{fact.token} lost from {fact.places}")
        elif isinstance(fact, Gone) and fact.token in found.get(fact.place, {}):
            raise Violation(f"{fact.token} is back in {fact.place}")
        elif isinstance(fact, HasKeyword):
            _check_keyword(fact, there, found[fact.place][fact.token])
    _check_told(state, there, found, going)
    _check_keywords(state, there)


def _check_folder(fact: Folder, there: Account, facts: list[object], going: set[tuple[str, Levels]]) -> None:
    later = [f for f in facts if isinstance(f, Folder) and f.place == fact.place]
    if later[-1] is not fact:
        return
    try:
        row = delivering.told_row(there.box(fact.place))
    except NoSuchMailbox:
        if fact.exists and ("", fact.place) not in going:
            raise Violation(f"mailbox {fact.place} lost") from None
        return
    if not fact.exists:
        raise Violation(f"mailbox {fact.place} is back")
    if row.uidvalidity != fact.uidvalidity:
        raise Violation(f"UIDVALIDITY of {fact.place} changed")


def _check_told(
    state: State, there: Account, found: dict[Levels, dict[str, int]], going: set[tuple[str, Levels]]
) -> None:
    told: dict[Levels, dict[int, str]] = {}
    for fact in state.facts:
        if isinstance(fact, Told) and fact.place in found:
            told.setdefault(fact.place, {})[fact.uid] = fact.token
    for place, pairs in told.items():
        for token, uid in found[place].items():
            if pairs.get(uid, token) != token:
                raise Violation(f"UID {uid} of {place} was {pairs[uid]}, is {token}")
        for uid, token in pairs.items():
            if (token, place) in going:
                continue  # unlinked but not synced: back as a new message, as the expunge may have been told
            if token in found[place] and found[place][token] != uid:
                raise Violation(f"{token} had UID {uid}, has {found[place][token]}")
        deliver(there, place, "later")
        later = uids(there, place)["later"]
        if later <= max(pairs):
            raise Violation(f"UID {later} given again in {place}")


def _check_keyword(fact: HasKeyword, there: Account, uid: int) -> None:
    with there.home.index.read() as db:
        row = there.box(fact.place).row(db)
        assert row is not None
        (bits,) = db.execute("SELECT keywords FROM message WHERE id=?", (row.low | uid,)).fetchone()
        known = letters.keyword_names(db, row)
    if fact.name not in [name for bit, name in enumerate(known) if bits >> bit & 1]:
        raise Violation(f"{fact.token} lost {fact.name}")


def _check_keywords(state: State, there: Account) -> None:
    for place in LAYOUT.mailboxes(there.home.root):
        box = there.box(place)
        used = {letter for name in os.listdir(box.cur) for letter in name.partition(b":2,")[2] if letter >= 97}
        if used:
            with there.home.index.read() as db:
                known = dict(db.execute("SELECT bit, k.name FROM keyword k JOIN mailbox m ON m.id = k.mailbox"))
            if 0 not in known:
                raise Violation("a keyword letter without a name")


def states(recorder: Recorder) -> Iterator[tuple[State, str]]:
    for state in kill_states(recorder):
        yield state, "first"
    for state in cut_states(recorder):
        yield state, f"boot {next(_boots)}"


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_kill_or_power_cut_breaks_a_promise(workplace: bytes, name: str) -> None:
    """STORE.md s. 10: at every call, with anything unsynced missing."""
    recorder = run(workplace, name)
    for state, boot in states(recorder):
        try:
            check(state, recorder, workplace, boot)
        except Exception as error:
            raise AssertionError(f"{state.what}: {error!r}") from error


@pytest.mark.parametrize(("name", "syncs"), EXPECTED_SYNCS.items())
def test_syncs_per_operation(workplace: bytes, name: str, syncs: int) -> None:
    """A delivery costs two syncs, APPEND of n messages n + 2."""
    recorder = run(workplace, name)
    assert recorder.syncs == syncs, [c for c in recorder.calls if "sync" in c.kind]


def _count(name: str) -> int:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as path:
        return run(os.fsencode(path), name).syncs


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "append"])  # append_then_lose has its syncs
def test_leaving_out_any_sync_is_found(workplace: bytes, name: str) -> None:
    """Each sync in the step lists is there for a reason: without it the model finds a broken promise."""
    unneeded = []
    for skip in range(run(workplace, name).syncs):
        recorder = run(workplace, name, skip)
        if not any(_violated(state, boot, recorder, workplace) for state, boot in states(recorder)):
            unneeded.append(skip)
    assert not unneeded, f"syncs nobody would miss: {unneeded}"


def _violated(state: State, boot: str, recorder: Recorder, workplace: bytes) -> bool:
    with contextlib.suppress(Violation, NoSuchMailbox):
        check(state, recorder, workplace, boot)
        return False
    return True


def test_a_kill_leaves_a_uidlist_that_dovecot_reads(workplace: bytes) -> None:
    """Dovecot may look at any moment: every line is whole at every call."""
    for name in ("deliver", "append", "copy", "rewrite"):
        recorder = run(workplace, name)
        for state in kill_states(recorder):
            for path, node in state.tree.names.items():
                if path.endswith(b"dovecot-uidlist") and node is not None:
                    parsed = uidlist.parse(state.tree.data[node])
                    assert parsed.clean, Path(os.fsdecode(path))
