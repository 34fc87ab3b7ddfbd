"""GETMETADATA and SETMETADATA (RFC 5464): what clients keep about mailboxes and about the account.

Kept by the store in a file, not in its index. `/private/specialuse` (RFC 6154 s. 4) is read-only here: it is what
LIST tells and CREATE sets. An entry that was asked for by name and is not there is NIL, as Dovecot answers.
"""

from __future__ import annotations

from pymx.imapd.client import Client
from pymx.ms.errors import InvalidName, LimitReached
from pymx.proto.imap.commands.metadata import GetMetadata, SetMetadata, metadata_response
from pymx.proto.imap.errors import No

_SPECIAL_USE = "/private/specialuse"


async def getmetadata(client: Client, arguments: GetMetadata) -> bytes:
    name = _to_store(client, arguments.mailbox)
    there = await client.server.store.attributes(client.account, name)
    if name and any(_wanted(_SPECIAL_USE, entry, arguments.depth) for entry in arguments.entries):
        for folder in await client.server.store.folders(client.account):
            if folder.name == name and folder.special_use:
                there[_SPECIAL_USE] = folder.special_use.encode()
    found: dict[str, bytes | None] = {}
    longest = 0
    for entry in arguments.entries:
        if not arguments.depth and entry not in there:
            found[entry] = None
        for each, value in sorted(there.items()):
            if not _wanted(each, entry, arguments.depth):
                continue
            if arguments.max_octets is not None and len(value) > arguments.max_octets:
                longest = max(longest, len(value))
            else:
                found[each] = value
    if found:
        client.write(metadata_response(client.on_wire(name) if name else b'""', list(found.items())))
        await client.drain()
    if longest:
        return b"OK [METADATA LONGENTRIES %d] Getmetadata completed." % longest  # s. 4.2.1
    return b"OK Getmetadata completed."


def _wanted(entry: str, asked: str, depth: int) -> bool:
    """Whether `entry` is the one asked for, or at most `depth` levels below it (s. 4.2.2)."""
    if entry == asked:
        return True
    return entry.startswith(asked + "/") and entry[len(asked) :].count("/") <= depth


async def setmetadata(client: Client, arguments: SetMetadata) -> bytes:
    name = _to_store(client, arguments.mailbox)
    settings = client.server.imap
    for entry, value in arguments.values.items():
        _check(entry)
        if value is not None and len(value) > settings.max_metadata_value_octets:
            raise No("The value is too large", code=f"METADATA MAXSIZE {settings.max_metadata_value_octets}")
    try:
        await client.server.store.set_attributes(
            client.account, name, arguments.values, max_octets=settings.max_metadata_octets
        )
    except LimitReached:
        raise No("There are too many entries", code="METADATA TOOMANY") from None
    except InvalidName as error:
        raise No(str(error), code="NOPERM") from None
    return b"OK Setmetadata completed."


def _check(entry: str) -> None:
    """Raises No for what can't be set."""
    if entry == _SPECIAL_USE:
        raise No("Special uses are given by CREATE", code="NOPERM")
    parts = entry.split("/")
    # s. 3.2.1: /private/vendor/<vendor-token>/…
    if len(parts) < 3 or (parts[2] == "vendor" and len(parts) < 5):
        raise No("Entry name is not complete", code="CANNOT")


def _to_store(client: Client, name: str) -> str:
    """The store's name of a mailbox; empty for the server's entries."""
    return client.namespace.to_store(name) if name else ""
