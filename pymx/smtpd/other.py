"""The commands without effect: NOOP, VRFY, EXPN, HELP, QUIT (RFC 5321 s. 4.1.1.6 to 4.1.1.10), and HTTP."""

from __future__ import annotations

from pymx.proto.smtp import reply
from pymx.proto.smtp.reply import Reply, SmtpError
from pymx.smtpd.session import Session, SessionEnd


async def noop(session: Session, argument: str) -> Reply | None:
    return reply.OK


async def vrfy(session: Session, argument: str) -> Reply | None:
    """RFC 5321 s. 3.5.3: who exists is not told; mail is tried instead."""
    if not argument:
        raise SmtpError(reply.SYNTAX_ERROR.with_text("Syntax: VRFY address"))
    return reply.CANNOT_VRFY


async def not_implemented(session: Session, argument: str) -> Reply | None:
    raise SmtpError(reply.NOT_IMPLEMENTED)


async def help_text(session: Session, argument: str) -> Reply | None:
    return reply.HELP


async def quit_session(session: Session, argument: str) -> Reply | None:
    raise SessionEnd(reply.BYE, "quit")


async def http(session: Session, argument: str) -> Reply | None:
    """A web browser or proxy made to speak to us: whatever follows is an attack."""
    raise SmtpError(reply.UNKNOWN_COMMAND, "HTTP request", close=True)
