"""A client that resets its connection (RST) at a chosen point of a TLS handshake."""

from __future__ import annotations

import socket
import ssl
import struct

STARTTLS = {
    "smtp": (b"EHLO client.example\r\nSTARTTLS\r\n", b"220 2.0.0"),
    "imap": (b"a STARTTLS\r\n", b"a OK"),
}
UNDER_WAY = ("half a hello", "hello", "half an answer", "answer", "half the end")
"""Before the server has all that it needs to begin a session."""
PHASES = ("nothing", *UNDER_WAY, "end", "commands")


def reset(sock: socket.socket) -> None:
    """Close with RST: whatever the peer sends or has not read is of no use."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def reset_at(phase: str, port: int, context: ssl.SSLContext, *, starttls: str = "") -> None:
    """Connect, begin TLS (after the STARTTLS of a protocol), reset at `phase`."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=20)
    try:
        _converse(sock, phase, context, starttls)
    finally:
        reset(sock)


def _converse(sock: socket.socket, phase: str, context: ssl.SSLContext, starttls: str) -> None:
    if starttls:
        command, answer = STARTTLS[starttls]
        _read_until(sock, b"\r\n")
        sock.sendall(command)
        _read_until(sock, b"\r\n", after=answer)
    if phase == "nothing":
        return
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="mx.example.test")
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            ours = outgoing.read()
        sock.sendall(ours[:40] if phase == "half a hello" else ours)
        if phase in ("half a hello", "hello"):
            return
        theirs = sock.recv(40 if phase == "half an answer" else 65536)
        if phase in ("half an answer", "answer"):
            return
        incoming.write(theirs)
    ours = outgoing.read()
    sock.sendall(ours[:10] if phase == "half the end" else ours)
    if phase == "commands":
        tls.write(b"a NOOP\r\n" * 3)
        sock.sendall(outgoing.read())


def _read_until(sock: socket.socket, end: bytes, *, after: bytes = b"") -> None:
    found = b""
    while after not in found or not found.endswith(end):
        data = sock.recv(65536)
        if not data:
            raise ConnectionError(f"the server hung up after {found!r}")
        found += data
