"""The machine: room on the disks, memory, and how much of it the server may use."""

from __future__ import annotations

from collections.abc import Iterator

from pymx.admin.health.finding import Finding, fail, info, ok, warn
from pymx.admin.health.subject import Subject
from pymx.admin.install.dropins import MEMORY, has_own_limits, profile_for, profile_taken

_GIB = 1 << 30
_MIB = 1 << 20
_LITTLE_MEMORY = 900 * _MIB  # a machine that is sold as 1 GiB has a little less
_NO_MEMORY = 400 * _MIB


def check(subject: Subject) -> Iterator[Finding]:
    yield from _disks(subject)
    yield from _memory(subject)


def _disks(subject: Subject) -> Iterator[Finding]:
    """4xx to every sender begins when there is no room for a message."""
    for path in dict.fromkeys((subject.config.data_dir, subject.config.mail.root)):
        check = f"disk:{path}"
        try:
            found = subject.places.statvfs(path)
        except OSError as e:
            yield fail(
                check,
                f"{path}: {e.strerror}",
                "make it: pymxctl setup, or see README.md",
                "mail can neither be taken nor read",
            )
            continue
        free, whole = found.f_bavail * found.f_frsize, max(found.f_blocks * found.f_frsize, 1)
        least = max(4 * subject.config.mail.max_message_octets, 200 * _MIB)
        said = f"{_size(free)} free of {_size(whole)} at {path}"
        remedy = "make room: pymxctl user list shows who has how much; journalctl --disk-usage"
        if free < least:
            yield fail(check, f"only {said}", remedy, "mail is put off, soon none is accepted")
        elif free < whole / 10 and free < 10 * _GIB:
            yield warn(check, f"only {said}", remedy, "when the disk is full, no mail is accepted")
        elif found.f_files and found.f_favail < found.f_files / 20:
            yield warn(
                check,
                f"only {found.f_favail} files more can be made at {path} (inodes)",
                remedy,
                "each message is a file: without inodes no mail is accepted, however much room there is",
            )
        else:
            yield ok(check, said)


def _memory(subject: Subject) -> Iterator[Finding]:
    figures: dict[str, int] = {}
    try:
        for line in subject.places.meminfo.read_text().splitlines():
            name, _, rest = line.partition(":")
            figures[name] = int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        yield info("memory", f"{subject.places.meminfo} can't be read")
        return
    total, available = figures.get("MemTotal", 0), figures.get("MemAvailable", 0)
    if total < _NO_MEMORY:
        yield fail(
            "memory",
            f"the machine has {_size(total)} of memory; pymx needs about 300 MiB of its own",
            "a larger one",
            "when memory runs out the kernel ends a program, and mail stops",
        )
    elif available < total / 20:
        yield warn(
            "memory",
            f"{_size(available)} of {_size(total)} memory are available",
            "see what takes it: ps aux --sort -rss",
            "when memory runs out the kernel ends a program, and mail stops",
        )
    elif total < _LITTLE_MEMORY:
        remedy = "keep workers = 1, and rspamd on another machine (or none: pymx filters junk by itself)"
        yield info("memory", f"the machine has only {_size(total)} of memory", remedy)
    else:
        yield ok("memory", f"{_size(available)} of {_size(total)} memory are available")


def limits(subject: Subject) -> Iterator[Finding]:
    """Are the server's limits those of this machine? It may have been given more memory, or less, since they were."""
    taken, now = profile_taken(subject.places.units), profile_for(subject.places.meminfo)
    if not taken or now is None or taken == now or has_own_limits(subject.places.units):
        return
    path = subject.places.units / MEMORY
    ours = f"this one's are those of {_sold(now)}" if now else "this one has enough for the shares in pymx.service"
    yield warn(
        "memory:limits",
        f"{path} limits the server as on a machine with {_sold(taken)} of memory; {ours}",
        "pymxctl setup, run once more, and systemctl restart pymx; a drop-in of your own with MemoryMax= stays",
        "it ends sessions or processes too early, or too late for what else runs here",
    )


def _sold(profile: str) -> str:
    return f"{profile[:-1]} {profile[-1].upper()}B"


def _size(octets: int) -> str:
    return f"{octets / _GIB:.1f} GiB" if octets >= _GIB else f"{octets // _MIB} MiB"
