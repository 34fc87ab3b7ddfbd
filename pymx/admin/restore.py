"""pymxctl restore FROM: bring a backup back, onto a machine that has none of its data, with the same UIDs.

FROM is a directory of backups, one of them, or borg:REPOSITORY. Everything is compared with its hashes first. The
configuration of this machine decides where things go; without one, the backup's is put in its place. The server must
not run. Clients see what they saw: UIDVALIDITY, UIDs and flags are the same, while the next UIDs leap ahead, because
those that were given after the backup must not be given to other messages. The queue is held.

With --to everything goes into one new directory, with a configuration that is only for looking at it.
"""

from __future__ import annotations

import argparse
import os
import pwd
import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pymx.accounts.account import AccountsError
from pymx.accounts.database import configured_url, is_sqlite, sqlite_path
from pymx.accounts.dump import emails
from pymx.admin.backup import chosen, target_of
from pymx.admin.backup_lists import MANIFEST, Manifest, compare
from pymx.admin.context import Context, CtlError, Exit
from pymx.admin.control_client import ControlError, NotRunning
from pymx.admin.mailbox import printable
from pymx.admin.restoring import How, detached, lay_out_accounts, lay_out_data, lay_out_mail, lay_out_queue
from pymx.config.load import ConfigError, load
from pymx.config.model import Config
from pymx.config.write import to_toml

