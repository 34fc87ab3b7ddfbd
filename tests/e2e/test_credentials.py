"""A server whose secrets all come from systemd: used where they belong, and nowhere to be read."""

from __future__ import annotations

import os
import smtplib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support.appliance import Appliance
from support.sinks import ScriptedRemote
from support.wait import wait_for

from pymx.mail.address import parse_address
from pymx.mta.srs import Secrets, Srs

PASSWORD, SECRET = "rspamd-geheim", "srs-geheim"


@pytest.fixture
def rspamd() -> Iterator[tuple[str, list[str]]]:
    """Its URL, and the passwords that it was told."""
    told: list[str] = []

    class Rspamd(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            told.append(self.headers.get("Password", ""))
            body = b'{"action": "no action", "score": 0, "required_score": 15, "symbols": {}}'
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Rspamd)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", told
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Appliance]:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    server = Appliance()
    yield server
    server.remove()


def test_secrets_of_systemd_are_used_and_not_told(
    server: Appliance,
    rspamd: tuple[str, list[str]],
    scripted_remote: Callable[..., ScriptedRemote],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Accounts from the database of the URL, rspamd's password, SRS addresses that only the secret makes."""
    url, told = rspamd
    remote = scripted_remote()
    (tmp_path / "database").write_text(server.database_url + "\n")
    (tmp_path / "rspamd").write_text(PASSWORD + "\n")
    (tmp_path / "srs").write_text(SECRET + "\n")
    server.extra |= {
        "rspamd": f'url = "{url}"\ncontroller_url = "{url}"\npassword_credential = "rspamd"\ntimeout_s = 2\n',
        "forwarding": 'srs_secret_credential = "srs"\n',
        "outbound": f'route = [{{ domain = "*", host = "127.0.0.1", port = {remote.port}, tls = "none" }}]\n'
        "allow_private = true\n",
    }
    server.write_config()
    text = server.config.read_text()
    server.config.write_text(text.replace(f'url = "{server.database_url}"', 'url_credential = "database"'))
    server.populate()
    server.ctl("alias", "add", server.address("away"), "carol@elsewhere.test")
    server.start()
    with smtplib.SMTP("127.0.0.1", server.ports["smtp"], timeout=30) as client:
        text = "From: dave@other.test\r\nSubject: on\r\n\r\non\r\n"
        client.sendmail("dave@other.test", [server.address("away"), server.address("bob")], text)
    server.wait_for_subject("bob", "on")
    wait_for(lambda: remote.messages, what="the forwarded message")
    assert set(told) == {PASSWORD}
    sender = parse_address(remote.messages[0].mail_from)
    day_s = os.stat(server.config).st_mtime
    assert str(Srs(Secrets(tmp_path / "srs")).reverse(sender, now=day_s)) == "dave@other.test"
    left_out = server.ctl_json("backup", "create", str(tmp_path / "backups"))["left_out"]
    assert "the credential srs: it is systemd's (LoadCredential=)" in left_out
    assert server.stop() == 0
    (tmp_path / "rspamd").unlink()
    with pytest.raises(AssertionError, match="LoadCredential=rspamd:"):
        server.start()
    for secret in (PASSWORD, SECRET):
        assert secret not in server.log()
    assert not (server.directory / "data/srs.secret").exists()
