"""pymxctl check-config: is the configuration sound? Says every error at once; the server would refuse to start."""

from __future__ import annotations

import argparse

from pymx.admin.context import Context, Exit
from pymx.config.check import check


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(args: argparse.Namespace, context: Context) -> int:
    errors = check(context.config)
    if not errors:
        context.out.done(f"{context.config_path} is sound", config=str(context.config_path))
        return Exit.OK
    text = "\n  ".join([f"{context.config_path} has {len(errors)} error{'s' * (len(errors) != 1)}:", *errors])
    if context.json:
        context.out.failed(f"{context.config_path} is not sound", errors=errors)
    else:
        context.out.failed(text)
    return Exit.FAILED
