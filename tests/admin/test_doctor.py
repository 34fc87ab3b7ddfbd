"""The doctor's checks, each with something broken once: what is said of it, and what to do."""

from __future__ import annotations

import asyncio
import datetime
import http.server
import json
import logging
import os
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from support.dated import dated
from support.dns_server import DnsServer, Failure
from support.ports import free_port
from support.sinks import ScriptedRemote
from support.tls import CertificateAuthority, TlsFiles

from pymx.accounts.banrules import Rules
from pymx.accounts.limitstate import FILE_NAME, LimitState
from pymx.accounts.registry import Registry
from pymx.admin import identity, nightly
from pymx.admin.context import Context
from pymx.admin.health import (
    blocklists,
    certificates,
    clock,
    deliveries,
    machine,
    network,
    ports,
    resolving,
    services,
)
from pymx.admin.health.examination import examine
from pymx.admin.health.finding import Finding, Severity, fail, ok, warn
from pymx.admin.health.listening import Holder, listening
from pymx.admin.health.subject import Places, Subject
from pymx.config.load import parse
from pymx.events.event import to_row
from pymx.events.keeping import store_path
from pymx.events.store import EventStore
from pymx.mail.address import Address
from pymx.mail.envelope import Envelope, Recipient
from pymx.queue.item import Copy, new_queue_id
from pymx.queue.queue import Queue
from pymx.resolver.resolver import Resolver
from pymx.spool import Content

HOST = "mx.example.test"
ADDRESS = "127.0.0.2"


@dataclass
class Rig:
    """A configuration, a name server, and a subject made of both."""

    directory: Path
    dns: DnsServer
    settings: dict[str, str] = field(default_factory=dict)
    places: Places = field(default_factory=lambda: Places(dated_hosts=(), public_lists=("list.test",)))
    holders: tuple[Holder, ...] = ()
    running: bool = False
    now: float = field(default_factory=time.time)

    def subject(self) -> Subject:
        sections = {
            "database": f'url = "sqlite:///{self.directory}/pymx.sqlite"',
            "mail": f'root = "{self.directory}"',
            "smtp": 'listen = ["127.0.0.2:25"]',
            "submission": "listen_tls = []\nlisten_starttls = []",
            "imap": "listen_tls = []",
            "outbound": f'allow_private = true\nsource_addresses = ["{ADDRESS}", "::1"]',
            "dns": f'nameservers = ["{self.dns.spec}"]\ntimeout_s = 2',
            **self.settings,
        }
        text = f'hostname = "{HOST}"\ndata_dir = "{self.directory}"\nuser = "none"\n'
        config = parse(text + "".join(f"[{name}]\n{keys}\n" for name, keys in sections.items()))
        server = replace(identity.server(config), sends=(ADDRESS,), receives=(ADDRESS,))
        return Subject(
            config, server, (), Resolver(config.dns), self.now, self.holders, self.running,
            asyncio.get_running_loop().time(), self.places,
        )  # fmt: skip


@pytest.fixture
def rig(tmp_path: Path, dns_server: DnsServer) -> Rig:
    return Rig(tmp_path, dns_server)


async def run(check: Callable[[Subject], object], rig: Rig) -> list[Finding]:
    found = check(rig.subject())
    if hasattr(found, "__aiter__"):
        return [finding async for finding in found]
    if hasattr(found, "__await__"):
        return list(await found)
    return await asyncio.to_thread(lambda: list(found))  # type: ignore[call-overload]


def said(findings: Sequence[Finding], check: str = "") -> tuple[str, str, str]:
    """(severity, sentence, remedy) of the only finding, or of the one whose id begins so."""
    fitting = [f for f in findings if f.check.startswith(check)]
    assert len(fitting) == 1, findings
    return fitting[0].severity.name.lower(), fitting[0].sentence, fitting[0].remedy


# --- the way out


