"""DATA and BDAT: reading a message and handing it over (RFC 5321 s. 4.1.1.4, RFC 3030, RFC 2033 s. 4.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pymx import metrics
from pymx.mail.envelope import Listener
from pymx.proto.smtp import reply
from pymx.proto.smtp.dotstuff import DotDecoder
from pymx.proto.smtp.reply import Reply, SmtpError
from pymx.smtpd.intake import Intake

if TYPE_CHECKING:
    from pymx.smtpd.session import Session

_REFUSED = "message_refused"
_MAX_CHUNK_DIGITS = 20


async def data(session: Session, argument: str) -> Reply | None:
    if argument:
        raise SmtpError(reply.SYNTAX_ERROR.with_text("DATA has no parameters"))
    if session.intake is not None:
        raise SmtpError(reply.BAD_SEQUENCE.with_text("DATA after BDAT"))  # RFC 3030 s. 2
    _need_recipients(session)
    session.say(reply.START_DATA)
    intake = _intake(session)
    decoder = DotDecoder()
    session.begin_data()
    while not decoder.done:
        intake.feed(decoder.feed(await session.read_some()))
        if intake.too_much:
            raise SmtpError(reply.MESSAGE_TOO_BIG, "far more data than max_message_octets", close=True)
    session.end_data(decoder.rest)
    await _hand_over(session, intake, complete_line=False)
    return None


async def bdat(session: Session, argument: str) -> Reply | None:
    size, last = _chunk(argument)
    limit = session.engine.max_message_octets
    if size > 2 * limit:
        raise SmtpError(reply.MESSAGE_TOO_BIG, f"BDAT {size}", close=True)
    out_of_order: SmtpError | None = None
    try:
        _need_recipients(session)
        session.intake = session.intake or _intake(session)
    except SmtpError as error:
        out_of_order = error
    await _read_chunk(session, size)
    if out_of_order is not None:
        raise out_of_order
    intake = session.intake
    assert intake is not None
    if last:
        session.intake = None
        await _hand_over(session, intake, complete_line=True)
    elif intake.too_much:
        raise SmtpError(reply.MESSAGE_TOO_BIG, "far more data than max_message_octets", close=True)
    elif intake.failure is not None:
        raise intake.failure
    else:
        return reply.OK.with_text(f"{size} octets received")
    return None


def _need_recipients(session: Session) -> None:
    if session.transaction is None:
        raise SmtpError(reply.BAD_SEQUENCE.with_text("MAIL comes first"))
    if not session.rcpt_to:
        raise SmtpError(reply.NO_RECIPIENTS_LMTP if session.engine.lmtp else reply.NO_VALID_RECIPIENTS)


def _intake(session: Session) -> Intake:
    engine = session.engine
    assert session.transaction is not None
    return Intake(
        engine.smtp,
        engine.spool_dir,
        engine.max_message_octets,
        repair_newlines=engine.repair_newlines,
        tap=session.transaction.body,
    )


def _chunk(argument: str) -> tuple[int, bool]:
    """The chunk's size and whether it is the last. A chunk of unknown size can't be skipped: the session ends."""
    words = argument.split()
    if (
        not 1 <= len(words) <= 2
        or not (words[0].isascii() and words[0].isdigit() and len(words[0]) <= _MAX_CHUNK_DIGITS)
        or (len(words) == 2 and words[1].upper() != "LAST")
    ):
        raise SmtpError(reply.SYNTAX_ERROR.with_text("Syntax: BDAT size [LAST]"), "malformed BDAT", close=True)
    return int(words[0]), len(words) == 2


async def _read_chunk(session: Session, size: int) -> None:
    """Read `size` octets into the message, or drop them when there is none."""
    session.begin_data()
    while size:
        piece = await session.read_some(size)
        size -= len(piece)
        if session.intake is not None:
            session.intake.feed(piece)
    session.end_data()


async def _hand_over(session: Session, intake: Intake, *, complete_line: bool) -> None:
    """Give the message to the transaction and say what came of it; the transaction is over either way."""
    transaction, rcpt_to = session.transaction, session.rcpt_to
    assert transaction is not None
    session.reset()
    lmtp = session.engine.listener is Listener.LMTP
    try:
        content = intake.finish(complete_line=complete_line)
        replies = await transaction.data_per_recipient(content) if lmtp else [await transaction.data(content)]
    except SmtpError as error:
        for _ in range(len(rcpt_to) - 1 if lmtp else 0):
            session.say(error.reply)
        session.refuse(error, _REFUSED, mail_from=session.mail_from, rcpt_to=",".join(rcpt_to))
        return
    except Exception:
        # RFC 2033 s. 4.2: one reply for each recipient, whatever happened
        for _ in range(len(rcpt_to) - 1 if lmtp else 0):
            session.say(reply.TEMPORARY_FAILURE)
        raise
    for answer in replies:
        session.say(answer)
    if any(answer.is_success for answer in replies):
        session.messages += 1
        session.errors = 0  # a peer that brings mail is not guessing addresses
        metrics.add("smtp_messages")
