"""Fixtures of more than one file here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ms_sight import Opened, fill


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return fill(tmp_path / "alice")


@pytest.fixture
def opened() -> Iterator[Opened]:
    several = Opened()
    yield several
    for there in several.accounts:
        there.close()
