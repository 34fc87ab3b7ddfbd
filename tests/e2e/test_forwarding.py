"""Two servers that forward to each other, a name server, and the mail exchanger of the original senders.

a.test forwards by alias to b.test, which checks SPF, DKIM, DMARC and ARC. c.test is where messages come from and where
bounces have to end; its host is 127.0.0.3, the servers are at 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import email
import email.policy
import itertools
import re
import smtplib
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path

import dkim
import pytest
from support.appliance import Appliance
from support.dns_server import DnsServer
from support.sinks import Received, ScriptedRemote
from support.wait import wait_for

from pymx.accounts import passwords
from pymx.accounts.registry import Registry
from pymx.config.model import Database
from pymx.mailauth.dkim import keys
from pymx.mailauth.dkim.sign import Signer
from pymx.spool import Content

WAIT_S = 60  # CI machines are slow
REFUSED = "550 5.7.1 refused by policy"
SENDER = "sender@c.test"


@dataclass
class Pair:
    a: Appliance
    b: Appliance
    dns: DnsServer
    c: ScriptedRemote
    signer: Signer

    def message(self, to: str, subject: str, *, header_from: str = SENDER, sign: bool = True) -> bytes:
        text = (
            f"From: Sender <{header_from}>\r\nTo: <{to}>\r\nSubject: {subject}\r\nMIME-Version: 1.0\r\n"
            f"Date: Tue, 24 Nov 2026 10:00:00 +0000\r\nMessage-ID: <{subject}@c.test>\r\n\r\nthe text of {subject}\r\n"
        ).encode()
        content = Content.from_bytes(text)
        return (self.signer.sign(header_from.rpartition("@")[2], content) if sign else b"") + text

    def send(
        self, to: str, subject: str, *, mail_from: str = SENDER, host: str = "127.0.0.3", at: Appliance | None = None,
        header_from: str = SENDER, sign: bool = True, fields: bytes = b"", also: str = "",
    ) -> bytes:  # fmt: skip
        """Give a message to port 25, as the host of c.test; what was sent. Raises what smtplib raises."""
        message = fields + self.message(to, subject, header_from=header_from, sign=sign)
        server = at or self.a
        client = smtplib.SMTP(
            "127.0.0.1", server.ports["smtp"], local_hostname="mail.c.test", timeout=WAIT_S, source_address=(host, 0)
        )
        with client:
            client.sendmail(mail_from, [to, also] if also else [to], message)
        return message

    def refused(self, to: str, subject: str, **options: object) -> tuple[int, str]:
        """The reply that refuses it."""
        try:
            self.send(to, subject, **options)  # type: ignore[arg-type]  # passed on
        except smtplib.SMTPRecipientsRefused as e:
            ((code, text),) = e.recipients.values()
            return code, text.decode()
        except smtplib.SMTPResponseException as e:
            return e.smtp_code, e.smtp_error.decode() if isinstance(e.smtp_error, bytes) else e.smtp_error
        raise AssertionError(f"{to} was not refused")

    def at_c(self, subject: str) -> Received:
        """That message, or the notification about it, at the server of c.test and far.test."""

        def found() -> Received | None:
            return next((m for m in self.c.messages if f"Subject: {subject}".encode() in m.content), None)

        try:
            return wait_for(found, timeout_s=WAIT_S, what=f"a bounce of {subject}")  # type: ignore[return-value]  # no None
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.a.log()[-3000:]}\n{self.b.log()[-3000:]}") from None


def stored(server: Appliance, user: str, subject: str) -> EmailMessage:
    """The message in an INBOX."""
    return email.message_from_bytes(stored_octets(server, user, subject), policy=email.policy.default)  # type: ignore[return-value]


def stored_octets(server: Appliance, user: str, subject: str) -> bytes:
    server.wait_for_subject(user, subject, timeout_s=WAIT_S)
    with server.imap(user) as client:
        client.select("INBOX", readonly=True)
        _, (found,) = client.search(None, "SUBJECT", f'"{subject}"')
        _, fetched = client.fetch(found.split()[-1].decode(), "(BODY.PEEK[])")
        return next(part[1] for part in fetched if isinstance(part, tuple))


def publish(dns: DnsServer, name: str, record: str) -> None:
    dns.add(name, "TXT", " ".join(f'"{record[i : i + 255]}"' for i in range(0, len(record), 255)))


def dns_of() -> DnsServer:
    dns = DnsServer(negative_ttl=1)
    for domain in ("a.test", "b.test"):
        dns.zone(domain, '@ MX 10 mx\n@ TXT "v=spf1 ip4:127.0.0.1 -all"\nmx A 127.0.0.1\nmx TXT "v=spf1 a -all"')
    dns.zone(
        "c.test",
        '@ MX 10 mail\n@ TXT "v=spf1 ip4:127.0.0.3 -all"\nmail A 127.0.0.3\nmail TXT "v=spf1 a -all"\n'
        '_dmarc TXT "v=DMARC1; p=reject"',
    )
    dns.zone(
        "lax.test", '@ MX 10 mail\n@ TXT "v=spf1 ip4:127.0.0.9 -all"\nmail A 127.0.0.3\n_dmarc TXT "v=DMARC1; p=none"'
    )
    dns.zone("plain.test", "@ MX 10 mail\nmail A 127.0.0.3")
    dns.add("1.0.0.127.in-addr.arpa", "PTR", "mx.a.test", "mx.b.test")
    dns.add("3.0.0.127.in-addr.arpa", "PTR", "mail.c.test")
    return dns


def server_at(hostname: str, dns: DnsServer, c: ScriptedRemote, *, workers: int, checks: str = "") -> Appliance:
    """c.test and far.test are at the sink; everything else by MX, at the port of the other server (set later)."""
    routes = "".join(
        f'[[outbound.route]]\ndomain = "{domain}"\nhost = "127.0.0.1"\nport = {c.port}\ntls = "none"\n'
        for domain in ("c.test", "plain.test", "far.test")
    )
    return Appliance(
        hostname=hostname,
        workers=workers,
        extra={
            "dns": f'nameservers = ["{dns.spec}"]\n',
            "checks": f"timeout_s = 10\n{checks}",
            "outbound": "allow_private = true\nretry_first = 1\nretry_max_s = 2\n",
            "forwarding": "in_session_s = 20\n",  # CI machines are slow
            "dkim": "check_interval_s = 1\nsettle_s = 0\noverlap_s = 1\n",
            "log": routes,  # the last section: tables of an array may follow it
        },
    )


def populate(server: Appliance, users: tuple[str, ...], aliases: dict[str, str]) -> None:
    """As pymxctl does, without twenty processes."""
    registry = Registry(Database(url=server.database_url))
    registry.add_domain(server.domain)
    for user in users:
        registry.add_user(server.address(user), passwords.make("secret", 4))
    for source, destinations in aliases.items():
        registry.add_alias(f"{source}@{server.domain}", destinations.split())
    registry.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with contextlib.ExitStack() as stack:
        c = ScriptedRemote(hostname="mail.c.test", replies={})
        c.start()
        stack.callback(c.stop)
        dns = dns_of()
        stack.callback(dns.close)
        a = server_at("mx.a.test", dns, c, workers=2)
        stack.callback(a.remove)
        b = server_at("mx.b.test", dns, c, workers=1, checks='trusted_sealers = ["a.test"]\n')
        stack.callback(b.remove)
        for server, other in ((a, b), (b, a)):
            server.extra["checks"] = server.extra["checks"].replace("timeout_s = 10\n", "")
            server.extra["outbound"] += f"port = {other.ports['smtp']}\n"
            server.write_config()
        populate(a, ("alice",), {
            "forward": "bob@b.test", "dead": "nobody@b.test", "loop": "loop@b.test",
            "further": "further@b.test", "later": "y@far.test", "later2": "z@far.test",
            "both": "alice@a.test gone@b.test",
        })  # fmt: skip
        populate(b, ("alice", "bob"), {"loop": "loop@a.test", "further": "x@far.test"})
        for server in (a, b):
            key = keys.generate(server.directory / "data" / "dkim", server.domain, "k")
            publish(dns, key.record_name, key.record)
        directory = tmp_path_factory.mktemp("c")
        key = keys.generate(directory, "c.test", "k")
        publish(dns, key.record_name, key.record)
        a.start()
        b.start()
        yield Pair(a, b, dns, c, Signer(directory))
        assert (a.stop(), b.stop()) == (0, 0)


@pytest.fixture(autouse=True)
def willing(pair: Pair) -> Iterator[None]:
    """What a test has the far server answer ends with the test: the next one, in whatever order, finds it willing."""
    yield
    pair.c.replies.clear()


def test_what_is_forwarded_passes_spf_dkim_dmarc_and_arc(pair: Pair) -> None:
    """SPF by the rewritten sender, DKIM because nothing is changed, ARC by the forwarder's key."""
    sent = pair.send("forward@a.test", "f-1")
    found = stored(pair.b, "bob", "f-1")
    results = " ".join(found["Authentication-Results"].split())
    assert re.search(r"spf=pass smtp.mailfrom=\"SRS0=[^ ]*=c\.test=sender@a\.test\"", results), results
    assert "dkim=pass" in results
    assert "dmarc=pass header.from=c.test" in results
    assert "arc=pass" in results
    assert found["Return-Path"].startswith("<SRS0=")
    assert "i=1; mx.a.test;" in found["ARC-Authentication-Results"]
    assert "spf=pass smtp.mailfrom=sender@c.test" in found["ARC-Authentication-Results"]
    assert "cv=none; d=a.test;" in found["ARC-Seal"].replace("\r\n", "")
    assert [str(v) for v in found.get_all("Delivered-To")] == ["bob@b.test", "forward@a.test"]
    assert stored_octets(pair.b, "bob", "f-1").endswith(sent)


