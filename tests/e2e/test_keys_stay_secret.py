"""The secrets of a server that works with them are in their own files, readable by nobody else, and nowhere else."""

from __future__ import annotations

import base64
import smtplib
from collections.abc import Iterator

import pytest
from support.appliance import Appliance
from support.dns_server import DnsServer
from support.sinks import ScriptedRemote
from support.wait import wait_for

SMARTHOST_PASSWORD = "correct-horse-battery"
USER_PASSWORD = "secret-of-alice"


@pytest.fixture
def server() -> Iterator[Appliance]:
    """Mail to far.test goes to a smarthost with a login; logs at level debug."""
    remote = ScriptedRemote(replies={"RCPT no@far.test": "550 5.1.1 nobody"}, login=("relay-user", SMARTHOST_PASSWORD))
    remote.start()
    dns = DnsServer()
    found = Appliance()
    found.extra = {
        "dns": f'nameservers = ["{dns.spec}"]\n',
        "outbound": f"keep_connection_s = 0\nretry_first = 1\nretry_max_s = 1\n"
        f'route = [{{ domain = "*", host = "127.0.0.1", port = {remote.port}, tls = "none", username = "relay-user",'
        f' password_file = "{found.directory}/relay-password" }}]\n',
    }
    found.write_config()
    (found.directory / "relay-password").write_text(SMARTHOST_PASSWORD + "\n")
    try:
        found.ctl("domain", "add", "example.test")
        found.add_user("alice@example.test", USER_PASSWORD)
        yield found
        assert found.stop() == 0
    finally:
        found.remove()
        remote.stop()
        dns.close()


def shreds(secret: bytes) -> set[bytes]:
    """What would give a key away: each line of its PEM, and each line's octets as hexadecimal digits."""
    lines = [line for line in secret.splitlines() if len(line) >= 32 and not line.startswith(b"-----")]
    return {*lines, *(base64.b64decode(line + b"==").hex().encode() for line in lines)}


def test_keys_and_passwords_are_nowhere_but_in_their_files(server: Appliance) -> None:
    """Signing, rotating, forwarding with SRS, a smarthost's login, a bounce, a damaged key: no trace of a secret."""
    said = [
        server.ctl(*words).stdout
        for words in (
            ("dkim", "generate", "example.test", "--selector", "r1"),
            ("dkim", "generate", "example.test", "--selector", "e1", "--algorithm", "ed25519"),
            ("alias", "add", "out@example.test", "x@far.test"),
        )
    ]
    server.start()
    said += [server.ctl("dkim", "rotate", "example.test").stdout, server.ctl("dkim", "show", "example.test").stdout]
    for to in ("yes@far.test", "no@far.test"):
        server.submit("alice", to, f"to {to}", password=USER_PASSWORD)
    with smtplib.SMTP("127.0.0.1", server.ports["smtp"], timeout=30) as client:
        client.sendmail("x@stranger.test", ["out@example.test"], "From: x@stranger.test\r\nSubject: on\r\n\r\nx\r\n")
    wait_for(lambda: "alice@example.test" in server.log() and "verdict=failed" in server.log(), what="a failure")
    wait_for(lambda: not server.ctl_json("queue", "list"), what="the queue is empty")
    keys = {path: path.read_bytes() for path in (server.directory / "data" / "dkim").rglob("*.pem")}
    assert len(keys) == 4
    damaged = next(path for path in keys if path.name == "r1.pem")
    damaged.write_bytes(keys[damaged].replace(b"PRIVATE", b"PIRATE"))

    def told() -> bool:
        server.submit("alice", "yes@far.test", "signed with what was loaded", password=USER_PASSWORD)
        return "event=dkim_key_unusable" in server.log()

    wait_for(told, what="the damage is told")
    damaged.write_bytes(keys[damaged])
    secrets = {piece for text in keys.values() for piece in shreds(text)}
    assert len(secrets) > 40
    relay, tls_key = server.directory / "relay-password", server.directory / "tls" / "key.pem"
    srs = server.directory / "data" / "srs.secret"
    assert all(path.stat().st_mode & 0o077 == 0 for path in (*keys, srs))
    secrets.update(srs.read_bytes().split())
    for word in (SMARTHOST_PASSWORD, USER_PASSWORD, f"\0relay-user\0{SMARTHOST_PASSWORD}"):
        secrets |= {word.encode(), base64.b64encode(word.encode())}
    assert server.stop() == 0
    files = [p for p in server.directory.rglob("*") if p.is_file() and p not in {*keys, relay, tls_key, srs}]
    assert server.log_path in files
    assert any(path.name.startswith("events") for path in files)
    for path in files:
        found = [piece for piece in secrets if piece in path.read_bytes()]
        assert not found, f"{path}: {found[:3]}"
    assert not any(piece.decode() in text for piece in secrets for text in said)
