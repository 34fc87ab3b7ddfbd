"""A private Dovecot that opens a Maildir of ours, and writes one for us: the other implementation in round trips.

`dovecot.imap(maildir)` is an imaplib client on a preauthenticated `imap` process over its standard input and output:
no login, no ports. `dovecot.doveadm(maildir, …)` runs one doveadm command. `dovecot.serve(root)` starts a whole
server with IMAP and LMTP on ports of its own. `dovecot.errors()` is what its log complains about.

Dovecot refuses to read mail as root. A test that runs as root starts it in a user namespace in which root's files
belong to an ordinary user; where the kernel forbids that, as nobody after handing the files over to it.
"""

from __future__ import annotations

import contextlib
import grp
import imaplib
import os
import pwd
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.ports import answers, free_port
from support.programs import find, require, tail
from support.wait import wait_for

_NOBODY = 65534
_PASSWORD = "geheim"
# complaints about Dovecot's own services that a lone imap process does without
_HARMLESS = ("stats-writer", "anvil", "Warning: fcntl", "stats: ")


@dataclass(frozen=True, slots=True)
class DovecotPorts:
    """Of a running server; users are anybody, the password is `geheim`."""

    imap: int
    lmtp: int
    password: str = _PASSWORD
    config: Path = Path()


class Dovecot:
    """Everything of it but its sockets lies under `directory`."""

    def __init__(self, directory: Path) -> None:
        require("dovecot", "dovecot-imapd")
        self._imap = require("imap", "dovecot-imapd")
        self._doveadm = require("doveadm", "dovecot-imapd")
        directory.mkdir(parents=True)
        self._directory = directory
        # a socket's path has at most 107 octets, pytest's directories may be longer
        self._short = tempfile.TemporaryDirectory(prefix="pymx-dc-")
        self.log = directory / "dovecot.log"
        self._clients: list[imaplib.IMAP4] = []
        self._servers: list[subprocess.Popen[bytes]] = []
        self._prefix, self._hand_over = _become_ordinary()

    def _config(self, name: str, text: str) -> Path:
        run = Path(self._short.name) / name
        run.mkdir(exist_ok=True)
        path = self._directory / f"{name}.conf"
        path.write_text(f"base_dir = {run}\nstate_dir = {run}\nlog_path = {self.log}\nssl = no\n{text}")
        return path

    def _maildir_config(self, maildir: Path, extra: str) -> Path:
        return self._config(
            "maildir",
            f"""mail_location = maildir:{maildir}
first_valid_uid = 1
mail_fsync = optimized
namespace inbox {{
  inbox = yes
}}
{extra}
""",
        )

    def _command(self, maildir: Path, *arguments: str) -> list[str]:
        if self._hand_over:
            _give_to_nobody(maildir, self._directory, Path(self._short.name))
        environment = [f"HOME={maildir.parent}", "USER=alice", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
        return [*self._prefix, "env", "-i", *environment, *arguments]

    def config_file(self, maildir: Path, *, extra: str = "") -> Path:
        """The configuration of the commands on that account."""
        return self._maildir_config(maildir, extra)

    def command(self, maildir: Path, program: str) -> list[str]:
        """How to run a program of Dovecot's as the user that this one runs as."""
        return self._command(maildir, require(program, "dovecot-imapd"))

    def imap_command(self, maildir: Path, *, extra: str = "") -> str:
        """A shell command that speaks IMAP on its standard input and output, logged in to that account."""
        command = self._command(maildir, self._imap, "-c", str(self._maildir_config(maildir, extra)))
        return f"exec {shlex.join(command)} 2>>{shlex.quote(str(self.log))}"

    def imap(self, maildir: Path, *, extra: str = "") -> imaplib.IMAP4:
        """A client that is logged in to the account whose root is `maildir` (made if missing); `extra` is config."""
        maildir.mkdir(parents=True, exist_ok=True)
        client = imaplib.IMAP4_stream(self.imap_command(maildir, extra=extra))
        self._clients.append(client)
        return client

    @contextlib.contextmanager
    def session(self, maildir: Path, mailbox: str = "INBOX", *, extra: str = "") -> Iterator[imaplib.IMAP4]:
        """`imap` with the mailbox selected, logged out in the end (so that Dovecot has written everything)."""
        client = self.imap(maildir, extra=extra)
        status, data = client.select(mailbox)
        if status != "OK":
            raise AssertionError(f"Dovecot refuses {mailbox}: {data!r}; {tail(self.log)}")
        try:
            yield client
        finally:
            self._clients.remove(client)
            client.logout()

    def doveadm(self, maildir: Path, *arguments: str, extra: str = "") -> str:
        """Output of one doveadm command on that account, such as `("mailbox", "status", "uidnext", "INBOX")`."""
        maildir.mkdir(parents=True, exist_ok=True)
        config = self._maildir_config(maildir, extra)
        done = subprocess.run(
            self._command(maildir, self._doveadm, "-c", str(config), *arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode:
            raise AssertionError(f"doveadm {shlex.join(arguments)}: {done.returncode} {done.stderr}{tail(self.log)}")
        return done.stdout

    def serve(self, root: Path, *, users: Sequence[str] = ()) -> DovecotPorts:
        """A whole server for `<root>/<domain>/<local-part>`; any user, password `geheim`, no TLS.

        With `users` there are only these, and doveadm with the configuration of the ports goes through all (-A, -u ?*).
        """
        root.mkdir(parents=True, exist_ok=True)
        imap, lmtp = free_port(), free_port()
        user = pwd.getpwuid(os.getuid() or _NOBODY)
        group = grp.getgrgid(user.pw_gid).gr_name
        userdb = f"driver = static\n  args = uid={user.pw_uid} gid={user.pw_gid} home={root}/%d/%n allow_all_users=yes"
        if users:
            listed = self._directory / f"users{len(self._servers)}"
            listed.write_text("".join(f"{name}:::::{root}/{_home(name)}::\n" for name in users))
            userdb = f"driver = passwd-file\n  args = {listed}\n  default_fields = uid={user.pw_uid} gid={user.pw_gid}"
        config = self._config(
            f"server{len(self._servers)}",
            f"""protocols = imap lmtp
listen = 127.0.0.1
disable_plaintext_auth = no
mail_location = maildir:{root}/%d/%n
first_valid_uid = 1
default_internal_user = {user.pw_name}
default_internal_group = {group}
default_login_user = {user.pw_name}
namespace inbox {{
  inbox = yes
}}
passdb {{
  driver = static
  args = password={_PASSWORD}
}}
userdb {{
  {userdb}
}}
service anvil {{
  chroot =
}}
service stats {{
  chroot =
}}
service imap-login {{
  chroot =
  inet_listener imap {{
    port = {imap}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service lmtp {{
  inet_listener lmtp {{
    port = {lmtp}
  }}
}}
""",
        )
        if self._hand_over:
            _give_to_nobody(root, self._directory, Path(self._short.name))
        with self.log.open("ab") as stderr:
            process = subprocess.Popen(
                [*self._prefix, require("dovecot", "dovecot-imapd"), "-F", "-c", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        self._servers.append(process)

        def ready() -> bool:
            if process.poll() is not None:
                raise AssertionError(f"dovecot ended with status {process.returncode}: {tail(self.log)}")
            return answers(imap) and answers(lmtp)

        wait_for(ready, what="dovecot listens")
        return DovecotPorts(imap, lmtp, config=config)

    def errors(self) -> list[str]:
        """Lines of its log that are errors, panics or warnings about the mail."""
        if not self.log.exists():
            return []
        lines = self.log.read_text(errors="replace").splitlines()
        bad = [x for x in lines if any(word in x for word in ("Error:", "Fatal:", "Panic:", "Warning:"))]
        return [x for x in bad if not any(h in x for h in _HARMLESS)]

    def close(self) -> None:
        for client in self._clients:
            with contextlib.suppress(imaplib.IMAP4.error, OSError):
                client.logout()
        for process in self._servers:
            process.terminate()
            process.wait(20)
        self._short.cleanup()


def _home(user: str) -> str:
    local_part, _, domain = user.partition("@")
    return f"{domain}/{local_part}"


def _become_ordinary() -> tuple[list[str], bool]:
    """What to put before a command so that it does not run as root, and whether files must be handed over."""
    if os.geteuid() != 0:
        return [], False
    unshare, setpriv = find("unshare"), find("setpriv")
    if unshare is not None:
        prefix = [unshare, "--user", f"--map-user={_NOBODY}", f"--map-group={_NOBODY}"]
        if subprocess.run([*prefix, "true"], stderr=subprocess.DEVNULL, timeout=10).returncode == 0:
            return prefix, False
    if setpriv is not None:
        return [setpriv, f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"], True
    pytest.skip("MISSING PROGRAM unshare or setpriv: Dovecot does not run as root")


def _give_to_nobody(*trees: Path) -> None:
    for tree in trees:
        for parent in tree.parents:
            if parent.stat().st_uid == 0 and parent.stat().st_mode & 0o011 != 0o011 and parent != Path("/"):
                parent.chmod(parent.stat().st_mode | 0o011)
        for directory, _, files in os.walk(tree):
            shutil.chown(directory, _NOBODY, _NOBODY)
            for name in files:
                os.chown(Path(directory) / name, _NOBODY, _NOBODY, follow_symlinks=False)
