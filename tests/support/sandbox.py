"""What systemd puts around the service, put around a command without systemd: a program of the tests.

    python sandbox.py UNIT WRITABLE USER COMMAND…

reads from the unit file the user's capabilities, the system calls, the address families and the write protection, and
becomes COMMAND under them: everything is read-only but WRITABLE, /dev has the harmless devices alone, new privileges
and, where the unit says so, writable executable memory are refused. UNIT and WRITABLE may be several paths with ":"
between them: a unit and its drop-ins; directories in place of those that the unit opens, as `writable` finds them.
Needs root, libseccomp and systemd-analyze (for the members of the groups of system calls).
"""

from __future__ import annotations

import ctypes
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_CLONE_NEWNS = 0x00020000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
_PR_SET_NO_NEW_PRIVS, _PR_SET_MDWE, _MDWE_REFUSE_EXEC_GAIN = 38, 65, 1
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")

_libc = ctypes.CDLL(None, use_errno=True)


def directives(*units: Path) -> dict[str, list[str]]:
    """All values of each key of a unit file and its drop-ins, in order; an empty one takes back those before it."""
    found: dict[str, list[str]] = {}
    for line in (line for unit in units for line in unit.read_text().splitlines()):
        key, equals, value = line.partition("=")
        if equals and not line.startswith(("#", ";", "[")):
            found[key] = [*found.get(key, ()), value] if value else []
    return found


def writable(unit: Mapping[str, Sequence[str]], places: Mapping[str, Path]) -> list[Path]:
    """What a service may write under ProtectSystem=strict, by the directory that stands for each in `places`.

    As systemd does, a path behind "-" that is not there is passed over, and any other is an error."""
    opened = [f"/var/lib/{name}" for line in unit.get("StateDirectory", ()) for name in line.split()]
    opened += [f"/run/{name}" for line in unit.get("RuntimeDirectory", ()) for name in line.split()]
    opened += [path for line in unit.get("ReadWritePaths", ()) for path in shlex.split(line)]
    found = []
    for path in opened:
        place = places.get(path.removeprefix("-"))
        if place is not None and place.is_dir():
            found.append(place)
        elif not path.startswith("-"):
            raise FileNotFoundError(f"{path}: the unit would not start (226/NAMESPACE)")
    return found


def allowed_calls(filters: list[str]) -> set[str]:
    """The system calls that `SystemCallFilter=` lines leave, groups taken apart (systemd.exec(5))."""
    allowed: set[str] = {"execve", "exit", "exit_group", "rt_sigreturn", "arch_prctl"}
    for line in ["@default", *filters]:
        names = _members(line.removeprefix("~").split())
        allowed = allowed - names if line.startswith("~") else allowed | names
    return allowed


def _members(names: list[str]) -> set[str]:
    found = set()
    for name in names:
        if not name.startswith("@"):
            found.add(name)
            continue
        listed = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True)
        lines = [x.strip() for x in listed.stdout.splitlines()[1:]]
        found |= _members([x for x in lines if x and not x.startswith("#")])
    return found


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments):
        raise OSError(ctypes.get_errno(), f"{name}{arguments}: {os.strerror(ctypes.get_errno())}")


def _mount(source: str | None, target: str, kind: str | None, flags: int) -> None:
    encoded = [None if x is None else x.encode() for x in (source, target, kind)]
    _call("mount", *encoded, ctypes.c_ulong(flags), None)


def protect_system(opened: Sequence[str]) -> None:
    """ProtectSystem=strict with the directories that may be written, and PrivateDevices=."""
    _call("unshare", _CLONE_NEWNS)
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    for path in opened:
        _mount(path, path, None, _MS_BIND)
    devices = [f"/dev/{name}" for name in _DEVICES if Path(f"/dev/{name}").exists()]
    kept = [os.open(path, os.O_PATH) for path in devices]
    _mount("tmpfs", "/dev", "tmpfs", 0)
    for path, fd in zip(devices, kept, strict=True):
        Path(path).touch()
        _mount(f"/proc/self/fd/{fd}", path, None, _MS_BIND)
        os.close(fd)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        target = line.split()[4].encode().decode("unicode_escape")  # a blank is \040
        if target not in opened and not target.startswith(("/dev/", "/proc")):
            try:
                _mount(None, target, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY)
            except OSError as e:
                print(f"sandbox: {target} stays as it is: {e.strerror}", file=sys.stderr)


def filter_calls(unit: dict[str, list[str]]) -> None:
    """SystemCallFilter=, RestrictAddressFamilies=, NoNewPrivileges= and MemoryDenyWriteExecute=."""
    import pyseccomp

    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    deny = unit.get("MemoryDenyWriteExecute") == ["yes"]
    if deny and _libc.prctl(_PR_SET_MDWE, _MDWE_REFUSE_EXEC_GAIN, 0, 0, 0):
        print("sandbox: this kernel can't refuse executable memory", file=sys.stderr)
    program = pyseccomp.SyscallFilter(pyseccomp.ERRNO(1))
    families = [int(getattr(socket, name)) for name in unit["RestrictAddressFamilies"][0].split()]
    for name in allowed_calls(unit["SystemCallFilter"]):
        try:
            if name == "socket":
                for family in families:
                    program.add_rule(pyseccomp.ALLOW, name, pyseccomp.Arg(0, pyseccomp.EQ, family))
            else:
                program.add_rule(pyseccomp.ALLOW, name)
        except (OSError, ValueError, RuntimeError):
            continue  # a call that this architecture or this libseccomp does not have can't be made either
    program.load()


def main() -> None:
    units, opened, user, *command = sys.argv[1:]
    unit = directives(*map(Path, units.split(":")))
    if user:
        protect_system(opened.split(":") if opened else [])
        kept = " ".join(unit.get("AmbientCapabilities", ())).split()
        capabilities = ",".join(["-all", *("+" + name.removeprefix("CAP_").lower() for name in kept)])
        os.execvp(
            "setpriv",
            ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", f"--inh-caps={capabilities}",
             f"--ambient-caps={capabilities}", f"--bounding-set={capabilities}",
             sys.executable, __file__, units, opened, "", *command],
        )  # fmt: skip
    filter_calls(unit)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
