"""A throw-away appliance under ./var: what `make run` starts.

Makes a configuration, a self-signed certificate, a SQLite database, a DKIM key and two accounts (once; later runs find
them), starts `pymx serve` on loopback, has alice submit a message over implicit TLS and shows it arriving at bob's
over IMAP. Then it serves until Ctrl-C. With `--once` it ends after the arrival: status 0, or 1 if the message did not
arrive within 30 seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import imaplib
import io
import os
import secrets
import signal
import smtplib
import ssl
import subprocess
import sys
import tempfile
import time
from email.message import EmailMessage
from pathlib import Path
from types import FrameType

from pymx.admin import ctl
from pymx.net.certificate import write_self_signed

ARRIVAL_S = 30
DOMAIN = "example.test"
USERS = ("alice", "bob")
PORTS = {"smtp": 2525, "submissions": 2465, "submission": 2587, "imaps": 2993}

CONFIG = """\
# A throw-away appliance for trying pymx: loopback only, self-signed certificate.
hostname = "mx.example.test"
data_dir = "{var}/data"
user = "none"
workers = {workers}
[database]
url = "sqlite:///{var}/pymx.sqlite"
[mail]
root = "{var}/vmail"
[accounts]
postmaster = "alice@example.test"
[tls]
certificate = "{var}/tls/cert.pem"
private_key = "{var}/tls/key.pem"
[smtp]
listen = ["127.0.0.1:2525"]
[submission]
listen_tls = ["127.0.0.1:2465"]
listen_starttls = ["127.0.0.1:2587"]
[imap]
listen_tls = ["127.0.0.1:2993"]
[control]
socket = "{run}/control.sock"
"""

# A Unix socket's path has at most 107 octets; the other sockets beside this one have longer names.
_LONGEST_RUN_DIRECTORY = 70


class DemoError(Exception):
    """The appliance could not be made or did not do its work; the text is for the person at the terminal."""


def _pymxctl(config: Path, *arguments: str, stdin: str = "") -> None:
    """One pymxctl command in this process; its output is shown only when it fails."""
    output, old_stdin = io.StringIO(), sys.stdin
    sys.stdin = io.StringIO(stdin)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            status = ctl.main(["--config", str(config), *arguments])
    finally:
        sys.stdin = old_stdin
    if status:
        raise DemoError(f"pymxctl {' '.join(arguments)} failed:\n{output.getvalue()}")


def set_up(var: Path, workers: int) -> tuple[Path, dict[str, str]]:
    """The appliance's files under `var`; what is there stays. Returns (config file, password by user)."""
    config, run_directory = var / "pymx.toml", var / "run"
    if len(os.fsencode(run_directory)) > _LONGEST_RUN_DIRECTORY:
        short = hashlib.sha256(os.fsencode(var)).hexdigest()[:12]
        run_directory = Path(tempfile.gettempdir()) / f"pymx-{os.getuid()}-{short}"
    for directory in (var, var / "data", var / "vmail"):
        directory.mkdir(parents=True, exist_ok=True)
    run_directory.mkdir(mode=0o700, exist_ok=True)
    config.write_text(CONFIG.format(var=var, run=run_directory, workers=workers))
    if not (var / "tls" / "cert.pem").exists():
        write_self_signed(var / "tls", ("mx.example.test", "localhost"), address="127.0.0.1")
    known = var / "users.txt"
    if not known.exists():
        (var / "pymx.sqlite").unlink(missing_ok=True)
        passwords = {user: secrets.token_urlsafe(9) for user in USERS}
        _pymxctl(config, "domain", "add", DOMAIN)
        for user, password in passwords.items():
            _pymxctl(config, "user", "add", f"{user}@{DOMAIN}", "--password-stdin", stdin=password + "\n")
        _pymxctl(config, "dkim", "generate", DOMAIN)
        partial = var / "users.txt.new"
        partial.touch(mode=0o600)
        partial.write_text("".join(f"{user} {password}\n" for user, password in passwords.items()))
        partial.rename(known)
    _pymxctl(config, "migrate")  # of an older version, if `var` was there
    return config, dict(line.split() for line in known.read_text().splitlines())


