"""LIST, LSUB (RFC 3501 s. 6.3.8, 6.3.9), LIST-EXTENDED (RFC 5258), SPECIAL-USE (RFC 6154), LIST-STATUS (RFC 5819),
LIST-MYRIGHTS (RFC 8440).

Special uses and children are told in every LIST, asked for or not (RFC 6154 s. 2 allows it): old clients need them.
A level that only exists because something lies below it is listed as \\Noselect, or \\NonExistent where the client
speaks LIST-EXTENDED.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pymx.imapd.client import Client
from pymx.imapd.commands.acl import write_rights
from pymx.imapd.commands.status import write_status
from pymx.imapd.namespace import INBOX, Namespace
from pymx.ms.errors import NoSuchMailbox
from pymx.ms.folders import Folder
from pymx.proto.imap.commands.list import ListMailboxes, matcher
from pymx.proto.imap.mailbox import encoded
from pymx.proto.imap.response import string


@dataclass(slots=True)
class _Entry:
    """A name as clients see it; `folder` None: only its children exist."""

    name: str
    folder: Folder | None
    has_children: bool = False

    @property
    def exists(self) -> bool:
        return self.folder is not None and self.folder.exists

    @property
    def subscribed(self) -> bool:
        return self.folder is not None and self.folder.subscribed


class _Patterns:
    """The patterns of one command; any of them may match."""

    def __init__(self, patterns: Iterable[str], separator: str) -> None:
        patterns = list(patterns)
        self._matchers = [matcher(pattern, separator) for pattern in patterns]
        # s. 5.1: INBOX in any case
        self._inbox = any(matcher(pattern.upper(), separator)(INBOX) for pattern in patterns)

    def match(self, name: str) -> bool:
        if name == INBOX:
            return self._inbox
        return any(matches(name) for matches in self._matchers)


def _ancestors(name: str, separator: str) -> Iterable[str]:
    at = name.rfind(separator)
    while at > 0:
        yield name[:at]
        at = name.rfind(separator, 0, at)


def _tree(folders: Sequence[Folder], namespace: Namespace, *, missing: bool) -> dict[str, _Entry]:
    """All names with the levels above them; `missing`: subscribed names without a mailbox too."""
    entries: dict[str, _Entry] = {}
    for folder in folders:
        if folder.exists or missing:
            name = namespace.to_client(folder.name)
            entries[name] = _Entry(name, folder)
    for name in list(entries):
        real = entries[name].exists
        for above in _ancestors(name, namespace.separator):
            entry = entries.get(above)
            if entry is None:
                if not real:
                    continue
                entry = entries[above] = _Entry(above, None)
            entry.has_children = entry.has_children or real
    return dict(sorted(entries.items(), key=lambda item: (item[0] != INBOX, item[0])))


def _attributes(entry: _Entry, arguments: ListMailboxes) -> list[bytes]:
    attributes = []
    if not entry.exists:
        attributes.append(b"\\NonExistent" if arguments.extended else b"\\Noselect")
    if entry.subscribed and "SUBSCRIBED" in arguments.returns | arguments.select:
        attributes.append(b"\\Subscribed")
    attributes.append(b"\\HasChildren" if entry.has_children else b"\\HasNoChildren")
    if entry.folder is not None and entry.folder.special_use:
        attributes.append(entry.folder.special_use.encode("ascii", "replace"))
    return attributes


def list_line(
    client: Client, command: bytes, attributes: Sequence[bytes], separator: str, name: str, extra: bytes = b""
) -> bytes:
    return b"* %b (%b) %b %b%b\r\n" % (
        command,
        b" ".join(attributes),
        string(separator.encode()),
        encoded(name, utf8=client.utf8),
        extra,
    )


def list_response(client: Client, name: str, *, exists: bool, subscribed: bool, old: str | None) -> bytes:
    """A LIST response that nobody asked for (RFC 5465 s. 5.4, 5.5); `old` is the name that the mailbox had."""
    attributes = [] if exists else [b"\\NonExistent"]
    if subscribed:
        attributes.append(b"\\Subscribed")
    extra = b"" if old is None else b' ("OLDNAME" (%b))' % encoded(old, utf8=client.utf8)
    return list_line(client, b"LIST", attributes, client.namespace.separator, name, extra)


def _chosen(entry: _Entry, select: frozenset[str]) -> bool:
    if "SUBSCRIBED" in select and not entry.subscribed:
        return False
    if "SPECIAL-USE" in select:
        return entry.exists and entry.folder is not None and bool(entry.folder.special_use)
    return True


async def list_mailboxes(client: Client, arguments: ListMailboxes) -> bytes:
    namespace = client.namespace
    separator = namespace.separator
    if arguments.patterns == ("",) and not arguments.select:
        # s. 6.3.8: an empty name asks for the separator and the root of the reference
        client.write(list_line(client, b"LIST", [b"\\Noselect"], separator, ""))
        return b"OK List completed."
    folders = await client.server.store.folders(client.account)
    entries = _tree(folders, namespace, missing="SUBSCRIBED" in arguments.select)
    wanted = _Patterns([namespace.folded(arguments.reference + pattern) for pattern in arguments.patterns], separator)
    parents = _parents_of_chosen(entries, arguments, wanted, separator)
    for entry in entries.values():
        if not wanted.match(entry.name):
            continue
        chosen = _chosen(entry, arguments.select)
        below = entry.name in parents
        if not chosen and not below:
            continue
        extra = b' ("CHILDINFO" (%b))' % parents[entry.name] if below else b""
        client.write(list_line(client, b"LIST", _attributes(entry, arguments), separator, entry.name, extra))
        if entry.exists and entry.folder is not None and chosen:
            if "MYRIGHTS" in arguments.returns:
                write_rights(client, entry.folder.name)
            if arguments.status:
                await _status(client, entry.folder.name, arguments.status)
    return b"OK List completed."


async def _status(client: Client, name: str, items: Sequence[str]) -> None:
    try:
        await write_status(client, name, items)
    except NoSuchMailbox:
        return  # deleted since: RFC 5819 s. 2 lets the STATUS response be missing


def _parents_of_chosen(
    entries: dict[str, _Entry], arguments: ListMailboxes, wanted: _Patterns, separator: str
) -> dict[str, bytes]:
    """RECURSIVEMATCH (RFC 5258 s. 4): names above a chosen mailbox that the patterns themselves don't give."""
    if "RECURSIVEMATCH" not in arguments.select:
        return {}
    options = b" ".join(b'"%b"' % word.encode() for word in sorted(arguments.select & {"SUBSCRIBED", "SPECIAL-USE"}))
    parents: dict[str, bytes] = {}
    for entry in list(entries.values()):
        if _chosen(entry, arguments.select) and not wanted.match(entry.name):
            for above in _ancestors(entry.name, separator):
                parents[above] = options
                entries.setdefault(above, _Entry(above, None, has_children=entry.exists))
    return parents


async def lsub(client: Client, arguments: ListMailboxes) -> bytes:
    namespace = client.namespace
    separator = namespace.separator
    folders = await client.server.store.folders(client.account)
    pattern = arguments.reference + arguments.patterns[0]
    wanted = _Patterns([namespace.folded(pattern)], separator)
    names = {namespace.to_client(folder.name): folder for folder in folders if folder.subscribed}
    shown: dict[str, bool] = {}
    for name, folder in names.items():
        if wanted.match(name):
            shown[name] = folder.exists
        elif "%" in pattern:
            # s. 6.3.9: with "%", the level that matches is told as \Noselect for what lies below it
            for above in _ancestors(name, separator):
                if above not in names and wanted.match(above):
                    shown.setdefault(above, False)
    for name in sorted(shown, key=lambda each: (each != INBOX, each)):
        client.write(list_line(client, b"LSUB", [] if shown[name] else [b"\\Noselect"], separator, name))
    return b"OK Lsub completed."
