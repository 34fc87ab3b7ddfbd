"""pymxctl itself: usage, configuration, speed, who it runs as, what it prints where."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

import pytest
from support.programs import python_for
from support.terminal import run_on_terminal

HEAVY = (
    "sqlalchemy",
    "alembic",
    "rich",
    "asyncio",
    "cryptography",
    "idna",
    "logging",
    "bcrypt",
    "dataclasses",
    "inspect",
    "shutil",
    "typing_extensions",
    "difflib",
)


@pytest.mark.parametrize("words", [(), ("nonsense",), ("domain",), ("domain", "nonsense"), ("user", "add", "a@b.test")])
def test_wrong_usage_is_status_2(pymxctl, words: tuple[str, ...]):
    done = pymxctl(*words)
    assert done.status == 2
    assert "usage: pymxctl" in done.err


def test_help_lists_the_nouns_and_a_nouns_help_its_verbs(run_ctl):
    done = run_ctl("--help")
    assert done.status == 0
    for noun in ("domain", "user", "alias", "dkim", "queue", "resolve", "status", "check-config", "migrate"):
        assert f"\n  {noun} " in done.out
    assert "passwd" in run_ctl("user", "--help").out
    assert run_ctl("--version").out == "pymx 0.1.0\n"


def test_a_missing_or_wrong_config_is_named(run_ctl, tmp_path: Path):
    done = run_ctl("--config", str(tmp_path / "missing.toml"), "status")
    assert done.status == 1
    assert "missing.toml" in done.err
    (tmp_path / "wrong.toml").write_text("hostnme = 'x'\n")
    assert "did you mean hostname?" in run_ctl("--config", str(tmp_path / "wrong.toml"), "status").err


def test_the_config_may_come_from_the_environment(pymxctl, run_ctl, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYMX_CONFIG", str(pymxctl.config))
    assert run_ctl("status").status == 3


@pytest.mark.parametrize("words", [("status",), ("check-config",)])
def test_a_command_without_database_imports_nothing_heavy(pymxctl, words: tuple[str, ...]):
    """What keeps it under 60 ms; the time itself would be a matter of the machine."""
    code = (
        "import sys; from pymx.admin.ctl import main; main(sys.argv[2:]); "
        "sys.exit(' '.join(m for m in sys.argv[1].split() if m in sys.modules) or None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, " ".join(HEAVY), "--config", str(pymxctl.config), *words],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr


def test_accounts_commands_do_without_what_they_do_not_use(pymxctl):
    pymxctl.ok("domain", "add", "example.test")
    code = (
        "import sys; from pymx.admin.ctl import main; main(sys.argv[2:]); "
        "sys.exit(' '.join(m for m in sys.argv[1].split() if m in sys.modules) or None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "alembic rich sqlalchemy.orm", "--config", str(pymxctl.config), "domain", "list"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr


def test_a_terminal_gets_a_drawn_table(pymxctl):
    pymxctl.ok("domain", "add", "example.test")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    subprocess.run(
        [sys.executable, "-m", "pymx.admin.ctl", "--config", str(pymxctl.config), "domain", "list"],
        stdout=theirs,
        timeout=30,
        check=True,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(theirs)
    drawn = b""
    try:
        while part := os.read(ours, 65536):
            drawn += part
    except OSError:
        pass  # the other side is closed
    os.close(ours)
    assert b"example.test" in drawn
    assert "─".encode() in drawn


WORK = """
import sys
from pymx.admin.output import Output
with Output(as_json="--json" in sys.argv).progress("Junk", 3) as step:
    for _ in range(3):
        step()
print("learned 3", "rich" in sys.modules)
"""


def test_long_work_has_a_bar_on_a_terminal_and_nowhere_else():
    """For people only: not in a pipe, not with --json; it goes away when the work is done."""
    status, drawn = run_on_terminal(sys.executable, "-c", WORK, env={**os.environ, "TERM": "xterm", "COLUMNS": "80"})
    assert status == 0
    assert "Junk" in drawn
    assert "3/3" in drawn
    assert drawn.rstrip().endswith("learned 3 True")
    status, drawn = run_on_terminal(sys.executable, "-c", WORK, "--json")
    assert (status, drawn.strip()) == (0, "learned 3 False")
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("learned 3 False\n", "")


def test_controls_in_a_value_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]):
    from pymx.admin.output import Output

    Output(as_json=False).table(["Name"], [["\x1b[31mred\r\n"]])
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_root_becomes_the_servers_user_before_it_touches_data(tmp_path: Path):
    python, environment = python_for("nobody")
    with tempfile.TemporaryDirectory() as name:
        data = Path(name)
        os.chown(data, 65534, 65534)
        config = tmp_path / "nobody.toml"
        config.write_text(
            f'hostname = "mx.example.test"\nuser = "nobody"\n[database]\nurl = "sqlite:///{data}/db"\n'
            f'[control]\nsocket = "{tmp_path}/control.sock"\n'
        )
        command = [python, "-m", "pymx.admin.ctl", "--config", config, "domain", "add", "example.test"]
        done = subprocess.run(command, env=environment, timeout=30, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert {file.stat().st_uid for file in data.iterdir()} == {65534}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_a_user_that_does_not_exist_is_named(pymxctl):
    pymxctl.config.write_text(pymxctl.config.read_text().replace('user = "none"', 'user = "no-such-user"'))
    done = pymxctl("domain", "list")
    assert done.status == 1
    assert "useradd --system" in done.err
