"""pymxctl backup create|list|verify|prune: into a directory or a BorgBackup repository, while the server runs.

`create` leaves `<data_dir>/backup/last.json`: when, where to, whether it went well. `verify` restores into a throw-away
instance and reads everything there over IMAP. Exit status 1: no backup was made, or it is not sound.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from pymx.accounts.account import AccountsError
from pymx.admin import backup_stage
from pymx.admin.backup_directory import DirectoryTarget
from pymx.admin.backup_lists import Manifest, compare
from pymx.admin.backup_retention import NAME, kept, when
from pymx.admin.context import Context, CtlError, Exit
from pymx.admin.mailbox import printable

_SHOWN = 50


class Target(Protocol):
    """Where backups go. All raise CtlError."""

    text: str
    encrypted: bool

    def prepare(self) -> None: ...

    def names(self) -> list[str]: ...

    def create(self, stage: Path, manifest: Manifest, name: str, *, full: bool) -> None: ...

    @contextmanager
    def open(self, name: str) -> Iterator[Path]: ...

    def remove(self, names: list[str]) -> None: ...

    def scratch(self) -> Path | None: ...


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    create = verbs.add_parser("create", help="make one")
    _add_target(create)
    keys = create.add_mutually_exclusive_group()
    keys.add_argument(
        "--with-keys", action="store_true", default=None,
        help="keys and secrets too, where nothing encrypts them ([backup] with_keys)",
    )  # fmt: skip
    keys.add_argument("--without-keys", action="store_false", dest="with_keys", help="not even into an encrypted one")
    create.add_argument("--full", action="store_true", help="read and copy everything anew, trust no earlier backup")
    create.add_argument("--prune", action="store_true", help="then remove what is older than [backup] keep_… says")
    listing = verbs.add_parser("list", help="those that are there")
    _add_target(listing)
    verify = verbs.add_parser("verify", help="restore one into a throw-away server and read all of it over IMAP")
    _add_target(verify)
    verify.add_argument("--at", metavar="NAME", help="which one, as in the list; the newest without")
    verify.add_argument("--files-only", action="store_true", help="only compare the files with their hashes")
    prune = verbs.add_parser("prune", help="remove what is older than [backup] keep_… says")
    _add_target(prune)
    prune.add_argument("--dry-run", action="store_true", help="only say what would go")


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="TARGET", nargs="?", help="DIRECTORY or borg:REPOSITORY ([backup] target)")


def run(args: argparse.Namespace, context: Context) -> int:
    text = args.target or context.config.backup.target
    if not text:
        raise CtlError("say where to, or set [backup] target", Exit.USAGE)
    verb = {"create": _create, "list": _list, "verify": _verify, "prune": _prune}[args.verb]
    try:
        return verb(args, context, target_of(text, context))
    except AccountsError as e:
        raise CtlError(str(e), Exit.UNAVAILABLE) from None


def target_of(text: str, context: Context) -> Target:
    if text.startswith("borg:"):
        from pymx.admin.backup_borg import BorgTarget

        return BorgTarget(text.removeprefix("borg:"), context)
    return DirectoryTarget(Path(os.path.abspath(text)))


def chosen(target: Target, at: str | None) -> str:
    """The one that is meant. Raises CtlError."""
    names = target.names()
    if not names:
        raise CtlError(f"{target.text} holds no backup")
    if at is not None and at not in names:
        raise CtlError(f"{target.text} has no backup {at}; see: pymxctl backup list")
    return at or names[-1]


def _create(args: argparse.Namespace, context: Context, target: Target) -> int:
    now = datetime.datetime.now(datetime.UTC)
    facts: dict[str, object] = {"at": now.isoformat(timespec="seconds"), "ok": False, "target": target.text}
    try:
        with backup_stage.alone(context) as directory:
            target.prepare()
            keys = args.with_keys if args.with_keys is not None else target.encrypted or context.config.backup.with_keys
            stage, manifest = backup_stage.build(context, directory, keys=keys)
            name = now.strftime(NAME)
            target.create(stage, manifest, name, full=args.full)
        gone = _thin_out(context, target) if args.prune else []
        facts |= {"ok": True, "name": name, "messages": manifest.messages, "keys": keys}
    except (CtlError, AccountsError, OSError) as e:
        facts["reason"] = str(e)
        raise
    finally:
        _remember(context, facts)
    for left in manifest.left_out:
        context.out.warn(f"not in the backup: {printable(left)}")
    text = (
        f"{name}: {len(manifest.accounts)} accounts, {manifest.messages} messages, {manifest.queued} in the queue, "
        f"{'with' if keys else 'without'} keys, in {target.text}"
    )
    context.out.done(
        text, **facts, accounts=len(manifest.accounts), queued=manifest.queued, left_out=manifest.left_out, removed=gone
    )
    return Exit.OK


def _remember(context: Context, facts: dict[str, object]) -> None:
    """For `pymxctl doctor`, which says when the last one was made."""
    directory = Path(context.config.data_dir) / "backup"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = directory / "last.json.new"
        new.write_text(json.dumps(facts), encoding="utf-8")
        os.replace(new, directory / "last.json")
    except OSError as e:
        context.out.warn(f"{directory / 'last.json'} can't be written: {e.strerror}")


def _list(args: argparse.Namespace, context: Context, target: Target) -> int:
    rows = []
    for name in target.names():
        at = when(name)
        assert at is not None
        rows.append((name, at.isoformat(timespec="seconds") if context.json else f"{at.astimezone():%Y-%m-%d %H:%M}"))
    context.out.table(["Name", "Made"], rows, empty=f"{target.text} holds no backup")
    return Exit.OK


def _verify(args: argparse.Namespace, context: Context, target: Target) -> int:
    name = chosen(target, args.at)
    with target.open(name) as tree:
        manifest = Manifest.read(tree)
        problems = list(compare(tree, manifest))
        seen = {"mailboxes": 0, "messages": 0}
        if not problems and not args.files_only:
            from pymx.admin.backup_verify import prove

            problems, seen = prove(tree, manifest, context.config, target.scratch())
    for problem in problems[:_SHOWN] if not context.json else []:
        print(printable(problem))
    if problems:
        context.out.failed(
            f"{name} in {target.text} is not sound: {len(problems)} findings; make a new one with --full",
            name=name, problems=problems,
        )  # fmt: skip
        return Exit.FAILED
    how = (
        "all files are as they were"
        if args.files_only
        else f"restored, and {seen['messages']} messages in {seen['mailboxes']} mailboxes read over IMAP: all the same"
    )
    context.out.done(f"{name} in {target.text}: {how}", name=name, accounts=len(manifest.accounts), **seen)
    return Exit.OK


def _prune(args: argparse.Namespace, context: Context, target: Target) -> int:
    if args.dry_run:
        gone = _surplus(context, target.names())
        context.out.done("would go: " + (", ".join(gone) or "none"), removed=gone)
        return Exit.OK
    gone = _thin_out(context, target)
    context.out.done(f"{len(gone)} removed" + (f": {', '.join(gone)}" if gone else ""), removed=gone)
    return Exit.OK


def _thin_out(context: Context, target: Target) -> list[str]:
    gone = _surplus(context, target.names())
    target.remove(gone)
    return gone


def _surplus(context: Context, names: list[str]) -> list[str]:
    rules = context.config.backup
    keep = set(kept(names, daily=rules.keep_daily, weekly=rules.keep_weekly, monthly=rules.keep_monthly))
    return [name for name in names if name not in keep]
