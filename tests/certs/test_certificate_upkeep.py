"""What certificates are wanted, when they are due, how failures are waited out, and what is said of it."""

from __future__ import annotations

import asyncio
import http.server
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from acme import messages
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from pymx import log
from pymx.certs import expiry, files, state
from pymx.certs.issue import Authority, IssueFailed, _NamesRefused, _refused, _retry_after
from pymx.certs.plan import LookupFailed, Wanted, candidates, due, reachable
from pymx.certs.renewal import Renewal
from pymx.certs.round import Busy, How, Outcome, Round, _alone, look
from pymx.certs.state import LONGEST_WAIT_S, State
from pymx.config.check import check
from pymx.config.load import parse
from pymx.config.model import Acme, Tls
from pymx.net.certificate import CertificateUnreadable, facts, read_certificate
from pymx.net.tls import Certificates

HOST = "mx.example.test"
DAY = 86_400.0


@contextmanager
def logged() -> Iterator[list[str]]:
    """The lines that are written meanwhile."""
    lines: list[str] = []

    def take(_level: int, _room: str, event: str, fields) -> None:
        lines.append(" ".join([event, *(f"{k}={v}" for k, v in fields.items())]))

    log.tap(take)
    try:
        yield lines
    finally:
        log.untap(take)


# plan


def test_host_and_each_domain_have_one():
    """No certificate tells who else has mail here; the host's own comes first, and a domain's names only once."""
    config = parse(f'hostname = "{HOST}"\n[acme]\nnames = ["mail.example.test", "autoconfig.example.test"]')
    assert candidates(config, ["b.test", "example.test", "b.test"]) == [
        Wanted(HOST, (HOST, "mail.example.test", "autoconfig.example.test"), frozenset({HOST})),
        Wanted("b.test", ("mta-sts.b.test", "autoconfig.b.test", "autodiscover.b.test")),
        Wanted("example.test", ("mta-sts.example.test", "autodiscover.example.test")),
    ]


def test_hosts_certificate_of_the_settings_is_left_to_others():
    """Whoever sets [tls] certificate keeps it up."""
    config = parse(f'hostname = "{HOST}"\n[tls]\ncertificate = "/c"\nprivate_key = "/k"')
    assert [one.name for one in candidates(config, ["b.test"])] == ["b.test"]


async def test_only_names_that_lead_here_are_asked_for():
    """Here is where the host's name leads, in either family; what DNS does not tell is left to the authority."""
    known = {
        HOST: {"192.0.2.1", "2001:db8::1"}, "a.b.test": {"2001:db8::1"}, "b.b.test": {"192.0.2.2"}, "c.b.test": set(),
    }  # fmt: skip

    async def addresses(host: str) -> frozenset[str]:
        if host not in known:
            raise LookupFailed("timeout")
        return frozenset(known[host])

    wanted = [Wanted(HOST, (HOST,), frozenset({HOST})), Wanted("b.test", tuple(f"{x}.b.test" for x in "abcd"))]
    plan = await reachable(wanted, HOST, addresses)
    assert plan.wanted == [wanted[0], Wanted("b.test", ("a.b.test", "d.b.test"))]
    assert plan.left_out == {
        "b.b.test": f"leads to 192.0.2.2, and {HOST} to 192.0.2.1, 2001:db8::1", "c.b.test": "has no address in DNS",
    }  # fmt: skip
    known[HOST] = set()
    plan = await reachable(wanted, HOST, addresses)
    assert plan.wanted == [Wanted("b.test", ("d.b.test",))]
    assert plan.left_out[HOST] == "has no address in DNS"
    del known[HOST]
    with pytest.raises(LookupFailed):
        await reachable(wanted, HOST, addresses)


def test_certificate_is_due_at_a_third_of_its_life(certificate_authority):
    """Or when a name is missing that was not refused lately, or when the authority says so (RFC 9773)."""
    have = read_certificate(certificate_authority.issue("due", ("a.test",), days=10).certificate)  # lives 30 days
    wanted = Wanted("a.test", ("a.test", "b.test"))
    only = Wanted("a.test", ("a.test",))
    third = have.not_after - (have.not_after - have.not_before) / 3
    assert due(only, None, 0.0, failing={}) == "there is none"
    assert due(only, have, third - 60, failing={}) == ""
    assert due(only, have, third + 60, failing={}) == "it expires"
    assert due(only, have, third - 60, failing={}, suggested=third - 61) == "the authority wants it renewed"
    assert due(wanted, have, third - 60, failing={}) == "b.test is not in it"
    assert due(wanted, have, third - 60, failing={"b.test": third}) == ""


