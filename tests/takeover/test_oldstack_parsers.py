"""The parsers of the old configuration agree with the programs whose configuration it is: postconf and doveconf."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.programs import require

from pymx.admin.oldstack import dovecot, fromdovecot, frompostfix, postfix, rspamd
from pymx.admin.oldstack.dovecot import Block
from pymx.admin.oldstack.postfix import Unreadable
from pymx.admin.oldstack.report import Report

ESSAY = Path(__file__).parent / "essay"

MAIN = """\
# comment = nothing
compatibility_level = 3.6
myhostname = mx.example.test
  # a comment inside, and an empty line

smtpd_recipient_restrictions =
    permit_mynetworks,
# not the end
    reject_rbl_client zen.spamhaus.org=127.0.0.[2..11],
\treject
relayhost=[smtp.example.net]:587
mydestination = $myhostname, localhost.$mydomain, ${mydomain} $(mydomain)
message_size_limit = 10240000
message_size_limit = 52428800
smtpd_milters = inet:localhost:11332
non_smtpd_milters = $smtpd_milters
smtpd_banner = $myhostname ESMTP ${mail_name} ($mail_name)
empty_one =
smtp_tls_security_level = ${relayhost?{encrypt}:{may}}
smtpd_tls_security_level = ${nothing_here?encrypt}${nothing_here:may}
price = 5$$ only
transport_maps = inline:{ {sink.test=smtp:[127.0.0.1]:2525}, {b.test = smtp:b} }
"""

MASTER = """\
smtp      inet  n       -       y       -       1       postscreen
smtpd     pass  -       -       y       -       -       smtpd
submission inet n       -       y       -       -       smtpd
  -o syslog_name=postfix/submission
  -o { smtpd_recipient_restrictions = reject_sender_login_mismatch, reject }
#smtps     inet  n       -       y       -       -       smtpd
127.0.0.1:10025 inet n - y - - smtpd
  -o smtpd_milters=
dovecot   unix  -       n       n       -       -       pipe
  flags=DRhu user=vmail:vmail argv=/usr/lib/dovecot/dovecot-lda -f ${sender}
  -d ${recipient}
