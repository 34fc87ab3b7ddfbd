"""pymxctl adopt: take over the mailboxes of a Dovecot, in place; with --check look whether that will go well.

`--check` writes nothing into the tree and may run beside Dovecot. With `--exec` or `--compare` it asks the running
Dovecot for everything and says where pymx would answer otherwise. Exit status 1: something is wrong or differs.

`adopt` itself converts nothing, for there is nothing to convert: it refuses while Dovecot runs or the configuration
does not fit the tree, and else says that pymx may be started. Each account is taken over at its first use; with USER
that happens at once.

`adopt --from-postfix DIR --from-dovecot DIR` makes the configuration first (pymx.admin.takeover).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from pymx.admin import dovecot, takeover
from pymx.admin.context import Context, CtlError, Exit
from pymx.admin.mailbox import accounts, printable
from pymx.ms.dovecotplace import Place, control_root, expand
from pymx.ms.errors import StoreError
from pymx.ms.fault import Finding
from pymx.ms.layout import Layout
from pymx.ms.owner import Owner
from pymx.ms.survey import Survey, layout_of, survey

if TYPE_CHECKING:
    from pymx.admin.compare import Comparison
    from pymx.admin.imap_client import Client

_IMAPS = 993


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("user", metavar="USER", nargs="?", help="address of one account; all of them without")
    parser.add_argument("--check", action="store_true", help="look only; Dovecot may be running")
    parser.add_argument("--dovecot-config", metavar="FILE", help=f"Dovecot's configuration ({dovecot.DEFAULT_CONFIG})")
    parser.add_argument(
        "--quick", action="store_true", help="with --check: don't read the messages (finds no wrong W=)"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--exec",
        metavar="COMMAND",
        help="with --check: compare with what this command answers, which speaks IMAP logged in already, such as "
        "'doveadm exec imap -u %%u' (%%u is the account)",
    )
    source.add_argument("--compare", metavar="HOST[:PORT]", help="with --check: compare with this server, over TLS")
    parser.add_argument("--login", metavar="NAME", help="for --compare (default: USER)")
    parser.add_argument(
        "--password-stdin", action="store_true", help="for --compare: the password is on standard input"
    )
    parser.add_argument("--insecure", action="store_true", help="for --compare: take any certificate")
    takeover.add_arguments(parser)


def run(args: argparse.Namespace, context: Context) -> int:
    if takeover.wanted(args):
        return takeover.run(args, context)
    if not context.config_path.exists():
        raise CtlError(f"there is no {context.config_path}; make it: pymxctl adopt --from-postfix … --from-dovecot …")
    if (args.exec or args.compare) and not args.check:
        raise CtlError("comparing goes with --check", Exit.USAGE)
    if args.compare and (not args.user or not args.password_stdin):
        raise CtlError("--compare needs USER and --password-stdin (and --login NAME if that is another)", Exit.USAGE)
    settings = dovecot.settings(args.dovecot_config)  # as root, if we are: the file may be root's only
    alive = dovecot.running(settings.base_dir)
    context.become_user()
    if args.check:
        return _check(args, context, settings, alive)
    return _adopt(args, context, settings, alive)


def place_of(context: Context, settings: dovecot.Settings, owner: Owner) -> Place:
    """The account's directories as Dovecot has them."""
    root = owner.path(os.fsencode(context.config.mail.root))
    home = expand(settings.home, owner)
    control, index = (
        os.fsencode(expand(part, owner, home)) for part in (settings.location.control, settings.location.index)
    )
    if not control or not os.path.isdir(control):
        control = control_root(context.config.mail.control_dir, owner)
    return Place(root, context.config.mail.layout == "fs", control, index if os.path.isdir(index) else b"")


# Does the configuration fit?


