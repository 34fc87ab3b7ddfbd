"""What a server with default settings does not load: each of these costs every process megabytes."""

from __future__ import annotations

import subprocess
import sys

import pytest

STARTED = """\
import sys
from pymx.app import lean
from pymx.config.model import Config, Database
lean.leave_out()
import pymx.app.serve
lean.load_shared({config})
print(" ".join(sorted(sys.modules)))
"""


def loaded(config: str) -> set[str]:
    """The modules of a process that is about to start its rooms."""
    found = subprocess.run(
        [sys.executable, "-c", STARTED.format(config=config)], capture_output=True, text=True, check=True, timeout=60
    )
    return set(found.stdout.split())


@pytest.fixture(scope="module")
def modules() -> set[str]:
    return loaded('Config(hostname="mx.example.test", database=Database(url="sqlite:////nowhere/x.sqlite"))')


@pytest.mark.parametrize(
    "name",
    [
        "acme", "aiohttp", "aiomysql", "alembic", "argon2", "checkdmarc", "dkim", "h2", "httpx", "httpx2", "passlib",
        "pymysql", "rich", "sqlalchemy.dialects.mysql", "sqlalchemy.ext.asyncio", "sqlalchemy.orm", "xml", "zstandard",
    ],
)  # fmt: skip
def test_a_server_with_default_settings_does_without(modules: set[str], name: str):
    assert name not in modules


@pytest.mark.parametrize("name", ["aiosqlite", "greenlet", "sqlalchemy.dialects.sqlite.aiosqlite", "uvloop"])
def test_what_each_process_needs_is_there_before_they_are_forked(modules: set[str], name: str):
    """Imported after the fork it would be in the memory of each of them anew."""
    if name == "uvloop":
        pytest.importorskip("uvloop")
    assert name in modules


def test_the_driver_of_mariadb_is_loaded_where_that_is_used():
    modules = loaded('Config(hostname="mx.example.test", database=Database(url="mysql://u:p@localhost/mail"))')
    assert "aiomysql" in modules
    assert "aiosqlite" not in modules


def test_a_database_url_that_is_none_is_left_to_those_who_open_it():
    assert "pymx.app.serve" in loaded('Config(hostname="mx.example.test", database=Database(url="nonsense"))')