"""


def postconf(directory: Path, *options: str) -> dict[str, str]:
    program = require("postconf", "postfix")
    done = subprocess.run([program, "-c", str(directory), *options], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    found = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition("=")
        found[name.strip()] = " ".join(value.split())
    return found


def directories(tmp_path: Path) -> list[Path]:
    own = tmp_path / "postfix"
    own.mkdir()
    (own / "main.cf").write_text(MAIN)
    (own / "master.cf").write_text(MASTER)
    found = [own]
    for real in (Path("/etc/postfix"), ESSAY / "postfix"):
        if (real / "main.cf").exists():
            copy = tmp_path / real.parent.name
            shutil.copytree(real, copy, symlinks=True)
            if not (copy / "master.cf").exists():
                (copy / "master.cf").write_text(MASTER)
            found.append(copy)
    return found


def test_main_cf_is_read_as_postconf_reads_it(tmp_path: Path) -> None:
    """postconf -n (as set) and -nx (expanded), on ours, Debian's own and the essay's."""
    for directory in directories(tmp_path):
        ours = postfix.read(directory)
        for name, value in postconf(directory, "-n").items():
            if name == "config_directory":  # from the command line
                continue
            assert " ".join(ours.parameters[name].text.split()) == value, (directory, name)
        for name, value in postconf(directory, "-nx").items():
            if name not in ("config_directory", "mynetworks"):
                assert ours.expanded(name) == value, (directory, name)


def test_master_cf_is_read_as_postconf_reads_it(tmp_path: Path) -> None:
    """postconf -M and -P."""
    for directory in directories(tmp_path):
        ours = postfix.read(directory)
        program = require("postconf", "postfix")
        done = subprocess.run([program, "-c", str(directory), "-M"], capture_output=True, text=True, timeout=30)
        theirs = [
            line.split()[:8]
            for line in done.stdout.splitlines() if line and not line[0].isspace() and not line.startswith("#")
        ]  # fmt: skip
        assert [[s.name, s.kind, *s.fields, s.command] for s in ours.services] == theirs
        options = {
            f"{s.name}/{s.kind}/{name}": " ".join(value.split())
            for s in ours.services for name, value in s.options.items()
        }  # fmt: skip
        assert options == postconf(directory, "-P")


def test_lines_are_those_of_the_file() -> None:
    found = postfix.parse_main(MAIN, "main.cf")
    assert found["myhostname"].where == "main.cf:3"
    assert found["smtpd_recipient_restrictions"].line == 6
    assert found["message_size_limit"].line == 14


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hash:/etc/x, proxy:mysql:/etc/y.cf", [("hash", "/etc/x"), ("mysql", "/etc/y.cf")]),
        ("inline:{ {a=b}, {c = d} } static:x", [("inline", "{ {a=b}, {c = d} }"), ("static", "x")]),
        ("", []),
    ],
)
def test_maps_of_a_parameter(text: str, expected: list[tuple[str, str]]) -> None:
    assert postfix.maps(text) == expected


def test_tables_whose_source_is_text(tmp_path: Path) -> None:
    path = tmp_path / "transport"
    path.write_text("# x\nexample.com   smtp:[mx.example.com]:26\nwide\n   smtp:b\n")
    assert postfix.table("hash", str(path)) == [("example.com", "smtp:[mx.example.com]:26", 2), ("wide", "smtp:b", 3)]
    assert postfix.table("inline", "{ {a=smtp:b}, {c = d e} }") == [("a", "smtp:b", 0), ("c", "d e", 0)]
    assert postfix.table("ldap", "x") is None
    with pytest.raises(Unreadable):
        postfix.table("hash", str(tmp_path / "missing"))


def test_patterns_of_header_checks(tmp_path: Path) -> None:
    path = tmp_path / "checks"
    path.write_text("/^Received:/ IGNORE\n/^Subject: .*a\\/b/i  REJECT no such\n!/x/ WARN\nif /y/\n")
    assert postfix.patterns(str(path)) == [
        ("^Received:", "IGNORE", 1), ("^Subject: .*a\\/b", "REJECT no such", 2), ("!/x/ WARN", "", 3),
        ("if /y/", "", 4),
    ]  # fmt: skip


DOVECOT = """\
# a comment
protocols = imap lmtp   # and another
listen = 127.0.0.1, ::1
ssl = required
ssl_cert = <{here}/cert.pem
ssl_key = <{here}/cert.pem
mail_plugins = quota
mail_location = maildir:/var/vmail/%d/%n:\\
LAYOUT=fs
namespace inbox {{
  inbox = yes
  separator = /
  prefix = "INBOX/"
  mailbox "Sent Messages" {{
    special_use = \\Sent
    auto = subscribe
  }}
}}
passdb {{
  driver = sql
  args = /etc/dovecot/dovecot-sql.conf.ext
}}
passdb {{
  driver = pam
}}
protocol imap {{
  mail_plugins = $mail_plugins imap_quota
}}
plugin {{
  quota = maildir:User quota
  quota_rule = *:storage=1G
}}
service imap-login {{
  inet_listener imap {{
    port = 0
  }}
}}
!include_try {here}/none.conf
!include conf.d/*.conf
"""


def doveconf(config: Path) -> Block:
    program = require("doveconf", "dovecot-imapd")
    done = subprocess.run([program, "-n", "-c", str(config)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    out = config.parent / "doveconf.out"
    out.write_text(done.stdout)
    return dovecot.read(out)


def included(theirs: Block, ours: Block, path: str = "") -> None:
    """Every setting that doveconf says is ours, too (it leaves out what is at its default)."""
    for name, value in theirs.values.items():
        if name in ("ssl_cert", "ssl_key", "ssl_dh") or name.endswith("_capability"):  # content, hidden, or computed
            continue
        if not value.text and name not in ours.values:
            continue
        assert name in ours.values, f"{path}{name}"
        assert " ".join(ours.values[name].text.split()) == " ".join(value.text.split()), f"{path}{name}"
    unnamed: dict[str, int] = {}
    for block in theirs.blocks:
        number = unnamed[block.kind] = unnamed.get(block.kind, -1) + 1
        same = list(ours.all(block.kind)) if not block.name else list(ours.all(block.kind, block.name))
        assert same, f"{path}{block.kind} {block.name}"
        included(block, same[0] if block.name else same[number], f"{path}{block.kind} {block.name}/")


def test_dovecot_conf_is_read_as_doveconf_reads_it(tmp_path: Path) -> None:
    """Ours, and Debian's own with its 20 included files."""
    (tmp_path / "cert.pem").write_text("x")
    own = tmp_path / "dovecot.conf"
    own.write_text(DOVECOT.format(here=tmp_path))
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "10.conf").write_text("first_valid_uid = 100\nservice lmtp {\n  process_min_avail = 2\n}\n")
    included(doveconf(own), dovecot.read(own))
    real = Path("/etc/dovecot")
    if (real / "dovecot.conf").exists():
        shutil.copytree(real, tmp_path / "debian", symlinks=True)
        shutil.rmtree(tmp_path / "debian" / "private", ignore_errors=True)
        included(doveconf(tmp_path / "debian" / "dovecot.conf"), dovecot.read(tmp_path / "debian"))


@pytest.mark.parametrize("text", ["a {\n", "}\n", "what is this\n", "!include /nowhere/at/all.conf\n"])
def test_what_is_no_configuration_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "dovecot.conf").write_text(text)
    with pytest.raises(Unreadable):
        dovecot.read(tmp_path)


def test_keys_of_rspamd(tmp_path: Path) -> None:
    """Own block, several selectors, maps, and a path with $domain."""
    local = tmp_path / "local.d"
    local.mkdir()
    (tmp_path / "selectors").write_text("# x\nb.test two\n")
    (tmp_path / "c.test.dflt.key").write_text("key")
    (local / "dkim_signing.conf").write_text(
        f"""
        enabled = true; # yes
        /* a
           comment */
        path = "{tmp_path}/$domain.$selector.key";
        selector = "dflt";
        selector_map = "{tmp_path}/selectors";
        domain {{
          a.test {{ path = "/k/a.key"; selector = "one"; }}
          d.test {{
            selectors [
              {{ path: "/k/d1.key"; selector: "d1" }}
            ]
          }}
        }}
        """
    )
    keys, trouble = rspamd.read_keys(tmp_path, ["a.test", "c.test", "e.test"])
    assert trouble == []
    assert [(k.domain, k.selector, k.path.replace(str(tmp_path), "")) for k in keys] == [
        ("a.test", "one", "/k/a.key"), ("d.test", "d1", "/k/d1.key"), ("b.test", "two", "/b.test.two.key"),
        ("c.test", "dflt", "/c.test.dflt.key"),
    ]  # fmt: skip
    assert keys[0].where.endswith("dkim_signing.conf:9")
    (local / "dkim_signing.conf").write_text("domain { a { ")
    keys, trouble = rspamd.read_keys(tmp_path, [])
    assert keys == []


_TEXTS = st.text(st.sampled_from("ab$ {}()?:=#\n\t\"'\\<!;,[]/*.x1"), max_size=120)


@given(_TEXTS)
def test_no_text_makes_a_parser_fail_otherwise(text: str) -> None:
    """Whatever stands in the files: Unreadable, or an answer."""
    found = postfix.Postfix(Path("/nowhere"), postfix.parse_main(text, "x"), postfix.parse_master(text, "y"))
    for name in found.parameters:
        found.expanded(name)
    postfix.maps(text)
    postfix.table("inline", text)
    with contextlib.suppress(Unreadable):
        rspamd.parse(text, "x")


@given(_TEXTS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_text_makes_the_reader_of_dovecot_fail_otherwise(tmp_path: Path, text: str) -> None:
    (tmp_path / "dovecot.conf").write_text(text)
    with contextlib.suppress(Unreadable):
        dovecot.read(tmp_path)
    with contextlib.suppress(Unreadable):
        dovecot.sql(tmp_path / "dovecot.conf")
    report = Report()
    fromdovecot.take(tmp_path, report)
    (tmp_path / "main.cf").write_text(text)
    frompostfix.take(tmp_path, report)
