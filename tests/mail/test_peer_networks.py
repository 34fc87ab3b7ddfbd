"""Peers' addresses, and the networks that the administrator names."""

from __future__ import annotations

import pytest

from pymx.mail.peer import Networks, counted_network


@pytest.mark.parametrize(
    ("peer", "is_in"),
    [
        ("192.0.2.9", True),
        ("::ffff:192.0.2.9", True),
        ("192.0.3.9", False),
        ("2001:db8::1", True),
        ("2001:db8:1::1", False),
        ("fe80::1%eth0", False),
    ],
)
def test_an_address_is_found_however_it_is_written(peer: str, is_in: bool) -> None:
    """And every time: answers are remembered."""
    networks = Networks(["192.0.2.0/24", "2001:db8::/48"])
    assert [peer in networks for _ in range(3)] == [is_in] * 3


def test_many_peers_take_no_memory_for_good() -> None:
    networks = Networks(["10.0.0.0/8"])
    assert sum(f"10.0.{n >> 8}.{n & 255}" in networks for n in range(10_000)) == 10_000
    assert len(networks._answers) <= 4096


def test_an_ipv4_address_counts_alike_over_an_ipv6_socket() -> None:
    """systemd may hand over sockets that take both."""
    assert counted_network("::ffff:192.0.2.9") == counted_network("192.0.2.9") == "192.0.2.9"
