"""Secrets that the configuration names: by a file, or by a credential that systemd passes (LoadCredential=).

systemd puts a credential where the service's user alone can read it, $CREDENTIALS_DIRECTORY, so its file may stay
root's. Commands that are run by hand have no such variable; they read those of the running pymx.service.

A secret is one line of UTF-8. Editors end it with LF, CRLF or nothing, and some begin it with a byte order mark: none
of that is part of it. A second line or a NUL is an error here, since the other side would only say that the login
failed.
"""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "CREDENTIALS_DIRECTORY"
_OF_THE_SERVER = "/run/credentials/pymx.service"


class SecretUnavailable(OSError):
    """The text names the setting and what to do. It never holds the secret."""


def credential_path(credential: str) -> Path:
    """Where the credential is, or would be."""
    return Path(os.environ.get(VARIABLE) or _OF_THE_SERVER, credential)


def is_of_another_unit() -> bool:
    """Are the credentials here those of the nightly examination or the backup? They get what they use, not all."""
    name = Path(os.environ.get(VARIABLE, "")).name
    return name.endswith(".service") and name != Path(_OF_THE_SERVER).name


def no_credential(credential: str, why: str) -> str:
    """What is to be done about a credential that is not there."""
    passed = VARIABLE in os.environ
    where = why if passed else f"${VARIABLE} is not set, and {credential_path(credential)}: {why}"
    return (
        f"no such credential ({where}): put LoadCredential={credential}:/path/of/its/file into a drop-in of each unit "
        f"(systemctl edit pymx), systemctl restart pymx; by hand, set {VARIABLE} to a directory with "
        "the file in it, which the server's user can read"
    )


def read_secret(section: str, key: str, file: str, credential: str) -> str:
    """The text of `<key>_file` or `<key>_credential`, "" when neither is set. Raises SecretUnavailable."""
    if not credential and not file:
        return ""
    path = credential_path(credential) if credential else Path(file)
    try:
        return secret_line(path.read_bytes())
    except ValueError as e:
        why = str(e)
    except OSError as e:
        why = e.strerror or str(e)
        if credential:
            why = no_credential(credential, why)
    setting = f'{key}_credential = "{credential}"' if credential else f'{key}_file = "{file}"'
    raise SecretUnavailable(f"{section} {setting}: {why}")


def secret_line(content: bytes) -> str:
    """The secret in a file of that content. Raises ValueError, which says what is wrong without telling any of it."""
    try:
        text = content.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise ValueError("the file is not UTF-8") from None
    if not text:
        raise ValueError("the file is empty")
    if "\r" in text or "\n" in text:
        raise ValueError("the file has more than one line; expected the secret and nothing else")
    if "\0" in text:
        raise ValueError("the file has a NUL in it; expected one line of text (UTF-8)")
    return text
