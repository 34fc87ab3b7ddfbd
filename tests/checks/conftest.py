"""Fixtures of the checks' tests."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from checks_rig import Rig, Start, checked_mail
from support.dns_server import DnsServer
from support.tls import TlsFiles


@pytest.fixture
def checked(tmp_path: Path, dns_server: DnsServer, tls_files: TlsFiles, caplog: pytest.LogCaptureFixture) -> Start:
    """`async with checked(checks=…, rspamd=…) as rig`."""

    @contextlib.asynccontextmanager
    async def start(**settings: object) -> AsyncIterator[Rig]:
        async with checked_mail(tmp_path, dns_server, tls_files, caplog, **settings) as rig:  # type: ignore[arg-type]
            yield rig

    return start


@pytest.fixture
async def rig(checked: Start) -> AsyncIterator[Rig]:
    """The default settings."""
    async with checked() as running:
        yield running
