"""HELO, EHLO and LHLO (RFC 5321 s. 4.1.1.1, RFC 2033 s. 4.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pymx.proto.smtp import reply
from pymx.proto.smtp.reply import Reply, SmtpError

if TYPE_CHECKING:
    from pymx.smtpd.session import Session

_MAX_NAME_OCTETS = 255


def _introduce(session: Session, argument: str, *, esmtp: bool) -> None:
    """Take down the peer's name. It is only printed and looked at by checks, so its grammar is left to them."""
    name = argument.split(" ", 1)[0]
    if not name or not name.isprintable() or len(name.encode()) > _MAX_NAME_OCTETS:
        raise SmtpError(reply.SYNTAX_ERROR.with_text("Syntax: HELO name"), "bad HELO name")
    session.reset()  # RFC 5321 s. 4.1.4: EHLO during a transaction is a RSET
    session.facts.helo = name
    session.facts.esmtp = esmtp


async def helo(session: Session, argument: str) -> Reply | None:
    _introduce(session, argument, esmtp=False)
    session.say_wire(session.engine.helo)
    return None


async def ehlo(session: Session, argument: str) -> Reply | None:
    """EHLO, and LHLO, which differs in name only."""
    _introduce(session, argument, esmtp=True)
    engine = session.engine
    session.say_wire(engine.ehlo_in_tls if session.facts.tls else engine.ehlo)
    return None
