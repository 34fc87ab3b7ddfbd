"""ARC sets of ours (RFC 8617 s. 5.1), verified by dkimpy and by our own verifier, over several hops."""

from __future__ import annotations

import time
from pathlib import Path

import dkim
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mailauth_samples import MESSAGE, parts
from support.names import TIMEOUT, TableOfNames

from pymx.mail import authres, header
from pymx.mail.authres import Result
from pymx.mail.header import Field
from pymx.mailauth.arc.seal import Sealer
from pymx.mailauth.arc.verify import ArcResult, verify
from pymx.mailauth.dkim import keys
from pymx.mailauth.dkim.sign import Signer
from pymx.spool import Content

NONE = ArcResult("none")


class Host:
    """A forwarder with its own domain and keys."""

    def __init__(self, directory: Path, domain: str, algorithm: keys.Algorithm = "rsa") -> None:
        self.domain = domain
        self.directory = directory
        self.key = keys.generate(directory, domain, "k", algorithm=algorithm)
        self.sealer = Sealer(directory)

    def results(self, *results: Result) -> bytes:
        return authres.authentication_results(f"mx.{self.domain}", results or (Result("spf", "pass"),))

    def seal(self, message: bytes, chain: ArcResult, *results: Result) -> bytes:
        """The message as this host passes it on."""
        field = self.results(*results)
        content = Content.from_bytes(field + message)
        value = Field("", field).value.decode()
        return self.sealer.seal(self.domain, content, results=value, chain=chain) + field + message


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> list[Host]:
    directory = tmp_path_factory.mktemp("keys")
    return [Host(directory, name) for name in ("a.test", "b.test", "c.test", "d.test")]


def records(*hosts: Host) -> dict[str, str]:
    return {key.record_name: key.record for host in hosts for key in keys.load_all(host.directory, host.domain)}


def table(*hosts: Host) -> TableOfNames:
    names = TableOfNames()
    for name, record in records(*hosts).items():
        names.add(name, "TXT", record)
    return names


async def checked(message: bytes, *hosts: Host) -> ArcResult:
    head, body = parts(message)
    return await verify(table(*hosts), head, body, now=time.time())


def by_dkimpy(message: bytes, *hosts: Host) -> tuple[bytes, list[dict[str, object]], str]:
    known = {f"{name}.".encode(): record.encode() for name, record in records(*hosts).items()}
    found: tuple[bytes, list[dict[str, object]], str] = dkim.arc_verify(
        message, dnsfunc=lambda name, timeout=5: known.get(name)
    )
    return found


async def test_four_forwarders_seal_one_after_the_other(hosts: list[Host]) -> None:
    """cv=none, then pass, pass, pass; dkimpy and we agree, and the results are what each host saw."""
    message, chain = MESSAGE, NONE
    for n, host in enumerate(hosts, 1):
        message = host.seal(message, chain, Result("spf", "pass", (("smtp.mailfrom", f"hop{n}.example"),)))
        verdict, sets, reason = by_dkimpy(message, *hosts)
        assert (verdict, len(sets)) == (dkim.CV_Pass, n), reason
        chain = await checked(message, *hosts)
        assert (chain.result, chain.oldest_pass, chain.reason) == ("pass", 0, "")
        assert chain.sealers == tuple(h.domain for h in hosts[:n])
        assert chain.authentication_results[-1].startswith(f"mx.{host.domain}; spf=pass")
        assert f"hop{n}.example" in chain.authentication_results[-1]
    assert [f.name for f in header.iter_fields(message)][:3] == [
        "arc-seal", "arc-message-signature", "arc-authentication-results",
    ]  # fmt: skip
    assert message.endswith(MESSAGE)


async def test_dkim_of_the_author_stays_valid_and_is_covered(hosts: list[Host], tmp_path: Path) -> None:
    """The message is not modified; taking the author's signature away breaks the seal."""
    author = Host(tmp_path, "example.test")
    content = Content.from_bytes(MESSAGE)
    signed = content.prepended(Signer(tmp_path).sign("example.test", content)).read()
    sealed = hosts[0].seal(signed, NONE)
    known = {f"{name}.".encode(): record.encode() for name, record in records(author).items()}
    assert dkim.verify(sealed, dnsfunc=lambda name, timeout=5: known.get(name))
    start = sealed.index(b"DKIM-Signature:")
    without = sealed[:start] + sealed[sealed.index(b"Received:") :]
    assert (await checked(without, hosts[0])).result == "fail"
    assert by_dkimpy(without, hosts[0])[0] == dkim.CV_Fail


