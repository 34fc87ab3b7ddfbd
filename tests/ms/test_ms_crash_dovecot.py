"""Dovecot on what a kill left behind: the same UIDs as were told, and not a word in its log."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ms_dovecot import DOVEADM, Dovecot
from ms_recorder import cut_states, kill_states, materialise
from ms_scenarios import BOX, INBOX, LAYOUT, Told, account, run, uids

from pymx.ms.disk import Disk

pytestmark = pytest.mark.skipif(DOVEADM is None, reason="no doveadm on this machine")


@pytest.mark.parametrize("name", ["deliver", "append", "store", "copy", "rename", "create"])
def test_dovecot_reads_every_kill_state(tmp_path: Path, name: str) -> None:
    """No repair by pymx in between."""
    work = os.fsencode(tmp_path)
    recorder = run(work, name)
    dovecot = Dovecot(tmp_path / "dovecot", tmp_path / "after" / "alice")
    for state in kill_states(recorder):
        materialise(state, recorder.root, work + b"/after")
        for path in (tmp_path / "after").rglob("*.lock"):
            if path.name.startswith("dovecot"):
                path.unlink()  # its owner, this process, is alive: Dovecot would wait for two minutes
        told = {f.uid for f in state.facts if isinstance(f, Told) and f.place == INBOX}
        assert told <= set(dovecot.messages("INBOX")), state.what
        assert dovecot.complaints == [], state.what


@pytest.mark.parametrize("name", ["append", "move", "rewrite"])
def test_dovecot_reads_power_cut_states_after_pymx(tmp_path: Path, name: str) -> None:
    """pymx mends, Dovecot finds the same UIDs; the last moment of each scenario."""
    work = os.fsencode(tmp_path)
    recorder = run(work, name)
    dovecot = Dovecot(tmp_path / "dovecot", tmp_path / "after" / "alice")
    for number, state in enumerate(cut_states(recorder)):
        if number == 12:
            break
        materialise(state, recorder.root, work + b"/after")
        there = account(work + b"/after/alice", Disk(), f"boot {number}")
        found = {place: set(uids(there, place).values()) for place in (INBOX, BOX)}
        there.close()
        for place, ours in found.items():
            assert ours == set(dovecot.messages(LAYOUT.name(place))), state.what
        assert dovecot.complaints == [], state.what
