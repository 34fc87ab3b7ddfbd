"""Verifying DKIM signatures (RFC 6376 s. 6, RFC 8301, RFC 8463): those of three signers, and each way to be wrong."""

from __future__ import annotations

from pathlib import Path

import dkim
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mailauth_samples import BODY, DOMAIN, FORMS, HEAD, MESSAGE, NOW, Keys, handmade, head_of, parts, pieces
from support.dns_server import DnsServer, Failure
from support.names import TIMEOUT, TableOfNames

from pymx.mail.header import find
from pymx.mailauth.dkim import keys as signing_keys
from pymx.mailauth.dkim.sign import Signer
from pymx.mailauth.dkim.verify import BodyHashes, DkimResult, verify
from pymx.mailauth.questions import Questions
from pymx.resolver.resolver import Resolver
from pymx.spool import Content

# RFC 8463 appendix A, whose keys are published in A.2
RFC_8463 = b"""DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=brisbane; t=1528637909; h=from : to :
 subject : date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11Bus
 Fa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw==
DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=test; t=1528637909; h=from : to : subject :
 date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=F45dVWDfMbQDGHJFlXUNB2HKfbCeLRyhDXgFpEL8GwpsRe0IeIixNTe3
 DhCVlUrSjV4BwcVcOF6+FF3Zo9Rpo1tFOeS9mPYQTnGdaSGsgeefOsk2Jz
 dA+L10TeYt9BgDfQNZtKdN1WO//KgIqXP7OdEFE4LjFYNcUxZQ4FADY+8=
From: Joe SixPack <joe@football.example.com>
To: Suzie Q <suzie@shopping.example.net>
Subject: Is dinner ready?
Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)
Message-ID: <20030712040037.46341.5F8J@football.example.com>

Hi.

We lost the game.  Are you hungry yet?

Joe.
""".replace(b"\n", b"\r\n")
RFC_8463_KEYS = {
    "brisbane._domainkey.football.example.com": "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
    "test._domainkey.football.example.com": (
        "v=DKIM1; k=rsa; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDkHlOQoBTzWRiGs5V6NpP3idY6Wk08a5qhdR6wy5bdOKb2jLQi"
        "Y/J16JYi0Qvx/byYzCNb3W91y3FutACDfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqMKrM3rG4hstT5QjvHO9PzoxZyVYLzBfO2EeC3Ip3G"
        "+2kryOTIKT+l/K4w3QIDAQAB"
    ),
}


async def checked(names: Questions, message: bytes, **options: object) -> list[DkimResult]:
    head, body = parts(message)
    return await verify(names, head, body, now=NOW, **options)  # type: ignore[arg-type]


async def only(names: Questions, message: bytes, **options: object) -> DkimResult:
    results = await checked(names, message, **options)
    assert len(results) == 1
    return results[0]


def dkimpy_signed(message: bytes, keys: Keys, form: str, **options: object) -> bytes:
    header, body = form.encode().split(b"/")
    field: bytes = dkim.sign(message, b"s", DOMAIN.encode(), keys.pem(), canonicalize=(header, body), **options)
    return field + message


async def test_examples_of_rfc_8463_pass() -> None:
    """RFC 8463 appendix A: one message, signed with Ed25519 and with RSA."""
    names = TableOfNames()
    for name, record in RFC_8463_KEYS.items():
        names.add(name, "TXT", record)
    ed25519, rsa = await checked(names, RFC_8463)
    assert (ed25519.result, ed25519.algorithm, ed25519.selector) == ("pass", "ed25519-sha256", "brisbane")
    assert (rsa.result, rsa.identity, rsa.signature_b) == ("pass", "@football.example.com", "F45dVWDf")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("body", [BODY, b"", b"\r\n", b"\r\n\r\n", b" \t\r\n", b"no line end", b"a\r\n" * 3000])
async def test_dkimpys_signatures_pass_in_every_form(names: TableOfNames, keys: Keys, form: str, body: bytes) -> None:
    """RFC 6376 s. 3.4, with bodies at the edges of the canonical forms."""
    message = dkimpy_signed(HEAD + b"\r\n" + body, keys, form)
    assert (await only(names, message)).result == "pass"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 5000])
