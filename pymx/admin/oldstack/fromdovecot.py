"""What pymx can take over of a Dovecot configuration (2.3 and 2.4)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from pymx.admin.oldstack import dovecot
from pymx.admin.oldstack.database import database_url, sql_words
from pymx.admin.oldstack.dovecot import Block
from pymx.admin.oldstack.names import DOVECOT_SAME
from pymx.admin.oldstack.postfix import Unreadable, Value
from pymx.admin.oldstack.report import Fate, Report
from pymx.ms.dovecotplace import Location, expand
from pymx.ms.owner import Owner

_SAMPLE = Owner("example.com", "alice")
_LAYOUTS = {"maildir++": "maildir++", "fs": "fs"}
_SPECIAL_USES = {"\\All", "\\Archive", "\\Drafts", "\\Flagged", "\\Junk", "\\Sent", "\\Trash"}
_SIZE = re.compile(r"(\d+)\s*([BKMGT]?)B?\Z", re.IGNORECASE)
_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_MECHANISMS = {"plain", "login"}


def take(path: Path, report: Report) -> Block | None:
    """Look at everything; None when the files can't be read (that is in the report then)."""
    try:
        top = dovecot.read(path)
    except Unreadable as e:
        report.say(Value("", str(path), 0), str(path), Fate.BLOCKED, str(e))
        return None
    _location(top, report)
    for name, value in top.values.items():
        _setting(top, name, value, report)
    for block in top.blocks:
        _BLOCKS.get(block.kind, _unknown_block)(top, block, report)
    _listeners(top, report)
    return top


# Where the mail is


def _location(top: Block, report: Report) -> None:
    inbox = next((b for b in top.all("namespace") if b.text("inbox") == "yes"), Block())
    name = "mail_location" if "mail_location" in top.values else "mail_path"
    value = inbox.values.get("location") or top.values.get(name)
    if value is None:
        nothing = Value("", top.file, 1)
        report.say(
            nothing, "mail_location", Fate.BLOCKED, "it is not set, so Dovecot looks for the mail by itself; set it"
        )
        return
    location = Location.parse(value.text)
    if name == "mail_path" and value is top.values.get(name):
        location = Location(
            top.text("mail_driver"), value.text, top.text("mailbox_list_layout").lower() or "maildir++",
            top.text("mail_control_path"), top.text("mail_index_path"), top.text("mail_inbox_path"),
        )  # fmt: skip
    if location.kind != "maildir":
        meaning = "pymx keeps mail as Maildir only; convert it first: doveadm sync -u USER maildir:DIRECTORY"
        report.say(value, name, Fate.BLOCKED, meaning)
        return
    home = _home(top)
    path = expand(location.path, _SAMPLE, expand(home, _SAMPLE)).rstrip("/")
    root = path.removesuffix("/example.com/alice")
    if root == path or not root.startswith("/"):
        meaning = (
            f"the mail of alice@example.com would be in {path}; pymx has it in ROOT/example.com/alice: move the "
            "directories so, and Dovecot's setting with them"
        )
        report.say(value, name, Fate.BLOCKED, meaning)
    else:
        report.take(value, name, "mail", "root", root, note=f"{root}/DOMAIN/LOCAL-PART stays as it is, UIDs and all")
    layout = _LAYOUTS.get(location.layout)
    if layout is None:
        report.say(value, name, Fate.BLOCKED, f"LAYOUT={location.layout} is not known here")
    else:
        report.take(value, name, "mail", "layout", layout)
    if location.control:
        control = home + location.control[1:] if location.control.startswith("~") else location.control
        report.take(value, name, "mail", "control_dir", control, note="the uidlists are there")
    if location.index:
        report.say(value, name, Fate.SAME, "INDEX=: Dovecot's indexes are not used, pymx makes its own beside the mail")
    if location.inbox and location.inbox != location.path:
        report.say(value, name, Fate.BLOCKED, "INBOX=: pymx has INBOX in the account's directory itself; move it there")
    separator = inbox.values.get("separator")
    wanted = (separator.text if separator else "") or ("/" if location.layout == "fs" else ".")
    if separator is not None and wanted in (".", "/"):
        report.take(separator, "separator", "mail", "separator", wanted)
    elif wanted in (".", "/"):
        report.take(value, name, "mail", "separator", wanted, note="Dovecot's default for that layout")
    elif separator is not None:
        report.say(separator, "separator", Fate.BLOCKED, "pymx knows . and / only")
    prefix = inbox.values.get("prefix")
    if prefix is not None and prefix.text:
        report.take(prefix, "prefix", "mail", "prefix", prefix.text)


