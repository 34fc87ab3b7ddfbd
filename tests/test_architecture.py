"""Who may import whom, which rooms are pure, and which library belongs to which room (docs/architecture.md).

Every import is seen, also those inside functions and under TYPE_CHECKING: a room that needs another one's types depends
on it. The rules are tested on a made-up tree first, so that they are known to be able to fail.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pymx"

LEAVES = "config log metrics events"
# room → what it may import besides itself
TABLE = {
    "config": "",
    "mail": "",
    "log": "",
    "metrics": "log",
    "events": "log metrics mail",
    "proto": "mail",
    "spool": "mail",
    "resolver": f"{LEAVES} mail",
    "net": f"{LEAVES} mail",
    "mailauth": "mail resolver",
    "accounts": f"{LEAVES} mail",
    "ms": f"{LEAVES} mail spool",
    "sieve": "mail",
    "junk": f"{LEAVES} mail spool net",
    "queue": f"{LEAVES} mail proto spool",
    "smtpd": f"{LEAVES} mail proto spool net",
    "checks": f"{LEAVES} mail proto spool net resolver mailauth accounts junk",
    "mda": f"{LEAVES} mail spool accounts ms sieve",
    "mta": f"{LEAVES} mail proto spool net resolver mailauth accounts queue smtpd checks mda",
    "msa": f"{LEAVES} mail proto spool mailauth accounts smtpd checks mta",
    "imapd": f"{LEAVES} mail proto spool net accounts ms",
    "managesieved": f"{LEAVES} mail proto net accounts sieve",
    "reports": f"{LEAVES} mail resolver mailauth",
    "certs": f"{LEAVES} net",
    "admin": f"{LEAVES} mail proto net resolver mailauth accounts ms sieve junk queue reports certs",
    "web": f"{LEAVES} mail net accounts admin certs",
    "supervisor": f"{LEAVES} net",
    "startup": f"{LEAVES} net",
    "cli": f"{LEAVES} admin app supervisor",
}
# The composition root, and the throw-away appliance that stands beside it.
MAY_IMPORT_EVERYTHING = {"app", "demo"}
MAY_IMPORT_APP = {"app", "cli", "demo", "__main__"}

PURE = ["mail/", "proto/", "queue/schedule.py", "mta/trouble.py", "mta/route.py", "msa/fixup.py", "admin/zone.py"]
IMPURE_MODULES = {
    "asyncio", "socket", "ssl", "threading", "sqlite3", "sqlalchemy", "logging", "time", "selectors", "select",
    "concurrent", "multiprocessing", "subprocess", "aiosmtpd", "aiosmtplib", "uvloop",
}  # fmt: skip
# library → where it may be imported ("" = nowhere in the daemon's code)
LIBRARY_HOMES = {
    "sqlalchemy": ["accounts/"],
    "aiosqlite": ["accounts/"],
    "aiomysql": ["accounts/"],
    "alembic": ["accounts/"],
    "sqlite3": [
        "ms/index.py",
        "ms/fulltext.py",
        "queue/state.py",
        "events/store.py",
        "junk/",
        "accounts/",
        "reports/store.py",
        "mta/tls_state.py",
    ],
    "dns": ["resolver/"],
    "aiosmtpd": ["smtpd/"],
    "aiosmtplib": ["mta/"],
    "rich": ["admin/"],
    "spf": ["mailauth/"],
    "dkim": ["mailauth/"],
    "passlib": ["accounts/"],
    "bcrypt": ["accounts/"],
    "argon2": ["accounts/"],
    "acme": ["certs/"],
    "josepy": ["certs/"],
    "mock": [],
}


@dataclass(frozen=True, slots=True)
class Import:
    """One import statement's target."""

    path: str  # relative to the package, with /
    line: int
    module: str  # absolute dotted name; "." in front for a relative import

    @property
    def room(self) -> str:
        return self.path.split("/")[0].removesuffix(".py")

    def __str__(self) -> str:
        return f"pymx/{self.path}:{self.line} imports {self.module}"


def imports(package: Path) -> Iterator[Import]:
    """All imports of a tree, in order."""
    for file in sorted(package.rglob("*.py")):
        path = file.relative_to(package).as_posix()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), filename=str(file))):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(path, node.lineno, alias.name)
            elif isinstance(node, ast.ImportFrom):
                base = "." * node.level + (node.module or "")
                for alias in node.names:
                    # `from pymx import log` names a room, `from pymx.mail.address import Address` does not
                    yield Import(path, node.lineno, f"{base}.{alias.name}" if base == "pymx" else base)


def violations(package: Path) -> list[str]:
    """Every import that breaks a rule, with the rule."""
    found = []
    for one in imports(package):
        found += [f"{one}: {rule}" for rule in _broken_rules(one)]
    return found


