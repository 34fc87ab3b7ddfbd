"""What it costs to read MIME structure, render ENVELOPE and BODYSTRUCTURE, cut a section, and search.

Run: `.venv/bin/python benchmarks/mime_render.py`. CPU time of one core, the best of several rounds.
"""

from __future__ import annotations

import base64
import random
import time
from collections.abc import Callable, Iterable, Sequence

from pymx.mail.header import split_head
from pymx.mail.mime import parse
from pymx.mail.search import Criterion, Header, Text
from pymx.ms.search import run
from pymx.proto.imap.render import render
from pymx.proto.imap.section import Section, extract

ROUNDS = 7
WORDS = ["the", "of", "and", "to", "in", "a", "is", "that", "for", "it", "as", "was", "with", "be", "by", "from"]


def text(rng: random.Random, octets: int) -> str:
    lines: list[str] = []
    while sum(map(len, lines)) < octets:
        lines.append(" ".join(rng.choices(WORDS, k=14)))
    return "\r\n".join(lines) + "\r\n"


def message(rng: random.Random, octets: int, *, html: bool = False, attachment: bool = False) -> bytes:
    """A message as mail programs write it, of about `octets`, with six folded and nine other fields."""
    people = ", ".join(f"Person Number{n} <person{n}@example.net>" for n in range(rng.randint(1, 5)))
    head = (
        "Return-Path: <ann@example.org>\r\nDelivered-To: bob@example.net\r\n"
        "Received: from mx.example.org (mx.example.org [192.0.2.1])\r\n"
        "\tby mx.example.net with ESMTPS id 0123456789\r\n\tfor <bob@example.net>; Tue, 24 Nov 2026 10:00:00 +0000\r\n"
        f"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.org; s=x;\r\n\tb={'A' * 340}\r\n"
        f"From: Ann Example <ann@example.org>\r\nTo: {people}\r\nSubject: {' '.join(rng.choices(WORDS, k=6))}\r\n"
        "Date: Tue, 24 Nov 2026 10:00:00 +0000\r\nMessage-ID: <0123456789abcdef@example.org>\r\n"
        "In-Reply-To: <abcdef@example.net>\r\nReferences: <a@example.net>\r\n <b@example.net>\r\n"
        "X-Mailer: Mailer 1.0\r\nMIME-Version: 1.0\r\n"
    )
    if not html and not attachment:
        return f"{head}Content-Type: text/plain; charset=utf-8\r\n\r\n{text(rng, octets - len(head))}".encode()
    body = text(rng, min(octets // 2, 20_000))
    parts = f"--b\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n{body}\r\n"
    if html:
        paragraphs = body.replace("\r\n", "</p>\r\n<p>")
        parts += f"--b\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<html><p>{paragraphs}</p></html>\r\n"
    if attachment:
        blob = base64.encodebytes(rng.randbytes(max(octets - len(head) - len(parts), 100) * 3 // 4)).decode()
        blob = blob.replace("\n", "\r\n")
        parts += (
            '--b\r\nContent-Type: application/pdf; name="report.pdf"\r\nContent-Transfer-Encoding: base64\r\n'
            f'Content-Disposition: attachment; filename="report.pdf"\r\n\r\n{blob}\r\n'
        )
    return f'{head}Content-Type: multipart/mixed; boundary="b"\r\n\r\n{parts}--b--\r\n'.encode()


def microseconds(function: Callable[[bytes], object], messages: Sequence[bytes]) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.process_time()
        for one in messages:
            function(one)
        best = min(best, time.process_time() - started)
    return best / len(messages) * 1e6


class View:
    """Messages in memory, as search wants them."""

    def __init__(self, messages: Sequence[bytes]) -> None:
        self.messages = messages
        self.headers = [split_head(one)[0] for one in messages]
        self.uids = range(1, len(messages) + 1)
        self.first_recent = 0xFFFFFFFF

    def rows(self, uids: Sequence[int]) -> Iterable[tuple[int, ...]]:
        return ((uid, uid, 0, 0, len(self.messages[uid - 1]), 0, 0) for uid in uids)

    def header(self, uid: int) -> bytes | None:
        return self.headers[uid - 1]

    def message(self, uid: int) -> bytes | None:
        return self.messages[uid - 1]

    def keyword_bit(self, name: str) -> int | None:
        return None


def main() -> None:
    rng = random.Random(1)
    sets = {
        "4 KB text": [message(rng, 4096) for _ in range(300)],
        "4 KB text+html": [message(rng, 4096, html=True) for _ in range(300)],
        "50 KB attachment": [message(rng, 50_000, attachment=True) for _ in range(50)],
        "1 MB attachment": [message(rng, 1_000_000, attachment=True) for _ in range(5)],
        "10 MB attachment": [message(rng, 10_000_000, attachment=True)],
        "1 MB of LF--": [b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"\n--" * 350_000],
        "5,000 parts": [b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\nx\r\n" * 5000],
        "5,000 addresses": [b"To: " + b"Ann Example <a@b.example>, " * 5000 + b"x@y\r\n\r\n"],
        "1 MB of parens": [b"To: " + b"(" * 1_000_000],
        "500 levels": [b"Content-Type: message/rfc822\r\n\r\n" * 500],
    }
    fields = Section((), "HEADER.FIELDS", (b"From", b"To", b"Subject", b"Date", b"Message-ID"))
    print(f"{'µs per message':18} {'parse':>10} {'render':>10} {'fields':>10} {'BODY[1]':>10}")
    for name, messages in sets.items():
        columns: list[Callable[[bytes], object]] = [
            parse,
            render,
            lambda one: extract(one, fields),
            lambda one: extract(one, Section((1,))),
        ]
        print(f"{name:18} " + " ".join(f"{microseconds(column, messages):10.1f}" for column in columns))
    view = View(sets["4 KB text"] * 5 + sets["4 KB text+html"] * 5)
    criteria: dict[str, Criterion] = {
        "FROM, not found": Header("From", "nobody"),
        "SUBJECT, found": Header("Subject", "the"),
        "BODY, not found": Text("zyzzyva", False),
        "BODY, not ASCII": Text("größe", False),
        "TEXT, not found": Text("zyzzyva", True),
    }
    for name, criterion in criteria.items():
        best = float("inf")
        for _ in range(3):
            started = time.process_time()
            run(criterion, view)
            best = min(best, time.process_time() - started)
        print(f"SEARCH {name:20} {best / len(view.uids) * 1e6:8.1f} µs per message")


if __name__ == "__main__":
    main()
