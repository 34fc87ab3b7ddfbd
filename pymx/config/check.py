"""Cross checks that types can't make. Each error names the key, its value and what was expected.

`check` returns every error at once and changes nothing; `pymxctl check-config` and the server's start use it. Whether
a port is free or a database answers is not asked here: that changes from minute to minute.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path

from pymx.config import secret
from pymx.config.listeners import listeners
from pymx.config.model import BUILT_IN_PROVIDERS, Config, Outbound
from pymx.config.zones import ZoneError, parse_zone

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9\-]{0,61}[a-z0-9])?\Z", re.IGNORECASE)
_ADDRESS = re.compile(r"[^@\s,<>]+@[^@\s,<>]+\Z")
_HTTP_URL = re.compile(r"https?://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?/?\Z")
_SPECIAL_USES = frozenset({"", "\\All", "\\Archive", "\\Drafts", "\\Flagged", "\\Junk", "\\Sent", "\\Trash"})
_MAX_SOCKET_PATH_OCTETS = 107


def check(config: Config) -> list[str]:
    """What is wrong with `config`; empty when it is sound."""
    return [
        *_server(config),
        *_database(config),
        *_mail(config),
        *_accounts(config),
        *_tls(config),
        *_acme(config),
        *_listeners(config),
        *_sockets(config),
        *_dns(config),
        *_checks(config),
        *_outbound(config),
        *_forwarding(config),
        *_reports(config),
        *_backup(config),
        *_web(config),
    ]


def _error(key: str, value: object, expected: str) -> str:
    shown = f'"{value}"' if isinstance(value, str | Path) else repr(value)
    return f"{key} = {shown}: {expected}"


def _is_host_name(text: str) -> bool:
    return len(text) <= 253 and all(_LABEL.match(label) for label in text.split("."))


def _is_address_of_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address_of_host(host) and ipaddress.ip_address(host).is_loopback)


def _server(config: Config) -> Iterator[str]:
    if not config.hostname:
        yield _error("hostname", "", "set it to the name that the server's PTR record has, such as mx.example.com")
    elif not _is_host_name(config.hostname) or "." not in config.hostname or _is_address_of_host(config.hostname):
        yield _error("hostname", config.hostname, "expected a full name such as mx.example.com")
    if not os.path.isabs(config.data_dir):
        yield _error("data_dir", config.data_dir, "expected an absolute path")
    if config.runtime_dir and not os.path.isabs(config.runtime_dir):
        yield _error("runtime_dir", config.runtime_dir, "expected an absolute path, or nothing")
    if not config.user:
        yield _error("user", "", "expected the name of a user, or none")


def _database(config: Config) -> Iterator[str]:
    url = config.database.url
    yield from _secret("[database] ", "url", config.database.url_file, config.database.url_credential)
    if config.database.url_file or config.database.url_credential:
        return
    scheme, _, rest = url.partition("://")
    scheme = scheme.partition("+")[0].lower()
    if scheme == "sqlite":
        if not rest.startswith("//"):
            yield _error("[database] url", url, "expected an absolute path: sqlite:////var/lib/pymx/pymx.sqlite")
    elif scheme not in ("mysql", "mariadb"):
        # not the URL: it may hold a password
        shown = f"{scheme}://…" if "@" in url else url
        yield _error("[database] url", shown, "expected sqlite:///PATH or mysql://USER:PASSWORD@HOST/NAME")
    elif not rest.partition("?")[0].partition("/")[2]:
        yield _error("[database] url", f"{scheme}://…", "names no database; expected mysql://USER:PASSWORD@HOST/NAME")


def _mail(config: Config) -> Iterator[str]:
    mail = config.mail
    if not os.path.isabs(mail.root):
        yield _error("[mail] root", mail.root, "expected an absolute path")
    if mail.index_dir and not os.path.isabs(mail.index_dir):
        yield _error("[mail] index_dir", mail.index_dir, "expected an absolute path, or nothing")
    if mail.separator not in (".", "/"):
        yield _error("[mail] separator", mail.separator, 'expected "." or "/"')
    elif mail.prefix and not mail.prefix.endswith(mail.separator):
        yield _error(
            "[mail] prefix", mail.prefix, f'expected it to end in the separator: "{mail.prefix}{mail.separator}"'
        )
    elif mail.prefix and "" in mail.prefix.split(mail.separator)[:-1]:
        yield _error("[mail] prefix", mail.prefix, "has an empty level")
    if len(mail.subaddress_delimiter) > 1 or mail.subaddress_delimiter == "@":
        yield _error("[mail] subaddress_delimiter", mail.subaddress_delimiter, 'expected one character such as "+"')
    for name, use in mail.folders.items():
        if use not in _SPECIAL_USES:
            uses = ", ".join(sorted(_SPECIAL_USES - {""}))
            yield _error(f"[mail] folders.{name}", use, f"expected a special use of RFC 6154 ({uses}) or nothing")
        if not name or name.upper() == "INBOX":
            yield _error("[mail] folders", name, "INBOX is always there, and a folder needs a name")
    uses_given = [use for use in mail.folders.values() if use]
    for use in sorted({use for use in uses_given if uses_given.count(use) > 1}):
        yield _error("[mail] folders", use, "given to more than one folder")


def _accounts(config: Config) -> Iterator[str]:
    postmaster = config.accounts.postmaster
    if postmaster and not _ADDRESS.match(postmaster):
        yield _error("[accounts] postmaster", postmaster, "expected an address such as admin@example.com, or nothing")


def _forwarding(config: Config) -> Iterator[str]:
    forwarding = config.forwarding
    domain, path = forwarding.srs_domain, forwarding.srs_secret_file
    if domain and (not _is_host_name(domain) or domain != domain.lower()):
        yield _error("[forwarding] srs_domain", domain, "expected a domain name in lower case, or nothing")
    if path and not os.path.isabs(path):
        yield _error("[forwarding] srs_secret_file", path, "expected an absolute path, or nothing")
    # not whether its file can be read: it is made when it is needed
    yield from _credential("[forwarding] ", "srs_secret", path, forwarding.srs_secret_credential)


def _tls(config: Config) -> Iterator[str]:
    tls = config.tls
    if bool(tls.certificate) != bool(tls.private_key):
        missing = "private_key" if tls.certificate else "certificate"
        yield _error(f"[tls] {missing}", "", "certificate and private_key belong together: set both or none")
    for key, path in (("certificate", tls.certificate), ("private_key", tls.private_key)):
        if path:
            yield from _readable(f"[tls] {key}", path)
    if not tls.certificate and not config.acme.enabled and not _has_certificates(config):
        for key, specs in (
            ("[submission] listen_tls", config.submission.listen_tls),
            ("[imap] listen_tls", config.imap.listen_tls),
            ("[web] listen_tls", config.web.listen_tls),
        ):
            if specs:
                yield _error(
                    key, specs,
                    "needs a certificate: set [tls] certificate and private_key, or [acme] enabled = true, or run "
                    "pymxctl cert install, or listen on no address",
                )  # fmt: skip


def _has_certificates(config: Config) -> bool:
    """Is there one in data_dir/tls?"""
    try:
        with os.scandir(os.path.join(config.data_dir, "tls")) as entries:
            return any(entry.name.endswith(".pem") for entry in entries)
    except PermissionError:
        return True  # only the server's user can say
    except OSError:
        return False


def _acme(config: Config) -> Iterator[str]:
    acme = config.acme
    if acme.enabled and not config.web.listen:
        expected = 'needs [web] listen, such as ["0.0.0.0:80", "[::]:80"]: there the authority looks for its proof'
        yield _error("[acme] enabled", True, expected)
    if not acme.directory_url.startswith("https://"):
        yield _error("[acme] directory_url", acme.directory_url, "expected https://…")
    if acme.contact and not _ADDRESS.match(acme.contact):
        yield _error("[acme] contact", acme.contact, "expected an address such as admin@example.com, or nothing")
    for name in acme.names:
        if not _is_host_name(name) or "." not in name or _is_address_of_host(name):
            yield _error("[acme] names", name, "expected a full host name such as mail.example.com")
    for prefix in acme.prefixes:
        if not _is_host_name(prefix):
            yield _error("[acme] prefixes", prefix, "expected a name such as autoconfig")
    if acme.ca_file:
        yield from _readable("[acme] ca_file", acme.ca_file)


def _listeners(config: Config) -> Iterator[str]:
    seen: dict[str, str] = {}
    for listener in listeners(config):
        key = listener.setting
        for spec in listener.specs:
            if not _is_listen_spec(spec):
                yield _error(key, spec, 'expected "ADDRESS:PORT", "[IPV6]:PORT" or "unix:/PATH"')
            elif spec in seen and not spec.endswith(":0"):
                yield _error(key, spec, f"is taken by {seen[spec]} already")
            seen.setdefault(spec, key)
    for spec in config.status.listen:
        if _is_listen_spec(spec) and not _is_private(spec):
            yield _error(
                "[status] listen", spec, "expected a loopback or private address: whoever reaches it needs no login"
            )


def _is_private(spec: str) -> bool:
    """Is it a Unix socket, or an address that the internet can't reach?"""
    if spec.startswith("unix:"):
        return True
    address = ipaddress.ip_address(spec.rpartition(":")[0].strip("[]"))
    return address.is_private and not address.is_unspecified


