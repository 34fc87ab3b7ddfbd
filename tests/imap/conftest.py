"""The running server of these tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from imap_rig import Rig, running
from support.tls import TlsFiles


@pytest.fixture
async def rig(tmp_path: Path, tls_files: TlsFiles) -> AsyncIterator[Rig]:
    """A server with TLS, STARTTLS, and two accounts."""
    async with running(tmp_path, tls_files) as rig:
        yield rig
