"""Alias expansion as Postfix's virtual_alias_maps do it (virtual(5)), without its queries: the graph and its walk.

The order for an address: the alias of that name, the user of that name, both without the +detail, the catch-all
`@domain` of its domain. So an alias wins over a user of the same name, and a user over the catch-all. An alias may
name itself: that keeps the user's own copy. A destination `@other` stands for the same local part at the other domain.

`walk` asks for one level of addresses at a time, and for each address once, so circles end by themselves; it gives up
with `AliasLoop` beyond the caps on depth and on addresses. `settle` reads the finished graph: a circle ends in the
mailbox it leads back to, if there is one.

Deviation from Postfix: the +detail is not carried over to the destinations.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from pymx.accounts.account import Account, AliasLoop
from pymx.mail.address import Address, AddressError, parse_address, parse_domain

# Destinations are separated by commas and white space; a quoted local part may hold both.
_DESTINATION = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^\s,"])+')


@dataclass(frozen=True, slots=True)
class Node:
    """What an address is. `account`: the mailbox of that name, also when an alias of the name hides it."""

    account: Account | None = None
    destinations: tuple[Address, ...] | None = None  # None: not an alias
    external: bool = False


UNKNOWN = Node()
EXTERNAL = Node(external=True)

Find = Callable[[Sequence[Address]], Awaitable[Mapping[str, Node]]]


@dataclass(frozen=True, slots=True)
class Settled:
    """Where the graph ends: `unknown` are local names without mailbox; `circular`: some way ended in a circle."""

    accounts: tuple[Account, ...]
    external: tuple[Address, ...]
    unknown: tuple[Address, ...]
    circular: bool


def candidates(local_part: str, domain: str, delimiter: str) -> tuple[str, ...]:
    """The keys to look for, most specific first. `local_part` and `domain` are lower case."""
    keys = [f"{local_part}@{domain}"]
    head, sep, _ = local_part.partition(delimiter) if delimiter else (local_part, "", "")
    if sep and head:
        keys.append(f"{head}@{domain}")
    keys.append(f"@{domain}")
    return tuple(keys)


def split_destinations(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The `destinations` column as (addresses and @domains, what is neither)."""
    good, bad = [], []
    for word in _DESTINATION.findall(text):
        stripped = word[1:-1] if word.startswith("<") and word.endswith(">") else word
        try:
            if stripped.startswith("@"):
                parse_domain(stripped[1:])
            else:
                parse_address(stripped)
        except AddressError:
            bad.append(word)
        else:
            good.append(stripped)
    return tuple(dict.fromkeys(good)), tuple(bad)


def destination(text: str, source: Address) -> Address:
    """One word of `split_destinations` for mail to `source`."""
    return Address(source.local_part, parse_domain(text[1:])) if text.startswith("@") else parse_address(text)


async def walk(start: Address, find: Find, *, max_depth: int, max_targets: int) -> dict[str, Node]:
    """Every address that mail to `start` passes, with its node. Raises AliasLoop beyond a cap."""
    nodes: dict[str, Node] = {}
    level: Sequence[Address] = (start,)
    for _ in range(max_depth + 1):
        found = await find(level)
        nodes.update(found)
        following = {
            target.key: target
            for address in level
            for target in found[address.key].destinations or ()
            if target.key not in nodes
        }
        if not following:
            return nodes
        if len(nodes) - 1 + len(following) > max_targets:
            raise AliasLoop(f"{start} leads to more than {max_targets} addresses")
        level = tuple(following.values())
    raise AliasLoop(f"aliases of {start} are nested deeper than {max_depth}")


def settle(start: Address, nodes: Mapping[str, Node]) -> Settled:
    """Where mail to `start` ends, each place once, in the order of the aliases."""
    return _Reading(nodes, stop_at_mailboxes=False).read(start)


def owners(start: Address, nodes: Mapping[str, Node]) -> tuple[Account, ...]:
    """Who may write as `start`. A mailbox's own address is its user's alone, whoever else its alias leads to."""
    return _Reading(nodes, stop_at_mailboxes=True).read(start).accounts


class _Reading:
    """One depth-first pass over a finished graph. Its depth is bounded by the caps of `walk`."""

    def __init__(self, nodes: Mapping[str, Node], *, stop_at_mailboxes: bool) -> None:
        self._nodes = nodes
        self._stop_at_mailboxes = stop_at_mailboxes
        self._accounts: dict[int, Account] = {}
        self._external: dict[str, Address] = {}
        self._unknown: dict[str, Address] = {}
        self._circular = False
        self._done: set[str] = set()
        self._path: set[str] = set()

    def read(self, start: Address) -> Settled:
        self._visit(start)
        return Settled(
            tuple(self._accounts.values()),
            tuple(self._external.values()),
            tuple(self._unknown.values()),
            self._circular,
        )

    def _visit(self, address: Address) -> None:
        key = address.key
        node = self._nodes[key]
        if key in self._path:
            if node.account:
                self._accounts[node.account.id] = node.account
            else:
                self._circular = True
            return
        if key in self._done:
            return
        if node.external:
            self._external[key] = address
        elif node.account and (node.destinations is None or self._stop_at_mailboxes):
            self._accounts[node.account.id] = node.account
        elif node.destinations is None:
            self._unknown[key] = address
        else:
            self._path.add(key)
            for target in node.destinations:
                self._visit(target)
            self._path.discard(key)
        self._done.add(key)
