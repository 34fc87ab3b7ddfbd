"""MTA-STS: the TXT record, the policy text, the patterns (RFC 8461 s. 3, 4.1)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.mta.sts import MAX_AGE_S, Policy, PolicyError, matches, parse_policy, policy_id

GOOD = b"version: STSv1\nmode: enforce\nmx: mx.far.test\nmax_age: 604800\n"


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([b"v=STSv1; id=20160831085700Z;"], "20160831085700Z"),
        ([b"v=STSv1; id=a"], "a"),
        ([b"v=STSv1 ;\tid=a ; x.y-z=b ;"], "a"),
        ([b"v=STSv1;id=a;id=b"], "a"),
        ([b"v=spf1 -all", b"v=STSv1; id=a", b"v=STSv2; id=b"], "a"),
        ([], ""),
        ([b"v=STSv1; id=a", b"v=STSv1; id=a"], ""),
        ([b"v=STSv1"], ""),
        ([b"v=STSv1;"], ""),
        ([b"v=STSv1; x=y"], ""),
        ([b"v=stsv1; id=a"], ""),
        ([b" v=STSv1; id=a"], ""),
        ([b"v=STSv1; id="], ""),
        ([b"v=STSv1; id=a-b"], ""),
        ([b"v=STSv1; id=" + b"1" * 33], ""),
        ([b"v=STSv1; id=a; ; x=y"], ""),
        ([b"v=STSv1; id=a; b"], ""),
        ([b"v=STSv1; id=\xc3\xa4"], ""),
    ],
)
def test_the_id_is_that_of_the_only_record(records: list[bytes], expected: str) -> None:
    """RFC 8461 s. 3.1."""
    assert policy_id(records) == expected


@given(st.text("abcXYZ0189", min_size=1, max_size=32), st.text(" \t", max_size=3), st.booleans())
def test_an_id_that_is_written_is_read(name: str, blank: str, end: bool) -> None:
    """field-delim = *WSP ";" *WSP, one more allowed at the end."""
    assert policy_id([f"v=STSv1{blank};{blank}id={name}{blank}{';' if end else ''}".encode()]) == name


@given(st.lists(st.binary(max_size=60) | st.binary(max_size=60).map(lambda b: b"v=STSv1;" + b), max_size=4))
def test_any_records_are_read(records: list[bytes]) -> None:
    found = policy_id(records)
    assert found == "" or (found.isascii() and found.isalnum() and len(found) <= 32)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD, ("enforce", ("mx.far.test",), 604800)),
        (GOOD.replace(b"\n", b"\r\n"), ("enforce", ("mx.far.test",), 604800)),
        (GOOD.rstrip(), ("enforce", ("mx.far.test",), 604800)),
        (GOOD + b"\n \r\n", ("enforce", ("mx.far.test",), 604800)),
        (GOOD + b"mx: *.Far.test\n", ("enforce", ("mx.far.test", "*.far.test"), 604800)),
        (GOOD + b"mode: none\nmax_age: 1\nversion: x\n", ("enforce", ("mx.far.test",), 604800)),
        (GOOD + "x-note: grüße, welt\n".encode(), ("enforce", ("mx.far.test",), 604800)),
        (b"max_age:99999999\nmode:testing\nmx:a.b\nversion:STSv1", ("testing", ("a.b",), MAX_AGE_S)),
        (b"version: STSv1\nmode: none\nmax_age: 0", ("none", (), 0)),
    ],
)
def test_a_policy_is_read(text: bytes, expected: object) -> None:
    """RFC 8461 s. 3.2: any order, unknown fields let pass, the first of those that may not be repeated."""
    policy = parse_policy(text)
    assert (policy.mode, policy.mx, policy.max_age_s) == expected


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n" + GOOD,
        GOOD.replace(b"\nmx", b"\n\nmx"),
        GOOD.replace(b"STSv1", b"STSv2"),
        GOOD.replace(b"version: STSv1\n", b""),
        GOOD.replace(b"enforce", b"Enforce"),
        GOOD.replace(b"mode: enforce\n", b""),
        GOOD.replace(b"mx: mx.far.test\n", b""),
        GOOD.replace(b"mx.far.test", b"mx.*.test"),
        GOOD.replace(b"mx.far.test", b"*"),
        GOOD.replace(b"mx.far.test", b"*.*.test"),
        GOOD.replace(b"mx.far.test", b".far.test"),
        GOOD.replace(b"mx.far.test", b"mx far"),
        GOOD.replace(b"mx.far.test", b"a" * 64 + b".test"),
        GOOD.replace(b"604800", b"-1"),
        GOOD.replace(b"604800", b"1 week"),
        GOOD.replace(b"604800", b"12345678901"),
        GOOD.replace(b"604800", "٣".encode()),
        GOOD.replace(b"max_age: 604800\n", b""),
        GOOD + b"<html>\n",
        GOOD + b"x: \x00\n",
        GOOD + b"\xff: x\n",
        GOOD + b"x: " + b"y" * 70_000,
        GOOD + b"mx: a.test\n" * 501,
    ],
)
def test_what_the_grammar_does_not_have_is_no_policy(text: bytes) -> None:
    """A policy that can't be read must not be taken for a weaker one."""
    with pytest.raises(PolicyError):
        parse_policy(text)


