"""Cross checks: a sound configuration has no errors, and each error names key, value and expectation."""

from __future__ import annotations

from pathlib import Path

import pytest

from pymx.config.check import check
from pymx.config.load import parse

SOUND = """
hostname = "mx.example.com"
[tls]
certificate = "{tmp}/cert.pem"
private_key = "{tmp}/key.pem"
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name in ("cert.pem", "key.pem", "key"):
        (tmp_path / name).write_text("x")
    (tmp_path / "empty").touch()
    return tmp_path


def errors(files: Path, text: str, *, base: str = SOUND) -> list[str]:
    return check(parse((base + text).replace("{tmp}", str(files))))


def test_the_defaults_are_sound_with_a_name_and_a_certificate(files: Path):
    assert errors(files, "") == []


def test_a_rich_configuration_is_sound(files: Path):
    text = """
[database]
url = "mysql://u:p@localhost/mailserver"
[mail]
separator = "/"
prefix = "INBOX/"
[accounts]
postmaster = "admin@example.com"
[lmtp]
listen = ["unix:/run/pymx/lmtp", "127.0.0.1:24"]
[dns]
nameservers = ["127.0.0.1", "127.0.0.1:5353", "::1", "[::1]:53"]
[limits]
trusted = ["192.0.2.0/24", "2001:db8::1"]
[checks]
spf = false
dmarc = false
dnsbl = ["zen.spamhaus.org=127.0.0.[2..3]*3", "zen.spamhaus.org=127.0.0.[4..11]*4", "bl.spamcop.net=2"]
trusted_sealers = ["lists.example.net"]
timeout_s = 4
[rspamd]
url = "http://[::1]:11333/"
timeout_s = 4
[outbound]
route = [
  {domain = "*", host = "smtp.example.net", port = 465, tls = "implicit", username = "u", password_file = "{tmp}/key"},
  {domain = "x.test", host = "127.0.0.1", tls = "none"},
]
source_addresses = ["192.0.2.1"]
"""
    assert errors(files, text) == []


@pytest.mark.parametrize(
    ("text", "key", "value", "says"),
    [
        ("hostname = ''", "hostname", '""', "PTR"),
        ("hostname = 'localhost'", "hostname", "localhost", "full name"),
        ("hostname = '192.0.2.1'", "hostname", "192.0.2.1", "full name"),
        ("data_dir = 'var'", "data_dir", "var", "absolute"),
        ("user = ''", "user", "", "none"),
        ("[database]\nurl = 'sqlite:///pymx.sqlite'", "[database] url", "sqlite:///pymx.sqlite", "absolute path"),
        ("[database]\nurl = 'postgresql://x/y'", "[database] url", "postgresql", "mysql://USER"),
        ("[database]\nurl = 'mysql://localhost'", "[database] url", "mysql", "names no database"),
        ("[database]\nurl_file = '{tmp}/missing'", "[database] url_file", "missing", "No such file"),
        ("[mail]\nroot = 'vmail'", "[mail] root", "vmail", "absolute"),
        ("[mail]\nseparator = '|'", "[mail] separator", "|", '"." or "/"'),
        ("[mail]\nprefix = 'INBOX'", "[mail] prefix", "INBOX", '"INBOX."'),
        ("[mail]\nseparator = '/'\nprefix = 'INBOX.'", "[mail] prefix", "INBOX.", '"INBOX./"'),
        ("[mail]\nsubaddress_delimiter = '++'", "[mail] subaddress_delimiter", "++", "one character"),
        ("[mail]\nfolders = {Spam = '\\Spam'}", "[mail] folders.Spam", "\\Spam", "RFC 6154"),
        ("[mail]\nfolders = {A = '\\Junk', B = '\\Junk'}", "[mail] folders", "\\Junk", "more than one"),
        ("[mail]\nfolders = {Inbox = ''}", "[mail] folders", "Inbox", "always there"),
        ("[accounts]\npostmaster = 'root'", "[accounts] postmaster", "root", "expected an address"),
        ("[smtp]\nlisten = ['25']", "[smtp] listen", "25", "ADDRESS:PORT"),
        ("[smtp]\nlisten = ['localhost:25']", "[smtp] listen", "localhost:25", "ADDRESS:PORT"),
        ("[smtp]\nlisten = ['127.0.0.1:99999']", "[smtp] listen", "99999", "ADDRESS:PORT"),
        ("[smtp]\nlisten = ['::1:25']", "[smtp] listen", "::1:25", "ADDRESS:PORT"),
        ("[smtp]\nlisten = ['0.0.0.0:465']", "[submission] listen_tls", "0.0.0.0:465", "taken by [smtp] listen"),
        ("[lmtp]\nlisten = ['unix:lmtp']", "[lmtp] listen", "unix:lmtp", "unix:/PATH"),
        ("[control]\nsocket = 'control.sock'", "[control] socket", "control.sock", "absolute"),
        (f"[control]\nsocket = '/{'x' * 120}'", "[control] socket", "xxx", "107"),
        ("[limits]\ntrusted = ['here']", "[limits] trusted", "here", "network"),
        ("[limits]\nban_max_s = 60", "[limits] ban_max_s", "60", "ban_first_s"),
        ("[dns]\nnameservers = ['dns.example']", "[dns] nameservers", "dns.example", "ADDRESS"),
        ("[checks]\nspf = false", "[checks] spf", "False", "dmarc = true needs it"),
        ("[checks]\ndkim = false", "[checks] dkim", "False", "dmarc = true needs it"),
        ("[checks]\ndnsbl = ['bl.test=many']", "[checks] dnsbl", "bl.test=many", "ZONE=WEIGHT"),
        ("[checks]\ndnswl = ['x=127.0.0*1']", "[checks] dnswl", "x=127.0.0*1", "four octets"),
        ("[checks]\ntrusted_sealers = ['*']", "[checks] trusted_sealers", "*", "a domain"),
        ("[rspamd]\nurl = '127.0.0.1:11333'", "[rspamd] url", "127.0.0.1:11333", "http://HOST:PORT"),
        ("[rspamd]\nurl = 'http://h.test:1'\ntimeout_s = 11", "[rspamd] timeout_s", "11", "[checks] timeout_s = 10"),
        ("[outbound]\nca_file = '{tmp}/missing'", "[outbound] ca_file", "missing", "No such file"),
        (
            "[rspamd]\nurl = 'http://h.test:1'\npassword_file = '{tmp}/missing'",
            "[rspamd] password_file",
            "missing",
            "No such file",
        ),
        ("[outbound]\nroute = [{domain='a b', host='h.test'}]", "[outbound] route 1: domain", "a b", "a domain, or *"),
        ("[outbound]\nroute = [{domain='*', host='a b'}]", "[outbound] route 1: host", "a b", "a name"),
        (
            "[outbound]\nroute = [{domain='*', host='h.test', username='u'}]",
            "[outbound] route 1: password_file",
            "",
            "belong together",
        ),
        (
            "[outbound]\nroute = [{domain='*', host='h.test', username='u', password_file='{tmp}/empty'}]",
            "[outbound] route 1: password_file",
            "empty",
            "the file is empty",
        ),
        (
            "[outbound]\nroute = [{domain='*', host='h.test', username='u', password_credential='a/b'}]",
            "[outbound] route 1: password_credential",
            "a/b",
            "LoadCredential",
        ),
        ("[outbound]\nprovider = [{name='own'}]", "[outbound] provider 1: mx", "[]", ".example.net"),
        (
            "[outbound]\nprovider = [{name='own', mx=['*.a.test']}]",
            "[outbound] provider 1: mx",
            "*.a.test",
            "host name",
        ),
        (
            "[outbound]\nprovider = [{name='google'}, {name='google'}]",
            "[outbound] provider 2: name",
            "google",
            "already",
        ),
        ("[outbound]\nwarm_up_since = 'soon'", "[outbound] warm_up_since", "soon", "2026-01-31"),
        (
            "[outbound]\nroute = [{domain='*', host='h.test', tls='none', username='u', password_file='{tmp}/key'}]",
            "[outbound] route 1: tls",
            "none",
            "in the clear",
        ),
        ("[outbound]\nsource_addresses = ['eth0']", "[outbound] source_addresses", "eth0", "an address"),
        ("[outbound]\nretry_max_s = 1", "[outbound] retry_max_s", "1", "retry_first"),
        ("[forwarding]\nsrs_domain = 'a b'", "[forwarding] srs_domain", "a b", "a domain name"),
        ("[forwarding]\nsrs_secret_file = 'srs'", "[forwarding] srs_secret_file", "srs", "an absolute path"),
        ("[outbound]\nlifetime_s = 300", "[outbound] lifetime_s", "300", "more than"),
    ],
)
def test_an_error_names_key_value_and_expectation(files: Path, text: str, key: str, value: str, says: str):
    if not text.startswith("["):
        base = text + SOUND.replace(
            'hostname = "mx.example.com"', "" if "hostname" in text else 'hostname = "mx.example.com"'
        )
        base = base.replace("\n[tls]", "\n[tls]")
        found = errors(files, "", base=base)
    else:
        found = errors(files, text)
    assert len(found) == 1, found
    assert found[0].startswith(f"{key} = ")
    assert value in found[0]
    assert says in found[0]


@pytest.mark.parametrize(
    ("tls", "key"),
    [
        ("certificate = '{tmp}/cert.pem'", "[tls] private_key"),
        ("private_key = '{tmp}/key.pem'", "[tls] certificate"),
        ("certificate = '{tmp}/missing'\nprivate_key = '{tmp}/key.pem'", "[tls] certificate"),
        ("certificate = '{tmp}/cert.pem'\nprivate_key = '{tmp}/empty'", "[tls] private_key"),
    ],
)
def test_certificate_files(files: Path, tls: str, key: str):
    found = errors(files, tls, base="hostname = 'mx.example.com'\n[tls]\n")
    assert found[0].startswith(f"{key} = ")


def test_tls_listeners_need_a_certificate(files: Path):
    found = errors(files, "", base="hostname = 'mx.example.com'\n")
    assert [error.partition(" = ")[0] for error in found] == ["[submission] listen_tls", "[imap] listen_tls"]


def test_a_password_in_a_url_is_not_shown(files: Path):
    assert "geheim" not in "".join(errors(files, "[database]\nurl = 'mysql://u:geheim@localhost'"))


def test_all_errors_come_at_once(files: Path):
    assert len(errors(files, "[mail]\nroot = 'x'\nseparator = '|'\n[accounts]\npostmaster = 'x'")) == 3
