"""The `smtp_service` fixture: start a service, get it stopped and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from smtp_service import Service


@pytest.fixture
def smtp_service(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """`smtp_service(**options)` starts a Service; see there."""
    services: list[Service] = []

    def start(**options: object) -> Service:
        service = Service(tmp_path, **options)  # type: ignore[arg-type]
        services.append(service)
        service.start()
        return service

    yield start
    for service in services:
        service.stop()


@pytest.fixture(params=["uvloop", "asyncio"])
def loop_name(request: pytest.FixtureRequest) -> str:
    """Both event loops."""
    return str(request.param)
