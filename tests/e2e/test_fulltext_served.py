"""Full text in a whole server: the first search reads, a child process builds, later searches ask the index."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from support.appliance import Appliance
from support.wait import wait_for

MESSAGE = "From: ann@example.test\r\nSubject: number {0}\r\n\r\nA text of the number {0}, with {1} in it.\r\n"


@pytest.fixture(params=[1, 2])
def appliance(request: pytest.FixtureRequest) -> Iterator[Appliance]:
    server = Appliance(workers=request.param)
    server.populate(("alice",))
    server.start()
    yield server
    server.remove()


def search(appliance: Appliance, *criterion: str) -> list[bytes]:
    with appliance.imap("alice") as imap:
        imap.select("INBOX")
        _, found = imap.uid("SEARCH", *criterion)
    return bytes(found[0]).split()


def stats(appliance: Appliance) -> dict[str, object]:
    found: dict[str, object] = appliance.ctl_json("mailbox", "fulltext", "stats", appliance.address("alice"))
    return found


def test_search_has_the_index_built_and_gives_the_same_afterwards(appliance: Appliance) -> None:
    with appliance.imap("alice") as imap:
        for number in range(120):
            animal = "a zebra" if number == 77 else "nothing"
            imap.append("INBOX", None, None, MESSAGE.format(number, animal).encode())
    assert search(appliance, "BODY", "zebra") == [b"78"]
    wait_for(lambda: "event=fulltext_built" in appliance.log(), what="the index is built")
    assert stats(appliance)["messages"] == 120
    assert search(appliance, "BODY", "zebra") == [b"78"]
    assert search(appliance, "TEXT", '"number 119"') == [b"120"]
    assert len(search(appliance, "TEXT", "ann@example")) == 120
    assert search(appliance, "BODY", "unheard") == []


def test_server_and_builder_killed_at_once_leave_the_same_answers(appliance: Appliance) -> None:
    """kill -9 of all processes while the index is being built."""
    with appliance.imap("alice") as imap:
        for number in range(60):
            imap.append("INBOX", None, None, MESSAGE.format(number, "a zebra" if number % 20 == 7 else "none").encode())
    expected = search(appliance, "BODY", "zebra")
    assert len(expected) == 3
    assert appliance.process is not None
    os.killpg(appliance.process.pid, signal.SIGKILL)
    appliance.process.wait(30)
    assert appliance.process.stdout is not None
    appliance.process.stdout.close()
    appliance.process = None
    appliance.start()
    assert search(appliance, "BODY", "zebra") == expected
    appliance.ctl("mailbox", "fulltext", "build", appliance.address("alice"), check=False)
    wait_for(lambda: stats(appliance)["messages"] == 60, what="the index is whole")
    assert search(appliance, "BODY", "zebra") == expected
    appliance.ctl("mailbox", "fulltext", "off", appliance.address("alice"))
    assert stats(appliance)["state"] == "off"
    assert search(appliance, "BODY", "zebra") == expected
