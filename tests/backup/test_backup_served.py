"""pymxctl backup and restore against a running server: under load, after a loss, damaged, killed in the middle."""

from __future__ import annotations

import imaplib
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.appliance import Appliance
from support.mbsync import Mbsync
from support.programs import require
from support.wait import wait_for

from pymx.admin.backup_lists import MANIFEST
from pymx.ms import uidlist


@pytest.fixture
def target(tmp_path: Path, appliance: Appliance) -> str:
    """As the command line has it: a directory for the server on SQLite, a Borg repository for that on MariaDB."""
    if not appliance.database_url.startswith("mysql"):
        return str(tmp_path / "backups")
    require("borg", "borgbackup")
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("correct horse\n")
    appliance.extra["backup"] = f'passphrase_file = "{passphrase}"\n'
    appliance.write_config()
    return f"borg:{tmp_path}/repository"


def fill(server: Appliance, count: int = 30) -> None:
    with server.imap("bob") as imap:
        imap.create("Lists.Python")
        for n in range(count):
            flags = ("(\\Seen $Work)", "(\\Flagged)", None)[n % 3]
            folder = ("INBOX", "Lists.Python")[n % 2]
            text = f"Message-ID: <m{n}@x>\r\nSubject: m{n}\r\n\r\n" + "line\r\n" * (n * 7)
            assert imap.append(folder, flags, None, text.encode())[0] == "OK"
        imap.select("INBOX")
        imap.store("2,5", "+FLAGS", "(\\Deleted)")
        imap.expunge()


def lose_everything(server: Appliance) -> None:
    """The disk is gone; a fresh one has the configuration and an empty database."""
    server.kill()
    for name in ("vmail", "data"):
        shutil.rmtree(server.directory / name)
    (server.directory / "pymx.sqlite").unlink(missing_ok=True)
    if server.database_url.startswith("mysql"):
        server.lost()  # type: ignore[attr-defined]  # set by the test


def told(server: Appliance, user: str) -> dict[str, dict[int, bytes]]:
    """What a client knows: mailbox and UIDVALIDITY → UID → flags and Message-ID."""
    known = {}
    with server.imap(user) as imap:
        for line in imap.list()[1]:
            assert isinstance(line, bytes)
            if b"\\NonExistent" in line or b"\\Noselect" in line:
                continue
            name = line.decode().rpartition('"." ')[2].strip('"')
            imap.select(f'"{name}"', readonly=True)
            validity = imap.response("UIDVALIDITY")[1][0].decode()
            fetched = imap.uid("FETCH", "1:*", "(UID FLAGS BODY.PEEK[HEADER.FIELDS (MESSAGE-ID)])")[1]
            known[f"{name} {validity}"] = {
                int(part[0].partition(b"UID ")[2].split()[0]): part[0].partition(b"FLAGS ")[2].split(b")")[0] + part[1]
                for part in fetched if isinstance(part, tuple)
            }  # fmt: skip
    return known


