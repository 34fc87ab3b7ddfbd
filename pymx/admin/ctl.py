"""pymxctl: `pymxctl [--config FILE] [--json] NOUN VERB …`.

One module per noun, imported when it is asked for: a command starts in a few dozen milliseconds unless it needs the
database. Exit status: 0 done, 1 failed or not found, 2 wrong usage, 3 database or daemon not available.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import pymx
from pymx.admin.context import Context, CtlError, Exit
from pymx.admin.control_client import ControlError, ControlUnavailable, NotRunning
from pymx.admin.output import Output

if TYPE_CHECKING:
    from pymx.config.model import Config

DEFAULT_CONFIG = "/etc/pymx/pymx.toml"


class _Help(argparse.RawDescriptionHelpFormatter):
    """With a width: to find one out argparse would import shutil and four compressors, each time, for a help that is
    hardly ever shown."""

    def __init__(self, prog: str) -> None:
        columns = os.environ.get("COLUMNS", "")
        super().__init__(prog, width=int(columns) - 2 if columns.isdigit() else 100)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": _Help, **options})


class Command(Protocol):
    """A noun's module."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace, context: Context) -> int: ...


class Noun(NamedTuple):  # not a dataclass: importing those costs 10 ms, a fifth of a command
    """`touches_data`: root becomes the server's user first. What only asks the daemon or reads the config need not.
    Without `needs_config` it works on a machine that has none yet."""

    module: str
    help: str
    touches_data: bool = True
    needs_config: bool = True


NOUNS: dict[str, Noun] = {
    "domain": Noun("pymx.admin.domain", "add, list and remove domains"),
    "user": Noun("pymx.admin.user", "add, list and remove users; passwords and quotas"),
    "alias": Noun("pymx.admin.alias", "add, list and remove aliases"),
    "resolve": Noun("pymx.admin.resolve", "where does mail for an address go?"),
    "dkim": Noun("pymx.admin.dkim", "make and show the keys that sign outgoing mail"),
    "setup": Noun("pymx.admin.setup", "make a mail server of this machine", touches_data=False, needs_config=False),
    "dns": Noun("pymx.admin.dns", "the DNS records to publish, and how the live ones differ from them"),
    "doctor": Noun(
        "pymx.admin.doctor", "is all well that mail depends on? and is our mail believed elsewhere?", touches_data=False
    ),
    "cert": Noun("pymx.admin.cert", "the server's certificates: show, get, renew, take over", touches_data=False),
    "mailbox": Noun("pymx.admin.mailbox", "is a mailbox sound on disk? mend its index and Dovecot's files"),
    "adopt": Noun(
        "pymx.admin.adopt",
        "take over from Postfix and Dovecot: configuration, mailboxes; --check looks first",
        touches_data=False,
        needs_config=False,
    ),
    "release": Noun("pymx.admin.release", "give the mailboxes back to Dovecot", touches_data=False),
    "junk": Noun("pymx.admin.junk", "what have the accounts' own junk filters learned? train and reset them"),
    "queue": Noun("pymx.admin.queue", "look after the messages waiting for delivery"),
    "trace": Noun("pymx.admin.trace", "what became of a message, from its arrival to its last delivery"),
    "bans": Noun("pymx.admin.bans", "who can't log in, why and until when; ban and lift"),
    "reports": Noun("pymx.admin.reports", "what other servers report about our mail (DMARC, TLS), and we about theirs"),
    "log": Noun("pymx.admin.log", "what happens to mail, as it happens; see trace for one message"),
    "status": Noun("pymx.admin.status", "what the running server says of itself", touches_data=False),
    "backup": Noun("pymx.admin.backup", "make, list, prove and thin out backups of everything"),
    "restore": Noun(
        "pymx.admin.restore", "bring a backup back, onto an empty machine", touches_data=False, needs_config=False
    ),
    "check-config": Noun("pymx.admin.check_config", "is the configuration sound?", touches_data=False),
    "migrate": Noun("pymx.admin.migrate", "make or upgrade the tables in the accounts database"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = _take_flag(words, "--json")
    out = Output(as_json=as_json)
    try:
        return _run(words, as_json=as_json)
    except SystemExit as e:  # argparse has said its piece
        return e.code if isinstance(e.code, int) else int(Exit.USAGE)
    except CtlError as e:
        out.failed(str(e))
        return e.exit_code
    except NotRunning as e:
        out.failed(f"{e}; start it with: systemctl start pymx")
        return Exit.UNAVAILABLE
    except ControlUnavailable as e:
        out.failed(str(e))
        return Exit.UNAVAILABLE
    except ControlError as e:
        out.failed(str(e))
        return Exit.FAILED
    except OSError as e:
        where = f"{e.filename}: " if e.filename else ""
        out.failed(f"{where}{e.strerror or e}")
        return Exit.FAILED
    except KeyboardInterrupt:
        return 130


def _run(words: list[str], *, as_json: bool) -> int:
    arguments = _top_parser().parse_args(words)
    noun = NOUNS[arguments.noun]
    _import_msgspec()
    command = cast(Command, importlib.import_module(noun.module))
    parser = _Parser(prog=f"pymxctl {arguments.noun}", description=noun.help)
    command.add_arguments(parser)
    rest = parser.parse_args(arguments.rest)
    path = Path(arguments.config)
    context = Context(_load(path, needed=noun.needs_config), path, json=as_json)
    if noun.touches_data:
        context.become_user()
    return command.run(rest, context)


def _load(path: Path, *, needed: bool) -> Config:
    from pymx.config.load import ConfigError, load

    if not needed and not path.exists():
        from pymx.config.model import Config

        return Config()
    try:
        return load(path)
    except ConfigError as e:
        raise CtlError(str(e)) from None


def _import_msgspec() -> None:
    """Without typing_extensions, which msgspec takes if it is there and does not need: a tenth of a command's time."""
    if "typing_extensions" in sys.modules:
        return
    sys.modules["typing_extensions"] = None  # type: ignore[assignment]  # how Python marks a module as not there
    try:
        importlib.import_module("msgspec")
    finally:
        del sys.modules["typing_extensions"]


def _top_parser() -> argparse.ArgumentParser:
    width = max(map(len, NOUNS))
    parser = _Parser(
        prog="pymxctl",
        description="Administer the pymx mail server.",
        epilog="nouns:\n"
        + "\n".join(f"  {name:<{width}}  {noun.help}" for name, noun in NOUNS.items())
        + "\n\nMore about one: pymxctl NOUN --help",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        default=os.environ.get("PYMX_CONFIG") or DEFAULT_CONFIG,
        help=f"the server's configuration (default $PYMX_CONFIG or {DEFAULT_CONFIG})",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document as output; may stand anywhere")
    parser.add_argument("--version", action="version", version=f"pymx {pymx.__version__}")
    parser.add_argument("noun", metavar="NOUN", choices=NOUNS, help="what to work on, see below")
    parser.add_argument("rest", metavar="VERB …", nargs=argparse.REMAINDER, help="what to do with it")
    return parser


def _take_flag(words: list[str], flag: str) -> bool:
    """Take `flag` out of `words`, wherever it stands before a `--`."""
    end = words.index("--") if "--" in words else len(words)
    if flag not in words[:end]:
        return False
    words[:end] = [word for word in words[:end] if word != flag]
    return True


if __name__ == "__main__":
    sys.exit(main())
