"""DATA: what ends a message, what is refused, where it is kept (RFC 5321 s. 4.1.1.4, 4.5.2)."""

from __future__ import annotations

import itertools
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from smtp_service import Service

from pymx.config.model import Smtp
from pymx.proto.smtp import reply
from pymx.proto.smtp.reply import SmtpError

SMUGGLED = b"MAIL FROM:<evil@example.com>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\nsmuggled\r\n"
FALSE_ENDS = [
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r",
    b"\r.\r\n",
    b"\r\n.\r",
    b"\r\n.\0\r\n",
    b"\n.\r",
    b"\r.\n",
    b"\r\r\n.\n",
]
HONEST = b"\r\n.\0\r\n"  # a NUL makes it another line; nothing about it is a bare newline


@pytest.mark.parametrize("end", FALSE_ENDS)
@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "bytewise"])
def test_nothing_but_crlf_dot_crlf_ends_the_data(smtp_service, end, bytewise):
    """SMTP smuggling: no second message comes out of the first; the session is in step afterwards."""
    service = smtp_service()
    with service.client() as client:
        client.transaction()
        stream = b"Subject: x\r\n\r\nbody" + end + SMUGGLED + b".\r\n"
        for piece in [stream[i : i + 1] for i in range(len(stream))] if bytewise else [stream]:
            client.send(piece)
        expected = "250 2.0.0 OK queued" if end == HONEST else "554 5.5.2 Bare CR or LF is not allowed"
        assert client.reply() == expected
        assert client.ask("NOOP") == "250 2.0.0 OK"
        assert client.ask("RCPT TO:<bob@example.test>") == "503 5.5.1 RCPT before MAIL"
    assert len(service.policy.delivered) == (end == HONEST)


@pytest.mark.parametrize("end", FALSE_ENDS)
def test_submission_repairs_bare_newlines_but_ends_only_at_the_real_end(smtp_service, end):
    """A user's broken client is helped, with no second message either."""
    service = smtp_service(repair_newlines=True)
    with service.client() as client:
        client.transaction()
        client.send(b"Subject: x\r\n\r\nbody" + end + SMUGGLED + b".\r\n")
        assert client.reply() == "250 2.0.0 OK queued"
    (message,) = service.policy.delivered
    assert message.data.endswith(b"smuggled\r\n")
    assert message.data.count(b"\r") == message.data.count(b"\n") == message.data.count(b"\r\n")


def test_repaired_text(smtp_service):
    """Each bare CR or LF becomes CRLF."""
    service = smtp_service(repair_newlines=True)
    with service.client() as client:
        client.transaction()
        client.send(b"Subject: x\n\na\rb\r\n..c\r\n.\r\n")
        assert client.reply() == "250 2.0.0 OK queued"
    assert service.policy.delivered[0].data == b"Subject: x\r\n\r\na\r\nb\r\n.c\r\n"


def test_small_bodies_stay_in_memory_and_large_go_to_a_file(smtp_service):
    """[smtp] memory_octets."""
    service = smtp_service(smtp=Smtp(memory_octets=1000), max_message_octets=10_000_000)
    large = b"Subject: x\r\n\r\n" + b"0123456789abcdef\r\n" * 200_000
    with service.client() as client:
        client.transaction()
        assert client.ask(b"Subject: x\r\n\r\nx\r\n.") == "250 2.0.0 OK queued"
        client.transaction()
        client.send(large + b".\r\n")
        assert client.reply() == "250 2.0.0 OK queued"
    small, big = service.policy.delivered
    assert small.in_memory
    assert not big.in_memory
    assert big.data == large


def test_too_big_message_is_refused_after_its_end(smtp_service):
    """552 5.3.4; the data is read and dropped, and the session goes on."""
    service = smtp_service(max_message_octets=10_000)
    with service.client() as client:
        client.transaction()
        client.send(b"Subject: x\r\n\r\n" + b"x" * 11_000 + b"\r\n.\r\n")
        assert client.reply() == "552 5.3.4 Message too big"
        client.transaction()
        assert client.ask(b"\r\n.") == "250 2.0.0 OK queued"


def test_far_too_big_message_ends_the_session(smtp_service):
    """Data is dropped only up to a bound."""
    service = smtp_service(max_message_octets=10_000)
    with service.client() as client:
        client.transaction()
        client.send(b"Subject: x\r\n\r\n" + b"x" * 30_000)
        assert client.reply() == "552 5.3.4 Message too big"
        assert client.line() == ""


