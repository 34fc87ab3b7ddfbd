"""Each finding that asks for something says why it matters: to the administrator, who may know nothing of mail."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import pymx.admin.health

HEALTH = Path(pymx.admin.health.__file__).parent

# the sentence itself says what it means for mail
PLAIN = (
    "has no MX record: its mail does not come here",
    "bounces, which are sent in its name, are unproven",
    "but is not signed by DNSSEC: nobody heeds it",
    "is of an earlier policy (id {id_}): others keep that for a while",
)


def bad_findings(text: str) -> Iterator[tuple[str, list[ast.expr]]]:
    """The sentence's source and the arguments of each; `finding` and `grade` stand for one of both kinds."""
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("warn", "fail", "finding", "grade")
        ):
            yield ast.get_source_segment(text, node.args[1]) or "", node.args


@pytest.mark.parametrize("path", [*sorted(HEALTH.glob("*.py")), HEALTH.parent / "prove.py"], ids=lambda path: path.name)
def test_every_bad_finding_has_a_remedy_and_says_why(path: Path) -> None:
    found = list(bad_findings(path.read_text()))
    assert [sentence for sentence, arguments in found if len(arguments) < 3] == []
    plain = [s for s, arguments in found if len(arguments) < 4 and not any(p in s for p in PLAIN)]
    assert plain == []


def test_nothing_is_excepted_that_is_not_there() -> None:
    sentences = [s for path in HEALTH.glob("*.py") for s, a in bad_findings(path.read_text()) if len(a) < 4]
    assert [p for p in PLAIN if not any(p in s for s in sentences)] == []
