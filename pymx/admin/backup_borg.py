"""Backups in a BorgBackup repository: deduplicated, compressed, encrypted, here or on another host (ssh://…).

Borg's own commands do the work; an archive that was not finished has another name and is not listed. The passphrase
comes from `[backup] passphrase_file` or `passphrase_credential`, or from Borg's variables (BORG_PASSPHRASE,
BORG_PASSCOMMAND) in the environment. A repository that is not there is made, if there is a passphrase, encrypted with
the key in the repository (`borg key export` gives it out, for the safe).

Borg knows by path, inode, size and time which files it has read before; hashes of messages are taken from the lists of
the last backup (`<data_dir>/backup/lists`), so that unchanged mail is not read again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pymx.admin.backup_lists import LISTS, Entry, Manifest, sha256, write_lists
from pymx.admin.backup_place import directory_of, refuse_read_only
from pymx.admin.backup_retention import when
from pymx.admin.context import Context, CtlError, Exit
from pymx.config.secret import SecretUnavailable, read_secret

_LOCK_WAIT_S = 60
_WARNING = 1  # Borg's exit status: done, but a file changed or could not be read
_DOES_NOT_EXIST = "Repository.DoesNotExist"


class BorgFailure(CtlError):
    """Borg said no; `message_id` is its name for why, if it gave one."""

    def __init__(self, text: str, message_id: str = "") -> None:
        super().__init__(text, Exit.FAILED)
        self.message_id = message_id


class BorgTarget:
    def __init__(self, repository: str, context: Context) -> None:
        self.repository = repository
        self.text = f"borg:{repository}"
        self.encrypted = False
        self._prefix = f"pymx-{context.config.hostname or 'server'}-"
        self._state = Path(context.config.data_dir) / "backup"
        self._scratch: Path | None = None
        self._backup = context.config.backup
        program = shutil.which("borg")
        if program is None:
            raise CtlError("BorgBackup is not installed: apt install borgbackup")
        self._program = program

    def prepare(self) -> None:
        """Make the repository if it is missing, and find out whether it is encrypted."""
        place = directory_of(self.text)
        if place is not None:
            refuse_read_only(place)
        try:
            mode = self._mode()
        except BorgFailure as e:
            if e.message_id != _DOES_NOT_EXIST:
                raise
            if not any(name in self._environment() for name in ("BORG_PASSPHRASE", "BORG_PASSCOMMAND")):
                raise CtlError(
                    f"there is no repository {self.repository}; to have one made, put a passphrase into a file, keep "
                    f"a copy elsewhere, and name it: [backup] passphrase_file"
                ) from None
            self._run("init", "--encryption", "repokey-blake2", "--make-parent-dirs", self.repository)
            mode = self._mode()
        self.encrypted = mode not in ("none", "authenticated", "authenticated-blake2")

    def _mode(self) -> str:
        return str(json.loads(self._run("info", "--json", self.repository))["encryption"]["mode"])

    def names(self) -> list[str]:
        listed = json.loads(self._run("list", "--json", "--glob-archives", f"{self._prefix}*", self.repository))
        found = (str(archive["name"]).removeprefix(self._prefix) for archive in listed["archives"])
        return sorted(name for name in found if when(name))

    def create(self, stage: Path, manifest: Manifest, name: str, *, full: bool) -> None:
        previous = None if full else self._state

        def store(file: str, earlier: Entry | None) -> str:
            path = stage / file
            if path.is_symlink():
                return ""
            return earlier.sha256 if earlier is not None else sha256(str(path))

        write_lists(stage, stage, manifest, previous, store)
        manifest.write(stage)
        cache = "disabled" if full else "mtime,size,inode"  # ctime changes with each link
        archive = f"{self.repository}::{self._prefix}{name}"
        self._run("create", "--compression", "auto,zstd", "--files-cache", cache, archive, ".", cwd=stage)
        new = self._state / "lists.new"
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(stage / LISTS, new)
        shutil.rmtree(self._state / LISTS, ignore_errors=True)
        os.rename(new, self._state / LISTS)

    @contextmanager
    def open(self, name: str) -> Iterator[Path]:
        """The tree, extracted into a directory of its own that goes in the end."""
        with tempfile.TemporaryDirectory(prefix="pymx-borg-") as directory:
            self._scratch = Path(directory)
            tree = self._scratch / "tree"
            tree.mkdir()
            self._run("extract", f"{self.repository}::{self._prefix}{name}", cwd=tree)
            yield tree

    def remove(self, names: list[str]) -> None:
        if names:
            self._run("delete", self.repository, *(f"{self._prefix}{name}" for name in names))
            self._run("compact", self.repository)

    def scratch(self) -> Path | None:
        return self._scratch

    def _environment(self) -> dict[str, str]:
        base = self._state / "borg"
        environment = {
            **os.environ,
            "BORG_BASE_DIR": str(base),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",  # nobody is there to ask
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
            "LC_ALL": "C.UTF-8",
        }
        file, credential = self._backup.passphrase_file, self._backup.passphrase_credential
        if file or credential:
            try:
                environment["BORG_PASSPHRASE"] = read_secret("[backup]", "passphrase", file, credential)
            except SecretUnavailable as e:
                raise CtlError(str(e)) from None
        return environment

    def _run(self, command: str, *arguments: str, cwd: Path | None = None) -> str:
        """Standard output of one command. Raises BorgFailure."""
        (self._state / "borg").mkdir(mode=0o700, parents=True, exist_ok=True)
        done = subprocess.run(  # noqa: S603  (Borg, with the admin's repository)
            [self._program, "--log-json", "--lock-wait", str(_LOCK_WAIT_S), command, *arguments],
            cwd=cwd, env=self._environment(), capture_output=True, text=True, errors="replace",
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        if done.returncode == 0 or (done.returncode == _WARNING and command not in ("create", "extract")):
            return done.stdout
        texts, message_id = _messages(done.stderr)
        what = "; ".join(texts) or f"exit status {done.returncode}"
        raise BorgFailure(f"borg {command}: {what}", message_id)


def _messages(stderr: str) -> tuple[list[str], str]:
    """What Borg complained about, and its name for the last complaint that has one."""
    texts, message_id = [], ""
    for line in stderr.splitlines():
        try:
            item = json.loads(line)
        except ValueError:
            if line.strip():
                texts.append(line.strip())
            continue
        if item.get("type") == "log_message" and item.get("levelname") in ("WARNING", "ERROR", "CRITICAL"):
            texts.append(str(item.get("message", "")).splitlines()[0] if item.get("message") else "")
            message_id = item.get("msgid") or message_id
    return texts[-5:], message_id