def test_a_message_that_only_spf_vouched_for_is_taken_on_the_seal(pair: Pair) -> None:
    """Unsigned mail of a p=reject domain fails DMARC after any forwarding: b.test trusts a.test's seal."""
    pair.send("forward@a.test", "f-2", sign=False)
    results = str(stored(pair.b, "bob", "f-2")["Authentication-Results"])
    assert "dmarc=fail" in results
    assert "trusted sealer a.test" in results


def test_a_bounce_of_the_next_server_comes_back_to_the_original_sender(pair: Pair) -> None:
    """b.test accepts, fails to pass it on, and tells the rewritten sender: a.test knows whom that means."""
    pair.c.replies["RCPT x@far.test"] = ["451 4.3.0 later", REFUSED]
    pair.send("further@a.test", "f-3")
    bounce = pair.at_c("f-3")
    assert (bounce.mail_from, bounce.rcpt_to) == ("", (SENDER,))
    assert b"From: Mail Delivery System <MAILER-DAEMON@mx.b.test>" in bounce.content
    assert b"x@far.test" in bounce.content


def test_a_sender_too_long_to_be_rewritten_gets_its_bounce_after_a_restart(pair: Pair) -> None:
    """The token is on disk, and whichever worker gets the bounce knows it."""
    sender = "b" * 30 + "-0123456789.abcdefghijklmnopqrs@c.test"
    pair.c.replies["RCPT x@far.test"] = "451 4.2.1 later"
    pair.send("further@a.test", "f-4", mail_from=sender)
    wait_for(lambda: '"451 4.2.1 later"' in pair.b.log(), timeout_s=WAIT_S, what="the first try of b.test")
    assert pair.a.stop() == 0
    pair.a.start()
    pair.c.replies["RCPT x@far.test"] = REFUSED
    assert pair.at_c("f-4").rcpt_to == (sender,)
    assert re.search(r'mail_from="?SRS0=[^ ]{4}=[A-Z2-7]{2}=~=[A-Z2-7]{16}@a\.test', pair.a.log())


