"""Delivery over TLS, on both event loops: opportunistic, verified, implicit, with login."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import inspect
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from delivery_samples import (
    DEFERRED,
    FAILED,
    MESSAGE,
    OK,
    DeliverTo,
    Start,
    attempt,
    delivering,
    results,
    settings,
    smarthost,
)
from support.dns_server import DnsServer
from support.sinks import DROP
from support.tls import CertificateAuthority, TlsFiles

from pymx.mta.contexts import Contexts


def on_both_loops(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """uvloop by default, asyncio as the fallback: run an async test on a loop of each kind."""

    def run(loop_factory: Callable[[], asyncio.AbstractEventLoop], dns_server: DnsServer, **fixtures: object) -> None:
        async def scenario() -> None:
            async with delivering(dns_server) as deliver_to:
                wanted = {"dns_server": dns_server} if "dns_server" in parameters else {}
                await test(deliver_to=deliver_to, **wanted, **fixtures)

        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(scenario())

    signature = inspect.signature(test)
    parameters = signature.parameters
    names = ["loop_factory", *(n for n in parameters if n != "deliver_to"), *({"dns_server"} - set(parameters))]
    run.__name__, run.__doc__ = test.__name__, test.__doc__
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # pytest asks it for the fixtures
        [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
    )
    run.pytestmark = [  # type: ignore[attr-defined]
        *getattr(test, "pytestmark", []),
        pytest.mark.parametrize(
            "loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
        ).mark,
    ]
    return run


@on_both_loops
async def test_tls_is_used_when_it_is_offered_whatever_the_certificate(
    scripted_remote: Start, dns_server: DnsServer, tls_files: TlsFiles, deliver_to: DeliverTo
) -> None:
    """RFC 7435: opportunistic."""
    remote = scripted_remote(tls=tls_files.server_context())
    dns_server.zone("far.test", "@ MX 10 mx\nmx A 127.0.0.1")
    (outcome,) = await deliver_to(settings(remote.port)).attempt(attempt("a@far.test"))
    assert outcome.result is OK
    assert outcome.tls.startswith("TLSv1.")
    assert remote.messages[0].tls
    assert remote.messages[0].content == MESSAGE


@on_both_loops
@pytest.mark.parametrize(
    "how", [{"TLS": DROP}, {"STARTTLS": "454 4.7.0 not now"}, {"STARTTLS": "502 what"}, {"STARTTLS": DROP}]
)
async def test_tls_that_does_not_work_falls_back_to_plain_in_a_new_connection(
    scripted_remote: Start, dns_server: DnsServer, tls_files: TlsFiles, deliver_to: DeliverTo,
    how: dict[str, str],
) -> None:  # fmt: skip
    """Nothing forbids it, and the mail arrives."""
    remote = scripted_remote(tls=tls_files.server_context(), replies=dict(how))
    dns_server.zone("far.test", "@ MX 10 mx\nmx A 127.0.0.1")
    (outcome,) = await deliver_to(settings(remote.port)).attempt(attempt("a@far.test"))
    assert (outcome.result, outcome.tls) == (OK, "")
    assert not remote.messages[0].tls
    assert remote.connections == 2


@on_both_loops
async def test_an_old_tls_version_falls_back_to_plain(
    scripted_remote: Start, dns_server: DnsServer, tls_files: TlsFiles, deliver_to: DeliverTo
) -> None:
    """TLS below 1.2 is not spoken."""
    context = tls_files.server_context()
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    remote = scripted_remote(tls=context)
    dns_server.zone("far.test", "@ MX 10 mx\nmx A 127.0.0.1")
    (outcome,) = await deliver_to(settings(remote.port)).attempt(attempt("a@far.test"))
    assert (outcome.result, outcome.tls) == (OK, "")


@on_both_loops
async def test_short_keys_are_better_than_plain_text(
    tmp_path: Path, scripted_remote: Start, dns_server: DnsServer, deliver_to: DeliverTo
) -> None:
    """RFC 7435: an old server's 1024-bit Diffie-Hellman group keeps out who only listens."""
    remote = scripted_remote(tls=old_server(tmp_path))
    dns_server.zone("far.test", "@ MX 10 mx\nmx A 127.0.0.1")
    (outcome,) = await deliver_to(settings(remote.port)).attempt(attempt("a@far.test"))
    assert (outcome.result, outcome.tls.startswith("TLSv1.2 DHE-RSA")) == (OK, True)


OAKLEY_2 = (  # RFC 2409 s. 6.2
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD"
    "EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED"
    "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE65381FFFFFFFFFFFFFFFF"
)
DH_PARAMETERS = bytes.fromhex("308187" + "02818100" + OAKLEY_2 + "020102")  # SEQUENCE of prime and generator


