"""Secrets that the configuration names: each may be a file or a credential of systemd, and an error says what to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pymx.accounts.database import DatabaseUrlError, configured_url
from pymx.config.check import check
from pymx.config.load import parse
from pymx.config.secret import VARIABLE, SecretUnavailable, read_secret

# section, key, what else the section needs
SECRETS = [
    ("[database]", "url", ""),
    ("[rspamd]", "password", 'url = "http://127.0.0.1:11333"'),
    ("[forwarding]", "srs_secret", ""),
    ("[[outbound.route]]", "password", 'domain = "*"\nhost = "smtp.example.net"\nusername = "me"'),
    ("[backup]", "passphrase", ""),
]
READ_AT_THE_START = SECRETS[:4]


def problems(section: str, text: str) -> list[str]:
    # a certificate is another matter
    quiet = "[submission]\nlisten_tls = []\n[imap]\nlisten_tls = []\n"
    return check(parse(f'hostname = "mx.example.com"\n{quiet}{section}\n{text}\n'))


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What systemd passed: a directory with one secret."""
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    (tmp_path / "given").write_text("mysql://me:geheim@localhost/mail\n")
    return tmp_path


@pytest.mark.parametrize(("section", "key", "rest"), SECRETS)
def test_every_secret_may_be_a_credential(section: str, key: str, rest: str, credentials: Path) -> None:
    assert problems(section, f'{rest}\n{key}_credential = "given"') == []


@pytest.mark.parametrize(("section", "key", "rest"), SECRETS)
def test_file_and_credential_at_once_are_refused(section: str, key: str, rest: str, credentials: Path) -> None:
    (said,) = problems(section, f'{rest}\n{key}_file = "{credentials}/given"\n{key}_credential = "given"')
    assert f'{key}_credential = "given": {key}_file is set already' in said


@pytest.mark.parametrize(("section", "key", "rest"), READ_AT_THE_START)
def test_credential_that_is_missing_is_an_error_with_a_remedy(
    section: str, key: str, rest: str, credentials: Path
) -> None:
    (said,) = problems(section, f'{rest}\n{key}_credential = "other"')
    assert f'{key}_credential = "other": no such credential' in said
    assert "LoadCredential=other:" in said
    (said,) = problems(section, f'{rest}\n{key}_credential = "../other"')
    assert "LoadCredential" in said


@pytest.mark.parametrize(("section", "key", "rest"), SECRETS)
def test_outside_of_the_unit_there_is_nothing_to_look_at(
    section: str, key: str, rest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pymx check-config` by hand."""
    monkeypatch.delenv(VARIABLE, raising=False)
    assert problems(section, f'{rest}\n{key}_credential = "given"') == []


def test_error_of_a_reader_names_setting_credential_and_remedy(
    credentials: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_secret("[rspamd]", "password", "", "given").startswith("mysql://")
    assert read_secret("[rspamd]", "password", "", "") == ""
    with pytest.raises(SecretUnavailable) as caught:
        read_secret("[rspamd]", "password", "", "other")
    assert str(caught.value).startswith('[rspamd] password_credential = "other": no such credential (')
    assert "LoadCredential=other:/path" in str(caught.value)
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(SecretUnavailable, match=r"\$CREDENTIALS_DIRECTORY is not set"):
        read_secret("[rspamd]", "password", "", "other")
    with pytest.raises(SecretUnavailable, match=r'^\[rspamd\] password_file = "/nowhere": No such file'):
        read_secret("[rspamd]", "password", "/nowhere", "")


def test_secret_is_in_no_error(credentials: Path) -> None:
    """A wrong one neither: it is nearly the right one."""
    (credentials / "odd").write_bytes(b"geheim\xff")
    with pytest.raises(SecretUnavailable) as caught:
        read_secret("[rspamd]", "password", "", "odd")
    assert "geheim" not in str(caught.value)
    (credentials / "typo").write_text("mysqll://me:geheim@localhost/mail")
    with pytest.raises(DatabaseUrlError) as refused:
        configured_url(parse('[database]\nurl_credential = "typo"').database)
    assert "geheim" not in str(refused.value)
    assert "[database] url_credential" in str(refused.value)


def test_database_is_that_of_the_credential(credentials: Path) -> None:
    url = configured_url(parse('[database]\nurl_credential = "given"').database)
    assert (url.drivername, url.username, url.database) == ("mysql", "me", "mail")


def test_unit_beside_the_server_needs_not_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nightly examination gets the database's, and does not miss the secrets of SRS."""
    text = 'srs_secret_credential = "srs"'
    monkeypatch.setenv(VARIABLE, "/run/credentials/pymx-nightly.service")
    assert problems("[forwarding]", text) == []
    monkeypatch.setenv(VARIABLE, "/run/credentials/pymx.service")
    assert len(problems("[forwarding]", text)) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_credentials_of_somebody_else_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory of root's, when pymxctl has become the server's user."""
    secrets = tmp_path / "secrets"
    secrets.mkdir(mode=0o700)
    (secrets / "srs").write_text("geheim")
    monkeypatch.setenv(VARIABLE, str(secrets))
    try:
        os.seteuid(65534)
        (said,) = problems("[forwarding]", 'srs_secret_credential = "srs"')
    finally:
        os.seteuid(0)
    assert said.endswith("can't be read: Permission denied")
