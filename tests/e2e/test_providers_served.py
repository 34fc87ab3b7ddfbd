"""A running server whose remote says "slower": the provider is left alone, over kill -9 too, and people see why."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.appliance import Site
from support.dns_server import DnsServer
from support.sinks import ScriptedRemote
from support.wait import wait_for

SLOWER = "421 4.7.0 [TSS04] Messages from 127.0.0.1 temporarily deferred due to unexpected volume"


@pytest.fixture
def site() -> Iterator[Site]:
    remote = ScriptedRemote()
    remote.start()
    dns = DnsServer()
    for name in ("one.test", "two.test"):
        dns.add(name, "MX", "10 mta5.am0.yahoodns.net")
    dns.add("mta5.am0.yahoodns.net", "A", "127.0.0.1")
    dns.add("other.test", "MX", "10 mx.other.test")
    dns.add("mx.other.test", "A", "127.0.0.1")
    found = Site(
        extra={
            "outbound": f"port = {remote.port}\nallow_private = true\nkeep_connection_s = 0\n"
            'source_addresses = ["127.0.0.1"]\n',
            "dns": f'nameservers = ["{dns.spec}"]\n',
        },
        remote=remote,
        dns=dns,
    )
    try:
        found.populate()
        yield found
    finally:
        found.remove()
        dns.close()
        remote.stop()


def test_a_provider_that_says_slower_is_left_alone(site: Site) -> None:
    """Its other domains wait without an attempt, other providers' mail goes on, a retry by hand tries at once."""
    remote = site.remote
    assert remote is not None
    site.start()
    remote.replies["MAIL"] = [SLOWER]
    site.submit("alice", "a@one.test", "first")
    wait_for(lambda: "event=provider_slowed" in site.log(), what="the log says it")
    (line,) = [x for x in site.log().splitlines() if "event=provider_slowed" in x]
    assert "key=yahoo" in line
    assert "[TSS04]" in line
    wait_for(lambda: site.ctl_json("queue", "paces"), what="the paces are written")
    site.kill()
    site.start()
    site.submit("alice", "b@two.test", "second")
    site.submit("alice", "c@other.test", "third")
    wait_for(lambda: [m.rcpt_to for m in remote.messages] == [("c@other.test",)], what="other mail goes on")
    wait_for(lambda: [x["state"] for x in site.ctl_json("queue", "list")] == ["deferred"] * 2, what="the second waits")
    second = next(x for x in site.ctl_json("queue", "list") if x["rcpt_to"] == ["b@two.test"])
    assert second["attempts"] == 0
    shown = site.ctl_json("queue", "show", second["queue_id"])
    assert shown["attempts"] == []
    assert shown["recipients"][0]["why"] == f"not tried before its time: {SLOWER}"
    (pace,) = site.ctl_json("queue", "paces")
    assert (pace["provider_or_hosts"], pace["state"], pace["reason"]) == ("yahoo", "slowed down", SLOWER)
    assert site.ctl_json("status")["source_addresses"]["127.0.0.1"].startswith("private")
    site.ctl("queue", "retry", "--all")
    wait_for(lambda: len(remote.messages) == 3, what="a retry by hand is no use waiting for")
    assert site.ctl_json("queue", "list") == []
    assert site.stop() == 0
