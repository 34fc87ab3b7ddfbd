"""Threading (RFC 5256 s. 3) of messages given as tuples."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.mail.threads import Forest, Message, by_references, by_subject
from pymx.proto.imap.commands.thread import thread_list

Given = tuple[int, int, str, bool, int, list[int]]


def messages(given_: Sequence[Given]) -> list[Message]:
    """From (uid, date, base subject, reply, own id, ids it refers to)."""
    return [
        (uid, date, subject.encode(), int(reply), b"".join(number.to_bytes(8, "big") for number in (own, *references)))
        for uid, date, subject, reply, own, references in given_
    ]


def text(forest: Forest) -> str:
    return thread_list(forest, int).decode()


def uids(forest: Forest) -> list[int]:
    found, waiting = [], list(forest.roots)
    while waiting:
        node = waiting.pop()
        found += [node] if node > 0 else []
        waiting += forest.children.get(node, [])
    return sorted(found)


@pytest.mark.parametrize(
    ("given_", "references", "refs"),
    [
        ([], "", ""),
        ([(1, 5, "a", False, 1, [])], "(1)", "(1)"),
        # a chain, and two answers to one message
        ([(1, 1, "a", False, 1, []), (2, 2, "a", True, 2, [1]), (3, 3, "a", True, 3, [1, 2])], "(1 2 3)", "(1 2 3)"),
        ([(1, 1, "a", False, 1, []), (2, 3, "a", True, 2, [1]), (3, 2, "a", True, 3, [1])], "(1 (3)(2))", "(1 (3)(2))"),
        # the parent is not there: alone its child takes its place, several stay together
        ([(1, 1, "a", True, 1, [9])], "(1)", "(1)"),
        ([(1, 1, "a", True, 1, [9]), (2, 2, "a", True, 2, [9])], "((1)(2))", "((1)(2))"),
        # below a root that is there, what is not there goes away
        (
            [(1, 1, "a", False, 1, []), (2, 2, "a", True, 2, [1, 9]), (3, 3, "a", True, 3, [1, 9])],
            "(1 (2)(3))",
            "(1 (2)(3))",
        ),
        # one id twice: the second message is on its own
        ([(1, 1, "a", False, 1, []), (2, 2, "b", False, 1, [])], "(1)(2)", "(1)(2)"),
        # the answer came first, with its parent's parent cut off
        ([(1, 3, "a", True, 3, [2]), (2, 2, "a", True, 2, [1]), (3, 1, "a", False, 1, [])], "(3 2 1)", "(3 2 1)"),
        # a message's own References win over what others say
        (
            [(1, 1, "a", False, 3, [1, 2]), (2, 2, "b", False, 2, []), (3, 3, "c", False, 1, [])],
            "(2 1)(3)",
            "(2 1)(3)",
        ),
        # loops are not made
        ([(1, 1, "a", False, 1, [2]), (2, 2, "b", False, 2, [1])], "(2 1)", "(2 1)"),
        ([(1, 1, "a", False, 1, [1, 1])], "(1)", "(1)"),
        # subjects: an answer goes under the original, equals under something that is not there
        ([(1, 1, "a", False, 1, []), (2, 2, "a", True, 2, [])], "(1 2)", "(1)(2)"),
        ([(1, 1, "a", True, 1, []), (2, 2, "a", False, 2, [])], "(2 1)", "(1)(2)"),
        ([(1, 1, "a", False, 1, []), (2, 2, "a", False, 2, [])], "((1)(2))", "(1)(2)"),
        ([(1, 1, "", False, 1, []), (2, 2, "", True, 2, [])], "(1)(2)", "(1)(2)"),
        (
            [
                (1, 1, "a", True, 1, [9]),
                (2, 2, "a", True, 2, [9]),
                (3, 3, "a", False, 3, []),
                (4, 4, "a", False, 4, []),
            ],
            "((1)(2)(3)(4))",
            "((1)(2))(3)(4)",
        ),
        # REFS: threads in the order of their latest messages
        (
            [(1, 1, "a", False, 1, []), (2, 2, "b", False, 2, []), (3, 3, "a", True, 3, [1])],
            "(1 3)(2)",
            "(2)(1 3)",
        ),
    ],
)
def test_threads_by_references(given_: list[Given], references: str, refs: str) -> None:
    assert text(by_references(messages(given_), merge_subjects=True)) == references
    assert text(by_references(messages(given_), merge_subjects=False)) == refs


def test_threads_by_subject() -> None:
    """RFC 5256 s. 3, ORDEREDSUBJECT: all under the first one, threads by date."""
    made = messages(
        [(1, 9, "b", False, 0, []), (2, 3, "a", True, 0, []), (3, 5, "b", False, 0, []), (4, 4, "a", False, 0, [])]
    )
    assert text(by_subject([*made, *messages([(5, 6, "a", False, 0, [])])])) == "(2 (4)(5))(3 1)"


@given(
    st.lists(
        st.tuples(
            st.integers(0, 5),
            st.sampled_from("ab"),
            st.booleans(),
            st.integers(0, 12),
            st.lists(st.integers(1, 12), max_size=5),
        ),
        max_size=14,
    ),
    st.booleans(),
)
def test_every_message_is_in_one_thread(given_: list[tuple[int, str, bool, int, list[int]]], merge: bool) -> None:
    made = messages([(uid, *rest) for uid, rest in enumerate(given_, 1)])
    assert uids(by_references(made, merge_subjects=merge)) == list(range(1, len(made) + 1))
    assert uids(by_subject(made)) == list(range(1, len(made) + 1))


@pytest.mark.parametrize("order", [1, -1])
def test_a_very_long_thread_takes_linear_time(order: int) -> None:
    """Each refers to the one before only, so the chain is as deep as it is long; also with the last one first."""
    count = 30_000
    given_: list[Given] = [(uid, uid, "a", True, uid, [uid - 1] if uid > 1 else []) for uid in range(1, count + 1)]
    started = time.process_time()
    forest = by_references(messages(given_[::order]), merge_subjects=True)
    assert text(forest) == "(" + " ".join(map(str, range(1, count + 1))) + ")"
    assert time.process_time() - started < 5


def test_a_loop_longer_than_is_looked_for_at_once_is_broken() -> None:
    count = 1000
    given_: list[Given] = [(uid, uid, "a", True, uid, [uid % count + 1]) for uid in range(1, count + 1)]
    forest = by_references(messages(given_), merge_subjects=False)
    assert uids(forest) == list(range(1, count + 1))
