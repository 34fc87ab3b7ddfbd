"""A fresh Debian or Ubuntu as a directory, with pymx in /opt/pymx: debootstrap, its own Python, `pip install`.

The system with pymx's dependencies is made once per machine and kept as an archive ($XDG_CACHE_HOME/pymx-tests); pymx
itself is installed anew from the sources each time. What can't be reached skips the test; what then fails, fails it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.programs import require

PROGRAMS = Path("/opt/pymx/bin")
_SOURCES = Path(__file__).parent.parent.parent
_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
_KEPT_S = 30 * 86_400.0
_MAKE_S = 240  # on a usual connection a quarter of it
_PATH = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"

# In memory: dpkg syncs each file, which takes a minute and more on a disk
_MAKE = """
set -e
mount -t tmpfs -o size=3g tmpfs "$DIRECTORY"
cd "$DIRECTORY"
mkdir root
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates {options} \\
    {suite} root {mirror} {script} >&2
cd root
rm -rf var/cache/apt/* var/lib/apt/lists/* usr/share/doc usr/share/man usr/share/locale
chroot . /usr/bin/env -i {path} python3 -m venv /opt/pymx
cp -L /etc/resolv.conf etc/resolv.conf
if [ -e {authorities} ]; then cp {authorities} etc/ssl/certs/ca-certificates.crt; fi
cp -r "$SOURCES" src
{install}
chroot . /usr/bin/env -i {path} /opt/pymx/bin/pip uninstall -q -y pymx
rm -rf src
tar -cf "$ARCHIVE" .
"""


@dataclass(frozen=True, slots=True)
class Distribution:
    """`options` are debootstrap's; `script` is for a suite that it does not know yet."""

    suite: str
    mirror: str = "http://deb.debian.org/debian"
    options: str = ""
    script: str = ""
    keyring: str = ""


DEBIAN_12 = Distribution("bookworm")
DEBIAN_13 = Distribution("trixie")
UBUNTU_24 = Distribution(
    "noble", "http://archive.ubuntu.com/ubuntu",
    "--components=main,universe --keyring=/usr/share/keyrings/ubuntu-archive-keyring.gpg",
    "/usr/share/debootstrap/scripts/gutsy", "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
)  # fmt: skip


def install(distribution: Distribution, directory: Path) -> Path:
    """Its root, below `directory`."""
    archive = _archive(distribution)
    root = directory / distribution.suite
    root.mkdir()
    subprocess.run(["tar", "-xf", archive, "-C", root], check=True)
    sources = _sources(directory / "sources")
    shutil.copytree(sources, root / "src")
    done = subprocess.run(["sh", "-ec", _pip("cd " + str(root))], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return root


def _pip(enter: str = "") -> str:
    """The command that installs pymx from /src of the tree that it is called in."""
    passed = [
        f"{name}={os.environ[name]}" for name in ("PIP_INDEX_URL", "https_proxy", "http_proxy") if name in os.environ
    ]
    words = ["chroot", ".", "/usr/bin/env", "-i", _PATH, *passed, "PIP_CERT=/etc/ssl/certs/ca-certificates.crt"]
    words += [
        "/opt/pymx/bin/pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-cache-dir",
        "./src",
        ">&2",
    ]
    return f"{enter}\n" + " ".join(words)


def _sources(into: Path) -> Path:
    """What a package of ours is built from."""
    into.mkdir()
    for name in ("pymx", "systemd"):
        shutil.copytree(_SOURCES / name, into / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(_SOURCES / name, into / name)
    return into


def _archive(distribution: Distribution) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pymx-tests"
    cache.mkdir(parents=True, exist_ok=True)
    archive = cache / f"{distribution.suite}.tar"
    require("debootstrap", "debootstrap")
    with (cache / f"{distribution.suite}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # before the system is made, too: its Python's packages come from there
        if "PIP_INDEX_URL" not in os.environ and not _answers("https://pypi.org/simple/hatchling/"):
            pytest.skip("needs pypi.org, from where pymx is installed")
        if not archive.exists() or archive.stat().st_mtime < time.time() - _KEPT_S:
            _make(distribution, archive)
    return archive


def _make(distribution: Distribution, archive: Path) -> None:
    if distribution.keyring and not Path(distribution.keyring).exists():
        pytest.skip(f"needs {distribution.keyring} (of the package ubuntu-keyring)")
    release = f"{distribution.mirror}/dists/{distribution.suite}/Release"
    if not _answers(release):
        pytest.skip(f"needs {release}, which can't be reached")
    new = archive.with_suffix(".new")
    made = archive.with_suffix(".made")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    try:
        script = _MAKE.format(
            options=distribution.options, suite=distribution.suite, mirror=distribution.mirror,
            script=distribution.script, path=_PATH, authorities=_AUTHORITIES, install=_pip(),
        )  # fmt: skip
        # the file system in memory is seen, and is there, only until the script ends
        (made / "memory").mkdir()
        places = {"DIRECTORY": str(made / "memory"), "ARCHIVE": str(new), "SOURCES": str(_sources(made / "sources"))}
        done = subprocess.run(
            # ends all of them, debootstrap's children too
            ["timeout", "--signal=KILL", str(_MAKE_S), "unshare", "--mount", "sh", "-c", script],
            env=os.environ | places | {"LC_ALL": "C"}, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode in (137, -signal.SIGKILL):
            pytest.skip(f"{release} is so slow that no system was made within {_MAKE_S} s")
        assert done.returncode == 0, done.stderr[-3000:]
        new.rename(archive)
    finally:
        new.unlink(missing_ok=True)
        shutil.rmtree(made, ignore_errors=True)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=15):
            return True
    except (urllib.error.URLError, OSError):
        return False
