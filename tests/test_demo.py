"""`make run`: the throw-away appliance, in a network of its own because its ports are fixed.

Needs unshare(1) and ip(8), and root or user namespaces; skipped where these are missing.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

NEEDED = 'ip link set lo up && exec "$@"'


@pytest.fixture(scope="module")
def apart() -> list[str]:
    """What runs a command with a loopback of its own."""
    if not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("unshare or ip is not installed")
    command = ["unshare", "--map-root-user", "--net", "sh", "-c", NEEDED, "sh"]
    done = subprocess.run([*command, "true"], capture_output=True, text=True, timeout=60)
    if done.returncode:
        pytest.skip(f"no network namespaces here: {done.stderr.strip()}")
    return command


def demo(apart: list[str], var: Path, *arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pymx.demo", "--once", "--var", str(var), *arguments]
    if before:
        command = ["sh", "-c", f'{before}\n"$@"; status=$?; kill $!; exit $status', "sh", *command]
    return subprocess.run([*apart, *command], capture_output=True, text=True, timeout=100, cwd=var.parent)


def test_it_serves_until_ctrl_c(apart: list[str], tmp_path: Path) -> None:
    """And takes the server along."""
    command = [*apart, sys.executable, "-m", "pymx.demo", "--var", str(tmp_path / "var")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        for line in running.stdout:
            if line == "Serving until Ctrl-C.\n":
                break
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 0
        assert running.stderr.read() == ""
    assert "event=process_stopped role=all" in (tmp_path / "var" / "pymx.log").read_text()


@pytest.mark.parametrize("workers", [1, 2])
def test_it_shows_a_message_arriving_and_ends(apart: list[str], tmp_path: Path, workers: int) -> None:
    """From nothing to a message in bob's mailbox, and the same again over what is there already."""
    var = tmp_path / "var"
    passwords = []
    for _ in range(2):
        done = demo(apart, var, "--workers", str(workers))
        assert (done.returncode, done.stderr) == (0, "")
        assert "bob reads it over IMAP" in done.stdout
        assert re.search(r"^Subject: Hello from pymx [0-9a-f]{8}$", done.stdout, re.MULTILINE)
        assert "with ESMTPSA" in done.stdout
        assert re.search(r"^DKIM-Signature: ", done.stdout, re.MULTILINE)
        for setting in ("port 2993", "port 2465", "port 2587", "port 2525", f"--config {var}/pymx.toml"):
            assert setting in done.stdout
        passwords.append(re.findall(r"(\S+@example.test) +password (\S+)", done.stdout))
    assert [user for user, _ in passwords[0]] == ["alice@example.test", "bob@example.test"]
    assert passwords[0] == passwords[1]
    assert (var / "users.txt").stat().st_mode & 0o077 == 0


def test_a_taken_port_is_named_with_its_setting(apart: list[str], tmp_path: Path) -> None:
    """A sentence and a status, no traceback."""
    taken = (
        f"{sys.executable} -c \"import socket, time; s = socket.create_server(('127.0.0.1', 2465));"
        " open('taken', 'w').close(); time.sleep(90)\" &\nwhile ! [ -e taken ]; do sleep 0.05; done"
    )
    done = demo(apart, tmp_path / "var", before=taken)
    assert done.returncode == 1
    assert "127.0.0.1:2465" in done.stderr
    assert "[submission] listen_tls" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_message_that_can_not_arrive_is_a_failure(apart: list[str], tmp_path: Path) -> None:
    """Bob's mailbox can't be made: status 1, and where to look."""
    var = tmp_path / "var"
    (var / "vmail").mkdir(parents=True)
    (var / "vmail" / "example.test").write_text("in the way")
    done = demo(apart, var)
    assert done.returncode == 1
    assert f"see {var}/pymx.log" in done.stderr
    assert "Traceback" not in done.stderr
