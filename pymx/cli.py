"""The command `pymx`: `serve` runs the server, `check-config` reads the configuration and says what is wrong."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pymx import __version__
from pymx.config.load import ConfigError

DEFAULT_CONFIG = Path("/etc/pymx/pymx.toml")


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pymx", description="A mail server appliance: SMTP, queue, IMAP.")
    parser.add_argument("--version", action="version", version=f"pymx {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("serve", "run the server"), ("check-config", "check the configuration and say what is wrong")):
        command = commands.add_parser(name, help=text)
        command.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help=f"default {DEFAULT_CONFIG}")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 could not start or the configuration is wrong, 2 usage."""
    arguments = _arguments().parse_args(argv)
    try:
        if arguments.command == "check-config":
            from pymx.admin import ctl  # the same check as `pymxctl check-config`

            return ctl.main(["--config", str(arguments.config), "check-config"])
        from pymx.app.lean import keep_buffers_apart, leave_out

        keep_buffers_apart()
        leave_out()
        from pymx.app.serve import serve

        return serve(arguments.config)
    except (ConfigError, OSError) as e:
        print(f"pymx: {e}", file=sys.stderr)
        return 1
