"""`pymxctl setup`: what it makes, that it makes only what is missing, and that the server then receives mail."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import bcrypt
import pytest
from support.machine import Machine, is_possible
from support.mariadb import Database
from support.programs import require
from support.terminal import run_on_terminal
from support.tls import CertificateAuthority
from support.wait import wait_for

from pymx.admin import ctl
from pymx.admin.install.units import UNITS, unit_text
from pymx.config.load import load

HOST = "mx.example.com"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tree with no more than users."""
    etc = tmp_path / "tree" / "etc"
    etc.mkdir(parents=True)
    if os.geteuid() == 0:
        (etc / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
        (etc / "group").write_text("root:x:0:\n")
    return etc.parent


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def setup(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv("PYMX_CONFIG", raising=False)

    def run(*words: str, to: tuple[str, ...] = (HOST, "--domain", "example.com")) -> tuple[int, str, str]:
        capsys.readouterr()
        status = ctl.main(["setup", *to, "--root", str(root), *words])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def snapshot(root: Path) -> dict[str, tuple[int, int, int, int]]:
    found = {}
    for path in sorted(root.rglob("*")):
        s = path.lstat()
        # SQLite touches its directory when it opens a database
        found[str(path.relative_to(root))] = (s.st_mode, s.st_uid, s.st_size, 0 if path.is_dir() else s.st_mtime_ns)
    return found


def test_a_dry_run_shows_everything_and_does_nothing(root: Path, setup: Run) -> None:
    before = snapshot(root)
    status, out, _ = setup("--user", "alice@example.com", "--dry-run")
    assert status == 0
    assert snapshot(root) == before
    for line in ('+hostname = "mx.example.com"', "make a DKIM key for example.com (ed25519)", "add the user alice@",
                 "+ExecStart=", "Nothing was done (--dry-run)."):  # fmt: skip
        assert line in out


def test_it_makes_what_a_server_needs(root: Path, setup: Run) -> None:
    status, out, err = setup("--user", "alice@example.com", "--yes")
    assert status == 0, err
    config = load(root / "etc/pymx/pymx.toml")
    assert (config.hostname, config.accounts.postmaster, config.acme.enabled) == (HOST, "alice@example.com", True)
    modes = {path: stat.S_IMODE((root / path).stat().st_mode) for path in
             ("etc/pymx", "etc/pymx/pymx.toml", "var/lib/pymx", "var/vmail", "var/lib/pymx/pymx.sqlite")}  # fmt: skip
    assert modes == {
        "etc/pymx": 0o750, "etc/pymx/pymx.toml": 0o640, "var/lib/pymx": 0o700, "var/vmail": 0o700,
        "var/lib/pymx/pymx.sqlite": 0o600,
    }  # fmt: skip
    assert len(list((root / "var/lib/pymx/dkim/example.com").glob("*.pem"))) == 2
    units = root / "etc/systemd/system"
    assert (units / "multi-user.target.wants/pymx.service").is_symlink()
    assert (units / "timers.target.wants/pymx-nightly.timer").is_symlink()
    assert "/opt/pymx" not in (units / "pymx.service").read_text()
    assert "The password of alice@example.com" in out
    assert "_dmarc.example.com  TXT" in out
    if os.geteuid() == 0:
        assert "vmail:x:5000:5000" in (root / "etc/passwd").read_text().replace(":!:", ":x:")
        assert {(root / p).stat().st_uid for p in ("var/vmail", "var/lib/pymx", "var/lib/pymx/pymx.sqlite")} == {5000}
        assert ((root / "etc/pymx/pymx.toml").stat().st_uid, (root / "etc/pymx/pymx.toml").stat().st_gid) == (0, 5000)


def test_run_again_it_changes_nothing(root: Path, setup: Run) -> None:
    setup("--user", "alice@example.com", "--yes")
    before = snapshot(root)
    assert setup("--user", "alice@example.com", "--dry-run")[1] == "Nothing is missing.\n"
    status, out, _ = setup("--user", "alice@example.com", "--yes")
    assert (status, out.splitlines()[0]) == (0, "Nothing was missing.")
    assert "password" not in out
    assert snapshot(root) == before


def test_only_what_is_missing_is_made(root: Path, setup: Run) -> None:
    """An edited configuration stays, the keys in use too."""
    setup("--user", "alice@example.com", "--yes")
    config = root / "etc/pymx/pymx.toml"
    config.write_text(config.read_text().replace("[acme]\nenabled = true", "[acme]\nenabled = false"))
    edited = config.read_text()
    keys = root / "var/lib/pymx/dkim/example.com"
    kept = next(keys.glob("*rsa.pem"))
    kept_key = kept.read_bytes()
    next(keys.glob("*ed25519.pem")).unlink()
    (root / "etc/systemd/system/pymx-nightly.timer").unlink()
    result = setup("--yes", "--json", "--domain", "example.org", "--user", "alice@example.com")
    assert json.loads(result[1])["changed"] == [
        "accounts", "DKIM key of example.com", "DKIM key of example.org", "DKIM key of example.org",
        str(root / "etc/systemd/system/pymx-nightly.timer"),
    ]  # fmt: skip
    assert config.read_text() == edited
    assert kept.read_bytes() == kept_key


def test_a_database_password_is_in_a_file_of_its_own(root: Path, setup: Run) -> None:
    status, out, err = setup("--database", "mysql://pymx:s3cret@127.0.0.1:1/mail", "--dry-run")
    assert "s3cret" not in out + err
    assert (status, "can't be used" in err or "database" in err) == (1, True)  # it does not answer
    assert setup("--database", "mysql://pymx:s3cret@127.0.0.1:1/mail", "--yes")[0] == 1
    secret, config = root / "etc/pymx/database-url", root / "etc/pymx/pymx.toml"
    assert secret.read_text() == "mysql://pymx:s3cret@127.0.0.1:1/mail\n"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o640
    assert "s3cret" not in config.read_text()


def test_certbots_certificate_is_taken_over(
    root: Path, setup: Run, certificate_authority: CertificateAuthority
) -> None:
    files = certificate_authority.issue("setup", names=(HOST,))
    lineage = root / "etc/letsencrypt/live" / HOST
    lineage.mkdir(parents=True)
    shutil.copy(files.certificate, lineage / "fullchain.pem")
    shutil.copy(files.private_key, lineage / "privkey.pem")
    assert setup("--yes")[0] == 0
    assert not load(root / "etc/pymx/pymx.toml").acme.enabled
    copied = root / "var/lib/pymx/tls" / f"{HOST}.pem"
    assert copied.read_text().count("-----BEGIN") >= 2
    assert stat.S_IMODE(copied.stat().st_mode) == 0o600
    hook = root / "etc/letsencrypt/renewal-hooks/deploy/pymx"
    assert os.access(hook, os.X_OK)
    assert "cert install" in hook.read_text()
    assert setup("--dry-run")[1] == "Nothing is missing.\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="adding users needs root")
def test_a_user_number_that_is_taken_is_named(root: Path, setup: Run) -> None:
    with (root / "etc/passwd").open("a") as f:
        f.write("games:x:5000:60::/:/bin/sh\n")
    status, _, err = setup("--yes")
    assert status == 1
    assert "the user number 5000 is games's" in err
    assert "useradd --system" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((HOST,), "which domain is mail received for?"),
        (("mx", "--domain", "example.com"), "mx: expected a full name"),
        ((HOST, "--domain", "example.com", "--user", "alice@example.net"), "alice@example.net is in none"),
        ((HOST, "--domain", "exa mple.com"), "exa mple"),
        ((HOST, "--domain", "example.com", "--user", "alice"), "alice"),
    ],
)  # fmt: skip
def test_wrong_words_are_refused(setup: Run, words: tuple[str, ...], said: str) -> None:
    status, _, err = setup("--yes", to=words)
    assert status == 2
    assert said in err


