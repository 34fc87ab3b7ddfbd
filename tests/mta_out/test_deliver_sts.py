"""Delivery to domains with an MTA-STS policy: a name server, an HTTPS server, mail servers with certificates."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvloop
from delivery_samples import DEFERRED, FAILED, MESSAGE, OK, Start, attempt, settings
from support.dns_server import DnsServer, Failure
from support.policy_server import Page, PolicyServer
from support.tls import CertificateAuthority, TlsFiles

from pymx import metrics
from pymx.config.model import Dns
from pymx.mail.tls_result import TlsResult
from pymx.mta.deliver import Deliver
from pymx.mta.sts_policies import StsPolicies
from pymx.mta.tls_lookup import TlsPolicies
from pymx.mta.tls_state import StateTrouble, Stored, TlsState
from pymx.queue.item import Outcome
from pymx.resolver.resolver import Resolver

DAY_S = 86_400.0


def policy(mode: str = "enforce", *mx: str, max_age: int = 604_800) -> bytes:
    lines = ["version: STSv1", f"mode: {mode}", *(f"mx: {m}" for m in mx or ("mx.far.test",)), f"max_age: {max_age}"]
    return "".join(f"{line}\r\n" for line in lines).encode()


@pytest.fixture(scope="module")
def mx_files(certificate_authority: CertificateAuthority) -> TlsFiles:
    return certificate_authority.issue("sts-mx", ("mx.far.test",))


@pytest.fixture(scope="module")
def web_files(certificate_authority: CertificateAuthority) -> TlsFiles:
    return certificate_authority.issue("sts-web", ("mta-sts.far.test", "mta-sts.second.test"))


@pytest.fixture
def web(web_files: TlsFiles) -> Iterator[PolicyServer]:
    with PolicyServer(web_files.server_context()) as server:
        server.answer = Page(policy())
        yield server


@pytest.fixture
def far(dns_server: DnsServer) -> DnsServer:
    """far.test with one mail server and a policy."""
    dns_server.zone("far.test", '@ MX 10 mx\nmx A 127.0.0.1\nmta-sts A 127.0.0.1\n_mta-sts TXT "v=STSv1; id=1"', ttl=5)
    return dns_server


@dataclass
class Sender:
    """A Deliver with its policies, at a time that the test decides."""

    far: DnsServer
    web: PolicyServer
    ca_file: str
    directory: Path
    stack: AsyncExitStack
    now: float = 1_800_000_000.0
    told: list[TlsResult] = field(default_factory=list)

    def begin(self, port: int, **changes: object) -> None:
        """Make it, or make it anew as after a restart."""
        outbound = settings(port, **({"ca_file": self.ca_file} | changes))
        self.resolver = Resolver(Dns(nameservers=[self.far.spec], timeout_s=2))
        self.tls = TlsPolicies(
            self.resolver, outbound, state=self.directory / "tls.sqlite", https_port=self.web.port,
            clock=lambda: self.now,
        )  # fmt: skip
        self.tls.report = self.told.append
        self.deliver = Deliver(self.resolver, outbound, "mx.ours.test", tls=self.tls)
        self.stack.push_async_callback(self.tls.close)
        self.stack.push_async_callback(self.deliver.close)

    async def send(self, to: str = "a@far.test", **envelope: object) -> Outcome:
        (outcome,) = await self.deliver.attempt(attempt(to, **envelope))
        return outcome

    @property
    def verdicts(self) -> list[tuple[str, str]]:
        return [(r.policy_type, r.failure) for r in self.told]


@pytest.fixture
async def sender(
    far: DnsServer, web: PolicyServer, web_files: TlsFiles, tmp_path: Path, scripted_remote: Start
) -> AsyncIterator[Sender]:
    """Hangs up before the remotes stop."""
    async with AsyncExitStack() as stack:
        yield Sender(far, web, str(web_files.ca), tmp_path, stack)


async def test_an_enforced_policy_is_met_by_a_certificate_of_a_trusted_root(
    sender: Sender, scripted_remote: Start, mx_files: TlsFiles
) -> None:
    """RFC 8461 s. 4; one request, to the well-known place, by name."""
    remote = scripted_remote(tls=mx_files.server_context())
    sender.begin(remote.port)
    outcome = await sender.send()
    assert (outcome.result, outcome.tls.endswith(" verified")) == (OK, True)
    assert remote.messages[0].content == MESSAGE
    assert sender.web.requests == [("mta-sts.far.test", "/.well-known/mta-sts.txt")]
    (told,) = sender.told
    assert (told.domain, told.policy_type, told.failure, told.mx) == ("far.test", "sts", "", "mx.far.test")
    assert told.policy_strings == tuple(policy().decode().split("\r\n")[:-1])
    assert (told.mx_patterns, told.source) == (("mx.far.test",), "127.0.0.1")
    await sender.send()
    assert len(sender.web.requests) == 1


@pytest.mark.parametrize(
    ("names", "days", "failure"),
    [
        (("mx.other.test",), 10, "certificate-host-mismatch"),
        (("mx.far.test",), -1, "certificate-expired"),
        (None, 10, "certificate-not-trusted"),
        ((), 10, "starttls-not-supported"),
    ],
)
async def test_an_enforced_policy_that_is_not_met_defers_and_never_goes_in_the_clear(
    names: tuple[str, ...] | None, days: int, failure: str, sender: Sender, scripted_remote: Start,
    certificate_authority: CertificateAuthority, tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    """RFC 8461 s. 5."""
    authority = certificate_authority
    if names is None:
        authority = CertificateAuthority(tmp_path_factory.mktemp("strangers"))
        names = ("mx.far.test",)
    tls = authority.issue("sts-bad", names, days=days).server_context() if names else None
    remote = scripted_remote(tls=tls)
    sender.begin(remote.port)
    outcome = await sender.send()
    assert (outcome.result, outcome.status[:4]) == (DEFERRED, "4.7.")
    assert not any(c.startswith("MAIL") for c in remote.commands)
    assert sender.verdicts == [("sts", failure)]


def test_policies_are_fetched_and_met_on_uvloop_too(
    far: DnsServer, web: PolicyServer, web_files: TlsFiles, mx_files: TlsFiles, tmp_path: Path, scripted_remote: Start,
    certificate_authority: CertificateAuthority,
) -> None:  # fmt: skip
    """Its TLS and its sockets are its own."""
    good = scripted_remote(tls=mx_files.server_context())
    bad = scripted_remote(tls=certificate_authority.issue("sts-uvloop", ("mx.other.test",)).server_context())

    async def scenario() -> list[tuple[object, ...]]:
        async with AsyncExitStack() as stack:
            sender = Sender(far, web, str(web_files.ca), tmp_path, stack)
            results = []
            for remote in (good, bad):
                sender.begin(remote.port)
                results.append(((await sender.send()).result, sender.verdicts[-1]))
            return results

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(scenario())
    assert found == [(OK, ("sts", "")), (DEFERRED, ("sts", "certificate-host-mismatch"))]


async def test_a_mail_server_that_an_enforced_policy_does_not_name_is_not_connected_to(
    sender: Sender, scripted_remote: Start, mx_files: TlsFiles
) -> None:
    """RFC 8461 s. 4.1; the next one that it names gets the message."""
    remote = scripted_remote(tls=mx_files.server_context())
    sender.web.answer = Page(policy("enforce", "mx.elsewhere.test"))
    sender.begin(remote.port)
    outcome = await sender.send()
    assert (outcome.result, outcome.status, remote.connections) == (DEFERRED, "4.7.5", 0)
    assert "policy" in outcome.reply
    assert sender.verdicts == [("sts", "validation-failure")]
    sender.far.zone("far.test", "@ MX 5 stranger\n@ MX 10 mx\nstranger A 127.0.0.1")
    sender.web.answer = Page(policy("enforce", "mx.far.test"))
    sender.far.remove("_mta-sts.far.test")
    sender.far.add("_mta-sts.far.test", "TXT", '"v=STSv1; id=2"')
    sender.begin(remote.port)
    assert ((await sender.send()).result, remote.connections) == (OK, 1)


@pytest.mark.parametrize("names", [("mx.other.test",), ()])
async def test_a_policy_in_testing_is_reported_and_not_enforced(
    names: tuple[str, ...], sender: Sender, scripted_remote: Start, certificate_authority: CertificateAuthority
) -> None:
    """RFC 8461 s. 5: delivery goes on as if there were no policy; the session counts as failed once."""
    tls = certificate_authority.issue("sts-testing", names).server_context() if names else None
    remote = scripted_remote(tls=tls)
    sender.web.answer = Page(policy("testing"))
    sender.begin(remote.port)
    outcome = await sender.send()
    assert (outcome.result, bool(outcome.tls)) == (OK, bool(names))
    assert sender.verdicts == [("sts", "certificate-host-mismatch" if names else "starttls-not-supported")]


async def test_a_stranger_in_testing_is_reported_and_gets_the_message(
    sender: Sender, scripted_remote: Start, mx_files: TlsFiles
) -> None:
    """RFC 8461 s. 5."""
    remote = scripted_remote(tls=mx_files.server_context())
    sender.web.answer = Page(policy("testing", "*.elsewhere.test"))
    sender.begin(remote.port)
    assert (await sender.send()).result is OK
    assert sender.verdicts == [("sts", "validation-failure")]


async def test_mode_none_is_no_policy(sender: Sender, scripted_remote: Start) -> None:
    """RFC 8461 s. 3.2."""
    remote = scripted_remote()
    sender.web.answer = Page(policy("none"))
    sender.begin(remote.port)
    assert (await sender.send()).result is OK
    assert sender.verdicts == [("no-policy-found", "starttls-not-supported")]


BIG = Page(policy() + b"x-filler: " + b"y" * 70_000 + b"\r\n")


@pytest.mark.parametrize(
    ("page", "failure", "word"),
    [
        (Page(b"", 301, {"Location": "https://mta-sts.second.test/", "Content-Type": "text/plain"}),
         "sts-policy-fetch-error", "redirect"),
        (Page(policy(), 404), "sts-policy-fetch-error", "404"),
        (Page(policy(), 200, {"Content-Type": "text/html"}), "sts-policy-fetch-error", "content type"),
        (Page(policy(), 200, {}), "sts-policy-fetch-error", "content type"),
        (Page(policy(), 200, {"Content-Type": "text/plain", "Content-Encoding": "gzip"}), "sts-policy-fetch-error",
         "compressed"),
        (BIG, "sts-policy-fetch-error", "octets"),
        (Page(BIG.body, chunked=True), "sts-policy-fetch-error", "octets"),
        (Page(b"version: STSv1\r\nmode: enforce\r\n"), "sts-policy-invalid", "mx"),
    ],
)  # fmt: skip
async def test_what_is_no_policy_is_none_and_is_reported(
    page: Page, failure: str, word: str, sender: Sender, scripted_remote: Start
) -> None:
    """RFC 8461 s. 3.3: no redirects, 64 KB, text/plain; not asked again for five minutes."""
    remote = scripted_remote()
    sender.web.answer = page
    sender.begin(remote.port)
    assert (await sender.send()).result is OK
    assert (await sender.send()).result is OK
    assert sender.verdicts[0] == ("sts", failure)
    assert word in sender.told[0].reason
    assert len(sender.web.requests) == 1
    sender.now += 301
    sender.web.answer = Page(policy())
    assert (await sender.send(mail_from=None)).result is DEFERRED


async def test_a_policy_host_with_another_certificate_is_not_believed(
    sender: Sender, scripted_remote: Start, far: DnsServer
) -> None:
    """RFC 8461 s. 3.3: the certificate is for mta-sts.<domain>."""
    remote = scripted_remote()
    far.zone("fourth.test", '@ MX 10 mx.far.test.\nmta-sts A 127.0.0.1\n_mta-sts TXT "v=STSv1; id=1"')
    sender.begin(remote.port)
    assert (await sender.send("a@fourth.test")).result is OK
    assert sender.verdicts[0] == ("sts", "sts-webpki-invalid")
    assert sender.web.requests == []


@pytest.fixture
async def policies(
    far: DnsServer, web: PolicyServer, web_files: TlsFiles, tmp_path: Path
) -> AsyncIterator[Callable[..., StsPolicies]]:
    """Makes StsPolicies by themselves."""
    async with AsyncExitStack() as stack:

        def make(**options: object) -> StsPolicies:
            state = TlsState(tmp_path / "alone.sqlite")
            stack.push_async_callback(state.close)
            return StsPolicies(
                Resolver(Dns(nameservers=[far.spec], timeout_s=2)), state, https_port=web.port,
                ca_file=str(web_files.ca), **({"allow_private": True} | options),  # type: ignore[arg-type]
            )  # fmt: skip

        yield make


async def test_a_policy_host_on_a_private_address_is_not_asked(
    policies: Callable[..., StsPolicies], web: PolicyServer, far: DnsServer
) -> None:
    """A name in public DNS must not make us knock at doors inside; among several addresses the public ones count."""
    told: list[tuple[str, str, str]] = []
    alone = policies(allow_private=False, failed=lambda *words: told.append(words))
    for address in ("10.0.0.1", "169.254.169.254", "192.168.1.1"):
        far.add("mta-sts.far.test", "A", address)
    far.add("mta-sts.far.test", "AAAA", "::1", "fe80::1", "::ffff:127.0.0.1")
    assert await alone.policy("far.test") is None
    assert web.connections == 0
    assert told == [("far.test", "sts-policy-fetch-error", "mta-sts.far.test has only private addresses")]


async def test_a_policy_host_that_does_not_answer_is_given_up(
    policies: Callable[..., StsPolicies], web: PolicyServer
) -> None:
    """A fetch takes no longer than its time."""
    told: list[tuple[str, str, str]] = []
    web.answer = Page(policy(), stall=True)
    assert await policies(timeout_s=0.3, failed=lambda *words: told.append(words)).policy("far.test") is None
    assert [(result, "within" in reason) for _, result, reason in told] == [("sts-policy-fetch-error", True)]


async def test_a_policy_is_in_force_until_it_expires_whatever_becomes_of_its_sources(
    sender: Sender, scripted_remote: Start
) -> None:
    """RFC 8461 s. 3.3, 5.1: neither a failed fetch nor a missing TXT record, nor a restart, undoes it."""
    remote = scripted_remote()
    sender.begin(remote.port)
    assert (await sender.send()).result is DEFERRED
    sender.web.answer = Page(b"", 500)
    sender.far.remove("_mta-sts.far.test", "TXT")
    sender.far.add("_mta-sts.far.test", "TXT", '"v=STSv1; id=2"')
    sender.begin(remote.port)
    assert (await sender.send()).result is DEFERRED
    sender.far.fail("_mta-sts.far.test", Failure.SERVFAIL)
    sender.begin(remote.port)
    sender.now += 604_000
    assert (await sender.send()).result is DEFERRED
    assert remote.messages == []
    sender.now += 1_000
    sender.begin(remote.port)
    assert (await sender.send()).result is OK


async def test_another_id_in_the_txt_record_brings_the_new_policy(sender: Sender, scripted_remote: Start) -> None:
    """RFC 8461 s. 3.1: the id says when to fetch."""
    remote = scripted_remote()
    sender.begin(remote.port)
    assert (await sender.send()).result is DEFERRED
    sender.web.answer = Page(policy("none"))
    sender.resolver.forget()
    assert (await sender.send()).result is DEFERRED
    sender.far.remove("_mta-sts.far.test", "TXT")
    sender.far.add("_mta-sts.far.test", "TXT", '"v=STSv1; id=2"')
    sender.resolver.forget()
    assert (await sender.send()).result is OK
    assert len(sender.web.requests) == 2


async def test_a_policy_in_use_is_refreshed_before_it_expires(sender: Sender, scripted_remote: Start) -> None:
    """RFC 8461 s. 10.2: an attacker would have to block the fetches for the whole of max_age."""
    remote = scripted_remote()
    sender.begin(remote.port)
    assert (await sender.send()).result is DEFERRED
    sts = sender.tls.sts
    assert sts is not None
    await sts.refresh()
    assert len(sender.web.requests) == 1
    sender.now += 1.1 * DAY_S
    await sts.refresh()
    assert len(sender.web.requests) == 2
    sender.web.answer = Page(b"", 500)
    sender.now += 1.1 * DAY_S
    await sts.refresh()
    sender.now += 5.5 * DAY_S  # 6.6 days after the last good fetch, 7.7 after the first
    assert (await sender.send()).result is DEFERRED
    sender.now += 40 * DAY_S
    await sts.refresh()
    assert (await sender.send()).result is OK


async def test_requiretls_is_satisfied_by_a_policy(sender: Sender, scripted_remote: Start, mx_files: TlsFiles) -> None:
    """RFC 8689 s. 4.2.1: the policy names the host, the certificate proves it; in testing it has to, here."""
    remote = scripted_remote(tls=mx_files.server_context(), extensions=("REQUIRETLS",))
    sender.web.answer = Page(policy("testing"))
    sender.begin(remote.port)
    assert (await sender.send(requiretls=True)).result is OK
    assert remote.messages[0].mail_options[-1] == "REQUIRETLS"
    sender.far.zone("bare.test", "@ MX 10 mx.far.test.")
    outcome = await sender.send("a@bare.test", requiretls=True)
    assert (outcome.result, outcome.status) == (FAILED, "5.7.30")


async def test_a_lower_level_than_before_is_logged(
    sender: Sender, scripted_remote: Start, mx_files: TlsFiles, caplog: pytest.LogCaptureFixture
) -> None:
    """The best level of a domain is remembered on disk; without a policy nothing forbids to do with less."""
    with_tls = scripted_remote(tls=mx_files.server_context())
    sender.far.remove("_mta-sts.far.test")
    sender.begin(with_tls.port)
    with caplog.at_level(logging.WARNING, "pymx.mta"):
        assert (await sender.send()).result is OK
        assert "tls_downgraded" not in caplog.text
        sender.begin(scripted_remote().port)
        assert (await sender.send()).result is OK
        assert "tls_downgraded" in caplog.text
        caplog.clear()
        sender.now += 100 * DAY_S
        sender.begin(scripted_remote().port)
        assert (await sender.send()).result is OK
        assert "tls_downgraded" not in caplog.text


async def test_a_store_that_is_no_database_is_put_aside(sender: Sender, scripted_remote: Start) -> None:
    """It is a cache: mail goes on."""
    (sender.directory / "tls.sqlite").write_bytes(b"no database at all" * 100)
    remote = scripted_remote()
    sender.begin(remote.port)
    assert (await sender.send()).result is DEFERRED
    assert (sender.directory / "tls.damaged").read_bytes().startswith(b"no database")
    (sender.directory / "tls.sqlite").stat()


async def test_damage_that_shows_only_in_use_is_put_aside_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not a warning at each message for ever: one error, counted, and a new file that works."""
    path = tmp_path / "tls.sqlite"
    stored = Stored("far.test", "1", policy(), 1.0, 2.0, 1.0)
    before = metrics.snapshot().counters.get("tls_state_failures", 0)
    state = TlsState(path)
    await state.keep_policy(stored)
    await state.close()
    with path.open("r+b") as file:  # the first page still says that it is a database, with these tables
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    state = TlsState(path)
    with caplog.at_level(logging.ERROR, "pymx.mta"):
        assert await state.policy("far.test") is None
        await state.keep_policy(stored)
        assert await state.policy("far.test") == stored
    await state.close()
    assert caplog.text.count("tls_state_damaged") == 1
    assert path.with_suffix(".damaged").exists()
    assert metrics.snapshot().counters["tls_state_failures"] == before + 1


async def test_a_text_that_is_no_utf_8_any_more_is_trouble_like_any_other(tmp_path: Path) -> None:
    """Python's module finds it out, not SQLite: the error has no code. It must not end the refreshing of policies."""
    path = tmp_path / "tls.sqlite"
    state = TlsState(path)
    await state.keep_policy(Stored("far.test", "ABCDEFGH", policy(), 1.0, 2.0, 1.0))
    await state.close()
    path.write_bytes(path.read_bytes().replace(b"ABCDEFGH", b"ABC\xffEFGH"))
    state = TlsState(path)
    with pytest.raises(StateTrouble):
        await state.policy("far.test")
    await state.close()


async def test_a_store_that_cannot_be_opened_does_not_stop_mail(sender: Sender, scripted_remote: Start) -> None:
    """Policies are still fetched and followed, only not remembered beyond the process."""
    before = metrics.snapshot().counters.get("tls_state_failures", 0)
    (sender.directory / "tls.sqlite").mkdir()
    remote = scripted_remote()
    sender.begin(remote.port)
    assert (await sender.send()).result is DEFERRED
    assert len(sender.web.requests) == 1
    assert metrics.snapshot().counters["tls_state_failures"] > before
