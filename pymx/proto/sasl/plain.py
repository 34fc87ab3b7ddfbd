"""SASL PLAIN (RFC 4616): authorization identity, NUL, login, NUL, password."""

from __future__ import annotations

from pymx.proto.sasl.mechanism import Challenge, Credentials, SaslError, decode_text


class Plain:
    """One PLAIN exchange."""

    __slots__ = ()

    def initial(self) -> Challenge:
        return Challenge(b"")

    def step(self, response: bytes) -> Challenge | Credentials:
        parts = response.split(b"\0")
        if len(parts) != 3:
            raise SaslError("PLAIN response has not three parts")
        authzid, login, password = (decode_text(part, "PLAIN response") for part in parts)
        if not login or not password:
            raise SaslError("PLAIN response has an empty login or password")  # RFC 4616 s. 2: 1*SAFE
        if authzid not in ("", login):
            raise SaslError("PLAIN response asks to act for another user")
        return Credentials(login, password, authzid)
