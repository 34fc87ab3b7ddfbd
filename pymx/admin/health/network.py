"""The way out, and how others see us: port 25, the server's name, the addresses' names."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator

from pymx.admin.health.finding import Finding, fail, info, ok, warn
from pymx.admin.health.subject import Subject
from pymx.resolver.answer import DnsError, TemporaryDnsError

_CONNECT_S = 8.0
_GREETING_S = 20.0


async def outbound(subject: Subject) -> AsyncIterator[Finding]:
    """Can we reach the mail servers of the big providers, from each address?"""
    routes = [r for r in subject.config.outbound.route if r.domain == "*"]
    if routes:
        for route in routes:
            problem = await _reach("", route.host, route.port, implicit_tls=route.tls == "implicit")
            check = f"outbound:{route.host}:{route.port}"
            if problem:
                yield fail(check, f"the smarthost {route.host} can't be reached at port {route.port}: {problem}",
                           "is its name right, and does a firewall let us out?",
                           "mail to others stays in the queue")  # fmt: skip
            else:
                yield ok(check, f"the smarthost {route.host} answers at port {route.port}")
        return
    hosts = await _big_hosts(subject)
    for source in subject.server.sends:
        yield await _from(subject, source, [a for a in hosts if (":" in a) == (":" in source)])
    if not subject.server.sends:
        yield await _from(subject, "", [a for a in hosts if ":" not in a])


async def _from(subject: Subject, source: str, hosts: list[str]) -> Finding:
    port = subject.config.outbound.port
    check = f"outbound:{source or 'any'}"
    whence = f"from {source}" if source else "from here"
    if not hosts:
        return info(check, f"no big provider has a mail server that could be tried {whence}")
    problems = await asyncio.gather(*(_reach(source, host, port) for host in hosts))
    if not all(problems):
        return ok(check, f"mail servers elsewhere answer {whence} (port {port})")
    grade = warn if ":" in source else fail
    return grade(
        check,
        f"no mail server elsewhere can be reached {whence} at port {port}: {problems[0]}",
        "ask your hoster to open outgoing port 25 (many close it at first), or send by a smarthost: [outbound] route",
        "mail to others stays in the queue",
    )


async def _big_hosts(subject: Subject) -> list[str]:
    """An address of each family of each big domain's first mail server."""
    found: list[str] = []
    for domain in subject.places.big_domains:
        try:
            mx = min(await subject.resolver.mx(domain))[1]
            addresses = await subject.resolver.addresses(mx)
        except (DnsError, ValueError):
            continue
        for six in (False, True):
            found += [a for a in addresses if (":" in a) is six][:1]
    return found


async def _reach(source: str, host: str, port: int, *, implicit_tls: bool = False) -> str:
    """What went wrong; "" when a server greets."""
    try:
        async with asyncio.timeout(_CONNECT_S):
            local = (source, 0) if source else None
            reader, writer = await asyncio.open_connection(host, port, local_addr=local)
    except TimeoutError:
        return f"{host} does not answer within {_CONNECT_S:.0f} s"
    except OSError as e:
        if e.errno == errno.EADDRNOTAVAIL and source:
            return f"this machine does not have the address {source}"
        return f"{host}: {e.strerror or e}"
    try:
        if implicit_tls:
            return ""
        async with asyncio.timeout(_GREETING_S):
            line = await reader.readline()
        if not line[:3].isdigit():
            return f"{host} answers, but not like a mail server: a firewall in between?"
        return "" if line.startswith((b"220", b"4")) else f"{host} says {line.decode('ascii', 'replace').strip()[:200]}"
    except (TimeoutError, OSError):
        return f"{host} takes the connection, but does not greet"
    finally:
        writer.close()


async def hostname(subject: Subject) -> AsyncIterator[Finding]:
    """The server's own name: full, known in DNS, and that of the machine."""
    host = subject.server.hostname
    check = f"hostname:{host}"
    try:
        addresses = await subject.resolver.addresses(host)
    except TemporaryDnsError as e:
        yield warn(
            check,
            f"{host} can't be looked up: {e.reason}",
            "see the resolver's findings",
            "others look that name up before they take our mail",
        )
        return
    except DnsError:
        yield fail(check, f"the server's name {host} is not in DNS", "publish its address: pymxctl dns records",
                   "others greet us with distrust, and refuse bounces of ours")  # fmt: skip
        return
    yield ok(check, f"the server's name {host} leads to {', '.join(addresses)}")
    own = await asyncio.to_thread(subject.places.system_hostname)
    if own.lower() != host:
        yield info(
            "hostname:system", f"the machine calls itself {own}, the server {host}",
            f"hostnamectl set-hostname {host} (only so that other programs' mail bears the same name)",
        )  # fmt: skip
