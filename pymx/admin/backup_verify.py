"""The proof of a backup: a throw-away server made of it, which is started, logged in to, and read over IMAP.

The server listens on one port of loopback, for IMAP alone. Its passwords are one random password, in its own copy of
the accounts. Nothing it could send leaves: the queue is on hold, and the only route leads to a port of loopback where
nobody listens. What IMAP says is compared with what the files of the backup say: mailboxes, UIDVALIDITY, UIDs, flags,
and the SHA-256 of every message as it must stand on the wire. The databases and the queue's files are checked first.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from pymx.accounts.account import AccountsError
from pymx.accounts.dump import check, check_sqlite, emails, set_passwords
from pymx.accounts.passwords import make
from pymx.admin.backup_lists import Manifest
from pymx.admin.backup_stage import staged
from pymx.admin.context import CtlError
from pymx.admin.imap_client import Client
from pymx.admin.mailbox import owner_of
from pymx.admin.restoring import How, detached, lay_out_accounts, lay_out_mail, lay_out_queue
from pymx.config.model import Config, Route
from pymx.config.write import to_toml
from pymx.ms import uidlist
from pymx.ms.dovecotplace import Place
from pymx.ms.layout import INBOX, Layout
from pymx.net.certificate import write_self_signed
from pymx.queue.files import DamagedFile, Files

_READY_S = 120
_STOP_S = 30
_FETCHED_AT_ONCE = 200
_COST = 4
_LONE_LF = re.compile(rb"(?<!\r)\n")
_FLAGS = {"S": "\\Seen", "R": "\\Answered", "F": "\\Flagged", "T": "\\Deleted", "D": "\\Draft"}


@dataclass(slots=True)
class _Expected:
    """A mailbox as the files have it."""

    uidvalidity: int
    files: dict[str, Path] = field(default_factory=dict)  # by base
    uids: dict[int, str] = field(default_factory=dict)  # UID → base


def prove(tree: Path, manifest: Manifest, config: Config, beside: Path | None) -> tuple[list[str], dict[str, int]]:
    """What is wrong, and how much was read. `beside`: where copies may be hard links."""
    problems = list(_databases(tree, manifest))
    seen = {"mailboxes": 0, "messages": 0}
    if problems:
        return problems, seen
    with (
        tempfile.TemporaryDirectory(prefix=".verify-" if beside else "pymx-verify-", dir=beside) as scratch,
        tempfile.TemporaryDirectory(prefix="pymx-run-") as run,
    ):
        throw_away, port = _configuration(Path(scratch), Path(run), config)
        try:
            lay_out_accounts(tree, manifest, throw_away, convert=True)
            lay_out_queue(tree, throw_away, How.COPY)
            lay_out_mail(tree, manifest, throw_away, How.LINK, leaping=False)
            users = emails(Path(scratch) / "accounts.sqlite")
            password = secrets.token_urlsafe(24)
            set_passwords(Path(scratch) / "accounts.sqlite", make(password, _COST))
        except AccountsError as e:
            return [f"the accounts can't be restored: {e}"], seen
        with _running(Path(scratch), throw_away):
            for email in users:
                problems += _account(tree, manifest, throw_away, port, email, password, seen)
    return problems, seen


def _databases(tree: Path, manifest: Manifest) -> Iterator[str]:
    problem = check(tree / manifest.database)
    if problem:
        yield f"{manifest.database}: {problem}"
    for path in sorted((tree / "data").rglob("*.sqlite")):
        problem = check_sqlite(str(path))
        if problem:
            yield f"{path.relative_to(tree)}: {problem}"
    files = Files(tree / "data" / "queue")
    if not files.directory.is_dir():
        return
    files.open()
    try:
        for name in files.names():
            try:
                files.read(name, content=False)
            except DamagedFile as e:
                yield f"data/queue/messages/{name}: {e}"
    finally:
        files.close()


def _configuration(scratch: Path, run: Path, old: Config) -> tuple[Config, int]:
    port = _free_port()
    certificate, key = write_self_signed(run, ("localhost",), days=2)
    config = detached(old, scratch, socket=run / "control.sock")
    config = msgspec.structs.replace(
        config,
        hostname=old.hostname or "localhost.localdomain",
        tls=msgspec.structs.replace(old.tls, certificate=str(certificate), private_key=str(key)),
        imap=msgspec.structs.replace(config.imap, listen_tls=[f"127.0.0.1:{port}"]),
        dns=msgspec.structs.replace(old.dns, nameservers=["127.0.0.1:9"]),
        limits=msgspec.structs.replace(old.limits, trusted=["127.0.0.0/8"], connections_per_minute=0),
        outbound=msgspec.structs.replace(old.outbound, route=[Route(domain="*", host="127.0.0.1", port=9)]),
        log=msgspec.structs.replace(old.log, level="info", format="logfmt"),
    )
    (scratch / "pymx.toml").write_text(to_toml(config), encoding="utf-8")
    return config, port


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def _running(scratch: Path, config: Config) -> Iterator[None]:
    """The server; CtlError if it does not start."""
    log = scratch / "pymx.log"
    with log.open("ab") as errors:
        process = subprocess.Popen(  # noqa: S603  (this program)
            [sys.executable, "-m", "pymx", "serve", "--config", str(scratch / "pymx.toml")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={name: value for name, value in os.environ.items() if name not in ("NOTIFY_SOCKET", "LISTEN_FDS")},
            text=True,
        )
    killer = threading.Timer(_READY_S, process.kill)
    killer.start()
    try:
        assert process.stdout is not None
        if not any(line.strip() == "ready" for line in process.stdout):
            said = log.read_text(errors="replace").strip().splitlines()[-3:]
            raise CtlError(f"the restored server does not start: {'; '.join(said) or 'it says nothing'}")
        killer.cancel()
        yield
    finally:
        killer.cancel()
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _account(
    tree: Path, manifest: Manifest, config: Config, port: int, email: str, password: str, seen: dict[str, int]
) -> Iterator[str]:
    layout = Layout(config.mail.layout, config.mail.separator)
    expected = _expected(staged(tree, owner_of(email), config.mail.control_dir, fs=layout.fs), layout, config)
    if email not in manifest.accounts and not expected:
        return  # a user who has had no mail
    try:
        client = Client.tls("127.0.0.1", port, email, password, verify=False)
    except CtlError as e:
        yield f"{email}: {e}"
        return
    try:
        listed = set(client.mailboxes())
        for name, mailbox in expected.items():
            if name not in listed:
                yield f"{email}: the mailbox {name.decode('utf-8', 'replace')} is not there"
                continue
            yield from _mailbox(client, email, name, mailbox)
            seen["mailboxes"] += 1
            seen["messages"] += len(mailbox.files)
    except CtlError as e:
        yield f"{email}: {e}"
    finally:
        client.close()


def _expected(place: Place, layout: Layout, config: Config) -> dict[bytes, _Expected]:
    """Mailboxes by their name on the wire, as the backup's files have them."""
    found: dict[bytes, _Expected] = {}
    if not os.path.isdir(place.root):
        return found
    for levels in layout.mailboxes(place.root):
        path = layout.path(place.root, levels)
        mailbox = _Expected(0)
        for part in (b"new", b"cur"):
            directory = Path(os.fsdecode(path)) / os.fsdecode(part)
            for name in os.listdir(directory) if directory.is_dir() else []:
                mailbox.files[name.partition(":")[0]] = directory / name
        try:
            data = Path(os.fsdecode(os.path.join(place.control_of(path, levels), uidlist.NAME))).read_bytes()
            listed = uidlist.parse(data)
        except (FileNotFoundError, uidlist.Damaged):
            listed = None
        if listed is not None:
            mailbox.uidvalidity = listed.header.uidvalidity
            for uid, _, base in listed.records:
                if os.fsdecode(base) in mailbox.files:
                    mailbox.uids[uid] = os.fsdecode(base)
        wire = "INBOX" if levels == INBOX else config.mail.prefix + layout.separator.join(levels)
        found[wire.encode()] = mailbox
    return found


