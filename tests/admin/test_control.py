"""The control socket: who may connect, what is answered, what can't hurt it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pymx.admin import control
from pymx.admin.control import Control, ControlError, ControlUnavailable, call


async def echo(arguments: dict[str, object]) -> object:
    return arguments


async def refuse(arguments: dict[str, object]) -> object:
    raise ControlError("not today")


async def fail(arguments: dict[str, object]) -> object:
    raise ZeroDivisionError("geheim")


async def unanswerable(arguments: dict[str, object]) -> object:
    return object()


ACTIONS = {"echo": echo, "refuse": refuse, "fail": fail, "unanswerable": unanswerable}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "control.sock"


@pytest.fixture
async def server(path: Path) -> AsyncIterator[Control]:
    server = Control(path, ACTIONS)
    await server.start()
    yield server
    await server.close()


def request(path: Path, octets: bytes, *, half_close: bool = True) -> bytes:
    """Send raw octets; all that comes back until the end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.settimeout(10)
        s.connect(str(path))
        try:
            s.sendall(octets)
            if half_close:
                s.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before all of it was read
        parts = []
        try:
            while part := s.recv(65536):
                parts.append(part)
        except ConnectionResetError:
            pass
        return b"".join(parts)


async def test_an_action_is_called_with_its_arguments(server: Control, path: Path):
    assert await asyncio.to_thread(call, path, "echo", {"a": [1, "ä"]}) == {"a": [1, "ä"]}


async def test_the_socket_is_private(server: Control, path: Path):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_a_refusal_is_told_and_a_failure_only_hinted_at(
    server: Control, path: Path, caplog: pytest.LogCaptureFixture
):
    with pytest.raises(ControlError, match="not today"):
        await asyncio.to_thread(call, path, "refuse")
    for action in ("fail", "unanswerable"):
        with pytest.raises(ControlError, match="see the log") as raised:
            await asyncio.to_thread(call, path, action)
        assert "geheim" not in str(raised.value)
    assert [r.getMessage() for r in caplog.records].count("control_failed") == 2
    with pytest.raises(ControlError, match="no action 'nonsense'"):
        await asyncio.to_thread(call, path, "nonsense")


@pytest.mark.parametrize(
    "line", [b"nonsense\n", b"[]\n", b"{}\n", b'{"action": 1}\n', b'{"action": "echo", "arguments": 1}\n', b"\xff\n"]
)
async def test_what_is_no_request_is_answered_and_the_next_one_served(server: Control, path: Path, line: bytes):
    answer = await asyncio.to_thread(request, path, line + b'{"action": "echo"}\n')
    first, second = map(json.loads, answer.splitlines())
    assert first["ok"] is False
    assert second == {"ok": True, "result": {}}


async def test_a_request_has_a_limit(server: Control, path: Path):
    answer = await asyncio.to_thread(request, path, b"x" * (control.MAX_REQUEST_OCTETS + 10))
    assert b"longer than" in answer
    assert await asyncio.to_thread(call, path, "echo") == {}


async def test_several_clients_are_served_at_once_and_too_many_are_not(server: Control, path: Path):
    writers = []
    for _ in range(control.MAX_CLIENTS):
        _, writer = await asyncio.open_unix_connection(path)
        writers.append(writer)
    answered = [await asyncio.to_thread(request, path, b'{"action": "echo"}\n') for _ in range(2)]
    assert b"too many" in answered[1]  # the first may come before the server has seen all of the idle ones
    for writer in writers:
        writer.close()
        await writer.wait_closed()


async def test_a_client_that_goes_away_hurts_nobody(server: Control, path: Path):
    await asyncio.to_thread(request, path, b'{"action": "ec')
    _, writer = await asyncio.open_unix_connection(path)
    writer.write(b'{"action": "echo"}\n')
    writer.transport.abort()
    assert await asyncio.to_thread(call, path, "echo") == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
async def test_somebody_elses_process_is_refused(caplog: pytest.LogCaptureFixture):
    """Even where the modes would let it connect: SO_PEERCRED decides."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "control.sock"
        server = Control(path, ACTIONS)
        await server.start()
        path.parent.chmod(0o755)
        path.chmod(0o666)
        code = (
            "import os, socket, sys; os.setgid(65534); os.setuid(65534); s = socket.socket(socket.AF_UNIX); "
            "s.connect(sys.argv[1]); print(s.recv(1000).decode())"
        )
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-I", "-c", code, str(path)], capture_output=True, text=True, timeout=30
        )
        await server.close()
    assert "only root and the daemon's user" in done.stdout, done.stderr
    assert any(r.getMessage() == "control_refused" for r in caplog.records)


async def test_closing_ends_the_clients_and_removes_the_socket(path: Path):
    server = Control(path, ACTIONS)
    await server.start()
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b'{"action": "echo"}\n')
    await reader.readline()
    await server.close()
    assert not path.exists()
    try:
        assert await reader.read() == b""
    except ConnectionResetError:
        pass
    writer.close()
    with pytest.raises(ControlUnavailable, match="not running"):
        call(path, "echo")


async def test_the_socket_of_a_killed_daemon_is_replaced_and_a_served_one_is_not(path: Path):
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    server = Control(path, ACTIONS)
    await server.start()
    with pytest.raises(ControlError, match="another pymx"):
        await Control(path, ACTIONS).start()
    assert await asyncio.to_thread(call, path, "echo") == {}
    await server.close()


async def test_a_file_of_that_name_is_not_removed(path: Path):
    path.parent.mkdir(mode=0o700)
    path.write_text("precious")
    with pytest.raises(ControlError, match="something else"):
        await Control(path, ACTIONS).start()
    assert path.read_text() == "precious"


async def test_an_empty_open_directory_of_ours_is_closed_to_others(path: Path):
    path.parent.mkdir(mode=0o755)
    server = Control(path, ACTIONS)
    await server.start()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    await server.close()


async def test_an_open_directory_with_other_things_in_it_is_refused_and_left(path: Path):
    """Or a socket set to /run/pymx.sock would take /run from everybody."""
    path.parent.mkdir(mode=0o755)
    (path.parent / "other").touch()
    with pytest.raises(ControlError, match="open to others"):
        await Control(path, ACTIONS).start()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755


def test_a_client_waits_no_longer_than_told(tmp_path: Path):
    path = tmp_path / "silent"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(str(path))
        silent.listen()
        with pytest.raises(ControlUnavailable, match=r"within 0\.1 s"):
            call(path, "echo", timeout_s=0.1)