def _home(top: Block) -> str:
    for block in top.all("userdb"):
        words = f"{block.text('args')} {block.text('default_fields')}".split()
        for word in words:
            if word.startswith("home="):
                return word.removeprefix("home=")
        fields = next(block.all("fields"), Block())
        if fields.text("home"):
            return fields.text("home")
    return top.text("mail_home")


# Settings at the top


def _setting(top: Block, name: str, value: Value, report: Report) -> None:
    if name in _SETTINGS:
        _SETTINGS[name](top, name, value, report)
    elif name in DOVECOT_SAME or name in ("mail_location", "mail_path", "mail_driver", "mailbox_list_layout"):
        if name in DOVECOT_SAME:
            report.say(value, name, Fate.SAME, DOVECOT_SAME[name] or "")
    elif name in ("mail_control_path", "mail_index_path", "mail_inbox_path", "mail_inbox"):
        return  # with mail_path
    elif name.startswith(("mysql ", "sql_", "sieve", "fts", "stats_", "event_", "old_stats")):
        report.say(value, name, Fate.LOST, "pymx has no setting for it")
    else:
        report.say(value, name, Fate.LOST, "nothing in pymx does this, or it is at its own discretion")


def _certificate(top: Block, name: str, value: Value, report: Report) -> None:
    key = "private_key" if "key" in name else "certificate"
    report.take(value, name, "tls", key, value.text.lstrip("<").strip())


def _minimum(top: Block, name: str, value: Value, report: Report) -> None:
    if value.text == "TLSv1.3":
        report.take(value, name, "tls", "minimum", "1.3")
    elif value.text == "TLSv1.2":
        report.take(value, name, "tls", "minimum", "1.2")
    else:
        report.say(value, name, Fate.DIFFERENT, "TLS 1.2 is the least that pymx speaks: very old clients stay outside")


def _ssl(top: Block, name: str, value: Value, report: Report) -> None:
    if value.text == "no":
        report.say(
            value, name, Fate.DIFFERENT, "pymx takes no password without TLS: set [tls] certificate and private_key"
        )
    else:
        report.say(value, name, Fate.SAME, "no login without TLS")


def _protocols(top: Block, name: str, value: Value, report: Report) -> None:
    for protocol in value.text.split():
        if protocol == "pop3":
            report.say(value, name, Fate.LOST, "pop3: pymx has no POP3; these clients must use IMAP")
        elif protocol == "sieve":
            report.say(value, name, Fate.LOST, "sieve: scripts stay where they are, and are not run")
        elif protocol not in ("imap", "lmtp"):
            report.say(value, name, Fate.LOST, f"{protocol}: not spoken by pymx")
    if {"imap", "lmtp"} & set(value.text.split()):
        report.say(value, name, Fate.SAME, "imap: the same; lmtp: not needed between parts of one program")


def _plugins(top: Block, name: str, value: Value, report: Report) -> None:
    for plugin in value.text.split():
        if plugin in ("zlib", "mail_compress"):
            report.say(
                value,
                name,
                Fate.SAME,
                f"{plugin}: what is packed is read, new mail is not packed; see pymxctl adopt --check",
            )
        elif plugin == "mail_crypt":
            report.say(
                value, name, Fate.BLOCKED, "mail_crypt: pymx can't read such messages; have Dovecot write them anew"
            )
        elif plugin in (
            "quota",
            "imap_quota",
            "sieve",
            "notify",
            "mail_log",
            "listescape",
            "imap_sieve",
            "acl",
            "imap_acl",
        ):
            report.say(value, name, _PLUGINS.get(plugin, (Fate.SAME, ""))[0], f"{plugin}: {_PLUGINS[plugin][1]}")
        else:
            report.say(value, name, Fate.LOST, f"{plugin}: there is no such thing in pymx")


_PLUGINS = {
    "quota": (Fate.SAME, "every mailbox can have one"),
    "imap_quota": (Fate.SAME, "QUOTA is always there"),
    "sieve": (Fate.LOST, "scripts are not run; Junk is filed without one"),
    "imap_sieve": (Fate.SAME, "moves to and from Junk teach the filter without a script"),
    "notify": (Fate.SAME, "the log has it"),
    "mail_log": (Fate.SAME, "the log has it"),
    "listescape": (Fate.DIFFERENT, "names with escapes are shown as they are on disk"),
    "acl": (Fate.LOST, "shared mailboxes are not served"),
    "imap_acl": (Fate.LOST, "rights are fixed: everybody owns his own mailboxes"),
}


