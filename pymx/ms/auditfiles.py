"""Is what lies in a mailbox directory what Dovecot and pymx expect there? Looks only; nothing is locked or changed.

Each function looks at one kind of file and yields `(kind, sentence, wrong)`. What the index says about the same mailbox
is compared in `pymx.ms.auditindex`.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections import Counter
from collections.abc import Iterable, Iterator

from pymx.mail.flags import MAX_KEYWORD_OCTETS
from pymx.ms import keywords, names, subscriptions, uidlist
from pymx.ms import packed as unpacking
from pymx.ms.fault import some
from pymx.ms.layout import Levels
from pymx.ms.measure import sizes

TMP_S = 36 * 3600
_LOCK_S = 120
_LINE = re.compile(rb"[1-9][0-9]{0,9}(?: [A-Z][^ \n]*)* :[^:\n/]+(?::.*)?\Z")
_LINE_V1 = re.compile(rb"[1-9][0-9]{0,9} [^:\n/]+(?::.*)?\Z")
_GZIP, _BZIP2, _XZ, _ZSTD, _LZ4 = (
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ\x00",
    b"\x28\xb5\x2f\xfd",
    b"Dovecot-LZ4\r\x2a\x9b\xc5",
)
_COMPRESSED = {_GZIP: "gzip", _BZIP2: "bzip2", _XZ: "xz", _ZSTD: "zstd", _LZ4: "lz4"}
_CRYPT = b"CRYPTED\x03\x07"

Problem = tuple[str, str, bool]  # kind, sentence, wrong


def packed(head: bytes) -> str:
    """How a file is compressed or encrypted, by its first octets; "" for a plain message."""
    if head.startswith(_CRYPT):
        return "encrypted"
    return next((name for magic, name in _COMPRESSED.items() if head.startswith(magic)), "")


def uidlist_problems(data: bytes) -> Iterator[Problem]:
    """Everything in a `dovecot-uidlist` that a reader stumbles over, with line numbers."""
    first, newline, body = data.partition(b"\n")
    try:
        if not newline:
            raise uidlist.Damaged("it has no complete first line")
        header = uidlist.parse_header(first)
    except uidlist.Damaged as error:
        yield "uidlist_header", f"dovecot-uidlist can't be read: {error}", True
        return
    if header.version == 1:
        yield "uidlist_old", "dovecot-uidlist is of version 1; it is rewritten at the first access", False
    elif not header.guid:
        yield "uidlist_no_guid", "dovecot-uidlist has no GUID in its first line; it gets one at the first access", False
    pattern = _LINE if header.version == 3 else _LINE_V1
    lines = body.split(b"\n")
    if torn := lines.pop():
        yield "uidlist_torn", f"the last line of dovecot-uidlist is torn after {torn[:40]!r}", True
    broken: list[str] = []
    disordered: list[str] = []
    bases: Counter[bytes] = Counter()
    last = 0
    for number, line in enumerate(lines, 2):
        if not pattern.match(line):
            broken.append(str(number))
            continue
        uid = int(line.partition(b" ")[0])
        if uid <= last or uid > uidlist.MAX_UID:
            disordered.append(str(number))
        last = max(last, uid)
        name = line.partition(b" :")[2] if header.version == 3 else line.partition(b" ")[2]
        bases[names.base_of(name)] += 1
    if broken:
        yield "uidlist_line", f"dovecot-uidlist has lines that can't be read: {some(broken)}", True
    if disordered:
        yield "uidlist_order", f"UIDs in dovecot-uidlist don't ascend at line {some(disordered)}", True
    twice = [os.fsdecode(base) for base, count in bases.items() if count > 1]
    if twice:
        yield "uidlist_base_twice", f"dovecot-uidlist gives more than one UID to {some(twice)}", True


def keywords_problems(data: bytes | None, used: int) -> Iterator[Problem]:
    """`dovecot-keywords`, None if there is none, against the letters that file names use (as bits)."""
    known = keywords.parse(data or b"")
    lines = [line for line in (data or b"").split(b"\n") if line]
    bad = [os.fsdecode(line) for line in lines if not _is_keyword_line(line)]
    if bad:
        yield "keywords_line", f"dovecot-keywords has lines that can't be read: {some(bad)}", True
    if data and not data.endswith(b"\n"):
        yield "keywords_torn", "dovecot-keywords ends in the middle of a line", True
    lower = Counter(name.lower() for name in known if name)
    twice = sorted(name for name, count in lower.items() if count > 1)
    if twice:
        yield "keywords_twice", f"dovecot-keywords has the same name for two letters: {some(twice)}", True
    nameless = [chr(97 + bit) for bit in range(names.LETTERS) if used >> bit & 1 and not known[bit]]
    if nameless:
        text = f"file names use the keyword letters {some(nameless, 26)}, which have no name in dovecot-keywords"
        yield "keywords_nameless", text, True


def _is_keyword_line(line: bytes) -> bool:
    number, space, name = line.partition(b" ")
    sound = number.isdigit() and len(number) <= 2 and int(number) < names.LETTERS and bool(space) and bool(name)
    return sound and len(name) <= MAX_KEYWORD_OCTETS and b" " not in name


def subscriptions_problems(data: bytes, separator: str, there: Iterable[Levels]) -> Iterator[Problem]:
    """`subscriptions` against itself and the mailboxes that are there."""
    if data and not data.endswith(b"\n"):
        yield "subscriptions_torn", "subscriptions ends in the middle of a line", True
    version, found = subscriptions.parse(data, separator)
    lines = [line for line in data.split(b"\n") if line][1 if version == 2 else 0 :]
    if b"\0" in data:
        yield "subscriptions_line", "subscriptions holds NUL octets, as after a power cut", True
    elif len(lines) != len(found):
        yield "subscriptions_line", "subscriptions has lines that can't be read or stand there twice", True
    known = {*there}
    missing = ["/".join(levels) for levels in found if levels not in known]
    if missing:
        yield "subscribed_missing", f"subscribed, but not there (clients may still show it): {some(missing)}", False


def listing_problems(directory: bytes, cur: set[bytes], new: set[bytes]) -> Iterator[Problem]:
    """Names in `cur/` and `new/`: one base twice, names no uidlist can hold, what is no file."""
    bases = Counter(names.base_of(name) for name in cur)
    bases.update(names.base_of(name) for name in new)
    twice = [os.fsdecode(base) for base, count in bases.items() if count > 1]
    if twice:
        yield "base_twice", f"two files are one message by their names: {some(twice)}", True
    unusable = [repr(n) for n in cur | new if b"\n" in n or b"\r" in n or not names.base_of(n)]
    if unusable:
        yield "file_name_unusable", f"files whose names can't be messages are left alone: {some(unusable)}", True
    foreign = []
    for part, there in ((b"cur", cur), (b"new", new)):
        if not there:
            continue
        with os.scandir(os.path.join(directory, part)) as entries:
            foreign += [os.fsdecode(e.name) for e in entries if e.name in there and not e.is_file()]
    if foreign:
        yield "not_a_message_file", f"in cur/ or new/, but no files: {some(foreign)}", True


def tmp_problems(directory: bytes) -> Iterator[Problem]:
    """Files that deliveries left behind."""
    before = time.time() - TMP_S
    try:
        with os.scandir(os.path.join(directory, b"tmp")) as entries:
            old = [os.fsdecode(e.name) for e in entries if e.stat(follow_symlinks=False).st_mtime < before]
    except FileNotFoundError:
        yield "tmp_missing", "there is no tmp/; it is made at the next access", False
        return
    if old:
        yield "tmp_old", f"deliveries that never ended are in tmp/ for more than 36 hours: {some(sorted(old))}", True


def lock_problems(directory: bytes) -> Iterator[Problem]:
    """Lock files that nobody can be holding any more."""
    for name in (b"dovecot-uidlist.lock", b"dovecot-keywords.lock", b"subscriptions.lock"):
        try:
            age = time.time() - os.stat(os.path.join(directory, name)).st_mtime
        except FileNotFoundError:
            continue
        if age > _LOCK_S:
            text = (
                f"{os.fsdecode(name)} is {age:.0f} s old: whoever made it is gone, it is taken over at the next access"
            )
            yield "lock_old", text, False


def true_sizes(path: bytes) -> tuple[int, int, str]:
    """Octets of the message and of its wire form, and how it is packed if that can't be read. Raises OSError."""
    kind = packed_kind(path)
    try:
        if kind in ("gzip", "zstd") and unpacking.is_whole(path):
            kind = ""
        return *sizes(path), kind
    except unpacking.Missing:
        return 0, 0, "zstd"


def packed_kind(path: bytes) -> str:
    """How the file is compressed or encrypted. Raises OSError."""
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb", buffering=0) as file:
        return packed(file.read(16))


def claimed_sizes(name: bytes, keys: bytes = b"") -> tuple[int | None, int | None]:
    """S and W as the name gives them, else the keys of its uidlist line."""
    disk, wire = names.disk_octets(name), names.wire_octets(name)
    for key in keys.split():
        if key[1:].isdigit():
            disk = int(key[1:]) if disk is None and key[:1] == b"S" else disk
            wire = int(key[1:]) if wire is None and key[:1] == b"W" else wire
    return disk, wire


def is_regular(path: bytes) -> bool:
    try:
        return stat.S_ISREG(os.stat(path, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False
