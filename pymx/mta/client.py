"""An SMTP connection to another server, from the greeting to the reply after the final dot (RFC 5321, 3207, 2920).

Built on aiosmtplib's protocol (`mta.wire`). MAIL, RCPT … DATA go out in one write where PIPELINING is offered. Content
goes out in pieces as it is: dots stuffed, nothing else touched, because it is signed. 8-bit text for a server
that can't take it is the caller's business (`mta.downgrade`).

Every wait has a timeout. Everything that goes wrong is a `Broken` with its phase, or a reply per recipient; what
follows from it is `mta.trouble`'s business. A connection that was `Broken` is closed.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import ssl
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import islice
from typing import cast

from aiosmtplib.errors import SMTPException, SMTPResponseException
from aiosmtplib.esmtp import parse_esmtp_extensions
from aiosmtplib.protocol import COMMAND_INJECTION_REGEX
from aiosmtplib.response import SMTPResponse

from pymx.config.model import Outbound
from pymx.config.secret import SecretUnavailable, read_secret
from pymx.mail.address import Address
from pymx.mail.envelope import Envelope, Recipient
from pymx.mta.broken import Broken, broken, remote
from pymx.mta.contexts import Contexts
from pymx.mta.dane import DaneFailure, verify
from pymx.mta.mx import Host
from pymx.mta.route import Hop, TlsMode
from pymx.mta.tls_policy import Demand, How
from pymx.mta.trouble import Event, Phase, Remote
from pymx.mta.wire import Outgoing, Wire
from pymx.proto.smtp.xtext import encode_xtext
from pymx.queue.destination import routing_domain
from pymx.spool import Content

MAX_RECIPIENTS = 100  # of one transaction: what every server must take (RFC 5321 s. 4.5.3.1.8)
# Who does not answer the first command on a kept connection so long, or for so many times as long as MAIL ever took
# there, is gone: a new connection costs little, and waiting keeps the message.
_KEPT_REPLY_S = 3.0
_KEPT_REPLY_MAX_S = 20.0
_KEPT_PATIENCE = 5
_MAX_SIZE_DIGITS = 20  # RFC 1870 s. 3
_PIECES_PER_HOP = 4
_ONE_WRITE_OCTETS = 65_536
_DER = 2  # _ssl.ENCODING_DER
# What the log and `queue show` say behind the cipher: who vouches for the server
_PROOF = {How.DANE: " dane", How.VERIFIED: " verified", How.IMPLICIT: " verified"}


class Connection:
    """A session with one server, ready for transactions."""

    def __init__(self, wire: Wire, host: Host, demand: Demand, outbound: Outbound) -> None:
        self._wire = wire
        self.host = host
        self.demand = demand
        self._outbound = outbound
        self._extensions: dict[str, str] = {}
        self._needs_reset = False
        self._slowest_mail_s = 0.0
        self._unproven = False  # it was kept, and nothing was heard of it since
        self.idle_since = 0.0  # the loop's time when it was last kept
        self.tls = ""
        self.sent = 0

    @property
    def usable(self) -> bool:
        return self._wire.idle

    def was_kept(self) -> None:
        """It is about to be used again, and may have ended without a word: a firewall has forgotten it, the host is
        off, the program hangs."""
        self._unproven = True

    @property
    def passes_dsn_on(self) -> bool:
        return "dsn" in self._extensions

    @property
    def takes_utf8(self) -> bool:
        return "smtputf8" in self._extensions

    @property
    def takes_8bit(self) -> bool:
        return "8bitmime" in self._extensions

    @property
    def source(self) -> str:
        """The local address."""
        transport = self._wire.transport
        name = transport.get_extra_info("sockname") if transport is not None else None
        return str(name[0]) if isinstance(name, tuple) else ""

    # -- opening ----------------------------------------------------------------------------------------------------

    @classmethod
    async def open(
        cls, host: Host, hop: Hop, outbound: Outbound, hostname: str, contexts: Contexts, demand: Demand,
        source: str = "",
    ) -> Connection:  # fmt: skip
        """Connect from `source`, greet, start TLS as `demand` wants it, log in as the hop does. Raises Broken."""
        loop = asyncio.get_running_loop()
        implicit = demand.how is How.IMPLICIT
        try:
            context = contexts.verified(demand.ca_file) if implicit else None
            async with asyncio.timeout(outbound.connect_timeout_s):
                _, wire = await loop.create_connection(
                    lambda: Wire(loop), host.address, hop.port, ssl=context,
                    server_hostname=demand.name if implicit else None, local_addr=(source, 0) if source else None,
                )  # fmt: skip
        except (OSError, TimeoutError) as e:
            raise broken(Phase.STARTTLS if isinstance(e, ssl.SSLError) else Phase.CONNECT, e) from e
        connection = cls(wire, host, demand, outbound)
        try:
            await connection._greet(hop, hostname, contexts)
        except Broken as e:
            e.source = connection.source
            if e.what in (Event.NOT_OFFERED, Event.NO_REQUIRETLS):
                connection.close()  # nothing is wrong with the connection but that it is of no use
            else:
                connection.abort()
            raise
        except BaseException:
            connection.abort()
            raise
        return connection

    async def _greet(self, hop: Hop, hostname: str, contexts: Contexts) -> None:
        how = self.demand.how
        self._note_tls()
        greeting = await self._reply(Phase.GREETING, self._outbound.command_timeout_s)
        if greeting.code != 220:
            raise Broken(Phase.GREETING, greeting)
        await self._hello(hostname)
        if how not in (How.PLAIN, How.IMPLICIT):
            if "starttls" in self._extensions:
                await self._start_tls(contexts)
                await self._hello(hostname)
            elif how is not How.OPPORTUNISTIC:
                failed = Broken(Phase.STARTTLS, Event.NOT_OFFERED, "STARTTLS is required but not offered")
                failed.tls_result = "starttls-not-supported"
                raise failed
        if self.demand.requiretls and "requiretls" not in self._extensions:
            raise Broken(Phase.EHLO, Event.NO_REQUIRETLS, "the server does not offer REQUIRETLS")
        if hop.username:
            await self._log_in(hop)

    async def _hello(self, hostname: str) -> None:
        self._extensions = {}
        reply, raw = await self._ask(Phase.EHLO, f"EHLO {hostname}")
        if reply.code == 250:
            self._extensions, _ = parse_esmtp_extensions(raw)
            return
        if reply.code >= 500:  # RFC 5321 s. 4.1.4: fall back to HELO
            hello, _ = await self._ask(Phase.EHLO, f"HELO {hostname}")
            if hello.code == 250:
                return
        raise Broken(Phase.EHLO, reply)

    async def _start_tls(self, contexts: Contexts) -> None:
        demand = self.demand
        name = demand.name or (None if self.host.name.startswith("[") else self.host.name)
        try:
            verified = demand.how is How.VERIFIED
            context = contexts.verified(demand.ca_file) if verified else contexts.opportunistic()
            await self._wire.start_tls(context, server_hostname=name, timeout=self._outbound.connect_timeout_s)
        except SMTPResponseException as e:
            failed = broken(Phase.STARTTLS, e)
            failed.tls_result = "starttls-not-supported"
            raise failed from e
        except (OSError, TimeoutError, SMTPException) as e:
            raise broken(Phase.STARTTLS, e) from e
        if demand.how is How.DANE:
            self._check_tlsa()
        # RFC 3207 s. 4.2: whatever was said before TLS counts for nothing, and nothing may be said unasked
        self._wire.replies.clear()
        self._note_tls()

    def _check_tlsa(self) -> None:
        """Hold the server's chain against the TLSA records, before anything is said through it."""
        try:
            verify(self._chain(), self.demand.tlsa, self.demand.names, dt.datetime.now(dt.UTC))
        except DaneFailure as e:
            failed = Broken(Phase.STARTTLS, Event.BAD_CERTIFICATE, f"DANE: {e}")
            failed.tls_result = e.result
            raise failed from None

    def _chain(self) -> list[bytes]:
        """The certificates as the server sent them, DER. Python has a public way only from 3.13 on."""
        transport = self._wire.transport
        session = transport.get_extra_info("ssl_object") if transport is not None else None
        if session is None:
            return []
        if sys.version_info >= (3, 13):
            return list(session.get_unverified_chain())
        sent = session._sslobj.get_unverified_chain()
        return [certificate.public_bytes(_DER) for certificate in sent or ()]

    def _note_tls(self) -> None:
        transport = self._wire.transport
        session = transport.get_extra_info("ssl_object") if transport is not None else None
        if session is not None:
            cipher = session.cipher()
            self.tls = f"{session.version()} {cipher[0] if cipher else ''}".rstrip() + _PROOF.get(self.demand.how, "")

    async def _log_in(self, hop: Hop) -> None:
        """AUTH PLAIN or LOGIN (RFC 4954). A password goes in the clear only where the setting says tls = "none"."""
        if not self.tls and hop.tls is not TlsMode.NONE:
            raise Broken(Phase.AUTH, Event.NOT_OFFERED, "no TLS, so no login")
        offered = self._extensions.get("auth", "").upper().split()
        loop = asyncio.get_running_loop()
        try:
            password = await loop.run_in_executor(None, _password, hop)
        except SecretUnavailable as e:
            raise Broken(Phase.AUTH, Event.NOT_OFFERED, f"the password can't be read: {e}") from e
        if "PLAIN" in offered:
            reply, _ = await self._ask(Phase.AUTH, "AUTH PLAIN " + _base64(f"\0{hop.username}\0{password}"))
        elif "LOGIN" in offered:
            reply, _ = await self._ask(Phase.AUTH, "AUTH LOGIN")
            for answer in (hop.username, password):
                if reply.code == 334:
                    reply, _ = await self._ask(Phase.AUTH, _base64(answer))
        else:
            raise Broken(Phase.AUTH, Event.NOT_OFFERED, f"neither PLAIN nor LOGIN among {' '.join(offered) or 'none'}")
        if reply.code != 235:
            raise Broken(Phase.AUTH, reply)

    # -- a transaction ----------------------------------------------------------------------------------------------

    async def send(
        self, envelope: Envelope, recipients: Sequence[Recipient], content: Content
    ) -> list[tuple[Phase, Remote]]:
        """One transaction; the decisive reply for each recipient, and in which phase it came.

        A recipient has the message when its phase is DOT and the code 2xx. Raises Broken, and BareNewline when the
        content can't be sent.
        """
        refusal = self._impossible(envelope, recipients, content)
        if refusal is not None:
            return [(Phase.MAIL, refusal)] * len(recipients)
        decided: dict[int, tuple[Phase, Remote]] = {}
        try:
            accepted = await self._envelope(envelope, recipients, content, decided)
            if accepted:
                reply = await self._content(content)
                self._needs_reset = False
                decided.update((n, (Phase.DOT, reply)) for n in accepted)
        except Broken as e:
            e.refused = decided
            self.abort()
            raise
        except BaseException:
            self.abort()
            raise
        self.sent += 1
        return [decided[n] for n in range(len(recipients))]

    def _impossible(self, envelope: Envelope, recipients: Sequence[Recipient], content: Content) -> Remote | None:
        """Why this server can't have the message, seen before MAIL; in the words that it would use."""
        limit = self._extensions.get("size", "")
        if (
            limit.isascii()
            and limit.isdigit()
            and len(limit) <= _MAX_SIZE_DIGITS
            and 0 < int(limit) < content.size_octets
        ):
            return Remote(552, f"5.3.4 Message of {content.size_octets} octets is over the limit of {limit}")
        if _needs_smtputf8(envelope, recipients, content) and not self.takes_utf8:
            return Remote(553, "5.6.7 The address or header is not ASCII, and the server does not offer SMTPUTF8")
        return None

    async def _envelope(
        self, envelope: Envelope, recipients: Sequence[Recipient], content: Content,
        decided: dict[int, tuple[Phase, Remote]],
    ) -> list[int]:  # fmt: skip
        """MAIL, RCPT, DATA; the recipients for which content is awaited now."""
        utf8 = _needs_smtputf8(envelope, recipients, content)
        lines = [(Phase.MAIL, self._mail_command(envelope, content, utf8=utf8))]
        lines += [(Phase.RCPT, self._rcpt_command(r, utf8=utf8)) for r in recipients]
        lines.append((Phase.DATA, "DATA"))
        pipelining = "pipelining" in self._extensions
        if self._needs_reset:
            self._write(Phase.MAIL, ["RSET"])
            await self._reply_after(Phase.MAIL, None)
        self._needs_reset = True
        if pipelining:
            self._write(Phase.MAIL, [line for _, line in lines])
        mail: Remote | None = None
        accepted: list[int] = []
        reply: Remote | None = None
        before: tuple[Phase, Remote] | None = None
        for place, (phase, line) in enumerate(lines):
            if not pipelining:
                if (mail is not None and not _is_success(mail)) or (phase is Phase.DATA and not accepted):
                    break
                self._write(phase, [line])
            reply = await self._reply_after(phase, before)
            before = (phase, reply)
            if phase is Phase.MAIL:
                mail = reply
                if mail.code == 421:
                    raise Broken(phase, mail)  # RFC 5321 s. 3.8: it hangs up after this
            elif phase is Phase.RCPT:
                assert mail is not None
                if not _is_success(mail):
                    continue
                if _is_success(reply):
                    accepted.append(place - 1)
                else:
                    decided[place - 1] = (Phase.RCPT, reply)
        assert mail is not None
        assert reply is not None
        if not _is_success(mail):
            decided.update((n, (Phase.MAIL, mail)) for n in range(len(recipients)))
        elif accepted and reply.code == 354:
            return accepted
        else:
            decided.update((n, (Phase.DATA, reply)) for n in accepted)
        if pipelining and reply.code == 354:
            # RFC 2920 s. 3.1: the server waits for content although it has no recipient; it gets an empty message
            await self._ask(Phase.DATA, ".")
        return []

    async def _reply_after(self, phase: Phase, before: tuple[Phase, Remote] | None) -> Remote:
        """The next reply. When the connection is gone after a 421, that is what the server had to say."""
        timeout_s: float = self._outbound.command_timeout_s
        if self._unproven:
            self._unproven = False
            usual_s = max(_KEPT_REPLY_S, min(_KEPT_PATIENCE * self._slowest_mail_s, _KEPT_REPLY_MAX_S))
            timeout_s = min(timeout_s, usual_s)
        try:
            if phase is not Phase.MAIL:
                return await self._reply(phase, timeout_s)
            asked = time.monotonic()
            reply = await self._reply(phase, timeout_s)
            self._slowest_mail_s = max(self._slowest_mail_s, time.monotonic() - asked)
            return reply
        except Broken as e:
            if before is not None and before[1].code == 421 and e.what is Event.LOST:
                raise Broken(*before) from e
            raise

    async def _content(self, content: Content) -> Remote:
        outgoing = Outgoing()
        phase = Phase.CONTENT
        try:
            if content.in_memory and content.size_octets <= _ONE_WRITE_OCTETS:
                last = outgoing.feed(content.read()) + outgoing.finish()
            else:
                async for piece in _pieces(content):
                    self._wire.write(outgoing.feed(piece))
                    if self._wire.writing_paused:
                        async with asyncio.timeout(self._outbound.command_timeout_s):
                            await self._wire.drained()
                last = outgoing.finish()
            phase = Phase.DOT
            self._wire.write(last)
        except (ConnectionError, TimeoutError, SMTPException) as e:
            if phase is Phase.CONTENT and self._wire.replies:
                # The server said why before it hung up.
                raise Broken(phase, remote(self._wire.replies[0])) from e
            raise broken(Phase.CONTENT, e) from e
        return await self._reply(Phase.DOT, self._outbound.data_timeout_s)

    def _mail_command(self, envelope: Envelope, content: Content, *, utf8: bool) -> str:
        words = [f"MAIL FROM:<{_path(envelope.mail_from, utf8=utf8)}>"]
        if "size" in self._extensions:
            words.append(f"SIZE={content.size_octets}")
        if envelope.body != "7BIT" and "8bitmime" in self._extensions:
            words.append("BODY=8BITMIME")
        if utf8:
            words.append("SMTPUTF8")
        if self.demand.requiretls:
            words.append("REQUIRETLS")
        if self.passes_dsn_on:
            if envelope.ret:
                words.append(f"RET={envelope.ret}")
            if envelope.envid:
                words.append(f"ENVID={encode_xtext(envelope.envid)}")
        return " ".join(words)

    def _rcpt_command(self, recipient: Recipient, *, utf8: bool) -> str:
        words = [f"RCPT TO:<{_path(recipient.address, utf8=utf8)}>"]
        if self.passes_dsn_on:
            if recipient.notify:
                words.append("NOTIFY=" + ",".join(sorted(recipient.notify)))
            if recipient.orcpt and recipient.orcpt.isascii():
                kind, _, address = recipient.orcpt.partition(";")
                words.append(f"ORCPT={kind};{encode_xtext(address)}")
        return " ".join(words)

    # -- the wire ---------------------------------------------------------------------------------------------------

    def _write(self, phase: Phase, lines: Sequence[str]) -> None:
        data = [line.encode("utf-8") for line in lines]
        for line in data:
            if COMMAND_INJECTION_REGEX.search(line):
                raise Broken(phase, Remote(553, "5.1.3 Control character in an address"))
        try:
            self._wire.write(b"\r\n".join(data) + b"\r\n")
        except (OSError, SMTPException) as e:
            raise broken(phase, e) from e

    async def _ask(self, phase: Phase, line: str) -> tuple[Remote, str]:
        """One command, its reply, and the reply's text line by line."""
        self._write(phase, [line])
        raw = await self._raw_reply(phase, self._outbound.command_timeout_s)
        return remote(raw), raw.message

    async def _reply(self, phase: Phase, timeout_s: float) -> Remote:
        return remote(await self._raw_reply(phase, timeout_s))

    async def _raw_reply(self, phase: Phase, timeout_s: float) -> SMTPResponse:
        if self._wire.replies:
            return self._wire.replies.popleft()
        try:
            return await self._wire.read_response(timeout_s)
        except (OSError, TimeoutError, SMTPException) as e:
            raise broken(phase, e) from e

    def close(self) -> None:
        """Say QUIT and hang up; nobody waits for the answer."""
        try:
            self._wire.write(b"QUIT\r\n")
        except (OSError, SMTPException):
            pass
        if self._wire.transport is not None:
            self._wire.transport.close()

    async def closed(self) -> None:
        """Wait until the connection is gone."""
        await self._wire.lost.wait()

    def abort(self) -> None:
        """Hang up at once."""
        if self._wire.transport is not None:
            # uvloop's transports are no instances of asyncio's classes
            cast(asyncio.WriteTransport, self._wire.transport).abort()


