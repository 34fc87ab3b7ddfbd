"""CPU of one DKIM signature (RSA-2048, relaxed/relaxed), ours and dkimpy's.

    python benchmarks/dkim_sign.py

Prints milliseconds of CPU per message: small messages as they are signed in the event loop, large ones read from the
spool in pieces.
"""

from __future__ import annotations

import base64
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import dkim

from pymx.mailauth.dkim import keys
from pymx.mailauth.dkim.sign import Signer
from pymx.spool import Content, SpoolWriter

HEAD = (
    b"Date: Tue, 24 Nov 2026 10:00:00 +0000\r\nMIME-Version: 1.0\r\nSubject: figures of last week\r\n"
    b"From: Alice Example <alice@example.test>\r\nTo: Bob Example <bob@example.com>\r\n"
    b"Message-ID: <20261124100000.1234@example.test>\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Transfer-Encoding: base64\r\n"
)


def message(octets: int, directory: Path) -> Content:
    body = base64.encodebytes(os.urandom(octets * 3 // 4)).replace(b"\n", b"\r\n")
    writer = SpoolWriter(directory)
    writer.feed(HEAD + b"\r\n" + body)
    return writer.finish()


def milliseconds(function: Callable[[], object], times: int) -> float:
    function()
    started = time.process_time()
    for _ in range(times):
        function()
    return (time.process_time() - started) / times * 1000


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        keys.generate(directory, "example.test", "s")
        pem = (directory / "example.test" / "s.pem").read_bytes()
        signer = Signer(directory)
        print(f"{'octets':>10} {'pymx ms':>9} {'dkimpy ms':>10}")
        for octets, times in ((4096, 500), (51_200, 200), (1_048_576, 20), (10_485_760, 3)):
            content = message(octets, directory)
            whole = content.read()
            ours = milliseconds(lambda content=content: signer.sign("example.test", content), times)
            theirs = milliseconds(
                lambda whole=whole: dkim.sign(whole, b"s", b"example.test", pem, canonicalize=(b"relaxed", b"relaxed")),
                max(1, times // 20),
            )
            print(f"{octets:>10} {ours:>9.3f} {theirs:>10.1f}")


if __name__ == "__main__":
    main()
