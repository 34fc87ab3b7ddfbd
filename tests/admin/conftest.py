"""pymxctl on an appliance of its own, run in this process."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pymx.admin import ctl


@dataclass
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@dataclass
class Ctl:
    config: Path
    root: Path
    socket: Path
    run: Callable[..., Done]

    def __call__(self, *words: str, stdin: str = "") -> Done:
        return self.run("--config", str(self.config), *words, stdin=stdin)

    def ok(self, *words: str, stdin: str = "") -> Done:
        done = self(*words, stdin=stdin)
        assert done.status == 0, done
        return done


@pytest.fixture
def run_ctl(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    def run(*words: str, stdin: str = "") -> Done:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        status = ctl.main(words)
        captured = capsys.readouterr()
        return Done(status, captured.out, captured.err)

    return run


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[[str], Path]:
    def write(database_url: str) -> Path:
        (tmp_path / "vmail").mkdir()
        path = tmp_path / "pymx.toml"
        path.write_text(
            f'hostname = "mx.example.test"\ndata_dir = "{tmp_path}"\nuser = "none"\n'
            f'[database]\nurl = "{database_url}"\n[mail]\nroot = "{tmp_path}/vmail"\n'
            f'[accounts]\nbcrypt_cost = 4\n[control]\nsocket = "{tmp_path}/run/control.sock"\n'
        )
        return path

    return write


@pytest.fixture
def pymxctl(write_config: Callable[[str], Path], run_ctl: Callable[..., Done], tmp_path: Path) -> Ctl:
    """With an empty SQLite database."""
    config = write_config(f"sqlite:///{tmp_path}/pymx.sqlite")
    return Ctl(config, tmp_path / "vmail", tmp_path / "run" / "control.sock", run_ctl)