@pytest.mark.parametrize("form", FORMS)
async def test_body_may_come_in_pieces_of_any_size(names: TableOfNames, keys: Keys, form: str, size: int) -> None:
    """The hash is made while DATA arrives."""
    message = dkimpy_signed(HEAD + b"\r\n" + BODY * 200 + b"\r\n\r\n", keys, form)
    head = head_of(message)
    hashes = BodyHashes(head)
    for piece in pieces(message[len(head) :], size):
        hashes.update(piece)
    assert [r.result for r in await verify(names, head, hashes, now=NOW)] == ["pass"]
    assert [r.result for r in await verify(names, head, hashes, now=NOW)] == ["pass"]  # hashes can be used again


async def test_one_pass_serves_signatures_of_several_forms(names: TableOfNames, keys: Keys) -> None:
    """Four signatures in four forms above one body, one of them of Ed25519."""
    message = MESSAGE
    for form in FORMS[:3]:
        message = handmade(message, keys.rsa[1024], form=form)
    message = handmade(message, keys.ed25519, form=FORMS[3])
    assert [r.result for r in await checked(names, message)] == ["pass"] * 4


async def test_our_own_signatures_pass(tmp_path: Path, names: TableOfNames) -> None:
    """What pymx signs, with both algorithms, pymx verifies."""
    for selector, algorithm in (("r", "rsa"), ("e", "ed25519")):
        key = signing_keys.generate(tmp_path, DOMAIN, selector, algorithm=algorithm)  # type: ignore[arg-type]
        names.add(key.record_name, "TXT", key.record)
    content = Content.from_bytes(MESSAGE)
    head = Signer(tmp_path).sign(DOMAIN, content) + content.head
    results = await verify(names, head, content.body_chunks(), now=NOW)
    assert [(r.result, r.algorithm) for r in results] == [("pass", "rsa-sha256"), ("pass", "ed25519-sha256")]


async def test_message_without_signature_is_none(names: TableOfNames) -> None:
    """RFC 8601 s. 2.7.1: none."""
    assert (await only(names, MESSAGE)).result == "none"
    assert names.asked == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Hello  Bob", b"Hello Rob"),
        (b".dots", b"dots"),
        (b"Subject:  a ", b"Subject:  b "),
        (b"To: bob@", b"To: rob@"),
        (b"From: Alice", b"From: Alicf"),
        (b"bh=", b"x=1900000000; bh="),
    ],
)
async def test_changed_message_fails(names: TableOfNames, keys: Keys, old: bytes, new: bytes) -> None:
    """Whatever is signed cannot be changed, the signature's own tags among it."""
    message = handmade(MESSAGE, keys.rsa[1024])
    result = await only(names, message.replace(old, new))
    assert result.result == "fail"
    assert ("body hash" in result.reason) == (old in BODY)


async def test_white_space_may_change_as_the_form_allows(names: TableOfNames, keys: Keys) -> None:
    """RFC 6376 s. 3.4.2 and 3.4.4."""
    message = handmade(MESSAGE, keys.rsa[1024], form="relaxed/relaxed")
    changed = message.replace(b"Subject:  a  folded \r\n subject", b"subject: a folded subject").replace(
        b"  Bob", b" Bob"
    )
    assert (await only(names, changed)).result == "pass"
    strict = handmade(MESSAGE, keys.rsa[1024], form="simple/simple")
    assert (await only(names, strict.replace(b"  Bob", b" Bob"))).result == "fail"


async def test_wrong_key_fails(names: TableOfNames, keys: Keys) -> None:
    """The body hash is right, the signature is another key's."""
    result = await only(names, handmade(MESSAGE, keys.other))
    assert (result.result, result.reason) == ("fail", "signature differs")


async def test_signature_of_a_field_that_is_not_there_breaks_when_it_is_added(names: TableOfNames, keys: Keys) -> None:
    """RFC 6376 s. 5.4: a name in h= without a field signs its absence."""
    message = handmade(MESSAGE, keys.rsa[1024], signed=["from", "subject", "subject", "reply-to"])
    assert (await only(names, message)).result == "pass"
    for added in (b"Reply-To: eve@example.net\r\n", b"Subject: another\r\n"):
        assert (await only(names, message.replace(b"From: Alice", added + b"From: Alice"))).result == "fail"