def unfit(context: Context, settings: dovecot.Settings, *, named: bool) -> Iterator[Finding]:
    """What Dovecot's configuration and pymx's say differently of all accounts."""
    mail, location = context.config.mail, settings.location
    if not settings.known:
        text = "Dovecot's configuration was not found here: layout, separator and prefix are not compared with it"
        yield Finding("", "no_doveconf", text, "name it with --dovecot-config FILE", wrong=False)
        return
    if location.kind != "maildir":
        if not named:  # as Debian installs it
            text = f"the Dovecot configured here keeps mail as {location.kind or 'it finds it'}: not these Maildirs"
            yield Finding("", "other_dovecot", text, "name its configuration with --dovecot-config FILE", wrong=False)
            return
        text = f"Dovecot keeps mail as {location.kind or 'it finds it'}, pymx only as Maildir"
        yield Finding("", "not_maildir", text, "convert it first: doveadm sync -u USER maildir:DIRECTORY")
    layout = {"maildir++": "maildir++", "fs": "fs"}.get(location.layout)
    if layout is None:
        yield Finding("", "layout_unknown", f"Dovecot has LAYOUT={location.layout}, which pymx does not know")
    elif layout != mail.layout:
        text = f"Dovecot's layout is {layout}, pymx's {mail.layout}"
        yield Finding("", "layout_other", text, f'set layout = "{layout}" under [mail] in pymx.toml')
    for key, theirs, ours in (
        ("separator", settings.separator, mail.separator),
        ("prefix", settings.prefix, mail.prefix),
    ):
        if theirs != ours:
            text = f"clients of Dovecot see the {key} {theirs!r}, those of pymx {ours!r}"
            yield Finding("", f"{key}_other", text, f'set {key} = "{theirs}" under [mail] in pymx.toml')
    sample = Owner("example.com", "alice")
    path = expand(location.path, sample, expand(settings.home, sample)).rstrip("/")
    wanted = os.fsdecode(sample.path(os.fsencode(mail.root)))
    per_account = any(mark in location.path for mark in ("%", "~"))  # else it is for one user only
    if per_account and "%" not in path and not path.startswith("~") and path != wanted:
        text = f"Dovecot has the mail of alice@example.com in {path}, pymx in {wanted}"
        yield Finding("", "root_other", text, "set root under [mail] in pymx.toml, or move the directories")
    if "mail_crypt" in settings.packing:
        text = "Dovecot encrypts mail (mail_crypt); pymx can't read such files"
        yield Finding("", "packing", text, "switch the plugin off and let Dovecot write these messages anew")
    elif settings.packing:
        text = (
            f"Dovecot compresses mail ({', '.join(settings.packing)}); pymx serves what is compressed with gzip or zstd"
        )
        yield Finding("", "packing", text + ", and leaves new mail as it is", wrong=False)


def apart(context: Context, settings: dovecot.Settings, owner: Owner, place: Place) -> Iterator[Finding]:
    """Dovecot's files in directories of their own: does pymx know of them?"""
    if place.control != control_root(context.config.mail.control_dir, owner):
        where = os.fsdecode(place.control)
        text = f"Dovecot has uidlists, keywords and subscriptions apart, in {where}"
        template = settings.location.control.replace("~", settings.home, 1)
        remedy = f'set control_dir = "{template}" under [mail] in pymx.toml'
        yield Finding("", "control_apart", text, remedy)
    if place.index:
        text = f"Dovecot has its indexes apart (INDEX={os.fsdecode(place.index)}); pymx does not need them"
        yield Finding("", "index_apart", text, wrong=False)


# --check


def _check(args: argparse.Namespace, context: Context, settings: dovecot.Settings, alive: str) -> int:
    mail = context.config.mail
    layout = Layout(mail.layout, mail.separator)
    general = list(unfit(context, settings, named=bool(args.dovecot_config)))
    if not context.json:
        print(f"Dovecot: {alive or 'does not run here'}")
        if settings.known:
            said = f"layout {settings.location.layout}, separator {settings.separator!r}, prefix {settings.prefix!r}"
            print(printable(f"Dovecot's configuration: {settings.location.path}, {said}"))
        _print("", general)
    bad = any(finding.wrong for finding in general)
    reports = []
    for owner in accounts(context, args.user):
        place = place_of(context, settings, owner)
        seen = survey(place, layout, user=owner.email, read_messages=not args.quick)
        seen.findings += apart(context, settings, owner, place)
        compared = _compared(args, context, owner, place)
        bad = bad or any(finding.wrong for finding in seen.findings) or bool(compared and compared.differences)
        if context.json:
            reports.append(_report(owner, seen, compared))
        else:
            _show(owner, seen, compared)
    if context.json:
        context.out.done("", dovecot_runs=alive, findings=[asdict(f) for f in general], accounts=reports, sound=not bad)
    else:
        print("something is to be done first, see above" if bad else "nothing stands in the way of: pymxctl adopt")
    return Exit.FAILED if bad else Exit.OK


def _compared(args: argparse.Namespace, context: Context, owner: Owner, place: Place) -> Comparison | None:
    if not args.exec and not args.compare:
        return None
    from pymx.admin.compare import compare

    client = _client(args, owner)
    try:
        return compare(client, context.config.mail, owner, place, context.config.hostname)
    finally:
        client.close()


