"""A real certificate authority: pebble, on loopback. It asks our name server, and looks for proofs at `http_port`."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import urllib.request
from pathlib import Path

from support.ports import answers, free_port
from support.programs import require, tail
from support.tls import TlsFiles
from support.wait import wait_for


class Pebble:
    """`directory_url` and `ca_file` are for `[acme]`; `roots()` what its certificates lead to."""

    def __init__(self, directory: Path, tls: TlsFiles, *, dns: str, http_port: int, nonce_reject_percent: int = 20):
        program = require("pebble", "pebble")
        directory.mkdir(parents=True, exist_ok=True)
        self.port, self.management_port = free_port(), free_port()
        self._log_path = directory / "pebble.log"
        self._tls = tls
        config = {
            "listenAddress": f"127.0.0.1:{self.port}",
            "managementListenAddress": f"127.0.0.1:{self.management_port}",
            "certificate": str(tls.certificate),
            "privateKey": str(tls.private_key),
            "httpPort": http_port,
            "tlsPort": free_port(),
            "ocspResponderURL": "",
            "externalAccountBindingRequired": False,
        }
        (directory / "pebble.json").write_text(json.dumps({"pebble": config}))
        self._command = [program, "-config", str(directory / "pebble.json"), "-dnsserver", dns]
        self._environment = {
            **os.environ,
            "PEBBLE_VA_NOSLEEP": "1",
            "PEBBLE_WFE_NONCEREJECT": str(nonce_reject_percent),
            "PEBBLE_AUTHZREUSE": "0",
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def directory_url(self) -> str:
        return f"https://localhost:{self.port}/dir"

    @property
    def ca_file(self) -> Path:
        return self._tls.ca

    def start(self) -> None:
        """It has forgotten all accounts and orders then, and has another root."""
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)
        wait_for(lambda: answers(self.port) and answers(self.management_port), what=f"pebble {tail(self._log_path)}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def roots(self) -> str:
        """PEM."""
        url = f"https://localhost:{self.management_port}/roots/0"
        with urllib.request.urlopen(url, context=ssl.create_default_context(cafile=str(self.ca_file))) as answer:
            return str(answer.read().decode())

    def log(self) -> str:
        return tail(self._log_path, 100_000)
