"""mutt with QRESYNC: a client we did not write resynchronizes, and its log says how."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest
from imap_rig import Rig
from support.terminal import run_on_terminal

MESSAGE = b"From: a@example.test\r\nSubject: number %d\r\nMessage-ID: <%d@example.test>\r\n\r\nText\r\n"
_SETTINGS = """
set ssl_verify_host=no ssl_verify_dates=no ssl_force_tls=yes
set imap_user=alice@example.test imap_pass=secret
set imap_qresync=yes imap_condstore=yes header_cache={cache}
set quit=yes delete=yes mark_old=no sleep_time=0 timeout=1 mail_check=1
set certificate_file={ca} ssl_ca_certificates_file={ca}
"""


async def _mutt(directory: Path, port: int, keys: str) -> str:
    """Run it once on INBOX with `keys` pressed; what it logged."""
    log = directory / ".muttdebug0"
    log.unlink(missing_ok=True)
    environment = {**os.environ, "HOME": str(directory), "TERM": "xterm", "LC_ALL": "C.UTF-8"}
    await asyncio.to_thread(
        run_on_terminal,
        "mutt", "-n", "-d", "4", "-F", f"{directory}/muttrc",
        "-f", f"imaps://localhost:{port}/INBOX", "-e", f'push "{keys}"',
        env=environment, cwd=directory,
    )  # fmt: skip
    return log.read_text(errors="replace")


@pytest.mark.skipif(not shutil.which("mutt"), reason="needs mutt")
async def test_mutt_resynchronizes_with_qresync(rig: Rig, tmp_path: Path) -> None:
    """RFC 7162 s. 3.2.6: what mutt kept in its header cache is brought up to date by one UID FETCH."""
    home = tmp_path / "mutt"
    for name in ("cache", "Mail"):
        (home / name).mkdir(parents=True)
    (home / "muttrc").write_text(_SETTINGS.format(cache=home / "cache", ca=rig.ca))
    for number in range(5):
        await rig.deliver(MESSAGE % (number, number))
    first = await _mutt(home, rig.port, "<quit>")
    assert "5 EXISTS" in first
    other = await rig.select()
    await other.ok("STORE 2,4 +FLAGS.SILENT (\\Deleted)")
    await other.ok("EXPUNGE")
    await other.ok("STORE 1 +FLAGS.SILENT (\\Flagged)")
    await rig.deliver(MESSAGE % (5, 5))
    second = await _mutt(home, rig.port, "<quit>")
    assert "ENABLE QRESYNC" in second
    assert "* VANISHED (EARLIER) 2,4" in second
    assert "Message UID 1 updated" in second
    assert "msgcount is 4" in second
    await other.close()
