"""The picture of the whole server from which a backup is made: `<mail root>/.backup/stage`.

Order matters, because a message moves on from the queue into a mailbox and never back: the queue's files, the queue's
state, everything else in data_dir, the accounts, and then the mail. So a message may be both in the queue and in a
mailbox of the picture, and is never in neither.

The mail is hard-linked (pymx.ms.snapshot), which takes microseconds a message and no space; the rest is small and
copied, databases by their own means. The path is always the same: BorgBackup knows by it which files it has read
already. Keys are left out unless they are asked for; `spool`, `events` and caches always.
"""

from __future__ import annotations

import datetime
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pymx
from pymx.accounts.database import configured_url, is_sqlite, sqlite_path
from pymx.accounts.dump import copy_sqlite, dump
from pymx.admin.backup_lists import Manifest
from pymx.admin.context import Context, CtlError
from pymx.admin.mailbox import accounts
from pymx.ms.dovecotplace import Place, control_root
from pymx.ms.errors import StoreError
from pymx.ms.index import IndexTrouble, open_read_only
from pymx.ms.layout import Layout, is_mailbox
from pymx.ms.mend import index_path
from pymx.ms.owner import Owner
from pymx.ms.snapshot import copy_file, link_or_copy, take

DIRECTORY = ".backup"
_SKIPPED = frozenset({"queue", "spool", "events", "backup"})  # queue: apart, see above
_SECRET_TREES = ("acme", "tls")
_SECRET_NAMES = ("srs.secret",)
_KEY = b"PRIVATE KEY"
_SQLITE = b"SQLite format 3\0"


@contextmanager
def alone(context: Context) -> Iterator[Path]:
    """`<mail root>/.backup`, held by this process alone; what an earlier one left there is removed."""
    root = Path(context.config.mail.root)
    if not root.is_dir():
        raise CtlError(f"there is no {root}; see [mail] root in {context.config_path}")
    directory = root / DIRECTORY
    directory.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CtlError("another backup is being made") from None
        shutil.rmtree(directory / "stage", ignore_errors=True)
        yield directory
    finally:
        shutil.rmtree(directory / "stage", ignore_errors=True)
        os.close(fd)


def build(context: Context, directory: Path, *, keys: bool) -> tuple[Path, Manifest]:
    """The picture and its manifest, without the lists of files. Raises CtlError, AccountsError, OSError."""
    stage = directory / "stage"
    stage.mkdir(mode=0o700)
    now = datetime.datetime.now(datetime.UTC)
    manifest = Manifest(now.isoformat(timespec="seconds"), context.config.hostname, pymx.__version__, keys)
    _queue(context, stage, manifest)
    _data(context, stage, manifest, keys=keys)
    _configuration(context, stage, manifest, keys=keys)
    manifest.database = dump(context.config.database, stage).name
    _mail(context, stage, manifest)
    return stage, manifest


def _queue(context: Context, stage: Path, manifest: Manifest) -> None:
    source, target = Path(context.config.data_dir) / "queue", stage / "data" / "queue"
    (target / "messages").mkdir(mode=0o700, parents=True)
    messages = source / "messages"
    for name in sorted(os.listdir(messages)) if messages.is_dir() else []:
        try:  # a copy, no link: marks are overwritten in place
            copy_file(os.fsencode(messages / name), os.fsencode(target / "messages" / name))
        except FileNotFoundError:
            continue  # delivered meanwhile
        manifest.queued += 1
    if (source / "state.sqlite").exists():
        copy_sqlite(str(source / "state.sqlite"), str(target / "state.sqlite"))


def _data(context: Context, stage: Path, manifest: Manifest, *, keys: bool) -> None:
    top = Path(context.config.data_dir)
    url = configured_url(context.config.database)
    database = sqlite_path(url) if is_sqlite(url) else None
    apart = {Path(context.config.mail.root), Path(context.config.mail.index_dir or "/")}
    for directory, names, files in os.walk(top):
        here = Path(directory)
        if here == top:
            names[:] = [name for name in names if name not in _SKIPPED]
        names[:] = sorted(name for name in names if here / name not in apart)
        for name in sorted(files):
            path = here / name
            if path == database or name.endswith(("-wal", "-shm", "-journal", ".lock", ".new")) or not _is_file(path):
                continue
            relative = path.relative_to(top)
            try:
                with path.open("rb") as file:
                    start = file.read(65536)
            except OSError as e:
                manifest.left_out.append(f"{path}: {e.strerror}")
                continue
            if not keys and _is_secret(relative, start):
                manifest.left_out.append(f"{path}: a secret")
                continue
            target = stage / "data" / relative
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if start.startswith(_SQLITE):
                copy_sqlite(str(path), str(target))
            else:
                copy_file(os.fsencode(path), os.fsencode(target))


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _is_secret(relative: Path, start: bytes) -> bool:
    return relative.parts[0] in _SECRET_TREES or relative.name in _SECRET_NAMES or _KEY in start


