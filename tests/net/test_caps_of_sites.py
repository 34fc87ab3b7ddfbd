"""Connections at the same time from the many networks of one IPv6 /48."""

from __future__ import annotations

from pymx.net.listener import Caps


def test_a_site_has_as_much_as_four_of_its_networks() -> None:
    """Who has a /48 has 65,536 /64s; what leaves makes room, and others are not concerned."""
    caps = Caps(1000, 3, ["2001:db8:5:ffff::/64"])
    inside = [f"2001:db8:5:{number:x}::1" for number in range(14)]
    assert [caps.enter(ip) for ip in inside] == [True] * 12 + [False] * 2
    assert caps.enter("2001:db8:6::1")
    assert caps.enter("192.0.2.1")
    assert caps.enter("2001:db8:5:ffff::1")
    caps.leave(inside[0])
    assert [caps.enter(inside[13]), caps.enter(inside[13])] == [True, False]
    for ip in [*inside[1:12], inside[13], "2001:db8:6::1", "192.0.2.1", "2001:db8:5:ffff::1"]:
        caps.leave(ip)
    assert (caps.count, caps._by_ip) == (0, {})


def test_one_network_has_no_more_than_before() -> None:
    """The limit of an address holds within a /48 too."""
    caps = Caps(1000, 3, [])
    assert [caps.enter("2001:db8:5::1") for _ in range(4)] == [True, True, True, False]
