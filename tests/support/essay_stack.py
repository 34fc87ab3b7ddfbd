"""Postfix, Dovecot and MariaDB as a small server has them: users and aliases in the database, mail in Maildirs.

The configuration is in tests/takeover/essay. Postfix runs only as root, and so does this; its files lie in a directory
of their own, and nothing of an installed Postfix or Dovecot is used but the programs. Mail belongs to nobody.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from pymx.net.certificate import write_self_signed
from support.mariadb import Database
from support.ports import answers, free_port
from support.programs import require, tail
from support.wait import wait_for

ESSAY = Path(__file__).parent.parent / "takeover" / "essay"
_SCHEMA = """
CREATE TABLE domains (id INT NOT NULL AUTO_INCREMENT PRIMARY KEY, name VARCHAR(50) NOT NULL, UNIQUE KEY (name));
CREATE TABLE users (id INT NOT NULL AUTO_INCREMENT PRIMARY KEY, domain_id INT NOT NULL, password VARCHAR(150) NOT NULL,
  email VARCHAR(100) NOT NULL, UNIQUE KEY (email),
  FOREIGN KEY (domain_id) REFERENCES domains(id) ON DELETE CASCADE);
CREATE TABLE aliases (id INT NOT NULL AUTO_INCREMENT PRIMARY KEY, domain_id INT NOT NULL, source VARCHAR(100) NOT NULL,
  destinations VARCHAR(1000) NOT NULL, KEY (source),
  FOREIGN KEY (domain_id) REFERENCES domains(id) ON DELETE CASCADE);
INSERT INTO domains (id, name) VALUES (1, 'example.test');
INSERT INTO aliases (domain_id, source, destinations)
  VALUES (1, 'team@example.test', 'alice@example.test,bob@example.test')
"""


def fill_in(source: Path, target: Path, words: dict[str, str]) -> None:
    """Copy the templates with `@WORD@` replaced."""
    for path in source.rglob("*"):
        there = target / path.relative_to(source)
        if path.is_dir():
            there.mkdir(parents=True, exist_ok=True)
            continue
        text = path.read_text()
        for word, value in words.items():
            text = text.replace(f"@{word}@", value)
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_text(text)


class EssayStack:
    """Users alice and bob at example.test, password `geheim`."""

    password = "geheim"

    def __init__(self, database: Database) -> None:
        if os.geteuid() != 0:
            pytest.skip("NOT ROOT: Postfix runs only as root")
        self._postfix = require("postfix", "postfix")
        self._dovecot = require("dovecot", "dovecot-imapd")
        self._doveadm = require("doveadm", "dovecot-imapd")
        require("lmtp", "dovecot-lmtpd")
        maps = subprocess.run([require("postconf", "postfix"), "-m"], capture_output=True, text=True, timeout=30).stdout
        if "mysql" not in maps.split():
            pytest.skip("MISSING PROGRAM postfix-mysql: install the package postfix-mysql (make test does, as root)")
        if not list(Path("/usr/lib/dovecot/modules").rglob("libdriver_mysql.so")):
            pytest.skip("MISSING PROGRAM dovecot-mysql: install the package dovecot-mysql (make test does, as root)")
        self._database = database
        self.top = Path(tempfile.mkdtemp(prefix="pymx-old-"))
        self.top.chmod(0o755)
        self.ports = {name: free_port() for name in ("SMTP", "LMTP", "IMAPS")}
        user = pwd.getpwuid(65534)
        self.words = {
            "TOP": str(self.top), "DB": database.name, "DBPORT": str(database.server.port), "USER": user.pw_name,
            "GROUP": grp.getgrgid(user.pw_gid).gr_name, "MILTERS": "",
            **{name: str(port) for name, port in self.ports.items()},
        }  # fmt: skip
        self._running = dict[str, subprocess.Popen[bytes]]()
        self._lay_out()

    def _lay_out(self) -> None:
        fill_in(ESSAY, self.top, self.words)
        for name in (
            "run/dovecot",
            "run/dovecot-state",
            "log",
            "tls",
            "dkim",
            "spool/private",
            "vmail",
            "postfix-data",
        ):
            (self.top / name).mkdir(parents=True, exist_ok=True)
        shutil.chown(self.top / "postfix-data", "postfix")
        shutil.chown(self.top / "spool" / "private", "postfix")
        os.chown(self.top / "vmail", 65534, pwd.getpwuid(65534).pw_gid)
        write_self_signed(self.top / "tls", ("mx.example.test", "localhost"), address="127.0.0.1")
        # 465 and 587 of this machine are not ours: while Postfix runs it has others
        self._master = self.top / "postfix" / "master.cf"
        self._saved_master = self._live_master = self._master.read_text()
        for name in ("submission ", "submissions "):
            self._live_master = self._live_master.replace(f"\n{name}", f"\n{free_port()} ")
        for statement in filter(None, map(str.strip, _SCHEMA.split(";"))):
            self._database.execute(statement)
        for user in ("alice", "bob"):
            hashed = subprocess.run(
                [self._doveadm, "-c", str(self.top / "dovecot" / "dovecot.conf"), "pw", "-s", "BLF-CRYPT", "-p",
                 self.password],
                capture_output=True, text=True, check=True, timeout=60,
            ).stdout.strip()  # fmt: skip
            self._database.execute(
                f"INSERT INTO users (domain_id, password, email) VALUES (1, '{hashed}', '{user}@example.test')"
            )

    def start(self, *, postfix: bool = True) -> None:
        config = str(self.top / "dovecot" / "dovecot.conf")
        with (self.top / "log" / "started.log").open("ab") as log:
            self._running["dovecot"] = subprocess.Popen(
                [self._dovecot, "-F", "-c", config], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            if postfix:
                self._master.write_text(self._live_master)
                self._running["postfix"] = subprocess.Popen(
                    [self._postfix, "-c", str(self.top / "postfix"), "start-fg"],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                )  # fmt: skip
                wait_for(lambda: answers(self.ports["SMTP"]), what="Postfix listens", timeout_s=60)
        wait_for(
            lambda: answers(self.ports["IMAPS"]) and answers(self.ports["LMTP"]), what="Dovecot listens", timeout_s=60
        )

    def stop(self) -> None:
        postfix = self._running.pop("postfix", None)
        if postfix is not None:
            subprocess.run(
                [self._postfix, "-c", str(self.top / "postfix"), "stop"], capture_output=True, timeout=60, check=False
            )
            postfix.wait(60)
            self._master.write_text(self._saved_master)
        dovecot = self._running.pop("dovecot", None)
        if dovecot is not None:
            dovecot.terminate()
            dovecot.wait(30)

    def errors(self) -> list[str]:
        lines = tail(self.top / "log" / "dovecot.log", 1 << 20).splitlines()
        return [line for line in lines if any(word in line for word in ("Error:", "Fatal:", "Panic:"))]

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.top, ignore_errors=True)
