"""What pymx can take over of a Postfix configuration: main.cf and the tables it names; master.cf is `frommaster`'s."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from pathlib import Path

from pymx.admin.oldstack import frommaster, postfix
from pymx.admin.oldstack.database import database_url
from pymx.admin.oldstack.names import POSTFIX_SAME
from pymx.admin.oldstack.postfix import Postfix, Unreadable, Value
from pymx.admin.oldstack.report import Fate, Report
from pymx.admin.oldstack.restrictions import header_checks, postscreen_sites, postscreen_threshold, restrictions

_TIME = re.compile(r"(\d+)([smhdw]?)\Z")
_TIME_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_RSPAMD_MILTER = "11332"
_Setting = Callable[[Postfix, str, Value, Report], None]


def take(directory: Path, report: Report) -> Postfix | None:
    """Look at everything; None when main.cf can't be read (that is in the report then)."""
    try:
        old = postfix.read(directory)
    except Unreadable as e:
        report.say(Value("", str(directory / "main.cf"), 0), str(directory), Fate.BLOCKED, str(e))
        return None
    for name, value in old.parameters.items():
        _parameter(old, name, value, report)
    if not old.parameters.get("myhostname"):
        here = Value("", str(directory / "main.cf"), 1)
        report.say(
            here, "myhostname", Fate.BLOCKED, "it is not set, so Postfix asks the system; set hostname in pymx.toml"
        )
    frommaster.take(old, report)
    return old


def _parameter(old: Postfix, name: str, value: Value, report: Report) -> None:
    setting = _SETTINGS.get(name)
    if setting is not None:
        setting(old, name, value, report)
    elif name in _NUMBERS:
        _number(old, name, value, report)
    elif name in POSTFIX_SAME:
        report.say(value, name, Fate.SAME, POSTFIX_SAME[name])
    elif name.startswith("postscreen_"):
        report.say(value, name, Fate.DIFFERENT, "pymx waits with its greeting and adds up hints (docs/checks.md)")
    elif name.startswith(("smtpd_tls_", "smtp_tls_", "tls_", "lmtp_")):
        report.say(value, name, Fate.SAME, "TLS is as Python's and OpenSSL's defaults have it, from 1.2 on")
    elif name.startswith(("smtpd_sasl", "sasl_", "broken_sasl")):
        report.say(value, name, Fate.SAME, "logins are checked against the accounts, inside TLS only")
    elif not old.expanded(name):
        report.say(value, name, Fate.SAME, "empty")
    else:
        report.say(value, name, Fate.LOST, "nothing in pymx does this, or it is at its own discretion")


# Single settings


def _hostname(old: Postfix, name: str, value: Value, report: Report) -> None:
    report.take(value, name, "", "hostname", old.expanded(name).lower())


def _seconds(text: str, default_unit: str = "s") -> int | None:
    match = _TIME.match(text)
    return int(match[1]) * _TIME_UNITS[match[2] or default_unit] if match else None


# parameter → section, key, what to multiply with, unit of times ("" = a number), what 0 means ("" = pymx's own default)
_NUMBERS: dict[str, tuple[str, str, int, str, int | None]] = {
    "message_size_limit": ("mail", "max_message_octets", 1, "", None),
    "header_size_limit": ("smtp", "max_header_octets", 1, "", None),
    "hopcount_limit": ("smtp", "max_received", 1, "", None),
    "smtpd_recipient_limit": ("smtp", "max_recipients", 1, "", None),
    "smtpd_hard_error_limit": ("smtp", "max_errors", 1, "", None),
    "smtpd_client_connection_count_limit": ("smtp", "max_connections_per_ip", 1, "", None),
    "smtpd_client_connection_rate_limit": ("limits", "connections_per_minute", 1, "", 0),
    "smtpd_client_message_rate_limit": ("limits", "messages_per_hour", 60, "", 0),
    "smtpd_client_recipient_rate_limit": ("limits", "recipients_per_hour", 60, "", 0),
    "smtp_destination_concurrency_limit": ("outbound", "max_per_destination", 1, "", None),
    "default_destination_concurrency_limit": ("outbound", "max_per_destination", 1, "", None),
    "maximal_queue_lifetime": ("outbound", "lifetime_s", 1, "d", None),
    "minimal_backoff_time": ("outbound", "retry_first", 1, "s", None),
    "maximal_backoff_time": ("outbound", "retry_max_s", 1, "s", None),
    "delay_warning_time": ("outbound", "delay_notice_s", 1, "h", 0),
    "smtp_connect_timeout": ("outbound", "connect_timeout_s", 1, "s", None),
    "smtp_data_done_timeout": ("outbound", "data_timeout_s", 1, "s", None),
}


