"""pymxctl junk stats|train|reset: what the accounts' own junk filters have learned.

`train` reads mail that is there already, as after a move from another server: the Junk folder as junk, INBOX (what has
been read of it) or the folders that are named as wanted mail. It may run beside the server, and a second time: what is
known is not counted twice. The filters are off while `[rspamd] url` is set; then there is nothing here to train.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pymx.admin.context import Context, CtlError, Exit
from pymx.admin.mailbox import accounts, owner_of
from pymx.admin.output import Output
from pymx.junk.build import taught_file
from pymx.junk.filter import Filter
from pymx.junk.learn import Kind, LessonRefused
from pymx.junk.notebook import Notebook, Notebooks, NotebookUnusable, Totals
from pymx.mail.flags import DELETED, SEEN
from pymx.ms.errors import NoSuchMailbox, StoreError
from pymx.ms.folders import Folder
from pymx.ms.mailbox import Mailbox
from pymx.ms.owner import Owner
from pymx.ms.store import Store

_JUNK = "\\Junk"
_MAX_OCTETS = 16 * 1024 * 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    stats = verbs.add_parser("stats", help="how much have the filters learned?")
    stats.add_argument("user", metavar="USER", nargs="?", help="address of one account; all of them without")
    train = verbs.add_parser("train", help="learn from mail that is there")
    train.add_argument("user", metavar="USER", help="address of the account")
    train.add_argument("folders", metavar="FOLDER", nargs="*", help="wanted mail; INBOX without, what was read of it")
    train.add_argument("--junk", metavar="FOLDER", help="unwanted mail; without, the folder with the special use Junk")
    train.add_argument("--limit", metavar="N", type=int, default=2000, help="newest messages of each folder (2000)")
    reset = verbs.add_parser("reset", help="forget what the filter of an account has learned")
    reset.add_argument("user", metavar="USER", help="address of the account")


def run(args: argparse.Namespace, context: Context) -> int:
    try:
        return {"stats": _stats, "train": _train, "reset": _reset}[args.verb](args, context)
    except NotebookUnusable as e:
        raise CtlError(f"what was learned can't be read or written: {e}") from None


def _home(context: Context, account: str) -> Path:
    return Path(os.fsdecode(owner_of(account).path(os.fsencode(context.config.mail.root))))


def _notebooks(context: Context) -> Notebooks:
    return Notebooks(lambda account: _home(context, account), max_tokens=context.config.junk.max_tokens)


def _stats(args: argparse.Namespace, context: Context) -> int:
    notebooks = _notebooks(context)
    settings = context.config.junk
    rows: list[tuple[object, ...]] = []
    for owner in accounts(context, args.user):
        totals = notebooks.use(owner.email, Notebook.totals) or Totals()
        active = min(totals.spam, totals.ham) >= settings.min_learned
        rows.append((owner.email, totals.spam, totals.ham, totals.tokens, totals.senders, active))
    notebooks.close()
    context.out.table(["User", "Junk", "Wanted", "Words", "Senders", "Active"], rows)
    if context.config.rspamd.url or not settings.own_filter:
        context.out.warn("the accounts' own filters are off: rspamd is used, or [junk] own_filter = false")
    return Exit.OK


def _reset(args: argparse.Namespace, context: Context) -> int:
    next(accounts(context, args.user))
    email = owner_of(args.user).email
    there = _notebooks(context).forget(email)
    text = f"{email}: the filter has forgotten everything" if there else f"{email}: nothing had been learned"
    context.out.done(text, email=email, forgotten=there)
    return Exit.OK


def _train(args: argparse.Namespace, context: Context) -> int:
    if context.config.rspamd.url:
        raise CtlError("rspamd filters mail here, and learns by: rspamc learn_spam, rspamc learn_ham")
    next(accounts(context, args.user))
    learned = asyncio.run(_learn(args, context, owner_of(args.user)))
    totals = _notebooks(context).use(owner_of(args.user).email, Notebook.totals) or Totals()
    done = ", ".join(f"{count} of {name}" for name, count in learned)
    text = f"learned {done}; now {totals.spam} messages of junk and {totals.ham} others"
    least = context.config.junk.min_learned
    if min(totals.spam, totals.ham) < least:
        text += f"; the filter begins to work at {least} of each"
    context.out.done(text, learned=dict(learned), junk=totals.spam, wanted=totals.ham)
    return Exit.OK


async def _learn(args: argparse.Namespace, context: Context, owner: Owner) -> list[tuple[str, int]]:
    """The folders, and how many messages of each were new."""
    config = context.config
    own_filter = Filter(
        lambda account: _home(context, account), config.junk, hostname=config.hostname, taught=taught_file(config)
    )
    store = Store(config.mail, render=None, runtime_dir=None, hostname=config.hostname)
    await store.start()
    try:
        return [
            (name, await _learn_folder(context.out, store, own_filter, owner, name, kind, args.limit))
            for name, kind in _plan(args, await store.folders(owner) if args.junk is None else [])
        ]
    except NoSuchMailbox as e:
        raise CtlError(f"{owner.email}: {e}") from None
    except StoreError as e:
        raise CtlError(f"{owner.email}: {e} ({e.reason})") from None
    finally:
        await store.close()
        await own_filter.close()


def _plan(args: argparse.Namespace, folders: Sequence[Folder]) -> Iterator[tuple[str, Kind]]:
    junk = args.junk
    if junk is None:
        junk = next((f.name for f in folders if f.special_use == _JUNK and f.exists), None)
        if junk is None:
            raise CtlError("there is no folder with the special use Junk; name it with --junk", Exit.USAGE)
    if junk in args.folders:
        raise CtlError(f"{junk} can't be both junk and wanted mail", Exit.USAGE)
    yield junk, Kind.SPAM
    for name in args.folders or ["INBOX"]:
        yield name, Kind.KEPT


async def _learn_folder(
    out: Output, store: Store, own_filter: Filter, owner: Owner, name: str, kind: Kind, limit: int
) -> int:
    try:
        mailbox = await store.open(owner, name, read_only=True)
    except NoSuchMailbox:
        raise NoSuchMailbox(f"there is no folder {name}") from None
    try:
        uids = await _chosen(mailbox, kind, limit)
        new = 0
        with out.progress(name, len(uids)) as step:
            async for _, message in mailbox.messages(uids):
                step()
                if message is None or message.octets > _MAX_OCTETS:
                    continue
                try:
                    new += await asyncio.to_thread(own_filter.learn, owner.email, await message.read(), kind)
                except LessonRefused as e:
                    raise CtlError(str(e)) from None
        return new
    finally:
        mailbox.close()


async def _chosen(mailbox: Mailbox, kind: Kind, limit: int) -> list[int]:
    """The newest messages; of wanted mail in INBOX those that were read, since nobody has judged the others."""
    uids: list[int] = []
    async for rows in mailbox.rows(mailbox.uids):
        for uid, _, flags, *_ in rows:
            judged = kind is Kind.SPAM or mailbox.name != "INBOX" or flags & SEEN
            if judged and not flags & DELETED:
                uids.append(uid)
    return uids[-limit:] if limit > 0 else []
