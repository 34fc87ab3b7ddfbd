"""One command: found in the table, run, and answered with its tag whatever happens.

What goes wrong inside is logged once with its traceback and answered NO [SERVERBUG]. Only the end of the client
(`Disconnected`) and of its mailbox (`MailboxGone`) come out of here.
"""

from __future__ import annotations

from pymx.imapd.client import Client, Disconnected, MailboxGone
from pymx.imapd.commands import TABLE, Changes, Command
from pymx.imapd.telling import tell
from pymx.imapd.trouble import no_text, refusal
from pymx.ms.errors import Stopped, StoreError
from pymx.proto.imap.errors import Bad, No
from pymx.proto.imap.receiver import Request
from pymx.proto.imap.response import text_line


def reply_bad(client: Client, tag: bytes, text: str, code: str = "") -> None:
    client.write(b"%b BAD %b\r\n" % (tag, text_line(f"[{code}] {text}" if code else text)))
    client.errors += 1


async def perform(client: Client, request: Request) -> None:
    """Run a command and write its reply."""
    tag = client.tag = request.tag
    command = TABLE.get(request.name)
    if command is None:
        reply_bad(client, tag, f"Unknown command {request.name.decode()}")
        return
    if client.state not in command.states:
        reply_bad(client, tag, f"{request.name.decode()} is not possible in this state")
        return
    try:
        done = await _run(client, command, request)
    except Bad as error:
        reply_bad(client, tag, error.text, error.code)
    except No as error:
        client.write(b"%b %b\r\n" % (tag, no_text(error)))
        if client.owner is None:
            client.errors += 1
    except StoreError as error:
        if not isinstance(error, Stopped):
            _log_failure(client, request, error, reason=error.reason)
        client.write(b"%b %b\r\n" % (tag, no_text(refusal(error))))
    except (Disconnected, MailboxGone):
        raise
    except Exception as error:  # one command's failure must not take the session along
        client.server.log.exception(
            "imap_command_failed", account=client.login, command=request.name.decode(), error=repr(error)
        )
        client.write(b"%b NO [SERVERBUG] Internal error.\r\n" % tag)
    else:
        if client.owner is not None:
            client.errors = 0  # only those in a row count, but passwords are not to be tried for ever
        if done:
            client.write(b"%b %b\r\n" % (tag, done))


def _log_failure(client: Client, request: Request, error: StoreError, *, reason: str) -> None:
    client.server.log.warning(
        "imap_command_failed",
        account=client.login,
        command=request.name.decode(),
        error=type(error).__name__,
        reason=reason,
    )


async def _run(client: Client, command: Command, request: Request) -> bytes:
    if command.by_number and client.uidonly:
        raise Bad("Only the UID form is possible", code="UIDREQUIRED")  # RFC 9586 s. 3.1
    request.arguments.utf8, request.arguments.rev2 = client.utf8, client.rev2
    done = await command.act(client, request.arguments)
    if client.mailbox is not None and command.changes is not Changes.NONE:
        expunge = command.changes is not Changes.NO_EXPUNGE
        await tell(client, expunge=expunge, removed=command.changes is Changes.REMOVES)
    return done