def test_two_aliases_that_lead_to_each_other_end_in_the_session(pair: Pair) -> None:
    """a.test → b.test → a.test, which finds its own Delivered-To: each session waits, and passes the refusal on."""
    code, text = pair.refused("loop@a.test", "f-5")
    assert (code, text[:5]) == (550, "5.4.6")
    assert re.search(r'mail_from="?SRS1=[^ ]*@b\.test', pair.b.log())


def test_two_aliases_that_lead_to_each_other_end_with_a_notice(pair: Pair) -> None:
    """The same when nobody waits, since there are other recipients: the sender is told, over SRS0 and a.test."""
    pair.send("loop@a.test", "f-17", also="alice@a.test")
    bounce = pair.at_c("f-17")
    assert bounce.rcpt_to == (SENDER,)
    assert b"5.4.6" in bounce.content
    assert pair.a.log().count("rcpt_to=loop@b.test") < 10
    assert str(stored(pair.a, "alice", "f-17")["Delivered-To"]) == "alice@a.test"


def test_what_the_next_server_refuses_is_refused_in_the_session(pair: Pair) -> None:
    """No notification; and an unknown address is remembered, so that the next message is refused at RCPT."""
    code, text = pair.refused("dead@a.test", "f-6")
    assert (code, text[:5]) == (550, "5.1.1")
    wait_for(lambda: "event=forward_refused_in_session" in pair.a.log(), timeout_s=WAIT_S, what="the runner's line")
    assert "nobody" not in text
    code, text = pair.refused("dead@a.test", "f-7")
    assert (code, text[:5]) == (550, "5.1.1")
    said = 'reason="nobody@b.test was refused before"'
    wait_for(lambda: said in pair.a.log(), timeout_s=WAIT_S, what="the refusal at RCPT")
    assert not [m for m in pair.c.messages if b"f-6" in m.content or b"f-7" in m.content]