async def test_fields_are_taken_from_the_bottom_up(names: TableOfNames, keys: Keys) -> None:
    """RFC 6376 s. 5.4.2: a Received above those that were signed changes nothing, one below does."""
    message = handmade(MESSAGE, keys.rsa[1024], signed=["from", "received"])
    assert (await only(names, b"Received: by later\r\n" + message)).result == "pass"
    assert (await only(names, message.replace(b"\r\n\r\n", b"\r\nReceived: by earlier\r\n\r\n", 1))).result == "fail"


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"a": "rsa-sha1"}, "RFC 8301"),
        ({"a": "rsa-md5"}, "algorithm"),
        ({"v": "2"}, "version"),
        ({"v": None}, "v="),
        ({"bh": None}, "bh="),
        ({"d": None}, "d="),
        ({"s": None}, "s="),
        ({"d": "exa mple.test"}, "d="),
        ({"d": "[192.0.2.1]"}, "d="),
        ({"s": "s/../s"}, "s="),
        ({"h": "to:subject"}, "From"),
        ({"h": ""}, "h="),
        ({"c": "loose/relaxed"}, "canonicalization"),
        ({"q": "http"}, "DNS"),
        ({"i": "alice"}, "i="),
        ({"i": "alice@example.com"}, "i="),
        ({"i": "alice@badexample.test"}, "i="),
        ({"x": str(NOW - 1)}, "expired"),
        ({"t": str(NOW), "x": str(NOW)}, "ends before"),
        ({"x": "soon"}, "x="),
        ({"t": "-1"}, "t="),
        ({"bh": "not base64!"}, "bh="),
    ],
)
async def test_signature_that_can_not_be_checked_is_permerror(
    names: TableOfNames, keys: Keys, tags: dict[str, str | None], reason: str
) -> None:
    """RFC 6376 s. 6.1.1, RFC 8301 s. 3.1."""
    result = await only(names, handmade(MESSAGE, keys.rsa[1024], **tags))
    assert result.result == "permerror"
    assert reason in result.reason


@pytest.mark.parametrize(
    "tags", [{"i": "@sub.example.test"}, {"i": "a.b@Example.TEST"}, {"x": str(NOW + 1)}, {"z": "x|y"}]
)
async def test_tags_that_do_no_harm_pass(names: TableOfNames, keys: Keys, tags: dict[str, str]) -> None:
    """s. 3.5: unknown tags are ignored, i= may be below d=."""
    assert (await only(names, handmade(MESSAGE, keys.rsa[1024], **tags))).result == "pass"


async def test_duplicate_tag_is_permerror(names: TableOfNames, keys: Keys) -> None:
    """s. 3.2: a duplicate makes the whole list invalid."""
    message = handmade(MESSAGE, keys.rsa[1024]).replace(b"; b=", b"; d=example.test; b=")
    assert "twice" in (await only(names, message)).reason


async def test_length_tag_is_policy_unless_allowed(names: TableOfNames, keys: Keys) -> None:
    """RFC 6376 s. 8.2: with l= anybody can append to the message."""
    message = handmade(MESSAGE, keys.rsa[1024], l="10")
    appended = message + b"<p>and more</p>\r\n"
    for one in (message, appended):
        assert (await only(names, one)).result == "policy"
        assert (await only(names, one, allow_length=True)).result == "pass"
    assert (await only(names, message.replace(b"Hello", b"Holla"))).result == "fail"
    assert (await only(names, handmade(MESSAGE, keys.rsa[1024], l="1000"))).result == "permerror"


@pytest.mark.parametrize("added", [b"Subject: sell\r\n", b"From: eve@example.net\r\n", b"date: now\r\n"])
async def test_second_unsigned_copy_of_a_single_field_is_policy(names: TableOfNames, keys: Keys, added: bytes) -> None:
    """RFC 6376 s. 8.15: the copy on top is what a reader is shown."""
    message = handmade(MESSAGE, keys.rsa[1024])
    assert (await only(names, added + message)).result == "policy"


