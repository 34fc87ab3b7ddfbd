"""What is known before a machine is set up, and the configuration that follows from it. PURE but for one look."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

UID = GID = 5000  # of `vmail`, as nearly every guide has it: an existing Maildir keeps its owner
USER = "vmail"
CONFIG = "/etc/pymx/pymx.toml"
DATABASE_URL = "/etc/pymx/database-url"


@dataclass(frozen=True, slots=True)
class Answers:
    """`certificate` is acme, files (certbot's, already there) or later. `programs` is where pymx and pymxctl are.

    `root` is the top of the tree that is set up: "/" or an image that is being built.
    """

    hostname: str
    domains: tuple[str, ...]
    user: str
    database_url: str
    certificate: str
    contact: str
    programs: Path
    root: Path
    ipv6: bool = True
    config: str = CONFIG

    def at(self, path: str | Path) -> Path:
        """Where an absolute path of the machine lies now."""
        return self.root / str(path).lstrip("/")

    @property
    def has_secret(self) -> bool:
        """A URL with a password goes into a file of its own."""
        return "@" in self.database_url

    @property
    def lineage(self) -> str:
        """Where certbot keeps the host's certificate."""
        return f"/etc/letsencrypt/live/{self.hostname}"


def config_text(answers: Answers) -> str:
    """pymx.toml with what differs from the defaults."""
    both = ["0.0.0.0", "[::]"] if answers.ipv6 else ["0.0.0.0"]  # noqa: S104  # a mail server is for everybody

    def listen(port: int) -> str:
        return "[" + ", ".join(f'"{host}:{port}"' for host in both) + "]"

    lines = [
        "# Made by `pymxctl setup`, which does not change it any more: edit it, then systemctl reload pymx (it says",
        "# when a restart is needed). Every key and its default: docs/settings.md and config/pymx.toml.",
        "",
        f'hostname = "{answers.hostname}"',
    ]
    sections: dict[str, list[str]] = {}
    if answers.has_secret:
        sections["database"] = [f'url_file = "{DATABASE_URL}"']
    elif answers.database_url:
        sections["database"] = [f'url = "{answers.database_url}"']
    if answers.user:
        sections["accounts"] = ["# who reads postmaster@ and abuse@", f'postmaster = "{answers.user}"']
    if not answers.ipv6:
        sections["smtp"] = [f"listen = {listen(25)}"]
        sections["submission"] = [f"listen_tls = {listen(465)}", f"listen_starttls = {listen(587)}"]
        sections["imap"] = [f"listen_tls = {listen(993)}"]
    if answers.certificate == "acme":
        sections["acme"] = ["enabled = true", f'contact = "{answers.contact}"']
        sections["web"] = [
            "# for the certificate authority, and for mail clients that set themselves up",
            f"listen = {listen(80)}",
            f"listen_tls = {listen(443)}",
        ]
    for name, keys in sections.items():
        lines += ["", f"[{name}]", *keys]
    return "\n".join(lines) + "\n"
