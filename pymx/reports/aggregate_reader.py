"""DMARC aggregate reports of others, read with distrust and goodwill (RFC 7489 appendix C, RFC 9990).

A document with a DOCTYPE is refused before anything in it is expanded: no report needs one, and entities are how small
documents become large. Element names count without their namespace. What a report leaves out has the RFC's default;
what is nonsense in a single record (a count that is no number, an address that is none) spoils the whole report.

Raises `ReportError` and nothing else.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast
from xml.parsers import expat

from pymx.reports.aggregate import (
    DISPOSITIONS,
    OVERRIDES,
    AggregateReport,
    Disposition,
    DkimAuth,
    Override,
    OverrideKind,
    Published,
    Row,
    SpfAuth,
)
from pymx.reports.error import ReportError

MAX_RECORDS = 20_000
_MAX_DEPTH = 12
_MAX_TEXT = 1024  # characters of one element that are kept
_MAX_COUNT = 10**12
_MAX_TIME = 10**11


@dataclass(slots=True)
class _Element:
    name: str
    text: list[str] = field(default_factory=list)
    octets: int = 0
    children: list[_Element] = field(default_factory=list)

    def all(self, name: str) -> Iterator[_Element]:
        return (child for child in self.children if child.name == name)

    def one(self, name: str) -> _Element:
        return next(self.all(name), _Element(name))

    def get(self, name: str, default: str = "") -> str:
        return "".join(self.one(name).text).strip()[:_MAX_TEXT] or default


def read(document: bytes) -> AggregateReport:
    """The report in an XML document."""
    root = _parse(document)
    if root.name != "feedback":
        raise ReportError(f"the document is a <{root.name[:40]}>, not a <feedback>")
    metadata, policy = root.one("report_metadata"), root.one("policy_published")
    period = metadata.one("date_range")
    domain = policy.get("domain").lower().rstrip(".")
    if not domain:
        raise ReportError("it does not say which domain it is about")
    return AggregateReport(
        organization=metadata.get("org_name", "unknown"),
        email=metadata.get("email"),
        report_id=metadata.get("report_id"),
        begin=_number(period.get("begin"), "begin", _MAX_TIME),
        end=_number(period.get("end"), "end", _MAX_TIME),
        published=Published(
            domain=domain,
            p=_disposition(policy.get("p", "none")),
            sp=_disposition(policy.get("sp") or policy.get("p", "none")),
            adkim=policy.get("adkim", "r"),
            aspf=policy.get("aspf", "r"),
            pct=_number(policy.get("pct", "100"), "pct", 100),
            fo=policy.get("fo", "0"),
        ),
        rows=tuple(_row(record) for record in root.all("record")),
        extra_contact=metadata.get("extra_contact_info"),
    )


def _row(record: _Element) -> Row:
    row, identifiers, results = record.one("row"), record.one("identifiers"), record.one("auth_results")
    evaluated = row.one("policy_evaluated")
    return Row(
        source_ip=_address(row.get("source_ip")),
        count=_number(row.get("count"), "count", _MAX_COUNT),
        disposition=_disposition(evaluated.get("disposition", "none")),
        dkim=evaluated.get("dkim").lower() == "pass",
        spf=evaluated.get("spf").lower() == "pass",
        overrides=tuple(
            Override(_override(reason.get("type")), reason.get("comment")) for reason in evaluated.all("reason")
        ),
        header_from=identifiers.get("header_from").lower(),
        envelope_from=identifiers.get("envelope_from").lower(),
        envelope_to=identifiers.get("envelope_to").lower(),
        dkim_auth=tuple(
            DkimAuth(d.get("domain").lower(), d.get("result", "none").lower(), d.get("selector"))
            for d in results.all("dkim")
        ),
        spf_auth=tuple(
            SpfAuth(s.get("domain").lower(), s.get("result", "none").lower(), s.get("scope", "mfrom").lower())
            for s in results.all("spf")
        ),
    )


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ReportError(f"source_ip is no address: {text[:60]!r}") from None


def _number(text: str, name: str, most: int) -> int:
    # some reporters write times as 1700000000.0
    whole, _, fraction = text.partition(".")
    if not (whole.isascii() and whole.isdigit() and len(whole) <= 15) or fraction.strip("0"):
        raise ReportError(f"{name} is no number: {text[:40]!r}")
    if int(whole) > most:
        raise ReportError(f"{name} is too large: {whole}")
    return int(whole)


def _disposition(text: str) -> Disposition:
    # RFC 9990 has "pass" for mail that no policy was for
    word = text.lower()
    return cast(Disposition, word) if word in DISPOSITIONS else "none"


def _override(text: str) -> OverrideKind:
    word = text.lower()
    return cast(OverrideKind, word) if word in OVERRIDES else "other"


def _parse(document: bytes) -> _Element:
    tree = _Tree()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
    parser.StartDoctypeDeclHandler = _refuse_doctype
    parser.StartElementHandler = tree.start
    parser.EndElementHandler = tree.end
    parser.CharacterDataHandler = tree.text
    try:
        parser.Parse(document, True)
    except (expat.ExpatError, LookupError, ValueError) as e:
        if isinstance(e, ReportError):
            raise
        raise ReportError(f"it is no XML: {e}") from None
    assert tree.root is not None  # expat demands an element
    return tree.root


def _refuse_doctype(*_: object) -> None:
    raise ReportError("the document has a DOCTYPE")


class _Tree:
    """The elements, as long as there are not too many."""

    def __init__(self) -> None:
        self.root: _Element | None = None
        self._open: list[_Element] = []
        self._elements = 0
        self._records = 0

    def start(self, name: str, _attributes: dict[str, str]) -> None:
        self._elements += 1
        if len(self._open) >= _MAX_DEPTH:
            raise ReportError("elements are nested too deeply")
        if self._elements > MAX_RECORDS * 60:
            raise ReportError("it has too many elements")
        element = _Element(name.rpartition(":")[2])
        if self._open:
            parent = self._open[-1]
            parent.children.append(element)
            self._records += element.name == "record"
            if self._records > MAX_RECORDS:
                raise ReportError(f"it has more than {MAX_RECORDS} records")
        elif self.root is None:
            self.root = element
        self._open.append(element)

    def end(self, _name: str) -> None:
        self._open.pop()

    def text(self, text: str) -> None:
        element = self._open[-1]
        if element.octets < _MAX_TEXT:
            element.text.append(text[:_MAX_TEXT])
            element.octets += len(text)
