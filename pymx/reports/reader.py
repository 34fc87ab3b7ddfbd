"""Reads messages that hold reports: `python -m pymx.reports.reader HOSTNAME FILE …`, a process of its own.

What strangers send is taken apart here and nowhere else: MIME, base64, gzip, zip, XML, JSON. The process gives itself
low priority and limits on memory and processor time, writes one JSON line (`Reading`) per file, and touches nothing but
the files' names: FILE becomes FILE.reading before it is looked at, so that one that kills the reader is known.
What it writes is bounded as well, since the server has to take it into its memory: so much per message, and after so
much in all it ends and leaves the other files for another time.
"""

from __future__ import annotations

import binascii
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec

from pymx.mail import mime
from pymx.mail.header import find, split_head
from pymx.mail.mime import Part
from pymx.mail.text import decode_base64, decode_header
from pymx.reports import aggregate_reader, tlsrpt
from pymx.reports.aggregate import AggregateReport
from pymx.reports.error import ReportError
from pymx.reports.received import Entry, Reading, Received
from pymx.reports.tlsrpt import TlsReport
from pymx.reports.unpack import MAX_UNPACKED_OCTETS, unpack

MEMORY_OCTETS = 768 * 1024 * 1024
PROCESSOR_S = 60
MAX_MESSAGE_OCTETS = 12 * 1024 * 1024  # of all documents in a message, unpacked
MAX_OUTPUT_OCTETS = 16 * 1024 * 1024
_NICE = 15
_MAX_ATTACHMENTS = 10
_MAX_NAME = 255
_TEXTUAL = {(b"text", b"xml"), (b"application", b"xml"), (b"application", b"json"), (b"application", b"tlsrpt+json")}
_PACKED = {
    b"gzip", b"x-gzip", b"zip", b"x-zip", b"x-zip-compressed", b"x-compressed", b"tlsrpt+gzip", b"tlsrpt+json",
    b"octet-stream",
}  # fmt: skip
_EXTENSIONS = (".xml", ".json", ".gz", ".zip")


def read_message(message: bytes, *, hostname: str, now: float) -> list[Entry]:
    """The reports in a message. Raises ReportError."""
    proof = _proof(split_head(message)[0], hostname)
    entries: list[Entry] = []
    octets = 0
    trouble = "it has no attachment that could be a report"
    for attachment in _attachments(message):
        try:
            found = read_report(attachment, proof=proof, now=now)
        except ReportError as e:
            trouble = str(e)
            continue
        entries += found
        octets += sum(len(entry.document) for entry in found)
        if octets > MAX_MESSAGE_OCTETS:
            raise ReportError(f"more than {MAX_MESSAGE_OCTETS // 1024} KB of reports in one message")
    if not entries:
        raise ReportError(trouble)
    return entries


def read_report(data: bytes, *, proof: str, now: float) -> list[Entry]:
    """The reports in an attachment, packed or not. Raises ReportError."""
    document = unpack(data, limit=MAX_UNPACKED_OCTETS)
    if document.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return list(_tls_entries(tlsrpt.read(document.lstrip(b"\xef\xbb\xbf")), proof, now))
    return [_dmarc_entry(aggregate_reader.read(document.lstrip(b" \t\r\n")), proof, now)]


def _dmarc_entry(report: AggregateReport, proof: str, now: float) -> Entry:
    passed = sum(row.count for row in report.rows if row.dkim or row.spf)
    received = Received(
        kind="dmarc",
        domain=report.published.domain[:_MAX_NAME],
        organization=report.organization[:_MAX_NAME],
        report_id=report.report_id[:_MAX_NAME],
        begin_s=report.begin,
        end_s=report.end,
        received_s=int(now),
        proof=proof,
        good=passed,
        bad=sum(row.count for row in report.rows) - passed,
    )
    return Entry(received, msgspec.json.encode(report))


def _tls_entries(report: TlsReport, proof: str, now: float) -> Iterator[Entry]:
    """One for each domain in it: a provider may report about several at once."""
    for domain in dict.fromkeys(policy.domain for policy in report.policies):
        policies = tuple(policy for policy in report.policies if policy.domain == domain)
        received = Received(
            kind="tls",
            domain=domain[:_MAX_NAME],
            organization=report.organization[:_MAX_NAME],
            report_id=report.report_id[:_MAX_NAME],
            begin_s=report.begin,
            end_s=report.end,
            received_s=int(now),
            proof=proof,
            good=sum(policy.successes for policy in policies),
            bad=sum(policy.failed for policy in policies),
        )
        yield Entry(received, msgspec.json.encode(replace(report, policies=policies)))


def _proof(head: bytes, hostname: str) -> str:
    """Our own finding about the sender, "dmarc=pass dkim=pass reports.example", or "" (RFC 8601).

    Fields of that name that came from outside were taken out when the message was accepted.
    """
    for _, field in find(head, "authentication-results"):
        value = field.value.decode("utf-8", "replace")
        authserv_id, _, results = value.partition(";")
        if authserv_id.strip().lower() == hostname.lower():
            words = [part.split() for part in results.split(";") if part.strip()]
            told = [w[0] for w in words if w[0].partition("=")[0] in ("dmarc", "dkim")]
            author = next((x for w in words for x in w if x.startswith("header.from=")), "")
            return " ".join([*dict.fromkeys(told), author.removeprefix("header.from=")]).strip()[:_MAX_NAME]
    return ""


def _attachments(message: bytes) -> Iterator[bytes]:
    """The decoded parts that could be a report."""
    likely = [part for part in _leaves(mime.parse(message)) if _is_likely(part)]
    for part in likely[:_MAX_ATTACHMENTS]:
        data = message[part.body_start : part.body_end]
        encoding = part.encoding.lower()
        if encoding == b"base64":
            data = decode_base64(data)
        elif encoding == b"quoted-printable":
            data = binascii.a2b_qp(data)
        yield data


def _leaves(part: Part) -> Iterator[Part]:
    if part.children:
        for child in part.children:
            yield from _leaves(child)
    elif part.message is None:
        yield part


def _is_likely(part: Part) -> bool:
    if (part.type, part.subtype) in _TEXTUAL or (part.type == b"application" and part.subtype in _PACKED):
        return True
    return _file_name(part).endswith(_EXTENSIONS)


def _file_name(part: Part) -> str:
    disposition = part.disposition
    names = [value for name, value in (disposition[1] if disposition else []) if name == b"filename"]
    name = names[0] if names else part.parameter(b"name") or b""
    return decode_header(name).lower()


def main(arguments: list[str]) -> int:
    """Read the files and write what is in them to standard output."""
    hostname, *files = arguments
    _limit()
    written = 0
    for name in files:
        path = Path(name)
        try:
            reading = path.with_name(path.name + ".reading")
            path.rename(reading)
            found = Reading(path.name, tuple(read_message(reading.read_bytes(), hostname=hostname, now=time.time())))
        except ReportError as e:
            found = Reading(path.name, reason=str(e)[:500])
        except OSError as e:
            found = Reading(path.name, reason=e.strerror or str(e))
        written += sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")
        sys.stdout.buffer.flush()
        if written > MAX_OUTPUT_OCTETS:
            break
    return 0


def _limit() -> None:
    os.nice(_NICE)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_OCTETS, MEMORY_OCTETS))
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_S, PROCESSOR_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
