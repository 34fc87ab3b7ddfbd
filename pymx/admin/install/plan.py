"""Which steps a machine needs, in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from pymx.admin.install import steps
from pymx.admin.install.answers import DATABASE_URL, Answers, config_text
from pymx.admin.install.dropins import dropins
from pymx.admin.install.steps import ROOT, Owner, SetupError, Step
from pymx.admin.install.units import UNITS, unit_text
from pymx.config.load import ConfigError, load, parse
from pymx.config.model import Config

# the backup has no target yet, so its timer waits for somebody who names one; sockets are for who wants them
_WANTED_BY = {"pymx.service": "multi-user.target", "pymx-nightly.timer": "timers.target"}


def effective_config(answers: Answers) -> Config:
    """What is there, or what would be; with its own paths. Raises SetupError."""
    path = answers.at(answers.config)
    try:
        return load(path) if path.exists() else parse(config_text(answers), answers.config)
    except ConfigError as e:
        raise SetupError(str(e)) from None


def located(answers: Answers, config: Config) -> Config:
    """The same with paths as they are now, so that its files can be made."""
    if answers.root == Path("/"):
        return config
    database = config.database
    if database.url_file:
        database = msgspec.structs.replace(database, url_file=str(answers.at(database.url_file)))
    elif database.url.startswith("sqlite"):
        scheme, _, path = database.url.partition(":///")
        database = msgspec.structs.replace(database, url=f"{scheme}:///{answers.at(path)}")
    replace = msgspec.structs.replace
    return replace(
        config,
        data_dir=str(answers.at(config.data_dir)),
        mail=replace(config.mail, root=str(answers.at(config.mail.root))),
        database=database,
        control=replace(config.control, socket=str(answers.at(config.control.socket))),
    )


def plan(answers: Answers, password: Callable[[], str]) -> Iterator[Step]:
    """Steps are made one after the other: later ones look at what earlier ones have made."""

    def vmail() -> Owner:
        return steps.mail_owner(answers.root)

    def readable() -> Owner:
        return Owner(0, vmail().gid)

    config_path = answers.at(answers.config)
    config = located(answers, effective_config(answers))
    if answers.has_secret and not config_path.exists():
        # the file with the URL is not there yet when somebody only looks
        url = msgspec.structs.replace(config.database, url=answers.database_url, url_file="", url_credential="")
        config = msgspec.structs.replace(config, database=url)
    data_dir = Path(config.data_dir)
    yield steps.MailUser(answers.root)
    yield steps.Folder(config_path.parent, 0o750, readable)
    if answers.has_secret and not config_path.exists():
        yield steps.File(answers.at(DATABASE_URL), answers.database_url + "\n", 0o640, readable, keep=True, show=False)
    yield steps.File(config_path, config_text(answers), 0o640, readable, keep=True)
    yield steps.Folder(data_dir, 0o700, vmail)
    yield steps.Folder(Path(config.mail.root), 0o700, vmail)
    yield steps.Tables(config, answers.domains, answers.user, password, vmail)
    for domain in answers.domains:
        yield steps.SigningKey(data_dir / "dkim", domain, "rsa", vmail)
        yield steps.SigningKey(data_dir / "dkim", domain, "ed25519", vmail)
    if answers.certificate == "files":
        yield steps.CopiedCertificate(answers, data_dir, vmail)
        hook = f"#!/bin/sh\n# certbot calls this after each renewal\nexec {answers.programs}/pymxctl cert install\n"
        path = answers.at("/etc/letsencrypt/renewal-hooks/deploy/pymx")
        yield steps.File(path, hook, 0o755, lambda: ROOT)
    for program in ("pymx", "pymxctl"):
        if answers.programs != Path("/usr/local/bin"):
            yield steps.Link(answers.at(f"/usr/local/bin/{program}"), f"{answers.programs}/{program}")
    yield from _systemd(answers, config)


def _systemd(answers: Answers, config: Config) -> Iterator[Step]:
    directory = answers.at("/etc/systemd/system")
    files = [
        *(steps.File(directory / name, unit_text(name, answers.programs), 0o644, lambda: ROOT) for name in UNITS),
        *dropins(answers, config),
    ]
    changed = any(file.pending() for file in files)
    yield from files
    for name, target in _WANTED_BY.items():
        yield steps.Link(directory / f"{target}.wants" / name, f"/etc/systemd/system/{name}")
    if answers.root == Path("/"):
        yield steps.Units(lambda: changed)
