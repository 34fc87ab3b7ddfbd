"""STARTTLS (RFC 3207)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pymx.proto.smtp import reply
from pymx.proto.smtp.reply import Reply, SmtpError

if TYPE_CHECKING:
    from pymx.smtpd.session import Session


async def starttls(session: Session, argument: str) -> Reply | None:
    if argument:
        raise SmtpError(reply.SYNTAX_ERROR.with_text("STARTTLS has no parameters"))
    if session.facts.tls:
        raise SmtpError(reply.BAD_SEQUENCE.with_text("Already in TLS"))
    if session.engine.tls is None:
        raise SmtpError(reply.NOT_IMPLEMENTED)
    session.say(reply.START_TLS)
    await session.upgrade()
    return None