def _configuration(context: Context, stage: Path, manifest: Manifest, *, keys: bool) -> None:
    (stage / "config").mkdir(mode=0o700)
    copy_file(os.fsencode(context.config_path), os.fsencode(stage / "config" / "pymx.toml"))
    config, data = context.config, Path(context.config.data_dir)
    named = [
        config.tls.certificate, config.tls.private_key, config.database.url_file, config.rspamd.password_file,
        config.forwarding.srs_secret_file, *(route.password_file for route in config.outbound.route),
    ]  # fmt: skip
    credentials = [
        config.database.url_credential, config.rspamd.password_credential, config.forwarding.srs_secret_credential,
        config.backup.passphrase_credential, *(route.password_credential for route in config.outbound.route),
    ]  # fmt: skip
    for name in dict.fromkeys(filter(None, credentials)):
        manifest.left_out.append(f"the credential {name}: it is systemd's (LoadCredential=)")
    for number, name in enumerate(dict.fromkeys(filter(None, named))):
        path = Path(name)
        if path.is_relative_to(data):
            continue  # with the rest of data_dir
        if not keys and name != config.tls.certificate:
            manifest.left_out.append(f"{path}: a secret")
            continue
        target = f"config/{number}-{path.name}"
        try:
            copy_file(os.fsencode(path), os.fsencode(stage / target))
        except OSError as e:
            (stage / target).unlink(missing_ok=True)
            manifest.left_out.append(f"{path}: {e.strerror}")
            continue
        manifest.files[target] = name


def _mail(context: Context, stage: Path, manifest: Manifest) -> None:
    mail = context.config.mail
    layout = Layout(mail.layout, mail.separator)
    for owner in accounts(context, None):
        source = Place(owner.path(os.fsencode(mail.root)), layout.fs, control_root(mail.control_dir, owner))
        if not is_mailbox(source.root) and not os.path.isdir(source.account_files):
            continue
        target = staged(stage, owner, mail.control_dir, fs=layout.fs)
        try:
            taken = take(source, target, layout, copy_sqlite)
        except StoreError as e:
            raise CtlError(f"{owner.email}: {e} ({e.reason})") from None
        manifest.accounts[owner.email] = {"mailboxes": len(taken), "special_use": _special_uses(context, owner)}
    removed = Path(mail.root) / ".removed"
    if removed.is_dir():
        _link_tree(removed, stage / "mail" / ".removed")
    manifest.messages = sum(
        len(files) for d, _, files in os.walk(stage / "mail") if os.path.basename(d) in ("cur", "new")
    )


def staged(tree: Path, owner: Owner, control_dir: str, *, fs: bool) -> Place:
    """Where an account lies in a tree."""
    root = owner.path(os.fsencode(tree / "mail"))
    control = owner.path(os.fsencode(tree / "control")) if control_dir else b""
    return Place(root, fs, control)


def _special_uses(context: Context, owner: Owner) -> dict[str, str]:
    """What clients declared a mailbox to be for: only the index knows."""
    try:
        db = open_read_only(index_path(context.config.mail, owner))
    except (FileNotFoundError, IndexTrouble):
        return {}
    try:
        return dict(db.execute("SELECT name, special_use FROM mailbox WHERE special_use <> '' ORDER BY name"))
    except IndexTrouble:
        return {}
    finally:
        db.close()


def _link_tree(source: Path, target: Path) -> None:
    """Nobody works in it any more."""
    for directory, _, files in os.walk(source):
        there = target / os.path.relpath(directory, source)
        there.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in files:
            path = os.path.join(directory, name)
            if os.path.islink(path) or not os.path.isfile(path):
                continue
            try:
                link_or_copy(os.fsencode(path), os.fsencode(there / name))
            except FileNotFoundError:
                continue  # its time was over
