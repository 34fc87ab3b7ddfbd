"""pymxctl bans list|add|remove|explain.

Works on the file that the server's processes share (`<data_dir>/limits.sqlite`), whether they run or not: a running
server sees a change at the next login, and at the greeting within a second.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pymx.accounts.banrules import FORGIVEN_S, Rules, account_key
from pymx.accounts.limitstate import FILE_NAME, Ban, Guesses, LimitState, LimitStateError
from pymx.admin.context import Context, CtlError, Exit
from pymx.mail.peer import Networks, named_network

_DURATION = re.compile(r"(\d+)([smhdw])\Z")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    verbs.add_parser("list", help="the addresses that can't log in now")
    add = verbs.add_parser("add", help="keep an address or network from logging in")
    add.add_argument("network", type=_network, metavar="ADDRESS", help="or a network such as 192.0.2.0/24")
    add.add_argument(
        "--for", dest="duration_s", type=_duration, metavar="TIME", help="30m, 12h, 7d (default: ban_max_s)"
    )
    add.add_argument("--reason", default="", help="for whoever asks later")
    remove = verbs.add_parser("remove", help="lift a ban, and forget the wrong passwords that led to it")
    remove.add_argument("network", type=_network, metavar="ADDRESS")
    explain = verbs.add_parser("explain", help="why an address or account is banned, slow, or not")
    explain.add_argument("subject", metavar="ADDRESS", help="an IP address, or the address of an account")


def _network(text: str) -> str:
    try:
        return named_network(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an address or network such as 192.0.2.0/24") from None


def _duration(text: str) -> int:
    match = _DURATION.match(text)
    if not match or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; write 30m, 12h or 7d")
    return int(match[1]) * _UNITS[match[2]]


def run(args: argparse.Namespace, context: Context) -> int:
    with _state(context) as state:
        return _VERBS[args.verb](args, context, state)


@contextmanager
def _state(context: Context) -> Iterator[LimitState]:
    path = Path(context.config.data_dir) / FILE_NAME
    try:
        state = LimitState(path, Rules.of(context.config.limits))
        try:
            if state.moved is not None:
                context.out.warn(f"{path} was damaged and is now {state.moved}; bans and counters begin anew")
            yield state
        finally:
            state.close()
    except LimitStateError as e:
        raise CtlError(f"{path}: {e}", Exit.UNAVAILABLE) from None


def _list(args: argparse.Namespace, context: Context, state: LimitState) -> int:
    bans = state.bans(time.time())
    if context.json:
        columns = list(_facts(bans[0])) if bans else []
        rows: list[list[object]] = [list(_facts(ban).values()) for ban in bans]
        context.out.table(columns, rows)
        return Exit.OK
    context.out.table(
        ["Address", "Since", "Until", "By", "Reason", "May log in all the same"],
        [
            [
                b.network,
                _local(b.since_s),
                _local(b.until_s),
                "hand" if b.manual else "rule",
                b.reason,
                _some(b.accounts),
            ]
            for b in bans
        ],
        empty="nobody is banned",
    )
    return Exit.OK


def _add(args: argparse.Namespace, context: Context, state: LimitState) -> int:
    limits, now = context.config.limits, time.time()
    address = args.network.partition("/")[0]
    if "/" not in args.network and address in Networks(limits.trusted):
        raise CtlError(f"{args.network} is in [limits] trusted, and those are never banned; take it out there first")
    until_s = now + (args.duration_s or limits.ban_max_s)
    with state.transaction():
        ban = state.ban(args.network, until_s, args.reason or "by the administrator", now)
    context.out.done(f"{args.network} can't log in until {_local(until_s)}", **_facts(ban))
    return Exit.OK


def _remove(args: argparse.Namespace, context: Context, state: LimitState) -> int:
    with state.transaction():
        had = state.lift(args.network)
    if not had:
        wider = state.ban_on(args.network, time.time())
        if wider is not None:
            raise CtlError(f"{args.network} is banned with {wider.network}: pymxctl bans remove {wider.network}")
        raise CtlError(f"{args.network} is not banned")
    context.out.done(f"{args.network} may log in again", network=args.network)
    return Exit.OK


def _explain(args: argparse.Namespace, context: Context, state: LimitState) -> int:
    if "@" in args.subject:
        return _explain_account(account_key(args.subject), context, state)
    try:
        network = named_network(args.subject)
    except ValueError:
        raise CtlError(f"{args.subject!r} is neither an IP address nor an account's address", Exit.USAGE) from None
    return _explain_network(network, context, state)


def _explain_network(network: str, context: Context, state: LimitState) -> int:
    limits, rules, now = context.config.limits, state.rules, time.time()
    trusted = network.partition("/")[0] in Networks(limits.trusted)
    ban, former = state.ban_on(network, now), state.former_ban(network)
    guesses, logins = state.guesses(network=network, now=now), state.logins(network=network, now=now)
    counted = state.counted(network, now)
    level = former.level if former is not None and former.until_s + FORGIVEN_S > now else 0
    next_wait_s = rules.wait_s(sum(g.times for g in guesses) + 1, 0)
    facts: dict[str, object] = {
        "network": network,
        "trusted": trusted,
        "banned": ban is not None and not trusted,
        "ban": _facts(ban) if ban else None,
        "bans_so_far": level,
        "counted_wrong_passwords": counted,
        "ban_after": rules.ban_after,
        "next_ban_s": round(rules.ban_s(level)),
        "next_wait_s": next_wait_s,
        "guesses": [_guesses(g) for g in guesses],
        "good_logins": [{"account": account, "last": _iso(when)} for _, account, when in logins],
    }
    if context.json:
        context.out.details(facts)
        return Exit.OK
    for line in _sentences(network, trusted, ban, counted, level, rules):
        print(line)
    if not trusted and guesses:
        print(f"The next wrong password is answered after {next_wait_s:g} s.")
    for guess in guesses:
        print(
            f"  {guess.account}: {guess.distinct} different wrong passwords, {guess.times} tries, "
            f"the last at {_local(guess.last_s)}"
        )
    for _, account, when in logins:
        print(f"  {account}: a good login at {_local(when)}, so it is never kept out from there")
    return Exit.OK


def _sentences(network: str, trusted: bool, ban: Ban | None, counted: int, level: int, rules: Rules) -> Iterator[str]:
    if trusted:
        yield f"{network} is in [limits] trusted: never banned, never slowed."
        return
    if ban is not None:
        yield f"{network} can't log in until {_local(ban.until_s)}: {ban.reason}."
        if ban.accounts:
            yield f"Logins to {_some(ban.accounts)} go on: they succeeded from there within the last days."
        yield f"To lift it: pymxctl bans remove {ban.network}"
        return
    yield f"{network} is not banned."
    if not rules.ban_after:
        yield "Addresses are never banned: [limits] ban_after = 0."
        return
    yield (
        f"{counted} of {rules.ban_after} different wrong passwords within {_span(rules.window_s)}; "
        f"with the last one it is banned for {_span(rules.ban_s(level))}"
        + (f", after {level} earlier ban{'s' if level > 1 else ''}." if level else ".")
    )


def _explain_account(account: str, context: Context, state: LimitState) -> int:
    now, limits = time.time(), context.config.limits
    guesses, logins = state.guesses(account=account, now=now), state.logins(account=account, now=now)
    sent = state.sent(account, now)
    if context.json:
        context.out.details(
            {
                "account": account,
                "guesses": [_guesses(g) for g in guesses],
                "good_logins": [{"network": network, "last": _iso(when)} for network, _, when in logins],
                "sent_messages": sent.messages,
                "sent_new_recipients": sent.new_recipients,
            }
        )
        return Exit.OK
    print(
        f"{account} sent {sent.messages} messages within 24 hours (limit {limits.account_messages_per_day or 'none'}), "
        f"to {sent.new_recipients} new recipients (limit {limits.account_new_recipients_per_day or 'none'})."
    )
    for network, _, when in logins:
        print(f"  {network}: a good login at {_local(when)}")
    for guess in guesses:
        print(
            f"  {guess.network}: {guess.distinct} different wrong passwords, {guess.times} tries, "
            f"the last at {_local(guess.last_s)}"
        )
    return Exit.OK


_VERBS = {"list": _list, "add": _add, "remove": _remove, "explain": _explain}


def _facts(ban: Ban) -> dict[str, object]:
    return {
        "network": ban.network,
        "since": _iso(ban.since_s),
        "until": _iso(ban.until_s),
        "manual": ban.manual,
        "reason": ban.reason,
        "exempt": list(ban.accounts),
    }


def _guesses(guesses: Guesses) -> dict[str, object]:
    return {
        "network": guesses.network,
        "account": guesses.account,
        "distinct": guesses.distinct,
        "times": guesses.times,
        "first": _iso(guesses.first_s),
        "last": _iso(guesses.last_s),
    }


def _some(accounts: tuple[str, ...]) -> str:
    return ", ".join(accounts[:3]) + (f" and {len(accounts) - 3} more" if accounts[3:] else "")


def _span(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size or (seconds >= size and seconds % size == 0):
            count = round(seconds / size)
            return f"{count} {unit if count != 1 else unit[:-1]}"
    return f"{round(seconds)} seconds"


def _iso(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds")


def _local(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s).astimezone().strftime("%Y-%m-%d %H:%M:%S")
