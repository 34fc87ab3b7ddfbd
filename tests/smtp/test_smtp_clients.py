"""Clients that others wrote: swaks, Python's smtplib, curl, Postfix's smtp-source."""

from __future__ import annotations

import smtplib
import subprocess

import pytest
from support.programs import require
from support.wait import wait_for

from pymx.config.model import Tls
from pymx.mail.envelope import Listener
from pymx.net.tls import Certificates


@pytest.fixture
def context(tls_files):
    return Certificates(Tls(certificate=str(tls_files.certificate), private_key=str(tls_files.private_key))).context()


def swaks(port: int, *options: str) -> str:
    program = require("swaks", "swaks")
    run = subprocess.run(
        [
            program,
            "--server",
            "127.0.0.1",
            "--port",
            str(port),
            "--from",
            "alice@example.test",
            "--to",
            "bob@example.test",
            "--header",
            "Subject: by swaks",
            "--timeout",
            "20",
            *options,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


LOGIN = ("--auth-user", "alice@example.test", "--auth-password", "geheim")


def test_swaks_on_port_25_with_starttls(smtp_service, context):
    service = smtp_service(tls=context)
    swaks(service.port, "--tls")
    assert b"Subject: by swaks" in service.policy.delivered[0].data
    assert wait_for(lambda: service.policy.closed_sessions)[0][0].tls


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
@pytest.mark.parametrize("implicit", [False, True], ids=["587", "465"])
def test_swaks_submits(smtp_service, context, mechanism, implicit):
    service = smtp_service(listener=Listener.SUBMISSION, tls=context, implicit_tls=implicit, auth=True)
    swaks(service.port, "--tls-on-connect" if implicit else "--tls", "--auth", mechanism, *LOGIN)
    assert len(service.policy.delivered) == 1
    assert service.policy.logins == [("alice@example.test", "geheim")]


def test_swaks_pipelines(smtp_service):
    """RFC 2920 by a client that does it."""
    service = smtp_service()
    swaks(service.port, "--pipeline")
    assert len(service.policy.delivered) == 1


def test_swaks_speaks_lmtp(smtp_service):
    service = smtp_service(listener=Listener.LMTP)
    swaks(service.port, "--protocol", "LMTP")
    assert len(service.policy.delivered) == 1


def test_smtplib_with_starttls_and_login(smtp_service, context, tls_files, loop_name):
    service = smtp_service(loop=loop_name, listener=Listener.SUBMISSION, tls=context, auth=True)
    with smtplib.SMTP("127.0.0.1", service.port, timeout=20) as client:
        client.starttls(context=tls_files.client_context())
        client.login("alice@example.test", "geheim")
        client.sendmail(
            "alice@example.test",
            ["bob@example.test", "carol@example.test"],
            "Subject: x\n\n.dot\n..dots\n",
            mail_options=["BODY=8BITMIME"],
            rcpt_options=["NOTIFY=NEVER"],
        )
    (message,) = service.policy.delivered
    assert message.data == b"Subject: x\r\n\r\n.dot\r\n..dots\r\n"
    assert [r.notify for r in message.recipients] == [{"NEVER"}, {"NEVER"}]


def test_large_message_in_tls(smtp_service, context, tls_files, loop_name):
    """5 MB through the TLS buffers of both loops, octet for octet."""
    service = smtp_service(
        loop=loop_name,
        listener=Listener.SUBMISSION,
        tls=context,
        implicit_tls=True,
        auth=True,
        max_message_octets=10_000_000,
    )
    data = b"Subject: x\r\n\r\n" + b"".join(b"%070d\r\n" % i for i in range(70_000))
    with smtplib.SMTP_SSL("127.0.0.1", service.port, timeout=20, context=tls_files.client_context()) as client:
        client.login("alice@example.test", "geheim")
        client.sendmail("alice@example.test", ["bob@example.test"], data)
    assert service.policy.delivered[0].data == data


def test_curl_submits(smtp_service, context, tls_files, tmp_path):
    service = smtp_service(listener=Listener.SUBMISSION, tls=context, auth=True)
    message = tmp_path / "message"
    message.write_bytes(b"Subject: by curl\r\n\r\nx\r\n")
    run = subprocess.run(
        [
            require("curl", "curl"),
            "-sS",
            "--ssl-reqd",
            "--cacert",
            str(tls_files.ca),
            f"smtp://127.0.0.1:{service.port}/client.example",
            "--mail-from",
            "alice@example.test",
            "--mail-rcpt",
            "bob@example.test",
            "-u",
            "alice@example.test:geheim",
            "-T",
            str(message),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert service.policy.delivered[0].data == b"Subject: by curl\r\n\r\nx\r\n"


@pytest.mark.parametrize("options", [("-d",), ()], ids=["kept", "one each"])
def test_smtp_source_in_parallel(smtp_service, options, loop_name):
    """Postfix's load generator: 200 messages over 10 sessions."""
    service = smtp_service(loop=loop_name)
    program = require("smtp-source", "postfix")
    subprocess.run(
        [
            program,
            *options,
            "-s",
            "10",
            "-m",
            "200",
            "-l",
            "4096",
            "-f",
            "a@example.com",
            "-t",
            "bob@example.test",
            f"127.0.0.1:{service.port}",
        ],
        check=True,
        timeout=60,
    )
    assert len(service.policy.delivered) == 200
    bodies = {m.data.partition(b"\r\n\r\n")[2] for m in service.policy.delivered}
    assert len(bodies) == 1
    assert len(bodies.pop()) >= 4096 - 300  # its -l counts more than the body