@pytest.mark.parametrize(
    "change",
    [
        (b"Hello", b"hello"),
        (b"From: Alice", b"From: Mallory"),
        (b"i=1; mx.a.test; spf=pass", b"i=1; mx.a.test; spf=fail"),
        (b"cv=none", b"cv=pass"),
    ],
)
async def test_any_change_breaks_the_chain(change: tuple[bytes, bytes], hosts: list[Host]) -> None:
    message = hosts[1].seal(hosts[0].seal(MESSAGE, NONE), ArcResult("pass"))
    assert by_dkimpy(message, *hosts)[0] == dkim.CV_Pass
    # the last one: what the first sealer wrote is below
    old, new = change
    at = message.rindex(old)
    broken = message[:at] + new + message[at + len(old) :]
    assert (await checked(broken, *hosts)).result == "fail"


async def test_a_failed_chain_is_sealed_as_failed_once(hosts: list[Host]) -> None:
    """RFC 8617 s. 5.1.2: the seal covers its own set alone; s. 5.1: nobody seals after a cv=fail."""
    broken = hosts[0].seal(MESSAGE, NONE).replace(b"Hello", b"hello")
    chain = await checked(broken, *hosts)
    assert chain.result == "fail"
    message = hosts[1].seal(broken, chain)
    newest = header.first(message, "arc-seal")
    assert newest
    assert b"i=2;" in newest.value
    assert b"cv=fail;" in newest.value
    after = await checked(message, *hosts)
    assert (after.result, "says that the chain had failed" in after.reason) == ("fail", True)
    assert by_dkimpy(message, *hosts)[0] != dkim.CV_Pass
    assert header.count(hosts[2].seal(message, after), "arc-seal") == 2


async def test_no_seal_when_the_chain_cannot_be_judged_now(hosts: list[Host]) -> None:
    message = hosts[0].seal(MESSAGE, NONE)
    names = table(*hosts)
    names.table[hosts[0].key.record_name] = [TIMEOUT]
    head, body = parts(message)
    chain = await verify(names, head, body, now=time.time())
    assert chain.temporary
    assert header.count(hosts[1].seal(message, chain), "arc-seal") == 1


async def test_no_seal_after_the_fiftieth(hosts: list[Host]) -> None:
    """RFC 8617 s. 4.2.1: instances go up to 50."""
    message = MESSAGE
    for n in range(50):
        message = hosts[n % 2].seal(message, ArcResult("pass") if n else NONE)
    assert (await checked(message, *hosts)).result == "pass"
    assert header.count(hosts[0].seal(message, ArcResult("pass")), "arc-seal") == 50
    broken = message.replace(b"Hello", b"hello")
    assert header.count(hosts[0].seal(broken, ArcResult("fail")), "arc-seal") == 50


async def test_rsa_is_taken_where_there_are_both_and_ed25519_where_there_is_nothing_else(tmp_path: Path) -> None:
    both, only = Host(tmp_path, "both.test"), Host(tmp_path, "only.test", "ed25519")
    keys.generate(tmp_path, "both.test", "e", algorithm="ed25519")
    message = only.seal(both.seal(MESSAGE, NONE), ArcResult("pass"))
    assert [b"a=rsa-sha256" in f.value for _, f in header.find(message, "arc-seal")] == [False, True]
    assert (await checked(message, both, only)).result == "pass"


def test_no_key_no_seal(tmp_path: Path) -> None:
    content = Content.from_bytes(MESSAGE)
    for domain in ("none.test", "..", "", "\u2024"):
        assert Sealer(tmp_path).seal(domain, content, results="mx.a.test; none", chain=NONE) == b""


@given(
    results=st.lists(
        st.builds(
            Result,
            st.sampled_from(["spf", "dkim", "dmarc", "arc"]),
            st.sampled_from(["pass", "fail", "none"]),
            st.lists(st.tuples(st.just("header.d"), st.text(max_size=40)), max_size=2).map(tuple),
            st.text(st.characters(exclude_characters="\r\n\0"), max_size=80),
        ),
        max_size=5,
    ),
    body=st.lists(st.sampled_from([b"\r\n", b" ", b"\t", b"x", b"y z", b".\r\n"]), max_size=20).map(b"".join),
)
async def test_every_message_with_every_result_seals(results: list[Result], body: bytes, hosts: list[Host]) -> None:
    message = b"From: a@example.test\r\nSubject: \tx \r\n y\r\nSubject: z\r\n\r\n" + body + b"\r\n"
    once = hosts[0].seal(message, NONE, *results)
    twice = hosts[1].seal(once, ArcResult("pass"), *results)
    found = await checked(twice, *hosts)
    assert (found.result, found.reason) == ("pass", "")
