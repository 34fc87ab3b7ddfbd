"""pymxctl's side of the control socket: one request, one answer (the protocol is in control.py). Light to import.

`NotRunning`: nobody listens there. `ControlUnavailable`: that, or no answer. `ControlError`: that, or the answer is no.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

MAX_ANSWER_OCTETS = 64 * 1024 * 1024
_READ_OCTETS = 65_536


class ControlError(Exception):
    """The request failed; the text is for the person at the terminal."""


class ControlUnavailable(ControlError):
    """The daemon can't be reached."""


class NotRunning(ControlUnavailable):
    """Nobody listens."""


def call(path: Path, action: str, arguments: Mapping[str, object] | None = None, *, timeout_s: float = 30.0) -> object:
    """The result of `action`. Raises ControlError, ControlUnavailable."""
    import json
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.settimeout(timeout_s)
        try:
            s.connect(str(path))
            with contextlib.suppress(BrokenPipeError):  # refused before it was read; the answer says why
                s.sendall(json.dumps({"action": action, "arguments": arguments or {}}).encode() + b"\n")
            line = _read_line(s)
        except (FileNotFoundError, ConnectionRefusedError):
            raise NotRunning(f"pymx is not running (nobody listens on {path})") from None
        except PermissionError:
            raise ControlUnavailable(f"{path}: only root and the daemon's user may talk to pymx") from None
        except TimeoutError:
            raise ControlUnavailable(f"pymx did not answer on {path} within {timeout_s:g} s") from None
        except OSError as e:
            raise ControlUnavailable(f"{path}: {e.strerror or e}") from None
    try:
        answer = json.loads(line)
    except ValueError:
        raise ControlUnavailable(f"pymx closed {path} without an answer") from None
    if not answer.get("ok"):
        raise ControlError(str(answer.get("error", "refused")))
    return answer.get("result")


def _read_line(s: socket.socket) -> bytes:
    parts, octets = [], 0
    while True:
        part = s.recv(_READ_OCTETS)
        parts.append(part)
        octets += len(part)
        if not part or part.endswith(b"\n"):
            return b"".join(parts)
        if octets > MAX_ANSWER_OCTETS:
            raise OSError(f"the answer is longer than {MAX_ANSWER_OCTETS} octets")
