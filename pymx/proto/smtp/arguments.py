"""The arguments of MAIL and RCPT: path and parameters (RFC 5321 s. 4.1.2, 1870, 6152, 6531, 3461, 4954, 8689).

Everything here raises SmtpError with the reply for the peer and nothing else. Values keep their case. Parameters we
don't know are 555, values we don't know are 501 (RFC 5321 s. 4.1.1.11).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pymx.mail.address import Address, AddressError, parse_path
from pymx.mail.envelope import Recipient
from pymx.proto.smtp import reply
from pymx.proto.smtp.reply import SmtpError
from pymx.proto.smtp.xtext import XtextError, decode_xtext

MAX_ENVID = 100  # RFC 3461 s. 4.4
MAX_ORCPT = 500  # s. 4.2
_MAX_SIZE_DIGITS = 20  # RFC 1870 s. 5

_KEYWORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9\-]*\Z")
_VALUE = re.compile(r"[!-<>-~\u0080-\U0010ffff]+\Z")
_ADDRESS_TYPE = re.compile(r"[A-Za-z0-9!#$%&'*+\-/=?^_`{|}~.]+\Z")
_NOTIFY = frozenset({"SUCCESS", "FAILURE", "DELAY"})


@dataclass(frozen=True, slots=True)
class MailArguments:
    """MAIL FROM as given; `mail_from` None is the null reverse-path, `size` None is no SIZE."""

    mail_from: Address | None
    size: int | None = None
    body: str = "7BIT"
    smtputf8: bool = False
    ret: str = ""
    envid: str = ""
    requiretls: bool = False


def parse_mail(argument: str, *, requiretls: bool = False) -> MailArguments:
    """What follows "MAIL ". `requiretls`: REQUIRETLS was offered (RFC 8689)."""
    path, parameters = _split(argument, "FROM:", reply.BAD_SENDER)
    if path is not None and not path.domain:
        raise SmtpError(reply.BAD_SENDER, "sender address has no domain")
    if not parameters:
        arguments = MailArguments(path)
    else:
        arguments = MailArguments(
            path,
            size=_size(parameters),
            body=_one_of(parameters, "BODY", ("7BIT", "8BITMIME")) or "7BIT",
            smtputf8=_flag(parameters, "SMTPUTF8"),
            ret=_one_of(parameters, "RET", ("FULL", "HDRS")),
            envid=_envid(parameters),
            requiretls=requiretls and _flag(parameters, "REQUIRETLS"),
        )
        _skip_auth(parameters)
        _none_left(parameters)
    if path is not None and not arguments.smtputf8 and not path.is_ascii:
        raise SmtpError(reply.NON_ASCII_ADDRESS)
    return arguments


def parse_rcpt(argument: str, *, smtputf8: bool) -> Recipient:
    """What follows "RCPT "; `smtputf8` as the transaction's MAIL said."""
    path, parameters = _split(argument, "TO:", reply.BAD_ADDRESS)
    if path is None:
        raise SmtpError(reply.BAD_ADDRESS, "null recipient")
    if not smtputf8 and not path.is_ascii:
        raise SmtpError(reply.NON_ASCII_ADDRESS)
    if not parameters:
        return Recipient(path)
    recipient = Recipient(path, notify=_notify(parameters), orcpt=_orcpt(parameters))
    _none_left(parameters)
    return recipient


def _split(argument: str, keyword: str, bad_path: reply.Reply) -> tuple[Address | None, dict[str, str | None]]:
    if argument[: len(keyword)].upper() != keyword:
        raise SmtpError(reply.SYNTAX_ERROR.with_text(f"Syntax: {keyword}<address> [parameters]"))
    try:
        # Deviation: RFC 5321 s. 3.3 allows no space after the colon, but enough clients send one
        path, rest = parse_path(argument[len(keyword) :].lstrip(" "))
    except AddressError as e:
        raise SmtpError(bad_path, str(e)) from None
    if not rest:
        return path, {}
    if not rest.startswith(" "):
        raise SmtpError(bad_path, "text right behind the path")
    parameters: dict[str, str | None] = {}
    for word in rest.split():
        name, equals, value = word.partition("=")
        if not _KEYWORD.match(name) or (equals and not _VALUE.match(value)):
            raise SmtpError(reply.SYNTAX_ERROR, f"malformed parameter {word!r}")
        name = name.upper()
        if name in parameters:
            raise SmtpError(reply.SYNTAX_ERROR, f"parameter {name} given twice")
        parameters[name] = value if equals else None
    return path, parameters


