"""A server whose backups are made: one that runs, and one that stands still (only its files, made in this process)."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from support.appliance import Appliance

from pymx.admin import ctl

UIDVALIDITY = 1_700_000_000


class Still:
    """Alice and Bob on a server that does not run; Bob has mail. Commands run in this process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "pymx.toml"
        self.data, self.mail = directory / "data", directory / "vmail"
        self.data.mkdir()
        self.set()
        for words in (("domain", "add", "example.test"),):
            self.ctl(*words)
        self.account = self.mail / "example.test" / "bob"
        for folder in ("", ".Lists.Python", ".Archive"):
            self._make(self.account / folder)
        self.ctl("user", "add", "bob@example.test", "--password-stdin", stdin="secret\n")

    def set(self, extra: str = "") -> None:
        self.config.write_text(
            f'hostname = "mx.example.test"\ndata_dir = "{self.data}"\nuser = "none"\n'
            f'[database]\nurl = "sqlite:///{self.directory}/pymx.sqlite"\n[mail]\nroot = "{self.mail}"\n'
            f'[accounts]\nbcrypt_cost = 4\n[control]\nsocket = "{self.directory}/run/control.sock"\n{extra}'
        )

    def _make(self, path: Path) -> None:
        for part in ("cur", "new", "tmp"):
            (path / part).mkdir(parents=True, mode=0o700)
        (path / "dovecot-uidlist").write_text(f"3 V{UIDVALIDITY} N1 G{'ab' * 16}\n")

    def deliver(self, number: int, folder: str = "", flags: str = "S") -> Path:
        """A message with the UID `number`."""
        text = f"Message-ID: <m{number}@x>\nSubject: m{number}\n\n" + "a line of some length\n" * (number % 9 + 5)
        name = f"17000{number:05}.M1P1.x,S={len(text)},W={len(text) + text.count(chr(10))}"
        path = self.account / folder
        with (path / "dovecot-uidlist").open("a") as uidlist:
            uidlist.write(f"{number} :{name}\n")
        message = path / "cur" / f"{name}:2,{flags}"
        message.write_text(text)
        return message

    def fill(self, count: int = 20) -> None:
        for number in range(1, count + 1):
            self.deliver(number, ("", ".Lists.Python")[number % 2], ("S", "F", "")[number % 3])

    def ctl(self, *words: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stdin", io.StringIO(stdin))
            status = ctl.main(["--config", str(self.config), *words])
        if check and status:
            raise AssertionError(f"pymxctl {words}: {status}\n{out.getvalue()}{err.getvalue()}")
        return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())

    def json(self, *words: str) -> Any:
        return json.loads(self.ctl(*words, "--json").stdout)


@pytest.fixture
def still(tmp_path: Path) -> Still:
    directory = tmp_path / "server"
    directory.mkdir()
    return Still(directory)


@pytest.fixture(params=["sqlite", pytest.param("mariadb", marks=pytest.mark.mariadb)])
def appliance(request: pytest.FixtureRequest) -> Iterator[Appliance]:
    url = "" if request.param == "sqlite" else request.getfixturevalue("mariadb_database").url
    server = Appliance(database_url=url)
    try:
        server.populate(("bob",))
        server.start()
        yield server
    finally:
        server.remove()
