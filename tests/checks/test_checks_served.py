"""The whole server with checks and rspamd: from port 25 to what a mail client sees."""

from __future__ import annotations

import re
import shutil
import signal
import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest
from checks_rig import OTHER_IP, letter, zones
from support.appliance import Appliance
from support.dns_server import DnsServer
from support.rspamd import RealRspamd
from support.wait import wait_for


def bring(server: Appliance, message: str, *, sender: str, peer: str = "127.0.0.2") -> tuple[int, bytes]:
    with smtplib.SMTP("127.0.0.1", server.ports["smtp"], "mail.good.test", source_address=(peer, 0)) as client:
        client.ehlo()
        client.mail(sender)
        client.rcpt("alice@example.test")
        return client.data(message.encode())


def served(dns: DnsServer, *, url: str = "", workers: int = 1) -> Iterator[Appliance]:
    zones(dns)
    server = Appliance(
        workers=workers,
        extra={
            "dns": f'nameservers = ["{dns.spec}"]\n',
            "checks": "",
            "rspamd": f'url = "{url}"\ntimeout_s = 2\n',
            "mail": 'folders = { Sent = "\\\\Sent", Spam = "\\\\Junk" }\n',
        },
    )
    with server.serving(("alice",)):
        yield server


@pytest.fixture
def with_rspamd(dns_server: DnsServer) -> Iterator[Appliance]:
    if not shutil.which("rspamd"):
        pytest.skip("rspamd is not installed")
    rspamd = RealRspamd()
    try:
        yield from served(dns_server, url=rspamd.url, workers=2)
    finally:
        rspamd.stop()


@pytest.fixture
def without_rspamd(dns_server: DnsServer) -> Iterator[Appliance]:
    yield from served(dns_server)


def test_a_client_sees_junk_in_the_folder_for_it(with_rspamd: Appliance) -> None:
    """Made and subscribed with the first junk, under the name that the settings give to the special use Junk."""
    server = with_rspamd
    assert bring(server, letter("x@softie.test"), sender="x@plain.test", peer=OTHER_IP)[0] == 250
    assert bring(server, letter().replace("Subject: hi", "Subject: score 8"), sender="x@good.test")[0] == 250
    assert bring(server, letter(), sender="x@good.test")[0] == 250
    assert bring(server, letter(), sender="x@good.test", peer=OTHER_IP)[0] == 550
    assert server.subjects("alice") == ["hi"]
    assert server.subjects("alice", "Spam") == ["hi", "score 8"]
    with server.imap("alice") as client:
        _, folders = client.list()
        assert any(b"\\Junk" in line and b"Spam" in line for line in folders if isinstance(line, bytes))
        _, subscribed = client.lsub()
        assert any(b"Spam" in line for line in subscribed if isinstance(line, bytes))
    wait_for(lambda: server.log().count("event=message_checked") == 4, what="four messages checked are logged")


def test_a_reload_changes_the_checks(without_rspamd: Appliance) -> None:
    """SIGHUP: no connection is lost for another list or a sealer."""
    server = without_rspamd
    assert server.process is not None
    assert bring(server, letter(), sender="x@good.test", peer=OTHER_IP)[0] == 550
    server.extra["checks"] = "dmarc = false\n"
    server.write_config()
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "event=configuration_reloaded" in server.log())
    assert "needs_restart" not in server.log()
    assert bring(server, letter(), sender="x@good.test", peer=OTHER_IP)[0] == 250


def test_an_http_client_is_loaded_for_rspamd_only(without_rspamd: Appliance) -> None:
    """DESIGN: heavy imports are loaded only by the feature that uses them."""
    process = without_rspamd.process
    assert process is not None
    assert bring(without_rspamd, letter(), sender="x@good.test")[0] == 250
    maps = Path(f"/proc/{process.pid}/maps").read_text()
    assert re.search(r"/cryptography/", maps)
    assert not re.search(r"/aiohttp/", maps)
