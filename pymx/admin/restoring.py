"""A backup's tree laid out where a configuration wants everything.

Used by `pymxctl restore` for good, and by `backup verify` for a copy that is thrown away. Files are copied, linked
(only messages, which never change) or moved. Nothing of what is there already is removed; files of the same name are
replaced.
"""

from __future__ import annotations

import enum
import os
import shutil
from pathlib import Path

import msgspec

from pymx.accounts.database import configured_url, is_sqlite, sqlite_path
from pymx.accounts.dump import load_mariadb, load_sqlite
from pymx.admin.backup_lists import Manifest
from pymx.admin.backup_stage import staged
from pymx.admin.context import CtlError
from pymx.admin.mailbox import owner_of
from pymx.config.model import Config, Database
from pymx.ms.dovecotplace import Place, control_root
from pymx.ms.errors import StoreError
from pymx.ms.folders import set_special_use
from pymx.ms.layout import Layout
from pymx.ms.leap import leap
from pymx.ms.mend import open_account
from pymx.queue import browse
from pymx.queue.browse import Selection
from pymx.queue.files import Files
from pymx.queue.rebuild import rebuild
from pymx.queue.state import State, StateDamaged


class How(enum.Enum):
    COPY = "copy"
    LINK = "link"
    MOVE = "move"


def detached(old: Config, root: Path, *, socket: Path) -> Config:
    """The configuration of a server whose everything is under `root`; it listens nowhere and has SQLite."""
    return Config(
        hostname=old.hostname,
        data_dir=str(root / "data"),
        user="none",
        workers=1,
        database=Database(url=f"sqlite:///{root}/accounts.sqlite"),
        mail=msgspec.structs.replace(
            old.mail,
            root=str(root / "mail"),
            index_dir="",
            control_dir=f"{root}/control/%d/%n" if old.mail.control_dir else "",
        ),
        smtp=msgspec.structs.replace(old.smtp, listen=[]),
        submission=msgspec.structs.replace(old.submission, listen_tls=[], listen_starttls=[]),
        imap=msgspec.structs.replace(old.imap, listen_tls=[], listen_starttls=[]),
        control=msgspec.structs.replace(old.control, socket=str(socket)),
    )


def lay_out_mail(tree: Path, manifest: Manifest, config: Config, how: How, *, leaping: bool) -> None:
    """All accounts. `leaping`: clients may know of UIDs that were given after the backup."""
    mail = config.mail
    layout = Layout(mail.layout, mail.separator)
    for email, facts in manifest.accounts.items():
        owner = owner_of(email)
        source = staged(tree, owner, mail.control_dir, fs=layout.fs)
        target = Place(owner.path(os.fsencode(mail.root)), layout.fs, control_root(mail.control_dir, owner))
        transfer(Path(os.fsdecode(source.root)), Path(os.fsdecode(target.root)), how)
        if source.control:
            transfer(Path(os.fsdecode(source.control)), Path(os.fsdecode(target.control)), how)
        elif (tree / "control" / owner.domain / owner.local_part).is_dir():
            raise CtlError("the backup is of a server with [mail] control_dir, and this configuration has none")
        if leaping:
            leap(target, layout)
        uses = facts.get("special_use")
        if isinstance(uses, dict) and uses:
            _declare(config, email, {str(name): str(use) for name, use in uses.items()})
    transfer(tree / "mail" / ".removed", Path(mail.root) / ".removed", how)


def _declare(config: Config, email: str, uses: dict[str, str]) -> None:
    account = open_account(config.mail, owner_of(email), config.hostname)
    try:
        for name, use in uses.items():
            set_special_use(account.home, tuple(name.split("/")), use)
    except StoreError as e:
        raise CtlError(f"{email}: {e} ({e.reason})") from None
    finally:
        account.close()


def transfer(source: Path, target: Path, how: How) -> None:
    """A tree onto another; what is not there is no error."""
    for directory, names, files in os.walk(source):
        there = target / os.path.relpath(directory, source)
        if not there.is_dir():
            there.mkdir(mode=0o700, parents=True)
        links = [name for name in names if os.path.islink(os.path.join(directory, name))]
        is_messages = os.path.basename(directory) in ("cur", "new")
        for name in [*files, *links]:
            _transfer_file(Path(directory) / name, there / name, how, message=is_messages)


def _transfer_file(source: Path, target: Path, how: How, *, message: bool) -> None:
    target.unlink(missing_ok=True)
    if source.is_symlink():
        os.symlink(os.readlink(source), target)
    elif how is How.MOVE:
        shutil.move(source, target)
    elif how is How.LINK and message:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)
    else:
        shutil.copy2(source, target)


def lay_out_data(tree: Path, config: Config, how: How) -> None:
    """What was in data_dir, the queue apart."""
    source, target = tree / "data", Path(config.data_dir)
    for entry in sorted(source.iterdir()) if source.is_dir() else ():
        if entry.name == "queue":
            continue
        if entry.is_dir():
            transfer(entry, target / entry.name, how)
        else:
            _transfer_file(entry, target / entry.name, how, message=False)


def lay_out_queue(tree: Path, config: Config, how: How) -> int:
    """The queue, all of it on hold: most of it will have been delivered since. Returns the number of messages."""
    directory = Path(config.data_dir) / "queue"
    for name in ("state.sqlite", "state.sqlite-wal", "state.sqlite-shm"):
        (directory / name).unlink(missing_ok=True)
    transfer(tree / "data" / "queue", directory, how)
    state, files = State(directory / "state.sqlite"), Files(directory)
    try:
        files.open()
        try:
            state.open()
            state.check()
        except (StateDamaged, FileNotFoundError):
            rebuild(state, files, config.outbound.route)
        return browse.hold(state, Selection(everything=True))
    except StateDamaged as e:
        raise CtlError(f"the queue's state can't be restored: {e}") from None
    finally:
        state.close()
        files.close()


def lay_out_accounts(tree: Path, manifest: Manifest, config: Config, *, convert: bool = False) -> None:
    """The accounts database. `convert`: MariaDB's dump into a SQLite file. Raises CtlError, AccountsError."""
    source = tree / manifest.database
    url = configured_url(config.database)
    if not is_sqlite(url):
        if source.suffix == ".sqlite":
            raise CtlError("the backup is of a SQLite database, and [database] url is one of MariaDB")
        load_mariadb(source, config.database)
        return
    target = sqlite_path(url)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for suffix in ("", "-wal", "-shm"):
        Path(f"{target}{suffix}").unlink(missing_ok=True)
    if source.suffix == ".sqlite":
        shutil.copy2(source, target)
    elif convert:
        load_sqlite(source, target)
    else:
        raise CtlError("the backup is of a MariaDB database, and [database] url is one of SQLite")