def test_a_later_refusal_is_told_to_a_proven_sender(pair: Pair) -> None:
    """Invariant: notifications go only to senders whose domain SPF or DMARC had proven."""
    pair.c.replies["RCPT y@far.test"] = ["451 4.3.0 later", REFUSED]
    pair.send("later@a.test", "f-18")
    bounce = pair.at_c("f-18")
    assert (bounce.mail_from, bounce.rcpt_to) == ("", (SENDER,))
    assert f"To: {SENDER}".encode() in bounce.content


def test_an_unproven_sender_is_not_told_but_the_postmaster_is(pair: Pair) -> None:
    """No backscatter: plain.test has no SPF record."""
    pair.c.replies["RCPT z@far.test"] = ["451 4.3.0 later", REFUSED]
    pair.send("later2@a.test", "f-8", mail_from="who@plain.test", header_from="who@plain.test", sign=False)
    note = stored(pair.a, "alice", "Your message could not be delivered")
    assert "z@far.test" in note.as_string()
    assert "the text of f-8" in note.as_string()  # nobody else has it
    assert not [m for m in pair.c.messages if "who@plain.test" in m.rcpt_to]


def test_a_destination_that_refuses_is_nobodys_worry_while_a_mailbox_here_has_the_message(pair: Pair) -> None:
    pair.send("both@a.test", "f-9")
    assert str(stored(pair.a, "alice", "f-9")["Delivered-To"])
    wait_for(lambda: "forward_failed" in pair.a.log(), timeout_s=WAIT_S, what="the refusal of b.test")
    assert not [m for m in pair.c.messages if b"f-9" in m.content]


def test_what_fails_dmarc_is_not_forwarded(pair: Pair) -> None:
    """Also when the domain only watches (p=none): kept by the mailbox here, else refused in the session."""
    lax = {"mail_from": "x@lax.test", "header_from": "x@lax.test", "sign": False}
    code, text = pair.refused("forward@a.test", "f-10", **lax)
    assert (code, text[:5]) == (550, "5.7.1")
    pair.send("both@a.test", "f-11", **lax)  # type: ignore[arg-type]  # of mixed types
    assert "dmarc=fail" in str(stored(pair.a, "alice", "f-11")["Authentication-Results"])
    wait_for(lambda: "forward_withheld" in pair.a.log(), timeout_s=WAIT_S, what="its line")