def _number(old: Postfix, name: str, value: Value, report: Report) -> None:
    section, key, factor, unit, zero = _NUMBERS[name]
    text = old.expanded(name)
    number = _seconds(text, unit) if unit else int(text) if text.isdigit() else None
    if number is None:
        report.say(value, name, Fate.DIFFERENT, f"not a number that is understood; see [{section}] {key}")
    elif number == 0 and zero is None:
        report.say(value, name, Fate.DIFFERENT, f"pymx has no unlimited here: [{section}] {key} keeps its default")
    else:
        report.take(value, name, section, key, number * factor, note="of an hour" if factor == 60 else "")


def _delimiter(old: Postfix, name: str, value: Value, report: Report) -> None:
    text = old.expanded(name)
    report.take(value, name, "mail", "subaddress_delimiter", text[:1], note="only the first" if len(text) > 1 else "")


def _certificate(old: Postfix, name: str, value: Value, report: Report) -> None:
    files = old.expanded(name).replace(",", " ").split()
    if name == "smtpd_tls_chain_files":
        if len(files) != 1:
            report.say(value, name, Fate.DIFFERENT, "set [tls] certificate and private_key to one pair")
            return
        report.take(value, name, "tls", "private_key", files[0])
        report.take(value, name, "tls", "certificate", files[0])
        return
    if files and files[0] != "none":
        report.take(value, name, "tls", "private_key" if "key" in name else "certificate", files[0])


def _interfaces(old: Postfix, name: str, value: Value, report: Report) -> None:
    report.say(value, name, Fate.TAKEN, "in the listen addresses, below")


def _mynetworks(old: Postfix, name: str, value: Value, report: Report) -> None:
    others = [word for word in old.expanded(name).replace(",", " ").split() if not _is_loopback(word)]
    if others:
        meaning = (
            f"{', '.join(others)}: nobody relays through pymx by his address; such hosts need an account and port 465 "
            "or 587. [limits] trusted only spares them checks and limits, and is not set for them"
        )
        report.say(value, name, Fate.LOST, meaning)
    else:
        report.say(
            value, name, Fate.SAME, "only this host; programs here that send need an account, or LMTP for local mail"
        )


def _is_loopback(word: str) -> bool:
    try:
        plain = word.replace("[", "").replace("]", "").removeprefix("::ffff:")
        network, _, bits = plain.partition("/")
        if word.startswith("[::ffff:") and bits.isdigit():  # IPv4 as IPv6 writes it
            plain = f"{network}/{max(int(bits) - 96, 0)}"
        return ipaddress.ip_network(plain, strict=False).is_loopback
    except ValueError:
        return word.startswith("!")


def _destination(old: Postfix, name: str, value: Value, report: Report) -> None:
    host = old.expanded("myhostname")
    own = {host, "localhost", "localhost.localdomain", f"localhost.{host.partition('.')[2]}", ""}
    others = [word for word in old.expanded(name).replace(",", " ").split() if word not in own]
    if others:
        meaning = f"{', '.join(others)}: system users get no mail from pymx: pymxctl domain add, user add, alias add"
        report.say(value, name, Fate.LOST, meaning)
    else:
        report.say(
            value, name, Fate.SAME, "mail for the host itself: postmaster and the aliases; see [accounts] postmaster"
        )


