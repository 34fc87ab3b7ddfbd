"""Listening sockets: bound, adopted, capped, and out of file descriptors."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import ssl
import subprocess
import sys
import time

import pytest
import uvloop
from support.wait import wait_until

from pymx.config.model import Tls
from pymx.net.listener import BindError, Caps, Server, adopted_sockets, bind
from pymx.net.tls import Certificates

SETTING = "[smtp] listen"


def test_bind_ipv4_and_ipv6_on_one_port():
    """0.0.0.0:25 and [::]:25 stand side by side: an IPv6 socket takes IPv6 only."""
    with bind("127.0.0.1:0", SETTING) as four:
        port = four.getsockname()[1]
        with bind(f"[::1]:{port}", SETTING) as six:
            assert six.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


def test_taken_port_names_port_and_setting():
    with bind("127.0.0.1:0", SETTING) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BindError) as caught:
            bind(f"127.0.0.1:{port}", SETTING)
    text = str(caught.value)
    assert f"127.0.0.1:{port}" in text
    assert SETTING in text
    assert f"sport = :{port}" in text


def test_address_of_another_machine_is_explained():
    with pytest.raises(BindError, match=r"192\.0\.2\.1:2525 .*no such address"):
        bind("192.0.2.1:2525", SETTING)


@pytest.mark.parametrize(
    "spec", ["", "25", "localhost:25", "::1:25", "[127.0.0.1]:25", "127.0.0.1:x", "127.0.0.1:65536"]
)
def test_malformed_address_names_the_setting(spec):
    with pytest.raises(BindError, match=r"^\[smtp\] listen: .*ADDRESS:PORT"):
        bind(spec, SETTING)


def test_unix_socket_left_by_a_dead_server_is_replaced_and_a_live_one_is_not(tmp_path):
    path = tmp_path / "lmtp"
    bind(f"unix:{path}", SETTING).close()
    assert path.exists()
    with bind(f"unix:{path}", SETTING), pytest.raises(BindError, match="another program"):
        bind(f"unix:{path}", SETTING)


def test_file_in_the_way_of_a_unix_socket_stays(tmp_path):
    path = tmp_path / "precious"
    path.write_text("mail")
    with pytest.raises(BindError):
        bind(f"unix:{path}", SETTING)
    assert path.read_text() == "mail"


def test_missing_directory_of_a_unix_socket_is_named(tmp_path):
    with pytest.raises(BindError, match="nowhere does not exist"):
        bind(f"unix:{tmp_path}/nowhere/lmtp", SETTING)


def test_sockets_of_another_process_are_not_adopted():
    """sd_listen_fds(3): LISTEN_PID must be ours."""
    assert adopted_sockets({}) == {}
    assert adopted_sockets({"LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDS": "1"}) == {}


def test_sockets_are_adopted_by_name():
    """A process that systemd would have started: descriptors from 3 on, with names."""
    code = (
        "import os\n"
        "from pymx.net.listener import adopted_sockets\n"
        "env = dict(os.environ, LISTEN_PID=str(os.getpid()))\n"
        "for name, socks in sorted(adopted_sockets(env).items()):\n"
        "    print(name, *[s.getsockname()[1] for s in socks])\n"
    )
    socks = [bind("127.0.0.1:0", SETTING) for _ in range(3)]
    ports = [s.getsockname()[1] for s in socks]

    def at_three() -> None:
        copies = [os.dup(s.fileno()) for s in socks]  # above 5, so that none is overwritten below
        for i, copy in enumerate(copies):
            os.dup2(copy, 3 + i, inheritable=True)

    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LISTEN_FDS": "3", "LISTEN_FDNAMES": "smtp:imaps:smtp"},
        preexec_fn=at_three,
        pass_fds=(3, 4, 5),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    for s in socks:
        s.close()
    assert run.stdout.splitlines() == [f"imaps {ports[1]}", f"smtp {ports[0]} {ports[2]}"]


def test_caps_count_in_all_and_per_address():
    caps = Caps(3, 2, [])
    assert caps.enter("192.0.2.1")
    assert caps.enter("192.0.2.1")
    assert not caps.enter("192.0.2.1")
    assert caps.enter("192.0.2.2")
    assert not caps.enter("192.0.2.3")
    caps.leave("192.0.2.1")
    assert caps.enter("192.0.2.3")
    assert caps.count == 3


def test_ipv6_is_counted_by_64():
    """One subscriber has a /64 at least."""
    caps = Caps(10, 1, [])
    assert caps.enter("2001:db8:0:1::1")
    assert not caps.enter("2001:db8:0:1:ffff::2")
    assert caps.enter("2001:db8:0:2::1")
    assert caps.enter("::ffff:192.0.2.1")
    assert not caps.enter("192.0.2.1")
    assert caps.enter("fe80::1%eth0")


def test_trusted_and_unix_peers_are_not_counted_per_address():
    caps = Caps(10, 1, ["127.0.0.0/8", "2001:db8::/32"])
    for ip in ("127.0.0.1", "127.0.0.1", "2001:db8::1", "2001:db8::1", "", ""):
        assert caps.enter(ip)
    for ip in ("127.0.0.1", "127.0.0.1", "2001:db8::1", "2001:db8::1", "", ""):
        caps.leave(ip)
    assert caps.count == 0


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        transport.write(b"hello")

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


async def scenario_out_of_descriptors(certificate: str, private_key: str) -> None:
    """Eat all descriptors, connect, watch the CPU, give them back, connect again."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: None)  # asyncio reports EMFILE there
    sock = bind("127.0.0.1:0", SETTING)
    context = trusting = None
    if certificate:
        context = Certificates(Tls(certificate=certificate, private_key=private_key)).context()
        trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusting.check_hostname = False
        trusting.verify_mode = ssl.CERT_NONE
    server = Server("test", sock, Echo, ssl=context)
    await server.start()
    port = sock.getsockname()[1]
    client = socket.socket()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    hoard: list[int] = []
    try:
        while True:
            try:
                hoard.append(os.dup(0))
            except OSError:
                break
        client.connect(("127.0.0.1", port))  # by the kernel, into the backlog
        cpu = time.process_time()
        await asyncio.sleep(0.5)
        assert time.process_time() - cpu < 0.25
    finally:
        for fd in hoard:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
        assert await reader.readexactly(5) == b"hello"
    client.close()
    writer.close()
    server.close()


