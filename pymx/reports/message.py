"""The mail that a report travels in: RFC 7489 s. 7.2.1.1 for DMARC, RFC 8460 s. 5.3 for TLS.

Both have a sentence for people, and the report as a compressed attachment under the name that the RFC prescribes. The
message is not signed here.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

from pymx.mail.address import Address
from pymx.mail.date import format_date
from pymx.mail.header import build_field

_LINE = 76


@dataclass(frozen=True, slots=True)
class Parcel:
    """A report, packed. Times are Unix seconds; `submitter` is the host that reports, `domain` the one reported on."""

    domain: str
    submitter: str
    organization: str
    report_id: str
    begin: int
    end: int
    payload: bytes  # gzip

    def file_name(self, extension: str) -> str:
        return f"{self.submitter}!{self.domain}!{self.begin}!{self.end}!{self.report_id}.{extension}"


def dmarc_message(parcel: Parcel, *, sender: Address, to: Address, now: float) -> bytes:
    """The message with an aggregate report, in wire form."""
    text = (
        f"This is a DMARC aggregate report of {_name(parcel)} ({parcel.submitter}) about mail\r\n"
        f"that came with {parcel.domain} in its From field, for the day that began\r\n"
        f"{format_date(parcel.begin)}. You get it because the DMARC record of\r\n"
        f"{parcel.domain} asks for it.\r\n"
    )
    return _message(
        parcel, sender, to, now,
        fields=[], top="multipart/mixed", text=text, payload_type="application/gzip", extension="xml.gz",
    )  # fmt: skip


def tls_message(parcel: Parcel, *, sender: Address, to: Address, now: float) -> bytes:
    """The message with a TLS report, in wire form."""
    text = (
        f"This is a TLS report of {_name(parcel)} ({parcel.submitter}) about its connections to\r\n"
        f"the mail servers of {parcel.domain}, for the day that began\r\n"
        f"{format_date(parcel.begin)}. You get it because the record at\r\n"
        f"_smtp._tls.{parcel.domain} asks for it.\r\n"
    )
    fields = [
        build_field("TLS-Report-Domain", parcel.domain),
        build_field("TLS-Report-Submitter", parcel.submitter),
        # RFC 8460 s. 5.3: it must arrive also where TLS is what is broken; RFC 8689 s. 5 says so to every hop
        build_field("TLS-Required", "No"),
    ]
    return _message(
        parcel, sender, to, now,
        fields=fields, top="multipart/report; report-type=tlsrpt", text=text,
        payload_type="application/tlsrpt+gzip", extension="json.gz",
    )  # fmt: skip


def _message(
    parcel: Parcel,
    sender: Address,
    to: Address,
    now: float,
    *,
    fields: list[bytes],
    top: str,
    text: str,
    payload_type: str,
    extension: str,
) -> bytes:
    # neither base64 nor the sentences have "=_" in them at the beginning of a line
    boundary = f"=_report_{parcel.begin}_{parcel.report_id[:24]}"
    name = parcel.file_name(extension)
    head = b"".join(
        [
            build_field("From", f'"{_name(parcel)}" <{sender}>'),
            build_field("To", str(to)),
            build_field(
                "Subject",
                f"Report Domain: {parcel.domain} Submitter: {parcel.submitter} Report-ID: <{parcel.report_id}>",
                fold=False,  # programs look for it
            ),
            build_field("Date", format_date(now)),
            # the same for the same report: who gets it twice after a crash can tell
            build_field("Message-ID", f"<report.{parcel.report_id}.{_tag(to)}@{parcel.submitter}>", fold=False),
            build_field("Auto-Submitted", "auto-generated"),  # RFC 3834 s. 5
            *fields,
            build_field("MIME-Version", "1.0"),
            build_field("Content-Type", f'{top}; boundary="{boundary}"'),
        ]
    )
    dash = b"--" + boundary.encode("ascii")
    return b"".join(
        [
            head, b"\r\n", dash, b"\r\n",
            b"Content-Type: text/plain; charset=us-ascii\r\n\r\n",
            text.encode("ascii"), b"\r\n", dash, b"\r\n",
            b"Content-Type: " + payload_type.encode("ascii") + b'; name="' + name.encode("ascii") + b'"\r\n',
            b'Content-Disposition: attachment; filename="' + name.encode("ascii") + b'"\r\n',
            b"Content-Transfer-Encoding: base64\r\n\r\n",
            _base64(parcel.payload), dash, b"--\r\n",
        ]
    )  # fmt: skip


def _base64(data: bytes) -> bytes:
    text = base64.b64encode(data)
    return b"".join(text[i : i + _LINE] + b"\r\n" for i in range(0, len(text), _LINE))


def _name(parcel: Parcel) -> str:
    """The organization, if it can stand in a header and in plain text as it is; else the host."""
    name = parcel.organization
    return name if name.isascii() and name.isprintable() and not set(name) & set('"\\') else parcel.submitter


def _tag(to: Address) -> str:
    return hashlib.sha256(to.key.encode("utf-8")).hexdigest()[:12]
