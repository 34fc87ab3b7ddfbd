"""DMARC aggregate reports: written as RFC 7489 appendix C says, and read back; hostile ones are refused."""

from __future__ import annotations

import ipaddress
import time
from dataclasses import replace
from pathlib import Path

import pytest
import xmlschema
from hypothesis import given
from hypothesis import strategies as st

from pymx.reports import aggregate_reader
from pymx.reports.aggregate import (
    DISPOSITIONS,
    DKIM_RESULTS,
    OVERRIDES,
    SPF_RESULTS,
    AggregateReport,
    DkimAuth,
    Override,
    Published,
    Row,
    SpfAuth,
    write,
)
from pymx.reports.error import ReportError

SCHEMA = xmlschema.XMLSchema(str(Path(__file__).parent / "aggregate.xsd"))

ROW = Row(
    source_ip="192.0.2.1",
    header_from="news.good.test",
    disposition="none",
    dkim=False,
    spf=False,
    envelope_from="bounce.good.test",
    overrides=(Override("local_policy", "arc=pass & <fine>"), Override("sampled_out")),
    dkim_auth=(DkimAuth("good.test", "fail", "k1"), DkimAuth("list.test", "pass")),
    spf_auth=(SpfAuth("bounce.good.test", "softfail"),),
    count=3,
)
REPORT = AggregateReport(
    organization="Example & Söhne",
    email="postmaster@mx.example.test",
    report_id="abc",
    begin=1_700_000_000,
    end=1_700_086_399,
    published=Published("good.test", "reject", "quarantine", pct=50),
    rows=(ROW, replace(ROW, source_ip="2001:db8::1", dkim=True, count=1)),
)
XML_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=30).map(
    lambda text: "".join(c for c in text if c >= " " and c not in "\ufffe\uffff").strip()
)
NAMES = st.from_regex(r"[a-z0-9]{1,10}\.(test|example)", fullmatch=True)


def rows() -> st.SearchStrategy[Row]:
    return st.builds(
        Row,
        source_ip=st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str),
        header_from=NAMES,
        disposition=st.sampled_from(DISPOSITIONS),
        dkim=st.booleans(),
        spf=st.booleans(),
        envelope_from=st.one_of(st.just(""), NAMES),
        overrides=st.lists(st.builds(Override, st.sampled_from(OVERRIDES), XML_TEXT), max_size=2).map(tuple),
        dkim_auth=st.lists(st.builds(DkimAuth, NAMES, st.sampled_from(DKIM_RESULTS), NAMES), max_size=3).map(tuple),
        spf_auth=st.lists(
            st.builds(SpfAuth, NAMES, st.sampled_from(SPF_RESULTS), st.sampled_from(("mfrom", "helo"))),
            min_size=1, max_size=2,
        ).map(tuple),
        count=st.integers(1, 10**9),
    )  # fmt: skip


def test_document_is_valid_by_the_schema() -> None:
    """RFC 7489 appendix C."""
    SCHEMA.validate(write(REPORT).decode())


def test_report_is_read_back() -> None:
    """Every field."""
    assert aggregate_reader.read(write(REPORT)) == REPORT


@given(st.lists(rows(), min_size=1, max_size=4))
def test_any_rows_are_valid_and_read_back(found: list[Row]) -> None:
    """read ∘ write = id, and every document is valid by the schema."""
    report = replace(REPORT, rows=tuple(found))
    document = write(report)
    assert aggregate_reader.read(document) == report
    SCHEMA.validate(document.decode())


@given(st.text(max_size=50))
def test_any_text_of_a_peer_leaves_the_document_valid(text: str) -> None:
    """What a sender puts into a domain or a selector can't break the document (control characters, markup)."""
    row = replace(
        ROW, header_from=text, dkim_auth=(DkimAuth(text, "fail", text),), overrides=(Override("other", text),)
    )
    document = write(replace(REPORT, rows=(row,)))
    SCHEMA.validate(document.decode("utf-8"))
    assert len(aggregate_reader.read(document).rows) == 1


