"""mbsync, a client that keeps a copy of an account and would notice if UIDs or UIDVALIDITY were others than before."""

from __future__ import annotations

import subprocess
import textwrap
from dataclasses import dataclass
from pathlib import Path

from support.programs import require


@dataclass
class Mbsync:
    """A client's own copy of an account."""

    user: str  # the whole login name
    password: str
    port: int  # with implicit TLS
    ca_file: Path
    directory: Path

    def __post_init__(self) -> None:
        require("mbsync", "isync")
        self.directory.mkdir()
        (self.directory / "mail").mkdir()
        (self.directory / "mbsyncrc").write_text(
            textwrap.dedent(f"""\
            IMAPStore remote
            Host localhost
            Port {self.port}
            User {self.user}
            Pass {self.password}
            SSLType IMAPS
            CertificateFile {self.ca_file}

            MaildirStore local
            Path {self.directory}/mail/
            Inbox {self.directory}/mail/INBOX
            SubFolders Verbatim

            Channel all
            Far :remote:
            Near :local:
            Patterns *
            Create Near
            Expunge Near
            SyncState *
            """)
        )

    def pull(self) -> None:
        done = subprocess.run(
            ["mbsync", "-c", str(self.directory / "mbsyncrc"), "--pull", "all"],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "UIDVALIDITY" not in done.stderr, done.stderr

    def files(self) -> dict[str, tuple[int, int]]:
        """Every message that was downloaded: name (with flags), inode, time."""
        found = {}
        for path in (self.directory / "mail").rglob("*"):
            if path.parent.name in ("cur", "new"):
                facts = path.stat()
                found[str(path.relative_to(self.directory))] = (facts.st_ino, facts.st_mtime_ns)
        return found
