"""What is made before the first process runs: directories, certificate, sockets; then the privileges go.

Errors: `StartError`, `BindError`, `PemError`, `PrivilegeError`; their texts are for the person at the terminal.
"""

from __future__ import annotations

import os
import pwd
import resource
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pymx.config.listeners import listeners
from pymx.config.model import Config
from pymx.net.listener import adopted_sockets, bind
from pymx.net.privileges import drop_privileges, find_user
from pymx.net.tls import Certificates, certificates_directory

Sockets = Mapping[str, Sequence[socket.socket]]


class StartError(Exception):
    """The server can't start; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Site:
    """What all processes of a server have in common, made before the first of them starts."""

    path: Path
    config: Config
    certificates: Certificates
    sockets: Sockets

    @property
    def data_dir(self) -> Path:
        return Path(self.config.data_dir)

    @property
    def runtime_dir(self) -> Path:
        return Path(self.config.runtime_dir or Path(self.config.control.socket).parent)


def prepare(path: Path, config: Config) -> Site:
    """Everything that may need root: directories, certificate, sockets; then the privileges go."""
    root = config.user != "none" and os.geteuid() == 0
    owner = find_user(config.user) if root else None
    certificates = Certificates(
        config.tls, certificates_directory(config), hostname=config.hostname, temporary=config.acme.enabled
    )
    site = Site(path, config, certificates, {})
    # before the sockets: a Unix socket may lie in one of them
    for directory in (
        site.data_dir,
        site.data_dir / "tls",
        site.data_dir / "spool",
        site.data_dir / "queue",
        site.runtime_dir,
        Path(config.mail.root),
    ):
        _make_directory(directory, owner)
    if certificates.configured:
        certificates.context()
        certificates.mx_context()
    site = replace(site, sockets=_sockets(config, certificates))
    _raise_file_limit()
    if root:
        drop_privileges(config.user)
    return site


def _sockets(config: Config, certificates: Certificates) -> Sockets:
    """The listening sockets by service: systemd's where it has handed some over, else bound here."""
    wanted = listeners(config)
    services = [listener.service for listener in wanted]
    adopted = adopted_sockets(os.environ)
    unknown = sorted(set(adopted) - set(services))
    if unknown:
        raise StartError(
            f"systemd handed over a socket named {', '.join(unknown)}: FileDescriptorName= must be one of "
            + ", ".join(services)
        )
    sockets: dict[str, list[socket.socket]] = {}
    for listener in wanted:
        name, specs = listener.service, listener.specs
        if name not in ("smtp", "lmtp", "status", "http") and specs and not certificates.configured:
            raise StartError(
                f"{listener.setting} needs a certificate: set [tls] certificate and private_key, or [acme] enabled = "
                "true, or run pymxctl cert install"
            )
        sockets[name] = adopted.get(name) or [bind(spec, listener.setting) for spec in specs]
    return sockets


def _make_directory(directory: Path, owner: pwd.struct_passwd | None) -> None:
    """Make what is missing, 0700, for the user the server becomes; what is there stays as it is."""
    if directory.is_dir():
        return
    try:
        directory.mkdir(mode=0o700, parents=True)
        if owner is not None:
            os.chown(directory, owner.pw_uid, owner.pw_gid)
    except OSError as e:
        raise StartError(f"can't make the directory {directory}: {e.strerror}") from None


def _raise_file_limit() -> None:
    """As many open files as the system lets us have: a session is one, a watched mailbox some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