@pytest.mark.parametrize(
    ("record", "result", "reason"),
    [
        ("v=DKIM1; p=", "permerror", "revoked"),
        ("v=DKIM1; k=rsa", "permerror", "no p="),
        ("v=DKIM2; p={p}", "permerror", "not a DKIM"),
        ("p={p}; v=DKIM1", "permerror", "not a DKIM"),
        ("v=spf1 -all", "permerror", "key record"),
        ("v=DKIM1; p=@@@", "permerror", "base64"),
        ("v=DKIM1; p=AAAA", "permerror", "not an RSA key"),
        ("v=DKIM1; k=ed25519; p={p}", "permerror", "Ed25519"),
        ("v=DKIM1; k=foo; p={p}", "permerror", "unknown type"),
        ("v=DKIM1; h=sha1; p={p}", "permerror", "sha256"),
        ("v=DKIM1; s=tlsrpt; p={p}", "permerror", "not for mail"),
        ("v=DKIM1; k=ed25519; p={e}", "permerror", "another algorithm"),
        ("v=DKIM1; p={p}", "pass", ""),
        ("p={p}", "pass", ""),
        ("v=DKIM1; p={bare}", "pass", ""),
        ("v=DKIM1; h=sha1:sha256; s=email:tlsrpt; t=s; n=a%20note; p={p};", "pass", ""),
        ("v=DKIM1;\tk=rsa;\r\n p={spaced}", "pass", ""),
        ("v=DKIM1; s=*; x=unknown; p={p}", "pass", ""),
        ("v=DKIM1;; k=rsa; ; p={p};;", "pass", ""),
    ],
)
async def test_what_the_key_record_says_counts(
    names: TableOfNames, keys: Keys, record: str, result: str, reason: str
) -> None:
    """RFC 6376 s. 3.6.1 and 6.1.2."""
    spaced = " ".join(pieces(keys.rsa_p, 30))  # type: ignore[type-var, arg-type]
    names.table.clear()
    text = record.format(p=keys.rsa_p, e=keys.ed25519_p, bare=keys.rsa_bare_p, spaced=spaced)
    names.add(f"s._domainkey.{DOMAIN}", "TXT", text)
    found = await only(names, handmade(MESSAGE, keys.rsa[1024]))
    assert (found.result, reason in found.reason) == (result, True)


async def test_key_for_the_exact_domain_does_not_sign_for_subdomains(names: TableOfNames, keys: Keys) -> None:
    """s. 3.6.1, t=s."""
    names.table.clear()
    names.add(f"s._domainkey.{DOMAIN}", "TXT", f"t=y:s; p={keys.rsa_p}")
    assert (await only(names, handmade(MESSAGE, keys.rsa[1024], i="@sub.example.test"))).result == "permerror"
    assert (await only(names, handmade(MESSAGE, keys.rsa[1024], i="a@example.test"))).result == "pass"


async def test_failure_of_a_testing_domain_is_neutral(names: TableOfNames, keys: Keys) -> None:
    """s. 3.6.1, t=y: not to be treated worse than an unsigned message."""
    names.table.clear()
    names.add(f"s._domainkey.{DOMAIN}", "TXT", f"t=y; p={keys.rsa_p}")
    broken = await only(names, handmade(MESSAGE, keys.other))
    assert (broken.result, broken.testing) == ("neutral", True)
    assert (await only(names, handmade(MESSAGE, keys.rsa[1024]))).testing


async def test_any_of_several_keys_at_a_selector_may_fit(names: TableOfNames, keys: Keys) -> None:
    """s. 6.1.2 step 5: with several records we try them."""
    names.table.clear()
    name = f"s._domainkey.{DOMAIN}"
    names.add(name, "TXT", "v=spf1 -all", f"p={keys.rsa_2048_p}", f"p={keys.rsa_p}")
    assert (await only(names, handmade(MESSAGE, keys.rsa[1024]))).result == "pass"


@pytest.mark.parametrize(("record", "result"), [(TIMEOUT, "temperror"), (None, "permerror")])
async def test_unknown_key_is_told_apart_from_no_key(
    names: TableOfNames, keys: Keys, record: str | None, result: str
) -> None:
    """s. 6.1.2 step 1 and 3: TEMPFAIL and PERMFAIL."""
    names.table.clear()
    if record:
        names.add(f"s._domainkey.{DOMAIN}", "TXT", record)
    assert (await only(names, handmade(MESSAGE, keys.rsa[1024]))).result == result


async def test_only_so_many_signatures_are_checked(names: TableOfNames, keys: Keys) -> None:
    """A message may carry any number; the rest is one result."""
    message = MESSAGE
    for i in range(8):
        message = handmade(message, keys.rsa[1024], n=str(i))
    results = await checked(names, message, limit=3)
    assert [r.result for r in results] == ["pass", "pass", "pass", "policy"]


