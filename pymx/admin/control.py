"""The control socket: how pymxctl talks to the running daemon.

A Unix socket of mode 0600 in a directory of mode 0700; who connects must be root or the daemon's own user
(SO_PEERCRED). One JSON object a line: `{"action": NAME, "arguments": {…}}` is answered by `{"ok": true, "result": …}`
or `{"ok": false, "error": TEXT}`. Several requests may follow each other on a connection, and several clients are
served at once. A request line has a limit; so have the clients, and the time between requests.

An action fails with `ControlError`, whose text the client sees; anything else is logged and answered by a sentence.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from pymx import log
from pymx.admin.control_client import ControlError, ControlUnavailable, NotRunning, call

__all__ = ["Action", "Control", "ControlError", "ControlUnavailable", "NotRunning", "call"]

MAX_REQUEST_OCTETS = 1024 * 1024
MAX_CLIENTS = 32
IDLE_S = 60
CLOSE_S = 5  # for actions under way
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid

Action = Callable[[dict[str, object]], Awaitable[object]]


class Control:
    """The server. `start` in the loop that the actions belong to; `close` ends the clients and removes the socket."""

    def __init__(self, path: Path, actions: Mapping[str, Action]) -> None:
        self._path = path
        self._actions = actions
        self._server: asyncio.Server | None = None
        self._clients: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}
        self._log = log.get("admin")

    async def start(self) -> None:
        """Raises ControlError when the socket can't be made."""
        _prepare_directory(self._path.parent)
        _remove_left_over(self._path)
        try:
            self._server = await asyncio.start_unix_server(self._serve, self._path, limit=MAX_REQUEST_OCTETS)
            self._path.chmod(0o600)
        except OSError as e:
            raise ControlError(f"[control] socket = {str(self._path)!r}: {e.strerror or e}") from None

    async def close(self) -> None:
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        running = [task for task in self._clients.values() if task]
        for writer in self._clients:
            writer.transport.abort()
        if running:
            _, late = await asyncio.wait(running, timeout=CLOSE_S)
            for task in late:
                task.cancel()
        await server.wait_closed()
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients[writer] = asyncio.current_task()
        try:
            if self._server is None:
                return  # it connected while we were closing
            refusal = self._refusal(writer)
            if refusal:
                await _send(writer, {"ok": False, "error": refusal})
                return
            while line := await self._read(reader, writer):
                await _send(writer, await self._answer(line))
        except (OSError, TimeoutError):
            pass  # the client has gone, or has been silent for too long
        finally:
            del self._clients[writer]
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _refusal(self, writer: asyncio.StreamWriter) -> str:
        s: socket.socket = writer.get_extra_info("socket")
        _, uid, _ = _CREDENTIALS.unpack(s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if uid not in (0, os.geteuid()):
            self._log.warning("control_refused", reason=f"uid {uid}")
            return "only root and the daemon's user may do this"
        return "too many clients; try again" if len(self._clients) > MAX_CLIENTS else ""

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """The next request line, b"" at the end."""
        try:
            async with asyncio.timeout(IDLE_S):
                return await reader.readuntil(b"\n")
        except asyncio.IncompleteReadError:
            return b""
        except asyncio.LimitOverrunError:
            await _send(writer, {"ok": False, "error": f"the request is longer than {MAX_REQUEST_OCTETS} octets"})
            return b""

    async def _answer(self, line: bytes) -> dict[str, object]:
        try:
            request = json.loads(line)
        except ValueError:
            return {"ok": False, "error": "the request is not JSON"}
        name = request.get("action") if isinstance(request, dict) else None
        arguments = request.get("arguments", {}) if isinstance(request, dict) else None
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return {"ok": False, "error": 'a request is {"action": NAME, "arguments": {…}}'}
        action = self._actions.get(name)
        if action is None:
            return {"ok": False, "error": f"there is no action {name!r}; is pymx of another version than pymxctl?"}
        try:
            answer: dict[str, object] = {"ok": True, "result": await action(arguments)}
            json.dumps(answer)
            return answer
        except ControlError as e:
            return {"ok": False, "error": str(e)}
        except Exception as e:
            self._log.exception("control_failed", reason=f"{name}: {e}")
            return {"ok": False, "error": f"{name} failed: {type(e).__name__}; see the log of pymx"}


async def _send(writer: asyncio.StreamWriter, answer: Mapping[str, object]) -> None:
    writer.write(json.dumps(answer).encode() + b"\n")
    async with asyncio.timeout(IDLE_S):
        await writer.drain()


def _prepare_directory(directory: Path) -> None:
    """Make it with mode 0700, or take it from others if it is ours and holds nothing but sockets."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.stat()
        if not found.st_mode & 0o077:
            return
        only_sockets = all(stat.S_ISSOCK(entry.lstat().st_mode) for entry in directory.iterdir())
        if found.st_uid == os.geteuid() and only_sockets:
            directory.chmod(0o700)
            return
    except OSError as e:
        raise ControlError(f"[control] socket: its directory {directory}: {e.strerror}") from None
    raise ControlError(
        f"[control] socket: its directory {directory} is open to others (mode {stat.S_IMODE(found.st_mode):04o}); "
        f"name a directory of its own, or: chmod 0700 {directory}"
    )


def _remove_left_over(path: Path) -> None:
    """Take away the socket of a daemon that was killed. One that is served is left, with an error."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ControlError(f"[control] socket = {str(path)!r}: there is something else of that name")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.settimeout(1)
        try:
            s.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError as e:
            raise ControlError(f"[control] socket = {str(path)!r}: {e.strerror or e}") from None
    raise ControlError(f"[control] socket = {str(path)!r}: another pymx is serving on it; stop that one first")
