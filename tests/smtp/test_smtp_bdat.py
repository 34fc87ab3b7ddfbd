"""BDAT (RFC 3030)."""

from __future__ import annotations

import pytest

from pymx.proto.smtp import reply
from pymx.proto.smtp.reply import SmtpError

MESSAGE = b"Subject: x\r\n\r\n.\r\n..two\r\nend\r\n"


def begin(client, to: str = "bob@example.test") -> None:
    assert client.ask("EHLO client.example").startswith("250")
    assert client.ask("MAIL FROM:<alice@example.com> BODY=8BITMIME").startswith("250 ")
    assert client.ask(f"RCPT TO:<{to}>").startswith("250 ")


def test_chunks_make_a_message(smtp_service):
    """No dot is stuffed or taken out, the chunks need not end where lines end."""
    service = smtp_service()
    with service.client() as client:
        begin(client)
        for start in range(0, len(MESSAGE), 10):
            piece = MESSAGE[start : start + 10]
            client.send(b"BDAT %d\r\n" % len(piece) + piece)
            assert client.reply() == f"250 2.0.0 {len(piece)} octets received"
        assert client.ask("BDAT 0 LAST") == "250 2.0.0 OK queued"
    assert service.policy.delivered[0].data == MESSAGE


def test_pipelined_with_the_envelope(smtp_service):
    """RFC 3030 s. 4.2: MAIL, RCPT and BDAT may come in one packet, and another transaction after it."""
    service = smtp_service()
    one = b"MAIL FROM:<a@example.com>\r\nRCPT TO:<bob@example.test>\r\nBDAT %d LAST\r\n%s"
    with service.client() as client:
        client.ask("EHLO c")
        client.send(one % (len(MESSAGE), MESSAGE) + one % (5, b"\r\nx\r\n") + b"NOOP\r\n")
        codes = [client.reply()[:9] for _ in range(7)]
    assert codes == ["250 2.1.0", "250 2.1.5", "250 2.0.0"] * 2 + ["250 2.0.0"]
    assert [m.data for m in service.policy.delivered] == [MESSAGE, b"\r\nx\r\n"]


def test_octet_by_octet(smtp_service):
    service = smtp_service()
    with service.client() as client:
        begin(client)
        for octet in b"BDAT %d LAST\r\n" % len(MESSAGE) + MESSAGE + b"NOOP\r\n":
            client.send(bytes([octet]))
        assert client.reply() == "250 2.0.0 OK queued"
        assert client.reply() == "250 2.0.0 OK"


def test_missing_last_line_end_is_added(smtp_service):
    """A message is whole lines everywhere behind the engine."""
    service = smtp_service()
    with service.client() as client:
        begin(client)
        client.send(b"BDAT 15 LAST\r\nSubject: x\r\n\r\nx")
        assert client.reply() == "250 2.0.0 OK queued"
    assert service.policy.delivered[0].data == b"Subject: x\r\n\r\nx\r\n"


@pytest.mark.parametrize("data", [b"\r\na\nb\r\n", b"\r\na\rb\r\n", b"\r\n\r", b"\n"])
def test_bare_newlines_are_refused(smtp_service, data):
    """What BDAT would let through could be smuggled into the next server's DATA."""
    service = smtp_service()
    with service.client() as client:
        begin(client)
        client.send(b"BDAT %d LAST\r\n" % len(data) + data)
        assert client.reply() == "554 5.5.2 Bare CR or LF is not allowed"
        assert client.ask("NOOP") == "250 2.0.0 OK"
    assert not service.policy.delivered


def test_crlf_may_be_cut_by_the_chunks(smtp_service):
    service = smtp_service()
    with service.client() as client:
        begin(client)
        client.send(b"BDAT 1\r\n\rBDAT 1 LAST\r\n\n")
        assert client.reply().startswith("250 ")
        assert client.reply() == "250 2.0.0 OK queued"
    assert service.policy.delivered[0].data == b"\r\n"


def test_chunk_out_of_order_is_read_and_refused(smtp_service):
    """The octets of a refused chunk are not commands."""
    service = smtp_service()
    service.policy.refused_recipients["bob@example.test"] = SmtpError(reply.UNKNOWN_RECIPIENT)
    with service.client() as client:
        client.send(b"BDAT 6 LAST\r\nQUIT\r\n")
        assert client.reply().startswith("503 5.5.1 ")
        client.ask("EHLO c")
        client.ask("MAIL FROM:<a@example.com>")
        assert client.ask("RCPT TO:<bob@example.test>").startswith("550 ")
        client.send(b"BDAT 6 LAST\r\nQUIT\r\n")
        assert client.reply() == "554 5.5.1 No valid recipients"
        assert client.ask("NOOP") == "250 2.0.0 OK"


def test_data_and_rcpt_after_bdat_are_out_of_order(smtp_service):
    """RFC 3030 s. 2: DATA and BDAT don't mix."""
    service = smtp_service()
    with service.client() as client:
        begin(client)
        client.send(b"BDAT 2\r\n\r\n")
        client.reply()
        assert client.ask("DATA") == "503 5.5.1 DATA after BDAT"
        assert client.ask("RCPT TO:<carol@example.test>") == "503 5.5.1 RCPT after BDAT"
        assert client.ask("RSET").startswith("250 ")
        begin(client)
        client.ask("DATA")
        assert client.ask("\r\n.") == "250 2.0.0 OK queued"


def test_too_big_in_pieces(smtp_service):
    """552 5.3.4 for the chunk that goes over the limit and for those after it."""
    service = smtp_service(max_message_octets=1000)
    with service.client() as client:
        begin(client)
        client.send(b"BDAT 600\r\n" + b"x" * 600)
        assert client.reply().startswith("250 ")
        client.send(b"BDAT 600\r\n" + b"x" * 600)
        assert client.reply() == "552 5.3.4 Message too big"
        client.send(b"BDAT 0 LAST\r\n")
        assert client.reply() == "552 5.3.4 Message too big"
        assert client.ask("NOOP") == "250 2.0.0 OK"


def test_huge_chunk_ends_the_session(smtp_service):
    """It would have to be read to stay in step."""
    service = smtp_service(max_message_octets=1000)
    with service.client() as client:
        begin(client)
        assert client.ask("BDAT 99999999") == "552 5.3.4 Message too big"
        assert client.line() == ""


@pytest.mark.parametrize("argument", ["", "x", "-1", "1 LATEST", "1 LAST x", "9" * 21, "٣"])
def test_malformed_bdat_ends_the_session(smtp_service, argument):
    """Nobody knows how many octets follow."""
    service = smtp_service()
    with service.client() as client:
        begin(client)
        assert client.ask(f"BDAT {argument}".strip()).startswith("501 5.5.4 ")
        assert client.line() == ""
