"""Asking rspamd: one message to /checkv2, its answer as a `Scan`.

The message is streamed from the spool; what rspamd must know of the session goes along as header fields of the request
(https://docs.rspamd.com/developers/protocol). An answer is trusted as far as its shape: of its texts nothing reaches a
reply or a header but through the builders of those.

Errors: `RspamdUnavailable` for no answer in time, one that can't be read, and a status other than 200.

This module loads aiohttp: import it only when rspamd is configured.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import aiohttp
import msgspec

from pymx.junk.http import open_session
from pymx.mail.address import Address
from pymx.mail.envelope import Origin, Recipient
from pymx.mail.spam import SpamScore
from pymx.spool import Content

_MAX_ANSWER_OCTETS = 1_048_576
_MAX_CONNECTIONS = 64
_IN_ONE_PIECE_OCTETS = 65536
_MAX_FIELDS = 50


class RspamdUnavailable(Exception):
    """No usable answer; the text says why."""


@dataclass(frozen=True, slots=True)
class Scan:
    """What rspamd says: the action, how it came to it, what it tells the peer, header fields to add and remove."""

    action: str
    score: SpamScore
    message: str = ""
    added: tuple[tuple[str, str], ...] = ()
    removed: tuple[tuple[str, int], ...] = ()  # (name, which): 0 = all, n = the nth, -n = the nth from the end


class _Symbol(msgspec.Struct):
    score: float = 0.0


class _Answer(msgspec.Struct):
    """The keys of the answer that are used."""

    action: str
    score: float = 0.0
    required_score: float = 0.0
    thresholds: dict[str, float | None] = {}
    symbols: dict[str, _Symbol] = {}
    messages: dict[str, Any] | list[Any] = {}
    milter: dict[str, Any] = {}


class Rspamd:
    """A client of one normal worker."""

    def __init__(self, url: str, *, password: str, timeout_s: float, hostname: str) -> None:
        self._url = url.rstrip("/") + "/checkv2"
        self._password = password
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._hostname = hostname
        self._session: aiohttp.ClientSession | None = None

    async def scan(
        self,
        content: Content,
        *,
        origin: Origin,
        mail_from: Address | None,
        recipients: Sequence[Recipient],
        queue_id: str,
    ) -> Scan:
        """Have a message looked at. Raises RspamdUnavailable; OSError from the spool."""
        fields = self._fields(origin, mail_from, recipients, queue_id)
        fields.append(("Content-Length", str(content.size_octets)))
        whole = content.in_memory and content.size_octets <= _IN_ONE_PIECE_OCTETS
        data = content.read() if whole else _stream(content)
        try:
            async with self._open().post(self._url, data=data, headers=fields) as response:
                if response.status != HTTPStatus.OK:
                    raise RspamdUnavailable(f"status {response.status} {response.reason or ''}".rstrip())
                answer = await _read(response)
        except TimeoutError:
            raise RspamdUnavailable(f"no answer within {self._timeout.total:g} s") from None
        except aiohttp.ClientError as e:
            raise RspamdUnavailable(f"{type(e).__name__}: {e}") from None
        return read_answer(answer)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = open_session(connections=_MAX_CONNECTIONS, timeout=self._timeout)
        return self._session

    def _fields(
        self, origin: Origin, mail_from: Address | None, recipients: Sequence[Recipient], queue_id: str
    ) -> list[tuple[str, str]]:
        fields = [
            ("IP", origin.peer_ip),
            ("Helo", origin.helo),
            ("Hostname", origin.peer_name),
            ("From", str(mail_from or "<>")),
            *(("Rcpt", str(recipient.address)) for recipient in recipients),
            ("User", origin.account),
            ("Queue-Id", queue_id),
            ("MTA-Name", self._hostname),
            ("Password", self._password),
        ]
        version, _, cipher = origin.tls.partition(" ")
        fields += [("TLS-Version", version), ("TLS-Cipher", cipher)]
        return [(name, value) for name, value in fields if value]


async def _read(response: aiohttp.ClientResponse) -> bytes:
    answer = bytearray()
    async for piece in response.content.iter_chunked(65536):
        answer += piece
        if len(answer) > _MAX_ANSWER_OCTETS:
            raise RspamdUnavailable(f"an answer of more than {_MAX_ANSWER_OCTETS} octets")
    return bytes(answer)


async def _stream(content: Content) -> AsyncIterator[bytes]:
    for chunk in content.chunks():
        yield chunk


def read_answer(data: bytes) -> Scan:
    """The answer's octets. Raises RspamdUnavailable."""
    try:
        answer = msgspec.json.decode(data, type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise RspamdUnavailable(f"unreadable answer: {e}") from None
    by_weight = sorted(answer.symbols.items(), key=lambda pair: (-abs(pair[1].score), pair[0]))
    # required_score is that of a refusal; what readers of X-Spam-Status expect is from where mail is spam
    required = answer.thresholds.get("add header") or answer.required_score
    told = answer.messages.get("smtp_message", "") if isinstance(answer.messages, dict) else ""
    return Scan(
        action=answer.action,
        score=SpamScore(answer.score, required, tuple(f"{name}({symbol.score:.2f})" for name, symbol in by_weight)),
        message=told if isinstance(told, str) else "",
        added=tuple(_added(answer.milter.get("add_headers")))[:_MAX_FIELDS],
        removed=tuple(_removed(answer.milter.get("remove_headers")))[:_MAX_FIELDS],
    )


def _added(given: object) -> list[tuple[str, str]]:
    """`{name: value}`, where a value is a text, `{"value": text, …}`, or a list of these."""
    found: list[tuple[str, str]] = []
    for name, values in given.items() if isinstance(given, Mapping) else ():
        for value in values if isinstance(values, list) else [values]:
            text = value.get("value") if isinstance(value, Mapping) else value
            if isinstance(text, str):
                found.append((str(name), text))
    return found


def _removed(given: object) -> list[tuple[str, int]]:
    """`{name: which}`, where which is a number or a list of numbers."""
    return [
        (str(name), value)
        for name, values in (given.items() if isinstance(given, Mapping) else ())
        for value in (values if isinstance(values, list) else [values])
        if isinstance(value, int)
    ]
