"""ENVELOPE, BODYSTRUCTURE, BODY and BODY[section] of a corpus against a real Dovecot."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from imap_grammar import Reader, read_body, read_envelope
from mime_corpus import corpus, wire

from pymx.mail.mime import Part, parse
from pymx.proto.imap.bodystructure import bodystructure
from pymx.proto.imap.envelope import envelope
from pymx.proto.imap.section import Section, extract

NOBODY = 65534
DOVEADM = shutil.which("doveadm")

_NOT = "BODY.PEEK[HEADER.FIELDS.NOT (Subject From content-type X-None)]"
_DELIMITER = (
    "the line end before a delimiter is the delimiter's (RFC 2046 s. 5.1.1); Dovecot keeps it after an inner close"
)
_BLANK = "the blank line is there for each choice of fields; Dovecot leaves it out of an empty HEADER.FIELDS.NOT only"
# Where the answers differ on purpose: name of the message, what differs, and why.
DEVIATIONS: dict[tuple[str, str], str] = {
    ("header: dots and spaces", "envelope"): "obs-local-part allows white space around dots (RFC 5322 s. 4.4)",
    ("header: trailing comma", "envelope"): "obs-addr-list allows empty members (RFC 5322 s. 4.4)",
    ("header: semicolons", "envelope"): "broken, but all addresses are worth showing",
    ("header: control", "envelope"): "broken, but the address is worth showing",
    ("header: comment behind angle", "envelope"): "a comment behind the address names its owner there too",
    ("whole: prefix boundaries", "BODY.PEEK[1]"): _DELIMITER,
    ("whole: prefix boundaries reversed", "BODY.PEEK[1]"): _DELIMITER,
    ("whole: no body", _NOT): _BLANK,
    ("whole: no line end", _NOT): _BLANK,
}


@pytest.fixture(scope="module")
def dovecot_home() -> Iterator[Path]:
    """A home with a Maildir of the corpus, owned by whoever will run Dovecot's imap."""
    home = Path(tempfile.mkdtemp(prefix="pymx-oracle-"))
    uid, gid = _who()
    try:
        for name in ("cur", "new", "tmp"):
            (home / "Maildir" / name).mkdir(parents=True)
        for number, message in enumerate(corpus().values()):
            (home / "Maildir" / "cur" / f"{1000 + number}.{number}.host:2,S").write_bytes(message)
        (home / "dovecot.conf").write_text(
            f"base_dir = {home}/run\nstate_dir = {home}/run\nlog_path = {home}/log\nprotocols = imap\nssl = no\n"
            f"listen = 127.0.0.1\nmail_location = maildir:{home}/Maildir\nmail_home = {home}\nfirst_valid_uid = 0\n"
            f"mail_uid = {uid}\nmail_gid = {gid}\nmail_access_groups =\nmail_privileged_group =\n"
        )
        for path in (home, *home.rglob("*")):
            os.chown(path, uid, gid)
        yield home
    finally:
        shutil.rmtree(home)


def _who() -> tuple[int, int]:
    return (NOBODY, NOBODY) if os.getuid() == 0 else (os.getuid(), os.getgid())


def _imap(home: Path, commands: list[bytes]) -> bytes:
    """What Dovecot's imap says on a connection that is logged in already."""
    assert DOVEADM is not None
    uid, gid = _who()
    become = {"user": uid, "group": gid, "extra_groups": []} if os.getuid() == 0 else {}
    script = b"".join(b"a%d %b\r\n" % (n, c) for n, c in enumerate([b"EXAMINE INBOX", *commands, b"LOGOUT"]))
    process = subprocess.Popen(
        [DOVEADM, "-c", str(home / "dovecot.conf"), "exec", "imap"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"USER": "oracle", "HOME": str(home), "PATH": os.environ["PATH"]},
        **become,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    killer = threading.Timer(60, process.kill)
    killer.start()
    try:
        # its input stays open until it has ended: Dovecot cuts its answers short when it reads an end of file
        writer = threading.Thread(target=lambda: (process.stdin.write(script), process.stdin.flush()))
        writer.start()
        output = process.stdout.read()
        writer.join()
    finally:
        killer.cancel()
        for pipe in (process.stdin, process.stdout):
            pipe.close()
        process.wait()
    assert b"BYE Logging out" in output, (
        output[-2000:],
        (home / "log").read_text() if (home / "log").exists() else "",
    )
    return output


needs_dovecot = pytest.mark.skipif(DOVEADM is None, reason="Dovecot (doveadm) is not installed")


def _like_dovecot_text(value):
    """White space inside texts is left alone by us and squeezed by Dovecot."""
    return None if value is None else b" ".join(value.split())


def _shown(key, ours, theirs) -> str:
    """The two answers from shortly before where they part."""
    a, b = repr(_comparable(ours)), repr(_comparable(theirs))
    same = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), 0)
    start = max(same - 60, 0)
    return f"{key}\n  ours   …{a[start : same + 120]}\n  theirs …{b[start : same + 120]}"


