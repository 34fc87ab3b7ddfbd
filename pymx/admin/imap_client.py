"""An IMAP client for comparing: over TLS, or on a command that is logged in already (`doveadm exec imap -u …`).

A thin layer over imaplib that gives back whole FETCH responses and mailbox names as they are.
"""

from __future__ import annotations

import imaplib
import re
import ssl
import subprocess
from collections.abc import Iterator
from typing import Any

from pymx.admin.context import CtlError, Exit
from pymx.proto.imap import answers
from pymx.proto.imap.answers import Value

_TIMEOUT_S = 120
_UID_FETCH = "(UID FLAGS RFC822.SIZE INTERNALDATE ENVELOPE BODYSTRUCTURE)"


class Client:
    """Raises CtlError for whatever goes wrong."""

    def __init__(self, client: imaplib.IMAP4) -> None:
        self._client = client

    @classmethod
    def tls(cls, host: str, port: int, login: str, password: str, *, verify: bool) -> Client:
        context = ssl.create_default_context()
        if not verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        try:
            client = imaplib.IMAP4_SSL(host, port, ssl_context=context, timeout=_TIMEOUT_S)
        except ssl.SSLCertVerificationError as error:
            text = f"{host}:{port}: {error.verify_message}; if that is expected, add --insecure"
            raise CtlError(text, Exit.UNAVAILABLE) from None
        except (OSError, imaplib.IMAP4.error) as error:
            raise CtlError(f"{host}:{port} can't be reached: {error}", Exit.UNAVAILABLE) from None
        try:
            client.login(login, password)
        except imaplib.IMAP4.error as error:
            client.shutdown()
            raise CtlError(f"{host}:{port} refuses the login of {login}: {_said(error)}") from None
        return cls(client)

    @classmethod
    def command(cls, command: str) -> Client:
        try:
            client = _Piped(command)
        except (OSError, imaplib.IMAP4.error) as error:
            raise CtlError(f"{command!r} does not speak IMAP: {_said(error)}", Exit.UNAVAILABLE) from None
        if client.state != "AUTH":
            client.logout()
            raise CtlError(f"{command!r} greets without PREAUTH: it must be logged in already")
        return cls(client)

    def close(self) -> None:
        try:
            self._client.logout()
        except (OSError, imaplib.IMAP4.error):
            self._client.shutdown()

    def _call(self, name: str, *arguments: str) -> list[Any]:
        try:
            status, data = getattr(self._client, name)(*arguments)
        except (OSError, imaplib.IMAP4.error) as error:
            raise CtlError(f"the other server failed at {name.upper()}: {_said(error)}", Exit.UNAVAILABLE) from None
        if status != "OK":
            raise CtlError(f"the other server refuses {name.upper()} {' '.join(arguments)}: {_joined(data)!r}")
        return list(data)

    def namespace(self) -> tuple[str, str]:
        """Prefix and separator of the personal namespace."""
        values = answers.parse(_joined(self._call("namespace")))
        personal = values[0] if values else None
        first = personal[0] if isinstance(personal, list) and personal else None
        if not isinstance(first, list) or len(first) < 2 or not isinstance(first[0], bytes):
            return "", ""
        return first[0].decode("utf-8", "replace"), (first[1] or b"").decode() if isinstance(first[1], bytes) else ""

    def mailboxes(self) -> list[bytes]:
        """Names as they stand on the wire, those that can be selected."""
        out = []
        for line in self._call("list"):
            values = answers.parse(b"".join(line) if isinstance(line, tuple) else line or b"")
            if len(values) != 3 or not isinstance(values[0], list) or not isinstance(values[2], bytes):
                continue
            attributes = {a.lower() for a in values[0] if isinstance(a, bytes)}
            if not attributes & {b"\\noselect", b"\\nonexistent"}:
                out.append(bytes(values[2]))
        return out

    def examine(self, mailbox: bytes) -> tuple[int, int, int]:
        """Messages, UIDVALIDITY, UIDNEXT."""
        messages = self._call("select", _quoted(mailbox), True)  # type: ignore[arg-type]  # imaplib's `readonly`
        out = [int(messages[0] or 0)]
        for code in ("UIDVALIDITY", "UIDNEXT"):
            found = self._client.response(code)[1]
            out.append(int(found[0] or 0) if found and isinstance(found[0], bytes) else 0)
        return out[0], out[1], out[2]

    def fetch(self, first: int, last: int) -> Iterator[dict[bytes, Value]]:
        """What the server says of the messages with UIDs from `first` to `last`."""
        for response in _responses(self._call("uid", "FETCH", f"{first}:{last}", _UID_FETCH)):
            start = response.find(b"(")
            if start >= 0:
                items = answers.fetched(response[start:])
                if b"UID" in items and b"RFC822.SIZE" in items:  # not a flag update of another session's
                    yield items

    def bodies(self, first: int, last: int) -> Iterator[tuple[int, set[str], bytes]]:
        """UID, flags and whole text of the messages with UIDs from `first` to `last`."""
        for piece in self._call("uid", "FETCH", f"{first}:{last}", "(UID FLAGS BODY.PEEK[])"):
            if isinstance(piece, tuple):
                uid, flags = re.search(rb"UID (\d+)", piece[0]), re.search(rb"FLAGS \(([^)]*)\)", piece[0])
                if uid is not None and flags is not None:
                    yield int(uid[1]), set(flags[1].decode("ascii", "replace").split()), piece[1]


class _Piped(imaplib.IMAP4_stream):
    """imaplib's client on a command, whose process is waited for in the end."""

    process: subprocess.Popen[bytes]

    def shutdown(self) -> None:
        super().shutdown()
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.stdin.close()


def _responses(data: list[Any]) -> Iterator[bytes]:
    """imaplib gives a response with literals as tuples and a rest: put them together again."""
    parts: list[bytes] = []
    for piece in data:
        if isinstance(piece, tuple):
            parts += [piece[0], b"\r\n", piece[1]]
        elif piece is not None:
            parts.append(piece)
            yield b"".join(parts)
            parts = []


def _quoted(name: bytes) -> str:
    text = name.decode("utf-8", "replace").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _joined(data: list[Any]) -> bytes:
    return b" ".join(b"".join(d) if isinstance(d, tuple) else d for d in data if d is not None)


def _said(error: Exception) -> str:
    text = error.args[0] if error.args else str(error)
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
