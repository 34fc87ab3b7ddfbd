"""A mailbox that is being made is used by nobody before it is whole."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from ms_scenarios import INBOX, LAYOUT, account, uids

from pymx.ms import delivering, folders, uidlist
from pymx.ms.disk import Disk
from pymx.ms.layout import Levels
from pymx.spool import Content


class Paused(Disk):
    """Stops before it writes a uidlist, until `meanwhile` has ended or seems to wait."""

    def __init__(self) -> None:
        self.meanwhile: threading.Thread | None = None

    def create(self, path: bytes, mode: int = 0o600, *, exclusive: bool = True) -> int:
        if os.path.basename(path) == uidlist.NAME and self.meanwhile is not None:
            self.meanwhile.start()
            self.meanwhile.join(0.5)
        return super().create(path, mode, exclusive=exclusive)


@pytest.mark.parametrize("place", [INBOX, ("Fresh",)])
def test_a_delivery_into_a_mailbox_that_is_being_made_keeps_its_uid(tmp_path: Path, place: Levels) -> None:
    """Two processes that both have the first message for an account: the second finds a `cur` already."""
    root, slow = os.fsencode(tmp_path / "alice"), Paused()
    maker, other = account(root, slow, "boot"), account(root, Disk(), "boot")
    if place != INBOX:
        maker.make_inbox()
    placed: list[delivering.Placed] = []

    def deliver() -> None:
        message = Content.from_bytes(b"Subject: a\r\n\r\nEND a\r\n")
        placed.append(delivering.deliver(other.box(place), message, 0, None))

    slow.meanwhile = threading.Thread(target=deliver)
    if place == INBOX:
        maker.make_inbox()
    else:
        folders.create(maker.home, LAYOUT, place, "")
    slow.meanwhile.join()
    row = delivering.told_row(maker.box(place))
    assert (row.uidvalidity, uids(maker, place)) == (placed[0].uidvalidity, {"a": placed[0].uid})
    with open(maker.box(place).uidlist, "rb") as file:
        assert uidlist.parse(file.read()).header.uidvalidity == row.uidvalidity
    maker.close()
    other.close()
