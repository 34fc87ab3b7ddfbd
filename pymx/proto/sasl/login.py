"""SASL LOGIN (draft-murchison-sasl-login-00): two questions, two answers; obsolete, and what Outlook speaks."""

from __future__ import annotations

from pymx.proto.sasl.mechanism import Challenge, Credentials, SaslError, decode_text


class Login:
    """One LOGIN exchange. An initial response is the user name."""

    __slots__ = ("_login",)

    def __init__(self) -> None:
        self._login = ""

    def initial(self) -> Challenge:
        return Challenge(b"Username:")

    def step(self, response: bytes) -> Challenge | Credentials:
        if not response:
            raise SaslError("LOGIN response is empty")
        if not self._login:
            self._login = decode_text(response, "LOGIN user name")
            return Challenge(b"Password:")
        return Credentials(self._login, decode_text(response, "LOGIN password"))
