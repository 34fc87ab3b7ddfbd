"""SMTP replies and the error that carries one (RFC 5321 s. 4.2, RFC 2034, RFC 3463).

`SmtpError` has two halves: what the peer hears (`reply`) and what only the log hears (`reason`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace


def printable(text: str) -> str:
    """`text` safe to send in a reply line: control characters and non-ASCII escaped."""
    return text if text.isascii() and text.isprintable() else text.encode("unicode_escape").decode("ascii")


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply: three-digit `code`, enhanced status code ("" where RFC 2034 has none), text of one or more lines."""

    code: int
    enhanced: str
    text: str

    def wire(self) -> bytes:
        """The reply as it goes out, every line with its CRLF."""
        prefix = f"{self.enhanced} " if self.enhanced else ""
        lines = self.text.split("\n")
        out = [f"{self.code}-{prefix}{printable(line)}" for line in lines[:-1]]
        out.append(f"{self.code} {prefix}{printable(lines[-1])}")
        return ("\r\n".join(out) + "\r\n").encode("ascii")

    def with_text(self, text: str) -> Reply:
        return replace(self, text=text)

    @property
    def is_temporary(self) -> bool:
        return 400 <= self.code < 500

    @property
    def is_success(self) -> bool:
        return self.code < 400


class SmtpError(Exception):
    """A refusal: `reply` for the peer, `reason` for the log alone, `close` to end the session after it."""

    def __init__(self, reply: Reply, reason: str = "", *, close: bool = False) -> None:
        super().__init__(f"{reply.code} {reply.enhanced} {reply.text}" + (f" ({reason})" if reason else ""))
        self.reply = reply
        self.reason = reason or reply.text
        self.close = close


# The catalogue. One name per situation; texts are generic on purpose: what is configured here is not told to peers.
OK = Reply(250, "2.0.0", "OK")
BYE = Reply(221, "2.0.0", "Bye")
MAIL_OK = Reply(250, "2.1.0", "Sender OK")
RCPT_OK = Reply(250, "2.1.5", "Recipient OK")
START_DATA = Reply(354, "", "End data with <CR><LF>.<CR><LF>")
START_TLS = Reply(220, "2.0.0", "Ready to start TLS")
AUTH_OK = Reply(235, "2.7.0", "Authentication succeeded")
HELP = Reply(214, "2.0.0", "See RFC 5321")
CANNOT_VRFY = Reply(252, "2.5.0", "Cannot VRFY user, but will accept message and attempt delivery")

SHUTTING_DOWN = Reply(421, "4.3.2", "Service shutting down, try again later")
LOGIN_OVER = Reply(421, "4.7.0", "Your account was changed, log in again")
TOO_MANY_CONNECTIONS = Reply(421, "4.7.0", "Too many connections, try again later")
TOO_FAST = Reply(421, "4.7.0", "Too many connections from your address, slow down")
BANNED = Reply(421, "4.7.0", "Too many wrong passwords from your address, try again later")
TIMED_OUT = Reply(421, "4.4.2", "Timeout, closing connection")
TOO_MANY_ERRORS = Reply(421, "4.7.0", "Too many errors, closing connection")
TOO_MANY_COMMANDS = Reply(421, "4.7.0", "Too many commands, closing connection")
UNEXPECTED_FAILURE = Reply(421, "4.3.0", "Temporary failure, closing connection")
TEMPORARY_FAILURE = Reply(451, "4.3.0", "Temporary failure, try again later")
DIRECTORY_UNAVAILABLE = Reply(451, "4.3.0", "Temporary lookup failure, try again later")
TRY_LATER = Reply(451, "4.7.1", "Not now, try again later")
GREYLISTED = Reply(451, "4.7.1", "Greylisted, try again in some minutes")
TOO_MUCH_MAIL = Reply(451, "4.7.1", "Too much mail from your address, try again later")
TOO_MANY_UNKNOWN = Reply(451, "4.7.1", "Too many unknown recipients from your address, try again later")
SENDING_CAPPED = Reply(451, "4.7.1", "You have sent too much, try again later")
STORAGE_FULL = Reply(452, "4.3.1", "Insufficient system storage")
TOO_MANY_RECIPIENTS = Reply(452, "4.5.3", "Too many recipients")
OVER_QUOTA = Reply(452, "4.2.2", "Mailbox is full")
AUTH_UNAVAILABLE = Reply(454, "4.7.0", "Temporary authentication failure")
AUTH_BANNED = Reply(454, "4.7.0", "Too many wrong passwords from your address, try again later")
TLS_UNAVAILABLE = Reply(454, "4.7.0", "TLS not available")