def _is_listen_spec(spec: str) -> bool:
    if spec.startswith("unix:"):
        path = spec.removeprefix("unix:")
        return os.path.isabs(path) and len(os.fsencode(path)) <= _MAX_SOCKET_PATH_OCTETS
    host, colon, port = spec.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        return False
    try:
        if host.startswith("[") and host.endswith("]"):
            ipaddress.IPv6Address(host[1:-1])
        else:
            ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True


def _sockets(config: Config) -> Iterator[str]:
    path = config.control.socket
    if not os.path.isabs(path) or len(os.fsencode(path)) > _MAX_SOCKET_PATH_OCTETS:
        yield _error("[control] socket", path, f"expected an absolute path of at most {_MAX_SOCKET_PATH_OCTETS} octets")
    for network in config.limits.trusted:
        try:
            ipaddress.ip_network(network, strict=False)
        except ValueError:
            yield _error("[limits] trusted", network, "expected an address or a network such as 192.0.2.0/24")
    if config.limits.ban_max_s < config.limits.ban_first_s:
        yield _error("[limits] ban_max_s", config.limits.ban_max_s, "expected at least ban_first_s")


def _dns(config: Config) -> Iterator[str]:
    for server in config.dns.nameservers:
        if not _is_address_of_host(server.strip("[]")) and not _is_listen_spec(server):
            yield _error("[dns] nameservers", server, 'expected "ADDRESS" or "ADDRESS:PORT"')


