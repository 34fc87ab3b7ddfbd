"""The command table: for each command its parser, what it does, in which states, and what it may disturb.

A new command is a file in `pymx.proto.imap.commands` (its arguments), one here (its effect) and a row below.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from pymx.imapd.client import Client, State
from pymx.imapd.commands import (
    acl,
    append,
    compress,
    copy,
    expunge,
    fetch,
    folder,
    identity,
    idle,
    list,
    login,
    metadata,
    notify,
    quota,
    replace,
    search,
    select,
    session,
    sort,
    status,
    store,
    thread,
)
from pymx.proto.imap.commands import acl as acl_syntax
from pymx.proto.imap.commands import append as append_syntax
from pymx.proto.imap.commands import compress as compress_syntax
from pymx.proto.imap.commands import copy as copy_syntax
from pymx.proto.imap.commands import expunge as expunge_syntax
from pymx.proto.imap.commands import fetch as fetch_syntax
from pymx.proto.imap.commands import folder as folder_syntax
from pymx.proto.imap.commands import identity as identity_syntax
from pymx.proto.imap.commands import list as list_syntax
from pymx.proto.imap.commands import login as login_syntax
from pymx.proto.imap.commands import metadata as metadata_syntax
from pymx.proto.imap.commands import notify as notify_syntax
from pymx.proto.imap.commands import quota as quota_syntax
from pymx.proto.imap.commands import replace as replace_syntax
from pymx.proto.imap.commands import search as search_syntax
from pymx.proto.imap.commands import select as select_syntax
from pymx.proto.imap.commands import sort as sort_syntax
from pymx.proto.imap.commands import status as status_syntax
from pymx.proto.imap.commands import store as store_syntax
from pymx.proto.imap.commands import thread as thread_syntax
from pymx.proto.imap.commands.plain import parse_nothing
from pymx.proto.imap.lexer import Cursor

Arguments = TypeVar("Arguments")


class Changes(enum.Enum):
    """What of the mailbox's changes a command tells before its tagged reply."""

    NONE = enum.auto()
    # RFC 3501 s. 7.4.1: no EXPUNGE in answer to FETCH, STORE or SEARCH
    NO_EXPUNGE = enum.auto()
    ALL = enum.auto()
    # All of them, also to a client that wants to hear of none (NOTIFY), since the command removes messages
    REMOVES = enum.auto()


@dataclass(frozen=True, slots=True)
class Command:
    """A row of the table. `act` parses and runs, and gives the tagged reply without its tag ("" = none yet)."""

    act: Callable[[Client, Cursor], Awaitable[bytes]]
    states: State
    changes: Changes
    by_number: bool = False  # it speaks of sequence numbers, which UIDONLY (RFC 9586) forbids


def _row(
    parse: Callable[[Cursor], Arguments],
    run: Callable[[Client, Arguments], Awaitable[bytes]],
    states: State,
    changes: Changes = Changes.NONE,
    *,
    by_number: bool = False,
) -> Command:
    async def act(client: Client, cursor: Cursor) -> bytes:
        return await run(client, parse(cursor))

    return Command(act, states, changes, by_number)


_ANY = State.NOT_AUTHENTICATED | State.AUTHENTICATED | State.SELECTED
_BEFORE = State.NOT_AUTHENTICATED
_AFTER = State.AUTHENTICATED | State.SELECTED
_SELECTED = State.SELECTED