def test_on_a_terminal_it_asks(root: Path) -> None:
    """Account, certificate, password twice; two that differ are asked for again."""
    command = (
        str(Path(sys.executable).parent / "pymxctl"),
        "setup",
        HOST,
        "--domain",
        "example.com",
        "--root",
        str(root),
    )
    status, drawn = run_on_terminal(
        *command,
        answers=[
            ("Address of the first account, who is postmaster too [postmaster@example.com]: ", "alice@example.com"),
            ("Which? [1] ", "3"),
            ("Password for alice@example.com", "correct horse"),
            ("Once more: ", "battery staple"),
            ("Password for alice@example.com", "correct horse"),
            ("Once more: ", "correct horse"),
        ],
    )
    assert status == 0, drawn
    assert "These differ." in drawn
    assert "correct horse" not in drawn
    config = load(root / "etc/pymx/pymx.toml")
    assert (config.accounts.postmaster, config.acme.enabled) == ("alice@example.com", False)
    with sqlite3.connect(root / "var/lib/pymx/pymx.sqlite") as db:
        (stored,) = db.execute("SELECT password FROM users").fetchone()
    db.close()
    assert bcrypt.checkpw(b"correct horse", stored.removeprefix("{BLF-CRYPT}").encode())


@pytest.mark.skipif(bool(is_possible()), reason=f"no machine of its own: {is_possible()}")
def test_from_nothing_to_a_received_mail(tmp_path: Path) -> None:
    """On a machine of its own: set up, start what the unit starts, and send to port 25."""
    with Machine(tmp_path) as machine:
        words = ("setup", HOST, "--domain", "example.com", "--user", "alice@example.com", "--yes", "--skip-checks")
        out = machine.run("pymxctl", *words).stdout
        assert "add vmail (5000:5000, no login)" in out
        assert machine.run("pymxctl", *words).stdout.startswith("Nothing was missing.")
        unit = (machine.root / "etc/systemd/system/pymx.service").read_text()
        start = next(line for line in unit.splitlines() if line.startswith("ExecStart=")).removeprefix("ExecStart=")
        server = machine.start(*start.split())
        try:
            assert server.stdout is not None
            seen: list[str] = []
            for line in server.stdout:
                seen.append(line)
                if line.strip() == "ready":
                    break
            else:
                pytest.fail("it did not start:\n" + "".join(seen[-30:]))
            send = (
                "import smtplib; s = smtplib.SMTP('127.0.0.1', 25, 'client.example.net', timeout=30); "
                "s.sendmail('x@example.net', ['alice@example.com', 'postmaster@example.com'], "
                "'From: x@example.net\\r\\nTo: alice@example.com\\r\\nSubject: first\\r\\n"
                "Message-ID: <1@example.net>\\r\\nDate: Tue, 24 Nov 2026 10:00:00 +0000\\r\\n\\r\\nhello\\r\\n')"
            )
            machine.run("python", "-c", send)
            home = machine.root / "var/vmail/example.com/alice"
            wait_for(lambda: _has_mail(home, "Subject: first"), timeout_s=30, what="the mail is in the mailbox")
            # the daemon, not only pymxctl, is vmail by now
            processes = {Path(p).stat().st_uid for p in _processes_of(machine, "serve")}
            assert processes == {5000}
        finally:
            machine.kill(server)
            if server.stdout:
                server.stdout.close()


