"""MAIL, RCPT and RSET (RFC 5321 s. 4.1.1.2, 4.1.1.3, 4.1.1.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pymx.mail.envelope import Listener
from pymx.proto.smtp import reply
from pymx.proto.smtp.arguments import parse_mail, parse_rcpt
from pymx.proto.smtp.reply import Reply, SmtpError
from pymx.smtpd.handler import MailParameters

if TYPE_CHECKING:
    from pymx.smtpd.session import Session


async def mail(session: Session, argument: str) -> Reply | None:
    facts, engine = session.facts, session.engine
    if facts.listener is Listener.SUBMISSION and not facts.account:
        if not facts.tls and engine.tls is not None:
            raise SmtpError(reply.TLS_REQUIRED, "MAIL before TLS")
        raise SmtpError(reply.AUTH_REQUIRED, "MAIL before AUTH")
    if not facts.helo:
        raise SmtpError(reply.HELO_REQUIRED)
    if session.transaction is not None:
        raise SmtpError(reply.BAD_SEQUENCE.with_text("Nested MAIL command"))
    given = parse_mail(argument, requiretls=engine.requires_tls_onward and bool(facts.tls))
    if given.size is not None and given.size > engine.max_message_octets:
        raise SmtpError(reply.MESSAGE_TOO_BIG, f"SIZE={given.size}")  # RFC 1870 s. 6.1
    parameters = MailParameters(given.size, given.body, given.smtputf8, given.ret, given.envid, given.requiretls)
    try:
        session.transaction = await engine.handler.mail(facts, given.mail_from, parameters)
    except SmtpError as error:
        session.refuse(error, "mail_refused", mail_from=given.mail_from or "<>")
        return None
    session.smtputf8 = given.smtputf8
    session.mail_from = str(given.mail_from or "<>")
    return reply.MAIL_OK


async def rcpt(session: Session, argument: str) -> Reply | None:
    if session.transaction is None:
        raise SmtpError(reply.BAD_SEQUENCE.with_text("RCPT before MAIL"))
    if session.intake is not None:
        raise SmtpError(reply.BAD_SEQUENCE.with_text("RCPT after BDAT"))
    recipient = parse_rcpt(argument, smtputf8=session.smtputf8)
    try:
        if len(session.rcpt_to) >= session.engine.smtp.max_recipients:
            raise SmtpError(reply.TOO_MANY_RECIPIENTS, "max_recipients")
        await session.transaction.rcpt(recipient)
    except SmtpError as error:
        session.refuse(error, "rcpt_refused", mail_from=session.mail_from, rcpt_to=recipient.address)
        return None
    session.rcpt_to = (*session.rcpt_to, str(recipient.address))
    session.recipients += 1
    return reply.RCPT_OK


async def rset(session: Session, argument: str) -> Reply | None:
    session.reset()
    return reply.OK
