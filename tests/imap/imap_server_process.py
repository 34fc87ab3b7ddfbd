"""The server of `imap_rig` as a process of its own, so that its memory is its own.

Arguments: DIRECTORY CERTIFICATE KEY CA [RUNTIME].

Prints the port with TLS, and ends with its standard input.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvloop
from imap_rig import running
from support.tls import TlsFiles


async def serve(directory: Path, certificate: Path, key: Path, ca: Path, runtime: Path | None = None) -> None:
    async with running(directory, TlsFiles(certificate, key, ca), runtime_dir=runtime) as rig:
        print(rig.port, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(serve(*(Path(argument) for argument in sys.argv[1:])))
