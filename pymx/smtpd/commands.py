"""The command tables of SMTP and LMTP."""

from __future__ import annotations

from collections.abc import Mapping

from pymx.smtpd import auth, data, envelope, greeting, other, starttls
from pymx.smtpd.command import Command
from pymx.smtpd.session import MAX_LINE_OCTETS

_COMMON: dict[bytes, Command] = {
    b"MAIL": Command(envelope.mail, "mail_refused"),
    b"RCPT": Command(envelope.rcpt, "rcpt_refused"),
    b"DATA": Command(data.data, "message_refused"),
    b"BDAT": Command(data.bdat, "message_refused"),
    b"RSET": Command(envelope.rset),
    b"NOOP": Command(other.noop),
    b"QUIT": Command(other.quit_session),
    b"VRFY": Command(other.vrfy),
    b"EXPN": Command(other.not_implemented),
    b"HELP": Command(other.help_text),
    b"STARTTLS": Command(starttls.starttls),
    b"AUTH": Command(auth.auth, "login_refused", MAX_LINE_OCTETS),
    **{name: Command(other.not_implemented) for name in (b"ETRN", b"TURN", b"SEND", b"SOML", b"SAML")},
    **{name: Command(other.http) for name in (b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"DELETE", b"CONNECT")},
}

SMTP_COMMANDS: Mapping[bytes, Command] = {
    b"HELO": Command(greeting.helo),
    b"EHLO": Command(greeting.ehlo),
    **_COMMON,
}

# RFC 2033 s. 4.1: LHLO replaces HELO and EHLO, which are not commands here
LMTP_COMMANDS: Mapping[bytes, Command] = {b"LHLO": Command(greeting.ehlo), **_COMMON}