def _milters(old: Postfix, name: str, value: Value, report: Report) -> None:
    for word in old.expanded(name).replace(",", " ").split():
        kind, _, rest = word.partition(":")
        host, _, port = rest.rpartition(":") if kind == "inet" else ("", "", rest)
        if kind == "inet" and port == _RSPAMD_MILTER:
            host = {"localhost": "127.0.0.1", "": "127.0.0.1"}.get(host, host)
            note = "rspamd's normal worker instead of its milter; it must listen there (worker-normal.inc)"
            report.take(value, name, "rspamd", "url", f"http://{host}:11333", note=note)
        elif "opendkim" in word or port in ("8891", "12301"):
            report.say(
                value, name, Fate.DIFFERENT, f"{word}: pymx signs itself; pymxctl dkim generate, or copy the keys"
            )
        elif "opendmarc" in word or port == "8893":
            report.say(value, name, Fate.SAME, f"{word}: pymx checks DMARC itself")
        else:
            report.say(value, name, Fate.LOST, f"{word}: pymx speaks to no milters")


def _maps(old: Postfix, name: str, value: Value, report: Report) -> None:
    """virtual_mailbox_domains, virtual_mailbox_maps, virtual_alias_maps, smtpd_sender_login_maps."""
    for kind, table in postfix.maps(old.expanded(name)):
        if kind == "mysql":
            _mysql_map(name, value, Path(table), report)
        elif kind in ("static", "inline") or (not kind and not table):
            report.say(value, name, Fate.LOST, f"{kind}:{table}: accounts are in the database only")
        elif name == "smtpd_sender_login_maps":
            report.say(value, name, Fate.DIFFERENT, "users send as themselves and by the aliases that lead to them")
        else:
            meaning = (
                f"{kind}:{table}: pymx reads domains, users and aliases from the database; bring these in by pymxctl"
            )
            report.say(value, name, Fate.BLOCKED if "virtual_mailbox" in name else Fate.LOST, meaning)


_COLUMNS = {
    "virtual_mailbox_domains": ("domains", {"name"}),
    "virtual_mailbox_maps": ("users", {"email"}),
    "virtual_alias_maps": ("aliases", {"source", "destinations"}),
    "smtpd_sender_login_maps": ("users", {"email"}),
}


def _mysql_map(name: str, value: Value, path: Path, report: Report) -> None:
    try:
        words = postfix.mysql(path)
    except Unreadable as e:
        report.say(value, name, Fate.BLOCKED, str(e))
        return
    url = database_url({key: found.text for key, found in words.items()})
    report.take(
        words.get("dbname") or value, "dbname", "database", "url", url, note="as given there, with its password"
    )
    query = words.get("query")
    if query is None:  # the old way: table, select_field, where_field
        parts = [_word(words, part) for part in ("select_field", "table", "where_field")]
        text = "SELECT {} FROM {} WHERE {}=".format(*parts)  # noqa: S608  (only to be looked at)
        query = Value(text, str(path), (words.get("table") or value).line)
    table, columns = _COLUMNS[name]
    tables = re.findall(r"(?:from|join)\s+`?([A-Za-z0-9_.]+)`?", query.text, re.IGNORECASE)
    wrong = [t for t in tables if t.rpartition(".")[2] not in ("domains", "users", "aliases")]
    missing = [c for c in sorted(columns) if not re.search(rf"\b{c}\b", query.text)]
    if wrong or (missing and table in tables):
        what = f"the table {', '.join(wrong)}" if wrong else f"a table without {', '.join(missing)}"
        meaning = (
            f"it reads {what}; pymx reads users (id, domain_id, email, password), domains (id, name) and "
            "aliases (id, domain_id, source, destinations): make tables or views of these names"
        )
        report.say(query, "query", Fate.BLOCKED, meaning)
    elif name == "virtual_alias_maps" and "users" in tables:
        report.say(query, "query", Fate.SAME, "a user's own address goes before a catch-all by itself")
    else:
        report.say(query, "query", Fate.SAME, f"pymx reads the same table: {', '.join(tables) or table}")