def _checks(config: Config) -> Iterator[str]:
    checks, rspamd = config.checks, config.rspamd
    if checks.dmarc and not (checks.spf and checks.dkim):
        off = "spf" if not checks.spf else "dkim"
        yield _error(f"[checks] {off}", False, "dmarc = true needs it: legitimate mail would be refused")
    if checks.greylist and not (checks.iprev or checks.helo or checks.spf or checks.dnsbl or checks.early_talker):
        yield _error(
            "[checks] greylist", True, "delays only who has hints against him: turn on iprev, helo, spf or dnsbl"
        )
    if checks.greylist_window_s <= checks.greylist_delay_s:
        expected = f"expected more than greylist_delay_s = {checks.greylist_delay_s}"
        yield _error("[checks] greylist_window_s", checks.greylist_window_s, expected)
    for key, zones in (("dnsbl", checks.dnsbl), ("dnswl", checks.dnswl)):
        for zone in zones:
            try:
                parse_zone(zone)
            except ZoneError as e:
                yield _error(f"[checks] {key}", zone, str(e))
    for sealer in checks.trusted_sealers:
        if not _is_host_name(sealer):
            yield _error("[checks] trusted_sealers", sealer, "expected a domain")
    if rspamd.url:
        if not _HTTP_URL.match(rspamd.url):
            yield _error("[rspamd] url", rspamd.url, "expected http://HOST:PORT such as http://127.0.0.1:11333")
        if rspamd.timeout_s > checks.timeout_s:
            yield _error(
                "[rspamd] timeout_s", rspamd.timeout_s, f"is longer than [checks] timeout_s = {checks.timeout_s}"
            )
        yield from _secret("[rspamd] ", "password", rspamd.password_file, rspamd.password_credential)
    if rspamd.controller_url and not _HTTP_URL.match(rspamd.controller_url):
        expected = "expected http://HOST:PORT such as http://127.0.0.1:11334"
        yield _error("[rspamd] controller_url", rspamd.controller_url, expected)
    if rspamd.controller_url and not rspamd.url:
        yield _error(
            "[rspamd] controller_url", rspamd.controller_url, "teaches an rspamd that is not asked: set url too"
        )


def _outbound(config: Config) -> Iterator[str]:
    outbound = config.outbound
    for number, route in enumerate(outbound.route, 1):
        key = f"[outbound] route {number}"
        if route.domain != "*" and not _is_host_name(route.domain):
            yield _error(f"{key}: domain", route.domain, "expected a domain, or *")
        if not _is_host_name(route.host) and not _is_address_of_host(route.host.strip("[]")):
            yield _error(f"{key}: host", route.host, "expected a name or an address")
        if bool(route.username) != bool(route.password_file or route.password_credential):
            missing = "password_file" if route.username else "username"
            yield _error(f"{key}: {missing}", "", "username and password_file belong together: set both or none")
        yield from _secret(f"{key}: ", "password", route.password_file, route.password_credential)
        if route.ca_file:
            yield from _readable(f"{key}: ca_file", route.ca_file)
        if route.username and route.tls == "none" and not _is_loopback(route.host):
            yield _error(
                f"{key}: tls", route.tls, "would send the password in the clear; expected verified or implicit"
            )
    yield from _providers(outbound)
    if outbound.ca_file:
        yield from _readable("[outbound] ca_file", outbound.ca_file)
    for address in outbound.source_addresses:
        if not _is_address_of_host(address):
            yield _error("[outbound] source_addresses", address, "expected an address of this host")
    if outbound.retry_max_s < outbound.retry_first_s:
        yield _error("[outbound] retry_max_s", outbound.retry_max_s, "expected at least retry_first")
    if outbound.lifetime_s <= outbound.retry_first_s:
        yield _error("[outbound] lifetime_s", outbound.lifetime_s, "expected more than retry_first")


