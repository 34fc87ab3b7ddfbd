"""A whole pymx on loopback: its own directory, free ports, a database, and the real commands."""

from __future__ import annotations

import contextlib
import imaplib
import json
import os
import shutil
import signal
import smtplib
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from pymx.net.certificate import write_self_signed
from support.dns_server import DnsServer
from support.mariadb import MariaDb
from support.ports import free_port
from support.sinks import ScriptedRemote
from support.wait import wait_for

READY_S = 30


@dataclass
class Appliance:
    """`extra` is TOML put after the generated sections' keys: {"section": "key = value\\n…"}."""

    database_url: str = ""
    workers: int = 1
    greeting_wait_ms: int = 0
    hostname: str = "mx.example.test"
    extra: dict[str, str] = field(default_factory=dict)
    top: str = ""
    own_certificate: bool = True  # in [tls]; else the server looks after one by itself
    directory: Path = field(init=False)
    python: str = sys.executable
    environment: dict[str, str] | None = None
    wrapper: list[str] = field(default_factory=list)  # a command that starts the server's
    process: subprocess.Popen[str] | None = None
    ports: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Short on purpose: Unix socket paths have 107 octets.
        self.directory = Path(tempfile.mkdtemp(prefix="pymx-"))
        for name in ("smtp", "submissions", "submission", "imaps", "imap", "lmtp"):
            self.ports.setdefault(name, free_port())
        write_self_signed(self.directory / "tls", (self.hostname, "localhost"), address="127.0.0.1")
        (self.directory / "data").mkdir()
        (self.directory / "vmail").mkdir()
        self.database_url = self.database_url or f"sqlite:///{self.directory}/pymx.sqlite"
        self.write_config()

    @property
    def config(self) -> Path:
        return self.directory / "pymx.toml"

    @property
    def log_path(self) -> Path:
        return self.directory / "pymx.log"

    def write_config(self) -> None:
        p = self.ports
        sections = {
            "database": f'url = "{self.database_url}"\n',
            "mail": f'root = "{self.directory}/vmail"\n',
            "accounts": f'postmaster = "alice@{self.domain}"\nbcrypt_cost = 4\n',
            "tls": f'certificate = "{self.directory}/tls/cert.pem"\nprivate_key = "{self.directory}/tls/key.pem"\n'
            if self.own_certificate
            else "",
            "smtp": f'listen = ["127.0.0.1:{p["smtp"]}"]\nmax_connections_per_ip = 400\n'
            f"greeting_wait_ms = {self.greeting_wait_ms}\n",
            "submission": f'listen_tls = ["127.0.0.1:{p["submissions"]}"]\n'
            f'listen_starttls = ["127.0.0.1:{p["submission"]}"]\n',
            "imap": f'listen_tls = ["127.0.0.1:{p["imaps"]}"]\nlisten_starttls = ["127.0.0.1:{p["imap"]}"]\n'
            "max_connections_per_ip = 5000\n",
            "lmtp": f'listen = ["127.0.0.1:{p["lmtp"]}"]\n',
            "control": f'socket = "{self.directory}/run/control.sock"\n',
            "checks": "timeout_s = 2\n",  # a machine without DNS is not waited for
            # the tests are one address and in a hurry
            "limits": ""
            if "limits" in self.extra
            else "connections_per_minute = 0\nmessages_per_hour = 0\nrecipients_per_hour = 0\n"
            "unknown_recipients_per_hour = 0\naccount_messages_per_day = 0\naccount_new_recipients_per_day = 0\n"
            "slow_max_s = 1\n",
            "log": 'level = "debug"\n',
        }
        text = f'hostname = "{self.hostname}"\ndata_dir = "{self.directory}/data"\nuser = "none"\n'
        text += f"workers = {self.workers}\n{self.top}\n"
        for name in [*sections, *(n for n in self.extra if n not in sections)]:
            text += f"[{name}]\n{sections.get(name, '')}{self.extra.get(name, '')}\n"
        self.config.write_text(text)

    @property
    def domain(self) -> str:
        return self.hostname.partition(".")[2]

    def ctl(self, *arguments: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """The real pymxctl command."""
        done = subprocess.run(
            [str(Path(sys.executable).parent / "pymxctl"), "--config", str(self.config), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if check and done.returncode:
            raise AssertionError(f"pymxctl {arguments}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def ctl_json(self, *arguments: str) -> Any:
        return json.loads(self.ctl(*arguments, "--json").stdout)

    def add_user(self, email: str, password: str = "secret") -> None:
        self.ctl("user", "add", email, "--password-stdin", stdin=password + "\n")

    def populate(self, users: tuple[str, ...] = ("alice", "bob")) -> None:
        self.ctl("domain", "add", self.domain)
        for user in users:
            self.add_user(f"{user}@{self.domain}")

    @contextlib.contextmanager
    def serving(self, users: tuple[str, ...]) -> Iterator[Appliance]:
        """Running, with these users, for the length of the block; then it has to end by SIGTERM with status 0."""
        try:
            self.populate(users)
            self.start()
            yield self
            assert self.stop() == 0
        finally:
            self.remove()

    def start(self) -> Appliance:
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.wrapper, self.python, "-m", "pymx", "serve", "--config", str(self.config)],
                stdout=subprocess.PIPE,
                stderr=log,
                env=self.environment,
                text=True,
                start_new_session=True,
            )
        assert self.process.stdout is not None
        killer = threading.Timer(READY_S, self.process.kill)
        killer.start()
        try:
            for line in self.process.stdout:
                if line.strip() == "ready":
                    return self
        finally:
            killer.cancel()
        self.kill()
        raise AssertionError(f"pymx did not start:\n{self.log()[-4000:]}")

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        if self.process is None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"pymx did not end on SIGTERM:\n{self.log()[-4000:]}") from None
        if self.process.stdout:
            self.process.stdout.close()
        self.process = None
        return status

    def kill(self) -> None:
        """kill -9 for the server and all its children."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()
        self.process = None

    def log(self) -> str:
        """What stands in the log by now, and what is being written: lines gather for 20 ms."""
        time.sleep(0.05)
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    # Clients we did not write.

    @property
    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.directory / "tls" / "cert.pem"))

    @contextlib.contextmanager
    def imap(self, user: str, password: str = "secret") -> Iterator[imaplib.IMAP4_SSL]:
        client = imaplib.IMAP4_SSL("localhost", self.ports["imaps"], ssl_context=self.tls, timeout=30)
        try:
            client.login(self.address(user), password)
            yield client
        finally:
            try:
                client.logout()
            except (OSError, imaplib.IMAP4.error):
                client.shutdown()  # the connection was already gone

    def address(self, user: str) -> str:
        return user if "@" in user else f"{user}@{self.domain}"

    def submit(self, user: str, to: str, subject: str, body: str = "hello\n", password: str = "secret") -> EmailMessage:
        """A message from `user` through port 465."""
        message = EmailMessage()
        message["From"] = self.address(user)
        message["To"] = to
        message["Subject"] = subject
        message.set_content(body)
        with smtplib.SMTP_SSL("localhost", self.ports["submissions"], context=self.tls, timeout=30) as client:
            client.login(self.address(user), password)
            client.send_message(message)
        return message

    def subjects(self, user: str, mailbox: str = "INBOX", password: str = "secret") -> list[str]:
        """The Subject of every message in a mailbox, in UID order."""
        with self.imap(user, password) as client:
            status, data = client.select(f'"{mailbox}"', readonly=True)
            assert status == "OK", data
            if data[0] == b"0":
                return []
            _, fetched = client.fetch("1:*", "(BODY.PEEK[HEADER.FIELDS (SUBJECT)])")
            return [
                part[1].decode().strip().removeprefix("Subject:").strip() for part in fetched if isinstance(part, tuple)
            ]

    def wait_for_subject(self, user: str, subject: str, mailbox: str = "INBOX", timeout_s: float = 15) -> None:
        wait_for(
            lambda: subject in self.subjects(user, mailbox),
            timeout_s=timeout_s,
            what=f"{subject!r} in {user}'s {mailbox}",
        )


@dataclass
class Site(Appliance):
    """A running appliance with a remote mail exchanger (for remote.test) and a name server of its own."""

    remote: ScriptedRemote | None = None
    dns: DnsServer | None = None
    mariadb: MariaDb | None = None