def test_size_is_believed_at_mail(smtp_service):
    """RFC 1870 s. 6.1: no need to send what will be refused."""
    service = smtp_service(max_message_octets=10_000)
    with service.client() as client:
        client.ask("EHLO c")
        assert client.ask("MAIL FROM:<a@example.com> SIZE=10001") == "552 5.3.4 Message too big"
        assert client.ask("MAIL FROM:<a@example.com> SIZE=10000") == "250 2.1.0 Sender OK"


def test_overlong_header_is_refused(smtp_service):
    """[smtp] max_header_octets."""
    service = smtp_service(smtp=Smtp(max_header_octets=2000))
    with service.client() as client:
        client.transaction()
        client.send(b"X: yyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n" * 200 + b"\r\n\r\nbody\r\n.\r\n")
        assert client.reply() == "552 5.3.4 Message header too big"
        assert client.ask("NOOP") == "250 2.0.0 OK"


@pytest.fixture
def full_disk(tmp_path):
    """A directory on a file system of 64 KB."""
    directory = tmp_path / "small"
    directory.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", directory], check=False)
    if mount.returncode:
        pytest.skip("MISSING PRIVILEGE: this user may not mount a file system")
    yield directory
    subprocess.run(["umount", directory], check=True)


def test_full_disk_is_452(full_disk):
    """452 4.3.1 after the end of the data; the session goes on, and small messages still go through."""
    service = Service(full_disk, smtp=Smtp(memory_octets=1000))
    service.start()
    with service.client() as client:
        client.transaction()
        client.send(b"\r\n" + b"x" * 500_000 + b"\r\n.\r\n")
        assert client.reply() == "452 4.3.1 Insufficient system storage"
        client.transaction()
        assert client.ask(b"\r\n.") == "250 2.0.0 OK queued"
    assert service.events("spool_failed")
    service.stop()


def test_missing_spool_directory_is_451(smtp_service, tmp_path):
    """Unsure whether temporary? Temporary."""
    service = smtp_service(smtp=Smtp(memory_octets=10))
    service.engine.spool_dir = tmp_path / "gone"
    with service.client() as client:
        client.transaction()
        client.send(b"\r\n" + b"x" * 100 + b"\r\n.\r\n")
        assert client.reply() == "451 4.3.0 Temporary failure, try again later"


def test_policy_refuses_the_message(smtp_service):
    """The transaction is over, the session is not."""
    service = smtp_service()
    service.policy.refuse_data = SmtpError(reply.REJECTED_BY_POLICY, "dmarc p=reject")
    with service.client() as client:
        client.transaction()
        assert client.ask(b"\r\n.") == "550 5.7.1 Rejected by policy"
        assert client.ask("RCPT TO:<bob@example.test>").startswith("503 ")
    assert service.events("message_refused")[0]["reason"] == "dmarc p=reject"


def test_idle_session_holds_no_message(smtp_service):
    """Nothing of a delivered message stays with the session."""
    service = smtp_service(max_message_octets=10_000_000)
    with service.client() as client:
        client.transaction()
        client.send(b"\r\n" + b"x" * 3_000_000 + b"\r\n.\r\n")
        assert client.reply() == "250 2.0.0 OK queued"
        (session,) = service.live
        assert len(session._input) == 0
        assert session.transaction is None


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=6))
def test_any_octets_leave_the_session_in_step(data, cuts):
    """Whatever comes as data, one reply comes back, and then the next command is understood."""
    service = shared_service()
    with service.client() as client:
        client.transaction()
        stream = data.replace(b"\r\n.\r\n", b"") + b"\r\n.\r\n"
        if stream.startswith(b".\r\n"):
            stream = b"x" + stream
        edges = [0, *sorted(c for c in cuts if c < len(stream)), len(stream)]
        for a, b in itertools.pairwise(edges):
            client.send(stream[a:b])
        assert client.reply()[:3] in ("250", "554", "552")
        assert client.ask("NOOP") == "250 2.0.0 OK"


_shared: list[Service] = []


def shared_service() -> Service:
    return _shared[0]


@pytest.fixture(autouse=True, scope="module")
def _one_service(tmp_path_factory):
    service = Service(tmp_path_factory.mktemp("smtp"))
    service.start()
    _shared.append(service)
    yield
    _shared.remove(service)
    service.stop()
