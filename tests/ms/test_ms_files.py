"""Dovecot's files: uidlist, keywords, subscriptions, uidvalidity, message names, dotlock."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.mail import mutf7
from pymx.mail.flags import ANSWERED, DELETED, DRAFT, FLAGGED, PASSED, SEEN
from pymx.ms import keywords, measure, morekeywords, names, subscriptions, uidlist, uidvalidity
from pymx.ms.disk import Disk
from pymx.ms.dotlock import DotLock
from pymx.ms.errors import InvalidName, Unavailable
from pymx.ms.layout import Layout
from pymx.ms.owner import Owner

GUID = "0123456789abcdef0123456789ABCDEF"
HEADER = b"3 V1700000000 N5 G" + GUID.encode() + b"\n"

# uidlist


@pytest.mark.parametrize(
    ("data", "records", "clean"),
    [
        (HEADER, [], True),
        (HEADER + b"1 :a\n2 W12 :b,S=1\n", [(1, b"", b"a"), (2, b" W12", b"b,S=1")], True),
        (HEADER + b"7 Gx:y S1 :b:2,S\n", [(7, b" Gx:y S1", b"b")], True),
        (HEADER + b"1 :a\n2 :b", [(1, b"", b"a")], False),
        (HEADER + b"2 :a\n1 :b\n3 :c\n", [(2, b"", b"a"), (3, b"", b"c")], False),
        (HEADER + b"1 :a\nrubbish\n3 :c\n", [(1, b"", b"a"), (3, b"", b"c")], False),
        (HEADER + b"1 :a/b\n", [], False),
        (HEADER + b"0 :a\n", [], False),
        (HEADER + b"4294967296 :a\n", [], False),
        (HEADER + b"1 :a\n" + b"\0" * 20, [(1, b"", b"a")], False),
        (b"3 V1 N1\n1 :a\n", [(1, b"", b"a")], False),
        (b"1 1700000000 3\n1 a,S=5:2,S\n2 b\n", [(1, b"", b"a,S=5"), (2, b"", b"b")], False),
    ],
)
def test_uidlist_is_read(data: bytes, records: list[uidlist.Record], clean: bool) -> None:
    """STORE.md s. 1; what can't be read is left out, and the file is to be rewritten."""
    found = uidlist.parse(data)
    assert (found.records, found.clean) == (records, clean)


@pytest.mark.parametrize("data", [b"", b"3", b"3 V1 N1", b"2 V1 N1\n", b"3 V0 N1\n", b"3 V1 N0\n", b"3 N1\n", b"x\n"])
def test_a_uidlist_without_a_header_says_nothing(data: bytes) -> None:
    with pytest.raises(uidlist.Damaged):
        uidlist.parse(data)


def test_unknown_keys_are_kept() -> None:
    """STORE.md s. 1: unknown header and record keys."""
    data = b"3 V5 N9 G" + GUID.encode() + b" Xsome Y1\n1 Z9 W5 :a\n"
    assert uidlist.parse(data).to_bytes() == data


_BASE = st.binary(min_size=1, max_size=30).map(lambda b: bytes(c for c in b if c not in b"/:\n\0") or b"x")
_KEYS = st.lists(st.from_regex(rb"[A-Z][!-9;-~]{0,8}", fullmatch=True), max_size=3).map(
    lambda keys: b"".join(b" " + key for key in keys)
)


@given(
    st.lists(
        st.tuples(st.integers(1, uidlist.MAX_UID), _KEYS, _BASE),
        unique_by=(lambda r: r[0], lambda r: r[2]),  # one base never stands in two lines
    ),
    st.data(),
)
def test_uidlist_round_trip(records: list[uidlist.Record], data: st.DataObject) -> None:
    """parse ∘ write = id; a file cut anywhere gives the whole lines before the cut."""
    records.sort()
    header = uidlist.Header(1_700_000_000, 1, GUID, b" Q1")
    whole = header.line() + uidlist.lines(records)
    found = uidlist.parse(whole)
    assert (found.records, found.header, found.clean) == (records, header, True)
    cut = data.draw(st.integers(len(header.line()), len(whole)))
    assert uidlist.parse(whole[:cut]).records == records[: whole[len(header.line()) : cut].count(b"\n")]


@given(st.binary(max_size=300))
def test_uidlist_parser_never_raises_anything_else(data: bytes) -> None:
    for text in (data, HEADER + data):
        try:
            found = uidlist.parse(text)
        except uidlist.Damaged:
            continue
        uids = [record[0] for record in found.records]
        assert uids == sorted(set(uids))


def test_next_uid_is_above_header_and_lines() -> None:
    assert uidlist.parse(HEADER + b"9 :a\n").next_uid == 10
    assert uidlist.parse(HEADER).next_uid == 5