def _word(words: dict[str, Value], name: str) -> str:
    return words[name].text if name in words else ""


def _alias_maps(old: Postfix, name: str, value: Value, report: Report) -> None:
    """/etc/aliases: who reads what is for root and postmaster?"""
    for kind, table in postfix.maps(old.expanded(name)):
        try:
            rows = postfix.table(kind, table)
        except Unreadable as e:
            report.say(value, name, Fate.LOST, str(e))
            continue
        found = {key.lower(): Value(to, table, line) for key, to, line in rows or []}
        reader = next((found[k] for k in ("postmaster", "root") if k in found and "@" in found[k].text), None)
        if reader is not None:
            report.take(reader, "postmaster", "accounts", "postmaster", reader.text.split(",")[0].strip())
        if [key for key in found if key not in ("postmaster", "root", "mailer-daemon", "abuse")]:
            report.say(
                value, name, Fate.DIFFERENT, f"{table}: aliases of system users; those you need: pymxctl alias add"
            )


# Where mail goes


def _relayhost(old: Postfix, name: str, value: Value, report: Report) -> None:
    text = old.expanded(name)
    if not text:
        report.say(value, name, Fate.SAME, "mail goes to the recipients' own servers")
        return
    route, note = _next_hop(text)
    level = old.expanded("smtp_tls_security_level")
    wrapper = old.expanded("smtp_tls_wrappermode") == "yes"
    demands = {"none": "none", "encrypt": "verified", "verify": "verified", "secure": "verified"}
    route["tls"] = "implicit" if wrapper else demands.get(level, "opportunistic")
    if level == "encrypt":
        note += "; its certificate is verified now"
    login = _login(old, text, report)
    if login is not None:
        route["username"], password = login
        route["password_file"] = "smarthost.password"  # noqa: S105  (a file's name)
        report.passwords["smarthost.password"] = password + "\n"
    report.add(value, name, "outbound", "route", [{"domain": "*", **route}], note=note.strip("; "))


def _next_hop(text: str) -> tuple[dict[str, object], str]:
    match = re.fullmatch(r"\[?([^\[\]]+?)\]?(?::(\w+))?", text)
    host, port = (match[1], match[2] or "25") if match else (text, "25")
    known = {"submission": 587, "smtp": 25, "submissions": 465, "smtps": 465}
    number = known.get(port) or (int(port) if port.isdigit() else 25)
    note = "" if text.startswith("[") or _is_address(host) else "the host itself, not its MX records"
    return {"host": host, "port": number}, note


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _login(old: Postfix, hop: str, report: Report) -> tuple[str, str] | None:
    value = old.parameters.get("smtp_sasl_password_maps")
    if value is None or old.expanded("smtp_sasl_auth_enable") != "yes":
        return None
    for kind, table in postfix.maps(old.expanded("smtp_sasl_password_maps")):
        if kind == "static":
            name, _, password = table.partition(":")
            return name, password
        try:
            rows = postfix.table(kind, table) or []
        except Unreadable as e:
            report.say(value, "smtp_sasl_password_maps", Fate.LOST, f"{e}; set username and password_file of the route")
            continue
        for key, login, _ in rows:
            if key in (hop, hop.partition("]")[0].strip("[]")):
                name, _, password = login.partition(":")
                return name, password
    return None


def _password_maps(old: Postfix, name: str, value: Value, report: Report) -> None:
    report.say(value, name, Fate.TAKEN, "[outbound] route: username and password_file, where there is a relayhost")