def _mailbox(client: Client, email: str, name: bytes, mailbox: _Expected) -> Iterator[str]:
    where = f"{email} {name.decode('utf-8', 'replace')}"
    messages, uidvalidity, _ = client.examine(name)
    if messages != len(mailbox.files):
        yield f"{where}: {messages} messages, and {len(mailbox.files)} in the backup"
    if mailbox.uidvalidity and uidvalidity != mailbox.uidvalidity:
        yield f"{where}: UIDVALIDITY {uidvalidity}, and {mailbox.uidvalidity} in the backup"
        return
    uids = sorted(mailbox.uids)
    told: set[int] = set()
    for start in range(0, len(uids), _FETCHED_AT_ONCE):
        batch = uids[start : start + _FETCHED_AT_ONCE]
        for uid, flags, body in client.bodies(batch[0], batch[-1]):
            told.add(uid)
            base = mailbox.uids.get(uid)
            if base is None:
                continue  # a message that had no UID yet when the backup was made
            file = mailbox.files[base]
            if hashlib.sha256(body).digest() != hashlib.sha256(_wire(file)).digest():
                yield f"{where}: the message with UID {uid} is another one over IMAP"
            wanted = {_FLAGS[letter] for letter in file.name.partition(":2,")[2] if letter in _FLAGS}
            if wanted != flags & set(_FLAGS.values()):
                yield f"{where}: the message with UID {uid} has other flags"
    for uid in uids:
        if uid not in told:
            yield f"{where}: there is no message with UID {uid}"


def _wire(path: Path) -> bytes:
    return _LONE_LF.sub(b"\r\n", path.read_bytes())
