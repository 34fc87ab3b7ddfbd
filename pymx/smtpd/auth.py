"""AUTH (RFC 4954): PLAIN and LOGIN, inside TLS only."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

from pymx.proto.sasl.mechanism import Challenge, Credentials, Mechanism, SaslError
from pymx.proto.sasl.mechanisms import MECHANISMS
from pymx.proto.smtp import reply
from pymx.proto.smtp.reply import Reply, SmtpError

if TYPE_CHECKING:
    from pymx.smtpd.session import Session


async def auth(session: Session, argument: str) -> Reply | None:
    facts = session.facts
    if not session.engine.auth:
        raise SmtpError(reply.NOT_IMPLEMENTED)
    if not facts.tls:
        raise SmtpError(reply.AUTH_NEEDS_TLS)
    if not facts.esmtp:
        raise SmtpError(reply.HELO_REQUIRED.with_text("Say EHLO first"))
    if facts.account:
        raise SmtpError(reply.ALREADY_AUTHENTICATED)
    if session.transaction is not None:
        raise SmtpError(reply.BAD_SEQUENCE.with_text("AUTH during a mail transaction"))  # RFC 4954 s. 4
    name, _, initial = argument.partition(" ")
    make = MECHANISMS.get(name.upper())
    if make is None:
        raise SmtpError(reply.UNKNOWN_MECHANISM, "unknown mechanism")
    credentials = await _exchange(session, make(), initial.strip())
    try:
        facts.account = await session.engine.handler.authenticate(facts, credentials.login, credentials.password)
    except SmtpError as error:
        session.refuse(error, "login_refused", account=credentials.login)
        return None
    return reply.AUTH_OK


async def _exchange(session: Session, mechanism: Mechanism, initial: str) -> Credentials:
    try:
        # RFC 4954 s. 4: "=" is an initial response of no octets
        step = mechanism.step(b"" if initial == "=" else _decode(initial)) if initial else mechanism.initial()
        while isinstance(step, Challenge):
            session.say_wire(b"334 " + base64.b64encode(step.data) + b"\r\n")
            step = mechanism.step(_decode(await _response(session)))
    except SaslError as error:
        raise SmtpError(reply.AUTH_FAILED, str(error)) from None
    return step


async def _response(session: Session) -> bytes:
    try:
        line = await session.read_line()
    except SmtpError as error:
        if error.reply is reply.LINE_TOO_LONG:
            raise SmtpError(reply.AUTH_TOO_LONG) from None  # RFC 4954 s. 4
        raise
    if line == b"*":
        raise SmtpError(reply.AUTH_CANCELLED)
    return line


def _decode(text: str | bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise SmtpError(reply.BAD_BASE64) from None
