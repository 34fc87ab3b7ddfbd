"""Secrets that the configuration names: each may be a file or a credential of systemd, and an error says what to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pymx.accounts.database import DatabaseUrlError, configured_url
from pymx.config.check import check
from pymx.config.load import parse
from pymx.config.secret import VARIABLE, SecretUnavailable, read_secret, secret_line

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


@pytest.mark.parametrize(
    "content",
    [b"geheim", b"geheim\n", b"geheim\r\n", b"geheim\r", b"geheim\n\n", b"geheim\r\n\r\n", b"\xef\xbb\xbfgeheim\r\n"],
)
def test_line_end_is_no_part_of_a_secret(content: bytes, tmp_path: Path) -> None:
    """Whatever the editor's is, and however many there are; nor is the mark that some put in front."""
    path = tmp_path / "password"
    path.write_bytes(content)
    assert read_secret("[rspamd]", "password", str(path), "") == "geheim"
    section, _key, rest = SECRETS[3]
    assert problems(section, f'{rest}\npassword_file = "{path}"') == []


def test_blanks_and_odd_letters_are_part_of_a_secret() -> None:
    """What str.splitlines takes for line ends is none here."""
    assert secret_line(" gehe\u2028im\x0b ".encode()) == " gehe\u2028im\x0b "


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"geheim\nmore\n", "more than one line"),
        (b"\ngeheim", "more than one line"),
        (b"geheim\rmore", "more than one line"),
        (b"geheim\0", "a NUL"),
        (b"g\0e\0h\0e\0i\0m\0", "a NUL"),
        (b"geheim\xff", "not UTF-8"),
        (b"\r\n", "the file is empty"),
    ],
)
def test_secret_of_another_form_is_an_error_that_names_key_and_file(content: bytes, says: str, tmp_path: Path) -> None:
    """At the start, and when it is read; it tells nothing of the secret."""
    path = tmp_path / "password"
    path.write_bytes(content)
    with pytest.raises(SecretUnavailable) as caught:
        read_secret("[outbound] route:", "password", str(path), "")
    assert str(caught.value).startswith(f'[outbound] route: password_file = "{path}": ')
    for section, key, rest in READ_AT_THE_START:
        if key != "srs_secret":  # a file of several lines, made when it is needed
            (said,) = problems(section, f'{rest}\n{key}_file = "{path}"')
            assert f'{key}_file = "{path}": ' in said
            assert says in said
            assert "geheim" not in said
    assert says in str(caught.value)
    assert "geheim" not in str(caught.value)


def test_credential_of_another_form_is_an_error(credentials: Path) -> None:
    (credentials / "two").write_text("geheim\nmore\n")
    (said,) = problems(SECRETS[3][0], f'{SECRETS[3][2]}\npassword_credential = "two"')
    assert 'password_credential = "two": the file has more than one line' in said


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
