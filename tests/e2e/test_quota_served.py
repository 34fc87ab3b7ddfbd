"""Quota in a whole server: refused at the door, told to the user, raised by the administrator."""

from __future__ import annotations

import smtplib
from collections.abc import Iterator

import pytest
from support.appliance import Appliance
from support.wait import wait_for


@pytest.fixture
def appliance() -> Iterator[Appliance]:
    server = Appliance(workers=2)
    server.populate(("alice", "bob"))
    server.start()
    yield server
    server.remove()


def test_full_mailbox_refuses_and_its_user_was_told(appliance: Appliance) -> None:
    """452 4.2.2 at RCPT; the notice is in INBOX; a higher limit holds at once."""
    bob = appliance.address("bob")
    appliance.ctl("user", "quota", bob, "--messages", "5")
    for number in range(4):
        appliance.submit("alice", bob, f"number {number}")
    wait_for(lambda: "Your mailbox is 80 % full" in appliance.subjects("bob"), what="the notice arrives")
    assert sorted(appliance.subjects("bob"))[1:] == [f"number {number}" for number in range(4)]
    with pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
        appliance.submit("alice", bob, "one too many")
    ((code, text),) = refused.value.recipients.values()
    assert code == 452
    assert text.startswith(b"4.2.2")
    assert appliance.ctl_json("user", "quota", bob, "--recount")["messages"] == 5
    with appliance.imap("bob") as imap:
        _, found = imap.getquotaroot("INBOX")
        assert found[1] == [b'"" (MESSAGE 5 5)']
    appliance.ctl("user", "quota", bob, "--messages", "10")
    appliance.submit("alice", bob, "now it fits")
    wait_for(lambda: "now it fits" in appliance.subjects("bob"), what="it arrives")
    assert appliance.log().count("event=quota_notice_delivered") == 1