def _none_left(parameters: dict[str, str | None]) -> None:
    if parameters:
        raise SmtpError(reply.UNKNOWN_PARAMETER, f"unknown parameter {next(iter(parameters))}")


def _value(parameters: dict[str, str | None], name: str) -> str:
    """Take out a parameter that must have a value; "" when it is not there."""
    if name not in parameters:
        return ""
    value = parameters.pop(name)
    if not value:
        raise SmtpError(reply.SYNTAX_ERROR, f"parameter {name} needs a value")
    return value


def _flag(parameters: dict[str, str | None], name: str) -> bool:
    if name not in parameters:
        return False
    if parameters.pop(name) is not None:
        raise SmtpError(reply.SYNTAX_ERROR, f"parameter {name} has no value")
    return True


def _one_of(parameters: dict[str, str | None], name: str, values: tuple[str, ...]) -> str:
    value = _value(parameters, name).upper()
    if value and value not in values:
        raise SmtpError(reply.SYNTAX_ERROR, f"{name}={value} is not offered")
    return value


def _size(parameters: dict[str, str | None]) -> int | None:
    value = _value(parameters, "SIZE")
    if not value:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= _MAX_SIZE_DIGITS):
        raise SmtpError(reply.SYNTAX_ERROR, "SIZE is not a number")
    return int(value)


def _xtext(value: str, name: str, limit: int) -> str:
    if len(value) > limit:
        raise SmtpError(reply.SYNTAX_ERROR, f"{name} is longer than {limit} characters")
    try:
        return decode_xtext(value)
    except XtextError as e:
        raise SmtpError(reply.SYNTAX_ERROR, f"{name}: {e}") from None


def _envid(parameters: dict[str, str | None]) -> str:
    return _xtext(_value(parameters, "ENVID"), "ENVID", MAX_ENVID)


def _skip_auth(parameters: dict[str, str | None]) -> None:
    """AUTH= (RFC 4954 s. 5) is checked and then treated as AUTH=<>: we trust no relay with it."""
    value = _value(parameters, "AUTH")
    if value and value != "<>":
        _xtext(value, "AUTH", MAX_ORCPT)


def _notify(parameters: dict[str, str | None]) -> frozenset[str]:
    value = _value(parameters, "NOTIFY").upper()
    if not value:
        return frozenset()
    words = value.split(",")
    wanted = frozenset(words)
    # RFC 3461 s. 4.1: NEVER stands alone
    if len(wanted) != len(words) or (wanted != {"NEVER"} and not wanted <= _NOTIFY):
        raise SmtpError(reply.SYNTAX_ERROR, f"NOTIFY={value} is not allowed")
    return wanted


def _orcpt(parameters: dict[str, str | None]) -> str:
    value = _value(parameters, "ORCPT")
    if not value:
        return ""
    kind, semicolon, address = value.partition(";")
    if not semicolon or not address or not _ADDRESS_TYPE.match(kind):
        raise SmtpError(reply.SYNTAX_ERROR, "ORCPT needs the form type;address")
    if kind.lower() == "utf-8":  # RFC 6533 s. 3: another encoding, kept as it came
        if len(value) > MAX_ORCPT or not address.isprintable():
            raise SmtpError(reply.SYNTAX_ERROR, "malformed ORCPT")
        return value
    return f"{kind};{_xtext(address, 'ORCPT', MAX_ORCPT)}"
