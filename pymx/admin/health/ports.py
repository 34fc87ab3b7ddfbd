"""Our ports: held by us while we run, else by nobody."""

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
    # mail does not depend on [status]
    found = (listener for listener in listeners(subject.config) if listener.service != "status")
    for setting, host, port in ((x.setting, *endpoint) for x in found for endpoint in endpoints(x.specs)):
        name = f"port:{host}:{port}"
        where = f"port {port} at {host}"
        holders = at(subject.listening, host, port)
        others = [h for h in holders if not _is_ours(h)]
        if subject.running:
            if not holders:
                yield fail(
                    name,
                    f"nobody listens at {where} ({setting}), although pymx runs",
                    "systemctl restart pymx",
                    "mail servers or clients can't connect there",
                )
            # systemd holds what a socket unit hands over to us; another's we could not have bound beside it
            elif named := [h for h in others if h.program not in ("", "systemd")]:
                yield _taken(name, where, named[0])
            elif others:
                # the kernel shows nobody but root what a process with a capability has open; ours has one
                yield ok(name, f"{where} has a listener; pymx, which runs, would not have started without its own")
            else:
                yield ok(name, f"pymx listens at {where}")
        elif not holders:
            yield ok(name, f"{where} is free ({setting})")
        elif others:
            yield _taken(name, where, others[0])
        else:
            yield info(
                name, f"a pymx listens at {where}, but not at our control socket", "is it one of another config?"
            )


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
