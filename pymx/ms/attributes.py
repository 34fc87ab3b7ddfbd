"""`dovecot-attributes`: what clients keep about an account and its mailboxes (METADATA, RFC 5464).

The file that Dovecot has with `mail_attribute_dict = file:<root>/dovecot-attributes`: alternating lines of key and
value with its `\\001` escapes. Keys are `priv/<mailbox GUID>/<entry>` and `shared/<mailbox GUID>/<entry>`; those of the
account itself are INBOX's under `vendor/vendor.dovecot/pvt/server/`. Written whole under Dovecot's lock
(`dovecot-attributes.lock`), synced, renamed. It is no cache: the index can be deleted and this stays.

Of a damaged file what can be read counts: a line that stands where a key should and is none is skipped. Before the
first change the file is kept aside as `dovecot-attributes.damaged-…` (`attributes_damaged`).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pymx import log
from pymx.ms import delivering
from pymx.ms.account import Account
from pymx.ms.box import Home
from pymx.ms.dotlock import DotLock
from pymx.ms.errors import InvalidName, LimitReached
from pymx.ms.hints import ATTRIBUTES
from pymx.ms.layout import Levels

NAME = b"dovecot-attributes"
SERVER = "vendor/vendor.dovecot/pvt/server/"
_PRIVATE_TO_DOVECOT = "vendor/vendor.dovecot/pvt"
_ESCAPES = {0: b"\x010", 1: b"\x011", 9: b"\x01t", 13: b"\x01r", 10: b"\x01n"}
_UNESCAPES = {b"0": b"\x00", b"1": b"\x01", b"t": b"\t", b"r": b"\r", b"n": b"\n"}
_SPECIAL = re.compile(rb"[\x00\x01\t\r\n]")
_ESCAPED = re.compile(rb"\x01(.)", re.DOTALL)
_KINDS = {"private": "priv", "shared": "shared"}
_KEYS = (b"priv/", b"shared/")
_log = log.get("ms")


def _escape(text: bytes) -> bytes:
    return _SPECIAL.sub(lambda found: _ESCAPES[found[0][0]], text)


def _unescape(text: bytes) -> bytes:
    return _ESCAPED.sub(lambda found: _UNESCAPES.get(found[1], found[1]), text) if b"\x01" in text else text


def parse(data: bytes) -> tuple[dict[bytes, bytes], str]:
    """Keys and values, and what is wrong with the file ("" if nothing)."""
    *lines, rest = data.split(b"\n")
    wrong = "its last line is cut off" if rest else "it has NULs" if b"\0" in data else ""
    found: dict[bytes, bytes] = {}
    number = 0
    while number < len(lines):
        if not lines[number].startswith(_KEYS):
            wrong = wrong or f"line {number + 1} is no key"
            number += 1
        elif number + 1 == len(lines):
            wrong = wrong or "its last value is missing"
            break
        else:
            found[_unescape(lines[number])] = _unescape(lines[number + 1])
            number += 2
    return found, wrong


def to_bytes(values: Mapping[bytes, bytes]) -> bytes:
    return b"".join(b"%b\n%b\n" % (_escape(key), _escape(value)) for key, value in values.items())


def _key(guid: str, entry: str, *, server: bool) -> bytes:
    """The key of an entry such as `/private/comment`. Raises InvalidName for what is Dovecot's own."""
    _, kind, name = entry.split("/", 2)
    if name == _PRIVATE_TO_DOVECOT or name.startswith(_PRIVATE_TO_DOVECOT + "/"):
        raise InvalidName("Entry name is reserved")
    return f"{_KINDS[kind]}/{guid}/{SERVER if server else ''}{name}".encode()


def read(directory: bytes) -> dict[bytes, bytes]:
    try:
        with open(os.path.join(directory, NAME), "rb") as file:
            return parse(file.read())[0]
    except FileNotFoundError:
        return {}


def address(key: bytes) -> tuple[str, str, bool] | None:
    """What a key stands for: the mailbox's GUID, the entry's name, and whether it is the account's own."""
    kind, _, rest = key.decode("utf-8", "replace").partition("/")
    guid, _, name = rest.partition("/")
    whole = {"priv": "private", "shared": "shared"}.get(kind)
    server = name.startswith(SERVER)
    if whole is None or not name or (name.startswith(_PRIVATE_TO_DOVECOT) and not server):
        return None
    return guid, f"/{whole}/{name.removeprefix(SERVER)}", server


def entries(directory: bytes, guid: str, *, server: bool) -> dict[str, bytes]:
    """All entries of a mailbox, or with INBOX's GUID of the `server`, by name."""
    found = ((address(key), value) for key, value in read(directory).items())
    return {where[1]: value for where, value in found if where is not None and where[::2] == (guid, server)}


def of_mailbox(account: Account, levels: Levels, *, server: bool) -> dict[str, bytes]:
    """The entries of one mailbox, or with INBOX's name of the `server`."""
    guid = delivering.told_row(account.box(levels)).guid
    return entries(account.home.place.account_files, guid, server=server)


@dataclass(frozen=True, slots=True)
class Change:
    """Set entries, or with None take them away; LimitReached if all of the account's then have too many octets."""

    levels: Levels
    server: bool
    values: Mapping[str, bytes | None]
    max_octets: int

    def make(self, account: Account) -> bool:
        """Durable when this returns. Whether there was anything to do."""
        guid = delivering.told_row(account.box(self.levels)).guid
        wanted = {_key(guid, entry, server=self.server): value for entry, value in self.values.items()}

        def put(there: dict[bytes, bytes]) -> None:
            for key, value in wanted.items():
                if value is None:
                    there.pop(key, None)
                else:
                    there[key] = value
            octets = sum(len(key) + len(value) for key, value in there.items())
            if octets > self.max_octets and any(value is not None for value in wanted.values()):
                raise LimitReached("Too many entries")

        return _rewrite(account.home, put)


def forget(home: Home, guid: str) -> None:
    """Take away all of a mailbox that is gone."""
    mine = (f"priv/{guid}/".encode(), f"shared/{guid}/".encode())

    def drop(there: dict[bytes, bytes]) -> None:
        for key in [key for key in there if key.startswith(mine)]:
            del there[key]

    if guid and any(key.startswith(mine) for key in read(home.place.account_files)):
        _rewrite(home, drop)


def _rewrite(home: Home, alter: Callable[[dict[bytes, bytes]], None]) -> bool:
    directory = home.place.account_files
    path = os.path.join(directory, NAME)
    with DotLock(home.disk, path):
        try:
            with open(path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            data = b""
        there, wrong = parse(data)
        before = dict(there)
        alter(there)
        if there == before:
            return False
        if wrong:
            _keep_aside(home, path, data, wrong)
        home.disk.replace_file(path, path + b".tmp", to_bytes(there), home.mode)
    home.disk.sync_directory(directory)
    home.changed(ATTRIBUTES, 0)
    return True


def _keep_aside(home: Home, path: bytes, data: bytes, wrong: str) -> None:
    """A damaged file as it is, before what could be read of it takes its place."""
    aside = path + b".damaged-%d" % time.time_ns()
    home.disk.replace_file(aside, aside + b".tmp", data, home.mode)
    _log.warning("attributes_damaged", account=home.email, path=os.fsdecode(aside), reason=wrong)