def _comparable(value):
    if isinstance(value, dict):
        return {key: _comparable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_comparable(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_comparable(item) for item in value)
    return _like_dovecot_text(value) if isinstance(value, bytes) else value


@needs_dovecot
def test_envelope_and_structure_are_those_of_dovecot(dovecot_home: Path) -> None:
    """RFC 3501 s. 7.4.2, with Dovecot as the oracle."""
    output = _imap(dovecot_home, [b"FETCH 1:* (ENVELOPE BODYSTRUCTURE BODY)"])
    differences = {}
    seen = 0
    for number, (name, message) in enumerate(corpus().items(), 1):
        reader = Reader(output)
        reader.at = output.index(b"* %d FETCH (" % number)
        reader.take(b"* %d FETCH (ENVELOPE " % number)
        theirs = {"envelope": reader.envelope()}
        reader.take(b" BODYSTRUCTURE ")
        theirs["bodystructure"] = reader.body(extended=True)
        reader.take(b" BODY ")
        theirs["body"] = reader.body(extended=False)
        part = parse(wire(message))
        header = wire(message)[: part.body_start]
        ours = {
            "envelope": read_envelope(envelope(header)),
            "bodystructure": read_body(bodystructure(part, extended=True), extended=True),
            "body": read_body(bodystructure(part, extended=False), extended=False),
        }
        for item, value in ours.items():
            if _comparable(value) != _comparable(theirs[item]):
                differences[name, item] = (value, theirs[item])
        seen += 1
    assert seen >= 100
    unexpected = {key: value for key, value in differences.items() if key not in DEVIATIONS}
    assert not unexpected, "\n".join(_shown(key, *values) for key, values in unexpected.items())
    listed = {key for key in DEVIATIONS if not key[1].startswith("BODY.")}
    assert listed <= set(differences), "a deviation is listed that is none"


def _paths(part: Part, prefix: tuple[int, ...], *, message: bool) -> Iterator[tuple[int, ...]]:
    """The numbers of all parts, as BODYSTRUCTURE implies them."""
    if part.type == b"multipart":
        for number, child in enumerate(part.children, 1):
            yield (*prefix, number)
            if child.type == b"multipart":
                yield from _paths(child, (*prefix, number), message=False)
            elif child.message is not None:
                yield from _paths(child.message, (*prefix, number), message=True)
    elif message:
        yield (*prefix, 1)
        if part.message is not None:
            yield from _paths(part.message, (*prefix, 1), message=True)


def _sections(message: bytes) -> list[Section]:
    some = (b"Subject", b"From", b"content-type", b"X-None")
    sections = [Section(), Section((), "HEADER"), Section((), "TEXT")]
    sections += [Section((), "HEADER.FIELDS", some), Section((), "HEADER.FIELDS.NOT", some)]
    for path in _paths(parse(message), (), message=True):
        sections += [Section(path), Section(path, "MIME")]
        if extract(message, Section(path, "HEADER")) is not None:
            sections += [Section(path, "HEADER"), Section(path, "TEXT"), Section(path, "HEADER.FIELDS", some)]
    return sections


def _text(section: Section) -> bytes:
    numbers = b".".join(b"%d" % number for number in section.path)
    text = numbers + (b"." if numbers and section.text else b"") + section.text.encode()
    return b"BODY.PEEK[%b%b]" % (text, b" (%b)" % b" ".join(section.fields) if section.fields else b"")


@needs_dovecot
def test_sections_are_those_of_dovecot(dovecot_home: Path) -> None:
    """RFC 3501 s. 6.4.5: the same octets for every part of every message."""
    messages = {name: wire(message) for name, message in corpus().items()}
    wanted = {name: _sections(message) for name, message in messages.items()}
    commands = [
        b"FETCH %d (%b)" % (number, b" ".join(_text(s) for s in wanted[name]))
        for number, name in enumerate(messages, 1)
    ]
    output = _imap(dovecot_home, commands)
    differences = {}
    compared = 0
    reader = Reader(output)
    for number, (name, message) in enumerate(messages.items(), 1):
        # anywhere: Dovecot works on several commands at once when its output has to wait
        reader.at = output.index(b"\r\n* %d FETCH (" % number) + 2
        reader.take(b"* %d FETCH (" % number)
        for section in wanted[name]:
            label = re.compile(rb" ?BODY\[[^\]]*\] ").match(output, reader.at)
            assert label is not None
            reader.at = label.end()
            theirs = reader.nstring()
            ours = extract(message, section)
            compared += 1
            if ours != theirs:
                differences[name, _text(section).decode()] = (ours, theirs)
    unexpected = {key: value for key, value in differences.items() if key not in DEVIATIONS}
    assert not unexpected, "\n".join(map(str, unexpected.items()))
    assert {key for key in DEVIATIONS if key[1].startswith("BODY.")} <= set(differences)
    assert compared > 500
