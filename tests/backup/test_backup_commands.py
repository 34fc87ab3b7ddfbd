"""pymxctl backup and restore: what is in a backup, what keeps one whole, and how it is seen that one is not."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.programs import require
from support.sinks import SmtpSink
from support.wait import wait_for

from pymx.accounts.dump import check_sqlite, copy_sqlite
from pymx.admin.backup_lists import MANIFEST
from pymx.config.model import Outbound
from pymx.mail.address import Address
from pymx.mail.envelope import Envelope, Recipient
from pymx.queue.item import Copy, new_queue_id
from pymx.queue.queue import Queue
from pymx.spool import Content


def generations(directory: Path) -> list[Path]:
    return [path.parent for path in sorted(directory.glob("*/" + MANIFEST))]


def rename_to_yesterday(generation: Path) -> Path:
    """Names have seconds; the next one must have another."""
    return generation.rename(generation.with_name("20251231T030000Z"))


def messages(tree: Path) -> dict[str, Path]:
    parts = (p for p in (tree / "mail").rglob("*") if p.parent.name in ("cur", "new"))
    return {p.name.partition(":")[0]: p for p in parts}


def test_unchanged_messages_are_links_and_every_backup_stands_alone(still, tmp_path: Path) -> None:
    """A second backup takes the space of what is new, is whole without the first, and shares nothing with live mail."""
    still.fill()
    directory = tmp_path / "backups"
    still.ctl("backup", "create", str(directory))
    first = rename_to_yesterday(generations(directory)[0])
    flagged = next((still.account / "cur").iterdir())
    flagged.rename(flagged.with_name(flagged.name.partition(":")[0] + ":2,RS"))
    new = still.deliver(99)
    still.ctl("backup", "create", str(directory))
    second = generations(directory)[1]
    shared = messages(first).keys() & messages(second).keys()
    assert len(shared) == 20
    assert {base for base, path in messages(second).items() if path.stat().st_nlink == 2} == shared
    assert messages(second).keys() - shared == {new.name.partition(":")[0]}
    live = {p.stat().st_ino for p in still.directory.rglob("*") if p.is_file()}
    assert not live & {p.stat().st_ino for p in directory.rglob("*") if p.is_file()}
    shutil.rmtree(first)
    still.ctl("backup", "verify", "--files-only", str(directory))
    assert still.json("backup", "verify", str(directory))["messages"] == 21
    assert [row["name"] for row in still.json("backup", "list", str(directory))] == [second.name]


def test_prune_leaves_the_last_of_each_period(still, tmp_path: Path) -> None:
    directory = tmp_path / "backups"
    still.ctl("backup", "create", str(directory))
    made = generations(directory)[0]
    for name in ("20260301T030000Z", "20260302T030000Z", "20260303T030000Z", "20260303T120000Z"):
        shutil.copytree(made, directory / name, symlinks=True)
    (directory / "not a backup").mkdir()
    still.set(f'[backup]\ntarget = "{directory}"\nkeep_daily = 2\nkeep_weekly = 0\nkeep_monthly = 0\n')
    would = still.json("backup", "prune", "--dry-run")["removed"]
    assert would == ["20260301T030000Z", "20260302T030000Z", "20260303T030000Z"]
    assert still.json("backup", "prune")["removed"] == would
    assert {p.name for p in generations(directory)} == {"20260303T120000Z", made.name}
    assert (directory / "not a backup").is_dir()


def damage_message(tree: Path) -> None:
    path = sorted(messages(tree).values())[0]
    data = bytearray(path.read_bytes())
    data[70] ^= 1
    facts = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def damage_missing(tree: Path) -> None:
    sorted(messages(tree).values())[0].unlink()


def damage_database(tree: Path) -> None:
    path = tree / "accounts.sqlite"
    os.truncate(path, path.stat().st_size // 2)


def damage_list(tree: Path) -> None:
    path = tree / "lists/mail/example.test/bob"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


def damage_manifest(tree: Path) -> None:
    os.truncate(tree / MANIFEST, 100)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_message, "is damaged: its content is not what it was"),
        (damage_missing, "is missing"),
        (damage_database, "octets, not"),
        (damage_list, "was changed"),
        (damage_manifest, "is damaged"),
    ],
)
def test_damage_is_found_and_not_restored(still, tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    """A flipped bit, a file that is gone, half a database, a list that hides what is missing, half a manifest."""
    still.fill(8)
    directory = tmp_path / "backups"
    still.ctl("backup", "create", str(directory))
    damage(generations(directory)[0])
    done = still.ctl("backup", "verify", str(directory), check=False)
    assert done.returncode == 1
    assert said in done.stdout + done.stderr
    assert still.ctl("restore", str(directory), "--to", str(tmp_path / "to"), check=False).returncode == 1
    assert not (tmp_path / "to").exists()


def test_backup_of_a_wrong_uidlist_is_no_proof(still, tmp_path: Path) -> None:
    """All hashes fit, and yet a client would not find its mail again: only a server that serves the backup can tell."""
    still.fill(8)
    uidlist = still.account / "dovecot-uidlist"
    first, *lines = uidlist.read_text().splitlines(keepends=True)
    uidlist.write_text(first + "".join(lines) + lines[0].replace("2 :", "77 :", 1))  # one base with two UIDs
    directory = tmp_path / "backups"
    still.ctl("backup", "create", str(directory))
    still.ctl("backup", "verify", "--files-only", str(directory))
    done = still.ctl("backup", "verify", str(directory), check=False)
    assert done.returncode == 1
    assert "there is no message with UID" in done.stdout


def test_damaged_borg_repository_is_found(still, tmp_path: Path) -> None:
    require("borg", "borgbackup")
    (tmp_path / "passphrase").write_text("correct horse")
    backup = f'[backup]\npassphrase_file = "{tmp_path}/passphrase"\ntarget = "borg:{tmp_path}/repository"\n'
    still.set(backup)
    still.fill(12)
    still.ctl("dkim", "generate", "example.test")
    created = still.json("backup", "create")
    assert created["keys"] is True
    assert [row["name"] for row in still.json("backup", "list")] == [created["name"]]
    still.ctl("backup", "verify", "--files-only")
    still.ctl("restore", f"borg:{tmp_path}/repository", "--to", str(tmp_path / "to"))
    assert len(list((tmp_path / "to/mail/example.test/bob/cur").iterdir())) == 6
    assert list((tmp_path / "to/data/dkim/example.test").glob("*.pem"))
    segments = [p for p in (tmp_path / "repository/data").rglob("*") if p.is_file()]
    segment = max(segments, key=lambda p: p.stat().st_size)
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 0xFF
    segment.chmod(0o600)
    segment.write_bytes(data)
    done = still.ctl("backup", "verify", "--files-only", check=False)
    assert done.returncode == 1
    assert "borg" in done.stderr


def test_repository_is_not_made_without_a_passphrase(still, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require("borg", "borgbackup")
    for name in ("BORG_PASSPHRASE", "BORG_PASSCOMMAND"):
        monkeypatch.delenv(name, raising=False)
    done = still.ctl("backup", "create", f"borg:{tmp_path}/repository", check=False)
    assert done.returncode == 1
    assert "passphrase_file" in done.stderr
    assert not (tmp_path / "repository").exists()


def test_killed_at_any_call_leaves_no_half_backup(still, tmp_path: Path) -> None:
    """kill -9 after every so many changes of the file system: what is listed is whole, and the next one works."""
    still.fill(6)
    directory = tmp_path / "backups"
    still.ctl("backup", "create", str(directory))
    rename_to_yesterday(generations(directory)[0])
    program = (
        "import sys, os, signal\n"
        "left = int(sys.argv.pop(1))\n"
        "def hook(event, arguments):\n"
        "    global left\n"
        "    wanted = event in ('os.link', 'os.rename', 'os.mkdir', 'shutil.rmtree') or (\n"
        "        event == 'open' and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT)\n"
        "    if wanted:\n"
        "        left -= 1\n"
        "        if not left: os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.addaudithook(hook)\n"
        "from pymx.admin import ctl\n"
        "sys.exit(ctl.main())\n"
    )
    killed = 0
    for step in (5, 40, 70, 90, 110, 10_000):
        # names have seconds
        wait_for(lambda: f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}" not in {x.name for x in generations(directory)})
        command = [sys.executable, "-c", program, str(step), "--config", str(still.config), "backup", "create"]
        done = subprocess.run([*command, str(directory)], capture_output=True, text=True)
        killed += done.returncode == -signal.SIGKILL
        for generation in generations(directory):
            still.ctl("backup", "verify", str(directory), "--at", generation.name, "--files-only")
    assert killed >= 3
    assert done.returncode == 0
    assert not list(directory.glob(".unfinished-*"))
    assert not (still.mail / ".backup" / "stage").exists()


async def test_queue_comes_back_held_and_a_proof_sends_nothing(still, tmp_path: Path, smtp_sink: SmtpSink) -> None:
    """What waited then has mostly been delivered since: a person decides."""
    still.set(f'[outbound]\nroute = [{{ domain = "*", host = "127.0.0.1", port = {smtp_sink.port} }}]\n')
    queue = Queue(still.data / "queue", Outbound())
    await queue.start()
    try:
        recipient = Recipient(Address("someone", "elsewhere.example"))
        envelope = Envelope(Address("bob", "example.test"), (recipient,))
        content = Content.from_bytes(b"Subject: waiting\r\n\r\nx\r\n")
        await queue.enqueue([Copy(new_queue_id(), envelope, content, local=False)])
    finally:
        await queue.close()
    assert still.json("backup", "create", str(tmp_path / "b"))["queued"] == 1
    still.deliver(1)
    still.ctl("backup", "create", str(tmp_path / "second"))
    assert still.json("backup", "verify", str(tmp_path / "second"))["messages"] == 1
    assert smtp_sink.messages() == []
    for path in (still.mail, still.data):
        shutil.rmtree(path)
    (still.directory / "pymx.sqlite").unlink()
    restored = still.ctl("restore", str(tmp_path / "b"))
    assert "1 messages of the queue are held" in restored.stdout
    assert [line["state"] for line in still.json("queue", "list")] == ["held"]
    assert still.json("queue", "release", "--all")["count"] == 1


def test_keys_go_only_where_they_are_safe_or_wanted(still, tmp_path: Path) -> None:
    """Into an encrypted repository, or with --with-keys; and what is left out is said."""
    still.ctl("dkim", "generate", "example.test")
    (still.data / "srs.secret").write_text("0123456789abcdef\n")
    (still.data / "acme").mkdir()
    (still.data / "acme" / "account.json").write_text("{}")
    plain, keys = tmp_path / "plain", tmp_path / "keys"
    left_out = still.json("backup", "create", str(plain))["left_out"]
    assert len([line for line in left_out if line.endswith(": a secret")]) >= 3
    still.ctl("backup", "create", "--with-keys", str(keys))

    def secrets(directory: Path) -> set[str]:
        return {
            p.name
            for p in directory.rglob("*")
            if p.is_file() and (b"PRIVATE KEY" in p.read_bytes() or p.name in ("srs.secret", "account.json"))
        }

    assert secrets(plain) == set()
    assert secrets(keys) >= {"srs.secret", "account.json"}
    assert len(secrets(keys)) >= 3
    assert all(p.stat().st_mode & 0o077 == 0 for p in keys.iterdir())


def test_restore_refuses_to_mix(still, tmp_path: Path) -> None:
    """Mail that is there is not overwritten; a restore that was killed is done again."""
    still.fill(4)
    still.ctl("backup", "create", str(tmp_path / "b"))
    before = sorted(still.account.rglob("*"))
    done = still.ctl("restore", str(tmp_path / "b"), check=False)
    assert done.returncode == 1
    assert "mail already" in done.stderr
    assert sorted(still.account.rglob("*")) == before
    (still.mail / ".restoring").touch()
    still.ctl("restore", str(tmp_path / "b"))
    assert not (still.mail / ".restoring").exists()
    assert [p.name for p in sorted((still.account / "cur").iterdir())] == [
        p.name for p in before if p.parent == still.account / "cur"
    ]


def test_root_gives_everything_to_the_servers_user(still, tmp_path: Path) -> None:
    """Also on a machine without a configuration: pymx.toml is root's, and readable for that user's group."""
    if os.geteuid() != 0:
        pytest.skip("NOT ROOT: nothing can be given away")
    still.fill(4)
    still.ctl("dkim", "generate", "example.test")
    still.ctl("backup", "create", "--with-keys", str(tmp_path / "b"))
    for path in (still.mail, still.data):
        shutil.rmtree(path)
    (still.directory / "pymx.sqlite").unlink()
    still.config.write_text(still.config.read_text().replace('user = "none"', 'user = "nobody"'))
    still.ctl("restore", str(tmp_path / "b"))
    nobody = pwd.getpwnam("nobody")
    found = [p for top in (still.mail, still.data) for p in (top, *top.rglob("*"))]
    assert len(found) > 20
    assert {p.lstat().st_uid for p in found} == {nobody.pw_uid}
    assert (still.directory / "pymx.sqlite").stat().st_uid == nobody.pw_uid
    still.config.unlink()
    still.mail.joinpath(".restoring").touch()  # as if it had been interrupted
    still.ctl("restore", str(tmp_path / "b"))
    assert still.config.stat().st_mode & 0o777 == 0o640


def test_failure_is_remembered(still, tmp_path: Path) -> None:
    """A backup that fails each night must not look like the last good one."""
    still.ctl("backup", "create", str(tmp_path / "good"))
    last = still.data / "backup" / "last.json"
    assert json.loads(last.read_text())["ok"] is True
    (tmp_path / "file").write_text("no directory")
    assert still.ctl("backup", "create", str(tmp_path / "file"), check=False).returncode == 1
    found = json.loads(last.read_text())
    assert (found["ok"], found["target"]) == (False, str(tmp_path / "file"))
    assert found["reason"]


def test_copy_of_a_database_in_use_is_one_moment(tmp_path: Path) -> None:
    """Two tables that are always changed together."""
    path = tmp_path / "live.sqlite"
    live = sqlite3.connect(path, isolation_level=None)
    try:
        live.execute("PRAGMA journal_mode=WAL")
        live.executescript("CREATE TABLE a(n); CREATE TABLE b(n);")
        for n in range(20):
            live.executescript(f"BEGIN; INSERT INTO a VALUES ({n}); INSERT INTO b VALUES ({n}); COMMIT;")
            live.execute("BEGIN")
            live.execute("INSERT INTO a VALUES (-1)")  # not committed: not in the copy
            copy_sqlite(str(path), str(tmp_path / f"copy{n}"))
            live.execute("ROLLBACK")
    finally:
        live.close()
    copy = sqlite3.connect(tmp_path / "copy19")
    try:
        assert copy.execute("SELECT count(*), min(n) FROM a").fetchone() == (20, 0)
        assert copy.execute("SELECT count(*) FROM b").fetchone() == (20,)
    finally:
        copy.close()
    assert check_sqlite(str(tmp_path / "copy19")) == ""
    assert not (tmp_path / "copy19-wal").exists()


def test_units_of_the_nightly_backup_are_known_to_systemd(tmp_path: Path) -> None:
    """systemd-analyze verify; every night at three."""
    analyze = require("systemd-analyze", "systemd")
    units = Path(__file__).parent.parent.parent / "systemd"
    for name in ("pymx-backup.service", "pymx-backup.timer"):
        (tmp_path / name).write_text((units / name).read_text().replace("/opt/pymx/bin/pymxctl", "/bin/true"))
    done = subprocess.run(
        [analyze, "verify", *(str(tmp_path / name) for name in ("pymx-backup.service", "pymx-backup.timer"))],
        capture_output=True, text=True, timeout=60, env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    assert "pymx-backup" not in done.stderr, done.stderr
    assert "OnCalendar=*-*-* 03:00" in (tmp_path / "pymx-backup.timer").read_text()
