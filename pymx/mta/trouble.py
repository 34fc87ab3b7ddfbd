"""What to do when a delivery goes wrong: all of it, in one place. PURE.

`judge` takes the phase and what happened there and says which of these follows:

    NEXT_HOST   try the next host of the destination; when there is none, defer
    PLAIN       the same host again, without TLS, in a new connection
    DEFER       stop here, try again later
    FAIL        tell the sender

A reply's class decides (RFC 5321 s. 4.2.1), not the enhanced code, which some servers contradict it with. The
exceptions are written out below, each with its reason. Unsure whether temporary: temporary.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from pymx.mail.status import split_status


class Phase(enum.Enum):
    """How far the delivery had come."""

    DNS = "dns"
    CONNECT = "connect"
    GREETING = "greeting"
    EHLO = "ehlo"
    STARTTLS = "starttls"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    CONTENT = "content"  # the content is being sent, no final dot yet
    DOT = "dot"  # everything was sent, the remote may have taken the message


class Event(enum.Enum):
    """What happened, when it was no reply."""

    TIMEOUT = "timeout"
    LOST = "connection lost"
    REFUSED = "connection refused"
    TLS_FAILED = "TLS handshake failed"
    BAD_CERTIFICATE = "certificate not accepted"
    NOT_OFFERED = "not offered by the remote"
    GARBAGE = "malformed reply"
    NO_TLSA = "TLSA records not known"
    NOT_IN_POLICY = "no mail server by the domain's policy"
    NO_8BITMIME = "8-bit text can't be sent"
    NO_REQUIRETLS = "no way with authenticated TLS that asks the same of the next server"


class Action(enum.Enum):
    NEXT_HOST = "next host"
    PLAIN = "without TLS"
    DEFER = "defer"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`status` is an enhanced code of the class that the action has."""

    action: Action
    status: str


@dataclass(frozen=True, slots=True)
class Remote:
    """A remote's reply: code and text, lines joined by spaces."""

    code: int
    text: str

    def __str__(self) -> str:
        return f"{self.code} {self.text}".rstrip()


_EVENT_STATUS = {
    Event.TIMEOUT: "4.4.2",
    Event.LOST: "4.4.2",
    Event.REFUSED: "4.4.1",
    Event.TLS_FAILED: "4.7.5",
    Event.BAD_CERTIFICATE: "4.7.5",
    Event.NOT_OFFERED: "4.7.4",
    Event.GARBAGE: "4.5.0",
    Event.NO_TLSA: "4.4.3",
    Event.NOT_IN_POLICY: "4.7.5",
    Event.NO_8BITMIME: "4.6.3",
    Event.NO_REQUIRETLS: "4.7.30",
}

# What a refusal means by its phase: action for 4xx, action for 5xx.
_REPLIES: dict[Phase, tuple[Action, Action]] = {
    # A 5xx greeting or EHLO is often about one host (a blocklist, a broken backend); the others are asked first.
    Phase.GREETING: (Action.NEXT_HOST, Action.NEXT_HOST),
    Phase.EHLO: (Action.NEXT_HOST, Action.NEXT_HOST),
    Phase.STARTTLS: (Action.NEXT_HOST, Action.NEXT_HOST),
    # A refused login is our configuration's fault, not the message's: it waits until that is mended.
    Phase.AUTH: (Action.NEXT_HOST, Action.DEFER),
    Phase.MAIL: (Action.NEXT_HOST, Action.FAIL),
    Phase.RCPT: (Action.NEXT_HOST, Action.FAIL),
    Phase.DATA: (Action.NEXT_HOST, Action.FAIL),
    Phase.CONTENT: (Action.NEXT_HOST, Action.FAIL),
    Phase.DOT: (Action.NEXT_HOST, Action.FAIL),
}


def judge(phase: Phase, what: Remote | Event, *, tls_optional: bool = False) -> Verdict:
    """What follows from `what` in `phase`. `tls_optional`: TLS was tried, and nothing forbids to do without."""
    if isinstance(what, Event):
        return _judge_event(phase, what, tls_optional=tls_optional)
    if phase is Phase.STARTTLS and tls_optional:
        return Verdict(Action.PLAIN, "4.7.4")
    if not 400 <= what.code < 600:
        # A success where none can be, or no SMTP at all: the dialogue is out of step.
        return Verdict(Action.NEXT_HOST, "4.5.0")
    temporary, permanent = _REPLIES.get(phase, (Action.NEXT_HOST, Action.NEXT_HOST))
    action = temporary if what.code < 500 else permanent
    if phase is Phase.RCPT and what.code == 552 and _enhanced(what) in ("", "5.5.3"):
        action = Action.NEXT_HOST  # RFC 5321 s. 4.5.3.1.10: 552 at RCPT may be an old "too many recipients"
    return Verdict(action, _status(what, action))


def _judge_event(phase: Phase, event: Event, *, tls_optional: bool) -> Verdict:
    if phase is Phase.STARTTLS and tls_optional:
        return Verdict(Action.PLAIN, "4.7.5")
    if phase is Phase.DOT:
        # The remote may have the message. Another host would give the recipient two at once; waiting gives the first
        # copy a chance to be the only one.
        return Verdict(Action.DEFER, _EVENT_STATUS[event])
    return Verdict(Action.NEXT_HOST, _EVENT_STATUS[event] if phase is not Phase.CONNECT else "4.4.1")


def last_host(phase: Phase, what: Remote | Event, status: str) -> Verdict:
    """NEXT_HOST, but there is none: what then?"""
    if what is Event.NO_8BITMIME:
        return Verdict(Action.FAIL, "5.6.3")  # RFC 6152 s. 3: it is not sent as it is
    if what is Event.NO_REQUIRETLS:
        return Verdict(Action.FAIL, "5.7.30")  # RFC 8689 s. 4.2.1: not in any other way; the sender is told
    if phase is Phase.GREETING and isinstance(what, Remote) and what.code == 521:
        return Verdict(Action.FAIL, "5.3.2")  # RFC 7504: this domain's hosts say that they take no mail
    if phase is Phase.EHLO and isinstance(what, Remote) and 500 <= what.code < 600:
        return Verdict(Action.FAIL, "5" + _status(what, Action.FAIL)[1:])  # all of them refuse us by name
    return Verdict(Action.DEFER, "4" + status[1:])


def _enhanced(reply: Remote) -> str:
    return split_status(reply.text)[0]


def _status(reply: Remote, action: Action) -> str:
    """The reply's enhanced code, its class as the action has it; a generic one when it has none."""
    digit = "5" if action is Action.FAIL else "4"
    enhanced = _enhanced(reply)
    return digit + enhanced[1:] if enhanced else f"{digit}.0.0"
