"""`<queue directory>/pace.json`: what a runner has to know of the one before (see `queue.pace`). Blocking.

Written whole under another name and renamed. It is not synced: lost in a power cut, it costs a few messages more than
a warm-up would have had, or a try at a host that is down. A file that can't be read counts as none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

_NAME = "pace.json"
_Paces = dict[str, dict[str, object]]


def load(directory: Path) -> _Paces:
    """The saved paces by name."""
    try:
        return msgspec.json.decode((directory / _NAME).read_bytes(), type=_Paces)
    except (OSError, msgspec.DecodeError):
        return {}


def save(directory: Path, paces: Mapping[str, Mapping[str, object]]) -> None:
    """Put `paces` in place of what was saved. Raises OSError."""
    new = directory / f"{_NAME}.new"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as f:
        f.write(msgspec.json.encode(paces))
    os.rename(new, directory / _NAME)
