"""STARTTLS, LOGIN and AUTHENTICATE (RFC 3501 s. 6.2; SASL-IR RFC 4959).

An unknown user and a wrong password get the same answer; that they also take the same time is the authenticator's work.
"""

from __future__ import annotations

import base64
import binascii

from pymx.accounts.account import AuthenticationBanned, AuthenticationFailed, AuthenticationUnavailable
from pymx.accounts.limits import BANNED
from pymx.imapd.capability import offered_to
from pymx.imapd.client import Client
from pymx.ms.owner import Owner
from pymx.proto.imap.commands.login import Authenticate, Login
from pymx.proto.imap.commands.plain import Nothing
from pymx.proto.imap.errors import Bad, No
from pymx.proto.sasl.mechanism import Challenge, Credentials, SaslError
from pymx.proto.sasl.mechanisms import MECHANISMS


async def starttls(client: Client, arguments: Nothing) -> bytes:
    if client.secure or client.server.tls is None:
        raise Bad("TLS is not possible now")
    client.write(client.tag + b" OK Begin TLS negotiation now.\r\n")
    await client.wire.start_tls()
    return b""


async def login(client: Client, arguments: Login) -> bytes:
    _check_privacy(client)
    return await _log_in(client, arguments.username, arguments.password)


async def authenticate(client: Client, arguments: Authenticate) -> bytes:
    _check_privacy(client)
    make = MECHANISMS.get(arguments.mechanism)
    if make is None:
        raise No("Unknown mechanism", code="CANNOT")
    mechanism = make()
    try:
        if arguments.initial is None:
            step: Challenge | Credentials = mechanism.initial()
        else:
            step = mechanism.step(_decoded(arguments.initial))
        while isinstance(step, Challenge):
            client.write(b"+ %b\r\n" % base64.b64encode(step.data))
            line = await client.wire.read_line()
            if line == b"*":
                raise Bad("Authentication was given up")  # RFC 3501 s. 6.2.2
            step = mechanism.step(_decoded(line))
    except SaslError as error:
        raise Bad(str(error)) from None
    return await _log_in(client, step.login, step.password)


def _decoded(text: bytes) -> bytes:
    if text == b"=":  # RFC 4959 s. 3: an empty initial response
        return b""
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise Bad("Invalid base64") from None


def _check_privacy(client: Client) -> None:
    if not client.server.login_allowed(client.peer_ip, secure=client.secure):
        raise No("Passwords are taken over TLS only", code="PRIVACYREQUIRED")


async def _log_in(client: Client, username: str, password: str) -> bytes:
    server = client.server
    try:
        account = await server.authenticator.login(username, password, peer_ip=client.peer_ip)
    except AuthenticationFailed:
        raise No("Authentication failed.", code="AUTHENTICATIONFAILED") from None
    except AuthenticationBanned:
        # not AUTHENTICATIONFAILED: a client would ask its user for another password (RFC 5530 s. 3)
        raise No(f"{BANNED}.", code="UNAVAILABLE") from None
    except AuthenticationUnavailable:
        raise No("Logins can't be checked now.", code="UNAVAILABLE") from None
    owner = Owner(account.domain, account.local_part, account.quota_octets, account.quota_messages)
    client.login = account.email
    await server.store.prepare(owner)
    client.owner = owner
    return b"OK [CAPABILITY %b] Logged in." % offered_to(client.client_id, server.capabilities)
