"""Structured logging on the standard library: one event name, fields from one list, logfmt or JSON, never blocking.

`get("room")` gives a `Log`; `log.info("message_accepted", session=…, queue_id=…)` writes one line. `bind` fixes
fields once for a session. Values are escaped, so nothing a peer said can start a line of its own. Records pass through
a bounded queue to a thread of their own: a stalled journal never stops the event loop, and what had to be dropped is
counted and reported with the next line that gets through.

`tap` lets others see every line from level info on, also those that the level of the log leaves out.

Event and field names are listed in docs/operations.md.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO

_QUEUE_LENGTH = 20_000
_GATHER_S = 0.02
_MAX_TOGETHER = 500  # lines in one write
_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/@<>+,*[]()%#&;!?~^|")

Value = object
Tap = Callable[[int, str, str, Mapping[str, Value]], None]  # level, room, event, fields; must not block or raise

_taps: tuple[Tap, ...] = ()


def tap(taker: Tap) -> None:
    """Have `taker` called with every line of this process, in the thread that writes it."""
    global _taps
    _taps = (*_taps, taker)


def untap(taker: Tap) -> None:
    global _taps
    _taps = tuple(other for other in _taps if other != taker)


class Log:
    """A logger with fields bound to it."""

    __slots__ = ("_fields", "_logger")

    def __init__(self, logger: logging.Logger, fields: Mapping[str, Value]) -> None:
        self._logger = logger
        self._fields = fields

    def bind(self, **fields: Value) -> Log:
        return Log(self._logger, {**self._fields, **fields})

    def debug(self, event: str, /, **fields: Value) -> None:
        if self._logger.isEnabledFor(logging.DEBUG):
            self._write(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: Value) -> None:
        if _taps or self._logger.isEnabledFor(logging.INFO):
            self._write(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: Value) -> None:
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: Value) -> None:
        self._write(logging.ERROR, event, fields)

    def exception(self, event: str, /, **fields: Value) -> None:
        """An error with the traceback of the exception being handled."""
        self._write(logging.ERROR, event, fields, trace=True)

    def _write(self, level: int, event: str, fields: Mapping[str, Value], *, trace: bool = False) -> None:
        merged = {**self._fields, **fields}
        if level >= logging.INFO:
            for take in _taps:
                take(level, self._logger.name[5:], event, merged)
        if self._logger.isEnabledFor(level):
            self._logger.handle(_record(self._logger.name, level, event, merged, trace=trace))


def _record(name: str, level: int, event: str, fields: Mapping[str, Value], *, trace: bool) -> logging.LogRecord:
    """As a logger would make it, without looking for the caller's line: the event names its place."""
    record = logging.LogRecord(name, level, "", 0, event, None, sys.exc_info() if trace else None)
    record.fields = fields
    return record


def get(room: str) -> Log:
    """The log of a room: logger `pymx.<room>`."""
    return Log(logging.getLogger(f"pymx.{room}"), {})


def _logfmt(value: Value) -> str:
    if value is True or value is False:
        return "yes" if value else "no"
    text = str(value)
    if text and not set(text) - _SAFE:
        return text
    # json escapes controls, quotes and everything outside ASCII: one line stays one line
    return json.dumps(text)


class LogfmtFormatter(logging.Formatter):
    """`ts=… level=… room=… event=… key=value …`; for journald the time stamp is left out."""

    def __init__(self, *, timestamps: bool) -> None:
        super().__init__()
        self._timestamps = timestamps

    def format(self, record: logging.LogRecord) -> str:
        parts = []
        if self._timestamps:
            parts.append(f"ts={time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{record.msecs:03.0f}Z")
        parts.append(f"level={record.levelname.lower()} room={record.name.removeprefix('pymx.')}")
        parts.append(f"event={_logfmt(record.getMessage())}")
        fields: Mapping[str, Value] = getattr(record, "fields", {})
        parts += [f"{k}={_logfmt(v)}" for k, v in fields.items() if v is not None and v != ""]
        if record.exc_info:
            parts.append(f"traceback={_logfmt(self.formatException(record.exc_info))}")
        return " ".join(parts)


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        out: dict[str, Value] = {
            "ts": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "room": record.name.removeprefix("pymx."),
            "event": record.getMessage(),
        }
        fields: Mapping[str, Value] = getattr(record, "fields", {})
        out.update((k, v) for k, v in fields.items() if v is not None and v != "")
        if record.exc_info:
            out["traceback"] = self.formatException(record.exc_info)
        return json.dumps(out, default=str)


