"""The running server of these tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest
import uvloop
from imap_rig import Rig, running
from support.tls import TlsFiles


@pytest.fixture
async def rig(tmp_path: Path, tls_files: TlsFiles) -> AsyncIterator[Rig]:
    """A server with TLS, STARTTLS, and two accounts."""
    async with running(tmp_path, tls_files) as rig:
        yield rig


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Whole sessions run on both loops, the rest on asyncio's."""
    if item.path.name == "test_imap_sessions.py":
        return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}
