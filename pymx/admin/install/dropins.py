"""Drop-ins of the systemd units that follow from the configuration and the machine.

`target.conf` says what `[backup] target` needs, and is ours: it follows when that changes. `memory.conf` is a profile
of systemd/memory/ for a small machine. As long as its limits are a profile's it follows when the machine gets more
memory or less; with others it is the administrator's, and stays. Own drop-ins have other names; one that says how much
memory the server may use counts, and no profile is written beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pymx.admin import backup_place
from pymx.admin.install.answers import Answers
from pymx.admin.install.steps import ROOT, File, SetupError
from pymx.admin.install.units import unit_text
from pymx.config.model import Config

MEMORY = "pymx.service.d/memory.conf"
_NO_PROFILE = (
    "# the machine has enough memory for the shares of it in pymx.service: none of systemd/memory/ is needed\n"
)
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
    if answers.root == Path("/"):
        yield from memory(directory, Path("/proc/meminfo"))


def memory(directory: Path, meminfo: Path) -> Iterator[File]:
    """The profile of this machine, unless the administrator has said otherwise."""
    now, written = profile_for(meminfo), _written(directory)
    is_ours = written == _NO_PROFILE or bool(profile_taken(directory))
    if now is None or has_own_limits(directory) or not (now or is_ours):
        return
    text = _profile_text(now) if now else _NO_PROFILE
    yield File(directory / MEMORY, text, 0o644, lambda: ROOT, keep=not is_ours)


def has_own_limits(directory: Path) -> bool:
    """Has the administrator limited the memory by a drop-in, or by systemctl set-property?"""
    control = directory.with_name(f"{directory.name}.control")
    return any(has_limits((place / MEMORY).parent) for place in (directory, control))


def profile_taken(directory: Path) -> str:
    """The profile whose limits the units in `directory` have; "" for none, and for what somebody else has written."""
    written = _settings(_written(directory))
    if not written:
        return ""
    try:
        return next((name for _, name in _PROFILES if _settings(_profile_text(name)) == written), "")
    except SetupError:  # the installation has no profiles to compare with
        return ""


def _written(directory: Path) -> str:
    try:
        return (directory / MEMORY).read_text("utf-8", "replace")
    except OSError:
        return ""


def _profile_text(name: str) -> str:
    return unit_text(f"memory/{name}.conf", Path("/opt/pymx/bin"))


def _settings(text: str) -> list[str]:
    """What counts in it: not the comments, which change from version to version."""
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and line[0] not in "#;"]


def has_limits(directory: Path) -> bool:
    """Does a drop-in of somebody else's there limit the memory? By its name it might come before ours, and lose."""
    others = (path for path in directory.glob("*.conf") if path.name != Path(MEMORY).name)
    lines = (line for path in others for line in path.read_text("utf-8", "replace").splitlines())
    return any(line.lstrip().startswith(("MemoryHigh=", "MemoryMax=")) for line in lines)


def profile_for(meminfo: Path) -> str | None:
    """The memory profile of a machine; "" where the shares that the unit has are right, None where nobody can say."""
    try:
        total_kib = next(int(x.split()[1]) for x in meminfo.read_text().splitlines() if x.startswith("MemTotal:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None
    return next((name for below_mib, name in _PROFILES if total_kib < below_mib * 1024), "")
