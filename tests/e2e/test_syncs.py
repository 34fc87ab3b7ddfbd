"""The system calls behind a 250: what the models of store and queue count on is really done (invariant 1)."""

from __future__ import annotations

import re
import shutil
import smtplib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.appliance import Appliance
from support.wait import wait_for

CALLS = "trace=fsync,fdatasync,write,writev,sendto,sendmsg,linkat,rename,renameat,renameat2"


@pytest.fixture
def traced(tmp_path: Path) -> Iterator[tuple[Appliance, Path]]:
    """A server and the file in which strace(1) writes what it does."""
    trace = tmp_path / "trace"
    strace = shutil.which("strace")
    if not strace or subprocess.run([strace, "-o", str(trace), "true"], capture_output=True).returncode:
        pytest.skip("strace is not installed, or may not look at processes here")
    server = Appliance(wrapper=[strace, "-D", "-f", "-y", "-s", "80", "-e", CALLS, "-o", str(trace)])
    try:
        server.populate()
        server.start()
        yield server, trace
        assert server.stop() == 0
    finally:
        server.kill()
        server.remove()


def before_the_250(trace: Path, queue_id: str) -> list[str]:
    """The calls between the 354 to DATA and the 250, which names the message."""
    reply = re.compile(rf'"250 2\.0\.0 [^"]*{queue_id}')
    wait_for(lambda: reply.search(trace.read_text(errors="replace")), what="the reply is in the trace")
    lines = trace.read_text(errors="replace").splitlines()
    last = next(i for i, line in enumerate(lines) if reply.search(line))
    first = max(i for i, line in enumerate(lines[:last]) if '"354 ' in line)
    return lines[first:last]


def synced(calls: list[str]) -> list[str]:
    """The paths that were synced, in their order. A call that was interrupted by another thread's has two lines."""
    return re.findall(r"(?:fsync|fdatasync)\(\d+<([^>]*)>", "\n".join(calls))


def send(server: Appliance, to: str) -> str:
    with smtplib.SMTP("127.0.0.1", server.ports["smtp"], timeout=60) as client:
        client.ehlo()
        client.mail("x@elsewhere.example")
        assert client.rcpt(to)[0] == 250
        code, text = client.data(b"From: x@elsewhere.example\r\nSubject: x\r\n\r\nhello\r\n")
    assert code == 250
    return text.decode().split()[-1]


def test_mailbox_and_queue_are_on_the_disk_before_the_250(traced: tuple[Appliance, Path]) -> None:
    """For a mailbox the message, then its UID; for a queue the content, its name, and the commit."""
    server, trace = traced
    send(server, server.address("bob"))  # the first makes directories and an index
    paths = synced(before_the_250(trace, send(server, server.address("bob"))))
    assert len(paths) == 2
    assert all("/vmail/" in path for path in paths)
    # to several, so that nobody waits for the next server's word
    server.ctl("alias", "add", f"out@{server.domain}", "someone@remote.test", "other@remote.test")
    paths = synced(before_the_250(trace, send(server, f"out@{server.domain}")))
    for what in (r"/queue/messages/#\d+", "/queue/messages", r"/queue/state\.sqlite-wal"):
        assert [path for path in paths if re.search(what + r"\Z", path)], (what, paths)
