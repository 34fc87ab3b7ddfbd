"""What the checks cost: a whole server takes 4 KB messages at port 25, with all checks off and on; DNS answers cached.

    PYTHONPATH=tests python benchmarks/inbound_checks.py [MESSAGES]

Each message has one RSA-2048 DKIM signature; SPF, DKIM, iprev and DMARC pass, HELO exists, one list is asked. Prints
messages a second over two connections, and the server's CPU for each message, whose difference is the checks' own.
"""

from __future__ import annotations

import base64
import os
import smtplib
import sys
import tempfile
import threading
import time
from pathlib import Path

from support.appliance import Appliance
from support.dns_server import DnsServer

from pymx.mailauth.dkim import keys
from pymx.mailauth.dkim.sign import Signer
from pymx.spool import Content

MESSAGES = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
CONNECTIONS = 2
PEER = "127.0.0.2"
HEAD = (
    b"Date: Tue, 24 Nov 2026 10:00:00 +0000\r\nFrom: Ann <ann@far.test>\r\nTo: alice@example.test\r\n"
    b"Subject: figures of last week\r\nMessage-ID: <1@far.test>\r\nContent-Transfer-Encoding: base64\r\n"
)
OFF = "\n".join(f"{name} = false" for name in ("spf", "dkim", "dmarc", "arc", "iprev", "helo")) + "\n"
ON = 'dnsbl = ["bl.test=3"]\n'


def world(dns: DnsServer, directory: Path) -> bytes:
    """A domain that does everything right, and a message of its."""
    key = keys.generate(directory, "far.test", selector="k", algorithm="rsa")
    dns.add(key.record_name, "TXT", " ".join(f'"{key.record[i : i + 200]}"' for i in range(0, 600, 200)), ttl=3600)
    dns.add("far.test", "TXT", '"v=spf1 mx include:spf.far.test -all"', ttl=3600)
    dns.add("far.test", "MX", "10 mail.far.test", ttl=3600)
    dns.add("spf.far.test", "TXT", '"v=spf1 ip4:192.0.2.0/24 -all"', ttl=3600)
    dns.add("mail.far.test", "A", PEER, ttl=3600)
    dns.add("_dmarc.far.test", "TXT", '"v=DMARC1; p=reject"', ttl=3600)
    dns.add("2.0.0.127.in-addr.arpa", "PTR", "mail.far.test", ttl=3600)
    message = HEAD + b"\r\n" + base64.encodebytes(os.urandom(2900)).replace(b"\n", b"\r\n")
    return Signer(directory).sign("far.test", Content.from_bytes(message)) + message


def send(server: Appliance, message: bytes, count: int) -> None:
    with smtplib.SMTP("127.0.0.1", server.ports["smtp"], "mail.far.test", source_address=(PEER, 0)) as client:
        for _ in range(count):
            client.sendmail("ann@far.test", ["alice@example.test"], message)


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(dns: DnsServer, message: bytes, checks: str) -> tuple[float, float]:
    """Messages a second, and milliseconds of the server's CPU for each."""
    server = Appliance(extra={"dns": f'nameservers = ["{dns.spec}"]\n', "checks": checks, "log": ""})
    try:
        server.populate(("alice",))
        server.start()
        assert server.process is not None
        send(server, message, 50)
        before, started = cpu_s(server.process.pid), time.perf_counter()
        threads = [
            threading.Thread(target=send, args=(server, message, MESSAGES // CONNECTIONS)) for _ in range(CONNECTIONS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.perf_counter() - started
        return MESSAGES / took, (cpu_s(server.process.pid) - before) / MESSAGES * 1000
    finally:
        server.stop()
        server.remove()


def main() -> None:
    dns = DnsServer()
    try:
        with tempfile.TemporaryDirectory() as directory:
            message = world(dns, Path(directory))
            off = measure(dns, message, OFF)
            on = measure(dns, message, ON)
    finally:
        dns.close()
    print(f"checks off   {off[0]:6.0f} messages/s   {off[1]:6.2f} ms CPU each")
    print(f"checks on    {on[0]:6.0f} messages/s   {on[1]:6.2f} ms CPU each")
    print(f"the checks                        {on[1] - off[1]:6.2f} ms CPU each")


if __name__ == "__main__":
    main()
