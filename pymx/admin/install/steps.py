"""The steps of setting a machine up.

A step's `pending` says what it would do, for a person ("" = nothing, it is done already); `apply` does it. Both may be
called again at any time; after a kill in between, the next run goes on. `SetupError` says what to do.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pymx.accounts.account import AccountsError
from pymx.accounts.passwords import make
from pymx.accounts.registry import Registry
from pymx.admin.install.answers import GID, UID, USER, Answers
from pymx.config.model import Config
from pymx.mailauth.dkim import keys
from pymx.mailauth.dkim.keys import Algorithm, KeyUnusable

_SECRET = 0o600


class SetupError(Exception):
    """A step can't be done; the text says why and what to do."""


class Step(Protocol):
    @property
    def title(self) -> str: ...

    def pending(self) -> str: ...

    def apply(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Owner:
    """Numbers, since names may not be there yet."""

    uid: int
    gid: int

    def give(self, path: Path) -> None:
        """Nothing when we are not root: a tree of one's own stays one's own."""
        if os.geteuid() == 0:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def has(self, path: Path) -> bool:
        found = path.stat()
        return os.geteuid() != 0 or (found.st_uid, found.st_gid) == (self.uid, self.gid)


ROOT = Owner(0, 0)


def mail_owner(root: Path) -> Owner:
    """Whose the mail is: the user of the tree, or who will be."""
    found = _passwd(root).get(USER)
    return Owner(*found) if found else Owner(UID, GID)


def _passwd(root: Path) -> dict[str, tuple[int, int]]:
    if root == Path("/"):
        return {entry.pw_name: (entry.pw_uid, entry.pw_gid) for entry in pwd.getpwall()}
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for line in (root / "etc/passwd").read_text().splitlines():
            words = line.split(":")
            if len(words) == 7 and words[2].isdigit() and words[3].isdigit():
                found[words[0]] = (int(words[2]), int(words[3]))
    return found


@dataclass(frozen=True, slots=True)
class MailUser:
    """`vmail`, 5000:5000; one that exists stays as it is."""

    root: Path
    title: str = f"user {USER}"

    def pending(self) -> str:
        if not (self.root / "etc/passwd").exists():
            return ""  # a tree without users
        known = _passwd(self.root)
        if USER in known:
            return ""
        taken = next((name for name, (uid, _) in known.items() if uid == UID), "")
        if taken:
            raise SetupError(
                f"the user number {UID} is {taken}'s; make the user yourself (useradd --system --user-group "
                f"--home-dir /var/vmail --shell /usr/sbin/nologin {USER}) and run setup again"
            )
        return f"add {USER} ({UID}:{GID}, no login)"

    def apply(self) -> None:
        # shadow-utils has the same options everywhere; --prefix works on a tree of another machine
        where = [] if self.root == Path("/") else ["--prefix", str(self.root)]
        groups = (self.root / "etc/group").read_text() if (self.root / "etc/group").exists() else ""
        if not any(line.startswith(f"{USER}:") for line in groups.splitlines()):
            _run(["groupadd", *where, "--gid", str(GID), USER])
        _run(
            [
                "useradd", *where, "--uid", str(UID), "--gid", USER, "--home-dir", "/var/vmail", "--no-create-home",
                "--shell", "/usr/sbin/nologin", "--comment", "pymx mail server", USER,
            ]
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Folder:
    """A directory with its mode and owner; what lies in it is left alone."""

    path: Path
    mode: int
    owner: Callable[[], Owner]

    @property
    def title(self) -> str:
        return str(self.path)

    def pending(self) -> str:
        if not self.path.exists():
            return f"make the directory {self.path} ({self.mode:04o})"
        wrong = self.path.stat().st_mode & 0o7777 & ~self.mode
        if not self.owner().has(self.path):
            owner = self.owner()
            return f"give the directory {self.path} to {owner.uid}:{owner.gid}"
        return f"take rights from the directory {self.path} ({self.mode:04o})" if wrong & 0o077 else ""

    def apply(self) -> None:
        if not self.path.exists():
            self.path.mkdir(parents=True, mode=self.mode)
            self.path.chmod(self.mode)
        else:
            self.path.chmod(self.path.stat().st_mode & 0o7777 & ~(0o077 & ~self.mode))
        self.owner().give(self.path)


@dataclass(frozen=True, slots=True)
class File:
    """A file of ours. `keep`: one that is there stays as it is, whatever it says. `show`: its text may be printed."""

    path: Path
    text: str
    mode: int
    owner: Callable[[], Owner]
    keep: bool = False
    show: bool = True

    @property
    def title(self) -> str:
        return str(self.path)

    def pending(self) -> str:
        try:
            before = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            before = ""
            if not self.show:
                return f"write {self.path} ({self.mode:04o})"
        else:
            if self.keep or before == self.text:
                return ""
            if not self.show:
                return f"change {self.path}"
        return "".join(
            difflib.unified_diff(
                before.splitlines(keepends=True), self.text.splitlines(keepends=True),
                str(self.path) if before else "/dev/null", str(self.path),
            )
        ).rstrip("\n")  # fmt: skip

    def apply(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_name(f".{self.path.name}.new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _SECRET)
        with os.fdopen(fd, "w", encoding="utf-8") as f:
            self.owner().give(new)
            os.fchmod(fd, self.mode)
            f.write(self.text)
            f.flush()
            os.fsync(fd)
        new.rename(self.path)


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link. `target` is as the machine will see it; something else that is there stays."""

    path: Path
    target: str

    @property
    def title(self) -> str:
        return str(self.path)

    def pending(self) -> str:
        if self.path.is_symlink() or self.path.exists():
            return ""
        return f"link {self.path} to {self.target}"

    def apply(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.symlink_to(self.target)


@dataclass(frozen=True, slots=True)
class Tables:
    """The accounts database, with its domains and the first user. `hash_` is made only when it is needed."""

    config: Config  # with the paths as they are now
    domains: tuple[str, ...]
    user: str
    password: Callable[[], str]
    owner: Callable[[], Owner]
    title: str = "accounts"

    def pending(self) -> str:
        with _registry(self.config) as registry:
            try:
                known = {entry.name for entry in registry.domains()}
                has_user = not self.user or registry.has_user(self.user)
            except AccountsError as e:
                if not self._is_empty():
                    raise SetupError(f"the accounts database: {e.reason}") from None
                known, has_user = set(), not self.user
                return "\n".join(["make the tables of the accounts database", *self._missing(known, has_user)])
        return "\n".join(self._missing(known, has_user))

    def _missing(self, known: set[str], has_user: bool) -> list[str]:
        lines = [f"add the domain {name}" for name in self.domains if name not in known]
        return lines if has_user else [*lines, f"add the user {self.user}"]

    def _is_empty(self) -> bool:
        """Not there yet, or without our tables: a database that is down is another thing."""
        from pymx.accounts.account import DirectoryUnavailable

        path = self._file()
        if path is not None:
            return not path.exists() or path.stat().st_size == 0
        try:
            with _registry(self.config) as registry:
                registry.domains()
        except DirectoryUnavailable:
            return False
        except AccountsError:
            return True
        return False

    def _file(self) -> Path | None:
        url = self.config.database.url
        database = self.config.database
        if database.url_file or database.url_credential or not url.startswith("sqlite"):
            return None
        return Path(url.partition(":///")[2].partition("?")[0])

    def apply(self) -> None:
        try:
            with _registry(self.config) as registry:
                registry.migrate()
                known = {entry.name for entry in registry.domains()}
                for name in self.domains:
                    if name not in known:
                        registry.add_domain(name)
                if self.user and not registry.has_user(self.user):
                    registry.add_user(self.user, make(self.password(), self.config.accounts.bcrypt_cost))
        except AccountsError as e:
            raise SetupError(f"the accounts database: {e.reason}") from None
        path = self._file()
        if path is not None:
            for file in path.parent.glob(path.name + "*"):
                file.chmod(_SECRET)
                self.owner().give(file)


@contextlib.contextmanager
def _registry(config: Config) -> Iterator[Registry]:
    try:
        registry = Registry(config.database)
    except AccountsError as e:
        raise SetupError(f"the accounts database: {e.reason}") from None
    try:
        yield registry
    finally:
        registry.close()


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A DKIM key of one algorithm for a domain."""

    directory: Path
    domain: str
    algorithm: Algorithm
    owner: Callable[[], Owner]

    @property
    def title(self) -> str:
        return f"DKIM key of {self.domain}"

    def pending(self) -> str:
        try:
            has = {key.algorithm.partition("-")[0] for key in keys.active_keys(self.directory, self.domain)}
        except KeyUnusable as e:
            raise SetupError(str(e)) from None
        return "" if self.algorithm in has else f"make a DKIM key for {self.domain} ({self.algorithm})"

    def apply(self) -> None:
        selector = time.strftime("%Y%m", time.gmtime()) + self.algorithm
        keys.generate(self.directory, self.domain, selector, algorithm=self.algorithm)
        folder = keys.domain_directory(self.directory, self.domain)
        for path in (self.directory, folder, *folder.iterdir()):
            self.owner().give(path)


@dataclass(frozen=True, slots=True)
class CopiedCertificate:
    """certbot's certificate, copied to where the server may read it."""

    answers: Answers
    data_dir: Path
    owner: Callable[[], Owner]
    title: str = "certificate"

    def pending(self) -> str:
        from pymx.certs.files import place

        return "" if place(self.data_dir, self.answers.hostname).exists() else (
            f"copy the certificate in {self.answers.lineage}"
        )  # fmt: skip

    def apply(self) -> None:
        from pymx.certs.files import NotInstalled, install, place

        lineage = self.answers.at(self.answers.lineage)
        try:
            install(
                self.data_dir, self.answers.hostname,
                (lineage / "privkey.pem").read_bytes(), (lineage / "fullchain.pem").read_bytes(),
            )  # fmt: skip
        except (NotInstalled, OSError) as e:
            raise SetupError(f"the certificate in {lineage}: {e}") from None
        path = place(self.data_dir, self.answers.hostname)
        for each in (path.parent, path):
            self.owner().give(each)


@dataclass(frozen=True, slots=True)
class Units:
    """systemd reads its units again. Nothing to do where it does not run."""

    changed: Callable[[], bool]
    title: str = "systemd"

    def pending(self) -> str:
        if self.changed() and Path("/run/systemd/system").is_dir() and shutil.which("systemctl"):
            return "systemctl daemon-reload"
        return ""

    def apply(self) -> None:
        _run(["systemctl", "daemon-reload"])


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)  # noqa: S603
    except FileNotFoundError:
        raise SetupError(f"{command[0]} is not there; install it (Debian: passwd, Fedora: shadow-utils)") from None
    if done.returncode:
        raise SetupError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
