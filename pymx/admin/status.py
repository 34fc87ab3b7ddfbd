"""pymxctl status: what the running server says of itself."""

from __future__ import annotations

import argparse

from pymx.admin.context import Context, CtlError, Exit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(args: argparse.Namespace, context: Context) -> int:
    facts = context.control.call("status")
    if not isinstance(facts, dict):
        raise CtlError(f"pymx answered {facts!r}; is it of another version than pymxctl?")
    context.out.details(_flat(facts))
    return Exit.OK


def _flat(facts: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Nested facts as one list of dotted names."""
    flat: dict[str, object] = {}
    for name, value in facts.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