@pytest.mark.timeout(5)
@pytest.mark.parametrize("line", [b"x:" + b" " * 65_000 + b"y", b"x:" + b" " * 65_000 + b"\x01", b" " * 65_000 + b"x"])
def test_a_long_line_takes_no_longer_than_it_is(line: bytes) -> None:
    """Whoever writes the policy chooses the line: at each octet all that follow must not be looked at again."""
    try:
        assert parse_policy(GOOD + line).mode == "enforce"
    except PolicyError:
        pass


LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
HOST = st.lists(LABEL, min_size=1, max_size=4).map(".".join)
PATTERN = st.builds(lambda star, host: ("*." if star else "") + host, st.booleans(), HOST)


@given(st.sampled_from(["enforce", "testing", "none"]), st.lists(PATTERN, min_size=1, max_size=5),
       st.integers(0, MAX_AGE_S), st.sampled_from(["\n", "\r\n"]), st.randoms())  # fmt: skip
def test_a_policy_that_is_written_is_read(mode: str, mx: list[str], max_age: int, end: str, random: object) -> None:
    """Parse is the inverse of write, in any order of the lines."""
    lines = ["version: STSv1", f"mode: {mode}", f"max_age: {max_age}", *(f"mx: {pattern}" for pattern in mx)]
    random.shuffle(lines)  # type: ignore[attr-defined]  # hypothesis' random.Random
    policy = parse_policy(end.join(lines).encode())
    assert policy == Policy(mode, tuple(line[4:] for line in lines if line.startswith("mx")), max_age, tuple(lines))


@given(st.binary(max_size=300) | st.binary(max_size=100).map(lambda b: GOOD + b))
def test_any_octets_are_a_policy_or_an_error(text: bytes) -> None:
    try:
        policy = parse_policy(text)
    except PolicyError:
        return
    assert policy.mode in ("enforce", "testing", "none")
    assert 0 <= policy.max_age_s <= MAX_AGE_S


@pytest.mark.parametrize(
    ("pattern", "host", "expected"),
    [
        ("mx.far.test", "mx.far.test", True),
        ("mx.far.test", "MX.FAR.test.", True),
        ("mx.far.test", "mx2.far.test", False),
        ("*.far.test", "mx.far.test", True),
        ("*.far.test", "far.test", False),
        ("*.far.test", ".far.test", False),
        ("*.far.test", "a.mx.far.test", False),
        ("*.far.test", "mx.notfar.test", False),
    ],
)
def test_a_wildcard_stands_for_one_label(pattern: str, host: str, expected: bool) -> None:
    """RFC 8461 s. 4.1."""
    assert matches(pattern, host) is expected
