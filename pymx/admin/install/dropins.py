"""Drop-ins of the systemd units that follow from the configuration and the machine.

`target.conf` says what `[backup] target` needs, and is ours: it follows when that changes. `memory.conf` is a profile
of systemd/memory/ for a small machine, and stays as it is once it is there. Own drop-ins have other names; one that
says how much memory the server may use counts, and no profile is written beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pymx.admin import backup_place
from pymx.admin.install.answers import Answers
from pymx.admin.install.steps import ROOT, File
from pymx.admin.install.units import unit_text
from pymx.config.model import Config

MEMORY = "pymx.service.d/memory.conf"
# the profile for machines with less memory than this, in MiB: what a machine says is some less than what was bought
_PROFILES = ((768, "512m"), (1536, "1g"), (3072, "2g"), (6144, "4g"))


def dropins(answers: Answers, config: Config) -> Iterator[File]:
    directory = answers.at("/etc/systemd/system")
    target = backup_place.directory_of(config.backup.target)
    if target is not None and target != backup_place.DEFAULT:
        text = backup_place.drop_in(target)
        yield File(directory / backup_place.DROP_IN, text, 0o644, lambda: ROOT)
    elif (directory / backup_place.DROP_IN).exists():  # of an earlier target, whose disk may be gone
        yield File(directory / backup_place.DROP_IN, backup_place.NO_DROP_IN, 0o644, lambda: ROOT)
    profile = profile_for(Path("/proc/meminfo")) if answers.root == Path("/") else ""
    control = answers.at("/etc/systemd/system.control")  # systemctl set-property
    if profile and not any(has_limits((place / MEMORY).parent) for place in (directory, control)):
        text = unit_text(f"memory/{profile}.conf", answers.programs)
        yield File(directory / MEMORY, text, 0o644, lambda: ROOT, keep=True)


def has_limits(directory: Path) -> bool:
    """Does a drop-in of somebody else's there limit the memory? By its name it might come before ours, and lose."""
    others = (path for path in directory.glob("*.conf") if path.name != Path(MEMORY).name)
    lines = (line for path in others for line in path.read_text("utf-8", "replace").splitlines())
    return any(line.lstrip().startswith(("MemoryHigh=", "MemoryMax=")) for line in lines)


def profile_for(meminfo: Path) -> str:
    """The memory profile of a machine; "" where the shares that the unit has are right, and where nobody can say."""
    try:
        total_kib = next(int(x.split()[1]) for x in meminfo.read_text().splitlines() if x.startswith("MemTotal:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return ""
    return next((name for below_mib, name in _PROFILES if total_kib < below_mib * 1024), "")
