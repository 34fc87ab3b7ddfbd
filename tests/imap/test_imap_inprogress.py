"""INPROGRESS (RFC 9585): a client learns that a long command is still being worked on."""

from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path

from imap_rig import running
from support.tls import TlsFiles
from support.wait import wait_until

from pymx.imapd.session import IN_PROGRESS_S, Session

MESSAGE = b"From: a@example.test\r\nSubject: hello\r\n\r\nText\r\n"


async def test_long_command_tells_that_it_goes_on(tmp_path: Path, tls_files: TlsFiles) -> None:
    """RFC 9585 s. 3: untagged OK with the command's tag; before that and after it, nothing."""
    async with running(tmp_path, tls_files) as rig:
        await rig.deliver(MESSAGE)
        client = await rig.select()
        lock = os.open(tmp_path / "mail" / "example.test" / "alice" / "pymx.lock", os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            client.send(b"s1 STORE 1 +FLAGS.SILENT (\\Flagged)\r\n")
            (session,) = (each for each in rig.sessions if isinstance(each, Session))
            await wait_until(lambda: session.busy)
            now = asyncio.get_running_loop().time()
            session.sweep(now + IN_PROGRESS_S / 2)
            session.sweep(now + IN_PROGRESS_S + 1)
            session.sweep(now + IN_PROGRESS_S + 2)
            assert await client.line() == b'* OK [INPROGRESS ("s1" NIL NIL)] Still working on it.'
        finally:
            os.close(lock)
        assert await client.answer("s1") == [b"OK Store completed."]
        session.sweep(asyncio.get_running_loop().time() + IN_PROGRESS_S + 1)
        assert await client.ok("NOOP") == [b"OK NOOP completed."]
        await client.close()