async def _pieces(content: Content) -> AsyncIterator[bytes]:
    """The content; pieces that lie in a file are read in a thread, several at a time."""
    if content.in_memory:
        for piece in content.chunks():
            yield piece
        return
    loop = asyncio.get_running_loop()
    source: Iterator[bytes] = content.chunks()
    while pieces := await loop.run_in_executor(None, lambda: list(islice(source, _PIECES_PER_HOP))):
        for piece in pieces:
            yield piece


def _path(address: Address | None, *, utf8: bool) -> str:
    if address is None:
        return ""
    if utf8 or address.is_ascii:
        return str(address)
    return str(Address(address.local_part, routing_domain(address)))


def has_ascii_form(address: Address) -> bool:
    """Whether a server without SMTPUTF8 can be given the address."""
    return address.local_part.isascii() and routing_domain(address).isascii()


def _needs_smtputf8(envelope: Envelope, recipients: Sequence[Recipient], content: Content) -> bool:
    """Whether the message can't be had without (RFC 6531 s. 3.4). A domain can be written in A-labels."""
    addresses = [r.address for r in recipients]
    if envelope.mail_from is not None:
        addresses.append(envelope.mail_from)
    if not all(has_ascii_form(address) for address in addresses):
        return True
    return envelope.smtputf8 and not content.head.isascii()


def _is_success(reply: Remote) -> bool:
    return 200 <= reply.code < 300


def _base64(text: str) -> str:
    return base64.b64encode(text.encode("utf-8")).decode("ascii")


def _password(hop: Hop) -> str:
    """Raises SecretUnavailable."""
    return read_secret("[outbound] route:", "password", hop.password_file, hop.password_credential)