# waits


@given(st.integers(1, 50), st.integers(1, 3600))
def test_waits_grow_up_to_a_day(failures, first_s):
    """Four times as long each time; what the authority says is longer wins."""
    known = State()
    waits = []
    for _ in range(failures):
        known.failed("down", 1000.0, first_s=first_s)
        waits.append(known.not_before - 1000.0)
    assert waits == sorted(waits)
    assert waits[0] == first_s
    assert waits[-1] <= LONGEST_WAIT_S
    known.failed("slow down", 1000.0, first_s=first_s, at_least=1e6)
    assert known.not_before == 1e6


def test_refused_name_waits_longer_each_time():
    """Although the certificate itself succeeds."""
    known = State()
    for expected in (900, 3600, 14_400):
        known.succeeded({"b.test": "no"}, 0.0, first_s=900)
        assert known.left_out["b.test"].not_before == expected
    known.succeeded({}, 0.0, first_s=900)
    assert known.left_out == {}


def test_state_outlives_damage(tmp_path):
    """A file that can't be read counts as none has been tried; one that is not there, as somebody else's work."""
    assert state.load(tmp_path, "a.test") is None
    known = State(failures=2, not_before=5.0, reason="x")
    state.save(tmp_path, "a.test", known)
    assert state.load(tmp_path, "a.test") == known
    (tmp_path / "acme" / "state" / "a.test.json").write_text("{")
    assert state.load(tmp_path, "a.test") == State()
    state.forget(tmp_path, "a.test")
    assert state.load(tmp_path, "a.test") is None


# files


@pytest.mark.parametrize("name", ["", "..", "a/b", "a..b", ".hidden", "A.test", "-a", "a.test.", "a\n"])
def test_odd_names_are_no_files(tmp_path, name):
    with pytest.raises(files.NotInstalled, match="can't be the name"):
        files.place(tmp_path, name)


def test_only_a_certificate_with_its_key_is_installed(tmp_path, certificate_authority):
    """What was there before stays when the new one is no good."""
    good = certificate_authority.issue("files-good", ("a.test",))
    other = certificate_authority.issue("files-other", ("a.test",))
    expired = certificate_authority.issue("files-expired", ("a.test",), days=-1)
    key, chain = good.private_key.read_bytes(), good.certificate.read_bytes()
    files.install(tmp_path, "a.test", key, chain)
    before = (tmp_path / "tls" / "a.test.pem").read_bytes()
    loaded = serialization.load_pem_private_key(key, None)
    encrypted = loaded.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    leaf = chain.partition(b"-----BEGIN CERTIFICATE-----\n")[2].partition(b"-----BEGIN")[0]
    for bad_key, bad_chain, reason in (
        (other.private_key.read_bytes(), chain, "not the key"),
        (b"", chain, "no private key"),
        (encrypted, chain, "encrypted"),
        (key, b"", "no certificate"),
        (key, chain + b"-----BEGIN CERTIFICATE-----\n" + leaf, "not issued by"),
        (expired.private_key.read_bytes(), expired.certificate.read_bytes(), "has expired"),
    ):
        with pytest.raises(files.NotInstalled, match=reason):
            files.install(tmp_path, "a.test", bad_key, bad_chain)
    assert (tmp_path / "tls" / "a.test.pem").read_bytes() == before
    assert [p.name for p in (tmp_path / "tls").iterdir()] == ["a.test.pem"]


@given(st.binary(max_size=300))
def test_any_octets_are_a_certificate_or_an_error(octets):
    """Nothing but our error."""
    try:
        facts(b"-----BEGIN CERTIFICATE-----\n" + octets + b"\n-----END CERTIFICATE-----\n", Path("x"))
    except CertificateUnreadable:
        pass


# what the log says


