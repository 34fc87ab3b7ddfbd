"""What the administrator is told about a remote server's reply."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.mail.advice import advice

# replies as providers give them
REPLIES = [
    ("550-5.7.26 This mail has been blocked because the sender is unauthenticated.", "SPF, DKIM and DMARC"),
    ("550-5.7.26 Your email has been blocked because the sender is unauthenticated. DKIM = did not pass", "SPF"),
    ("550 5.7.515 Access denied, sending domain example.com doesn't meet the required authentication level.", "DKIM"),
    ("550-5.7.25 [192.0.2.1] The IP address sending this message does not have a PTR record setup", "PTR record"),
    ("421-4.7.28 Gmail has detected an unusual rate of unsolicited mail originating from your IP", "slows down"),
    ("421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume", "Yahoo"),
    ("451 4.7.650 The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation.", "slows down"),
    ("550 5.7.1 Unfortunately, messages from [192.0.2.1] weren't sent. Please contact your ISP since part of their "
     "network is on our block list (S3150).", "Microsoft blocks"),
    ("550 5.7.511 Access denied, banned sender[192.0.2.1]", "delist@microsoft.com"),
    ("451 4.7.1 Greylisted, please try again later", "greylisting"),
    ("450 4.2.0 <bob@example.com>: Recipient address rejected: Greylisted, see http://postgrey", "greylisting"),
    ("550 5.1.1 <bob@example.com>: Recipient address rejected: User unknown", "does not exist"),
    ("550 5.4.1 Recipient address rejected: Access denied. [AM7EUR03FT0123]", "Microsoft 365"),
    ("452 4.2.2 The email account that you tried to reach is over quota", "full"),
    ("552 5.2.2 mailbox full", "full"),
    ("554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org", "check.spamhaus.org"),
    ("554 5.7.1 <bob@example.com>: Relay access denied", "MX record leads to the wrong host"),
    ("552 5.3.4 Message size exceeds fixed limit", "larger than"),
    ("530 5.7.0 Must issue a STARTTLS command first", "TLS only"),
    ("connect timeout (connect): no answer", "could not be reached"),
    ("432 something never heard of", "temporary"),
]  # fmt: skip


@pytest.mark.parametrize(("reply", "says"), REPLIES)
def test_known_reply_has_advice(reply: str, says: str) -> None:
    assert says in advice(reply)


@pytest.mark.parametrize("reply", ["", "250 2.0.0 Ok: queued", "250 2.1.5 not greylisted any more"])
def test_success_needs_none(reply: str) -> None:
    assert advice(reply) == ""


@given(st.text())
def test_any_reply_is_answered_with_text(reply: str) -> None:
    assert isinstance(advice(reply), str)
