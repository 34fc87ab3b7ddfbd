"""A client that goes away takes its search and sort with it."""

from __future__ import annotations

import threading

from imap_rig import ALICE, Rig
from support.wait import wait_until

from pymx.ms.keys import Keys
from pymx.ms.store import Append
from pymx.proto.imap.render import render
from pymx.spool import Content


async def test_a_sort_ends_when_its_client_is_gone(rig: Rig) -> None:
    """Nothing more is read for somebody who does not wait for it, and the next sort is complete."""
    gate, reached, calls = threading.Event(), threading.Event(), 0
    store = rig.store
    store.render = None
    items = [Append(Content.from_bytes(b"Subject: %d\r\n\r\n" % number), 0, (), None) for number in range(450)]
    await store.append(ALICE, "INBOX", items)

    def slow(message: bytes) -> tuple[bytes, bytes, Keys | None]:
        nonlocal calls
        calls += 1
        reached.set()
        assert gate.wait(10)
        return render(message)

    store.render = slow
    client = await rig.select()
    client.send(b"a SORT (SUBJECT) UTF-8 ALL\r\n")
    await wait_until(reached.is_set, what="the sort reads headers")
    client.writer.transport.abort()
    (session,) = rig.sessions._live
    await wait_until(lambda: session._gone, what="the server sees the end")  # type: ignore[attr-defined]
    gate.set()
    await wait_until(lambda: not len(rig.sessions), what="the session ends")
    assert calls <= 200
    client = await rig.select()
    assert len((await client.ok("SORT (ARRIVAL) UTF-8 ALL"))[0].split()) == 452
    assert len((await client.ok("SORT (SUBJECT) UTF-8 ALL"))[0].split()) == 452
    assert calls == 450
    await client.close()