def reachable(rig: Rig, port: int) -> None:
    rig.settings["outbound"] = f'allow_private = true\nsource_addresses = ["{ADDRESS}"]\nport = {port}'
    rig.dns.add("gmail.com", "MX", "10 mx.big.test")
    rig.dns.add("mx.big.test", "A", "127.0.0.1")


async def test_port_25_is_open(rig: Rig, scripted_remote: Callable[..., ScriptedRemote]) -> None:
    reachable(rig, scripted_remote().port)
    assert said(await run(network.outbound, rig))[0] == "ok"


async def test_port_25_is_closed_by_the_hoster(rig: Rig) -> None:
    reachable(rig, free_port())
    severity, sentence, remedy = said(await run(network.outbound, rig))
    assert severity == "fail"
    assert sentence.startswith("no mail server elsewhere can be reached from 127.0.0.2")
    assert "ask your hoster to open outgoing port 25" in remedy


async def test_an_address_that_the_machine_does_not_have(rig: Rig) -> None:
    reachable(rig, free_port())
    subject = rig.subject()
    subject = replace(subject, server=replace(subject.server, sends=("192.0.2.77",)))
    findings = [finding async for finding in network.outbound(subject)]
    assert "this machine does not have the address 192.0.2.77" in findings[0].sentence


async def test_a_smarthost_is_tried_instead(rig: Rig) -> None:
    port = free_port()
    rig.settings["outbound"] = f'route = [{{ domain = "*", host = "127.0.0.1", port = {port} }}]'
    assert "the smarthost 127.0.0.1 can't be reached" in said(await run(network.outbound, rig))[1]


async def test_the_servers_name_is_not_in_dns(rig: Rig) -> None:
    severity, sentence, remedy = said(await run(network.hostname, rig))
    assert (severity, sentence) == ("fail", "the server's name mx.example.test is not in DNS")
    assert "pymxctl dns records" in remedy


async def test_the_machine_has_another_name(rig: Rig) -> None:
    rig.dns.add(HOST, "A", ADDRESS)
    rig.places = replace(rig.places, system_hostname=lambda: "vps4711")
    findings = await run(network.hostname, rig)
    assert said(findings, "hostname:mx")[0] == "ok"
    assert "hostnamectl set-hostname mx.example.test" in said(findings, "hostname:system")[2]


# --- the resolver, lists


async def test_a_resolver_that_validates(rig: Rig) -> None:
    rig.dns.add("org", "SOA", "a. b. 1 2 3 4 5")
    rig.dns.secure("org")
    assert said(await run(resolving.check, rig))[0] == "ok"


async def test_a_resolver_that_does_not_validate(rig: Rig) -> None:
    rig.dns.add("org", "SOA", "a. b. 1 2 3 4 5")
    severity, sentence, remedy = said(await run(resolving.check, rig))
    assert severity == "warn"
    assert "does not validate DNSSEC" in sentence
    assert "unbound" in remedy


async def test_without_a_resolver_nothing_else_is_asked(rig: Rig) -> None:
    rig.dns.fail("org", Failure.SERVFAIL)
    findings = await examine(rig.subject(), before_start=True)
    assert "does not answer" in said(findings, "resolver")[1]
    assert not [f for f in findings if f.check.startswith(("dns", "hostname", "blocklist", "outbound"))]
    assert [f for f in findings if f.check.startswith("disk")]


@pytest.mark.parametrize(
    ("answer", "severity", "sentence"),
    [
        ("", "ok", "127.0.0.2 is not on list.test"),
        ("127.0.0.3", "fail", "127.0.0.2 is on list.test (127.0.0.3)"),
        ("127.0.0.10", "fail", "as an address that should not send mail"),
        ("127.255.255.254", "warn", "list.test refuses to answer us (127.255.255.254): the question came by a public"),
        ("203.0.113.9", "warn", "which no such list does"),
    ],
)
async def test_lists_of_bad_hosts(rig: Rig, answer: str, severity: str, sentence: str) -> None:
    """RFC 5782 s. 2.1; the refusals are Spamhaus'."""
    if answer:
        rig.dns.add("2.0.0.127.list.test", "A", answer)
    found = said(await run(blocklists.check, rig))
    assert found[0] == severity
    assert sentence in found[1]