@pytest.mark.parametrize("in_tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_no_descriptors_left_does_not_spin(loop, in_tls, tls_files):
    """EMFILE on accept; when there are descriptors again, connections are accepted again."""
    code = (
        "import asyncio, sys, uvloop\n"
        "import test_listener_bind as t\n"
        f"factory = uvloop.new_event_loop if {loop!r} == 'uvloop' else asyncio.new_event_loop\n"
        "with asyncio.Runner(loop_factory=factory) as runner:\n"
        "    runner.run(t.scenario_out_of_descriptors(*sys.argv[1:]))\n"
    )
    here = os.path.dirname(__file__)
    path = os.pathsep.join([here, os.path.dirname(here), os.getcwd()])
    run = subprocess.run(
        [sys.executable, "-c", code, *((tls_files.certificate, tls_files.private_key) if in_tls else ("", ""))],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_server_serves_and_stops_accepting(factory):
    """Connections that are there go on after close()."""

    async def scenario() -> None:
        sock = bind("127.0.0.1:0", SETTING)
        server = Server("test", sock, Echo)
        await server.start()
        port = sock.getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.readexactly(5) == b"hello"
        server.close()

        async def refused() -> bool:
            try:
                _, other = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                return True
            other.close()
            return False

        await wait_until(refused)
        writer.write(b"still")
        assert await reader.readexactly(5) == b"still"
        writer.close()
        await writer.wait_closed()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(scenario())
