"""Fixtures for the tests of delivery."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from delivery_samples import DeliverTo, delivering
from support.dns_server import DnsServer


@pytest.fixture
async def deliver_to(dns_server: DnsServer) -> AsyncIterator[DeliverTo]:
    """Makes a Deliver that asks the test's name server; closed afterwards."""
    async with delivering(dns_server) as found:
        yield found