def start_server(config: Path, log: Path) -> subprocess.Popen[str]:
    """`pymx serve` in a process of its own; returns when it is ready. Raises DemoError with its last words."""
    with log.open("ab") as errors:
        start = errors.tell()
        server = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", "pymx", "serve", "--config", str(config)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # Ctrl-C reaches us; we end the server in order
        )
    if server.stdout is None:
        raise DemoError("the server has no output")
    for line in server.stdout:
        if line.strip() == "ready":
            return server
    server.wait()
    with log.open("rb") as said:
        said.seek(start)
        words = said.read().decode(errors="replace").strip()
    raise DemoError(f"the server did not start:\n{words}")


def submit(tls: ssl.SSLContext, user: str, password: str, rcpt_to: str) -> str:
    """Submit a message as `user` over implicit TLS; returns its subject."""
    message = EmailMessage()
    message["From"] = f"{user.title()} <{user}@{DOMAIN}>"
    message["To"] = rcpt_to
    message["Subject"] = f"Hello from pymx {secrets.token_hex(4)}"
    message.set_content("It works: submitted over TLS, signed, delivered, and read over IMAP.\n")
    with smtplib.SMTP_SSL("localhost", PORTS["submissions"], context=tls, timeout=ARRIVAL_S) as client:
        client.login(f"{user}@{DOMAIN}", password)
        client.send_message(message)
    return str(message["Subject"])


def await_arrival(tls: ssl.SSLContext, user: str, password: str, subject: str) -> bytes | None:
    """The header of the message as IMAP shows it, or None after ARRIVAL_S seconds."""
    deadline = time.monotonic() + ARRIVAL_S
    with imaplib.IMAP4_SSL("localhost", PORTS["imaps"], ssl_context=tls, timeout=ARRIVAL_S) as client:
        client.login(f"{user}@{DOMAIN}", password)
        while time.monotonic() < deadline:
            client.select("INBOX", readonly=True)
            _, found = client.search(None, "SUBJECT", f'"{subject}"')
            numbers = (found[0] or b"").split()
            if numbers:
                _, data = client.fetch(numbers[-1].decode(), "(BODY.PEEK[HEADER])")
                if data and isinstance(data[0], tuple):
                    return bytes(data[0][1])
            time.sleep(0.1)
    return None


def _settings(passwords: dict[str, str], var: Path) -> str:
    users = "\n".join(f"  {user}@{DOMAIN}  password {password}" for user, password in passwords.items())
    return f"""
Settings for a mail client (self-signed certificate: {var}/tls/cert.pem)
  IMAP      localhost  port {PORTS["imaps"]}  SSL/TLS
  SMTP      localhost  port {PORTS["submissions"]}  SSL/TLS   or  port {PORTS["submission"]}  STARTTLS
  login with the whole address:
{users}
Mail from other servers would come in on port {PORTS["smtp"]}. Administration:
  .venv/bin/pymxctl --config {var}/pymx.toml user list
Log: {var}/pymx.log
"""


def run(var: Path, *, once: bool, workers: int) -> int:
    """Set up, start, prove, serve. Returns the exit status."""
    config, passwords = set_up(var, workers)
    server = start_server(config, var / "pymx.log")
    try:
        tls = ssl.create_default_context(cafile=str(var / "tls" / "cert.pem"))
        print(f"pymx is up. alice@{DOMAIN} submits a message to bob@{DOMAIN} …", flush=True)
        started = time.monotonic()
        subject = submit(tls, "alice", passwords["alice"], f"bob@{DOMAIN}")
        header = await_arrival(tls, "bob", passwords["bob"], subject)
        if header is None:
            print(f"the message did not arrive within {ARRIVAL_S} s; see {var}/pymx.log", file=sys.stderr)
            return 1
        print(f"… and bob reads it over IMAP {time.monotonic() - started:.2f} s later:\n")
        print(header.decode(errors="replace").replace("\r\n", "\n").strip())
        print(_settings(passwords, var), flush=True)
        if once:
            return 0
        print("Serving until Ctrl-C.", flush=True)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        if server.stdout:
            server.stdout.close()


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="pymx.demo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--once", action="store_true", help="end after the message has arrived")
    parser.add_argument("--var", type=Path, default=Path("var"), help="where the appliance lies (default ./var)")
    parser.add_argument("--workers", type=int, default=1, help="session processes (default 1)")
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return run(arguments.var.resolve(), once=arguments.once, workers=arguments.workers)
    except DemoError as e:
        print(e, file=sys.stderr)
        return 1
    except (OSError, smtplib.SMTPException, imaplib.IMAP4.error) as e:
        print(f"the round trip failed: {e}; see {arguments.var}/pymx.log", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
