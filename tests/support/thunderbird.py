"""A real Thunderbird without a screen, told by Marionette to run a piece of its own code.

Its HTTP goes to `proxy_port` on loopback, whatever the host: a server that takes absolute URLs (RFC 9112 s. 3.2.2)
answers for every name, without DNS and without port 80.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.ports import answers, free_port
from support.programs import require, tail
from support.wait import wait_for

_PREFERENCES = {
    "network.proxy.type": 1,
    "network.proxy.http": "127.0.0.1",
    "network.proxy.no_proxies_on": "",
    "network.proxy.allow_hijacking_localhost": True,
    "dom.security.https_only_mode": False,
    "dom.security.https_first": False,
    "mailnews.auto_config.fetchFromISP.sslOnly": False,
    "app.update.enabled": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "toolkit.telemetry.reportingpolicy.firstRun": False,
    "mail.provider.suppress_dialog_on_startup": True,
    "mail.spotlight.firstRunDone": True,
    "mailnews.start_page.enabled": False,
}
_OPTIONS = ("--headless", "--marionette", "-remote-allow-system-access", "--no-remote")
_PACKAGE = Path("/usr/lib/thunderbird/omni.ja")  # Debian's; Ubuntu's package is a way to a snap, which sees no /tmp


class Thunderbird:
    """`run` takes the body of an async function in the program's own scope, and gives what it returns."""

    def __init__(self, directory: Path, proxy_port: int) -> None:
        self._program = require("thunderbird", "thunderbird")
        if not _PACKAGE.exists():
            pytest.skip("this Thunderbird is not Debian's package")
        self._profile = directory / "profile"
        self._profile.mkdir(parents=True)
        self._port = free_port()
        preferences = _PREFERENCES | {"network.proxy.http_port": proxy_port, "marionette.port": self._port}
        lines = (f'user_pref("{name}", {json.dumps(value)});\n' for name, value in preferences.items())
        (self._profile / "user.js").write_text("".join(lines))
        self._log_path = directory / "thunderbird.log"
        self._home = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._number = 0

    def start(self) -> None:
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, *_OPTIONS, "--profile", str(self._profile)],
                env={**os.environ, "HOME": str(self._home), "MOZ_HEADLESS": "1"},
                stdout=log,
                stderr=log,
            )
        wait_for(lambda: answers(self._port), timeout_s=60, what=f"Thunderbird {tail(self._log_path)}")
        self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=60)
        self._read()  # it greets
        self._call("WebDriver:NewSession", {})
        self._call("Marionette:SetContext", {"value": "chrome"})

    def stop(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def run(self, body: str) -> Any:
        script = (
            "const done = arguments[arguments.length - 1];"
            f"(async () => {{ {body} }})().then(v => done({{value: v}}), e => done({{error: String(e)}}));"
        )
        answer = self._call("WebDriver:ExecuteAsyncScript", {"script": script, "args": [], "scriptTimeout": 60_000})
        found = answer["value"]
        assert "error" not in found, found["error"]
        return found.get("value")

    def _call(self, command: str, parameters: dict[str, object]) -> Any:
        assert self._socket is not None
        self._number += 1
        message = json.dumps([0, self._number, command, parameters]).encode()
        self._socket.sendall(f"{len(message)}:".encode() + message)
        _, _, error, result = self._read()
        assert error is None, error
        return result

    def _read(self) -> Any:
        """A message: its length in decimal, a colon, JSON."""
        assert self._socket is not None
        length = b""
        while not length.endswith(b":"):
            length += self._receive(1)
        return json.loads(self._receive(int(length[:-1])))

    def _receive(self, octets: int) -> bytes:
        assert self._socket is not None
        found = b""
        while len(found) < octets:
            piece = self._socket.recv(octets - len(found))
            if not piece:
                raise AssertionError(f"Thunderbird is gone: {tail(self._log_path)}")
            found += piece
        return found