def _providers(outbound: Outbound) -> Iterator[str]:
    for number, provider in enumerate(outbound.provider, 1):
        key = f"[outbound] provider {number}"
        if not provider.name:
            yield _error(f"{key}: name", "", "expected a name")
        elif provider.name in [p.name for p in outbound.provider[: number - 1]]:
            yield _error(f"{key}: name", provider.name, "there is one of this name already")
        if not provider.mx and provider.name not in BUILT_IN_PROVIDERS:
            yield _error(f"{key}: mx", provider.mx, "expected the names of its mail servers, such as .example.net")
        for name in provider.mx:
            if not _is_host_name(name.removeprefix(".")):
                yield _error(f"{key}: mx", name, "expected a host name, or a domain such as .example.net")
    if outbound.warm_up_since:
        try:
            date.fromisoformat(outbound.warm_up_since)
        except ValueError:
            yield _error("[outbound] warm_up_since", outbound.warm_up_since, "expected a day such as 2026-01-31")


def _secret(section: str, key: str, file: str, credential: str) -> Iterator[str]:
    if file:
        yield from _one_line(f"{section}{key}_file", Path(file), file)
    yield from _credential(section, key, file, credential, one_line=True)


def _one_line(setting: str, path: Path, shown: str) -> Iterator[str]:
    """A file with one secret."""
    try:
        secret.secret_line(path.read_bytes())
    except OSError as e:
        yield _error(setting, shown, f"can't be read: {e.strerror}")
    except ValueError as e:
        yield _error(setting, shown, str(e))


def _credential(section: str, key: str, file: str, name: str, *, one_line: bool = False) -> Iterator[str]:
    setting = f"{section}{key}_credential"
    if not name:
        return
    if file:
        yield _error(setting, name, f"{key}_file is set already")
    if "/" in name or name in (".", ".."):
        yield _error(setting, name, "expected a name, as in the unit's LoadCredential=")
    # by hand, outside of the unit, there is nothing to look at
    elif secret.VARIABLE in os.environ and not secret.is_of_another_unit():
        path = secret.credential_path(name)
        try:
            path.stat()
        except FileNotFoundError:
            yield _error(setting, name, secret.no_credential(name, f"{path} does not exist"))
        except OSError as e:
            yield _error(setting, str(path), f"can't be read: {e.strerror}")
        else:
            yield from _one_line(setting, path, name) if one_line else _readable(setting, str(path))


def _reports(config: Config) -> Iterator[str]:
    reports = config.reports
    if reports.sender and not _ADDRESS.match(reports.sender):
        expected = "expected an address such as postmaster@example.com, or nothing"
        yield _error("[reports] sender", reports.sender, expected)
    if reports.dmarc and not config.checks.dmarc:
        yield _error("[reports] dmarc", True, "there is nothing to report with [checks] dmarc = false")
    for address in reports.addresses:
        if not (_ADDRESS.match(address) if "@" in address else re.fullmatch(r"[^\s,<>]+", address)):
            yield _error("[reports] addresses", address, "expected an address, or what stands before its @")


def _web(config: Config) -> Iterator[str]:
    for host in config.mta_sts.mx:
        # "*." stands for one label (RFC 8461 s. 4.1)
        if not _is_host_name(host.removeprefix("*.")):
            yield _error("[mta_sts] mx", host, "expected a host name, or *.DOMAIN")


def _backup(config: Config) -> Iterator[str]:
    target = config.backup.target
    if target and not target.startswith("borg:") and not os.path.isabs(target):
        yield _error("[backup] target", target, "expected an absolute path, borg:REPOSITORY, or nothing")
    # of another unit than the server's: whether they can be read shows when a backup is made
    if config.backup.passphrase_file and config.backup.passphrase_credential:
        expected = "passphrase_file is set already"
        yield _error("[backup] passphrase_credential", config.backup.passphrase_credential, expected)
    if target and Path(target).is_relative_to(config.mail.root):
        yield _error("[backup] target", target, "lies in the mail root, and would be lost with it")


def _readable(key: str, path: str) -> Iterator[str]:
    try:
        with open(path, "rb") as f:
            empty = not f.read(1)
    except OSError as e:
        yield _error(key, path, f"can't be read: {e.strerror}")
    else:
        if empty:
            yield _error(key, path, "the file is empty")
