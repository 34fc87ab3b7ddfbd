"""How much one address may bring to port 25, before the policy behind it is asked (`[limits]`, RFC 5321 s. 7.8).

    greeting  too many connections: 421 4.7.0; else it comes after a pause, in which early talkers show themselves
    MAIL      too many messages: 451 4.7.1
    RCPT      too many recipients, or too many that don't exist: 451 4.7.1

All of it is temporary: who is not a nuisance comes again and gets through. Trusted hosts are never counted, and a ban
of logins is none here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from pymx.config.model import Limits
from pymx.mail.address import Address
from pymx.mail.envelope import Recipient
from pymx.net.rates import Limit, Rates
from pymx.proto.smtp import reply as replies
from pymx.proto.smtp.reply import Reply, SmtpError
from pymx.smtpd.handler import Handler, MailParameters, SessionFacts, Transaction
from pymx.spool import Content

CONNECTIONS = "connections"
_MESSAGES = "messages"
_RECIPIENTS = "recipients"
_UNKNOWN = "unknown_recipients"
_MINUTE_S = 60
_HOUR_S = 3600


def limits(settings: Limits) -> dict[str, Limit]:
    """What `Rates` is to count."""
    return {
        CONNECTIONS: Limit(settings.connections_per_minute, _MINUTE_S),
        _MESSAGES: Limit(settings.messages_per_hour, _HOUR_S),
        _RECIPIENTS: Limit(settings.recipients_per_hour, _HOUR_S),
        _UNKNOWN: Limit(settings.unknown_recipients_per_hour, _HOUR_S),
    }


class RateLimited:
    """A `Handler` in front of another one."""

    def __init__(self, handler: Handler, rates: Rates, *, greeting_wait_s: float = 0.0) -> None:
        self._handler = handler
        self._rates = rates
        self.greeting_wait_s = greeting_wait_s

    async def connected(self, session: SessionFacts) -> None:
        if not self._rates.allows(CONNECTIONS, session.peer_ip):
            raise SmtpError(replies.TOO_FAST, "[limits] connections_per_minute", close=True)
        await self._handler.connected(session)
        if self.greeting_wait_s and session.peer_ip and session.peer_ip not in self._rates.trusted:
            await asyncio.sleep(self.greeting_wait_s)

    async def authenticate(self, session: SessionFacts, login: str, password: str) -> str:
        return await self._handler.authenticate(session, login, password)

    async def mail(self, session: SessionFacts, mail_from: Address | None, parameters: MailParameters) -> Transaction:
        if not self._rates.allows(_MESSAGES, session.peer_ip):
            raise SmtpError(replies.TOO_MUCH_MAIL, "[limits] messages_per_hour")
        transaction = await self._handler.mail(session, mail_from, parameters)
        return _RateLimitedTransaction(transaction, self._rates, session.peer_ip)

    def closed(self, session: SessionFacts, counts: Mapping[str, int]) -> None:
        self._handler.closed(session, counts)


class _RateLimitedTransaction:
    """A transaction whose recipients are counted."""

    __slots__ = ("_inner", "_peer_ip", "_rates")

    def __init__(self, inner: Transaction, rates: Rates, peer_ip: str) -> None:
        self._inner = inner
        self._rates = rates
        self._peer_ip = peer_ip

    async def rcpt(self, recipient: Recipient) -> None:
        if self._rates.is_over(_UNKNOWN, self._peer_ip):
            raise SmtpError(replies.TOO_MANY_UNKNOWN, "[limits] unknown_recipients_per_hour")
        if not self._rates.allows(_RECIPIENTS, self._peer_ip):
            raise SmtpError(replies.TOO_MUCH_MAIL, "[limits] recipients_per_hour")
        try:
            await self._inner.rcpt(recipient)
        except SmtpError as e:
            if (
                e.reply.code == replies.UNKNOWN_RECIPIENT.code
                and e.reply.enhanced == replies.UNKNOWN_RECIPIENT.enhanced
            ):
                self._rates.allows(_UNKNOWN, self._peer_ip)
            raise

    def body(self, head: bytes) -> Callable[[bytes], None] | None:
        return self._inner.body(head)

    async def data(self, content: Content) -> Reply:
        return await self._inner.data(content)

    async def data_per_recipient(self, content: Content) -> list[Reply]:
        return await self._inner.data_per_recipient(content)
