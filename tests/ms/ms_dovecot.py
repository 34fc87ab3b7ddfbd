"""A real Dovecot on a Maildir: its imap process, preauthenticated, spoken to over pipes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

DOVEADM = shutil.which("doveadm")
_FETCHED = re.compile(r"\* \d+ FETCH \(UID (\d+) FLAGS \(([^)]*)\)")
# Dovecot refuses mail access to root: another user, but one who may open root's files (access() too: the secure bit).
_AS_NOBODY = [
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--securebits=+no_setuid_fixup"),
    *("--inh-caps=+dac_override,+fowner,+chown", "--ambient-caps=+dac_override,+fowner,+chown"),
]
_CONFIG = """
base_dir = {work}/run
state_dir = {work}/state
log_path = /dev/stderr
protocols = imap
ssl = no
mail_location = maildir:{mail}
first_valid_uid = 0
first_valid_gid = 0
namespace inbox {{
  inbox = yes
}}
"""


class Dovecot:
    """Runs IMAP commands on the Maildir `mail`; keeps what it logged."""

    def __init__(self, work: Path, mail: Path) -> None:
        self.work = work
        self.complaints: list[str] = []
        for part in ("run", "state", "home"):
            (work / part).mkdir(parents=True, exist_ok=True)
        self.config = work / "dovecot.conf"
        self.config.write_text(_CONFIG.format(work=work, mail=mail))

    def imap(self, *commands: str) -> str:
        """Send the commands, each tagged, and LOGOUT; all that came back."""
        assert DOVEADM
        argv = [*(_AS_NOBODY if os.getuid() == 0 else []), DOVEADM, "-c", str(self.config), "exec", "imap"]
        env = {"USER": "someone", "HOME": str(self.work / "home"), "PATH": os.environ.get("PATH", "")}
        out = ""
        with (
            tempfile.TemporaryFile() as complaints,
            subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, env=env
            ) as process,
        ):
            assert process.stdin
            assert process.stdout
            for number, command in enumerate([*commands, "LOGOUT"]):  # one by one: pipelined changes are not synced
                process.stdin.write(f"t{number} {command}\r\n".encode())
                process.stdin.flush()
                for line in process.stdout:
                    out += line.decode("utf-8", "replace")
                    if line.startswith(b"t%d " % number):
                        break
            process.stdin.close()
            process.wait(30)
            complaints.seek(0)
            log = complaints.read().decode("utf-8", "replace")
        self.complaints += [line for line in log.splitlines() if re.search(r"Error|Warning|Fatal|Panic", line)]
        refused = re.findall(r"^t\d+ (?:NO|BAD) .*$", out, re.MULTILINE)
        assert not refused, (refused, log)
        assert f"t{len(commands)} OK" in out, (out, log)
        return out

    def append(self, mailbox: str, flags: str, message: str) -> None:
        octets = message.replace("\n", "\r\n")
        self.imap(f'APPEND "{mailbox}" ({flags}) {{{len(octets)}+}}\r\n{octets}')

    def messages(self, mailbox: str) -> dict[int, frozenset[str]]:
        """UIDs and their flags, without \\Recent."""
        out = self.imap(f'EXAMINE "{mailbox}"', "UID FETCH 1:* (UID FLAGS)")
        return {int(uid): frozenset(flags.split()) - {"\\Recent"} for uid, flags in _FETCHED.findall(out)}

    def uidvalidity(self, mailbox: str) -> int:
        found = re.search(r"UIDVALIDITY (\d+)", self.imap(f'STATUS "{mailbox}" (UIDVALIDITY)'))
        assert found
        return int(found[1])

    def subscribed(self) -> set[str]:
        return set(re.findall(r'^\* LSUB \([^)]*\) "." "?([^"\r\n]*)"?', self.imap('LSUB "" "*"'), re.MULTILINE))

    def mailboxes(self) -> set[str]:
        out = self.imap('LIST "" "*"')
        found = re.findall(r'^\* LIST \(([^)]*)\) "." "?([^"\r\n]*)"?', out, re.MULTILINE)
        return {name for attributes, name in found if "\\No" not in attributes.replace("\\NoInferiors", "")}
