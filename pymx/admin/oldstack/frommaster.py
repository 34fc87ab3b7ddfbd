"""What pymx can take over of Postfix's master.cf: where it listens, and what a service says otherwise than main.cf."""

from __future__ import annotations

import re

from pymx.admin.oldstack.names import POSTFIX_SAME
from pymx.admin.oldstack.postfix import Postfix, Service, Value
from pymx.admin.oldstack.report import Fate, Report
from pymx.admin.oldstack.restrictions import restrictions


def take(old: Postfix, report: Report) -> None:
    """Look at every service."""
    seen = {"submission": False, "submissions": False}
    inet = [_port(s) for s in old.services if s.kind == "inet" and s.command in ("smtpd", "postscreen")]
    main = 25 if 25 in inet or not inet else inet[0]
    for service in old.services:
        here = Value(f"{service.kind} … {service.command}", service.file, service.line)
        if service.kind in ("inet",) and service.command in ("smtpd", "postscreen"):
            _listener(old, service, here, report, seen, main)
        elif service.command in ("pipe", "spawn"):
            used = any(re.search(rf"\b{re.escape(service.name)}\b", value.text) for value in old.parameters.values())
            fate = Fate.LOST if used else Fate.SAME
            report.say(
                here, service.name, fate, "mail goes to no other program" if used else "nothing in main.cf uses it"
            )
        elif service.kind == "inet":
            report.say(here, service.name, Fate.LOST, f"{service.command} on a port of its own")
    if old.services:
        for name, key in (("submission", "listen_starttls"), ("submissions", "listen_tls")):
            if not seen[name]:
                here = Value("not there", str(old.directory / "master.cf"), 1)
                report.say(here, name, Fate.DIFFERENT, f"[submission] {key} keeps its default: the port is open now")


def _port(service: Service) -> int:
    port = service.name.rpartition(":")[2]
    numbers = {"smtp": 25, "submission": 587, "submissions": 465, "smtps": 465}
    return numbers.get(port) or (int(port) if port.isdigit() else 0)


def _listener(old: Postfix, service: Service, here: Value, report: Report, seen: dict[str, bool], main: int) -> None:
    """`main` is the port for other servers: 25, or the first there is."""
    host, number = service.name.rpartition(":")[0], _port(service)
    addresses: list[object] = [f"{a}:{number}" for a in ([host] if host else _interface_addresses(old))]
    if service.options.get("smtpd_tls_wrappermode") == "yes":
        report.take(here, service.name, "submission", "listen_tls", addresses)
        seen["submissions"] = True
    elif number == 587 or service.options.get("smtpd_tls_security_level") == "encrypt":
        report.take(here, service.name, "submission", "listen_starttls", addresses)
        seen["submission"] = True
    elif number == main:
        report.take(here, service.name, "smtp", "listen", addresses)
    else:
        report.say(here, service.name, Fate.LOST, "a port for mail from a content filter or the like; pymx has none")
        return
    for name, text in service.options.items():
        option = Value(text, service.file, service.line)
        if name in ("syslog_name", "smtpd_tls_wrappermode", "smtpd_tls_security_level", "smtpd_sasl_auth_enable"):
            continue
        if name.endswith("_restrictions"):
            restrictions(_with(old, name, option), f"-o {name}", option, report)
        elif name in POSTFIX_SAME or name.startswith(("smtpd_tls_", "smtpd_sasl", "milter_", "smtpd_reject_unlisted")):
            report.say(option, f"-o {name}", Fate.SAME, POSTFIX_SAME.get(name, ""))
        elif name in ("cleanup_service_name", "header_checks", "smtpd_milters"):
            report.say(option, f"-o {name}", Fate.DIFFERENT, "see [submission] strip_fields, [rspamd] url")
        else:
            report.say(option, f"-o {name}", Fate.LOST, "not for one port alone")


def _with(old: Postfix, name: str, value: Value) -> Postfix:
    return Postfix(old.directory, {**old.parameters, f"-o {name}": value}, [])


def _interface_addresses(old: Postfix) -> list[str]:
    protocols = old.expanded("inet_protocols") or "all"
    found = []
    for word in (old.expanded("inet_interfaces") or "all").replace(",", " ").split():
        names = {
            "all": ["0.0.0.0", "[::]"],  # noqa: S104  (as Postfix listens)
            "loopback-only": ["127.0.0.1", "[::1]"],
            "localhost": ["127.0.0.1", "[::1]"],
        }
        found += names.get(word, [f"[{word.strip('[]')}]" if ":" in word else word])
    wanted = {"ipv4": [False], "ipv6": [True]}.get(protocols, [False, True])
    return [address for address in dict.fromkeys(found) if address.startswith("[") in wanted]
