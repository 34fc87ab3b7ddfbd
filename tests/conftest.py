"""Fixtures for all tests; the servers behind them are in tests/support."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from support.dns_server import DnsServer
from support.dovecot import Dovecot
from support.mariadb import Database, MariaDb
from support.sinks import ScriptedRemote, SmtpSink
from support.tls import CertificateAuthority, TlsFiles

# A commit is judged by the same examples whenever it is judged; everybody else looks for new ones.
settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("search", deadline=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "search")

# A shell starts what runs in the background deaf to Ctrl-C, and children inherit that; some are ended so in tests.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDb]:
    """The session's MariaDB. A test that stops it must start it again."""
    server = MariaDb(tmp_path_factory.mktemp("mariadb"))
    try:
        server.install()
        yield server
    finally:
        server.close()


@pytest.fixture
def mariadb_database(mariadb: MariaDb) -> Iterator[Database]:
    """An empty database in it; `.url` is for the configuration."""
    with mariadb.database() as database:
        yield database


@pytest.fixture(params=["sqlite", pytest.param("mariadb", marks=pytest.mark.mariadb)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database, once on SQLite and once on MariaDB, as `[database] url`."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/pymx.sqlite"
    database: Database = request.getfixturevalue("mariadb_database")
    return database.url


@pytest.fixture
def dns_server() -> Iterator[DnsServer]:
    """An empty name server; put zones into it."""
    server = DnsServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def certificate_authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    """Issues certificates that `tls_files.client_context()` trusts."""
    return CertificateAuthority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def tls_files(certificate_authority: CertificateAuthority) -> TlsFiles:
    """A certificate for mx.example.test, example.test, localhost and the loopback addresses."""
    return certificate_authority.issue("server")


@pytest.fixture
def smtp_sink(tmp_path: Path) -> Iterator[SmtpSink]:
    """A running smtp-sink that keeps what it gets."""
    with SmtpSink(tmp_path / "sink") as sink:
        yield sink


@pytest.fixture
def scripted_remote() -> Iterator[Callable[..., ScriptedRemote]]:
    """`scripted_remote(tls=context, …)` starts a remote whose replies the test decides."""
    remotes: list[ScriptedRemote] = []

    def start(**options: object) -> ScriptedRemote:
        remote = ScriptedRemote(**options)  # type: ignore[arg-type]  # one signature, in ScriptedRemote
        remotes.append(remote)
        remote.start()
        return remote

    yield start
    for remote in remotes:
        remote.stop()


@pytest.fixture
def dovecot(tmp_path: Path) -> Iterator[Dovecot]:
    """A private Dovecot to read a Maildir with."""
    server = Dovecot(tmp_path / "dovecot")
    yield server
    server.close()
