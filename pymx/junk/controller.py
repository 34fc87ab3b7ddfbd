"""rspamd's controller: /learnspam and /learnham (https://docs.rspamd.com/developers/protocol).

What it answers, and what that means: 200 learned; 208, or an older one's 404 with these words, "already learned"; 204
too little text to learn from. None of these is an error. 401 and 403 mean a wrong password: the administrator has to
set it right, so the lesson waits as if rspamd were down. Other 4xx are refusals for good; anything else is temporary.

This module loads aiohttp: import it only when a controller is configured.
"""

from __future__ import annotations

from http import HTTPStatus

import aiohttp

from pymx.junk.http import open_session
from pymx.junk.learn import Kind, LessonRefused, TeacherUnavailable

_MAX_ANSWER_OCTETS = 65536
_PATHS = {Kind.SPAM: "/learnspam", Kind.HAM: "/learnham"}
_KNOWN = (HTTPStatus.ALREADY_REPORTED, HTTPStatus.NO_CONTENT)
_PASSWORD_WRONG = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_TRY_AGAIN = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)


class RspamdTeacher:
    """Teaches rspamd; what is only kept says nothing to it."""

    kinds = frozenset({Kind.SPAM, Kind.HAM})

    def __init__(self, url: str, *, password: str, timeout_s: float, max_octets: int) -> None:
        self._url = url.rstrip("/")
        self._password = password
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._max_octets = max_octets
        self._session: aiohttp.ClientSession | None = None

    async def teach(self, account: str, message: bytes, kind: Kind) -> bool:
        if len(message) > self._max_octets:
            raise LessonRefused(f"a message of more than max_octets = {self._max_octets}")
        # Deliver-To: whose statistics these are, where rspamd keeps them per user
        headers = {"Password": self._password} if self._password else {}
        headers["Deliver-To"] = account
        try:
            async with self._open().post(self._url + _PATHS[kind], data=message, headers=headers) as response:
                said = (await response.content.read(_MAX_ANSWER_OCTETS)).decode("utf-8", "replace")
                return _learned(response.status, said)
        except TimeoutError:
            raise TeacherUnavailable(f"rspamd's controller gave no answer within {self._timeout.total:g} s") from None
        except aiohttp.ClientError as e:
            raise TeacherUnavailable(f"rspamd's controller: {type(e).__name__}: {e}") from None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = open_session(connections=1, timeout=self._timeout)
        return self._session


def _learned(status: int, said: str) -> bool:
    """What the answer means. Raises TeacherUnavailable, LessonRefused."""
    if status == HTTPStatus.OK:
        return True
    if status in _KNOWN or "already learned" in said:
        return False
    text = f"rspamd's controller: {status} {said[:200]}".rstrip()
    if status in _PASSWORD_WRONG:
        raise TeacherUnavailable(f"{text}; is [rspamd] password_file its password?")
    if status in _TRY_AGAIN or not HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
        raise TeacherUnavailable(text)
    raise LessonRefused(text)