class _Writer(logging.Handler):
    """Takes records without waiting; a thread formats what has gathered and writes it in one piece.

    The first line after a pause is written at once, those behind it at most `_GATHER_S` later: a busy server would
    else wake the thread, and hand the interpreter to it, for each line. When `_QUEUE_LENGTH` wait, records are
    dropped and counted.
    """

    def __init__(self, formatter: logging.Formatter, stream: TextIO) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._stream = stream
        self._waiting: deque[logging.LogRecord] = deque()
        self._dropped = 0
        self._due = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def createLock(self) -> None:
        self.lock = None  # appending to a deque needs none

    def handle(self, record: logging.LogRecord) -> bool:
        """As the base class, but without the lock, on which that of Python 3.13 insists; and there are no filters."""
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        if len(self._waiting) >= _QUEUE_LENGTH:
            self._dropped += 1
            return
        self._waiting.append(record)
        if not self._due.is_set():
            self._due.set()

    def stop(self) -> None:
        """Write what waits and end the thread. Blocking."""
        self._stopping.set()
        self._due.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._due.wait()
            self._due.clear()
            self._write()
            self._stopping.wait(_GATHER_S)
        self._write()

    def _write(self) -> None:
        while self._waiting:
            lines: list[str] = []
            while self._waiting and len(lines) < _MAX_TOGETHER:
                record = self._waiting.popleft()
                try:
                    lines.append(self.format(record) + "\n")
                except Exception:  # a bad line must not end the log
                    self.handleError(record)
            try:
                self._stream.write("".join(lines))
                self._stream.flush()
            except (OSError, ValueError):  # closed, the latter; there is no other place to say it than here, later
                self._dropped += len(lines)
                continue
            if lost := self._dropped:
                self._dropped = 0
                self._waiting.append(  # even if it is full again
                    _record("pymx.log", logging.WARNING, "log_records_dropped", {"count": lost}, trace=False)
                )


class Logging:
    """The running log: `stop()` writes what is queued and ends the thread."""

    def __init__(self, writer: _Writer) -> None:
        self._writer = writer

    def stop(self) -> None:
        self._writer.stop()


def setup(
    *, level: str = "info", form: str = "logfmt", timestamps: bool = True, stream: TextIO | None = None
) -> Logging:
    """Start logging to `stream` (standard error). Call once per process, after a fork: it starts a thread."""
    # without a standard error there is nowhere to say anything
    writer = _Writer(_formatter(form, timestamps), stream or sys.stderr or Path(os.devnull).open("w"))  # noqa: SIM115
    _install(writer, level)
    return Logging(writer)


def setup_without_thread(
    *, level: str = "info", form: str = "logfmt", timestamps: bool = True, stream: TextIO | None = None
) -> None:
    """Log from the calling thread: for a process that forks and therefore has no threads, and says little."""
    out = logging.StreamHandler(stream or sys.stderr)
    out.setFormatter(_formatter(form, timestamps))
    _install(out, level)


def _formatter(form: str, timestamps: bool) -> logging.Formatter:
    return JsonFormatter() if form == "json" else LogfmtFormatter(timestamps=timestamps)


def _install(handler: logging.Handler, level: str) -> None:
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("pymx").setLevel(level.upper())