async def test_the_configured_lists_are_asked_too(rig: Rig) -> None:
    rig.settings["checks"] = 'dnsbl = ["own.test=2"]'
    rig.dns.add("2.0.0.127.own.test", "A", "127.0.0.2")
    assert said(await run(blocklists.check, rig), "blocklist:own.test")[0] == "fail"


# --- the machine


@pytest.fixture
def web() -> Iterator[Callable[[float], int]]:
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(offset_s: float = 0.0) -> int:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), dated(offset_s))
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        servers.append(server)
        return int(server.server_address[1])

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("offset_s", "severity", "sentence"),
    [(0.0, "", ""), (30.0, "warn", "the clock is 30 s behind"), (-600.0, "fail", "the clock is 600 s ahead")],
)
async def test_the_clock(rig: Rig, web: Callable[[float], int], offset_s: float, severity: str, sentence: str) -> None:
    """Against the Date of web servers (RFC 9110 s. 6.6.1)."""
    rig.dns.add("time.test", "A", "127.0.0.1")
    rig.places = replace(rig.places, dated_hosts=(("time.test", web(offset_s)),))
    found = said(await run(clock.check, rig))
    if severity:
        assert found[0] == severity
        # their Date has no fraction
        assert abs(int(found[1].split()[3]) - abs(offset_s)) <= 2, found
        assert found[1].split()[-1] == sentence.split()[-1]
        assert "timedatectl set-ntp true" in found[2]
    else:
        assert "behind" not in found[1] + found[2]
        assert "ahead" not in found[1]


def disk(free: int, whole: int, files: int = 1000, free_files: int = 900) -> Callable[[str], os.statvfs_result]:
    values = {"f_bavail": free, "f_blocks": whole, "f_frsize": 1, "f_files": files, "f_favail": free_files}
    return lambda _path: SimpleNamespace(**values)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("statvfs", "severity", "sentence"),
    [
        (disk(50 << 30, 100 << 30), "ok", "50.0 GiB free of 100.0 GiB"),
        (disk(5 << 30, 100 << 30), "warn", "only 5.0 GiB free of 100.0 GiB"),
        (disk(100 << 20, 100 << 30), "fail", "only 100 MiB free"),
        (disk(50 << 30, 100 << 30, free_files=10), "warn", "only 10 files more can be made"),
    ],
)
async def test_room_on_the_disk(
    rig: Rig, statvfs: Callable[[str], os.statvfs_result], severity: str, sentence: str
) -> None:
    rig.places = replace(rig.places, statvfs=statvfs)
    found = said(await run(machine.check, rig), "disk")
    assert found[0] == severity
    assert sentence in found[1]


@pytest.mark.parametrize(
    ("total_mb", "available_mb", "severity"),
    [(4000, 2000, "ok"), (4000, 100, "warn"), (800, 400, "info"), (300, 200, "fail")],
)
async def test_memory(rig: Rig, total_mb: int, available_mb: int, severity: str) -> None:
    meminfo = rig.directory / "meminfo"
    meminfo.write_text(f"MemTotal: {total_mb << 10} kB\nMemAvailable: {available_mb << 10} kB\n")
    rig.places = replace(rig.places, meminfo=meminfo)
    assert said(await run(machine.check, rig), "memory")[0] == severity


# --- ports


