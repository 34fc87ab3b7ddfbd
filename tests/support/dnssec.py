"""A real name server with DNSSEC-signed zones (nsd), and a validating resolver in front of it (unbound), on loopback.

    with ValidatingResolver(directory) as dns:
        dns.zone("far.test", "@ MX 10 mx\\nmx A 127.0.0.1\\n_25._tcp.mx TLSA 3 1 1 ...", bogus=("_25._tcp.broken",))
        dns.zone("open.test", "@ MX 10 mx\\nmx A 127.0.0.1", signed=False)
        dns.start()
        Resolver(Dns(nameservers=[dns.spec]))

Zones are added before `start`. `bogus` names, relative to the zone, have their TXT or TLSA records changed after the
zone was signed, so that a validator refuses them. The trust anchors are the zones' own keys: nothing outside is asked.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import dns.dnssec
import dns.dnssectypes
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.ANY.DNSKEY
import dns.zone
from cryptography.hazmat.primitives.asymmetric import ec

from pymx.resolver.resolver import take_any_tlsa
from support.ports import free_port
from support.programs import require, tail
from support.wait import wait_for

_HEAD = "@ 300 IN SOA ns hostmaster 1 3600 600 86400 60\n@ 300 IN NS ns\nns 300 IN A 127.0.0.1\n"
_NSD = """
server:
    ip-address: 127.0.0.1@{port}
    server-count: 1
    username: ""
    chroot: ""
    zonesdir: "{directory}"
    database: ""
    pidfile: "{directory}/nsd.pid"
    logfile: "{directory}/nsd.log"
    xfrdfile: "{directory}/xfrd.state"
    zonelistfile: "{directory}/zone.list"
    xfrdir: "{directory}"
    verbosity: 1
remote-control:
    control-enable: no
"""
_UNBOUND = """
server:
    interface: 127.0.0.1@{port}
    access-control: 127.0.0.0/8 allow
    do-daemonize: no
    num-threads: 1
    username: ""
    chroot: ""
    directory: "{directory}"
    pidfile: "{directory}/unbound.pid"
    logfile: "{directory}/unbound.log"
    use-syslog: no
    do-ip6: no
    do-not-query-localhost: no
    local-zone: "test." nodefault
    module-config: "validator iterator"
    qname-minimisation: no
remote-control:
    control-enable: no
"""


class ValidatingResolver:
    """`spec` is what `[dns] nameservers` takes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._nsd = require("nsd", "nsd")
        self._unbound = require("unbound", "unbound")
        self._zones: dict[str, str] = {}  # origin → DS record, "" for an unsigned zone
        self._processes: list[subprocess.Popen[bytes]] = []
        self.port = free_port()

    @property
    def spec(self) -> str:
        return f"127.0.0.1:{self.port}"

    def zone(self, origin: str, text: str, *, signed: bool = True, bogus: Sequence[str] = ()) -> None:
        """A zone in master file form, names relative to `origin`; SOA and NS are added."""
        take_any_tlsa()
        lines = "\n".join(line.strip() for line in text.splitlines())
        zone = dns.zone.from_text(f"$TTL 300\n{_HEAD}{lines}\n", origin=origin, relativize=False)
        self._zones[origin] = _sign(zone, origin) if signed else ""
        for name in bogus:
            _tamper(zone, dns.name.from_text(name, zone.origin))
        self._directory.mkdir(parents=True, exist_ok=True)
        zone.to_file(str(self._directory / f"{origin}.zone"), relativize=False)

    def __enter__(self) -> ValidatingResolver:
        return self

    def start(self) -> None:
        authority = free_port()
        nsd = _NSD.format(port=authority, directory=self._directory)
        unbound = _UNBOUND.format(port=self.port, directory=self._directory)
        for origin, ds in self._zones.items():
            nsd += f'zone:\n    name: "{origin}"\n    zonefile: "{origin}.zone"\n'
            unbound += f'stub-zone:\n    name: "{origin}"\n    stub-addr: 127.0.0.1@{authority}\n'
            if ds:
                unbound = unbound.replace("server:\n", f'server:\n    trust-anchor: "{origin}. DS {ds}"\n', 1)
        self._run(self._nsd, nsd, "nsd")
        wait_for(lambda: self._answers(authority, "nsd"), what="nsd answers")
        self._run(self._unbound, unbound, "unbound")
        wait_for(lambda: self._answers(self.port, "unbound"), what="unbound answers")

    def _run(self, program: str, config: str, name: str) -> None:
        path = self._directory / f"{name}.conf"
        path.write_text(config)
        with (self._directory / f"{name}.out").open("wb") as out:
            self._processes.append(
                subprocess.Popen([program, "-d", "-c", str(path)], stdin=subprocess.DEVNULL, stdout=out, stderr=out)
            )

    def _answers(self, port: int, name: str) -> bool:
        if self._processes[-1].poll() is not None:
            log = tail(self._directory / f"{name}.out") + tail(self._directory / f"{name}.log")
            raise AssertionError(f"{name} ended with {self._processes[-1].returncode}: {log}")
        query = dns.message.make_query(next(iter(self._zones)), "SOA")
        try:
            return dns.query.udp(query, "127.0.0.1", port=port, timeout=0.5).rcode() is dns.rcode.NOERROR
        except (OSError, dns.exception.DNSException):
            return False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()


def _sign(zone: dns.zone.Zone, origin: str) -> str:
    """Sign with one new key, whose DS record is the trust anchor."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = dns.dnssec.make_dnskey(key.public_key(), dns.dnssectypes.Algorithm.ECDSAP256SHA256, flags=257)
    with zone.writer() as transaction:
        dns.dnssec.sign_zone(zone, transaction, keys=[(key, public)], lifetime=86400)
    return dns.dnssec.make_ds(dns.name.from_text(origin), public, "SHA256").to_text()


def _tamper(zone: dns.zone.Zone, name: dns.name.Name) -> None:
    """Other records than those that were signed."""
    node = zone.nodes[name]
    for kind, other in ((dns.rdatatype.TLSA, "3 1 1 " + "00" * 32), (dns.rdatatype.TXT, '"tampered"')):
        rdataset = node.get_rdataset(dns.rdataclass.IN, kind)
        if rdataset is not None:
            rdataset.clear()
            rdataset.add(dns.rdata.from_text(dns.rdataclass.IN, kind, other), ttl=300)
