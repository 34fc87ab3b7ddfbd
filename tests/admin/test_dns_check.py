"""`pymxctl dns check` against a real name server: all green, then each record broken once."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from support.dns_server import DnsServer, Failure
from support.tls import CertificateAuthority

from pymx.admin import ctl, identity
from pymx.config.load import load
from pymx.config.model import Tls
from pymx.mailauth.dkim import keys

HOST, DOMAIN = "mx.example.test", "example.test"
STS = f"_mta-sts.{DOMAIN}"
KEY = f"s1._domainkey.{DOMAIN}"


class Rig:
    """A configured server whose zone is as `dns records` has it."""

    def __init__(self, directory: Path, dns: DnsServer) -> None:
        self.dns = dns
        self.config = directory / "pymx.toml"
        self.data = directory / "data"
        (directory / "tls").mkdir()
        # known by name, so that there is a CAA record to publish
        authority = CertificateAuthority(directory / "tls", organization="Let's Encrypt")
        tls = authority.issue("server", names=(HOST,))
        self.config.write_text(
            f'hostname = "{HOST}"\ndata_dir = "{self.data}"\nuser = "none"\n'
            f'[database]\nurl = "sqlite:///{directory}/pymx.sqlite"\n[mail]\nroot = "{directory}/mail"\n'
            f'[tls]\ncertificate = "{tls.certificate}"\nprivate_key = "{tls.private_key}"\n'
            f'[smtp]\nlisten = ["127.0.0.2:25", "[::1]:25"]\n[web]\nlisten_tls = ["127.0.0.2:443"]\n'
            f'[outbound]\nallow_private = true\nsource_addresses = ["127.0.0.2", "::1"]\n'
            f'[dns]\nnameservers = ["{dns.spec}"]\ntimeout_s = 2\n'
        )
        keys.generate(self.data / "dkim", DOMAIN, "s1")
        keys.generate(self.data / "dkim", DOMAIN, "s2", algorithm="ed25519")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    server = DnsServer()
    yield Rig(tmp_path_factory.mktemp("dns"), server)
    server.close()


@pytest.fixture
def rig(made: Rig, capsys: pytest.CaptureFixture[str]) -> Rig:
    """The zone put back as it should be."""
    dns = made.dns
    asked = {name for name, _ in dns.queries} | {HOST, DOMAIN}
    for name in asked | {f"{selector}._domainkey.{DOMAIN}" for selector in ("s1", "s2")}:
        dns.remove(name)
        dns.fail(name, None)
    publish(made, capsys)
    return made


def publish(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    for record in json.loads(run(rig, capsys, "records", DOMAIN, "--json")[1])["records"]:
        if record["kind"] != "tlsa":
            rdata = record["zone"].partition(f" IN {record['type']} ")[2]
            rig.dns.add(record["name"], record["type"], rdata.strip("( )"))


def run(rig: Rig, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    capsys.readouterr()
    status = ctl.main(["--config", str(rig.config), "dns", *words])
    return status, capsys.readouterr().out


def replace(name: str, rdtype: str, *rdata: str) -> Callable[[Rig], None]:
    def change(rig: Rig) -> None:
        rig.dns.remove(name, rdtype)
        if rdata:
            rig.dns.add(name, rdtype, *rdata)

    return change


def cut_key(rig: Rig) -> None:
    """As a provider's panel does that takes one string only."""
    replace(KEY, "TXT", f'"{record_of(rig)[:255]}"')(rig)


def other_key(rig: Rig) -> None:
    other = keys.generate(rig.data / "other", DOMAIN, f"x{len(rig.dns.queries)}", algorithm="ed25519")
    replace(f"s2._domainkey.{DOMAIN}", "TXT", f'"{other.record}"')(rig)


def testing_key(rig: Rig) -> None:
    record = record_of(rig).replace("k=rsa", "k=rsa; t=y")
    replace(KEY, "TXT", " ".join(f'"{record[i : i + 255]}"' for i in range(0, len(record), 255)))(rig)


def record_of(rig: Rig) -> str:
    return next(k.record for k in keys.load_all(rig.data / "dkim", DOMAIN) if k.selector == "s1")


def alias(rig: Rig) -> None:
    rig.dns.remove(HOST)
    rig.dns.add(HOST, "CNAME", "other.example.test")
    rig.dns.add("other.example.test", "A", "127.0.0.2")
    rig.dns.add("other.example.test", "TXT", '"v=spf1 a -all"')