def _broken_rules(one: Import) -> Iterator[str]:
    if one.module.startswith("."):
        yield "relative import"
        return
    top, _, rest = one.module.partition(".")
    if top == "pymx":
        yield from _broken_by_room(one, rest.split(".")[0])
        return
    if any(_inside(one.path, p) for p in PURE) and top in IMPURE_MODULES:
        yield f"a pure file must not import {top}"
    homes = LIBRARY_HOMES.get(top)
    if homes is not None and not any(_inside(one.path, h) for h in homes):
        yield f"{top} belongs to {', '.join(homes) or 'nobody'}"


def _broken_by_room(one: Import, target: str) -> Iterator[str]:
    room = one.room
    if target in ("", "__version__", room):
        return
    if target in ("app", "demo") and room not in MAY_IMPORT_APP:
        yield f"only cli imports {target}"
    elif room not in MAY_IMPORT_EVERYTHING and room not in ("__init__", "__main__"):
        if room not in TABLE:
            yield f"{room} is not in the import table"
        elif target not in TABLE[room].split():
            yield f"{room} may import only: {TABLE[room] or 'nothing'}"
    if any(_inside(one.path, p) for p in PURE) and target in ("log", "metrics", "net", "resolver", "accounts", "ms"):
        yield f"a pure file must not import {target}"


def _inside(path: str, place: str) -> bool:
    return path.startswith(place) if place.endswith("/") else path == place


def test_every_import_keeps_to_the_table() -> None:
    """The rooms' walls stand."""
    assert violations(PACKAGE) == []


def test_every_room_is_in_the_table() -> None:
    """A new room or top-level file needs a row (or is app, demo, __init__, __main__)."""
    rooms = {p.name.removesuffix(".py") for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert rooms - TABLE.keys() - MAY_IMPORT_EVERYTHING - {"__init__", "__main__"} == set()


def test_there_are_no_circles_between_rooms() -> None:
    """The table itself orders the rooms: nothing above imports from below and back."""
    above = {room: set(allowed.split()) for room, allowed in TABLE.items()}
    done: set[str] = set()
    while len(done) < len(above):
        free = {room for room, needs in above.items() if room not in done and needs - {"app"} <= done}
        assert free, f"circle among {sorted(above.keys() - done)}"
        done |= free


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("path", "text", "rule"),
    [
        ("mail/x.py", "import time", "pure"),
        ("mail/x.py", "def f():\n    from asyncio import sleep", "pure"),
        ("proto/imap/x.py", "from pymx import log", "proto may import only: mail"),
        ("proto/imap/x.py", "from concurrent.futures import Future", "pure"),
        ("queue/schedule.py", "import asyncio.events", "pure"),
        ("queue/schedule.py", "from pymx.log import get", "pure"),
        ("msa/fixup.py", "import logging.handlers as h", "pure"),
        ("mail/x.py", "from pymx.proto.smtp import reply", "mail may import only: nothing"),
        ("ms/x.py", "from pymx.accounts.account import Account", "ms may import only"),
        ("ms/x.py", "if True:\n    import pymx.queue.item", "ms may import only"),
        ("ms/x.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pymx.imapd import s", "ms may"),
        ("ms/x.py", "from . import index", "relative import"),
        ("ms/x.py", "from .index import Index", "relative import"),
        ("ms/store.py", "import sqlite3", "sqlite3 belongs to"),
        ("queue/manager.py", "from sqlite3 import connect", "sqlite3 belongs to"),
        ("admin/x.py", "from sqlalchemy.ext import asyncio", "sqlalchemy belongs to accounts/"),
        ("mta/x.py", "import dns.resolver", "dns belongs to resolver/"),
        ("imapd/x.py", "from pymx.app import serve", "only cli imports app"),
        ("admin/x.py", "from pymx import demo", "only cli imports demo"),
        ("newroom/x.py", "from pymx.mail import flags", "newroom is not in the import table"),
        ("supervisor.py", "from pymx.ms import store", "supervisor may import only"),
    ],
)
def test_broken_rule_is_found(tmp_path: Path, path: str, text: str, rule: str) -> None:
    """Each rule can fail."""
    found = violations(_tree(tmp_path, {path: text}))
    assert any(rule in f for f in found), found


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("mail/x.py", "import re, email.utils, datetime\nfrom pymx.mail import address"),
        ("ms/index.py", "import sqlite3"),
        ("queue/state.py", "import sqlite3, time"),
        ("queue/manager.py", "import asyncio\nfrom pymx import log\nfrom pymx.queue.schedule import gap"),
        ("accounts/x.py", "from sqlalchemy import Table"),
        ("resolver/x.py", "import dns.asyncresolver"),
        ("app.py", "from pymx.imapd import session\nfrom pymx import supervisor"),
        ("cli.py", "from pymx import __version__, app"),
        ("demo.py", "from pymx.admin import ctl"),
    ],
)
def test_kept_rule_is_no_violation(tmp_path: Path, path: str, text: str) -> None:
    """What the table allows passes."""
    assert violations(_tree(tmp_path, {path: text})) == []