async def test_result_says_whose_signature_it_was(names: TableOfNames, keys: Keys) -> None:
    """For Authentication-Results: d=, s=, a=, i= and header.b (RFC 6008)."""
    good = handmade(MESSAGE, keys.rsa[1024], i="joe@mail.Example.test", d="Example.TEST")
    result = await only(names, good)
    assert (result.domain, result.selector, result.identity) == (DOMAIN, "s", "joe@mail.example.test")
    field = next(field for _, field in find(head_of(good), "dkim-signature"))
    assert field.value.partition(b"; b=")[2].decode().startswith(result.signature_b)
    assert len(result.signature_b) == 8
    broken = await only(names, handmade(MESSAGE, keys.rsa[1024], a="rsa-sha1"))
    assert (broken.domain, broken.selector, broken.algorithm) == (DOMAIN, "s", "rsa-sha1")


async def test_internationalised_domain_is_looked_up_as_a_labels(names: TableOfNames, keys: Keys) -> None:
    """RFC 8616 s. 5: d= may hold U-labels."""
    names.add("s._domainkey.xn--bcher-kva.test", "TXT", f"p={keys.rsa_p}")
    result = await only(names, handmade(MESSAGE, keys.rsa[1024], d="bücher.test", i="x@bücher.test"))
    assert (result.result, result.domain) == ("pass", "xn--bcher-kva.test")


async def test_real_name_server_gives_keys_and_failures(resolver: Resolver, dns_server: DnsServer, keys: Keys) -> None:
    """The same through UDP, TCP and the resolver: a key of two strings, SERVFAIL, silence, NXDOMAIN."""
    big = handmade(MESSAGE, keys.rsa[2048], s="big")
    assert (await only(resolver, big)).result == "pass"
    for selector, failure in (("a", Failure.SERVFAIL), ("b", Failure.TIMEOUT), ("c", Failure.GARBAGE)):
        dns_server.fail(f"{selector}._domainkey.{DOMAIN}", failure)
        result = await only(resolver, handmade(MESSAGE, keys.rsa[1024], s=selector))
        assert (result.result, failure) == ("temperror", failure)
        assert "127.0.0.1" not in result.reason  # where our resolver is goes into no header
    assert (await only(resolver, handmade(MESSAGE, keys.rsa[1024], s="gone"))).result == "permerror"
    dns_server.fail(f"big._domainkey.{DOMAIN}", Failure.TRUNCATED)
    resolver.forget()
    assert (await only(resolver, big)).result == "pass"


async def test_bare_line_feeds_are_not_repaired(names: TableOfNames, keys: Keys) -> None:
    """RFC 6376 s. 3.4 knows CRLF only: what was signed with CRLF is not the same with LF."""
    message = handmade(HEAD + b"\r\none\r\ntwo\r\n", keys.rsa[1024])
    assert (await only(names, message)).result == "pass"
    assert (await only(names, message.replace(b"one\r\ntwo", b"one\ntwo"))).result == "fail"


TEXT = st.text(st.sampled_from(" \tab:;=\u00fc."), min_size=1, max_size=30).map(lambda text: text.encode())
VALUE = st.lists(TEXT, min_size=1, max_size=3).map(
    lambda lines: b"\r\n ".join(line.strip() or b"x" for line in lines)
)  # fmt: skip
FIELD = st.tuples(st.sampled_from([b"Subject", b"To", b"X-a", b"SUBJECT", b"List-Id"]), VALUE)
LINE = st.text(st.sampled_from(" \tab."), max_size=8).map(lambda text: text.encode() + b"\r\n")


@given(st.lists(FIELD, max_size=6), st.lists(LINE, max_size=12), st.sampled_from(FORMS), st.integers(1, 40))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
async def test_whatever_dkimpy_signs_passes(
    keys: Keys, fields: list[tuple[bytes, bytes]], lines: list[bytes], form: str, size: int
) -> None:
    """Headers with repeated and folded fields, bodies of blanks and empty lines, in pieces of any size."""
    names = TableOfNames()
    names.add(f"s._domainkey.{DOMAIN}", "TXT", keys.records[f"s._domainkey.{DOMAIN}"])
    head = b"From: alice@example.test\r\n" + b"".join(name + b": " + value + b"\r\n" for name, value in fields)
    signed_names = [b"from", b"to", b"subject", b"x-a", b"list-id", *[b"subject"] * 6]
    message = dkimpy_signed(head + b"\r\n" + b"".join(lines), keys, form, include_headers=signed_names)
    head = head_of(message)
    results = await verify(names, head, pieces(message[len(head) :], size), now=NOW)
    assert [(r.result, r.reason) for r in results] == [("pass", "")]
