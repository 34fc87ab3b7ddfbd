"""A machine of its own, as far as that goes without one: a root directory with its own /etc and /var, its own network.

    with Machine(tmp_path) as machine:
        machine.run("pymxctl", "setup", …)
        server = machine.start("pymx", "serve", "--config", "/etc/pymx/pymx.toml")

The programs are this machine's, mounted into it; or those of another system's tree, pymx among them. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

import pymx

_SYSTEM = ("usr", "bin", "sbin", "lib", "lib64", "lib32", "libx32")
_ENTER = """
set -e
mount --make-rprivate /
cd "$0"
for path in {binds}; do mkdir -p ".$path"; mount --rbind "$path" ".$path"; done
mount -t proc proc proc
mount -t tmpfs tmpfs dev
for name in null zero full random urandom tty; do touch dev/$name; mount --bind /dev/$name dev/$name; done
{python} -c '
import fcntl, socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
fcntl.ioctl(s, 0x8914, struct.pack("16sh", b"lo", 0x41))'
exec chroot . sleep infinity
"""


def is_possible() -> str:
    """Why there can be no such machine here; "" if there can."""
    if os.geteuid():
        return "needs root"
    try:
        tried = subprocess.run(
            ["unshare", "--mount", "--net", "--pid", "--fork", "--", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
            capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        return "needs unshare (util-linux)"
    return tried.stderr.strip() if tried.returncode else ""


def _below(pid: int) -> list[int]:
    """Children of a process, and theirs."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [int(child), *_below(int(child))]
    return found


class Machine:
    """`tree`: a root file system with pymx in `programs`; without one, /usr and Python are this machine's."""

    def __init__(self, directory: Path, tree: Path | None = None, programs: Path | None = None) -> None:
        self.root = tree or directory / "root"
        self._holder: subprocess.Popen[str] | None = None
        self._own_system = tree is None
        self.programs = programs or Path(sys.executable).parent

    def __enter__(self) -> Machine:
        for name in ("etc", "var/lib", "run", "tmp", "proc", "dev", "root"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        (self.root / "tmp").chmod(0o1777)
        (self.root / "root").chmod(0o755)
        binds: set[str] = set()
        if self._own_system:
            binds = {str(Path(sys.prefix)), str(Path(sys.base_prefix)), str(Path(pymx.__file__).parent.parent)}
            self._make_etc()
            for name in _SYSTEM:
                here = Path("/") / name
                if here.is_symlink():
                    (self.root / name).symlink_to(os.readlink(here))
                elif here.is_dir():
                    binds.add(str(here))
        shadowed = {b for b in binds for other in binds if b != other and b.startswith(other + "/")}
        script = _ENTER.format(binds=" ".join(sorted(binds - shadowed)), python=sys.executable)
        self._holder = subprocess.Popen(
            [
                "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--",
                "sh", "-c", script, str(self.root),
            ],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._wait()
        return self

    def _make_etc(self) -> None:
        etc = self.root / "etc"
        (etc / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/usr/sbin/nologin\n")
        (etc / "group").write_text("root:x:0:\nnogroup:x:65534:\n")
        (etc / "shadow").write_text("root:*:19000:0:99999:7:::\n")
        (etc / "hosts").write_text("127.0.0.1 localhost\n")
        for name in ("ld.so.cache", "login.defs", "pam.d", "nsswitch.conf", "ssl"):
            source = Path("/etc") / name
            if source.is_dir():
                subprocess.run(["cp", "-rL", str(source), str(etc / name)], check=False, capture_output=True)
            elif source.exists():
                (etc / name).write_bytes(source.read_bytes())

    def _wait(self) -> None:
        from support.wait import wait_for

        assert self._holder is not None

        def ready() -> bool:
            assert self._holder is not None
            if self._holder.poll() is not None:
                assert self._holder.stderr is not None
                raise AssertionError(f"no machine: {self._holder.stderr.read()}")
            return self._inside() is not None

        wait_for(ready, timeout_s=20, what="the machine is up")

    def _inside(self) -> str | None:
        """Process id of `sleep`, which is in all the namespaces."""
        assert self._holder is not None
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text().split()
        for child in children:
            with contextlib.suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text().strip() == "sleep":
                    return child
        return None

    @property
    def pid(self) -> str:
        """Process id, seen from here, of one that is in all its namespaces."""
        inside = self._inside()
        assert inside is not None
        return inside

    def command(self, *words: str) -> list[str]:
        inside = self.pid
        ours = self.programs / words[0]
        there = ours if self._own_system else self.root / str(ours).lstrip("/")
        first = str(ours) if there.exists() or there.is_symlink() else words[0]
        enter = ["nsenter", "--mount", "--net", "--pid", f"--target={inside}", f"--root=/proc/{inside}/root", "--wd=/"]
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return [*enter, "--", "env", "-i", path, "LC_ALL=C.UTF-8", first, *words[1:]]

    def run(self, *words: str, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(self.command(*words), input=stdin, capture_output=True, text=True, timeout=120)
        if check and done.returncode:
            raise AssertionError(f"{words}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command(*words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    @staticmethod
    def kill(process: subprocess.Popen[str]) -> None:
        """End what `start` started, with its children: nsenter is only their parent."""
        for pid in [*_below(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._holder is not None:
            self._holder.kill()  # its child, and all that is in there, go with it
            self._holder.wait()
            assert self._holder.stderr is not None
            self._holder.stderr.close()