TABLE: Mapping[bytes, Command] = {
    # any state
    b"CAPABILITY": _row(parse_nothing, session.capability, _ANY),
    b"NOOP": _row(parse_nothing, session.noop, _ANY, Changes.ALL),
    b"LOGOUT": _row(parse_nothing, session.logout, _ANY),
    b"ID": _row(identity_syntax.parse_id, identity.identify, _ANY),
    # before login
    b"STARTTLS": _row(parse_nothing, login.starttls, _BEFORE),
    b"LOGIN": _row(login_syntax.parse_login, login.login, _BEFORE),
    b"AUTHENTICATE": _row(login_syntax.parse_authenticate, login.authenticate, _BEFORE),
    # after login
    b"ENABLE": _row(identity_syntax.parse_enable, identity.enable, _AFTER),
    b"COMPRESS": _row(compress_syntax.parse_compress, compress.compress, _AFTER),
    b"NAMESPACE": _row(parse_nothing, session.namespace, _AFTER),
    b"SELECT": _row(select_syntax.parse_select, select.select, _AFTER),
    b"EXAMINE": _row(select_syntax.parse_examine, select.select, _AFTER),
    b"CREATE": _row(folder_syntax.parse_create, folder.create, _AFTER, Changes.ALL),
    b"DELETE": _row(folder_syntax.parse_mailbox, folder.delete, _AFTER, Changes.ALL),
    b"RENAME": _row(folder_syntax.parse_rename, folder.rename, _AFTER, Changes.ALL),
    b"SUBSCRIBE": _row(folder_syntax.parse_mailbox, folder.subscribe, _AFTER, Changes.ALL),
    b"UNSUBSCRIBE": _row(folder_syntax.parse_mailbox, folder.unsubscribe, _AFTER, Changes.ALL),
    b"LIST": _row(list_syntax.parse_list, list.list_mailboxes, _AFTER, Changes.ALL),
    b"LSUB": _row(list_syntax.parse_lsub, list.lsub, _AFTER, Changes.ALL),
    b"STATUS": _row(status_syntax.parse_status, status.status, _AFTER, Changes.ALL),
    b"GETQUOTA": _row(quota_syntax.parse_getquota, quota.getquota, _AFTER, Changes.ALL),
    b"SETQUOTA": _row(quota_syntax.parse_setquota, quota.setquota, _AFTER),
    b"GETQUOTAROOT": _row(folder_syntax.parse_mailbox, quota.getquotaroot, _AFTER, Changes.ALL),
    b"GETMETADATA": _row(metadata_syntax.parse_getmetadata, metadata.getmetadata, _AFTER, Changes.ALL),
    b"SETMETADATA": _row(metadata_syntax.parse_setmetadata, metadata.setmetadata, _AFTER, Changes.ALL),
    b"MYRIGHTS": _row(folder_syntax.parse_mailbox, acl.myrights, _AFTER, Changes.ALL),
    b"GETACL": _row(folder_syntax.parse_mailbox, acl.refuse, _AFTER, Changes.ALL),
    b"SETACL": _row(acl_syntax.parse_setacl, acl.refuse, _AFTER, Changes.ALL),
    b"DELETEACL": _row(acl_syntax.parse_about_identifier, acl.refuse, _AFTER, Changes.ALL),
    b"LISTRIGHTS": _row(acl_syntax.parse_about_identifier, acl.refuse, _AFTER, Changes.ALL),
    b"APPEND": _row(append_syntax.parse_append, append.append, _AFTER, Changes.ALL),
    b"NOTIFY": _row(notify_syntax.parse_notify, notify.notify, _AFTER, Changes.ALL),
    b"IDLE": _row(parse_nothing, idle.idle, _AFTER),
    # in a mailbox
    b"CHECK": _row(parse_nothing, session.check, _SELECTED, Changes.ALL),
    b"CLOSE": _row(parse_nothing, select.close, _SELECTED),
    b"UNSELECT": _row(parse_nothing, select.unselect, _SELECTED),
    b"EXPUNGE": _row(expunge_syntax.parse_expunge, expunge.expunge, _SELECTED, Changes.REMOVES),
    b"UID EXPUNGE": _row(expunge_syntax.parse_uid_expunge, expunge.expunge, _SELECTED, Changes.REMOVES),
    b"SEARCH": _row(search_syntax.parse_search, search.search, _SELECTED, Changes.NO_EXPUNGE, by_number=True),
    b"UID SEARCH": _row(search_syntax.parse_uid_search, search.search, _SELECTED, Changes.ALL),
    # RFC 5256 s. 3: what is asked of SEARCH about EXPUNGE is asked of these too
    b"SORT": _row(sort_syntax.parse_sort, sort.sort, _SELECTED, Changes.NO_EXPUNGE, by_number=True),
    b"UID SORT": _row(sort_syntax.parse_uid_sort, sort.sort, _SELECTED, Changes.ALL),
    b"THREAD": _row(thread_syntax.parse_thread, thread.thread, _SELECTED, Changes.NO_EXPUNGE, by_number=True),
    b"UID THREAD": _row(thread_syntax.parse_uid_thread, thread.thread, _SELECTED, Changes.ALL),
    b"FETCH": _row(fetch_syntax.parse_fetch, fetch.fetch, _SELECTED, Changes.NO_EXPUNGE, by_number=True),
    b"UID FETCH": _row(fetch_syntax.parse_uid_fetch, fetch.fetch, _SELECTED, Changes.ALL),
    b"STORE": _row(store_syntax.parse_store, store.store, _SELECTED, Changes.NO_EXPUNGE, by_number=True),
    b"UID STORE": _row(store_syntax.parse_uid_store, store.store, _SELECTED, Changes.ALL),
    b"REPLACE": _row(replace_syntax.parse_replace, replace.replace, _SELECTED, Changes.REMOVES, by_number=True),
    b"UID REPLACE": _row(replace_syntax.parse_uid_replace, replace.replace, _SELECTED, Changes.REMOVES),
    b"COPY": _row(copy_syntax.parse_copy, copy.copy, _SELECTED, Changes.ALL, by_number=True),
    b"UID COPY": _row(copy_syntax.parse_uid_copy, copy.copy, _SELECTED, Changes.ALL),
    b"MOVE": _row(copy_syntax.parse_copy, copy.move, _SELECTED, Changes.REMOVES, by_number=True),
    b"UID MOVE": _row(copy_syntax.parse_uid_copy, copy.move, _SELECTED, Changes.REMOVES),
}
