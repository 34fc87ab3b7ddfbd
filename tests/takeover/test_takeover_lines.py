"""What becomes of single settings of Postfix and Dovecot, and that each is named with its file and line."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from pymx.admin import ctl
from pymx.admin.oldstack import fromdovecot, frompostfix
from pymx.admin.oldstack.report import Fate, Report
from pymx.config.load import parse
from pymx.config.model import Config, Mail, Outbound, Route
from pymx.config.write import to_toml


def postfix(tmp_path: Path, main: str, master: str = "") -> Report:
    (tmp_path / "main.cf").write_text(f"myhostname = mx.example.test\n{main}\n")
    (tmp_path / "master.cf").write_text(master)
    report = Report()
    frompostfix.take(tmp_path, report)
    return report


def dovecot(tmp_path: Path, text: str) -> Report:
    (tmp_path / "dovecot.conf").write_text(text + "\n")
    report = Report()
    fromdovecot.take(tmp_path, report)
    return report


@pytest.mark.parametrize(
    ("main", "section", "key", "value"),
    [
        ("message_size_limit = 1000000", "mail", "max_message_octets", 1000000),
        ("recipient_delimiter = -+", "mail", "subaddress_delimiter", "-"),
        ("maximal_queue_lifetime = 3d", "outbound", "lifetime_s", 259200),
        ("delay_warning_time = 4", "outbound", "delay_notice_s", 14400),
        ("smtpd_client_message_rate_limit = 10", "limits", "messages_per_hour", 600),
        ("smtpd_recipient_limit = 50", "smtp", "max_recipients", 50),
        ("smtpd_milters = inet:localhost:11332", "rspamd", "url", "http://127.0.0.1:11333"),
        ("relayhost = [smtp.example.net]:587", "outbound", "route",
         [{"domain": "*", "host": "smtp.example.net", "port": 587, "tls": "opportunistic"}]),
        ("relayhost = [a.test]:465\nsmtp_tls_wrappermode = yes", "outbound", "route",
         [{"domain": "*", "host": "a.test", "port": 465, "tls": "implicit"}]),
        ("relayhost = a.test:submission\nsmtp_tls_security_level = encrypt\nsmtp_sasl_auth_enable = yes\n"
         "smtp_sasl_password_maps = static:me:secret", "outbound", "route",
         [{"domain": "*", "host": "a.test", "port": 587, "tls": "verified", "username": "me",
           "password_file": "smarthost.password"}]),
        ("smtpd_recipient_restrictions = permit_mynetworks, reject_rbl_client zen.spamhaus.org", "checks", "dnsbl",
         ["zen.spamhaus.org=5"]),
        ("smtpd_client_restrictions = reject_rbl_client a.test=127.0.0.[2..4], permit_dnswl_client w.test", "checks",
         "dnswl", ["w.test=5"]),
        ("postscreen_dnsbl_sites = a.test*3, b.test=127.0.0.2*2, w.test*-4", "checks", "dnsbl",
         ["a.test=3", "b.test=127.0.0.2*2"]),
        ("postscreen_dnsbl_threshold = 3", "checks", "junk_score", 3),
        ("smtpd_recipient_restrictions = check_policy_service inet:127.0.0.1:10023", "checks", "greylist", True),
        ("smtp_bind_address = 192.0.2.1", "outbound", "source_addresses", ["192.0.2.1"]),
        ("smtpd_tls_cert_file=/c.pem", "tls", "certificate", "/c.pem"),
    ],
)  # fmt: skip
def test_settings_of_postfix_that_are_taken_over(
    tmp_path: Path, main: str, section: str, key: str, value: object
) -> None:
    report = postfix(tmp_path, main)
    assert report.settings[section][key] == value
    assert report.sources[section, key].startswith(str(tmp_path / "main.cf:"))


@pytest.mark.parametrize(
    ("main", "fate", "said"),
    [
        ("mynetworks = 127.0.0.0/8 192.0.2.0/24", Fate.LOST, "192.0.2.0/24"),
        ("mynetworks = 127.0.0.0/8 [::ffff:127.0.0.0]/104 [::1]/128", Fate.SAME, "this host"),
        ("mydestination = $myhostname, localhost", Fate.SAME, ""),
        ("mydestination = $myhostname, shop.test", Fate.LOST, "shop.test"),
        ("content_filter = smtp-amavis:[127.0.0.1]:10024", Fate.LOST, "content filter"),
        ("relay_domains = other.test", Fate.LOST, "backup MX"),
        ("smtpd_milters = unix:/run/other.sock", Fate.LOST, "milters"),
        ("virtual_mailbox_maps = hash:/etc/postfix/vmailbox", Fate.BLOCKED, "database"),
        ("virtual_mailbox_maps = mysql:{here}/missing.cf", Fate.BLOCKED, "missing.cf"),
        ("virtual_mailbox_maps = mysql:{here}/foreign.cf", Fate.BLOCKED, "virtual_users"),
        ("header_checks = regexp:{here}/checks", Fate.LOST, "rspamd"),
        ("smtpd_sender_restrictions = check_sender_access hash:/x", Fate.LOST, "check_sender_access"),
        ("whatever_new_in_4 = yes", Fate.LOST, "nothing in pymx"),
        ("biff = no", Fate.SAME, ""),
        ("message_size_limit = 0", Fate.DIFFERENT, "unlimited"),
    ],
)
def test_settings_of_postfix_that_are_not(tmp_path: Path, main: str, fate: Fate, said: str) -> None:
    (tmp_path / "foreign.cf").write_text("user = u\ndbname = d\nquery = SELECT email FROM virtual_users WHERE x='%s'\n")
    (tmp_path / "checks").write_text("/^Subject: .*lottery/ REJECT\n")
    report = postfix(tmp_path, main.format(here=tmp_path))
    found = [line for line in report.lines if line.fate is fate and said in line.said + line.meaning]
    assert found, report.lines
    assert found[0].where.rpartition(":")[2].isdigit()


def test_every_line_of_the_old_configuration_is_accounted_for(tmp_path: Path) -> None:
    """Nothing is passed over in silence."""
    essay = Path(__file__).parent / "essay"
    report = Report()
    old = frompostfix.take(essay / "postfix", report)
    top = fromdovecot.take(essay / "dovecot", report)
    assert old is not None
    assert top is not None
    said = {line.where for line in report.lines}
    for name, value in old.parameters.items():
        assert value.where in said or name.endswith(("_maps", "_domains", "_checks", "_milters")), name  # their tables
    for service in old.services:
        assert service.kind != "inet" or service.where in said
    for value in top.values.values():
        assert value.where in said or "listen" in value.text or value.text == "127.0.0.1", value


@pytest.mark.parametrize(
    ("text", "section", "key", "value"),
    [
        ("mail_location = maildir:/var/vmail/%d/%n", "mail", "root", "/var/vmail"),
        ("mail_location = maildir:/srv/%Ld/%Ln:LAYOUT=fs", "mail", "layout", "fs"),
        ("mail_location = maildir:~\nuserdb {\n driver = static\n args = uid=v home=/h/%d/%n\n}", "mail", "root", "/h"),
        ("mail_location = maildir:/v/%d/%n:CONTROL=/c/%d/%n", "mail", "control_dir", "/c/%d/%n"),
        ("mail_driver = maildir\nmail_path = /v/%{user | domain}/%{user | username}", "mail", "root", "/v"),
        ("mail_location = maildir:/v/%d/%n\nnamespace inbox {\n inbox = yes\n prefix = INBOX/\n separator = /\n}",
         "mail", "prefix", "INBOX/"),
        ("ssl_server_cert_file = /c.pem", "tls", "certificate", "/c.pem"),
        ("ssl_cert = </c.pem", "tls", "certificate", "/c.pem"),
        ("plugin {\n quota_rule = *:storage=1G\n}", "mail", "default_quota_mb", 1024),
        ("service imap-login {\n inet_listener imap {\n port = 0\n }\n}", "imap", "listen_starttls", []),
        ("listen = 192.0.2.1", "imap", "listen_tls", ["192.0.2.1:993"]),
        ("mail_uid = vmail", "", "user", "vmail"),
    ],
)  # fmt: skip
def test_settings_of_dovecot_that_are_taken_over(
    tmp_path: Path, text: str, section: str, key: str, value: object
) -> None:
    assert dovecot(tmp_path, text).settings[section][key] == value


@pytest.mark.parametrize(
    ("text", "fate", "said"),
    [
        ("mail_location = mbox:~/mail", Fate.BLOCKED, "Maildir only"),
        ("mail_location = maildir:~/Maildir", Fate.BLOCKED, "ROOT/example.com/alice"),
        ("passdb {\n driver = pam\n}", Fate.BLOCKED, "pam"),
        ("protocols = imap pop3", Fate.LOST, "POP3"),
        ("auth_mechanisms = plain cram-md5", Fate.LOST, "cram-md5"),
        ("mail_plugins = mail_crypt", Fate.BLOCKED, "mail_crypt"),
        ("namespace shared {\n type = shared\n}", Fate.LOST, "shared"),
        ("ssl_min_protocol = TLSv1", Fate.DIFFERENT, "1.2"),
        ("unheard_of = 1", Fate.LOST, "nothing in pymx"),
        ("a {", Fate.BLOCKED, "not closed"),
    ],
)
def test_settings_of_dovecot_that_are_not(tmp_path: Path, text: str, fate: Fate, said: str) -> None:
    report = dovecot(tmp_path, text)
    assert [line for line in report.lines if line.fate is fate and said in line.said + line.meaning], report.lines


VERSION_2_4 = """\
dovecot_config_version = 2.4.1
dovecot_storage_version = 2.4.1
protocols {
  imap = yes
  lmtp = yes
}
mail_driver = maildir
mail_home = /var/vmail/%{user | domain}/%{user | username}
mail_path = ~
mail_uid = vmail
mail_plugins {
  quota = yes
}
sql_driver = mysql
mysql localhost {
  user = mailuser
  password = s3cret
  dbname = mailserver
}
passdb sql {
  query = SELECT email AS user, password FROM users WHERE email = '%{user}'
  default_password_scheme = BLF-CRYPT
}
userdb static {
  fields {
    uid = vmail
    home = /var/vmail/%{user | domain}/%{user | username}
  }
}
ssl_server {
  cert_file = /c.pem
  key_file = /k.pem
}
quota "User quota" {
  storage_size = 1G
}
namespace inbox {
  inbox = yes
  separator = /
}
"""


def test_dovecot_2_4_is_understood(tmp_path: Path) -> None:
    """Other names, lists as blocks, `%{user | domain}`."""
    report = dovecot(tmp_path, VERSION_2_4)
    assert [line for line in report.lines if line.fate in (Fate.BLOCKED, Fate.LOST)] == []
    assert report.settings["mail"] == {
        "root": "/var/vmail", "layout": "maildir++", "separator": "/", "default_quota_mb": 1024,
    }  # fmt: skip
    assert report.settings["database"] == {"url": "mysql://mailuser:s3cret@localhost/mailserver"}
    assert report.settings["tls"] == {"certificate": "/c.pem", "private_key": "/k.pem"}
    assert "s3cret" not in "".join(line.said + line.meaning for line in report.lines)


def run(tmp_path: Path, *words: str) -> tuple[int, str]:
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        status = ctl.main(["--config", str(tmp_path / "etc" / "pymx.toml"), "adopt", *words])
    return status, out.getvalue()


def test_nothing_is_written_while_something_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "main.cf").write_text("myhostname = mx.example.test\nvirtual_mailbox_maps = hash:/x\n")
    status, said = run(tmp_path, "--from-postfix", str(tmp_path), "--data-dir", str(tmp_path / "data"))
    assert status == 1
    assert "main.cf:2" in said
    assert not (tmp_path / "etc").exists()


def test_no_secret_is_shown_and_an_existing_file_stays(tmp_path: Path) -> None:
    (tmp_path / "users.cf").write_text(
        "user = u\npassword = s3cret\nhosts = 127.0.0.1\ndbname = d\nquery = SELECT email FROM users WHERE email='%s'\n"
    )
    (tmp_path / "main.cf").write_text(
        f"myhostname = mx.example.test\nvirtual_mailbox_maps = mysql:{tmp_path}/users.cf\n"
        "relayhost = [a.test]:587\nsmtp_sasl_auth_enable = yes\nsmtp_sasl_password_maps = static:me:pa55\n"
    )
    certificate = tmp_path / "c.pem"
    certificate.write_text("x")
    (tmp_path / "dovecot.conf").write_text(
        f"mail_location = maildir:/v/%d/%n\nssl_cert = <{certificate}\nssl_key = <{certificate}\nmail_uid = nobody\n"
    )
    words = ("--from-postfix", str(tmp_path), "--from-dovecot", str(tmp_path), "--data-dir", str(tmp_path / "data"))
    status, said = run(tmp_path, *words, "--check", "--json")
    assert status == 0, said
    assert "s3cret" not in said
    assert "url = …" in json.loads(said)["toml"]
    status, said = run(tmp_path, *words)
    assert status == 0, said
    assert "s3cret" not in said
    assert "pa55" not in said
    written = tmp_path / "etc" / "pymx.toml"
    assert written.stat().st_mode & 0o777 == 0o640
    config = parse(written.read_text())
    assert config.database.url == "mysql://u:s3cret@127.0.0.1/d"
    assert Path(config.outbound.route[0].password_file).read_text() == "pa55\n"
    assert f"# from {tmp_path}/users.cf:4" in written.read_text()
    written.write_text("# mine\n" + written.read_text())
    status, said = run(tmp_path, *words)
    assert status == 1
    assert "there already" in said


def test_configuration_without_a_file_names_the_way_to_one(tmp_path: Path) -> None:
    status, said = run(tmp_path, "--check")
    assert status == 1
    assert "--from-postfix" in said


def test_written_configuration_is_read_as_it_was() -> None:
    """to_toml and parse are inverse, strings with everything TOML must escape included."""
    config = Config(
        hostname="mx.example.test",
        mail=Mail(root='/a "b"\\\u007f\n', folders={"Gelöscht": "\\Trash", "a.b": ""}),
        outbound=Outbound(route=[Route(domain="*", host="h", port=26, tls="none")], retry_first_s=7),
    )
    assert parse(to_toml(config, {("mail", "root"): "from\nhere"})) == config
