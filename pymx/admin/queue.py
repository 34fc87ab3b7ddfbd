"""pymxctl queue list|show|retry|hold|release|remove|paces|rebuild.

Reads and changes the queue's state directly, so it works while the server runs and while it doesn't; a running one is
told to look, and would see it within a second anyway.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pymx.admin.context import Context, CtlError, Exit
from pymx.admin.control_client import ControlError
from pymx.mail.envelope import Envelope, Recipient
from pymx.queue import browse
from pymx.queue.browse import Selection
from pymx.queue.files import DamagedFile, Files
from pymx.queue.item import QueueId
from pymx.queue.lock import exclusive, shared
from pymx.queue.pace import Pace, Rules
from pymx.queue.pacefile import load
from pymx.queue.place import Limits
from pymx.queue.rebuild import rebuild
from pymx.queue.state import State, StateDamaged
from pymx.queue.window import is_of_use

_PAGE = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    listing = verbs.add_parser("list", help="what waits, oldest first")
    _add_selection(listing, required=False)
    listing.add_argument("--limit", type=int, default=_PAGE, help=f"lines to show (default {_PAGE}; 0 = all)")
    listing.add_argument("--offset", type=int, default=0, help="lines to skip")
    show = verbs.add_parser("show", help="one message: envelope, header, every attempt, what comes next")
    show.add_argument("queue_id", metavar="ID")
    for verb, text in (
        ("retry", "try now"),
        ("hold", "keep from being tried"),
        ("release", "end a hold and try now"),
        ("remove", "delete without telling the sender"),
    ):
        _add_selection(verbs.add_parser(verb, help=text), required=True)
    verbs.add_parser("paces", help="providers and destinations that are slowed down, dead or counted")
    verbs.add_parser("rebuild", help="make the state database anew from the message files")


def _add_selection(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument("queue_ids", metavar="ID", nargs="*", help="messages")
    parser.add_argument("--sender", default="", metavar="ADDRESS", help="from this sender; <> is the null sender")
    parser.add_argument("--domain", default="", metavar="DOMAIN", help="to recipients in this domain")
    if required:
        parser.add_argument("--all", action="store_true", dest="everything", help="the whole queue")
    parser.set_defaults(selecting=required)


def run(args: argparse.Namespace, context: Context) -> int:
    directory = Path(context.config.data_dir) / "queue"
    if not directory.is_dir():
        raise CtlError(f"there is no queue at {directory}; is data_dir right, and has the server run?")
    if args.verb == "rebuild":
        return _rebuild(directory, context)
    if args.verb == "paces":
        return _paces(directory, context)
    with _opened(directory) as (state, files):
        if args.verb == "show":
            return _show(state, files, args.queue_id, context)
        selection = Selection(
            args.queue_ids, args.sender.strip("<>") or args.sender, args.domain, getattr(args, "everything", False)
        )
        if args.verb == "list":
            return _list(state, selection, args, context)
        if selection.is_empty:
            raise CtlError(
                f"say which: ID, --sender, --domain, or --all (see pymxctl queue {args.verb} --help)", Exit.USAGE
            )
        return _alter(state, files, args.verb, selection, context)


@contextmanager
def _opened(directory: Path) -> Iterator[tuple[State, Files]]:
    state, files = State(directory / "state.sqlite"), Files(directory)
    try:
        with shared(directory):  # while a rebuild goes on there is none, or half of one
            state.open()
        files.open()
        yield state, files
    except StateDamaged as e:
        raise CtlError(
            f"the queue's state can't be read ({e}); a running server repairs it, or: pymxctl queue rebuild"
        ) from e
    finally:
        state.close()
        files.close()


def _alter(state: State, files: Files, verb: str, selection: Selection, context: Context) -> int:
    if verb == "hold":
        count, done = browse.hold(state, selection), "held"
    elif verb == "retry":
        count, done = browse.retry(state, selection, time.time(), release=False), "to be tried now"
    elif verb == "release":
        count, done = browse.retry(state, selection, time.time(), release=True), "released"
    else:
        count, done = browse.remove(state, files, selection), "removed"
    if not count:
        raise CtlError("no such message in the queue")
    _poke(context)
    context.out.done(f"{count} message{'' if count == 1 else 's'} {done}", count=count)
    return Exit.OK


def _poke(context: Context) -> None:
    try:
        context.control.call("queue_changed", timeout_s=5.0)
    except ControlError:
        pass  # not running, or it looks by itself within a second


def _rebuild(directory: Path, context: Context) -> int:
    state, files = State(directory / "state.sqlite"), Files(directory)
    try:
        files.open()
        with exclusive(directory):  # as the committer's repair: no process may be between a file's name and its rows
            count = rebuild(state, files, context.config.outbound.route)
    finally:
        state.close()
        files.close()
    _poke(context)
    context.out.done(f"{count} message{'' if count == 1 else 's'} found; the old state was moved aside", count=count)
    return Exit.OK


def _list(state: State, selection: Selection, args: argparse.Namespace, context: Context) -> int:
    found = browse.lines(state, selection, limit=args.limit, offset=args.offset)
    if context.json:
        columns = ["Queue ID", "Arrived", "Size octets", "Mail from", "Destination", "Rcpt to", "State", "Attempts",
                   "Next", "Reason"]  # fmt: skip
        rows: list[tuple[object, ...]] = [
            (x.queue_id, _iso(x.arrived_s), x.size_octets, x.mail_from, x.destination, list(x.recipients), x.state,
             x.attempts, _iso(x.next_s), x.reason)
            for x in found
        ]  # fmt: skip
    else:
        columns = ["Queue ID", "Arrived", "Octets", "From", "To", "State", "Next try", "Reason"]
        rows = [
            (x.queue_id, _local(x.arrived_s), x.size_octets, x.mail_from or "<>", _some(x.recipients), x.state,
             _local(x.next_s) if x.state == "deferred" else "", x.reason[:60])
            for x in found
        ]  # fmt: skip
    context.out.table(columns, rows, empty="the queue is empty")
    return Exit.OK


def _show(state: State, files: Files, queue_id: str, context: Context) -> int:
    waiting = browse.lines(state, Selection([queue_id]))
    if not waiting:
        raise CtlError(f"{queue_id} is not in the queue (delivered or given up: see the log)")
    try:
        message = files.read(QueueId(queue_id))
    except (FileNotFoundError, DamagedFile) as e:
        raise CtlError(f"{queue_id}: its file can't be read: {e}") from e
    envelope = message.envelope
    notices = {str(recipient.address): _notice(recipient) for recipient in envelope.recipients}
    facts: dict[str, object] = {
        "queue_id": queue_id,
        "mail_from": str(envelope.mail_from) if envelope.mail_from else "<>",
        "parameters": " ".join(_parameters(envelope)) or None,
        "account": envelope.origin.account or None,
        "session": envelope.origin.session or None,
        "arrived": _iso(message.arrived_s),
        "size_octets": message.content_octets,
        "header": message.content.head.decode("utf-8", "replace").splitlines(),
        "recipients": [
            {"rcpt_to": rcpt, "destination": x.destination, "state": x.state, "attempts": x.attempts,
             "next": _iso(x.next_s), "why": x.reason, "notice": notices.get(rcpt, "")}
            for x in waiting for rcpt in x.recipients
        ],
        "attempts": [
            {"at": _iso(a.at_s), "number": a.number, "rcpt_to": a.address, "result": a.result, "status": a.status,
             "mx": a.mx, "ip": a.ip, "tls": a.tls, "reply": a.reply}
            for a in browse.history(state, queue_id)
        ],
    }  # fmt: skip
    if context.json:
        context.out.details(facts)
        return Exit.OK
    header = facts.pop("header")
    recipients, attempts = facts.pop("recipients"), facts.pop("attempts")
    context.out.details(facts)
    assert isinstance(header, list)
    assert isinstance(recipients, list)
    assert isinstance(attempts, list)
    for title, entries in (("recipients", recipients), ("attempts", attempts)):
        print(f"\n{title}:")
        context.out.table(list(entries[0]) if entries else [], [list(entry.values()) for entry in entries])
    print("\nheader:")
    for line in header:
        print("  " + "".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in line))
    return Exit.OK


def _parameters(envelope: Envelope) -> list[str]:
    """What the client said in MAIL besides the sender (RFC 3461 s. 4, 6152, 6531, 8689)."""
    words = [f"BODY={envelope.body}"] if envelope.body != "7BIT" else []
    words += ["SMTPUTF8"] if envelope.smtputf8 else []
    words += ["REQUIRETLS"] if envelope.requiretls else []
    words += [f"RET={envelope.ret}"] if envelope.ret else []
    words += [f"ENVID={envelope.envid}"] if envelope.envid else []
    return words


def _notice(recipient: Recipient) -> str:
    """Which reports are wanted, and what the recipient was called at first (RFC 3461 s. 4.1, 4.2)."""
    words = ["NOTIFY=" + ",".join(sorted(recipient.notify))] if recipient.notify else []
    return " ".join([*words, f"ORCPT={recipient.orcpt}"] if recipient.orcpt else words)


def _paces(directory: Path, context: Context) -> int:
    """As the runner wrote them some seconds ago, or at its end."""
    now = time.time()
    rows: list[tuple[object, ...]] = []
    for name, saved in sorted(load(directory).items()):
        pace = Pace(Limits(1, 1), Rules(0.0, 0.0))
        pace.restore(saved, now)
        if not is_of_use(saved, now):
            continue
        paused = pace.paused_until > now
        state = ("dead" if pace.deaths else "slowed down") if paused else "sending"
        until = (_iso if context.json else _local)(pace.paused_until) if paused else ""
        rows.append((name, state, until, pace.reason if paused else "", pace.sent_today))
    context.out.table(
        ["Provider or hosts", "State", "Until", "Reason", "Sent today (UTC)"], rows, empty="nothing is slowed down"
    )
    return Exit.OK


def _some(recipients: tuple[str, ...]) -> str:
    return ", ".join(recipients[:2]) + (f" and {len(recipients) - 2} more" if len(recipients) > 2 else "")


def _iso(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds")


def _local(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s).astimezone().strftime("%Y-%m-%d %H:%M:%S")
