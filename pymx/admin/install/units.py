"""The systemd units that this installation has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pymx.admin.install.steps import SetupError

SOCKETS = tuple(f"pymx-{service}.socket" for service in ("smtp", "submissions", "submission", "imaps", "http", "https"))
UNITS = (
    "pymx.service", "pymx-nightly.service", "pymx-nightly.timer", "pymx-backup.service", "pymx-backup.timer", *SOCKETS,
)  # fmt: skip
_BUILT_FOR = "/opt/pymx/bin/"


def unit_text(name: str, programs: Path) -> str:
    """A unit for where the programs are. Raises SetupError."""
    for directory in unit_directories():
        if (directory / name).exists():
            return (directory / name).read_text(encoding="utf-8").replace(_BUILT_FOR, f"{programs}/")
    raise SetupError(f"{name} is not in this installation; take it from the sources (systemd/)")


def unit_directories() -> Sequence[Path]:
    """In an installed package, and in a source tree."""
    package = Path(__file__).resolve().parent.parent.parent
    return (package / "systemd", package.parent / "systemd")