def test_expiry_is_said_from_fourteen_days_on(certificate_authority):
    """Daily; louder when it is too late."""
    made = certificate_authority.issue("expiry", ("a.test",), days=30)
    certificates = Certificates(Tls(certificate=str(made.certificate), private_key=str(made.private_key)))
    (one,) = certificates.in_use()
    for left_days, expected in ((15, []), (13.4, ["certificate_expires"]), (-1, ["certificate_expired"])):
        with logged() as lines:
            expiry.look([one], one.facts.not_after - left_days * DAY)
        assert [line.partition(" ")[0] for line in lines] == expected
        assert all("host=a.test" in line for line in lines)


async def test_timer_tells_what_the_child_did_and_comes_back(tmp_path):
    """Issued, failed, names: a line each; the same skipped name only once; a child that breaks is said too."""
    outcomes = [
        Outcome("a.test", "issued", names=["x.a.test"], why="there is none", left_out={"y.a.test": "refused"}),
        Outcome("b.test", "failed", reason="connection refused", retry_at=time.time() + 1),
        Outcome("c.test", "kept"),
    ]
    import msgspec

    (tmp_path / "round").write_bytes(msgspec.json.encode(Round(outcomes, {"z.a.test": "has no address in DNS"})))
    (tmp_path / "child.py").write_text(
        "import pathlib, sys\n"
        f"count = pathlib.Path({str(tmp_path / 'count')!r})\n"
        "n = len(count.read_text()) if count.exists() else 0\n"
        "count.write_text('x' * (n + 1))\n"
        "if n == 2:\n"
        "    sys.exit('Traceback\\nno such thing')\n"
        f"sys.stdout.write(pathlib.Path({str(tmp_path / 'round')!r}).read_text())\n"
    )
    renewal = Renewal(Acme(retry_first_s=1, check_interval_s=60), (sys.executable, "-S", str(tmp_path / "child.py")))
    with logged() as lines:
        task = asyncio.get_running_loop().create_task(renewal.run())
        async with asyncio.timeout(60):
            while not any("no such thing" in line for line in lines):
                await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert "certificate_issued host=a.test names=x.a.test reason=there is none" in lines
    assert "certificate_name_refused host=y.a.test reason=refused" in lines
    assert [line for line in lines if "skipped" in line] == [
        "certificate_name_skipped host=z.a.test reason=has no address in DNS"
    ]
    assert len([line for line in lines if line.startswith("certificate_not_issued host=b.test")]) == 2
    assert lines[-1] == "certificates_not_looked_at reason=no such thing"


async def test_child_ends_with_the_server(tmp_path):
    """It is killed, and nobody waits for it."""
    script = f"import pathlib, time; pathlib.Path({str(tmp_path / 'up')!r}).touch(); time.sleep(600)"
    task = asyncio.get_running_loop().create_task(Renewal(Acme(), (sys.executable, "-S", "-c", script)).run())
    async with asyncio.timeout(60):
        while not (tmp_path / "up").exists():
            await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# the authority


def _error(code: str, detail: str, **more: object) -> messages.Error:
    return messages.Error.from_json({"type": f"urn:ietf:params:acme:error:{code}", "detail": detail, **more})


def test_authority_says_which_names_it_refuses():
    """RFC 8555 s. 6.7.1: by subproblems, or in its text; anything else is about all of them."""
    identifier = {"type": "dns", "value": "b.test"}
    sub = {"type": "urn:ietf:params:acme:error:caa", "detail": "CAA forbids", "identifier": identifier}
    by_parts = _refused(_error("compound", "two", subproblems=[sub]), ["a.test", "b.test"])
    assert isinstance(by_parts, _NamesRefused)
    assert by_parts.names == {"b.test": "CAA forbids"}
    by_text = _refused(_error("rejectedIdentifier", 'Invalid identifier "b.test"'), ["a.test", "b.test"])
    assert isinstance(by_text, _NamesRefused)
    assert list(by_text.names) == ["b.test"]
    assert isinstance(_refused(_error("rateLimited", 'for "b.test"'), ["a.test", "b.test"]), messages.Error)


def test_end_of_a_rate_limit_is_read():
    """Let's Encrypt writes it into its text; without it an hour is waited."""
    text = "too many certificates (5) already issued, retry after 2030-01-31 12:00:00 UTC: see https://letsencrypt.org"
    assert _retry_after(_error("rateLimited", text)) == 1_896_091_200
    assert _retry_after(_error("rateLimited", "slow down")) > time.time() + 3500
    assert _retry_after(_error("serverInternal", text)) == 0.0


