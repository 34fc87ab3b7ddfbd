"""Messages, settings and outcomes for the tests of delivery."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
from support.dns_server import DnsServer
from support.sinks import ScriptedRemote

from pymx.config.model import Dns, Outbound, Route
from pymx.mail.address import Address, parse_address
from pymx.mail.envelope import Envelope, Recipient
from pymx.mta.deliver import Deliver
from pymx.queue.item import Attempt, Outcome, QueueId, Result
from pymx.resolver.resolver import Resolver
from pymx.spool import Content

DeliverTo = Callable[[Outbound], Deliver]


@asynccontextmanager
async def delivering(dns_server: DnsServer) -> AsyncIterator[DeliverTo]:
    """Makes Delivers that ask this name server, and closes them."""
    made: list[Deliver] = []

    def make(outbound: Outbound) -> Deliver:
        deliver = Deliver(Resolver(Dns(nameservers=[dns_server.spec], timeout_s=2)), outbound, "mx.ours.test")
        made.append(deliver)
        return deliver

    yield make
    for deliver in made:
        await deliver.close()


Start = Callable[..., ScriptedRemote]
MESSAGE = b"From: a@example.test\r\nSubject: hi\r\n\r\n.dot\r\n..two\r\nend\r\n"
OK, DEFERRED, FAILED = Result.DELIVERED, Result.DEFERRED, Result.FAILED


def attempt(*to: str, content: bytes | Content = MESSAGE, **envelope: object) -> Attempt:
    sender = envelope.pop("mail_from", Address("alice", "example.test"))
    recipients = tuple(Recipient(parse_address(a)) for a in to)
    made = Envelope(sender, recipients, **envelope)  # type: ignore[arg-type]
    return Attempt(
        QueueId("Q1"), "", made, content if isinstance(content, Content) else Content.from_bytes(content), False, 1, 0.0
    )


def settings(port: int, **changes: object) -> Outbound:
    values: dict[str, object] = {
        "port": port, "allow_private": True, "connect_timeout_s": 2, "command_timeout_s": 1, "data_timeout_s": 1,
    }  # fmt: skip
    return Outbound(**(values | changes))  # type: ignore[arg-type]


def smarthost(port: int, **changes: object) -> Outbound:
    route = Route(**({"domain": "*", "host": "127.0.0.1", "port": port, "tls": "none"} | changes))  # type: ignore[arg-type]
    return settings(port, route=[route])


def results(outcomes: list[Outcome]) -> list[tuple[Result, str]]:
    return [(o.result, o.status) for o in outcomes]


def replaced(outbound: Outbound, **changes: object) -> Outbound:
    return msgspec.structs.replace(outbound, **changes)
