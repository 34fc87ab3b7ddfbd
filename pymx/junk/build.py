"""Who filters, and who learns what users move to and from Junk, by the configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pymx.config.model import Config
from pymx.config.secret import read_secret
from pymx.junk.filter import Filter
from pymx.junk.learn import Teacher
from pymx.junk.taught import NAME


def build_filter(config: Config, home: Callable[[str], Path]) -> Filter | None:
    """Our own filter, unless rspamd is there. `home` says where an account's mail lies."""
    if config.rspamd.url or not config.junk.own_filter:
        return None
    return Filter(home, config.junk, hostname=config.hostname, taught=taught_file(config))


def taught_file(config: Config) -> Path:
    """What all processes, pymxctl too, mark when they have taught a filter."""
    return Path(config.data_dir) / NAME


def build_teacher(config: Config) -> Teacher | None:
    """rspamd's controller if there is one. Raises SecretUnavailable."""
    settings = config.rspamd
    if not (settings.url and settings.controller_url):
        return None
    # here, because it loads an HTTP library that nobody else needs
    from pymx.junk.controller import RspamdTeacher

    password = read_secret("[rspamd]", "password", settings.password_file, settings.password_credential).strip()
    return RspamdTeacher(
        settings.controller_url, password=password, timeout_s=settings.timeout_s, max_octets=settings.max_octets
    )