@pytest.fixture
def busy_authority() -> Iterator[str]:
    """Says 429 to everything; RFC 8555 s. 6.6."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = b'{"type": "urn:ietf:params:acme:error:rateLimited", "detail": "too many requests"}'
            self.send_response(429)
            self.send_header("Content-Type", "application/problem+json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Retry-After", "7200")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/dir"
    server.shutdown()
    thread.join()
    server.server_close()
    assert asked == ["/dir"] * len(asked)


def test_rate_limit_stops_the_whole_round(tmp_path, busy_authority):
    """The one that met it fails, the others are not even asked for, and all wait for as long as it said."""
    from pymx.certs.plan import Plan

    settings = Acme(enabled=True, directory_url=busy_authority)
    with pytest.raises(IssueFailed) as failed:
        Authority(settings, tmp_path)
    assert failed.value.not_before > time.time() + 7000
    plan = Plan([Wanted("a.test", ("x.a.test",)), Wanted("b.test", ("x.b.test",))])
    found = look(settings, tmp_path, plan, How())
    assert [o.result for o in found.outcomes] == ["failed", "waiting"]
    assert found.retry_at > time.time() + 7000
    assert found.outcomes[0].reason == "too many requests"
    known = state.load(tmp_path, "a.test")
    assert known is not None
    assert known.not_before > time.time() + 7000
    again = look(settings, tmp_path, Plan(plan.wanted[:1]), How(patient=True))
    assert [o.result for o in again.outcomes] == ["waiting"]


def test_expired_certificate_of_others_is_replaced(tmp_path, certificate_authority, busy_authority):
    """While it is good it is somebody else's."""
    from pymx.certs.plan import Plan

    settings = Acme(enabled=True, directory_url=busy_authority)
    results = []
    for label, days in (("foreign-good", 1), ("foreign-expired", -1)):
        made = certificate_authority.issue(label, ("x.a.test",), days=days)
        files.write(files.place(tmp_path, "a.test"), made.private_key.read_bytes() + made.certificate.read_bytes())
        results += look(settings, tmp_path, Plan([Wanted("a.test", ("x.a.test",))]), How()).outcomes
    assert [(o.result, o.why) for o in results] == [("foreign", ""), ("failed", "it expires")]


def test_one_round_at_a_time(tmp_path):
    """The server's child and the person at the terminal don't order the same certificate twice."""
    from pymx.certs.plan import Plan

    with _alone(tmp_path), pytest.raises(Busy):
        look(Acme(), tmp_path, Plan(), How())
    assert look(Acme(), tmp_path, Plan(), How()) == Round()


# settings


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[acme]\nenabled = true", "[acme] enabled = True: needs [web] listen"),
        ('[acme]\ndirectory_url = "http://ca.test"', '[acme] directory_url = "http://ca.test": expected https://…'),
        ('[acme]\ncontact = "me"', '[acme] contact = "me": expected an address'),
        ('[acme]\nnames = ["mail"]', '[acme] names = "mail": expected a full host name'),
        ('[acme]\nprefixes = ["*"]', '[acme] prefixes = "*": expected a name'),
        ('[acme]\nca_file = "/no/such"', '[acme] ca_file = "/no/such": can\'t be read'),
    ],
)
def test_settings_are_checked(text, problem):
    found = check(parse(f'hostname = "{HOST}"\n{text}'))
    assert any(p.startswith(problem) for p in found), found


def test_listeners_need_one_of_the_ways_to_a_certificate(tmp_path):
    """[tls], [acme], or a file that pymxctl cert install put there."""

    def complains(more: str = "") -> bool:
        return any(
            "needs a certificate" in p for p in check(parse(f'hostname = "{HOST}"\ndata_dir = "{tmp_path}"{more}'))
        )

    assert complains()
    assert not complains('\n[acme]\nenabled = true\n[web]\nlisten = ["0.0.0.0:80"]')
    (tmp_path / "tls").mkdir()
    (tmp_path / "tls" / f"{HOST}.pem").touch()
    assert not complains()
