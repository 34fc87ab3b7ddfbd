"""Programs from Debian packages: found also outside a user's PATH, or the test is skipped with the package's name."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pymx

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


def python_for(user: str) -> tuple[str, dict[str, str]]:
    """A Python of our version that `user` may read, with our packages; skips when the machine has none."""
    packages = os.pathsep.join([str(Path(pymx.__file__).parent.parent), *(p for p in sys.path if "site-packages" in p)])
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    environment = {**os.environ, "PYTHONPATH": packages}
    entry = pwd.getpwnam(user)
    as_user = ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
    for candidate in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        real = os.path.realpath(candidate)
        if subprocess.run([*as_user, "test", "-x", real], capture_output=True).returncode:
            continue
        tried = subprocess.run([*as_user, real, "-c", "import pymx.app.serve"], env=environment, capture_output=True)
        if tried.returncode == 0:
            return real, environment
    pytest.skip(f"{user} can read no {version} with pymx and its packages")
