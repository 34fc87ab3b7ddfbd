"""One running server per kind, shared by the end-to-end tests: SQLite in one process, MariaDB with two workers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from support.appliance import Site
from support.dns_server import DnsServer
from support.mariadb import MariaDb
from support.sinks import ScriptedRemote

USERS = ("alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy")
KINDS = ["sqlite-1-worker", "mariadb-2-workers"]


@pytest.fixture(scope="session", params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    kind: str = request.param
    with contextlib.ExitStack() as stack:
        url, mariadb = "", None
        if kind.startswith("mariadb"):
            # one of its own: other tests stop the session's while this server would be using it
            mariadb = MariaDb(tmp_path_factory.mktemp("mariadb"))
            stack.callback(mariadb.close)
            mariadb.install()
            url = stack.enter_context(mariadb.database()).url
        remote = ScriptedRemote(
            replies={
                "RCPT unknown@remote.test": "550 5.1.1 no such user",
                "RCPT later@remote.test": ["451 4.2.1 later"],
            }
        )
        remote.start()
        stack.callback(remote.stop)
        dns = DnsServer()
        stack.callback(dns.close)
        dns.add("remote.test", "MX", "10 mx.remote.test")
        dns.add("mx.remote.test", "A", "127.0.0.1")
        dns.add("null.test", "MX", "0 .")
        site = Site(
            database_url=url,
            workers=int(kind.split("-")[1]),
            extra={
                "outbound": f"port = {remote.port}\nallow_private = true\nretry_first = 1\nretry_max_s = 2\n",
                "dns": f'nameservers = ["{dns.spec}"]\n',
            },
            remote=remote,
            dns=dns,
            mariadb=mariadb,
        )
        stack.callback(site.remove)
        site.populate(USERS)
        site.ctl("dkim", "generate", site.domain)
        site.start()
        yield site
        assert site.stop() == 0
