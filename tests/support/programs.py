"""Programs from Debian packages: found also outside a user's PATH, or the test is skipped with the package's name."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/sbin", "/usr/lib/dovecot"])


def find(name: str) -> str | None:
    """Where the program is, or None."""
    return shutil.which(name, path=_PATH)


def require(name: str, package: str) -> str:
    """Where the program is; skips the test when it is missing."""
    found = find(name)
    if found is None:
        pytest.skip(f"MISSING PROGRAM {name}: install the package {package} (make test does, as root)")
    return found


def tail(path: Path, octets: int = 2000) -> str:
    """The end of a log file, for an error's text."""
    if not path.exists():
        return "(no log)"
    return path.read_bytes()[-octets:].decode("utf-8", "replace")