def test_after_a_loss_clients_see_nothing_changed(
    appliance: Appliance, target: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Same UIDVALIDITY, UIDs and flags; mbsync downloads nothing again; no UID told after the backup is given twice."""
    fill(appliance)
    saved = appliance.config.read_text()
    with appliance.imap("bob") as imap:  # RFC 6154: what a mailbox is for is in the index alone, which is not backed up
        assert imap.delete("Archive")[0] == "OK"
        assert imap._simple_command("CREATE", "Sketches", "(USE (\\Archive))")[0] == "OK"
    client = Mbsync(
        appliance.address("bob"), "secret", appliance.ports["imaps"], appliance.directory / "tls" / "cert.pem",
        tmp_path / "client",
    )  # fmt: skip
    client.pull()
    known, files = told(appliance, "bob"), client.files()
    appliance.ctl("backup", "create", target)
    with appliance.imap("bob") as imap:  # told, and then lost with the disk
        lost = imap.append("INBOX", None, None, b"Subject: after the backup\r\n\r\n")[1][0]
    if appliance.database_url.startswith("mysql"):
        database = request.getfixturevalue("mariadb_database")

        def drop_tables() -> None:
            names = [row[0] for row in database.execute("SHOW TABLES")]
            database.execute("SET FOREIGN_KEY_CHECKS=0")
            for name in ("aliases", "users", *names):
                database.execute(f"DROP TABLE IF EXISTS {name}")

        appliance.lost = drop_tables  # type: ignore[attr-defined]
    lose_everything(appliance)
    if target.startswith("borg:"):
        appliance.ctl("restore", target)
    else:
        appliance.config.unlink()  # and with an empty /etc, too
        appliance.ctl("restore", target)
        assert appliance.config.read_text() == saved
    appliance.start()
    assert told(appliance, "bob") == known
    client.pull()
    assert client.files() == files
    with appliance.imap("bob") as imap:
        new = imap.append("INBOX", None, None, b"Subject: first after the loss\r\n\r\n")[1][0]
    assert lost.split()[1] == new.split()[1]  # APPENDUID's UIDVALIDITY
    assert int(new.split()[2].rstrip(b"]")) > int(lost.split()[2].rstrip(b"]"))
    client.pull()
    assert len(client.files()) == len(files) + 1
    with appliance.imap("bob") as imap:
        assert any(b"\\Archive" in x and b"Sketches" in x for x in imap.list()[1] if isinstance(x, bytes))
    assert appliance.ctl("mailbox", "check", "bob@example.test").returncode == 0


class Load:
    """Deliveries, flag changes, moves and expunges until it is stopped."""

    def __init__(self, server: Appliance) -> None:
        self.server = server
        self.done = dict.fromkeys(("append", "flag", "move", "expunge"), 0)
        self.failures: list[BaseException] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._guarded, args=(one,)) for one in (self._write, self._move)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        wait_for(lambda: self.failures or all(self.done.values()), what="all kinds of load")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        if self.failures:
            raise self.failures[0]

    def _guarded(self, one: Callable[[imaplib.IMAP4_SSL], None]) -> None:
        try:
            with self.server.imap("bob") as imap:
                while not self._stop.is_set():
                    one(imap)
        except BaseException as error:
            self.failures.append(error)

    def _write(self, imap: imaplib.IMAP4_SSL) -> None:
        imap.select("Junk")
        n = self.done["append"]
        imap.append("Junk", None, None, f"Message-ID: <load{n}@x>\r\n\r\n{n}\r\n".encode())
        imap.append("Junk", "(\\Deleted)", None, b"Message-ID: <doomed@x>\r\n\r\n")
        self.done["append"] += 2
        imap.expunge()
        self.done["expunge"] += 1

    def _move(self, imap: imaplib.IMAP4_SSL) -> None:
        for source, other in (("INBOX", "Archive"), ("Archive", "INBOX")):
            imap.select(source)
            imap.store("1:*", "+FLAGS", "(\\Seen)")
            imap.store("1:*", "-FLAGS", "(\\Seen)")
            self.done["flag"] += 1
            assert imap._simple_command("MOVE", "1:*", other)[0] == "OK"
            self.done["move"] += 1


def generations(directory: Path) -> Iterator[Path]:
    return (path.parent for path in sorted(directory.glob("*/" + MANIFEST)))


@pytest.mark.parametrize("appliance", ["sqlite"], indirect=True)
def test_backups_under_load_lose_nothing(appliance: Appliance, tmp_path: Path) -> None:
    """All messages that move about all the time are in each backup, with their UIDs, and each one proves sound."""
    with appliance.imap("bob") as imap:
        for n in range(60):
            imap.append("INBOX", None, None, f"Message-ID: <keep{n}@x>\r\n\r\n{n}\r\n".encode())
    with Load(appliance):
        for n in range(3):
            appliance.ctl("backup", "create", str(tmp_path / f"backup{n}"))
    for n in range(3):
        (generation,) = generations(tmp_path / f"backup{n}")
        account = generation / "mail/example.test/bob"
        found = set()
        for mailbox in (account, account / ".Archive", account / ".Junk"):
            listed = uidlist.parse((mailbox / "dovecot-uidlist").read_bytes())
            assert listed.clean
            bases = {base.decode() for _, _, base in listed.records}
            for path in [*(mailbox / "cur").iterdir(), *(mailbox / "new").iterdir()]:
                assert path.name.partition(":")[0] in bases
                found.add(path.read_text().splitlines()[0])
        assert {f"Message-ID: <keep{m}@x>" for m in range(60)} <= found
    appliance.ctl("backup", "verify", str(tmp_path / "backup2"))
