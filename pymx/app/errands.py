"""Messages that pymxctl asks the running server to send: the doctor's letters and probes."""

from __future__ import annotations

import base64
import binascii

from pymx.admin.control_client import ControlError
from pymx.app.rooms import Rooms
from pymx.mail.address import Address, AddressError, parse_address
from pymx.mail.envelope import Envelope, Listener, Origin, Recipient
from pymx.mailauth.dkim.keys import KeyUnusable
from pymx.mailauth.dkim.sign import Signer
from pymx.proto.smtp.reply import SmtpError
from pymx.spool import Content


class Errands:
    """The control action `send`: {"to", "message": base64, "mail_from": "", "source_address": ""}.

    `to` is an address, or "postmaster" for the server's own. With `mail_from` the message is signed for that domain;
    without, it is a notice that nobody is told of when it can't be delivered. Answers {"queue_id", "signed"}. The
    socket is for root and our own user, who could as well write into the queue.
    """

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._signer = Signer(rooms.site.data_dir / "dkim")

    async def send(self, arguments: dict[str, object]) -> object:
        try:
            content = Content.from_bytes(base64.b64decode(str(arguments["message"]), validate=True))
            to = str(arguments["to"])
            recipient = Address("postmaster", self._rooms.config.hostname) if to == "postmaster" else parse_address(to)
            given = str(arguments.get("mail_from", ""))
            mail_from = parse_address(given) if given else None
        except (KeyError, binascii.Error, AddressError) as e:
            raise ControlError(f"not a message to send: {e}") from None
        signature = b""
        if mail_from is not None:
            try:
                signature = self._signer.sign(mail_from.ascii_domain, content)
            except KeyUnusable as e:
                raise ControlError(str(e)) from None
        envelope = Envelope(
            mail_from,
            (Recipient(recipient, frozenset({"NEVER"})),),
            Origin(Listener.LOCAL),
            smtputf8=not recipient.is_ascii,
            source_address=str(arguments.get("source_address", "")),
        )
        try:
            accepted = await self._rooms.dispatch.submit(
                envelope, content.prepended(signature) if signature else content
            )
        except SmtpError as e:
            raise ControlError(e.reason or e.reply.text) from None
        return {"queue_id": accepted.queue_id, "signed": bool(signature)}
