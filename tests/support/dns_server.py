"""A small authoritative name server over UDP and TCP, with failures on demand.

    dns_server.zone("example.com", '''
        @      MX  10 mx
        mx     A   127.0.0.2
    ''')
    dns_server.add("example.net", "TXT", '"v=spf1 -all"')
    dns_server.fail("slow.example", Failure.TIMEOUT)

Answers NXDOMAIN and no-data with an SOA record, follows CNAMEs, knows wildcards and empty non-terminals. Runs in
threads of its own, so it serves sync tests, async tests and other processes alike.
"""

from __future__ import annotations

import enum
import socket
import socketserver
import struct
import threading
from collections.abc import Mapping

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import dns.zone

Key = tuple[dns.name.Name, dns.rdatatype.RdataType]


class Failure(enum.Enum):
    """What a name does instead of answering."""

    SERVFAIL = "servfail"
    REFUSED = "refused"
    TIMEOUT = "timeout"  # no answer, over UDP and TCP
    TRUNCATED = "truncated"  # UDP answers empty with TC; TCP has the records
    GARBAGE = "garbage"  # octets that are no DNS message


class DnsServer:
    """`spec` is what `[dns] nameservers` takes; `queries` is what was asked, in order."""

    def __init__(self, *, negative_ttl: int = 60, address: str = "127.0.0.1", port: int = 0) -> None:
        self._records: dict[Key, dns.rrset.RRset] = {}
        self._failures: dict[dns.name.Name, Failure] = {}
        self._secure: set[dns.name.Name] = set()
        self._negative_ttl = negative_ttl
        self._lock = threading.Lock()
        self.queries: list[tuple[str, str]] = []
        self._tcp, self._udp = self._bind(address, port)
        self._threads = [
            threading.Thread(target=s.serve_forever, args=(0.02,), name="dns-server") for s in (self._tcp, self._udp)
        ]
        for thread in self._threads:
            thread.start()

    def _bind(self, address: str, port: int) -> tuple[socketserver.BaseServer, socketserver.BaseServer]:
        answer = self._answer

        class Udp(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                data, sock = self.request
                reply = answer(data, udp=True)
                if reply is not None:
                    sock.sendto(reply, self.client_address)

        class Tcp(socketserver.StreamRequestHandler):
            timeout = 5

            def handle(self) -> None:
                try:
                    while len(length := self.rfile.read(2)) == 2:
                        reply = answer(self.rfile.read(struct.unpack("!H", length)[0]), udp=False)
                        if reply is None:
                            return
                        self.wfile.write(struct.pack("!H", len(reply)) + reply)
                except (TimeoutError, ConnectionError):
                    return

        class TcpServer(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            block_on_close = True
            request_queue_size = 64

        while True:
            tcp = TcpServer((address, port), Tcp)
            self.port = int(tcp.server_address[1])
            try:
                udp = socketserver.UDPServer((address, self.port), Udp)
            except OSError:
                tcp.server_close()
                if port:
                    raise
                continue
            udp.max_packet_size = 65535
            udp.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            return tcp, udp

    @property
    def spec(self) -> str:
        return f"127.0.0.1:{self.port}"

    def close(self) -> None:
        for server, thread in zip((self._tcp, self._udp), self._threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()

    # what the tests say

    def add(self, name: str, rdtype: str, *rdata: str, ttl: int = 300) -> None:
        """Add records to a name; rdata in master file form, names in it absolute without the final dot."""
        owner = dns.name.from_text(name)
        kind = dns.rdatatype.from_text(rdtype)
        parsed = [
            dns.rdata.from_text(dns.rdataclass.IN, kind, r, origin=dns.name.root, relativize=False) for r in rdata
        ]
        with self._lock:
            rrset = self._records.setdefault((owner, kind), dns.rrset.RRset(owner, dns.rdataclass.IN, kind))
            for record in parsed:
                rrset.add(record, ttl)
            if not parsed:
                rrset.ttl = ttl

    def zone(self, origin: str, text: str, *, ttl: int = 300) -> None:
        """Add records in master file form, names relative to `origin`; SOA and NS are not needed."""
        lines = "\n".join(line.strip() for line in text.splitlines())
        zone = dns.zone.from_text(f"$TTL {ttl}\n{lines}\n", origin=origin, relativize=False, check_origin=False)
        with self._lock:
            for name, rdataset in zone.iterate_rdatasets():
                rrset = dns.rrset.from_rdata_list(name, rdataset.ttl, list(rdataset))
                self._records[name, rdataset.rdtype] = rrset

    def load(self, records: Mapping[str, Mapping[str, list[str] | str]]) -> None:
        """`{"example.com": {"MX": ["10 mx.example.com"], "A": "127.0.0.2"}}`."""
        for name, by_type in records.items():
            for rdtype, rdata in by_type.items():
                self.add(name, rdtype, *([rdata] if isinstance(rdata, str) else rdata))

    def remove(self, name: str, rdtype: str | None = None) -> None:
        """Take a name's records of one type, or all, away."""
        owner = dns.name.from_text(name)
        with self._lock:
            for key in [k for k in self._records if k[0] == owner]:
                if rdtype is None or key[1] == dns.rdatatype.from_text(rdtype):
                    del self._records[key]

    def fail(self, name: str, failure: Failure | None) -> None:
        """Make a name fail from now on; None mends it."""
        with self._lock:
            if failure is None:
                self._failures.pop(dns.name.from_text(name), None)
            else:
                self._failures[dns.name.from_text(name)] = failure

    def secure(self, *names: str) -> None:
        """Answers for these names and what is below them carry the AD bit, as from a validating resolver."""
        with self._lock:
            self._secure.update(dns.name.from_text(n) for n in names)

    def asked(self, name: str, rdtype: str) -> int:
        """How often this was asked."""
        return self.queries.count((name.rstrip(".").lower(), rdtype))

    # what the server does

    def _answer(self, wire: bytes, *, udp: bool) -> bytes | None:
        try:
            query = dns.message.from_wire(wire)
            question = query.question[0]
        except (dns.exception.DNSException, IndexError):
            return None
        with self._lock:
            self.queries.append(
                (question.name.to_text(omit_final_dot=True).lower(), dns.rdatatype.to_text(question.rdtype))
            )
            failure = self._failures.get(question.name)
            if failure is Failure.TIMEOUT:
                return None
            if failure is Failure.GARBAGE:
                return b"\xff" * 7
            reply = dns.message.make_response(query, recursion_available=True)
            if failure is Failure.TRUNCATED and udp:
                reply.flags |= dns.flags.TC
            elif failure in (Failure.SERVFAIL, Failure.REFUSED):
                reply.set_rcode(dns.rcode.from_text(failure.name))
            else:
                self._fill(reply, question.name, question.rdtype)
        # RFC 6891 s. 6.2.3: without EDNS a UDP answer has at most 512 octets
        limit = (query.payload if query.edns >= 0 else 512) if udp else 65535
        try:
            return reply.to_wire(max_size=max(limit, 512))
        except dns.exception.TooBig:
            reply = dns.message.make_response(query, recursion_available=True)
            reply.flags |= dns.flags.TC
            return reply.to_wire()

    def _fill(self, reply: dns.message.Message, name: dns.name.Name, kind: dns.rdatatype.RdataType) -> None:
        if any(name.is_subdomain(s) for s in self._secure):
            reply.flags |= dns.flags.AD
        for _ in range(10):
            rrset = self._find(name, kind)
            if rrset is not None:
                if len(rrset):
                    reply.answer.append(rrset)
                break
            alias = self._find(name, dns.rdatatype.CNAME)
            if alias is None:
                break
            reply.answer.append(alias)
            name = alias[0].target
        else:
            reply.set_rcode(dns.rcode.SERVFAIL)
            return
        if not reply.answer or reply.answer[-1].rdtype not in (kind, dns.rdatatype.ANY):
            if not self._exists(name):
                reply.set_rcode(dns.rcode.NXDOMAIN)
            reply.authority.append(self._soa(name))

    def _find(self, name: dns.name.Name, kind: dns.rdatatype.RdataType) -> dns.rrset.RRset | None:
        rrset = self._records.get((name, kind))
        if rrset is not None or self._exists(name):
            return rrset
        for depth in range(1, len(name.labels) - 1):  # RFC 4592: the closest wildcard above a name that isn't there
            above = dns.name.Name(name.labels[depth:])
            wildcard = self._records.get((dns.name.from_text("*", above), kind))
            if wildcard is not None:
                return dns.rrset.from_rdata_list(name, wildcard.ttl, list(wildcard))
        return None

    def _exists(self, name: dns.name.Name) -> bool:
        return any(owner.is_subdomain(name) for owner, _ in self._records)

    def _soa(self, name: dns.name.Name) -> dns.rrset.RRset:
        apex = name.parent() if name != dns.name.root else name
        return dns.rrset.from_text(
            apex, self._negative_ttl, "IN", "SOA", f"ns.test. root.test. 1 3600 600 86400 {self._negative_ttl}"
        )
