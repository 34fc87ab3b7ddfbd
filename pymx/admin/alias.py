"""pymxctl alias add|list|remove."""

from __future__ import annotations

import argparse

from pymx.accounts.registry import AliasEntry, Registry
from pymx.admin.accounts import registry
from pymx.admin.context import Context, Exit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    add = verbs.add_parser("add", help="make an alias, or add destinations to it")
    add.add_argument("source", metavar="SOURCE", help="an address, or @domain for all that nothing else takes")
    add.add_argument("destinations", metavar="DESTINATION", nargs="+", help="an address here or elsewhere, or @domain")
    listing = verbs.add_parser("list", help="the aliases")
    listing.add_argument("--domain", help="of this domain only")
    remove = verbs.add_parser("remove", help="remove an alias, or some of its destinations")
    remove.add_argument("source", metavar="SOURCE")
    remove.add_argument("destinations", metavar="DESTINATION", nargs="*", help="only these")


def run(args: argparse.Namespace, context: Context) -> int:
    with registry(context) as accounts:
        if args.verb == "list":
            context.out.table(
                ["Source", "Destinations"],
                [(alias.source, list(alias.destinations)) for alias in accounts.aliases(args.domain)],
                empty="no aliases",
            )
            return Exit.OK
        if args.verb == "add":
            alias = accounts.add_alias(args.source, args.destinations)
        else:
            alias = accounts.remove_alias(args.source, args.destinations)
        context.accounts_changed()
        if args.verb == "add":
            _warn_of_hidden_user(alias, context, accounts)
    context.out.done(_sentence(alias), source=alias.source, destinations=list(alias.destinations))
    return Exit.OK


def _warn_of_hidden_user(alias: AliasEntry, context: Context, accounts: Registry) -> None:
    """An alias wins over the user of its name."""
    if alias.source.startswith("@") or alias.source in map(str.lower, alias.destinations):
        return
    if accounts.has_user(alias.source):
        context.out.warn(
            f"{alias.source} is a user, whose mail goes to {', '.join(alias.destinations)} now and not to the mailbox; "
            f"to keep a copy there: pymxctl alias add {alias.source} {alias.source}"
        )


def _sentence(alias: AliasEntry) -> str:
    if not alias.destinations:
        return f"{alias.source} removed"
    return f"{alias.source} leads to {', '.join(alias.destinations)}"
