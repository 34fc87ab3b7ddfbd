"""Random conversations: the engine answers everything or ends the session, and never fails."""

from __future__ import annotations

import itertools
import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from smtp_service import Service
from support.wait import wait_for

from pymx.config.model import Smtp
from pymx.mail.envelope import Listener

WORDS = [
    b"EHLO x", b"HELO x", b"LHLO x", b"MAIL FROM:<a@b.example>", b"MAIL FROM:<>", b"RCPT TO:<c@d.example>", b"DATA",
    b"BDAT 5", b"BDAT 0 LAST", b"BDAT 3 LAST", b"BDAT x", b"RSET", b"NOOP", b"QUIT", b"VRFY x", b"EXPN x", b"HELP",
    b"STARTTLS", b"AUTH PLAIN", b"AUTH LOGIN", b"AUTH PLAIN AGEAYg==", b"*", b".", b"", b"x" * 5000, b"\0", b"\xff\xfe",
    b" SIZE=5", b" BODY=8BITMIME SMTPUTF8", b" NOTIFY=NEVER", b" ORCPT=rfc822;x", b"GET / HTTP/1.0", b"Subject: x",
]  # fmt: skip
ENDS = [b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"", b"\r\n.\r\n"]

script = st.lists(
    st.tuples(st.one_of(st.sampled_from(WORDS), st.binary(max_size=20)), st.sampled_from(ENDS)), max_size=25
).map(lambda parts: b"".join(word + end for word, end in parts))

_services: dict[Listener, Service] = {}


@pytest.fixture(autouse=True, scope="module")
def _both_kinds(tmp_path_factory):
    for listener, loop in ((Listener.SMTP, "uvloop"), (Listener.LMTP, "asyncio")):
        _services[listener] = Service(
            tmp_path_factory.mktemp("smtp"), loop=loop, listener=listener, smtp=Smtp(max_errors=1000, memory_octets=10)
        )
        _services[listener].start()
    yield
    for service in _services.values():
        service.stop()
    _services.clear()


@settings(max_examples=60, deadline=None)
@given(script, st.sampled_from([Listener.SMTP, Listener.LMTP]))
def test_peer_that_vanishes_in_mid_conversation_leaves_nothing_behind(octets, listener):
    """A reset at any point: the session ends, its place is free, and no exception was logged."""
    service = _services[listener]
    client = service.client()
    try:
        client.send(octets)
    except OSError:
        pass
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.sock.close()
    wait_for(lambda: len(service.sessions) == 0)
    assert not service.events("smtp_error")


@settings(max_examples=150, deadline=None)
@given(script, st.lists(st.integers(0, 600), max_size=4), st.sampled_from([Listener.SMTP, Listener.LMTP]))
def test_conversation_never_breaks_the_engine(octets, cuts, listener):
    """Every reply is well formed, the session ends when the peer does, and no exception was logged."""
    service = _services[listener]
    with service.client() as client:
        edges = [0, *sorted(c for c in cuts if c < len(octets)), len(octets)]
        try:
            for a, b in itertools.pairwise(edges):
                client.send(octets[a:b])
            client.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # closed by the server, as it may after QUIT and the like
        while text := client.reply():
            assert text[:3].isdigit()
            lines = text.split("\n")
            assert all(line[:4] == text[:3] + "-" for line in lines[:-1])
            assert lines[-1][3] == " "
            if text[:3] not in ("354", "334") and len(lines) == 1 and "mx.example.test" not in text:
                assert text[4] == text[0]
                assert text[5] == "."
    assert not service.events("smtp_error")