def old_server(directory: Path) -> ssl.SSLContext:
    """TLS 1.2, ephemeral Diffie-Hellman in a small group and nothing else."""
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "old")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now).not_valid_after(now + dt.timedelta(days=1)).sign(key, hashes.SHA256())
    )  # fmt: skip
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem, parameters = directory / "old.pem", directory / "old-dh.pem"
    pem.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    parameters.write_text(
        f"-----BEGIN DH PARAMETERS-----\n{base64.encodebytes(DH_PARAMETERS).decode()}-----END DH PARAMETERS-----\n"
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("DHE:@SECLEVEL=0")
    context.load_cert_chain(pem)
    context.load_dh_params(parameters)
    return context


@on_both_loops
async def test_a_verified_route_takes_the_right_certificate_only(
    scripted_remote: Start, tls_files: TlsFiles, certificate_authority: CertificateAuthority,
    deliver_to: DeliverTo,
) -> None:  # fmt: skip
    """[outbound] route, tls = "verified": the name and the root must fit, and there is no way without TLS."""
    ca = str(tls_files.ca)
    remote = scripted_remote(tls=tls_files.server_context())
    (outcome,) = await deliver_to(smarthost(remote.port, tls="verified", ca_file=ca)).attempt(attempt("a@far.test"))
    assert (outcome.result, outcome.tls != "") == (OK, True)
    other = scripted_remote(tls=certificate_authority.issue("other", ("other.test",)).server_context())
    for port, changes in (
        (other.port, {"ca_file": ca}),
        (remote.port, {}),  # the system's roots don't know this one
        (scripted_remote().port, {"ca_file": ca}),
    ):
        (outcome,) = await deliver_to(smarthost(port, tls="verified", **changes)).attempt(attempt("a@far.test"))
        assert (outcome.result, outcome.status[:4]) == (DEFERRED, "4.7.")
    assert other.messages == []


@on_both_loops
@pytest.mark.parametrize("mechanisms", ["PLAIN LOGIN", "LOGIN"])
async def test_login_at_a_smarthost_over_implicit_tls(
    tmp_path: Path, scripted_remote: Start, tls_files: TlsFiles, deliver_to: DeliverTo,
    mechanisms: str,
) -> None:  # fmt: skip
    """RFC 4954, RFC 8314; the password is read from its file."""
    (tmp_path / "password").write_bytes(b"s3cret\r\n")
    remote = scripted_remote(
        tls=tls_files.server_context(), implicit_tls=True, login=("me", "s3cret") if mechanisms != "LOGIN" else None,
        extensions=() if mechanisms != "LOGIN" else ("AUTH LOGIN",),
    )  # fmt: skip
    remote.login = ("me", "s3cret")
    changes = {
        "tls": "implicit", "ca_file": str(tls_files.ca), "username": "me", "password_file": str(tmp_path / "password"),
    }  # fmt: skip
    deliver = deliver_to(smarthost(remote.port, **changes))
    assert results(await deliver.attempt(attempt("a@far.test"))) == [(OK, "2.0.0")]
    (tmp_path / "password").write_text("wrong\n")
    assert results(await deliver_to(smarthost(remote.port, **changes)).attempt(attempt("a@far.test"))) == [
        (DEFERRED, "4.7.8")
    ]
    (tmp_path / "password").write_text("s3cret\nsecond line\n")
    (outcome,) = await deliver_to(smarthost(remote.port, **changes)).attempt(attempt("a@far.test"))
    assert outcome.result is DEFERRED
    assert "more than one line" in str(outcome)


@on_both_loops
async def test_a_password_is_not_sent_without_tls(
    tmp_path: Path, scripted_remote: Start, deliver_to: DeliverTo
) -> None:
    """Unless the setting says tls = "none"."""
    (tmp_path / "password").write_text("s3cret\n")
    remote = scripted_remote(login=("me", "s3cret"))
    login = {"username": "me", "password_file": str(tmp_path / "password")}
    (outcome,) = await deliver_to(smarthost(remote.port, tls="opportunistic", **login)).attempt(attempt("a@far.test"))
    assert outcome.result is DEFERRED
    assert not any("AUTH" in c for c in remote.commands)
    (outcome,) = await deliver_to(smarthost(remote.port, tls="none", **login)).attempt(attempt("a@far.test"))
    assert outcome.result is OK


@on_both_loops
async def test_requiretls_goes_to_a_smarthost_that_is_verified_and_offers_it(
    scripted_remote: Start, tls_files: TlsFiles, deliver_to: DeliverTo
) -> None:
    """RFC 8689 s. 4.2.1: the configuration names the host, its certificate proves it."""
    able = scripted_remote(tls=tls_files.server_context(), extensions=("REQUIRETLS",))
    unable = scripted_remote(tls=tls_files.server_context())
    outcomes = {}
    for port, mode in ((able.port, "verified"), (unable.port, "verified"), (able.port, "opportunistic")):
        deliver = deliver_to(smarthost(port, tls=mode, ca_file=str(tls_files.ca)))
        (outcome,) = await deliver.attempt(attempt("a@far.test", requiretls=True))
        outcomes[port, mode] = (outcome.result, outcome.status)
        await deliver.attempt(attempt("b@far.test"))
    assert list(outcomes.values()) == [(OK, "2.0.0"), (FAILED, "5.7.30"), (FAILED, "5.7.30")]
    # a connection for one wish is not used for another
    assert [("REQUIRETLS" in m.mail_options, m.rcpt_to) for m in able.messages] == [
        (True, ("a@far.test",)), (False, ("b@far.test",)), (False, ("b@far.test",)),
    ]  # fmt: skip
    assert [m.rcpt_to for m in unable.messages] == [("b@far.test",)]


def test_no_session_ticket_is_asked_for(tls_files: TlsFiles) -> None:
    """Servers of one big provider broke on them."""
    contexts = Contexts()
    for context in (contexts.opportunistic(), contexts.verified(str(tls_files.ca))):
        assert context.options & ssl.OP_NO_TICKET
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
