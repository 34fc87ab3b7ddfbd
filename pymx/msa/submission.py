"""Policy of the submission ports: mail from our own users (RFC 6409, RFC 8314).

Stages, in order:

    greet  the address is banned from logging in, or connects too often: 421 4.7.0
    AUTH   the directory's verdict: 535 wrong, 454 can't be checked now, or the address is banned
    MAIL   the account has sent all it may for now 451 4.7.1;
           login required 530; the sender must belong to the login 553 5.7.1; the null sender is nobody's, and what
           clients send read receipts with (RFC 8098 s. 3): it passes, and the From field is held to the login as ever
    RCPT   unknown here 550 5.1.1; mailbox full 452 4.2.2; directory down 451 4.3.0; elsewhere is always fine
    DATA   fix-up (see `fixup`, 554 5.6.0); every mailbox in From and Sender must belong to the login 553 5.7.1;
           DKIM signature of the From domain; more new recipients than the account may have for now 451 4.7.1, than any
           message may have 550 5.7.1; then `mta.dispatch`: mailboxes here at once, the rest queued

An account that was removed during a session can send nothing more (535). The first time in 24 hours that an account
meets its caps the postmaster gets a mail about it.

When a key that was never loaded can't be read, nothing is sent unsigned: 451, and the log says which file.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn, Protocol, TypeVar

from pymx import log
from pymx.accounts.account import (
    Account,
    AuthenticationBanned,
    AuthenticationFailed,
    AuthenticationUnavailable,
    DirectoryUnavailable,
    Resolution,
)
from pymx.accounts.limits import Refusal
from pymx.accounts.sending import Sending, SendingCapped
from pymx.config.model import Submission as Settings
from pymx.mail.address import Address
from pymx.mail.authors import AuthorError, authors
from pymx.mail.envelope import Envelope, Recipient
from pymx.mailauth.dkim.keys import KeyUnusable
from pymx.mailauth.dkim.sign import Signable
from pymx.msa.fixup import Fixed, FixUp, Refused
from pymx.mta.dispatch import Accepted, Target
from pymx.mta.inbound import Room, require_room
from pymx.proto.smtp import reply as replies
from pymx.proto.smtp.reply import Reply, SmtpError
from pymx.smtpd.handler import MailParameters, SessionFacts
from pymx.spool import Content

T = TypeVar("T")
_log = log.get("msa")

_INLINE_OCTETS = 65536  # larger messages are mended and signed in a thread
_THREADS = 2

_BAD_MESSAGE = Reply(554, "5.6.0", "Message not acceptable")


class Directory(Protocol):
    """What is used of `accounts.directory.Directory`."""

    async def account(self, email: str) -> Account | None: ...

    async def may_send_as(self, account: Account, address: Address) -> bool: ...


class Logins(Protocol):
    """What is used of `accounts.authenticate.Authenticator`."""

    async def login(self, login: str, password: str, *, peer_ip: str) -> Account: ...


class Door(Protocol):
    """What is used of `mta.dispatch.Dispatch`."""

    async def resolve(self, address: Address) -> Resolution: ...

    async def accept(self, envelope: Envelope, content: Content, targets: Sequence[Target]) -> Accepted: ...


class Signs(Protocol):
    """What is used of `mailauth.dkim.sign.Signer`."""

    def sign(self, domain: str, content: Signable) -> bytes: ...


class Greets(Protocol):
    """What is used of `accounts.limits.LoginLimits`."""

    def refuses(self, peer_ip: str) -> Refusal | None: ...


class Submission:
    """Handler of the submission listeners. `limits`, `sending` and `notify` (who is told of a cap) may be missing."""

    def __init__(
        self,
        directory: Directory,
        authenticator: Logins,
        mda: Room,
        dispatch: Door,
        signer: Signs,
        *,
        submission: Settings,
        hostname: str,
        limits: Greets | None = None,
        sending: Sending | None = None,
        notify: Callable[[Account, str], Awaitable[None]] | None = None,
    ) -> None:
        self._directory = directory
        self._authenticator = authenticator
        self.mda = mda
        self.dispatch = dispatch
        self._signer = signer
        self._fix_up = FixUp(strip_fields=submission.strip_fields, repair=submission.repair)
        self._hostname = hostname
        self.sent: Callable[[str, Sequence[str]], None] | None = None  # hears whom an account has written to
        self._limits = limits
        self._sending = sending
        self._notify = notify
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="msa")

    def close(self) -> None:
        """End the threads; those at work finish first."""
        self._threads.shutdown(wait=True)

    async def connected(self, session: SessionFacts) -> None:
        """Anybody may connect who is not banned; only a login gets further."""
        refusal = self._limits.refuses(session.peer_ip) if self._limits is not None else None
        if refusal is not None:
            raise SmtpError(replies.BANNED.with_text(refusal.text), refusal.reason, close=True)

    async def authenticate(self, session: SessionFacts, login: str, password: str) -> str:
        try:
            account = await self._authenticator.login(login, password, peer_ip=session.peer_ip)
        except AuthenticationFailed as e:
            raise SmtpError(replies.AUTH_FAILED, e.reason) from None
        except AuthenticationBanned as e:
            raise SmtpError(replies.AUTH_BANNED, e.reason) from None
        except AuthenticationUnavailable as e:
            raise SmtpError(replies.AUTH_UNAVAILABLE, e.reason) from None
        return account.email

    async def mail(
        self, session: SessionFacts, mail_from: Address | None, parameters: MailParameters
    ) -> SubmissionTransaction:
        if not session.account:
            raise SmtpError(replies.AUTH_REQUIRED)
        account = await self._account(session.account)
        if mail_from is not None:
            await self.require_own(account, mail_from)
        await self.check_sending(account)
        return SubmissionTransaction(self, session, account, mail_from, parameters)

    def closed(self, session: SessionFacts, counts: Mapping[str, int]) -> None:
        """Nothing is kept per connection; the engine writes its line."""

    async def _account(self, email: str) -> Account:
        try:
            account = await self._directory.account(email)
        except DirectoryUnavailable as e:
            raise SmtpError(replies.DIRECTORY_UNAVAILABLE, e.reason) from None
        if account is None:
            raise SmtpError(replies.AUTH_FAILED, f"{email} was removed after the login", close=True)
        return account

    async def require_own(self, account: Account, address: Address) -> None:
        """Raises SmtpError unless `address` is the account's to send from."""
        try:
            allowed = await self._directory.may_send_as(account, address)
        except DirectoryUnavailable as e:
            raise SmtpError(replies.DIRECTORY_UNAVAILABLE, e.reason) from None
        if not allowed:
            raise SmtpError(replies.SENDER_NOT_OWNED, f"{account.email} as {address}")

    async def check_sending(self, account: Account) -> None:
        """May the account send one more message? Raises SmtpError."""
        if self._sending is None:
            return
        try:
            await self._sending.check(account.email)
        except SendingCapped as e:
            await self._refuse_capped(account, e)

    async def count_sending(self, account: Account, recipients: Sequence[str]) -> None:
        """Count a message that is about to be accepted, and whom elsewhere it is for. Raises SmtpError."""
        if self._sending is None:
            return
        try:
            await self._sending.count(account.email, recipients)
        except SendingCapped as e:
            await self._refuse_capped(account, e)

    async def _refuse_capped(self, account: Account, capped: SendingCapped) -> NoReturn:
        _log.warning("sending_capped", account=account.email, reason=capped.text)
        if capped.tell and self._notify is not None:
            await self._notify(account, capped.text)
        answer = replies.SENDING_REFUSED if capped.for_good else replies.SENDING_CAPPED
        raise SmtpError(answer.with_text(capped.text[:1].upper() + capped.text[1:]), capped.text)

    async def prepare(self, content: Content, account: Account, mail_from: Address, *, smtputf8: bool) -> Fixed:
        """The message mended, checked and signed. Raises SmtpError."""
        small = content.in_memory and content.size_octets <= _INLINE_OCTETS
        fixed = await self._worked(small, self._fixed, content, mail_from, smtputf8)
        domain = await self._require_own_authors(account, fixed.content)
        signed = await self._worked(small, self._signed, fixed.content, domain)
        return Fixed(signed, fixed.is_eight_bit)

    async def _worked(self, small: bool, work: Callable[..., T], *values: object) -> T:
        """What `work` makes of a message, in a thread if that is large.

        A signature with a key of 2,048 bits takes 0.4 ms: on a busy server the way to a thread and back, each time
        waiting for the interpreter lock, takes longer and costs more.
        """
        if small:
            return work(*values)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *values)

    def _fixed(self, content: Content, mail_from: Address, smtputf8: bool) -> Fixed:
        # no secret, and os.urandom lets go of the GIL: getting it back took longer than all the rest of this
        message_id = f"{time.time_ns() // 1_000_000:x}.{random.getrandbits(64):016x}@{mail_from.ascii_domain}"
        try:
            return self._fix_up(content, mail_from=mail_from, now=time.time(), message_id=message_id, smtputf8=smtputf8)
        except Refused as e:
            raise SmtpError(_BAD_MESSAGE.with_text(str(e)), str(e)) from None

    async def _require_own_authors(self, account: Account, content: Content) -> str:
        """Every mailbox in From and Sender is the login's; the domain that signs. Raises SmtpError."""
        try:
            header_from, sender = authors(content.head)
        except AuthorError as e:
            raise SmtpError(_BAD_MESSAGE.with_text(str(e)), str(e)) from None
        for address in dict.fromkeys([*header_from, *sender]):
            await self.require_own(account, address)
        return header_from[0].domain

    def _signed(self, content: Content, domain: str) -> Content:
        try:
            return content.prepended(self._signer.sign(domain, content))
        except (KeyUnusable, OSError) as e:
            _log.error("dkim_key_unusable", reason=str(e))
            raise SmtpError(replies.TEMPORARY_FAILURE, f"not signed: {e}") from None