async def test_a_port_that_another_program_holds_is_told_with_its_name(rig: Rig) -> None:
    """Seen in /proc: a real program on a real port."""
    port = free_port()
    program = (
        "import socket, sys; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); "
        "print('up', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        rig.settings["smtp"] = f'listen = ["0.0.0.0:{port}"]'
        rig.holders = listening()
        other.stdin.close()  # type: ignore[union-attr]
    severity, sentence, remedy = said(await run(ports.check, rig))
    assert severity == "fail"
    assert f"port {port} at 0.0.0.0 is taken by python" in sentence
    assert f"(process {other.pid})" in sentence
    assert remedy == f"stop process {other.pid}, or give us another port"


@pytest.mark.parametrize(
    ("program", "sentence", "remedy"),
    [
        ("master", "is taken by Postfix (process 7)", "systemctl disable --now postfix"),
        ("exim4", "is taken by Exim (process 7)", "systemctl disable --now exim4"),
        ("dovecot", "is taken by Dovecot (process 7)", "systemctl disable --now dovecot.socket dovecot"),
        ("", "is taken by another program", "ss -ltnp"),
    ],
)
async def test_the_usual_mail_servers_are_known(rig: Rig, program: str, sentence: str, remedy: str) -> None:
    rig.holders = (Holder("::", 25, program, 7 if program else 0, program),)
    found = said(await run(ports.check, rig))
    assert found[0] == "fail"
    assert sentence in found[1]
    assert remedy in found[2]


async def test_our_own_ports(rig: Rig) -> None:
    assert said(await run(ports.check, rig))[0] == "ok"  # free
    rig.running = True
    assert "nobody listens at port 25" in said(await run(ports.check, rig))[1]
    rig.holders = (Holder(ADDRESS, 25, "pymx", 9, "/opt/pymx/bin/python /opt/pymx/bin/pymx serve --config x"),)
    assert said(await run(ports.check, rig))[0] == "ok"


async def test_a_listener_whose_program_is_hidden_is_ours_while_we_run(rig: Rig) -> None:
    """The nightly unit has no capability: the kernel does not show it what the server has open."""
    rig.holders = (Holder(ADDRESS, 25, "", 0, ""),)
    assert said(await run(ports.check, rig))[0] == "fail"
    rig.running = True
    severity, sentence, _ = said(await run(ports.check, rig))
    assert severity == "ok"
    assert "has a listener" in sentence
    rig.holders += (Holder("0.0.0.0", 25, "master", 7, "/usr/lib/postfix/sbin/master"),)
    assert "taken by Postfix" in said(await run(ports.check, rig))[1]


# --- certificates


@pytest.fixture(scope="module")
def pem(certificate_authority: CertificateAuthority) -> Callable[..., TlsFiles]:
    made: dict[str, TlsFiles] = {}

    def issue(label: str, name: str = HOST, days: int = 60) -> TlsFiles:
        if label not in made:
            made[label] = certificate_authority.issue(f"doctor-{label}", names=(name,), days=days)
        return made[label]

    return issue


def use(rig: Rig, certificate: TlsFiles, key: TlsFiles | None = None) -> None:
    rig.settings["tls"] = (
        f'certificate = "{certificate.certificate}"\nprivate_key = "{(key or certificate).private_key}"'
    )
    rig.places = replace(rig.places, ca_file=str(certificate.ca))


async def test_a_good_certificate(rig: Rig, pem: Callable[..., TlsFiles]) -> None:
    use(rig, pem("good"))
    assert said(await run(certificates.check, rig))[0] == "ok"


@pytest.mark.parametrize(
    ("label", "name", "days", "severity", "sentence"),
    [
        ("expired", HOST, -3, "fail", "expired 3 days ago"),
        ("nearly", HOST, 1, "fail", "expires in 1 days"),
        ("late", HOST, 3, "warn", "expires in 3 days and was not renewed"),
        ("other", "mail.other.test", 60, "fail", "is for mail.other.test, not for mx.example.test"),
    ],
)
async def test_a_wrong_certificate(
    rig: Rig, pem: Callable[..., TlsFiles], label: str, name: str, days: int, severity: str, sentence: str
) -> None:
    use(rig, pem(label, name, days))
    found = said(await run(certificates.check, rig))
    assert found[0] == severity, found
    assert sentence in found[1]
    assert "pymxctl cert" in found[2]


async def test_a_key_of_another_certificate(rig: Rig, pem: Callable[..., TlsFiles]) -> None:
    use(rig, pem("good"), pem("old", HOST, 30))
    assert "is not that of the certificate" in said(await run(certificates.check, rig))[1]


async def test_a_chain_that_clients_do_not_trust(rig: Rig, pem: Callable[..., TlsFiles]) -> None:
    use(rig, pem("good"))
    rig.places = replace(rig.places, ca_file="")
    severity, sentence, remedy = said(await run(certificates.check, rig))
    assert severity == "warn"
    assert "clients don't trust the certificate" in sentence
    assert "fullchain.pem" in remedy


async def test_no_certificate_at_all(rig: Rig) -> None:
    assert said(await run(certificates.check, rig))[:2] == ("fail", "the server has no certificate")


async def test_a_listener_that_still_shows_the_old_one(rig: Rig, pem: Callable[..., TlsFiles]) -> None:
    """As after a renewal without a reload."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem("old", HOST, 30).certificate, pem("old", HOST, 30).private_key)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, context.wrap_socket(connection, server_side=True) as tls:
                tls.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        use(rig, pem("good"))
        rig.running = True
        rig.settings["smtp"] = "listen = []"
        rig.settings["imap"] = f'listen_tls = ["127.0.0.1:{port}"]'
        findings = await run(certificates.check, rig)
        thread.join()
    found = said(findings, "listener")
    assert found[0] == "warn"
    assert f"port {port} shows another certificate than the one in the file" in found[1]
    assert found[2] == "systemctl reload pymx"


# --- what runs


async def test_a_server_that_does_not_run(rig: Rig) -> None:
    assert said(await run(services.check, rig), "server")[1:] == (
        "pymx does not run", "systemctl start pymx; journalctl -u pymx says why it ended",
    )  # fmt: skip


async def test_the_accounts_database(rig: Rig) -> None:
    assert said(await run(services.check, rig), "database")[0] == "fail"
    registry = Registry(rig.subject().config.database)
    registry.migrate()
    assert "there is no domain yet" in said(await run(services.check, rig), "database")[1]
    registry.add_domain("example.test")
    assert "there is no user yet" in said(await run(services.check, rig), "database")[1]
    registry.add_user("alice@example.test", "{PLAIN}x")
    registry.close()
    findings = await run(services.check, rig)
    assert said(findings, "database")[0] == "ok"
    assert said(findings, "postmaster")[2] == '[accounts] postmaster = "alice@example.test"'


@pytest.mark.parametrize(("hours", "severity"), [(1, "ok"), (7, "warn"), (60, "fail")])
async def test_an_old_queue(rig: Rig, hours: int, severity: str) -> None:
    queue = Queue(rig.directory / "queue", rig.subject().config.outbound)
    await queue.start()
    envelope = Envelope(Address("a", "example.test"), (Recipient(Address("b", "other.test")),))
    await queue.enqueue([Copy(new_queue_id(), envelope, Content.from_bytes(b"Subject: x\r\n\r\nx\r\n"), local=False)])
    await queue.close()
    db = sqlite3.connect(rig.directory / "queue/state.sqlite")
    db.execute("UPDATE message SET arrived_s = arrived_s - ?", (hours * 3600,))
    db.execute("UPDATE delivery SET reason = '450 later'")
    db.commit()
    db.close()
    found = said(await run(services.check, rig), "queue")
    assert found[0] == severity
    assert "1 messages wait" in found[1]
    assert "other.test: 450 later" in found[1]


async def test_a_user_of_ours_who_is_banned(rig: Rig) -> None:
    state = LimitState(rig.directory / FILE_NAME, Rules.of(rig.subject().config.limits))
    with state.transaction():
        state.ban("198.51.100.1", rig.now + 600, "by hand", rig.now)
    assert said(await run(services.check, rig), "bans")[:2] == ("ok", "1 addresses can't log in now")
    with state.transaction():
        state.succeeded("198.51.100.1", "alice@example.test", rig.now)
    state.close()
    found = said(await run(services.check, rig), "bans")
    assert found[0] == "warn"
    assert "pymxctl bans remove 198.51.100.1" in found[2]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("outbound-tls.damaged", "MTA-STS policies of other domains were forgotten"),
        ("queue/state.sqlite.damaged-20260131T120000-7", "it was rebuilt from the messages"),
        ("greylist.sqlite.damaged", "what was in it is forgotten"),
    ],
)
async def test_what_was_damaged_and_moved_aside_is_told_until_it_is_gone(rig: Rig, name: str, says: str) -> None:
    path = rig.directory / name
    path.parent.mkdir(exist_ok=True)
    assert not [f for f in await run(services.check, rig) if f.check.startswith("damaged")]
    path.write_bytes(b"")
    path.with_name(path.name + "-wal").write_bytes(b"")
    (finding,) = [f for f in await run(services.check, rig) if f.check.startswith("damaged")]
    assert finding.severity is Severity.WARN
    assert f"{path}: the server found it damaged" in finding.sentence
    assert says in finding.why
    assert finding.remedy.endswith(f"rm {path}*")


@pytest.mark.parametrize(
    ("last", "severity", "sentence"),
    [
        (None, "warn", "no backup was ever made"),
        ({"at": 3600, "ok": True, "target": "borg:x"}, "ok", "was made 1 h 0 min ago (borg:x)"),
        ({"at": 3 * 86_400, "ok": True, "target": "borg:x"}, "warn", "was made 3 d 0 h ago"),
        ({"at": 9 * 86_400, "ok": True, "target": "borg:x"}, "fail", "was made 9 d 0 h ago"),
        ({"at": 3600, "ok": False, "target": "borg:x", "reason": "no room"}, "fail", "failed (borg:x): no room"),
        ({"at": "never"}, "warn", "can't be read"),
    ],
)
async def test_the_last_backup(rig: Rig, last: dict[str, object] | None, severity: str, sentence: str) -> None:
    if last is not None:
        if isinstance(last["at"], int):
            at = datetime.datetime.fromtimestamp(rig.now - last["at"], datetime.UTC)
            last = last | {"at": at.isoformat()}
        (rig.directory / "backup").mkdir()
        (rig.directory / "backup" / "last.json").write_text(json.dumps(last))
    found = said(await run(services.check, rig), "backup")
    assert found[0] == severity
    assert sentence in found[1]


async def test_a_wrong_configuration(rig: Rig) -> None:
    rig.settings["accounts"] = 'postmaster = "nobody"'
    findings = await run(services.check, rig)
    assert any("[accounts] postmaster" in f.sentence and f.severity is Severity.FAIL for f in findings)


async def test_rspamd(rig: Rig, web: Callable[[float], int]) -> None:
    assert await run(services.rspamd, rig) == []
    rig.settings["rspamd"] = f'url = "http://127.0.0.1:{free_port()}"'
    severity, sentence, remedy = said(await run(services.rspamd, rig))
    assert (severity, remedy) == ("fail", "systemctl restart rspamd")
    assert "rspamd does not answer" in sentence
    rig.settings["rspamd"] = f'url = "http://127.0.0.1:{web(0.0)}"'
    assert said(await run(services.rspamd, rig))[0] == "ok"


async def test_deliveries_by_provider(rig: Rig) -> None:
    """The last good one of each, and what failed since."""
    store = EventStore(store_path(rig.directory))
    store.path.parent.mkdir(exist_ok=True)
    store.open()

    def attempt(hours: float, provider: str, mx: str, verdict: str, reply: str = "") -> object:
        facts = {"queue_id": "x", "provider": provider, "mx": mx, "verdict": verdict, "reply": reply}
        return to_row(rig.now - hours * 3600, logging.INFO, "queue", "delivery_attempt", facts)

    store.add(
        [
            attempt(60, "google", "a.google.com", "delivered"),
            attempt(50, "google", "a.google.com", "failed", "550 5.7.26 not authenticated"),
            attempt(2, "google", "a.google.com", "failed", "550 5.7.26 not authenticated"),
            attempt(30, "", "mx.firm.example.co.uk", "failed", "451 no"),
            attempt(1, "", "mx.firm.example.co.uk", "delivered"),
            attempt(1, "gmx", "mx00.gmx.net", "deferred", "450 later"),
            attempt(1, "local", "", "delivered"),
        ]  # type: ignore[list-item]
    )
    store.close()
    findings = await run(deliveries.check, rig)
    google = said(findings, "delivery:google")
    assert google[0] == "fail"
    assert google[1] == (
        "the last delivery to google was 2 d 12 h ago, 2 tries since then failed: 550 5.7.26 not authenticated"
    )
    assert said(findings, "delivery:example.co.uk")[0] == "ok"
    assert said(findings, "delivery:gmx")[0] == "info"
    assert len(findings) == 3


# --- from one night to the next


def night(findings: Sequence[Finding], before: Sequence[Finding]) -> nightly.Changes:
    known = {
        f.check: nightly.Remembered(int(f.severity), f.sentence, 0.0) for f in before if f.severity >= Severity.WARN
    }
    return nightly.compare(findings, known)


def test_only_changes_are_worth_a_mail() -> None:
    disk_low, disk_full = warn("disk:/", "little room"), fail("disk:/", "no room")
    mx = fail("dns.mx:example.test", "no MX")
    assert not night([disk_low, mx], [disk_low, mx])
    assert night([disk_full, mx], [disk_low, mx]).begun == (disk_full,)
    assert not night([disk_low], [disk_full])  # better, not over
    assert night([ok("disk:/", "room")], [disk_low]).over == ("little room",)
    assert not night([Finding("x", Severity.INFO, "by the way")], [])


def test_the_mail_says_what_is_new_why_and_what_to_do() -> None:
    finding = fail("dns.mx:example.test", "example.test has no MX record", "publish: it", "no mail comes")
    other = warn("disk:/", "little room")
    changes = night([finding, other], [other, warn("clock", "the clock is wrong")])
    import email
    import email.policy

    message = email.message_from_bytes(nightly.mail(HOST, changes, [finding, other], 0.0), policy=email.policy.default)
    text = message.get_content()
    assert message["Subject"] == "mx.example.test: 1 new problem"
    assert message["Auto-Submitted"] == "auto-generated"
    for part in ("example.test has no MX record", "why: no mail comes", "do:  publish: it", "the clock is wrong"):
        assert part in text
    assert "little room" not in text
    assert "1 known before and not mentioned here" in text


def test_findings_keep_their_day(tmp_path: Path) -> None:
    nightly._write(tmp_path / "doctor" / "last.json", [warn("a", "x")], {"a": nightly.Remembered(2, "x", 5.0)}, 9.0)
    assert msgspec.json.decode((tmp_path / "doctor" / "last.json").read_bytes())["a"]["since"] == 5.0


async def test_what_passes_within_a_minute_is_not_mailed(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    """A second look at what is new: nothing is sent, nothing is remembered."""
    context = Context(rig.subject().config, rig.directory / "pymx.toml", json=True)
    status = nightly.run(context, [warn("dns.mx:x", "can't be looked up")], again=list, second_look_s=0.01)
    assert status == 0
    assert json.loads(capsys.readouterr().out)["mailed"] is False
    assert msgspec.json.decode((rig.directory / "doctor" / "last.json").read_bytes()) == {}