def _transport_maps(old: Postfix, name: str, value: Value, report: Report) -> None:
    for kind, table in postfix.maps(old.expanded(name)):
        try:
            rows = postfix.table(kind, table)
        except Unreadable as e:
            report.say(value, name, Fate.LOST, str(e))
            continue
        if rows is None:
            report.say(value, name, Fate.LOST, f"{kind}:{table}: say where mail goes in [outbound] route")
            continue
        for domain, transport, line in rows:
            here = Value(f"{domain} {transport}", table if line else value.file, line or value.line)
            way, _, hop = transport.partition(":")
            if way in ("smtp", "relay", "") and hop and not domain.startswith(".") and "@" not in domain:
                route, note = _next_hop(hop)
                report.add(here, name, "outbound", "route", [{"domain": domain, **route}], note=note)
            else:
                report.say(here, name, Fate.LOST, f"{transport}: mail goes to mailboxes here, or out by SMTP")


def _sources(old: Postfix, name: str, value: Value, report: Report) -> None:
    report.add(value, name, "outbound", "source_addresses", [old.expanded(name).strip("[]")])


def _lost(meaning: str) -> _Setting:
    def say(old: Postfix, name: str, value: Value, report: Report) -> None:
        if old.expanded(name):
            report.say(value, name, Fate.LOST, meaning)
        else:
            report.say(value, name, Fate.SAME, "empty")

    return say


_SETTINGS: dict[str, _Setting] = {
    "myhostname": _hostname,
    "recipient_delimiter": _delimiter,
    "smtpd_tls_cert_file": _certificate,
    "smtpd_tls_key_file": _certificate,
    "smtpd_tls_chain_files": _certificate,
    "inet_interfaces": _interfaces,
    "inet_protocols": _interfaces,
    "mynetworks": _mynetworks,
    "mydestination": _destination,
    "smtpd_milters": _milters,
    "virtual_mailbox_domains": _maps,
    "virtual_mailbox_maps": _maps,
    "virtual_alias_maps": _maps,
    "smtpd_sender_login_maps": _maps,
    "alias_maps": _alias_maps,
    "smtpd_client_restrictions": restrictions,
    "smtpd_helo_restrictions": restrictions,
    "smtpd_sender_restrictions": restrictions,
    "smtpd_recipient_restrictions": restrictions,
    "smtpd_relay_restrictions": restrictions,
    "smtpd_data_restrictions": restrictions,
    "postscreen_dnsbl_sites": postscreen_sites,
    "postscreen_dnsbl_threshold": postscreen_threshold,
    "header_checks": header_checks,
    "smtp_header_checks": header_checks,
    "mime_header_checks": _lost("pymx has no rules for MIME headers; rspamd has"),
    "nested_header_checks": _lost("pymx has no rules for headers; rspamd has"),
    "body_checks": _lost("pymx has no rules for bodies; rspamd has"),
    "relayhost": _relayhost,
    "smtp_sasl_password_maps": _password_maps,
    "transport_maps": _transport_maps,
    "smtp_bind_address": _sources,
    "smtp_bind_address6": _sources,
    "relay_domains": _lost("pymx is no backup MX for other servers"),
    "relay_recipient_maps": _lost("pymx is no backup MX for other servers"),
    "content_filter": _lost("pymx hands mail to no content filter; rspamd judges it ([rspamd] url)"),
    "virtual_alias_domains": _lost("domains of aliases only are domains like others: pymxctl domain add"),
    "sender_bcc_maps": _lost("no copies are made"),
    "recipient_bcc_maps": _lost("no copies are made; an alias with two destinations is one"),
    "always_bcc": _lost("no copies are made"),
    "canonical_maps": _lost("addresses are not rewritten"),
    "sender_canonical_maps": _lost("addresses are not rewritten, but for forwarded mail by SRS ([forwarding] srs)"),
    "recipient_canonical_maps": _lost("addresses are not rewritten, but for forwarded mail by SRS ([forwarding] srs)"),
    "smtp_generic_maps": _lost("addresses are not rewritten"),
}