class SubmissionTransaction:
    """One message from a user."""

    __slots__ = ("_account", "_mail_from", "_parameters", "_session", "_submission", "_targets")

    def __init__(
        self,
        submission: Submission,
        session: SessionFacts,
        account: Account,
        mail_from: Address | None,
        parameters: MailParameters,
    ) -> None:
        self._submission = submission
        self._session = session
        self._account = account
        self._mail_from = mail_from
        self._parameters = parameters
        self._targets: list[Target] = []

    async def rcpt(self, recipient: Recipient) -> None:
        resolution = await self._submission.dispatch.resolve(recipient.address)
        await require_room(self._submission.mda, resolution, self._parameters.size or 0)
        self._targets.append(Target(recipient, resolution))

    def body(self, head: bytes) -> None:
        """Nobody: the message may be mended first."""

    async def data(self, content: Content) -> Reply:
        prepared = await self._submission.prepare(
            content,
            self._account,
            self._mail_from or Address(self._account.local_part, self._account.domain),
            smtputf8=self._parameters.smtputf8,
        )
        envelope = Envelope(
            self._mail_from,
            tuple(target.recipient for target in self._targets),
            self._session.origin(),
            # whatever the client said: it may not say so, and most 8-bit text has been encoded
            body="8BITMIME" if prepared.is_eight_bit else "7BIT",
            smtputf8=self._parameters.smtputf8,
            ret=self._parameters.ret,
            envid=self._parameters.envid,
            requiretls=self._parameters.requiretls,
        )
        elsewhere = [address.key for target in self._targets for address in target.resolution.external]
        await self._submission.count_sending(self._account, elsewhere)
        accepted = await self._submission.dispatch.accept(envelope, prepared.content, self._targets)
        if self._submission.sent is not None:
            self._submission.sent(self._account.email, [target.recipient.address.key for target in self._targets])
        return accepted.reply

    async def data_per_recipient(self, content: Content) -> list[Reply]:
        """Never asked for: submission is not LMTP."""
        raise SmtpError(replies.BAD_SEQUENCE, "per-recipient replies on a submission port")