@pytest.mark.parametrize(
    ("old", "new", "field", "value"),
    [
        ("<feedback>", '<feedback xmlns="urn:ietf:params:xml:ns:dmarc-2.0">', "report_id", "abc"),
        ('encoding="UTF-8"?>', 'encoding="UTF-8"?><!-- hi -->', "report_id", "abc"),
        ("<begin>1700000000<", "<begin> 1700000000.0\n<", "begin", 1_700_000_000),
        ("<version>1.0</version>", "", "report_id", "abc"),
        ("<adkim>r</adkim>", "", "organization", "Example & Söhne"),
        ("<disposition>none<", "<disposition>pass<", "end", 1_700_086_399),
        ("<type>local_policy<", "<type>policy_test_mode<", "report_id", "abc"),
        ("<domain>good.test</domain>\n<adkim>", "<domain>GOOD.test.</domain><adkim>", "published", REPORT.published),
        ("</policy_published>", "<np>reject</np><testing>n</testing></policy_published>", "report_id", "abc"),
    ],
)
def test_habits_of_other_reporters_are_understood(old: str, new: str, field: str, value: object) -> None:
    """RFC 9990's namespace and words, and what is seen in the wild."""
    text = write(REPORT).decode()
    assert old in text
    assert getattr(aggregate_reader.read(text.replace(old, new, 1).encode()), field) == value


@pytest.mark.parametrize("encoding", ["utf-16", "iso-8859-1", "us-ascii"])
def test_other_encodings_are_read(encoding: str) -> None:
    """XML 1.0 s. 4.3.3: the declaration says which."""
    text = write(replace(REPORT, organization="Example")).decode().replace("UTF-8", encoding)
    assert aggregate_reader.read(text.encode(encoding)).organization == "Example"


BILLION_LAUGHS = b"""<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">
<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;"><!ENTITY d "&c;&c;&c;&c;&c;&c;&c;&c;">]><feedback>&d;</feedback>"""


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (BILLION_LAUGHS, "DOCTYPE"),
        (b'<!DOCTYPE f SYSTEM "file:///etc/passwd"><feedback/>', "DOCTYPE"),
        (b'<!DOCTYPE f [<!ENTITY % x SYSTEM "http://127.0.0.1/">%x;]><feedback/>', "DOCTYPE"),
        (b"<feedback>&undefined;</feedback>", "no XML"),
        (b"", "no XML"),
        (b"<feedback>", "no XML"),
        (b"{}", "no XML"),
        (b"<html></html>", "not a <feedback>"),
        (b"<feedback></feedback>", "which domain"),
        (b"<feedback>" + b"<a>" * 100, "deeply"),
        (b'<?xml version="1.0" encoding="no-such-charset"?><feedback/>', "no XML"),
        (b'<?xml version="1.0" encoding="utf-8"?><feedback>\xff</feedback>', "no XML"),
        (write(REPORT).replace(b"<count>3<", b"<count>-3<"), "count"),
        (write(REPORT).replace(b"<count>3<", b"<count>9999999999999999999999<"), "count"),
        (write(REPORT).replace(b"192.0.2.1", b"evil\x1b"), "no XML"),
        (write(REPORT).replace(b"192.0.2.1", b"mail.good.test"), "source_ip"),
        (write(REPORT).replace(b"<begin>1700000000", b"<begin>soon"), "begin"),
        (write(REPORT).replace(b"</feedback>", b"<record/>" * 20_001 + b"</feedback>"), "20000 records"),
    ],
    ids=lambda value: "document" if isinstance(value, bytes) else value,
)
def test_hostile_document_is_refused_with_the_reason(document: bytes, reason: str) -> None:
    """No entities, no DTD, no limits passed: refused, quickly."""
    started = time.monotonic()
    with pytest.raises(ReportError, match=reason):
        aggregate_reader.read(document)
    assert time.monotonic() - started < 5


@given(st.binary(max_size=200))
def test_any_octets_are_a_report_or_a_report_error(data: bytes) -> None:
    """Never anything but our error."""
    try:
        aggregate_reader.read(data)
    except ReportError:
        pass


@given(st.data())
def test_any_damage_to_a_report_is_a_report_or_a_report_error(data: st.DataObject) -> None:
    """A flipped, lost or added octet anywhere."""
    document = bytearray(write(REPORT))
    place = data.draw(st.integers(0, len(document) - 1))
    document[place : place + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=5))
    try:
        found = aggregate_reader.read(bytes(document))
    except ReportError:
        return
    assert all(ipaddress.ip_address(row.source_ip) for row in found.rows)