def _mechanisms(top: Block, name: str, value: Value, report: Report) -> None:
    others = sorted(set(value.text.lower().split()) - _MECHANISMS)
    if others:
        report.say(value, name, Fate.LOST, f"{', '.join(others)}: clients must log in by PLAIN or LOGIN, inside TLS")
    else:
        report.say(value, name, Fate.SAME, "PLAIN and LOGIN")


def _userip(top: Block, name: str, value: Value, report: Report) -> None:
    report.take(
        value, name, "imap", "max_connections_per_ip", max(int(value.text), 1) if value.text.isdigit() else 10,
        note="counted for each address, not for each user of it",
    )  # fmt: skip


def _postmaster(top: Block, name: str, value: Value, report: Report) -> None:
    if "%" in value.text or "@" not in value.text:
        report.say(value, name, Fate.DIFFERENT, "[accounts] postmaster says where postmaster@ of every domain goes")
    else:
        report.take(value, name, "accounts", "postmaster", value.text)


def _user(top: Block, name: str, value: Value, report: Report) -> None:
    if value.text.isdigit():
        report.say(value, name, Fate.DIFFERENT, "set user in pymx.toml to the name of that user")
    else:
        report.take(value, name, "", "user", value.text, note="whose the mail is")


def _quota_size(top: Block, name: str, value: Value, report: Report) -> None:
    octets = _octets(value.text)
    if octets is None:
        report.say(value, name, Fate.LOST, "not a size that is understood; set [mail] default_quota_mb")
    else:
        report.take(
            value, name, "mail", "default_quota_mb", -(-octets // (1 << 20)), note="pymxctl user quota for one user"
        )


def _octets(text: str) -> int | None:
    match = _SIZE.match(text.strip())
    return int(match[1]) * _UNITS[match[2].upper()] if match else None


def _nothing(top: Block, name: str, value: Value, report: Report) -> None:
    """Looked at elsewhere."""


_Setting = Callable[[Block, str, Value, Report], None]
_SETTINGS: dict[str, _Setting] = {
    "ssl": _ssl, "ssl_cert": _certificate, "ssl_key": _certificate, "ssl_server_cert_file": _certificate,
    "ssl_server_key_file": _certificate, "ssl_min_protocol": _minimum, "protocols": _protocols,
    "mail_plugins": _plugins, "auth_mechanisms": _mechanisms, "mail_max_userip_connections": _userip,
    "postmaster_address": _postmaster, "quota_storage_size": _quota_size, "mail_uid": _user, "listen": _nothing,
}  # fmt: skip


# Blocks


def _namespace(top: Block, block: Block, report: Report) -> None:
    kind = block.text("type") or "private"
    if kind != "private":
        here = Value(block.name, block.file, block.line)
        report.say(
            here, f"namespace {block.name}", Fate.LOST, f"type = {kind}: shared and public mailboxes are not served"
        )
        return
    if block.text("inbox") != "yes":
        here = Value(block.name, block.file, block.line)
        report.say(here, f"namespace {block.name}", Fate.LOST, "pymx has one namespace, that with INBOX")
        return
    folders = dict[str, str]()
    for mailbox in block.all("mailbox"):
        where = Value(mailbox.name, mailbox.file, mailbox.line)
        uses = [use for use in mailbox.text("special_use").split() if use in _SPECIAL_USES]
        auto = mailbox.text("auto")
        if mailbox.text("autoexpunge"):
            report.say(
                mailbox.values["autoexpunge"], "autoexpunge", Fate.LOST, "old mail stays until a client removes it"
            )
        use = uses[0] if uses and uses[0] not in folders.values() else ""
        if auto in ("create", "subscribe") or use:
            folders[mailbox.name] = use
            how = (
                "made and subscribed at the first login"
                if auto in ("create", "subscribe")
                else "made at the first login too"
            )
            report.say(
                where, f"mailbox {mailbox.name}", Fate.TAKEN, f"[mail] folders: {use or 'no special use'}, {how}"
            )
        elif uses:
            meaning = f"{uses[0]} is another mailbox already; this one stays, without a special use"
            report.say(where, f"mailbox {mailbox.name}", Fate.DIFFERENT, meaning)
    if folders:
        report.settings.setdefault("mail", {})["folders"] = folders
        report.sources["mail", "folders"] = block.where


def _database(top: Block, block: Block, report: Report) -> None:
    """passdb and userdb."""
    here = Value(block.text("driver") or block.name, block.file, block.line)
    name = f"{block.kind} {block.name}".strip()
    driver = block.text("driver", f"{block.kind}_driver") or block.name
    if driver == "static" and block.kind == "userdb":
        report.say(here, name, Fate.SAME, "every account lies below the mail root")
        return
    if driver in ("prefetch",):
        report.say(here, name, Fate.SAME, "")
        return
    if driver != "sql":
        report.say(here, name, Fate.BLOCKED, f"driver = {driver}: pymx reads its accounts from SQLite or MariaDB only")
        return
    query = block.values.get("query") or block.values.get(f"{block.kind}_sql_query")
    args = block.text("args")
    if query is None and args:
        _sql_file(Path(args), block.kind, report)
        return
    if query is not None:
        _query(query, f"{block.kind} query", report)
        scheme = top.values.get("passdb_default_password_scheme") or block.values.get("default_password_scheme")
        if scheme is not None and block.kind == "passdb":
            _scheme(scheme, "default_password_scheme", report)
        server = next(top.all("mysql"), None) or next(block.all("mysql"), None)
        if server is not None:
            words = {
                "host": server.name, "user": server.text("user"), "password": server.text("password"),
                "dbname": server.text("dbname"),
            }  # fmt: skip
            report.take(
                Value("mysql", server.file, server.line), f"mysql {server.name}", "database", "url", database_url(words)
            )


def _sql_file(path: Path, kind: str, report: Report) -> None:
    try:
        values = dovecot.sql(path)
    except Unreadable as e:
        report.say(Value("", str(path), 0), kind, Fate.BLOCKED, str(e))
        return
    seen = {line.where for line in report.lines}
    for name, value in values.items():
        if value.where in seen:
            continue  # passdb and userdb share the file
        if name == "connect":
            report.take(value, name, "database", "url", database_url(dict(sql_words(value.text))))
        elif name == "default_pass_scheme":
            _scheme(value, name, report)
        elif name in ("password_query", "user_query", "iterate_query"):
            _query(value, name, report)
        elif name == "driver" and value.text not in ("mysql", "sqlite"):
            report.say(value, name, Fate.BLOCKED, "pymx reads its accounts from SQLite or MariaDB only")
        else:
            report.say(value, name, Fate.SAME, "")


def _query(value: Value, name: str, report: Report) -> None:
    tables = set(re.findall(r"(?:from|join)\s+`?([A-Za-z0-9_.]+)`?", value.text, re.IGNORECASE))
    foreign = sorted(tables - {"users", "domains", "aliases"})
    if foreign:
        meaning = (
            f"it reads {', '.join(foreign)}; pymx reads users (id, domain_id, email, password), domains (id, name) and "
            "aliases (id, domain_id, source, destinations): make tables or views of these names"
        )
        report.say(value, name, Fate.BLOCKED, meaning)
        return
    if "quota" in value.text.lower():
        report.say(value, name, Fate.LOST, "quotas of users are not read from there: pymxctl user quota")
        return
    report.say(value, name, Fate.SAME, "pymx reads the same tables")


def _scheme(value: Value, name: str, report: Report) -> None:
    if value.text.upper() in ("BLF-CRYPT", "SHA512-CRYPT", "SHA256-CRYPT", "ARGON2ID", "ARGON2I", "CRYPT"):
        report.say(value, name, Fate.SAME, "told by the hash itself")
    else:
        meaning = f"pymx does not know {value.text} hashes: these users need new passwords (pymxctl user passwd)"
        report.say(value, name, Fate.BLOCKED, meaning)


def _protocol(top: Block, block: Block, report: Report) -> None:
    for name, value in block.values.items():
        if name in _SETTINGS:
            _SETTINGS[name](top, name, value, report)
        elif name not in DOVECOT_SAME:
            report.say(value, f"protocol {block.name}: {name}", Fate.LOST, "pymx has no setting for it")


def _plugin(top: Block, block: Block, report: Report) -> None:
    for name, value in block.values.items():
        if name == "quota_rule":
            size = value.text.rpartition("storage=")[2]
            _quota_size(top, name, Value(size, value.file, value.line), report)
        elif name == "quota":
            report.say(value, name, Fate.SAME, "")
        elif name.startswith("quota"):
            report.say(
                value, name, Fate.LOST, "quotas are one size for a mailbox: [mail] default_quota_mb, pymxctl user quota"
            )
        elif name.startswith("sieve_before") and re.search("spam|junk", value.text):
            report.say(value, name, Fate.SAME, "junk is filed into Junk without a script")
        elif name.startswith(("imapsieve", "sieve_pipe", "sieve_global", "sieve_plugins")):
            report.say(
                value, name, Fate.SAME, "moves to and from Junk teach rspamd, or the own filter, without scripts"
            )
        elif name.startswith("sieve"):
            report.say(value, name, Fate.LOST, "scripts stay where they are, and are not run")
        else:
            report.say(value, name, Fate.LOST, "pymx has no such plugin")


def _service(top: Block, block: Block, report: Report) -> None:
    if block.name not in ("imap-login", "managesieve-login", "pop3-login"):
        here = Value(block.name, block.file, block.line)
        report.say(here, f"service {block.name}", Fate.SAME, "one program has no sockets between its parts")


def _as_value(block: Block) -> Value:
    """2.4's lists may be blocks: `protocols { imap = yes }`."""
    return Value(" ".join(name for name, v in block.values.items() if v.text == "yes"), block.file, block.line)


def _protocol_list(top: Block, block: Block, report: Report) -> None:
    _protocols(top, "protocols", _as_value(block), report)


def _plugin_list(top: Block, block: Block, report: Report) -> None:
    _plugins(top, "mail_plugins", _as_value(block), report)


def _prefixed(top: Block, block: Block, report: Report) -> None:
    """2.4: `ssl_server { cert_file = … }` is ssl_server_cert_file."""
    for name, value in block.values.items():
        _setting(top, f"{block.kind}_{name}", value, report)


def _quota_root(top: Block, block: Block, report: Report) -> None:
    for name, value in block.values.items():
        if name in ("storage_size", "quota_storage_size"):
            _quota_size(top, "quota_storage_size", value, report)
        elif name not in ("driver", "quota_driver"):
            report.say(value, f"quota {name}", Fate.LOST, "quotas are one size for a mailbox: [mail] default_quota_mb")


def _unknown_block(top: Block, block: Block, report: Report) -> None:
    here = Value(block.name, block.file, block.line)
    fate, meaning = Fate.LOST, "nothing in pymx does this"
    if block.kind in ("local_name", "local"):
        meaning = "certificates for other names: pymxctl cert install"
    elif block.kind in ("dict", "mysql", "import_environment"):
        fate, meaning = Fate.SAME, ""
    report.say(here, f"{block.kind} {block.name}".strip(), fate, meaning)


_BLOCKS: dict[str, Callable[[Block, Block, Report], None]] = {
    "namespace": _namespace, "passdb": _database, "userdb": _database, "protocol": _protocol, "plugin": _plugin,
    "service": _service, "protocols": _protocol_list, "mail_plugins": _plugin_list, "ssl_server": _prefixed,
    "quota": _quota_root,
}  # fmt: skip


# Listeners


def _listeners(top: Block, report: Report) -> None:
    listen = top.values.get("listen")
    hosts = list(_hosts(listen.text if listen else "*, ::"))
    listed = next(top.all("protocols"), None)
    protocols = top.values.get("protocols") or (_as_value(listed) if listed else None)
    if protocols is not None and "imap" not in protocols.text.split():
        return
    login = next(top.all("service", "imap-login"), Block())
    for name, key, default in (("imap", "listen_starttls", 143), ("imaps", "listen_tls", 993)):
        listener = next(login.all("inet_listener", name), Block())
        value = listener.values.get("port") or (listen if default == 993 else None)
        written = listener.text("port")
        port = int(written) if written.isdigit() else default
        addresses: list[object] = [f"{host}:{port}" for host in hosts] if port else []
        if value is not None:
            report.take(value, f"inet_listener {name} port", "imap", key, addresses)
        elif default == 143:
            where = Value("143", top.file, 1)
            report.take(where, "inet_listener imap", "imap", key, addresses, note="Dovecot's default, with STARTTLS")


def _hosts(text: str) -> Iterator[str]:
    """As pymx writes addresses."""
    for word in text.replace(",", " ").split():
        host = {"*": "0.0.0.0", "::": "[::]", "[::]": "[::]"}.get(word, word)  # noqa: S104  (as Dovecot listens)
        yield f"[{host}]" if ":" in host and not host.startswith("[") else host
