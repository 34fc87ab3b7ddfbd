"""pymxctl reports, without a server: the database is enough."""

from __future__ import annotations

import json
import time
from pathlib import Path

import msgspec
import pytest
from support.dns_server import DnsServer

from pymx.admin import ctl
from pymx.mail.tls_result import TlsResult
from pymx.reports.aggregate import AggregateReport, Published, Row
from pymx.reports.outcome import tls_key
from pymx.reports.received import Received
from pymx.reports.store import DAY_S, Store


class Command:
    def __init__(self, directory: Path, dns: DnsServer, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._config = directory / "pymx.toml"
        self._config.write_text(
            f'hostname = "mx.example.test"\ndata_dir = "{directory}"\nuser = "none"\n'
            f'[dns]\nnameservers = ["{dns.spec}"]\ntimeout_s = 2\n'
            f'[control]\nsocket = "{directory}/control.sock"\n'
        )
        self.store = Store(directory / "reports" / "reports.sqlite", max_octets=10 << 20)

    def run(self, *words: str) -> tuple[int, str]:
        status = ctl.main(["--config", str(self._config), "reports", *words])
        captured = self._capsys.readouterr()
        return status, captured.out + captured.err

    def json(self, *words: str) -> object:
        assert ctl.main(["--config", str(self._config), "--json", "reports", *words]) == 0
        return json.loads(self._capsys.readouterr().out)


@pytest.fixture
def command(tmp_path: Path, dns_server: DnsServer, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path, dns_server, capsys)


def fill(store: Store, *, proof: str = "") -> None:
    now = int(time.time())
    row = Row("192.0.2.1", "good.test", "reject", dkim=False, spf=False, count=4)
    report = AggregateReport(
        "\x1b[31mevil", "", "1", now - DAY_S, now, Published("good.test", "reject", "reject"), (row,)
    )
    received = Received("dmarc", "good.test", report.organization, "1", report.begin, report.end, now, proof, 0, 4)
    assert store.add_received(received, msgspec.json.encode(report))
    result = TlsResult("far.test", "sts", (), (), "mx.far.test", "192.0.2.9", "", "certificate-expired", "expired")
    store.add_tls({tls_key(result, float(now)): 3})
    store.close()


def test_nothing_is_said_where_nothing_came(command: Command) -> None:
    """No database yet: no error."""
    assert command.run("list") == (0, "no reports yet\n")
    assert command.run("show") == (0, "no reports yet\n")
    assert command.run("send", "--dry-run") == (0, "no reports yet\n")


def test_sending_says_what_is_missing(command: Command) -> None:
    """The settings first, then the server."""
    status, said = command.run("send")
    assert status == 1
    assert "[reports]" in said


def test_reports_are_listed_and_shown_with_names_and_advice(command: Command, dns_server: DnsServer) -> None:
    """The name of a host, what to do, and what is worth little; nothing of a stranger's reaches the terminal raw."""
    dns_server.add("1.2.0.192.in-addr.arpa", "PTR", "mail.elsewhere.test")
    fill(command.store)
    status, said = command.run("list")
    assert status == 0
    assert "good.test" in said
    assert "nothing" in said
    assert "\x1b" not in said
    status, said = command.run("show", "good.test")
    assert status == 0
    for words in ("192.0.2.1", "mail.elsewhere.test", "your policy stopped it", "1 of them", "anybody can send"):
        assert words in said
    assert "far.test" not in said
    status, said = command.run("show")
    assert "certificate-expired" in said
    assert "mx.far.test" in said


def test_this_server_is_told_from_others(command: Command, dns_server: DnsServer) -> None:
    """What fails from our own address is for us to mend."""
    dns_server.add("mx.example.test", "A", "192.0.2.1")
    fill(command.store)
    shown = command.json("show")
    assert isinstance(shown, dict)
    (source,) = shown["domains"][0]["sources"]
    assert source["this_server"] is True
    assert "dkim show" in source["advice"]


def test_one_report_is_shown_by_its_number(command: Command) -> None:
    """As it stands in the list."""
    fill(command.store, proof="dkim=pass dmarc=pass evil.test")
    found = command.json("list")
    assert isinstance(found, list)
    shown = command.json("show", str(found[0]["id"]), "--no-names")
    assert isinstance(shown, dict)
    assert shown["domains"][0]["unproven"] == 0
    assert shown["domains"][0]["sources"][0]["host"] == ""
    assert command.run("show", "77")[0] == 1


def test_dry_run_says_who_would_get_what(command: Command, dns_server: DnsServer) -> None:
    """And why not: no key, off, not wanted."""
    dns_server.add("_smtp._tls.far.test", "TXT", '"v=TLSRPTv1; rua=mailto:tls@far.test"')
    fill(command.store)
    status, said = command.run("send", "--dry-run")
    assert status == 0
    assert "mailto:tls@far.test" in said
    assert "[reports] tls is off" in said
    assert "no DKIM key" in said
