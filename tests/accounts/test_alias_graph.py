"""Alias expansion on its own: graphs without a database."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.accounts import aliases
from pymx.accounts.account import Account, AliasLoop
from pymx.accounts.aliases import EXTERNAL, UNKNOWN, Node
from pymx.mail.address import Address, parse_address

NAMES = [f"n{i}" for i in range(12)]


def address(name: str) -> Address:
    return Address(name, "example.test")


def account(number: int, name: str) -> Account:
    return Account(number, f"{name}@example.test", "example.test", name, 0)


def expand(
    start: str, nodes: Mapping[str, Node], *, max_depth: int = 10, max_targets: int = 100
) -> tuple[aliases.Settled, list[Sequence[Address]]]:
    asked: list[Sequence[Address]] = []

    async def find(wanted: Sequence[Address]) -> dict[str, Node]:
        asked.append(wanted)
        return {a.key: nodes.get(a.local_part, UNKNOWN) for a in wanted}

    graph = asyncio.run(aliases.walk(address(start), find, max_depth=max_depth, max_targets=max_targets))
    return aliases.settle(address(start), graph), asked


def alias(*targets: str, user: Account | None = None) -> Node:
    return Node(user, tuple(map(address, targets)))


ALICE, BOB = account(1, "alice"), account(2, "bob")
USERS = {"alice": Node(ALICE), "bob": Node(BOB), "ext": EXTERNAL}


def test_a_mailbox_is_its_own_end():
    assert expand("alice", USERS)[0].accounts == (ALICE,)


def test_destinations_are_kept_in_order_and_once():
    """Two ways to the same mailbox give one copy."""
    nodes = USERS | {"team": alias("bob", "boss", "alice"), "boss": alias("bob", "ext")}
    settled, _ = expand("team", nodes)
    assert settled.accounts == (BOB, ALICE)
    assert [str(a) for a in settled.external] == ["ext@example.test"]
    assert not settled.circular


def test_an_alias_wins_over_the_user_of_the_same_name():
    """virtual(5): virtual alias maps are looked at before the mailbox."""
    assert expand("alice", USERS | {"alice": alias("bob", user=ALICE)})[0].accounts == (BOB,)


def test_an_alias_that_names_itself_keeps_the_users_copy():
    settled, _ = expand("alice", USERS | {"alice": alias("alice", "ext", user=ALICE)})
    assert settled.accounts == (ALICE,)
    assert len(settled.external) == 1


def test_a_circle_ends_in_the_mailbox_it_leads_back_to():
    nodes = USERS | {"alice": alias("bob", user=ALICE), "bob": alias("alice", user=BOB)}
    assert expand("alice", nodes)[0].accounts == (ALICE,)


def test_a_circle_without_mailbox_is_reported():
    settled, _ = expand("a", {"a": alias("b"), "b": alias("a")})
    assert settled.circular
    assert settled.accounts == ()


def test_a_local_destination_that_does_not_exist_is_reported_beside_the_others():
    settled, _ = expand("team", USERS | {"team": alias("alice", "gone")})
    assert settled.accounts == (ALICE,)
    assert [a.local_part for a in settled.unknown] == ["gone"]


def test_nesting_is_followed_to_the_cap_and_not_beyond():
    chain = {f"a{i}": alias(f"a{i + 1}") for i in range(10)} | {"a10": Node(ALICE)}
    assert expand("a0", chain, max_depth=10)[0].accounts == (ALICE,)
    with pytest.raises(AliasLoop, match="deeper than 9"):
        expand("a0", chain, max_depth=9)


def test_targets_are_counted_to_the_cap_and_not_beyond():
    nodes = {"team": alias(*(f"n{i}" for i in range(100)))} | {f"n{i}": Node(account(i, f"n{i}")) for i in range(100)}
    assert len(expand("team", nodes, max_targets=100)[0].accounts) == 100
    with pytest.raises(AliasLoop, match="more than 99"):
        expand("team", nodes, max_targets=99)


def test_a_level_is_asked_for_at_once():
    """One query for all destinations of an alias, however many."""
    nodes = USERS | {"team": alias("alice", "bob", "ext")}
    _, asked = expand("team", nodes)
    assert [len(level) for level in asked] == [1, 3]


def test_owners_stop_at_mailboxes():
    """bob gets a copy of alice's mail; that does not make alice's address his, nor what leads to it."""
    nodes = USERS | {"alice": alias("alice", "bob", user=ALICE), "info": alias("alice")}

    def owners(start: str) -> tuple[Account, ...]:
        async def find(wanted: Sequence[Address]) -> dict[str, Node]:
            return {a.key: nodes.get(a.local_part, UNKNOWN) for a in wanted}

        graph = asyncio.run(aliases.walk(address(start), find, max_depth=10, max_targets=100))
        return aliases.owners(address(start), graph)

    assert owners("alice") == (ALICE,)
    assert owners("info") == (ALICE,)
    assert owners("ext") == ()


_node = st.one_of(
    st.just(UNKNOWN),
    st.just(EXTERNAL),
    st.builds(
        lambda user, targets: (user, targets), st.booleans(), st.none() | st.lists(st.sampled_from(NAMES), max_size=6)
    ),
)


def _graph(drawn: list) -> dict[str, Node]:
    nodes: dict[str, Node] = {}
    for number, (name, node) in enumerate(zip(NAMES, drawn, strict=True)):
        if isinstance(node, tuple):
            user, targets = node
            nodes[name] = Node(
                account(number, name) if user else None, None if targets is None else tuple(map(address, targets))
            )
        else:
            nodes[name] = node
    return nodes


@given(
    st.lists(_node, min_size=len(NAMES), max_size=len(NAMES)),
    st.integers(min_value=1, max_value=12),
    st.integers(min_value=1, max_value=12),
)
def test_any_graph_ends_within_the_caps(drawn: list, max_depth: int, max_targets: int):
    """Never a loop, never more than the caps, each address asked for once; and who can be reached is reached."""
    nodes = _graph(drawn)
    reachable = _reachable("n0", nodes)
    try:
        settled, asked = expand("n0", nodes, max_depth=max_depth, max_targets=max_targets)
    except AliasLoop:
        assert len(reachable) - 1 > max_targets or _levels("n0", nodes) > max_depth
        return
    flat = [a.key for level in asked for a in level]
    assert len(flat) == len(set(flat)) <= max_targets + 1
    assert len(asked) <= max_depth + 1
    assert len({a.id for a in settled.accounts}) == len(settled.accounts)
    plain = {n for n in reachable if nodes[n].account and nodes[n].destinations is None}
    assert plain <= {a.local_part for a in settled.accounts} <= {n for n in reachable if nodes[n].account}
    assert {a.local_part for a in settled.external} == {n for n in reachable if nodes[n].external}
    if not settled.accounts and not settled.external:
        has_targets = any(nodes[n].destinations for n in reachable)
        assert settled.unknown or settled.circular or not has_targets


def _reachable(start: str, nodes: Mapping[str, Node]) -> set[str]:
    found, todo = {start}, [start]
    while todo:
        for target in nodes[todo.pop()].destinations or ():
            if target.local_part not in found:
                found.add(target.local_part)
                todo.append(target.local_part)
    return found


def _levels(start: str, nodes: Mapping[str, Node]) -> int:
    found, level, depth = {start}, {start}, 0
    while level := {t.local_part for n in level for t in nodes[n].destinations or ()} - found:
        found |= level
        depth += 1
    return depth


@pytest.mark.parametrize(
    ("text", "good", "bad"),
    [
        ("a@x.test", ("a@x.test",), ()),
        ("a@x.test,b@x.test", ("a@x.test", "b@x.test"), ()),
        (" a@x.test ,  b@x.test\n c@x.test ", ("a@x.test", "b@x.test", "c@x.test"), ()),
        ("<a@x.test>", ("a@x.test",), ()),
        ("@other.test", ("@other.test",), ()),
        ('"odd, name"@x.test b@x.test', ('"odd, name"@x.test', "b@x.test"), ()),
        ("a@x.test root |/bin/sh", ("a@x.test",), ("root", "|/bin/sh")),
        ("a@x.test a@x.test", ("a@x.test",), ()),
        ("", (), ()),
        (" , ", (), ()),
    ],
)
def test_destinations_column(text: str, good: tuple[str, ...], bad: tuple[str, ...]):
    """Separators as Postfix has them: commas and white space."""
    assert aliases.split_destinations(text) == (good, bad)


@given(st.text())
def test_destinations_column_never_raises(text: str):
    for word in aliases.split_destinations(text)[0]:
        aliases.destination(word, parse_address("x@example.test"))


@pytest.mark.parametrize(
    ("local_part", "delimiter", "expected"),
    [
        ("alice", "+", ("alice@x", "@x")),
        ("alice+shop", "+", ("alice+shop@x", "alice@x", "@x")),
        ("alice+a+b", "+", ("alice+a+b@x", "alice@x", "@x")),
        ("+odd", "+", ("+odd@x", "@x")),
        ("alice+shop", "", ("alice+shop@x", "@x")),
        ("alice-shop", "-", ("alice-shop@x", "alice@x", "@x")),
    ],
)
def test_candidates(local_part: str, delimiter: str, expected: tuple[str, ...]):
    """virtual(5), table search order."""
    assert aliases.candidates(local_part, "x", delimiter) == expected