_MARK = ".restoring"
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where it goes."""

    config: Config
    config_path: Path
    configuration: str  # the file's new text; "" = it is there already
    convert: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="FROM", help="DIRECTORY or borg:REPOSITORY")
    parser.add_argument("--at", metavar="NAME", help="which one, as in `backup list`; the newest without")
    parser.add_argument("--to", metavar="DIRECTORY", help="not into its places, but all into this new directory")
    parser.add_argument("--passphrase-file", metavar="FILE", help="of the Borg repository")
    parser.add_argument("--damaged", action="store_true", help="even if files are missing or not what they were")


def run(args: argparse.Namespace, context: Context) -> int:
    if args.passphrase_file:
        backup = msgspec.structs.replace(
            context.config.backup, passphrase_file=args.passphrase_file, passphrase_credential=""
        )
        context.config = msgspec.structs.replace(context.config, backup=backup)
    source = Path(args.source)
    if not args.source.startswith("borg:") and (source / MANIFEST).is_file():
        return _restore(args, context, source)
    target = target_of(args.source, context)
    with target.open(chosen(target, args.at)) as tree:
        return _restore(args, context, tree)


def _restore(args: argparse.Namespace, context: Context, tree: Path) -> int:
    manifest = Manifest.read(tree)
    problems = list(compare(tree, manifest))
    for problem in problems[:_SHOWN]:
        context.out.warn(printable(problem))
    if problems and not args.damaged:
        raise CtlError(
            f"the backup is not whole: {len(problems)} findings; take another one with --at, or this one with --damaged"
        )
    place = _relocated(tree, Path(args.to)) if args.to else _in_place(context, tree)
    owner = _owner(place.config)
    config = place.config
    try:
        held = _lay_out(tree, manifest, place, owner)
    except AccountsError as e:
        raise CtlError(str(e)) from None
    facts = {"accounts": len(manifest.accounts), "messages": manifest.messages, "held": held, "at": manifest.at}
    for left in manifest.left_out:
        context.out.warn(f"was not in the backup: {printable(left)}")
    text = f"{len(manifest.accounts)} accounts and {manifest.messages} messages are back as of {manifest.at}"
    if held:
        text += (
            f"\n{held} messages of the queue are held, for most will have been delivered since: look with "
            "pymxctl queue list, then pymxctl queue release, or remove"
        )
    where = f"; configuration: {place.config_path}" if place.configuration else ""
    context.out.done(f"{text}{where}", **facts, config=str(place.config_path), mail_root=config.mail.root)
    return Exit.OK


def _in_place(context: Context, tree: Path) -> Place:
    if context.config_path.exists():
        place = Place(context.config, context.config_path, "", convert=False)
    else:
        saved = tree / "config" / "pymx.toml"
        try:
            place = Place(load(saved), context.config_path, saved.read_text(encoding="utf-8"), convert=False)
        except (ConfigError, OSError) as e:
            raise CtlError(f"the backup's configuration can't be used: {e}") from None
    _refuse(context, place.config)
    return place


def _refuse(context: Context, config: Config) -> None:
    """CtlError if something that is here would be lost or mixed up with the backup."""
    context.control.path = Path(config.control.socket)
    try:
        context.control.call("status", timeout_s=5.0)
        raise CtlError("pymx runs; stop it first: systemctl stop pymx")
    except NotRunning:
        pass
    except ControlError as e:
        raise CtlError(f"pymx seems to run ({e}); stop it first: systemctl stop pymx") from None
    root = Path(config.mail.root)
    if not (root / _MARK).exists():
        domains = [p for p in root.iterdir() if not p.name.startswith(".")] if root.is_dir() else []
        full = [a for d in domains if d.is_dir() for a in d.iterdir()]
        if full:
            raise CtlError(f"there is mail already in {full[0]}; move it away, or restore somewhere else with --to")
        url = configured_url(config.database)
        if is_sqlite(url) and sqlite_path(url).exists() and _has_users(sqlite_path(url)):
            raise CtlError(f"there are accounts already in {sqlite_path(url)}; move it away")
    messages = Path(config.data_dir) / "queue" / "messages"
    if not (root / _MARK).exists() and messages.is_dir() and any(messages.iterdir()):
        raise CtlError(f"there are messages already in {messages}; deliver or move them first")


def _has_users(path: Path) -> bool:
    from pymx.accounts.dump import check_sqlite

    if check_sqlite(str(path)):
        return False  # damaged: the backup's is better
    try:
        return bool(emails(path))
    except AccountsError:
        return False


def _relocated(tree: Path, to: Path) -> Place:
    """A server of its own under `to`, which listens nowhere."""
    if to.exists() and any(to.iterdir()):
        raise CtlError(f"{to} is not empty")
    try:
        old = load(tree / "config" / "pymx.toml")
    except ConfigError as e:
        raise CtlError(f"the backup's configuration can't be used: {e}") from None
    to = Path(os.path.abspath(to))
    config = detached(old, to, socket=to / "run" / "control.sock")
    return Place(config, to / "pymx.toml", to_toml(config), convert=True)


def _owner(config: Config) -> pwd.struct_passwd | None:
    """Whose everything is to be, if we can give it away."""
    if os.geteuid() != 0 or config.user == "none":
        return None
    try:
        return pwd.getpwnam(config.user)
    except KeyError:
        raise CtlError(f"there is no user {config.user}; make it first, as pymxctl setup does") from None


def _lay_out(tree: Path, manifest: Manifest, place: Place, owner: pwd.struct_passwd | None) -> int:
    """Everything; how many messages of the queue are held."""
    config = place.config
    root, data = Path(config.mail.root), Path(config.data_dir)
    for directory in (root, data):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    (root / _MARK).touch()  # killed from here on, it may be run again
    lay_out_accounts(tree, manifest, config, convert=place.convert)
    lay_out_data(tree, config, How.COPY)
    held = lay_out_queue(tree, config, How.COPY)
    lay_out_mail(tree, manifest, config, How.COPY, leaping=True)
    _configure(tree, manifest, place, owner)
    if owner is not None:
        url = configured_url(config.database)
        controls = {Path(config.mail.control_dir.partition("%")[0])} if config.mail.control_dir else set()
        for top in {root, data, *controls}:
            _give(top, owner)
        if is_sqlite(url):
            os.chown(sqlite_path(url), owner.pw_uid, owner.pw_gid)
    os.sync()
    (root / _MARK).unlink()
    return held


def _configure(tree: Path, manifest: Manifest, place: Place, owner: pwd.struct_passwd | None) -> None:
    """The configuration, and files from elsewhere that it names, where there are none."""
    wanted = {} if place.convert else {Path(path): tree / name for name, path in manifest.files.items()}
    for path, source in wanted.items():
        if path.exists() or path.is_symlink():
            continue
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        shutil.copy2(source, path)
        if owner is not None:
            os.chown(path, owner.pw_uid, owner.pw_gid)
    if place.configuration:
        place.config_path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        place.config_path.touch(mode=0o640)
        place.config_path.write_text(place.configuration, encoding="utf-8")
        if owner is not None:
            os.chown(place.config_path, 0, owner.pw_gid)


def _give(top: Path, owner: pwd.struct_passwd) -> None:
    for directory, _, files in os.walk(top):
        os.chown(directory, owner.pw_uid, owner.pw_gid)
        for name in files:
            os.chown(os.path.join(directory, name), owner.pw_uid, owner.pw_gid, follow_symlinks=False)