INVALID_COMMAND_LINE = Reply(500, "5.5.2", "Command line holds NUL or is not UTF-8")
UNKNOWN_COMMAND = Reply(500, "5.5.1", "Command not recognized")
LINE_TOO_LONG = Reply(500, "5.5.2", "Line too long")
SYNTAX_ERROR = Reply(501, "5.5.4", "Syntax error in parameters")
BAD_ADDRESS = Reply(501, "5.1.3", "Bad address syntax")
BAD_SENDER = Reply(501, "5.1.7", "Bad sender address syntax")
AUTH_CANCELLED = Reply(501, "5.7.0", "Authentication cancelled")
BAD_BASE64 = Reply(501, "5.5.2", "Cannot decode base64")
AUTH_TOO_LONG = Reply(500, "5.5.6", "Authentication exchange line is too long")
NOT_IMPLEMENTED = Reply(502, "5.5.1", "Command not implemented")
HELO_REQUIRED = Reply(503, "5.5.1", "Say HELO first")
BAD_SEQUENCE = Reply(503, "5.5.1", "Bad sequence of commands")
TALKED_EARLY = Reply(503, "5.5.1", "Wait for the greeting before you send commands")
ALREADY_AUTHENTICATED = Reply(503, "5.5.1", "Already authenticated")
NO_RECIPIENTS_LMTP = Reply(503, "5.5.1", "No valid recipients")
NO_VALID_RECIPIENTS = Reply(554, "5.5.1", "No valid recipients")
UNKNOWN_MECHANISM = Reply(504, "5.5.4", "Authentication mechanism not supported")
TLS_REQUIRED = Reply(530, "5.7.0", "Must issue a STARTTLS command first")
AUTH_REQUIRED = Reply(530, "5.7.0", "Authentication required")
AUTH_FAILED = Reply(535, "5.7.8", "Authentication credentials invalid")
AUTH_NEEDS_TLS = Reply(538, "5.7.11", "Encryption required for requested authentication mechanism")
UNKNOWN_RECIPIENT = Reply(550, "5.1.1", "No such user here")
RELAY_DENIED = Reply(550, "5.7.1", "Relaying denied")
MESSAGE_TOO_BIG = Reply(552, "5.3.4", "Message too big")
TOO_MANY_FIELDS = Reply(552, "5.3.4", "Message header has too many fields")
HEADER_TOO_BIG = Reply(552, "5.3.4", "Message header too big")
NON_ASCII_ADDRESS = Reply(553, "5.6.7", "Non-ASCII address needs SMTPUTF8")
SENDER_NOT_OWNED = Reply(553, "5.7.1", "Sender address is not yours to use")
ROUTING_LOOP = Reply(554, "5.4.6", "Routing loop detected")
BARE_NEWLINE = Reply(554, "5.5.2", "Bare CR or LF is not allowed")
REJECTED_BY_POLICY = Reply(550, "5.7.1", "Rejected by policy")
SENDING_REFUSED = Reply(550, "5.7.1", "This message has too many recipients")
SPAM = Reply(550, "5.7.1", "This message looks like spam")
UNKNOWN_PARAMETER = Reply(555, "5.5.4", "Parameter not recognized")
