"""Hints between processes may be lost, never the knowledge that some were (STORE.md s. 7)."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from pymx.ms.hints import Hints


async def test_after_a_full_socket_everything_open_is_looked_at(tmp_path: Path) -> None:
    """EAGAIN: an overflow mark goes first next time."""
    sender, receiver = Hints(tmp_path), Hints(tmp_path)
    loop = asyncio.get_running_loop()
    sender.start(loop, "sender")
    receiver.start(loop, "receiver")
    other = asyncio.Event()
    receiver.subscribe(("b@example.test", "g2"), other.set)
    for _ in range(5000):  # no await: the receiver can't read
        sender.publish("a@example.test", "g1", 1)
    await asyncio.sleep(0)
    while not other.is_set():
        sender.publish("a@example.test", "g1", 2)
        await asyncio.sleep(0)
    sender.close()
    receiver.close()


async def test_a_process_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    """Its socket's name is removed; the sender goes on."""
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    dead.bind(str(tmp_path / "ms-dead.sock"))
    dead.close()
    sender = Hints(tmp_path)
    sender.start(asyncio.get_running_loop(), "sender")
    sender.publish("a@example.test", "g1", 1)
    assert not (tmp_path / "ms-dead.sock").exists()
    sender.close()


async def test_the_socket_is_for_us_alone(tmp_path: Path) -> None:
    """0600: nobody else may wake our sessions."""
    hints = Hints(tmp_path)
    hints.start(asyncio.get_running_loop(), "us")
    assert (tmp_path / "ms-us.sock").stat().st_mode & 0o777 == 0o600
    hints.close()
    assert list(tmp_path.iterdir()) == []