def test_a_base_is_found_without_parsing() -> None:
    data = HEADER + b"1 :abc\n2 G1 :bc:2,S\n"
    assert uidlist.has_base(data, b"abc")
    assert uidlist.has_base(data, b"bc")
    assert not uidlist.has_base(data, b"b")
    assert not uidlist.has_base(data, b"ab")


# message names


@pytest.mark.parametrize(
    ("name", "flags", "bits", "expected"),
    [
        (b"a,S=1,W=2", SEEN, 0, b"a,S=1,W=2:2,S"),
        (b"a:2,FS", SEEN | DELETED, 0b101, b"a:2,STac"),
        (b"a:2,Sz", 0, 0, b"a:2,"),
        (b"a:2,SXb,new", FLAGGED, 2, b"a:2,FXb,new"),
        (b"a", DRAFT | FLAGGED | PASSED | ANSWERED | SEEN | DELETED, 1 << 25, b"a:2,DFPRSTz"),
        (b"a:1,junk", SEEN, 0, b"a:2,S"),
    ],
)
def test_flags_in_names(name: bytes, flags: int, bits: int, expected: bytes) -> None:
    """ASCII order, unknown letters and what follows a second comma kept (STORE.md s. 1)."""
    made = names.with_flags(name, flags, bits)
    assert made == expected
    assert names.flags_of(made) == (flags, bits)
    assert names.base_of(made) == names.base_of(name)


@given(st.integers(0, 63), st.integers(0, names.LETTER_MASK))
def test_flags_round_trip(flags: int, bits: int) -> None:
    assert names.flags_of(names.with_flags(b"base,S=1", flags, bits)) == (flags, bits)


def test_sizes_from_names() -> None:
    base = names.new_base(b"mx", 120, 130)
    assert (names.disk_octets(base + b":2,S"), names.wire_octets(base)) == (120, 130)
    assert names.wire_octets(b"1.2.host:2,S") is None


def test_a_host_name_cannot_end_the_base() -> None:
    assert names.host_part("a/b:c,d") == rb"a\057b\072c\054d"


def test_bases_are_unique() -> None:
    assert len({names.new_base(b"mx", 1, 1) for _ in range(1000)}) == 1000


# keywords, subscriptions, uidvalidity


def test_keywords_round_trip(tmp_path: Path) -> None:
    """The mtime grows in whole seconds each time, or Dovecot does not look again."""
    directory = os.fsencode(tmp_path)
    mtimes = []
    for number in range(3):
        wanted = [f"$k{n}" if n % 2 else "" for n in range(number, 26)]
        wanted += [""] * (26 - len(wanted))
        keywords.write(Disk(), directory, wanted, 0o600)
        assert keywords.read(directory) == wanted
        mtimes.append(int((tmp_path / "dovecot-keywords").stat().st_mtime))
    assert mtimes == sorted(set(mtimes))


@given(st.binary(max_size=200))
def test_keywords_parser_takes_anything(data: bytes) -> None:
    assert len(keywords.parse(data)) == 26


@given(
    st.dictionaries(st.integers(1, uidlist.MAX_UID), st.lists(st.from_regex(r"[!-~]{1,9}", fullmatch=True), min_size=1))
)
def test_more_keywords_round_trip(found: dict[int, list[str]]) -> None:
    assert morekeywords.parse(morekeywords.to_bytes(found)) == found


@given(st.binary(max_size=100))
def test_more_keywords_parser_takes_anything(data: bytes) -> None:
    morekeywords.parse(data)


_LEVEL = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
    lambda t: t.upper() != "INBOX"
)


@given(st.lists(st.lists(_LEVEL, min_size=1, max_size=3).map(tuple), unique=True, max_size=6))
def test_subscriptions_round_trip(wanted: list[tuple[str, ...]]) -> None:
    """Version 2: levels joined by TAB, Dovecot's escapes."""
    assert subscriptions.parse(subscriptions.to_bytes(2, wanted, "."), ".") == (2, wanted)


def test_subscriptions_version_1_stays_so(tmp_path: Path) -> None:
    (tmp_path / "subscriptions").write_bytes(b"INBOX\nA.B\n")
    root = os.fsencode(tmp_path)
    subscriptions.change(Disk(), root, ".", ("C",), subscribe=True, mode=0o600)
    subscriptions.change(Disk(), root, ".", ("INBOX",), subscribe=False, mode=0o600)
    assert (tmp_path / "subscriptions").read_bytes() == b"A.B\nC\n"


@given(st.binary(max_size=200))
def test_subscriptions_parser_takes_anything(data: bytes) -> None:
    for text in (data, b"V\t2\n\n" + data):
        subscriptions.parse(text, ".")