def _has_mail(home: Path, text: str) -> bool:
    return any(text in path.read_text() for path in home.rglob("*") if path.parent.name in ("new", "cur"))


def _processes_of(machine: Machine, word: str) -> list[str]:
    """Directories in /proc of the machine's own processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().split(b"\0")
            here = os.readlink(path / "root")
        except OSError:
            continue
        if word.encode() in command and b"nsenter" not in command[0] and here == str(machine.root):
            found.append(str(path))
    return found


@pytest.mark.mariadb
def test_tables_in_mariadb(root: Path, setup: Run, mariadb_database: Database) -> None:
    """Made in an empty database; the second time there is nothing to do."""
    words = ("--user", "alice@example.com", "--database", mariadb_database.url, "--certificate", "later")
    assert "make the tables of the accounts database" in setup(*words, "--dry-run")[1]
    status, out, err = setup(*words, "--yes")
    assert status == 0, err
    assert "make the tables of the accounts database" in out
    assert (root / "etc/pymx/database-url").read_text() == mariadb_database.url + "\n"
    assert setup(*words, "--dry-run")[1] == "Nothing is missing.\n"


@pytest.mark.parametrize("name", UNITS)
def test_units_are_such_that_systemd_knows_every_key(name: str, tmp_path: Path) -> None:
    """`systemd-analyze verify`, with a program that is there in place of ours."""
    analyze = require("systemd-analyze", "systemd")
    for each in UNITS:
        text = unit_text(each, Path("/opt/pymx/bin"))
        (tmp_path / each).write_text(re.sub(r"/opt/pymx/bin/\w+", "/bin/true", text))
    done = subprocess.run(
        [analyze, "verify", str(tmp_path / name)],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    assert name not in done.stderr, done.stderr