def _client(args: argparse.Namespace, owner: Owner) -> Client:
    from pymx.admin.imap_client import Client

    if args.exec:
        return Client.command(args.exec.replace("%u", owner.email))
    host, colon, port = args.compare.rpartition(":")
    if not colon or not port.isdigit() or host.endswith(":"):
        host, port = args.compare, str(_IMAPS)
    password = sys.stdin.readline().rstrip("\r\n")
    return Client.tls(host.strip("[]"), int(port), args.login or owner.email, password, verify=not args.insecure)


def _report(owner: Owner, seen: Survey, compared: Comparison | None) -> dict[str, object]:
    out: dict[str, object] = {
        "user": owner.email,
        "layout": seen.layout,
        "mailboxes": seen.mailboxes,
        "messages": seen.messages,
        "findings": [asdict(finding) for finding in seen.findings],
    }
    if compared is not None:
        out["compared"] = {
            "mailboxes": compared.mailboxes,
            "messages": compared.messages,
            "prefix": compared.prefix,
            "separator": compared.separator,
            "differences": dict(compared.differences),
            "examples": [asdict(example) for example in compared.examples],
        }
    return out


def _show(owner: Owner, seen: Survey, compared: Comparison | None) -> None:
    layout = f", layout {seen.layout}" if seen.layout else ""
    print(f"{owner.email}: {seen.mailboxes} mailboxes, {seen.messages} messages{layout}")
    _print("  ", seen.findings)
    if compared is None:
        return
    counts = ", ".join(f"{item} {count}" for item, count in sorted(compared.differences.items()))
    print(
        f"  compared {compared.messages} messages in {compared.mailboxes} mailboxes, prefix {compared.prefix!r}, "
        f"separator {compared.separator!r}: {f'differences: {counts}' if counts else 'no difference'}"
    )
    for e in compared.examples:
        where = f"{e.mailbox} UID {e.uid}" if e.uid else e.mailbox
        print(printable(f"    {where}: {e.item}: pymx {e.pymx[:300]} | Dovecot {e.other[:300]}"))


def _print(indent: str, findings: list[Finding]) -> None:
    for finding in findings:
        where = f"{finding.mailbox}: " if finding.mailbox else ""
        print(printable(f"{indent}{'' if finding.wrong else 'note: '}{where}{finding.text}"))
        if finding.remedy:
            print(printable(f"{indent}    {finding.remedy}"))


# Taking over


def _adopt(args: argparse.Namespace, context: Context, settings: dovecot.Settings, alive: str) -> int:
    if alive:
        raise CtlError(f"Dovecot runs: {alive}; stop it first: systemctl disable --now dovecot dovecot.socket")
    wrong = [f for f in unfit(context, settings, named=bool(args.dovecot_config)) if f.wrong and f.kind != "packing"]
    if wrong:
        raise CtlError(f"{wrong[0].text}; {wrong[0].remedy}")
    mail = context.config.mail
    count = 0
    for owner in accounts(context, args.user):
        place = place_of(context, settings, owner)
        _refuse(context, settings, owner, place)
        count += 1
        if args.user:
            _take(context, owner)
    if args.user:
        context.out.done(f"{args.user} is taken over", accounts=count, user=args.user)
        return Exit.OK
    text = f"{count} accounts under {mail.root} are ready; each is taken over at its first use: systemctl start pymx"
    context.out.done(text, accounts=count)
    return Exit.OK


def _refuse(context: Context, settings: dovecot.Settings, owner: Owner, place: Place) -> None:
    """CtlError for what would make an account look empty or wrong."""
    held = dovecot.locks(place.root)
    if held:
        raise CtlError(f"{owner.email}: a process still holds {held[0]}; is Dovecot, or its lda, still running?")
    found = layout_of(place.root)
    if found in ("fs", "maildir++") and found != context.config.mail.layout:
        raise CtlError(f'{owner.email}: the folders are of the layout {found}; set layout = "{found}" under [mail]')
    blocking = [finding for finding in apart(context, settings, owner, place) if finding.wrong]
    if blocking:
        raise CtlError(f"{owner.email}: {blocking[0].text}; {blocking[0].remedy}")


def _take(context: Context, owner: Owner) -> None:
    """Read every mailbox into the index now, as the first use would."""
    from pymx.ms.errors import translated
    from pymx.ms.mend import open_account

    account = open_account(context.config.mail, owner, context.config.hostname)
    try:
        with translated():
            for levels in list(account.layout.mailboxes(account.home.root)):
                account.box(levels).refresh()
    except StoreError as error:
        raise CtlError(f"{owner.email}: {error} ({error.reason})") from None
    finally:
        account.close()
