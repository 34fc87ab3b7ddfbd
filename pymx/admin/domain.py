"""pymxctl domain add|list|remove."""

from __future__ import annotations

import argparse

from pymx.admin.accounts import registry
from pymx.admin.context import Context, Exit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    add = verbs.add_parser("add", help="receive mail for a domain")
    add.add_argument("domain")
    verbs.add_parser("list", help="the domains, with how many users and aliases they have")
    remove = verbs.add_parser("remove", help="remove a domain that has no users; its aliases go with it")
    remove.add_argument("domain")


def run(args: argparse.Namespace, context: Context) -> int:
    with registry(context) as accounts:
        if args.verb == "add":
            name = accounts.add_domain(args.domain)
            context.accounts_changed()
            context.out.done(f"{name} added", domain=name)
        elif args.verb == "remove":
            gone = accounts.remove_domain(args.domain)
            context.accounts_changed()
            aliases = f", and its aliases {', '.join(alias.source for alias in gone)}" if gone else ""
            context.out.done(
                f"{args.domain.lower()} removed{aliases}",
                domain=args.domain.lower(),
                aliases=[alias.source for alias in gone],
            )
        else:
            context.out.table(
                ["Domain", "Users", "Aliases"],
                [(domain.name, domain.users, domain.aliases) for domain in accounts.domains()],
                empty="no domains yet; add one: pymxctl domain add NAME",
            )
    return Exit.OK
