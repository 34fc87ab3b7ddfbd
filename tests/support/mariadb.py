"""A real MariaDB of the test session's own: data directory, socket and port are private; a database per test is cheap.

Runs as root or not, never touches an installed server (`--no-defaults`), and syncs nothing: its data is thrown away.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pymysql

from support.ports import free_port
from support.programs import require, tail
from support.wait import wait_for

_USER = "pymx"
_PASSWORD = "geheim"


class MariaDb:
    """One mariadbd. `start`, `stop` and `pause`/`resume` let a test take it away and give it back."""

    def __init__(self, directory: Path) -> None:
        self._server = require("mariadbd", "mariadb-server")
        self._install = require("mariadb-install-db", "mariadb-server")
        self._directory = directory
        self._data = directory / "data"
        # a socket's path has at most 107 octets, pytest's directories may be longer
        self._short = tempfile.TemporaryDirectory(prefix="pymx-db-")
        self.socket = Path(self._short.name) / "s"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = count(1)

    @property
    def _user_option(self) -> list[str]:
        return ["--user=root"] if os.geteuid() == 0 else []

    def install(self) -> None:
        """Make the data directory and the user."""
        subprocess.run(
            [
                self._install,
                "--no-defaults",
                f"--datadir={self._data}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                *self._user_option,
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=120,
        )
        self.start()
        for host in ("localhost", "127.0.0.1"):
            self.execute(f"CREATE USER '{_USER}'@'{host}' IDENTIFIED BY '{_PASSWORD}'")
            self.execute(f"GRANT ALL ON *.* TO '{_USER}'@'{host}'")

    def start(self) -> None:
        """Start the server and wait until it answers."""
        log = self._directory / "mariadbd.log"
        self._process = subprocess.Popen(
            [
                self._server,
                "--no-defaults",
                f"--datadir={self._data}",
                f"--socket={self.socket}",
                "--bind-address=127.0.0.1",
                f"--port={self.port}",
                f"--pid-file={self._directory}/mariadbd.pid",
                f"--log-error={log}",
                "--skip-name-resolve",
                "--character-set-server=utf8mb4",
                "--innodb-buffer-pool-size=32M",
                "--innodb-log-file-size=16M",
                "--innodb-flush-log-at-trx-commit=0",
                "--innodb-doublewrite=0",
                "--innodb-fast-shutdown=2",
                "--performance-schema=0",
                "--max-connections=200",
                *self._user_option,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(lambda: self._answers(log), timeout_s=60, what="mariadbd answers")

    def _answers(self, log: Path) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise AssertionError(f"mariadbd ended with status {self._process.returncode}: {tail(log)}")
        try:
            self._root().close()
        except (OSError, pymysql.err.OperationalError):
            return False
        return True

    def _root(self) -> pymysql.connections.Connection:
        connection = pymysql.connect(user="root", autocommit=True, defer_connect=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # pymysql would leave its own socket to the garbage collector when the server isn't there
            sock.connect(str(self.socket))
            connection.connect(sock)
        except BaseException:
            sock.close()
            raise
        return connection

    def execute(self, statement: str, database: str | None = None) -> list[tuple[object, ...]]:
        """Run one statement as root; its rows."""
        with contextlib.closing(self._root()) as connection, connection.cursor() as cursor:
            if database:
                connection.select_db(database)
            cursor.execute(statement)
            return list(cursor.fetchall())

    def stop(self) -> None:
        """Take the server away; connections to it are refused from now on."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def pause(self) -> None:
        """Freeze the server: connections hang instead of being refused."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.stop()
        self._short.cleanup()

    @contextlib.contextmanager
    def database(self) -> Iterator[Database]:
        """An empty database that is dropped in the end."""
        name = f"t{os.getpid()}_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        try:
            yield Database(self, name)
        finally:
            if self._process is not None:
                self.execute(f"DROP DATABASE IF EXISTS {name}")


class Database:
    """One database of the session's MariaDB."""

    def __init__(self, server: MariaDb, name: str) -> None:
        self.server = server
        self.name = name

    @property
    def url(self) -> str:
        """For `[database] url`, through the Unix socket."""
        return f"mysql://{_USER}:{_PASSWORD}@localhost/{self.name}?unix_socket={self.server.socket}"

    @property
    def tcp_url(self) -> str:
        """The same over TCP."""
        return f"mysql://{_USER}:{_PASSWORD}@127.0.0.1:{self.server.port}/{self.name}"

    def execute(self, statement: str) -> list[tuple[object, ...]]:
        return self.server.execute(statement, self.name)
