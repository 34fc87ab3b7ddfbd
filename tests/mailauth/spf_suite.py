"""The published test suite of RFC 7208 (openspf.org, release 2014.04), taken from pyspf's source distribution.

It is not ours to ship; pip fetches it once into a cache outside the tree.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from support.names import TIMEOUT, TableOfNames

SUITE = "rfc7208-tests.yml"
VERSION = "2.0.14"


class SuiteUnavailable(Exception):
    """pip could not fetch it; the text says why."""


@dataclass(frozen=True)
class Case:
    id: str
    host: str
    mail_from: str
    helo: str
    results: tuple[str, ...]
    explanation: str | None
    names: TableOfNames


def _text() -> str:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pymx-tests"
    archive = cache / f"pyspf-{VERSION}.tar.gz"
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-binary", "pyspf", "--dest", str(cache), f"pyspf=={VERSION}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
        except subprocess.TimeoutExpired:
            raise SuiteUnavailable("pip download took more than 90 s") from None
        if done.returncode or not archive.exists():
            raise SuiteUnavailable(f"pip download failed: {done.stderr.strip()[-300:]}")
    with tarfile.open(archive) as files:
        member = next((m for m in files.getmembers() if m.name.endswith(f"/test/{SUITE}")), None)
        content = files.extractfile(member) if member else None
        if content is None:
            raise SuiteUnavailable(f"{archive} holds no {SUITE}")
        return content.read().decode("utf-8")


def _records(items: list[Any]) -> Iterator[object]:
    """The records of one name. The suite's SPF records stand for TXT records where it gives none."""
    texts = any("TXT" in item for item in items if isinstance(item, dict))
    for item in items:
        if not isinstance(item, dict):
            yield TIMEOUT
            continue
        for rdtype, value in item.items():
            if rdtype == "SPF":
                if texts:
                    continue
                rdtype = "TXT"
            if value == "NONE":
                continue
            if value == TIMEOUT:
                yield rdtype, TIMEOUT
            elif rdtype == "TXT":
                strings = [value] if isinstance(value, str) else value
                yield rdtype, tuple(s.encode("utf-8") for s in strings)
            elif rdtype == "MX":
                yield rdtype, (value[0], value[1])
            else:
                yield rdtype, (value,)


def cases() -> list[Case]:
    """Every case of the suite. Raises SuiteUnavailable."""
    found = []
    for scenario in yaml.safe_load_all(_text()):
        table = {name: list(_records(items)) for name, items in scenario["zonedata"].items()}
        for name, test in scenario["tests"].items():
            results = test["result"]
            found.append(
                Case(
                    id=name,
                    host=str(test["host"]),
                    mail_from=str(test["mailfrom"]),
                    helo=str(test["helo"]),
                    results=(results,) if isinstance(results, str) else tuple(results),
                    explanation=test.get("explanation"),
                    names=TableOfNames(table),
                )
            )
    return found
