"""pymxctl adopt --from-postfix DIR --from-dovecot DIR: a pymx.toml from the configuration that was here before.

Reads main.cf, master.cf, the tables they name, dovecot.conf with all it includes, and rspamd's DKIM keys; says of every
setting what became of it and what that means, each with its file and line; writes pymx.toml, the smarthost's password
and the DKIM keys. The old files are only read. With --check nothing is written, and what would be is shown with --json.

Exit status 1: something is in the way of a takeover, or the result is no sound configuration.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from pymx.admin.context import Context, CtlError, Exit
from pymx.admin.mailbox import printable
from pymx.admin.oldstack import fromdovecot, frompostfix, rspamd
from pymx.admin.oldstack.postfix import Value
from pymx.admin.oldstack.report import Fate, Line, Report
from pymx.config.check import check
from pymx.config.model import Config
from pymx.config.write import to_toml
from pymx.mailauth.dkim.keys import KeyUnusable, domain_directory, load

_RSPAMD = "/etc/rspamd"
_DESCRIBED = {
    Fate.TAKEN: "Taken over",
    Fate.DIFFERENT: "Done another way",
    Fate.LOST: "Not done any more",
    Fate.BLOCKED: "In the way: change this first",
    Fate.SAME: "Needs no setting",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--from-postfix", metavar="DIR", help="make pymx.toml from this configuration: /etc/postfix")
    parser.add_argument("--from-dovecot", metavar="DIR", help="and this one: /etc/dovecot, or a file")
    parser.add_argument("--from-rspamd", metavar="DIR", help=f"DKIM keys of rspamd ({_RSPAMD} if it is there)")
    parser.add_argument("--data-dir", metavar="DIR", help="where pymx is to have its data (default /var/lib/pymx)")
    parser.add_argument("--write", metavar="FILE", help="the configuration to write (default: that of --config)")
    parser.add_argument("--quiet", action="store_true", help="leave out what needs no setting")


def wanted(args: argparse.Namespace) -> bool:
    return bool(args.from_postfix or args.from_dovecot)


def run(args: argparse.Namespace, context: Context) -> int:
    report = Report()
    if args.from_postfix:
        frompostfix.take(Path(os.path.abspath(args.from_postfix)), report)
    if args.from_dovecot:
        fromdovecot.take(Path(os.path.abspath(args.from_dovecot)), report)
    if args.data_dir:
        report.settings.setdefault("", {})["data_dir"] = os.path.abspath(args.data_dir)
    target = Path(os.path.abspath(args.write or context.config_path))
    _routes(report, target)
    config = _config(report)
    _keys(args, report, config)
    problems = [problem for problem in check(config) if not _is_later(problem, config)]
    blocked = any(line.fate is Fate.BLOCKED for line in report.lines)
    text = _header(args) + to_toml(config, _comments(report))
    if not context.json:
        _show(report, problems, quiet=args.quiet)
    written: list[str] = []
    if not args.check and not (blocked or problems):
        written = _write(report, config, text, target)
    facts: dict[str, Any] = {
        "lines": [{**asdict(line), "fate": line.fate.value} for line in report.lines],
        "problems": problems,
        "written": written,
    }
    if context.json:
        facts["toml"] = _without_secrets(text)
        context.out.done("", **facts)
    elif written:
        print("written: " + ", ".join(written) + "\nnext: pymxctl migrate; pymxctl adopt --check (docs/migration.md)")
    elif blocked or problems:
        print("nothing was written: see what is in the way")
    return Exit.FAILED if blocked or problems else Exit.OK


def _routes(report: Report, target: Path) -> None:
    """Password files lie beside the configuration."""
    for route in report.settings.get("outbound", {}).get("route", []):  # type: ignore[attr-defined]  # a list of tables
        if "password_file" in route:
            route["password_file"] = str(target.with_name(route["password_file"]))


def _config(report: Report) -> Config:
    settings: dict[str, Any] = {**report.settings, **report.settings.get("", {})}
    settings.pop("", None)
    strip = settings.get("submission", {}).get("strip_fields")
    if strip is not None:  # in addition to ours
        default = Config().submission.strip_fields
        settings["submission"]["strip_fields"] = list(dict.fromkeys([*default, *strip]))
    try:
        return msgspec.convert(settings, Config, strict=True)
    except msgspec.ValidationError as e:
        raise CtlError(f"the old settings make no configuration: {e}") from None


def _is_later(problem: str, config: Config) -> bool:
    """A file that will be written, or that only root can read."""
    passwords = any(route.password_file and route.password_file in problem for route in config.outbound.route)
    return passwords or ("can't be read" in problem and "Permission" in problem)


def _keys(args: argparse.Namespace, report: Report, config: Config) -> None:
    directory = Path(os.path.abspath(args.from_rspamd or _RSPAMD))
    if not directory.is_dir():
        if args.from_rspamd:
            raise CtlError(f"there is no {directory}")
        return
    keys, trouble = rspamd.read_keys(directory, [])
    for text in trouble:
        report.lines.append(Line(str(directory), "dkim_signing", Fate.LOST, text))
    for key in keys:
        path = Path(key.path)
        here = Value(key.path, key.where.rpartition(":")[0], int(key.where.rpartition(":")[2]))
        name = f"{key.selector}._domainkey.{key.domain}"
        try:
            load(path, key.domain)
            domain_directory(Path(config.data_dir), key.domain)
        except (KeyUnusable, ValueError) as e:
            report.say(here, name, Fate.LOST, f"{e}: mail of that domain is not signed; pymxctl dkim generate")
            continue
        report.keys.append((key.domain, key.selector, key.path))
        report.say(here, name, Fate.TAKEN, f"copied to {config.data_dir}/dkim/{key.domain}; its DNS record stays right")


def _header(args: argparse.Namespace) -> str:
    sources = " and ".join(filter(None, (args.from_postfix, args.from_dovecot)))
    return f"# pymx, taken over from {sources} by pymxctl adopt.\n# All other settings: docs/settings.md\n\n"


def _comments(report: Report) -> dict[tuple[str, str], str]:
    return {place: f"from {source}" for place, source in report.sources.items()}


def _show(report: Report, problems: list[str], *, quiet: bool) -> None:
    counts = Counter(line.fate for line in report.lines)
    for fate, title in _DESCRIBED.items():
        if not counts[fate] or (quiet and fate is Fate.SAME):
            continue
        print(f"{title}:")
        for line in report.lines:
            if line.fate is fate:
                print(printable(f"  {line.where}: {line.said}"))
                if line.meaning:
                    print(printable(f"      {line.meaning}"))
        print()
    for problem in problems:
        print(printable(f"the result is not sound: {problem}"))
    print(", ".join(f"{counts[fate]} {fate.value}" for fate in _DESCRIBED if counts[fate]))


def _without_secrets(text: str) -> str:
    lines = ("url = …" if line.startswith("url = ") and "@" in line else line for line in text.splitlines())
    return "\n".join(lines) + "\n"


def _write(report: Report, config: Config, text: str, target: Path) -> list[str]:
    """CtlError rather than to overwrite something."""
    if target.exists() and target.read_text(encoding="utf-8", errors="replace") != text:
        raise CtlError(f"{target} is there already, and says something else; --write FILE puts it elsewhere")
    owner = _owner(config)
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    files = {target: text, **{target.with_name(name): secret for name, secret in report.passwords.items()}}
    for path, content in files.items():
        new = path.with_name(path.name + ".new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)
        with open(fd, "w", encoding="utf-8") as out:
            out.write(content)
        if owner is not None:
            os.chown(new, 0, owner[1])
        os.replace(new, path)
    written = [str(path) for path in files]
    for domain, selector, source in report.keys:
        directory = domain_directory(Path(config.data_dir) / "dkim", domain)
        key = directory / f"{selector}.pem"
        if key.exists():
            continue
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        key.touch(mode=0o600)
        shutil.copyfile(source, key)
        if owner is not None:
            for path in (Path(config.data_dir), Path(config.data_dir) / "dkim", directory, key):
                os.chown(path, *owner)
        written.append(str(key))
    return written


def _owner(config: Config) -> tuple[int, int] | None:
    if os.geteuid() != 0 or config.user == "none":
        return None
    import pwd

    try:
        user = pwd.getpwnam(config.user)
    except KeyError:
        raise CtlError(f"there is no user {config.user}; make it, or set user in pymx.toml afterwards") from None
    return user.pw_uid, user.pw_gid
