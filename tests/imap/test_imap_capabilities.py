"""What is offered when: clients decide by it what they use."""

from __future__ import annotations

import pytest

from pymx.imapd.capability import after_login, before_login


@pytest.mark.parametrize("starttls", [True, False])
@pytest.mark.parametrize("allowed", [True, False])
def test_before_login_little_is_offered(starttls: bool, allowed: bool) -> None:
    """RFC 3501 s. 6.2.1 and 6.2.3, RFC 4959, RFC 7888: enough to log in, and no hint of more."""
    offered = before_login(starttls=starttls, login_allowed=allowed).decode().split()
    assert {"IMAP4rev1", "LITERAL+", "SASL-IR", "ID", "ENABLE"} <= set(offered)
    assert ("STARTTLS" in offered) == starttls
    assert ("LOGINDISABLED" in offered) == (not allowed)
    assert ({"AUTH=PLAIN", "AUTH=LOGIN"} <= set(offered)) == allowed
    assert not {"IDLE", "MOVE", "UIDPLUS", "NAMESPACE"} & set(offered)
    assert len(offered) == len(set(offered))


def test_after_login_all_is_offered() -> None:
    """Each word of RFCs 2177, 2342, 3348, 3691, 4315, 5161, 5258, 5819, 6154, 6851 that clients look for."""
    offered = after_login(50_000_000).decode().split()
    assert {
        "IMAP4rev1", "IDLE", "NAMESPACE", "UIDPLUS", "MOVE", "SPECIAL-USE", "LITERAL+", "SASL-IR", "ID", "ENABLE",
        "UNSELECT", "CHILDREN", "LIST-EXTENDED", "LIST-STATUS", "APPENDLIMIT=50000000",
    } <= set(offered)  # fmt: skip
    assert not {"STARTTLS", "LOGINDISABLED"} & set(offered)
    assert len(offered) == len(set(offered))
