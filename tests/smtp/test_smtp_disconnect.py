"""Peers that go away: what is being delivered is delivered, what was not complete is not."""

from __future__ import annotations

import socket
import struct

from support.wait import wait_for


def reset(sock: socket.socket) -> None:
    """Close with a RST, as a peer that died."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_hang_up_during_delivery_does_not_cancel_it(smtp_service, loop_name):
    """The peer will send the message again; a delivery cut in the middle would be worse than one done twice."""
    service = smtp_service(loop=loop_name)
    service.policy.hold_data = True
    client = service.client()
    client.transaction()
    client.send("Subject: x\r\n\r\nx\r\n.\r\n")
    assert service.policy.delivering.wait(10)
    (session,) = service.live
    reset(client.sock)
    wait_for(lambda: session._lost)
    assert len(service.sessions) == 1
    service.call(service.policy.release.set)
    wait_for(lambda: service.policy.delivered)
    wait_for(lambda: len(service.sessions) == 0)
    assert wait_for(lambda: service.events("smtp_session"))[0]["messages"] == 1


def test_half_closed_peer_still_gets_its_replies(smtp_service, loop_name):
    """Everything in one packet and a FIN behind it (`printf … | nc`)."""
    service = smtp_service(loop=loop_name)
    with service.client() as client:
        client.send(
            "EHLO c\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\nA: b\r\n\r\nx\r\n.\r\n"
        )
        client.sock.shutdown(socket.SHUT_WR)
        replies = []
        while text := client.reply():
            replies.append(text[:3])
    assert replies == ["250", "250", "250", "354", "250"]
    assert service.policy.delivered[0].data == b"A: b\r\n\r\nx\r\n"


def test_message_without_its_end_is_not_delivered(smtp_service, loop_name):
    """RFC 5321 s. 4.1.1.4: only the end of data makes it a message."""
    service = smtp_service(loop=loop_name)
    client = service.client()
    client.transaction()
    client.send("Subject: x\r\n\r\nx\r\n.\r")
    client.sock.shutdown(socket.SHUT_WR)
    assert client.line() == ""
    client.sock.close()
    line = wait_for(lambda: service.events("smtp_session"))[0]
    assert line["reason"] == "connection closed by the peer"
    assert not service.policy.delivered


def test_peers_that_leave_at_once_leave_nothing_behind(smtp_service, loop_name):
    """Port scanners."""
    service = smtp_service(loop=loop_name)
    for i in range(50):
        sock = socket.create_connection(("127.0.0.1", service.port))
        if i % 2:
            reset(sock)
        else:
            sock.close()
    wait_for(lambda: len(service.events("smtp_session")) == 50)
    wait_for(lambda: len(service.sessions) == 0)
