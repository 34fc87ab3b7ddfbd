"""What a command prints: tables for people, one JSON document for scripts.

On a terminal a table is drawn by rich (imported only then); into a pipe it is aligned text. Work that takes long has a
bar on standard error, if that is a terminal. With --json each command prints exactly one document on standard output: a
list of objects for a table, an object with "ok" for everything else.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence


class Output:
    """`as_json`: the --json flag."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str = "none") -> None:
        """Rows under their columns; `empty` is said to a person when there are no rows."""
        if self._as_json:
            keys = [column.lower().replace(" ", "_") for column in columns]
            self._dump([dict(zip(keys, row, strict=True)) for row in rows])
        elif not rows:
            print(empty)
        elif sys.stdout.isatty():
            _draw(columns, rows)
        else:
            _align(columns, rows)

    def details(self, facts: Mapping[str, object]) -> None:
        """One thing's facts, a line each."""
        if self._as_json:
            self._dump({"ok": True, **facts})
            return
        width = max(map(len, facts), default=0)
        for name, value in facts.items():
            print(f"{name:<{width}}  {_text(value)}")

    def done(self, text: str, **facts: object) -> None:
        """What was done: the sentence for people, the facts for scripts."""
        if self._as_json:
            self._dump({"ok": True, **facts})
        else:
            print(text)

    @contextlib.contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        """Gives what is to be called after each of `total` steps. Nothing may be printed meanwhile."""
        if self._as_json or not sys.stderr.isatty():
            yield lambda: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(_text(what), total=total)
            yield lambda: bar.advance(task)

    def warn(self, text: str) -> None:
        """Something a person should know, on standard error."""
        print(f"pymxctl: warning: {text}", file=sys.stderr)

    def failed(self, text: str, **facts: object) -> None:
        if self._as_json:
            self._dump({"ok": False, "error": text, **facts})
        else:
            print(f"pymxctl: {text}", file=sys.stderr)

    def _dump(self, document: object) -> None:
        import json

        json.dump(document, sys.stdout, default=str, ensure_ascii=False)
        print()


def _text(value: object) -> str:
    if value is None:
        return "-"
    if value is True or value is False:
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "-"
    if isinstance(value, Mapping):
        return " ".join(f"{key}={_text(inner)}" for key, inner in value.items()) or "-"
    # controls from the wire must not reach a terminal
    return "".join(c if c.isprintable() else "\ufffd" for c in str(value)) or "-"


def _align(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    texts = [list(columns), *([_text(value) for value in row] for row in rows)]
    widths = [max(len(line[i]) for line in texts) for i in range(len(columns))]
    for line in texts:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def _draw(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, header_style="bold")
    for i, column in enumerate(columns):
        numbers = all(isinstance(row[i], int) and not isinstance(row[i], bool) for row in rows)
        table.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_text(value)) for value in row))
    Console().print(table)
