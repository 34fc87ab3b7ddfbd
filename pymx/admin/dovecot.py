"""The Dovecot that is or was here: its settings as doveconf prints them, and whether it runs.

`doveconf` only reads the configuration. Versions 2.3 (`mail_location`) and 2.4 (`mail_path` and others) are understood.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from pymx.admin.context import CtlError
from pymx.ms.dovecotplace import Location

DEFAULT_CONFIG = "/etc/dovecot/dovecot.conf"
DEFAULT_BASE = "/run/dovecot"
_TIMEOUT_S = 20


@dataclass(slots=True)
class Settings:
    """What matters of Dovecot's configuration; `known` is False if there is none to be read."""

    known: bool = False
    location: Location = field(default_factory=lambda: Location("", ""))
    prefix: str = ""
    separator: str = ""
    base_dir: str = DEFAULT_BASE
    home: str = ""
    packing: list[str] = field(default_factory=list)  # plugins that compress or encrypt


@dataclass(slots=True)
class Block:
    """`name { key = value … }`, and the whole file as the block "" ."""

    name: str
    values: dict[str, str] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)


def parse(text: str) -> Block:
    """The output of `doveconf -n`."""
    top = Block("")
    stack = [top]
    for raw in text.splitlines():
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if line.endswith("{"):
            inner = Block(line[:-1].strip())
            stack[-1].blocks.append(inner)
            stack.append(inner)
        elif line == "}":
            if len(stack) > 1:
                stack.pop()
        else:
            key, _, value = line.partition("=")
            stack[-1].values[key.strip()] = value.strip()
    return top


def settings_from(text: str) -> Settings:
    top = parse(text)
    namespaces = [block for block in top.blocks if block.name.split(" ")[0] == "namespace"]
    inbox = next((n for n in namespaces if n.values.get("inbox") == "yes"), Block(""))
    location = Location.parse(inbox.values.get("location") or top.values.get("mail_location", ""))
    if "mail_path" in top.values:  # 2.4
        location = Location(
            top.values.get("mail_driver", ""),
            top.values["mail_path"],
            top.values.get("mailbox_list_layout", "maildir++").lower(),
            top.values.get("mail_control_path", ""),
            top.values.get("mail_index_path", ""),
            top.values.get("mail_inbox_path", ""),
        )
    words = " ".join(value for key, value in top.values.items() if "plugins" in key).split()
    separator = inbox.values.get("separator", "").strip('"') or ("/" if location.layout == "fs" else ".")
    home = next((_home(block) for block in top.blocks if block.name.startswith("userdb") and _home(block)), "")
    return Settings(
        True,
        location,
        inbox.values.get("prefix", "").strip('"'),
        separator,
        top.values.get("base_dir", DEFAULT_BASE),
        home or top.values.get("mail_home", ""),
        sorted({w for w in words if w in ("zlib", "mail_crypt", "mail_compress")}),
    )


def _home(block: Block) -> str:
    words = f"{block.values.get('args', '')} {block.values.get('default_fields', '')}".split()
    return next((word.removeprefix("home=") for word in words if word.startswith("home=")), "")


def settings(config: str | None) -> Settings:
    """Ask doveconf. CtlError if a named file can't be read; without a name and without Dovecot nothing is known."""
    program = shutil.which("doveconf", path=f"{os.environ.get('PATH', '')}:/usr/bin:/usr/sbin:/usr/local/bin")
    path = Path(config or DEFAULT_CONFIG)
    if program is None or not path.exists():
        if config is not None:
            what = f"there is no {path}" if program else "doveconf is not installed"
            raise CtlError(f"Dovecot's configuration can't be read: {what}")
        return Settings()
    done = subprocess.run(  # noqa: S603  (a program of the system, with the admin's file)
        [program, "-c", str(path), "-n"],
        capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=_TIMEOUT_S, check=False,
    )  # fmt: skip
    if done.returncode:
        raise CtlError(f"doveconf -c {path} -n failed: {done.stderr.strip() or done.returncode}")
    return settings_from(done.stdout)


def running(base_dir: str) -> str:
    """How one sees that a Dovecot with this base_dir runs; "" if it does not."""
    try:
        pid = int((Path(base_dir) / "master.pid").read_text().strip() or "0")
        if pid and _alive(pid):
            return f"its master process {pid} runs ({base_dir}/master.pid)"
    except (FileNotFoundError, ValueError, PermissionError, NotADirectoryError):
        pass  # its sockets tell as much
    try:
        names = sorted(os.listdir(base_dir))
    except OSError:
        return ""
    for name in names:
        path = os.path.join(base_dir, name)
        if Path(path).is_socket() and _answers(path):
            return f"somebody listens on {path}"
    return ""


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.settimeout(2)
        try:
            s.connect(path)
        except OSError:
            return False
        return True


def locks(root: bytes) -> list[str]:
    """Lock files of Dovecot in an account's tree whose owner is alive on this host."""
    host = socket.gethostname().encode()
    out = []
    for directory, _, names in os.walk(root):
        for name in names:
            if not name.endswith(b".lock") or not name.startswith((b"dovecot", b"subscriptions")):
                continue
            path = os.path.join(directory, name)
            try:
                with open(path, "rb") as file:
                    pid, _, where = file.read(512).partition(b":")
            except OSError:
                continue
            if where.strip() == host and pid.isdigit() and _alive(int(pid)):
                out.append(os.fsdecode(path))
    return out