def test_uidvalidity_never_comes_twice(tmp_path: Path) -> None:
    """Also when the file or the marker is lost or behind (STORE.md s. 1)."""
    root = os.fsencode(tmp_path)
    given_out = [uidvalidity.next_value(Disk(), root) for _ in range(3)]
    (tmp_path / "dovecot-uidvalidity").write_text(f"{given_out[-1] + 5:08x}")
    given_out.append(uidvalidity.next_value(Disk(), root))
    (tmp_path / "dovecot-uidvalidity").unlink()
    given_out.append(uidvalidity.next_value(Disk(), root))
    for marker in tmp_path.glob("dovecot-uidvalidity.*"):
        marker.unlink()
    given_out.append(uidvalidity.next_value(Disk(), root))
    assert given_out == sorted(set(given_out))


# dotlock


def test_a_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    """STORE.md s. 1: its pid is gone and it is older than 2 s."""
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    lock = tmp_path / "file.lock"
    lock.write_text(f"{int(done.stdout)}:{os.uname().nodename}")
    with pytest.raises(Unavailable):
        DotLock(Disk(), os.fsencode(tmp_path / "file"), timeout_s=0.05).acquire()
    os.utime(lock, (lock.stat().st_atime - 3, lock.stat().st_mtime - 3))
    with DotLock(Disk(), os.fsencode(tmp_path / "file"), timeout_s=0.05):
        assert lock.read_text() == f"{os.getpid()}:{os.uname().nodename}"
    assert not lock.exists()


def test_a_lock_of_another_host_is_respected(tmp_path: Path) -> None:
    lock = tmp_path / "file.lock"
    lock.write_text("1:another.host")
    os.utime(lock, (lock.stat().st_atime - 60, lock.stat().st_mtime - 60))
    with pytest.raises(Unavailable):
        DotLock(Disk(), os.fsencode(tmp_path / "file"), timeout_s=0.05).acquire()


def test_a_lock_is_exclusive(tmp_path: Path) -> None:
    target = os.fsencode(tmp_path / "file")
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(20):
            with DotLock(Disk(), target):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1


# names of folders and accounts, sizes


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_mutf7_round_trip(name: str) -> None:
    """RFC 3501 s. 5.1.3."""
    encoded = mutf7.encode(name)
    assert encoded.isascii()
    assert mutf7.decode(encoded) == name


@pytest.mark.parametrize(
    ("name", "encoded"),
    [("~peter/mail/台北/日本語", "~peter/mail/&U,BTFw-/&ZeVnLIqe-"), ("a&b", "a&-b"), ("Ärger", "&AMQ-rger")],
)
def test_mutf7_table(name: str, encoded: str) -> None:
    assert (mutf7.encode(name), mutf7.decode(encoded)) == (encoded, name)


@pytest.mark.parametrize("name", ["&", "&AMQ", "&AMQ-&AMQ-", "&AA-", "Ä", "a\nb", "&AGE-", "&U,BTFw=-"])
def test_mutf7_takes_only_the_canonical_form(name: str) -> None:
    with pytest.raises(ValueError):
        mutf7.decode(name)


@pytest.mark.parametrize("name", ["", "a..b", ".a", "a.", "a/b", "a\x00b", "a\nb", "..", "a" * 256, "\udc80"])
def test_impossible_folder_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        Layout("maildir++", ".").levels(name)


def test_folder_names_on_disk() -> None:
    plain, fs = Layout("maildir++", "/"), Layout("fs", "/")
    assert plain.path(b"/r", plain.levels("inbox")) == b"/r"
    assert plain.path(b"/r", plain.levels("A/Ä")) == b"/r/.A.&AMQ-"
    assert fs.path(b"/r", fs.levels("A/b.c")) == b"/r/A/b.c"
    assert plain.name(plain.levels("iNbOx/Sub")) == "INBOX/Sub"
    with pytest.raises(InvalidName):
        plain.levels("a.b")
    with pytest.raises(InvalidName):
        fs.levels("a/../b")


@pytest.mark.parametrize("part", ["", ".", "..", ".x", "a/b", "a\0", "a\n"])
def test_an_account_stays_below_the_root(part: str) -> None:
    with pytest.raises(InvalidName):
        Owner("example.test", part).path(b"/root")
    with pytest.raises(InvalidName):
        Owner(part, "alice").path(b"/root")


@given(st.lists(st.sampled_from([b"a", b"\r", b"\n", b"\r\n", b"xyz"]), max_size=30).map(b"".join))
def test_wire_form_and_size_agree(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Any mix of line ends is served as CRLF, and W says how long that is."""
    path = tmp_path_factory.mktemp("wire") / "message"
    path.write_bytes(data)
    wire = measure.to_wire(data)
    assert measure.wire_size(os.fsencode(path)) == len(wire) == len(data) + measure.wire_growth(data)
    with path.open("rb") as file:
        assert b"".join(measure.wire_chunks(file.fileno())) == wire
