"""What goes wrong with a connection to another server, in the words of `mta.trouble`."""

from __future__ import annotations

import ssl

from aiosmtplib.errors import SMTPResponseException
from aiosmtplib.response import SMTPResponse

from pymx.mail.status import split_status
from pymx.mta.trouble import Event, Phase, Remote
from pymx.proto.smtp.reply import printable

_MAX_REPLY_TEXT = 500
# OpenSSL's numbers of verification errors, as TLS reports name them
_VERIFY_RESULTS = {10: "certificate-expired", 62: "certificate-host-mismatch", 64: "certificate-host-mismatch"}


class Broken(Exception):
    """The connection is of no use any more. `refused` are recipients that had got a reply of their own before."""

    def __init__(self, phase: Phase, what: Remote | Event, detail: str = "") -> None:
        super().__init__(f"{phase.value}: {detail or what}")
        self.phase = phase
        self.what = what
        self.detail = detail
        self.refused: dict[int, tuple[Phase, Remote]] = {}
        self.tls_result = ""  # what a TLS report calls it (RFC 8460 s. 4.3)
        self.source = ""  # the local address of the connection


def remote(response: SMTPResponse) -> Remote:
    """A reply in one line: an enhanced code that every line repeats is said once."""
    message = response.message
    if message.isascii() and message.isprintable():  # one ordinary line, as nearly always
        return Remote(response.code, message[:_MAX_REPLY_TEXT])
    first, *rest = message.split("\n")
    status, _ = split_status(first)
    words = [first] + [line.removeprefix(status).lstrip() if status else line for line in rest]
    text = printable(" ".join(w for w in words if w).encode("utf-8", "replace").decode("utf-8"))
    return Remote(response.code, text[:_MAX_REPLY_TEXT])


def broken(phase: Phase, error: Exception) -> Broken:
    """What an exception of the network, of TLS or of aiosmtplib means."""
    detail = printable(str(error))[:_MAX_REPLY_TEXT] or type(error).__name__
    if isinstance(error, SMTPResponseException):
        if error.code > 0:
            return Broken(phase, remote(SMTPResponse(error.code, error.message)))
        return Broken(phase, Event.GARBAGE, detail)
    if isinstance(error, ssl.SSLCertVerificationError):
        failed = Broken(phase, Event.BAD_CERTIFICATE, error.verify_message or detail)
        failed.tls_result = _VERIFY_RESULTS.get(error.verify_code, "certificate-not-trusted")
        return failed
    if isinstance(error, ssl.SSLError):
        return Broken(phase, Event.TLS_FAILED, detail)
    if isinstance(error, TimeoutError):
        return Broken(phase, Event.TIMEOUT, "timed out" if phase is not Phase.CONNECT else "connection timed out")
    if phase is Phase.CONNECT:
        return Broken(phase, Event.REFUSED, detail)
    return Broken(phase, Event.TLS_FAILED if phase is Phase.STARTTLS else Event.LOST, detail)
