"""What follows from each failure: the whole table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.mta.trouble import Action, Event, Phase, Remote, Verdict, judge, last_host

NEXT, PLAIN, DEFER, FAIL = Action.NEXT_HOST, Action.PLAIN, Action.DEFER, Action.FAIL


@pytest.mark.parametrize(
    ("phase", "reply", "expected"),
    [
        (Phase.GREETING, "421 4.3.2 closing", (NEXT, "4.3.2")),
        (Phase.GREETING, "554 5.7.1 blocked", (NEXT, "4.7.1")),
        (Phase.GREETING, "521 no mail here", (NEXT, "4.0.0")),
        (Phase.EHLO, "450 later", (NEXT, "4.0.0")),
        (Phase.EHLO, "550 5.7.1 who are you", (NEXT, "4.7.1")),
        (Phase.STARTTLS, "454 4.7.0 not now", (NEXT, "4.7.0")),
        (Phase.AUTH, "454 4.7.0 not now", (NEXT, "4.7.0")),
        (Phase.AUTH, "535 5.7.8 wrong", (DEFER, "4.7.8")),
        (Phase.MAIL, "451 4.7.1 greylisted", (NEXT, "4.7.1")),
        (Phase.MAIL, "550 5.7.1 not you", (FAIL, "5.7.1")),
        (Phase.MAIL, "552 5.3.4 too big", (FAIL, "5.3.4")),
        (Phase.RCPT, "450 4.2.1 busy", (NEXT, "4.2.1")),
        (Phase.RCPT, "452 4.5.3 too many", (NEXT, "4.5.3")),
        (Phase.RCPT, "550 5.1.1 nobody", (FAIL, "5.1.1")),
        (Phase.RCPT, "550 nobody", (FAIL, "5.0.0")),
        (Phase.RCPT, "552 5.2.2 full", (FAIL, "5.2.2")),
        (Phase.RCPT, "552 too many recipients", (NEXT, "4.0.0")),
        (Phase.RCPT, "550 4.1.1 contradicts itself", (FAIL, "5.1.1")),
        (Phase.RCPT, "450 5.1.1 contradicts itself", (NEXT, "4.1.1")),
        (Phase.DATA, "451 4.3.0 later", (NEXT, "4.3.0")),
        (Phase.DATA, "554 5.5.1 no", (FAIL, "5.5.1")),
        (Phase.DATA, "250 what", (NEXT, "4.5.0")),
        (Phase.CONTENT, "552 5.3.4 too big", (FAIL, "5.3.4")),
        (Phase.DOT, "451 4.7.1 later", (NEXT, "4.7.1")),
        (Phase.DOT, "421 4.3.2 closing", (NEXT, "4.3.2")),
        (Phase.DOT, "554 5.7.1 spam", (FAIL, "5.7.1")),
        (Phase.DOT, "354 what", (NEXT, "4.5.0")),
    ],
)
def test_replies_by_phase(phase: Phase, reply: str, expected: tuple[Action, str]) -> None:
    """RFC 5321 s. 4.2.1: 4xx temporary, 5xx permanent, and the exceptions of the table."""
    code, _, text = reply.partition(" ")
    assert judge(phase, Remote(int(code), text)) == Verdict(*expected)


@pytest.mark.parametrize("phase", [p for p in Phase if p is not Phase.DOT])
@pytest.mark.parametrize("event", list(Event))
def test_whatever_breaks_before_the_final_dot_leads_to_the_next_host(phase: Phase, event: Event) -> None:
    """The remote can't have the message."""
    assert judge(phase, event).action is NEXT


@pytest.mark.parametrize("event", list(Event))
def test_what_breaks_after_the_final_dot_is_deferred(event: Event) -> None:
    """RFC 1047: it may have arrived. Another host at once would double it."""
    assert judge(Phase.DOT, event).action is DEFER


@pytest.mark.parametrize(
    "what", [Remote(454, "4.7.0 no"), Remote(501, "no"), Event.TLS_FAILED, Event.LOST, Event.TIMEOUT]
)
def test_optional_tls_that_fails_leads_to_the_same_host_without(what: Remote | Event) -> None:
    """RFC 7435: opportunistic means that."""
    assert judge(Phase.STARTTLS, what, tls_optional=True).action is PLAIN
    assert judge(Phase.STARTTLS, what, tls_optional=False).action is NEXT
    assert judge(Phase.MAIL, what, tls_optional=True).action is not PLAIN


@pytest.mark.parametrize(
    ("phase", "what", "expected"),
    [
        (Phase.GREETING, Remote(521, "no mail"), Verdict(FAIL, "5.3.2")),
        (Phase.GREETING, Remote(554, "5.7.1 blocked"), Verdict(DEFER, "4.7.1")),
        (Phase.EHLO, Remote(550, "5.7.1 no"), Verdict(FAIL, "5.7.1")),
        (Phase.EHLO, Remote(450, "no"), Verdict(DEFER, "4.7.1")),
        (Phase.CONNECT, Event.REFUSED, Verdict(DEFER, "4.7.1")),
        (Phase.RCPT, Remote(450, "4.2.1 busy"), Verdict(DEFER, "4.7.1")),
        (Phase.DNS, Event.NO_TLSA, Verdict(DEFER, "4.7.1")),
        (Phase.DNS, Event.NOT_IN_POLICY, Verdict(DEFER, "4.7.1")),
        (Phase.STARTTLS, Event.BAD_CERTIFICATE, Verdict(DEFER, "4.7.1")),
        (Phase.STARTTLS, Event.NO_REQUIRETLS, Verdict(FAIL, "5.7.30")),
        (Phase.MAIL, Event.NO_8BITMIME, Verdict(FAIL, "5.6.3")),
    ],
)
def test_when_no_host_is_left(phase: Phase, what: Remote | Event, expected: Verdict) -> None:
    """RFC 7504: 521 everywhere is a refusal for good; a block list at all hosts may be lifted, a certificate mended.

    What the message itself forbids (RFC 8689, RFC 6152) no waiting will change.
    """
    assert last_host(phase, what, "4.7.1") == expected


@given(st.sampled_from(Phase), st.integers(-1, 999), st.text(max_size=20), st.booleans())
def test_the_status_has_the_class_of_the_action(phase: Phase, code: int, text: str, optional: bool) -> None:
    """RFC 3463: 5 exactly for what is given up."""
    for verdict in (
        judge(phase, Remote(code, text), tls_optional=optional),
        last_host(phase, Remote(code, text), "4.0.0"),
    ):
        assert verdict.status.startswith("5" if verdict.action is FAIL else "4")
