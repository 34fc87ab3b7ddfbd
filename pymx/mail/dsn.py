"""Delivery status notifications (RFC 3464, RFC 3462, RFC 6533): for people first, for programs second. PURE.

A report has three parts: sentences that say what happened and what to do, the machine-readable status, and the message
it is about: its header block, or all of it when the sender asked for that (RET=FULL) and it is not too large. Every
field goes through `build_field`, so nothing that a remote said can add a line.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from pymx.mail.address import Address
from pymx.mail.date import format_date
from pymx.mail.envelope import Recipient
from pymx.mail.header import build_field, iter_fields

MAX_INCLUDED_OCTETS = 65536  # of the original message, when it is returned in full
_MAX_HEAD_OCTETS = 32768
_MAX_DIAGNOSTIC = 900


class Kind(enum.Enum):
    """RFC 3464 s. 2.3.3: what became of a recipient."""

    FAILED = "failed"
    DELAYED = "delayed"
    DELIVERED = "delivered"
    RELAYED = "relayed"


@dataclass(frozen=True, slots=True)
class Status:
    """One recipient. `remote` is the host that said `reply`, "" when these are our own words."""

    recipient: Recipient
    kind: Kind
    status: str
    reply: str
    remote: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """What the report is made of. Times are Unix seconds; `head` is the original's header block, `body` all after it.

    `body` None: only the header block is returned.
    """

    hostname: str
    message_id: str
    now: float
    arrived: float
    to: Address
    statuses: Sequence[Status]
    head: bytes
    body: bytes | None
    envid: str = ""
    queue_id: str = ""
    expires: float = 0.0


_SUBJECTS = {
    Kind.FAILED: "Your message could not be delivered",
    Kind.DELAYED: "Your message is delayed",
    Kind.DELIVERED: "Your message was delivered",
    Kind.RELAYED: "Your message was passed on",
}
_OPENINGS = {
    Kind.FAILED: "Your message could not be delivered to the following recipients, and will not be tried again:",
    Kind.DELAYED: "Your message has not been delivered yet. You need not send it again: it is tried until {expires}.",
    Kind.DELIVERED: "Your message was delivered, as you asked to be told:",
    Kind.RELAYED: "Your message was handed to a server that does not report deliveries:",
}

# What to do, by the status code's subject and detail (RFC 3463); the longest that fits is taken.
_ADVICE = {
    "1.1": "The address does not exist. Check how it is written.",
    "1.2": "The domain does not exist. Check how the part after the @ is written.",
    "1.10": "That domain says that it takes no mail at all.",
    "1": "Something is wrong with the address. Check how it is written.",
    "2.1": "The mailbox is closed. Reach the recipient another way.",
    "2.2": "The recipient's mailbox is full. Try again later, or reach the recipient another way.",
    "3.4": "The message is too large for the recipient's server. Send less, or a link instead of attachments.",
    "4.1": "The recipient's server could not be reached.",
    "4.2": "The connection to the recipient's server broke.",
    "4.3": "The recipient's domain could not be looked up.",
    "4.4": "No mail server is known for that domain. Check how the part after the @ is written.",
    "4.6": "The message would go in circles. Tell the postmaster.",
    "4.7": "It was tried until the time was over. Reach the recipient another way.",
    "6.3": "The recipient's server can't take 8-bit text, and a signature forbids to encode it. Send plain ASCII text.",
    "6.7": "The address or subject has characters that the recipient's server can't handle. Use a plain address.",
    "7.4": "The recipient's server offers no encryption, but its domain asks for it. Tell the recipient's postmaster.",
    "7.5": "The recipient's server could not prove who it is, as its domain asks for. Tell the recipient's postmaster.",
    "7.30": "You asked for encryption all the way, and the recipient's server can't promise that. "
    "Send without that wish, or reach the recipient another way.",
    "7": "The recipient's server refused the message by its rules. Ask the recipient, or the postmaster.",
}


def build(notice: Notice) -> bytes:
    """The report as a message in wire form. It is UTF-8 (RFC 6533) when an address or the text needs it."""
    kind = notice.statuses[0].kind
    status_part = _machine_part(notice)
    text = _human_part(notice, kind).encode("utf-8")
    eight_bit = not (status_part.isascii() and text.isascii() and notice.head.isascii() and str(notice.to).isascii())
    returned = _returned_part(notice)
    boundary = _boundary(notice, [status_part, text, returned])
    prefix = "global" if not status_part.isascii() else ""
    report_type = "global-delivery-status" if prefix else "delivery-status"
    head = b"".join(
        [
            build_field("From", f"Mail Delivery System <MAILER-DAEMON@{notice.hostname}>"),
            build_field("To", str(notice.to)),
            build_field("Subject", _SUBJECTS[kind]),
            build_field("Date", format_date(notice.now)),
            build_field("Message-ID", notice.message_id, fold=False),
            build_field("Auto-Submitted", "auto-replied"),  # RFC 3834 s. 5.1
            build_field("MIME-Version", "1.0"),
            build_field("Content-Type", f'multipart/report; report-type={report_type}; boundary="{boundary}"'),
            build_field("Content-Transfer-Encoding", "8bit" if eight_bit or not returned.isascii() else "7bit"),
        ]
    )
    dash = b"--" + boundary.encode("ascii")
    encoding = b"Content-Transfer-Encoding: 8bit\r\n"
    return b"".join(
        [
            head, b"\r\n", dash, b"\r\n",
            b"Content-Type: text/plain; charset=utf-8\r\n", b"" if text.isascii() else encoding, b"\r\n",
            text, b"\r\n", dash, b"\r\n",
            b"Content-Type: message/%s\r\n" % report_type.encode("ascii"), encoding if prefix else b"", b"\r\n",
            status_part, b"\r\n", dash, b"\r\n",
            returned, b"\r\n", dash, b"--\r\n",
        ]
    )  # fmt: skip


def _human_part(notice: Notice, kind: Kind) -> str:
    when = format_date(notice.expires) if notice.expires else "its time is over"
    lines = [_OPENINGS[kind].format(expires=when), ""]
    for status in notice.statuses:
        lines.append(f"  <{status.recipient.address}>")
        if kind in (Kind.FAILED, Kind.DELAYED):
            advice = _advice(status.status)
            if advice:
                lines.append(f"    {advice}")
            said = f"{status.remote} said" if status.remote else "The reason"
            lines.append(f"    {said}: {_one_line(status.reply)}")
        lines.append("")
    if kind in (Kind.FAILED, Kind.DELAYED):
        lines.append(f"If this makes no sense to you, forward it to postmaster@{notice.hostname}.")
    else:
        lines.append("There is nothing for you to do.")
    if notice.queue_id:
        lines.append(f"The message was known here as {notice.queue_id}.")
    return "".join(line + "\r\n" for line in lines)


def _advice(status: str) -> str:
    subject_detail = status.partition(".")[2]
    return _ADVICE.get(subject_detail) or _ADVICE.get(subject_detail.partition(".")[0], "")


def _machine_part(notice: Notice) -> bytes:
    """RFC 3464 s. 2: fields about the message, then a group for each recipient."""
    fields = []
    if notice.envid:
        fields.append(build_field("Original-Envelope-Id", notice.envid, fold=False))
    fields.append(build_field("Reporting-MTA", f"dns; {notice.hostname}"))
    fields.append(build_field("Arrival-Date", format_date(notice.arrived)))
    if notice.queue_id:
        fields.append(build_field("X-Queue-Id", notice.queue_id))
    for status in notice.statuses:
        fields.append(b"\r\n")
        recipient = status.recipient
        if recipient.orcpt:
            kind, _, address = recipient.orcpt.partition(";")
            fields.append(build_field("Original-Recipient", f"{kind}; {_one_line(address)}", fold=False))
        address_type = "rfc822" if recipient.address.is_ascii else "utf-8"
        fields.append(build_field("Final-Recipient", f"{address_type}; {recipient.address}", fold=False))
        fields.append(build_field("Action", status.kind.value))
        fields.append(build_field("Status", status.status))
        if status.remote:
            fields.append(build_field("Remote-MTA", f"dns; {status.remote}"))
            fields.append(build_field("Diagnostic-Code", f"smtp; {_one_line(status.reply)}"))
        elif status.kind in (Kind.FAILED, Kind.DELAYED):
            fields.append(build_field("Diagnostic-Code", f"X-pymx; {_one_line(status.reply)}"))
        if status.kind is Kind.DELAYED and notice.expires:
            fields.append(build_field("Will-Retry-Until", format_date(notice.expires)))
    return b"".join(fields)


def _returned_part(notice: Notice) -> bytes:
    """The message it is about: its MIME fields, empty line, content."""
    head = _cut(notice.head)
    global_form = not head.isascii()
    whole = notice.body is not None and len(notice.head) + len(notice.body) <= MAX_INCLUDED_OCTETS
    if whole:
        assert notice.body is not None
        kind = b"message/global" if global_form else b"message/rfc822"
        content = notice.head + notice.body
    else:
        kind = b"message/global-headers" if global_form else b"text/rfc822-headers"
        content = head
    lines = b"Content-Type: " + kind + b"\r\n"
    if not content.isascii():
        lines += b"Content-Transfer-Encoding: 8bit\r\n"
    return lines + b"\r\n" + content


def _cut(head: bytes) -> bytes:
    """Whole fields, as many as are allowed."""
    if len(head) <= _MAX_HEAD_OCTETS:
        return head
    kept, octets = [], 0
    for field in iter_fields(head):
        octets += len(field.raw)
        if octets > _MAX_HEAD_OCTETS:
            break
        kept.append(field.raw)
    return b"".join(kept)


def _boundary(notice: Notice, parts: Sequence[bytes]) -> str:
    """One that is in none of the parts."""
    n = 0
    while True:
        boundary = f"=_{notice.queue_id or 'dsn'}_{int(notice.now)}_{n}"
        if not any(boundary.encode("ascii") in part for part in parts):
            return boundary
        n += 1


def _one_line(text: str) -> str:
    """What a remote said, without anything that could end the line."""
    return "".join(c if c.isprintable() else " " for c in text)[:_MAX_DIAGNOSTIC]
