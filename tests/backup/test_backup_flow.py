"""Backups while mail comes in through port 25 and moves on from the queue: nothing is in neither."""

from __future__ import annotations

import io
import re
import shutil
import smtplib
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from support.appliance import Appliance
from support.wait import wait_for

from pymx.admin import ctl
from pymx.admin.backup_lists import MANIFEST

# how many messages move on while the backup is at each of its parts
MOVES = {"data/queue/": 8, "mail/example.test/alice": 4, "mail/example.test/bob": 4, "": 8}
MESSAGE_ID = re.compile(rb"^Message-ID: <(\w+)@x>", re.M)

# asks on standard output at each change of the file system, and goes on when it is answered
STEPPING = """
import os, sys
asking = False
def hook(event, arguments):
    global asking
    if asking or not (event in ("os.link", "os.mkdir", "sqlite3.connect", "os.rename") or (
        event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT)):
        return
    asking = True
    print(event, *arguments[:2], flush=True)
    sys.stdin.readline()
    asking = False
sys.addaudithook(hook)
from pymx.admin import ctl
status = ctl.main()
print("done", flush=True)
sys.exit(status)
"""


@pytest.fixture
def server() -> Iterator[Appliance]:
    server = Appliance()
    try:
        server.populate(("alice", "bob"))
        yield server.start()
    finally:
        server.remove()


def send(server: Appliance, name: str, *to: str) -> None:
    text = f"From: carol@elsewhere.test\r\nSubject: {name}\r\nMessage-ID: <{name}@x>\r\n\r\n{name}\r\n"
    with smtplib.SMTP("127.0.0.1", server.ports["smtp"], timeout=30) as client:
        assert client.sendmail("carol@elsewhere.test", [server.address(user) for user in to], text) == {}


def queued(data: Path) -> dict[str, str]:
    """Message → queue id, for what has not been delivered yet."""
    found = {}
    for path in (data / "queue/messages").iterdir():
        try:
            said = MESSAGE_ID.search(path.read_bytes())
        except FileNotFoundError:  # delivered this moment
            continue
        if said:
            found[said[1].decode()] = path.name
    return found


def stored(mail: Path, user: str) -> set[str]:
    inbox = mail / "example.test" / user
    found = (MESSAGE_ID.search(p.read_bytes()) for part in ("new", "cur") for p in (inbox / part).iterdir())
    return {said[1].decode() for said in found if said}


def ctl_here(server: Appliance, *words: str) -> None:
    with redirect_stdout(io.StringIO()):
        assert ctl.main(["--config", str(server.config), *words]) == 0


class Arrivals:
    """Messages for alice through port 25, one after the other, until it is left; `accepted` are those with a 250."""

    def __init__(self, server: Appliance) -> None:
        self.accepted: list[str] = []
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def _send(self) -> None:
        while not self._stop.is_set():
            name = f"direct{len(self.accepted)}"
            send(self._server, name, "alice")
            self.accepted.append(name)

    def __enter__(self) -> Arrivals:
        self._thread.start()
        wait_for(lambda: len(self.accepted) > 3, what="mail for alice")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)


def back_up(server: Appliance, target: Path, waiting: list[str]) -> int:
    """One backup, in each part of which some of the messages of `waiting` go on to their mailbox; how many did."""
    messages, left, moved = server.directory / "data/queue/messages", dict(MOVES), 0
    process = subprocess.Popen(
        [sys.executable, "-c", STEPPING, "--config", str(server.config), "backup", "create", str(target)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            if line.startswith("done"):
                break
            part = next(p for p in MOVES if f"/.backup/stage/{p}" in line or not p)
            if "/.backup/stage/" in line and left[part]:
                left[part] -= 1
                queue_id = waiting.pop()
                ctl_here(server, "queue", "release", queue_id)
                try:
                    wait_for(lambda path=messages / queue_id: not path.exists(), timeout_s=5)
                    moved += 1
                except AssertionError:
                    pass  # the backup, which stands still, holds the mailbox: it moves on later
            process.stdin.write("\n")
            process.stdin.flush()
    assert process.returncode == 0
    assert not any(left.values())
    return moved


def test_message_that_moves_on_meanwhile_is_in_the_backup(server: Appliance, tmp_path: Path) -> None:
    """Accepted before the backup began: in the queue, in the mailbox or in both, and after a restore in the mailbox."""
    data, mail = server.directory / "data", server.directory / "vmail"
    send(server, "first", "bob")
    wait_for(lambda: "first" in stored(mail, "bob"), what="a mailbox for bob")
    tmp = mail / "example.test/bob/tmp"
    shutil.rmtree(tmp)
    tmp.write_text("bob's disk is broken")
    names = [f"moving{n}" for n in range(sum(MOVES.values()))]
    for name in names:
        send(server, name, "alice", "bob")
    assert queued(data).keys() == set(names)
    ctl_here(server, "queue", "hold", "--all")
    tmp.unlink()
    tmp.mkdir(mode=0o700)
    with Arrivals(server) as arrivals:
        before = set(arrivals.accepted)
        moved = back_up(server, tmp_path / "backups", list(queued(data).values()))
    assert moved >= len(names) // 2
    (manifest,) = (tmp_path / "backups").glob("*/" + MANIFEST)
    tree = manifest.parent
    waiting = queued(tree / "data").keys()
    assert {"first", *names} <= waiting | stored(tree / "mail", "bob")
    assert before | set(names) <= stored(tree / "mail", "alice")

    server.kill()
    for path in (data, mail):
        shutil.rmtree(path)
    (server.directory / "pymx.sqlite").unlink()
    ctl_here(server, "restore", str(tmp_path / "backups"))
    server.start()
    if waiting:
        ctl_here(server, "queue", "release", "--all")
    wait_for(lambda: {"first", *names} <= set(server.subjects("bob")), what="all of bob's mail")
    assert before | set(names) <= set(server.subjects("alice"))
