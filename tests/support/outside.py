"""What surrounds a machine of its own: a name server, a mail server that greets, a web server that tells the time.

    python -m support.outside '{"records": {…}, "dns": "127.0.0.1", "mail": "198.51.100.25", "web": "198.51.100.80"}'

Each has the port that it has in the world (53, 25, 80), so this runs in a network namespace of the test's; what isn't
named isn't started. Says "up" when it serves, and ends with its standard input.
"""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.dated import dated
from support.dns_server import DnsServer
from support.machine import Machine
from support.programs import require


def _greet(address: str) -> None:
    with socket.create_server((address, 25)) as listener:
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"220 mx.big.example ESMTP\r\n")


def _serve(wanted: dict[str, Any]) -> None:
    if "dns" in wanted:
        server = DnsServer(address=wanted["dns"], port=53)
        server.load(wanted["records"])
        server.secure(*wanted.get("secure", ()))
    if "mail" in wanted:
        threading.Thread(target=_greet, args=(wanted["mail"],), daemon=True).start()
    if "web" in wanted:
        web = http.server.ThreadingHTTPServer((wanted["web"], 80), dated(wanted.get("offset_s", 0.0)))
        threading.Thread(target=web.serve_forever, daemon=True).start()


def start(wanted: dict[str, Any], enter: list[str]) -> subprocess.Popen[str]:
    """One that serves. `enter` is a command that runs it where it belongs."""
    process = subprocess.Popen(
        [*enter, sys.executable, "-m", "support.outside", json.dumps(wanted)],
        cwd=Path(__file__).parent.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n", wanted
    return process


@contextmanager
def connected(
    machine: Machine, own: Sequence[str], router: Sequence[str], others: Sequence[str] = ()
) -> Iterator[list[str]]:
    """A cable to a network of its own, with the addresses of the machine, of the router at the other end, and of those
    behind it. A command put behind what is yielded runs outside.
    """
    ip, unshare = require("ip", "iproute2"), require("unshare", "util-linux")
    holder = start({}, [unshare, "--net", "--"])
    try:
        there = ["nsenter", f"--net=/proc/{holder.pid}/ns/net"]
        here = ["nsenter", f"--net=/proc/{machine.pid}/ns/net"]
        cable = [ip, "link", "add", "out", "type", "veth", "peer", "name", "in", "netns", str(holder.pid)]
        done = subprocess.run([*here, *cable], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no cable between network namespaces: {done.stderr.strip()}")
        for where, text in [
            # without the search for duplicates, which takes seconds
            *((here, f"addr add {a} dev out{' nodad' if ':' in a else ''}") for a in own),
            *((there, f"addr add {a} dev in{' nodad' if ':' in a else ''}") for a in router),
            *((there, f"addr add {a} dev lo") for a in others),
            (here, "link set out up"), (there, "link set in up"), (there, "link set lo up"),
            *((here, f"route add default via {a.partition('/')[0]}") for a in router),
        ]:  # fmt: skip
            subprocess.run([*where, ip, *(["-6"] if ":" in text else []), *text.split()], check=True)
        yield there
    finally:
        end(holder)


def end(process: subprocess.Popen[str]) -> None:
    process.communicate("")


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
    print("up", flush=True)
    sys.stdin.read()
    os._exit(0)
