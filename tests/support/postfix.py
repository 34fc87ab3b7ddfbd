"""Debian's Postfix as a remote server, with a configuration and a queue of its own on a free port.

What it does with a recipient is decided by its local part through a policy service of ours, so one server serves many
tests: see `PolicyService`. What it accepts it hands on to `next_hop`. Needs root, as Postfix does.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

from support.ports import answers, free_port
from support.programs import require, tail
from support.tls import TlsFiles
from support.wait import wait_for

_MAIN = """\
compatibility_level = 3.6
queue_directory = {top}/spool
data_directory = {top}/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
maillog_file = {top}/log/mail.log
maillog_file_prefixes = {top}/log
myhostname = mx.far.test
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = [::1]/128
alias_maps =
local_recipient_maps =
relay_domains = far.test
transport_maps = inline:{{ {{far.test = smtp:[127.0.0.1]:{next_hop}}} }}
message_size_limit = 20000
smtpd_relay_restrictions = reject_unauth_destination
smtpd_recipient_restrictions = check_policy_service {{ inet:127.0.0.1:{policy}, timeout=30s, default_action=450 }}
smtpd_tls_cert_file = {certificate}
smtpd_tls_key_file = {key}
smtpd_tls_security_level = may
smtpd_client_event_limit_exceptions =
smtpd_hard_error_limit = 100
smtpd_error_sleep_time = 0
smtpd_data_restrictions = reject_unauth_pipelining
"""
_SERVICES = """\
{port}     inet  n - n - - smtpd
127.0.0.1:{limited} inet n - n - - smtpd
  -o smtpd_client_message_rate_limit=1
127.0.0.1:{plain} inet n - n - - smtpd
  -o smtpd_discard_ehlo_keywords=starttls,pipelining,8bitmime,dsn,smtputf8,size,enhancedstatuscodes
cleanup    unix  n - n - 0 cleanup
qmgr       unix  n - n 300 1 qmgr
tlsmgr     unix  - - n 1000? 1 tlsmgr
rewrite    unix  - - n - - trivial-rewrite
bounce     unix  - - n - 0 bounce
defer      unix  - - n - 0 bounce
trace      unix  - - n - 0 bounce
proxymap   unix  - - n - - proxymap
smtp       unix  - - n - - smtp
error      unix  - - n - - error
retry      unix  - - n - - error
anvil      unix  - - n - 1 anvil
scache     unix  - - n - 1 scache
postlog    unix-dgram n - n - 1 postlogd
"""


class PolicyService:
    """Answers Postfix's questions by the recipient's local part.

    no, later, busy: 5xx, 4xx, 421 (Postfix hangs up after it); grey: 4xx the first time; slow: yes after a second;
    stall: never; everything else: yes.
    """

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._stopped = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept, name="postfix-policy")]
        self._threads[0].start()

    def close(self) -> None:
        self._stopped.set()
        self._threads[0].join()
        self._listener.close()
        for thread in self._threads[1:]:
            thread.join()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            connection.settimeout(0.1)
            thread = threading.Thread(target=self._serve, args=(connection,), name="postfix-policy-connection")
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        data = b""
        with connection:
            while not self._stopped.is_set():
                try:
                    piece = connection.recv(4096)
                except TimeoutError:
                    continue
                except OSError:
                    return
                if not piece:
                    return
                data += piece
                while b"\n\n" in data:
                    question, _, data = data.partition(b"\n\n")
                    try:
                        connection.sendall(f"action={self._judge(question.decode())}\n\n".encode())
                    except OSError:
                        return

    def _judge(self, question: str) -> str:
        facts = dict(line.partition("=")[::2] for line in question.splitlines())
        recipient = facts.get("recipient", "")
        name = recipient.partition("@")[0]
        if name == "slow":
            self._stopped.wait(1)
        elif name == "stall":
            self._stopped.wait(60)
        elif name == "grey" and recipient not in self._seen:
            self._seen.add(recipient)
            return "450 4.7.1 Greylisted, try again in 300 seconds"
        return {
            "no": "550 5.1.1 no such user", "later": "451 4.3.0 try again later", "busy": "421 4.3.2 closing",
        }.get(name, "DUNNO")  # fmt: skip


class Postfix:
    """`port` offers everything, `limited` takes one message a minute from a client, `plain` offers nothing at EHLO."""

    def __init__(self, tls: TlsFiles, next_hop: int) -> None:
        self._program = require("postfix", "postfix")
        if os.geteuid() != 0:
            pytest.skip("Postfix starts as root only")
        # not under pytest's directory, which only its owner may enter
        self.top = Path(tempfile.mkdtemp(prefix="pymx-postfix-"))
        self.top.chmod(0o755)
        self._tls = tls
        self._next_hop = next_hop
        self.port, self.limited, self.plain = free_port(), free_port(), free_port()
        self.policy = PolicyService()

    def __enter__(self) -> Postfix:
        try:
            self._start()
        except BaseException:
            self._remove()
            raise
        return self

    def _start(self) -> None:
        for name in ("etc", "spool", "data", "log", "tls"):
            (self.top / name).mkdir(mode=0o755)
        shutil.chown(self.top / "data", "postfix")
        certificate = shutil.copy(self._tls.certificate, self.top / "tls" / "cert.pem")
        key = shutil.copy(self._tls.private_key, self.top / "tls" / "key.pem")
        (self.top / "etc" / "main.cf").write_text(
            _MAIN.format(
                top=self.top, next_hop=self._next_hop, policy=self.policy.port, certificate=certificate, key=key
            )
        )
        (self.top / "etc" / "master.cf").write_text(
            _SERVICES.format(port=f"127.0.0.1:{self.port}", limited=self.limited, plain=self.plain)
        )
        started = subprocess.run(
            [self._program, "-c", str(self.top / "etc"), "start"], capture_output=True, text=True, timeout=60
        )
        if started.returncode:
            raise AssertionError(
                f"postfix start: {started.stdout}{started.stderr}{tail(self.top / 'log' / 'mail.log')}"
            )
        for port in (self.port, self.limited, self.plain):
            wait_for(lambda port=port: answers(port), what=f"postfix listens: {tail(self.top / 'log' / 'mail.log')}")

    def __exit__(self, *_: object) -> None:
        subprocess.run([self._program, "-c", str(self.top / "etc"), "stop"], capture_output=True, timeout=60)
        self._remove()

    def _remove(self) -> None:
        self.policy.close()
        shutil.rmtree(self.top, ignore_errors=True)
