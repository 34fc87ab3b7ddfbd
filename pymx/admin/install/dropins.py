"""Drop-ins of the systemd units that follow from the configuration. These files are ours: own ones have other names."""

from __future__ import annotations

from collections.abc import Iterator

from pymx.admin import backup_place
from pymx.admin.install.answers import Answers
from pymx.admin.install.steps import ROOT, File
from pymx.config.model import Config


def dropins(answers: Answers, config: Config) -> Iterator[File]:
    directory = answers.at("/etc/systemd/system")
    target = backup_place.directory_of(config.backup.target)
    if target is not None and target != backup_place.DEFAULT:
        text = backup_place.drop_in(target)
        yield File(directory / backup_place.DROP_IN, text, 0o644, lambda: ROOT)
