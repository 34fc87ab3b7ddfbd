"""Our ports: held by us while we run, else by nobody, or by systemd in our place."""

from __future__ import annotations

import os
from collections.abc import Iterator

from pymx.admin.health.finding import Finding, fail, info, ok
from pymx.admin.health.listening import Holder, at
from pymx.admin.health.subject import Subject
from pymx.config.listeners import endpoints, listeners

# program → what it is, and how it is put away
_KNOWN = {
    "master": ("Postfix", "systemctl disable --now postfix"),
    "exim4": ("Exim", "systemctl disable --now exim4"),
    "exim": ("Exim", "systemctl disable --now exim"),
    "sendmail": ("Sendmail", "systemctl disable --now sendmail"),
    "sendmail-mta": ("Sendmail", "systemctl disable --now sendmail"),
    "smtpd": ("OpenSMTPD", "systemctl disable --now opensmtpd"),
    "dovecot": ("Dovecot", "systemctl disable --now dovecot.socket dovecot"),
    "imap-login": ("Dovecot", "systemctl disable --now dovecot.socket dovecot"),
    "couriertcpd": ("Courier", "systemctl disable --now courier-imap"),
    "stalwart": ("Stalwart", "systemctl disable --now stalwart"),
    "stalwart-mail": ("Stalwart", "systemctl disable --now stalwart-mail"),
    "maddy": ("maddy", "systemctl disable --now maddy"),
    "mox": ("mox", "systemctl disable --now mox"),
    "docker-proxy": ("a Docker container", "docker ps, and stop the container that publishes the port"),
    "nginx": ("nginx", "take that port out of its listen lines"),
    "apache2": ("Apache", "take that port out of its Listen lines"),
    "caddy": ("Caddy", "take that port out of its configuration"),
    "systemd": ("systemd (a socket unit)", "systemctl list-sockets, and disable the unit, if it is not pymx's own"),
}


def check(subject: Subject) -> Iterator[Finding]:
    for listener in listeners(subject.config):
        if listener.service == "status":
            continue  # mail does not depend on it
        # what a socket unit hands over counts, and not the setting
        handed = subject.activation.endpoints(listener.service)
        for host, port in handed or endpoints(listener.specs):
            setting = subject.activation.unit_at(host, port) if handed else listener.setting
            yield _port(subject, setting, host, port)


def _port(subject: Subject, setting: str, host: str, port: int) -> Finding:
    name, where = f"port:{host}:{port}", f"port {port} at {host}"
    holders = at(subject.listening, host, port)
    others = [holder for holder in holders if not _is_ours(holder)]
    if subject.running:
        return _while_running(name, where, setting, holders, others)
    strangers = [holder for holder in others if not _is_for_us(subject, holder)]
    if strangers:
        return _taken(name, where, strangers[0])
    if others:
        text = f"systemd listens at {where} in place of pymx, which does not run ({setting})"
        return info(name, text, "systemctl start pymx", "who connects there waits for pymx to start")
    if holders:
        return info(name, f"a pymx listens at {where}, but not at our control socket", "is it one of another config?")
    return ok(name, f"{where} is free ({setting})")


def _while_running(name: str, where: str, setting: str, holders: list[Holder], others: list[Holder]) -> Finding:
    if not holders:
        return fail(
            name,
            f"nobody listens at {where} ({setting}), although pymx runs",
            "systemctl restart pymx",
            "mail servers or clients can't connect there",
        )
    # systemd holds what a socket unit hands over to us; another's we could not have bound beside it
    if named := [holder for holder in others if holder.program not in ("", "systemd")]:
        return _taken(name, where, named[0])
    if others:
        # the kernel shows nobody but root what a process with a capability has open; ours has one
        return ok(name, f"{where} has a listener; pymx, which runs, would not have started without its own")
    return ok(name, f"pymx listens at {where}")


def _is_for_us(subject: Subject, holder: Holder) -> bool:
    """Does systemd have that socket for us? Its process is hidden from all but root."""
    return holder.program in ("", "systemd") and bool(subject.activation.unit_at(holder.address, holder.port))


def _is_ours(holder: Holder) -> bool:
    words = holder.command.split()
    return "serve" in words and any(word.endswith("pymx") for word in words)


def _taken(name: str, where: str, holder: Holder) -> Finding:
    if not holder.program:
        remedy = "see which: ss -ltnp" + (" (as root)" if os.geteuid() else "")
        return fail(
            name,
            f"{where} is taken by another program",
            remedy,
            "pymx can't listen there, so what comes to that port does not reach it",
        )
    title, remedy = _KNOWN.get(holder.program, (holder.program, f"stop process {holder.pid}, or give us another port"))
    said = f"{title} (process {holder.pid})" if title != holder.program else f"{holder.program} (process {holder.pid})"
    return fail(
        name,
        f"{where} is taken by {said}",
        remedy,
        "pymx can't listen there, so what comes to that port does not reach it",
    )