def srs_address(pair: Pair) -> str:
    """A rewritten sender as b.test has seen it."""
    if "f-12" not in pair.b.subjects("bob"):
        pair.send("forward@a.test", "f-12")
    return str(stored(pair.b, "bob", "f-12")["Return-Path"]).strip("<>")


def test_people_cannot_write_to_a_rewritten_sender(pair: Pair) -> None:
    """Taken from the null sender or a program only; a wrong tag from nobody."""
    address = srs_address(pair)
    code, text = pair.refused(address, "f-13")
    assert (code, text[:5]) == (550, "5.7.1")
    pair.send(address, "f-14", fields=b"Auto-Submitted: auto-replied\r\n")
    answer = pair.at_c("f-14")
    assert answer.rcpt_to == (SENDER,)
    assert answer.mail_from.startswith("SRS0=")
    forged = address.replace("=c.test=sender", "=c.test=other")
    assert pair.refused(forged, "f-15", mail_from="")[0] == 550


def test_the_seal_is_right_by_dkimpy(pair: Pair) -> None:
    """Over the message as a mailbox has it; a second implementation."""
    srs_address(pair)
    raw = stored_octets(pair.b, "bob", "f-12")
    known = {
        f"{key.record_name}.".encode(): key.record.encode()
        for key in keys.load_all(pair.a.directory / "data" / "dkim", "a.test")
    }
    # what b.test put in front of it is no part of what was sealed
    verdict, sets, reason = dkim.arc_verify(raw, dnsfunc=lambda name, timeout=5: known.get(name))
    assert verdict == dkim.CV_Pass, reason
    assert len(sets) == 1


def test_a_key_is_replaced_while_the_server_runs(pair: Pair) -> None:
    """`dkim rotate`, the record into DNS, and nothing else: the next seal is by the new key, the old one is retired."""
    (record,) = pair.b.ctl_json("dkim", "rotate", "b.test")["records"]
    publish(pair.dns, record["name"], record["txt"])

    def used() -> bool:
        return any(r["active"] for r in shown()["records"] if r["selector"] == record["selector"])

    def shown() -> dict[str, list[dict[str, object]]]:
        found: dict[str, list[dict[str, object]]] = pair.b.ctl_json("dkim", "show", "b.test")
        return found

    wait_for(used, timeout_s=WAIT_S, what="the new key")
    seal = rb"ARC-Seal: i=2;[^:]*cv=pass;\s+d=b\.test;\s+s=" + record["selector"].encode()
    numbers = itertools.count()

    def sealed() -> bool:
        """By the new key? Sessions look for changed files once a second."""
        subject = f"f-16-{next(numbers)}"
        pair.send("further@a.test", subject)
        return re.search(seal, pair.at_c(subject).content) is not None

    wait_for(sealed, timeout_s=WAIT_S, what="a seal by the new key")
    wait_for(lambda: [r["selector"] for r in shown()["retired"]] == ["k"], timeout_s=WAIT_S, what="the old key's end")
    said = "event=dkim_key_retired key=k._domainkey.b.test"
    wait_for(lambda: said in pair.b.log(), timeout_s=WAIT_S, what="its line")
    assert not (pair.b.directory / "data" / "dkim" / "b.test" / "k.pem").exists()


def test_the_secrets_are_nobody_elses(pair: Pair) -> None:
    pair.send("further@a.test", "f-secret")  # makes them
    pair.at_c("f-secret")
    data = Path(pair.a.directory) / "data"
    for name in ("srs.secret", "forwarding.sqlite"):
        assert (data / name).stat().st_mode & 0o777 == 0o600
    secret = (data / "srs.secret").read_text().strip()
    assert secret not in pair.a.log()