def elsewhere(label: str) -> Callable[[Rig], None]:
    """To another machine, by an address of its own."""

    def change(rig: Rig) -> None:
        rig.dns.remove(f"{label}.{DOMAIN}")
        rig.dns.add(f"{label}.{DOMAIN}", "A", "127.0.0.9")

    return change


def above(rig: Rig) -> None:
    """RFC 8659 s. 3: without records of its own the host has those of the domain."""
    rig.dns.remove(HOST, "CAA")
    rig.dns.add(DOMAIN, "CAA", '0 issue "pki.goog"', '0 issue "sectigo.com; accounturi=x"', '0 iodef "mailto:a@b.test"')


def lookups(count: int) -> Callable[[Rig], None]:
    """Providers that one includes, and each counts."""

    def change(rig: Rig) -> None:
        includes = " ".join(f"include:spf{i}.{DOMAIN}" for i in range(count))
        replace(DOMAIN, "TXT", f'"v=spf1 mx {includes} -all"')(rig)
        for i in range(count):
            replace(f"spf{i}.{DOMAIN}", "TXT", '"v=spf1 ip4:192.0.2.1 -all"')(rig)

    return change


def test_published_as_told_everything_is_good(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    status, out = run(rig, capsys, "check", DOMAIN)
    assert (status, out.splitlines()[-1][:7]) == (0, "DNS: al"), out
    assert "FAIL" not in out
    assert "warn" not in out


def test_a_second_look_sees_what_was_mended(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    """The nightly look is taken twice in one process; checkdmarc would keep the first one's answers."""
    replace(f"_dmarc.{DOMAIN}", "TXT", '"v=DMARC1; p=all"')(rig)
    assert "Tag p must have" in run(rig, capsys, "check", DOMAIN)[1]
    replace(f"_dmarc.{DOMAIN}", "TXT")(rig)
    publish(rig, capsys)
    assert "Tag p must have" not in run(rig, capsys, "check", DOMAIN)[1]


BROKEN = [
    # what is wrong, exit status, what is said of it, what to do
    (replace(DOMAIN, "MX"), 1, "example.test has no MX record", "example.test. IN MX 10 mx.example.test."),
    (replace(DOMAIN, "MX", "0 ."), 1, "by a null MX that it takes no mail", "IN MX 10 mx"),
    (replace(DOMAIN, "MX", "10 mail.old.test"), 1, "goes to mail.old.test, not to mx.example.test", "IN MX 10 mx"),
    (replace(DOMAIN, "MX", "5 old.test", "10 mx.example.test"), 0, "goes to old.test first", "lowest number"),
    (replace(HOST, "A", "127.0.0.9"), 1, "leads to 127.0.0.9, ::1, not to 127.0.0.2", "IN A 127.0.0.2"),
    (replace(HOST, "AAAA"), 0, "has no AAAA record with ::1", "IN AAAA ::1"),
    (replace(HOST, "A", "127.0.0.2", "127.0.0.9"), 0, "leads to 127.0.0.9 too", "take that A record out"),
    (alias, 1, "is an alias (CNAME) of other.example.test", "replace the CNAME"),
    (replace("2.0.0.127.in-addr.arpa", "PTR"), 1, "127.0.0.2 has no name in reverse DNS", "ask your hoster"),
    (replace("2.0.0.127.in-addr.arpa", "PTR", "vps1.hoster.test"), 1, "is named vps1.hoster.test, not mx", "ask your"),
    (replace(f"1.{'0.' * 31}ip6.arpa", "PTR"), 0, "::1 has no name in reverse DNS", "ask your"),
    (replace(DOMAIN, "TXT"), 1, "example.test has no SPF record", '"v=spf1 mx -all"'),
    (replace(DOMAIN, "TXT", '"v=spf1 ip4:192.0.2.1 -all"'), 1, "does not let 127.0.0.2 send", '"v=spf1 mx -all"'),
    (replace(DOMAIN, "TXT", '"v=spf1 mx -all"', '"v=spf1 a -all"'), 1, "has 2 SPF records", "leave only one"),
    (replace(DOMAIN, "TXT", '"v=spf1 mx foo:bar -all"'), 1, "of example.test can't be used", "v=spf1 mx"),
    (replace(DOMAIN, "TXT", '"v=spf1 mx +all"'), 1, "lets everybody send", "v=spf1 mx -all"),
    (replace(DOMAIN, "TXT", '"v=spf1 mx"'), 0, "does not end in -all", "v=spf1 mx -all"),
    (replace(HOST, "TXT"), 0, "mx.example.test has no SPF record: bounces", '"v=spf1 a -all"'),
    (replace(KEY, "TXT"), 1, "the key s1, which signs for example.test, has no record", "s1._domainkey"),
    (cut_key, 1, "the record of key s1 of example.test is cut off after 237 of 392", "pieces of at most 255"),
    (other_key, 1, "the record of key s2 of example.test holds another key than the one that signs", "s2._domainkey"),
    (replace(KEY, "TXT", '"v=DKIM1; p="'), 1, "the key is revoked", "s1._domainkey.example.test. IN"),
    (testing_key, 0, "says that it is a test (t=y)", "take t=y out"),
    (replace(f"_dmarc.{DOMAIN}", "TXT"), 1, "example.test has no DMARC record", '"v=DMARC1; p=quarantine'),
    (replace(f"_dmarc.{DOMAIN}", "TXT", '"v=DMARC1; p=all"'), 1, "has no valid policy p=", "p=quarantine"),
    (replace(f"_dmarc.{DOMAIN}", "TXT", '"v=DMARC1; p=none"'), 0, "DMARC p=none", "pymxctl reports"),
    (replace(f"_smtp._tls.{DOMAIN}", "TXT"), 0, "nobody reports when TLS", '"v=TLSRPTv1; rua='),
    (replace(f"_25._tcp.{HOST}", "TLSA", "3 1 1 " + "00" * 32), 0, "is of another key", "TLSA 3 1"),
    (replace(f"_imaps._tcp.{DOMAIN}", "SRV", "0 1 993 old.test"), 0, "mail clients elsewhere", "SRV 0 1 993 mx"),
    (replace(f"_imap._tcp.{DOMAIN}", "SRV"), 0, "nothing at _imap._tcp.example.test", "IN SRV 0 0 0 ."),
    (replace(STS, "TXT"), 0, "example.test has no MTA-STS record", '"v=STSv1; id='),
    (replace(STS, "TXT", '"v=STSv1; id=1"', '"v=STSv1; id=2"'), 1, "several MTA-STS records", "only one"),
    (replace(STS, "TXT", '"v=STSv1; id=20200101"'), 0, "of an earlier policy (id 20200101)", "v=STSv1"),
    (replace(f"mta-sts.{DOMAIN}", "CNAME"), 0, "mta-sts.example.test does not exist", "IN CNAME mx.example.test."),
    (replace(f"autoconfig.{DOMAIN}", "CNAME"), 0, "autoconfig.example.test does not exist", "IN CNAME mx"),
    (elsewhere("mta-sts"), 0, "mta-sts.example.test leads to 127.0.0.9, not to this server", "IN CNAME mx"),
    (elsewhere("autodiscover"), 0, "autodiscover.example.test leads to 127.0.0.9, not to this", "IN CNAME mx"),
    (replace(HOST, "CAA", '0 issue "pki.goog"'), 1, "CAA records of mx.example.test let only pki.goog", "letsencrypt"),
    (replace(HOST, "CAA", '0 issue ";"'), 1, "let only nobody issue certificates; ours is from lets", "IN CAA 0"),
    (above, 1, "the CAA records of example.test let only pki.goog, sectigo.com", 'IN CAA 0 issue "letsencrypt.org"'),
    (replace(HOST, "CAA"), 0, "any authority may issue certificates for mx.example.test", "IN CAA 0 issue"),
    (lookups(8), 0, "the SPF record of example.test takes 9 of the 10 DNS lookups", "take an include: out"),
    (lambda rig: rig.dns.fail(f"_dmarc.{DOMAIN}", Failure.SERVFAIL), 0, "TXT can't be looked up", "later"),
]  # fmt: skip


@pytest.mark.parametrize(("broken", "status", "sentence", "remedy"), BROKEN, ids=[row[2][:40] for row in BROKEN])
def test_what_is_said_of_a_wrong_record(
    rig: Rig, capsys: pytest.CaptureFixture[str], broken: Callable[[Rig], None], status: int, sentence: str, remedy: str
) -> None:
    broken(rig)
    assert run(rig, capsys, "check", DOMAIN)[0] == status
    findings = json.loads(run(rig, capsys, "check", DOMAIN, "--json")[1])["findings"]
    fitting = [f for f in findings if sentence in f["sentence"]]
    assert fitting, "\n".join(f["sentence"] for f in findings if f["severity"] != "ok")
    assert remedy in fitting[0]["remedy"]


def test_a_wrong_tlsa_record_under_dnssec_keeps_mail_away(
    dns_server: DnsServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """RFC 7672 s. 2.2: a sender that finds TLSA records insists on one that fits."""
    rig = Rig(tmp_path, dns_server)
    publish(rig, capsys)
    rig.dns.add(f"_25._tcp.{HOST}", "TLSA", "3 1 1 " + "00" * 32)
    rig.dns.secure(DOMAIN)
    status, out = run(rig, capsys, "check", DOMAIN)
    assert status == 1
    assert "senders that know DANE don't deliver to us" in out


def test_a_domain_without_a_key_is_named(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    rig.dns.add("other.test", "MX", "10 mx.example.test")
    status, out = run(rig, capsys, "check", "other.test")
    assert status == 1
    assert "pymxctl dkim generate other.test" in out


def test_records_of_a_certificate_that_is_not_there_yet_are_announced(
    rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They follow from its key and from who issued it (RFC 7672, RFC 8659)."""
    for form in ((), ("--zone",)):
        said = run(rig, capsys, "records", DOMAIN, *form)[1]
        assert "IN TLSA 3 1 1" in said or "TLSA    (" in said
        assert "letsencrypt.org" in said
        assert "There is no certificate yet" not in said
    text = rig.config.read_text()
    without = tmp_path / "pymx.toml"
    without.write_text(text.partition("[tls]")[0] + "[smtp]" + text.partition("[smtp]")[2])
    for form, start in (((), ""), (("--zone",), "; ")):
        assert ctl.main(["--config", str(without), "dns", "records", DOMAIN, *form]) == 0
        lines = capsys.readouterr().out.splitlines()
        (said,) = [line for line in lines if "TLSA" in line or "CAA" in line]
        assert said.startswith(f"{start}There is no certificate yet, so there are no TLSA and CAA records here.")
        assert said.endswith("pymxctl dns records")


def unreadable(rig: Rig, directory: Path, certificate: Path) -> Path:
    """The configuration with that certificate instead."""
    text = rig.config.read_text()
    before, _, rest = text.partition("certificate = ")
    changed = directory / "pymx.toml"
    changed.write_text(f'{before}certificate = "{certificate}"\n{rest.partition(chr(10))[2]}')
    return changed


def test_certificate_that_cannot_be_read_is_named_with_the_reason(
    rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is there: that there is none yet would send the reader the wrong way."""
    damaged = tmp_path / "damaged.pem"
    damaged.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    for path, reason in ((damaged, str(damaged)), (tmp_path / "gone.pem", "No such file"), (tmp_path, "directory")):
        config = str(unreadable(rig, tmp_path, path))
        for form, start in (((), ""), (("--zone",), "; ")):
            assert ctl.main(["--config", config, "dns", "records", DOMAIN, *form]) == 0
            (said,) = [line for line in capsys.readouterr().out.splitlines() if "TLSA" in line]
            assert said.startswith(f"{start}The certificate can't be read (")
            assert str(path) in said
            assert reason in said
        assert ctl.main(["--config", config, "dns", "records", DOMAIN, "--json"]) == 0
        assert str(path) in json.loads(capsys.readouterr().out)["certificate_trouble"]
        ctl.main(["--config", config, "dns", "check", DOMAIN])
        said = capsys.readouterr().out
        assert "the TLSA and CAA records were not compared" in said
        assert path.name in said


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_certificate_of_somebody_else_is_named_too(rig: Rig, kind: str) -> None:
    """As certbot's files are, when pymxctl has become the server's user; or a directory of certificates."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "tls").mkdir()
        path = directory / "tls" / f"{HOST}.pem"
        path.write_bytes(Path(load(rig.config).tls.certificate).read_bytes())
        config = msgspec.structs.replace(load(rig.config), data_dir=name, tls=Tls())
        hidden = path if kind == "file" else path.parent
        hidden.chmod(0o600)
        try:
            os.seteuid(65534)
            trouble = identity.server(config).certificate_trouble
        finally:
            os.seteuid(0)
        assert trouble == f"can't read {hidden}: Permission denied"
        assert identity.server(config).certificate_trouble == ""
