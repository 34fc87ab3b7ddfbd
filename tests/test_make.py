"""The way from a fresh clone: scripts say what is missing, and nothing passes for a success that is none."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support.programs import require

from pymx.config.model import Config
from pymx.supervisor import GRACE_S

ROOT = Path(__file__).parent.parent


def _fake_program(directory: Path, name: str, script: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The scripts in a tree without a virtual environment, and a directory `bin` for made-up programs."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "bin").mkdir()
    for name in ("sh", "dirname", "rm", "id", "touch", "mktemp"):
        (tmp_path / "bin" / name).symlink_to(require(name, "coreutils"))
    _fake_program(tmp_path / "bin", "which", "")
    return tmp_path


def _run(clone: Path, script: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", str(clone / "scripts" / script), *arguments],
        env={"PATH": str(clone / "bin"), **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_machine_without_python_is_told_what_to_install(clone: Path) -> None:
    """A sentence instead of a traceback."""
    done = _run(clone, "make-venv")
    assert done.returncode != 0
    assert "apt-get install python3" in done.stderr


def test_python_that_is_too_old_is_refused_by_name(clone: Path) -> None:
    """PYTHON=… is taken at its word, but not below 3.11."""
    _fake_program(clone / "bin", "oldpython", "exit 1")
    done = _run(clone, "make-venv", PYTHON="oldpython")
    assert done.returncode != 0
    assert "oldpython" in done.stderr


def test_python_without_ensurepip_and_pip_is_told_the_package(clone: Path) -> None:
    """Debian's python3 without python3-venv and python3-pip; no half-made .venv stays behind."""
    _fake_program(clone / "bin", "barepython", f'[ "$1" = -m ] && exit 1\nexec {sys.executable} "$@"')
    done = _run(clone, "make-venv", PYTHON="barepython")
    assert done.returncode == 1
    assert "python3-venv" in done.stderr
    assert not (clone / ".venv").exists()


def test_python_without_ensurepip_is_served_by_another_pip(clone: Path) -> None:
    """`--without-pip`, then `pip --python .venv/bin/python`."""
    refuses = 'case "$*" in "-m venv .venv" | "-m pip "*) exit 1 ;; esac'
    _fake_program(clone / "bin", "barepython", f'{refuses}\nexec {sys.executable} "$@"')
    _fake_program(clone / "bin", "pip3", f'echo "$*" >>{clone}/pip-was-asked')
    done = _run(clone, "make-venv", "[dev]", PYTHON="barepython")
    assert done.returncode == 0, done.stderr
    assert "--python .venv/bin/python install" in (clone / "pip-was-asked").read_text().splitlines()[-1]
    assert (clone / ".venv" / "bin" / "python").exists()


def test_missing_test_programs_are_named_to_who_may_not_install_them(clone: Path) -> None:
    """Not root: the packages and the command are printed, and the tests run with what there is."""
    (clone / "bin" / "id").unlink()
    _fake_program(clone / "bin", "id", "echo 1000")
    done = _run(clone, "install-test-programs")
    assert done.returncode == 0
    assert "apt-get install swaks" in done.stdout
    assert "SKIPPED" in done.stdout


def test_run_without_a_test_is_a_failure(tmp_path: Path) -> None:
    """pytest's status 5 is what `make` and CI see."""
    (tmp_path / "test_nothing.py").write_text("")
    command = re.search(r"^\t\$\(VENV\)/(pytest .*) \$\(TESTS\)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    done = subprocess.run(
        [sys.executable, "-m", *command.replace("$(SEED)", "1").split(), str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 5
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_service_unit_is_sound() -> None:
    """systemd reads it; it waits longer for the end than the server takes to drain."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # keys keep their case
    unit.read(ROOT / "systemd" / "pymx.service")
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert int(service["TimeoutStopSec"]) > Config().drain_s + GRACE_S
    assert service["User"] == Config().user


def test_service_unit_has_no_key_that_systemd_does_not_know(tmp_path: Path) -> None:
    """`systemd-analyze verify`, with a program that is there in place of ours."""
    analyze = require("systemd-analyze", "systemd")
    text = (ROOT / "systemd" / "pymx.service").read_text().replace("/opt/pymx/bin/pymx", "/bin/true")
    path = tmp_path / "pymx.service"
    path.write_text(text)
    done = subprocess.run(
        [analyze, "verify", str(path)], capture_output=True, text=True, timeout=60, env={**os.environ, "LC_ALL": "C"}
    )
    assert "pymx.service" not in done.stderr, done.stderr


def test_service_unit_exposes_little() -> None:
    """`systemd-analyze security`: 1.5 of 10 or less."""
    analyze = require("systemd-analyze", "systemd")
    done = subprocess.run(
        [analyze, "security", "--offline=true", "--threshold=15", str(ROOT / "systemd" / "pymx.service")],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr


def test_each_dependency_has_a_lower_bound() -> None:
    """An older release that happens to be installed must not be taken for good enough."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for group in project["optional-dependencies"].values() for one in group)]
    assert [one for one in wanted if ">=" not in one and "==" not in one and not one.startswith("pymx[")] == []
    assert project["requires-python"] == ">=3.11"
    assert set(project["scripts"]) == {"pymx", "pymxctl"}


def test_make_test_is_format_lint_types_and_tests() -> None:
    """As CI runs it; what make would do is asked of make itself."""
    done = subprocess.run(["make", "-n", "-W", "pyproject.toml", "test"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0
    at = [done.stdout.index(word) for word in ("install-test-programs", "ruff format --check", "ruff check", "mypy")]
    at.append(done.stdout.index("pytest -rs"))
    assert at == sorted(at)
    types = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert types["strict"] is True
    assert "make test" in (ROOT / ".ci" / "run").read_text()
