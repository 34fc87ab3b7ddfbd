"""What is known of providers: told by their mail servers, limited, slowed down by their own words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.config.model import BUILT_IN_PROVIDERS, Outbound, Provider
from pymx.mta.providers import BUILT_IN, Providers
from pymx.mta.trouble import Event, Phase, Remote
from pymx.queue.place import Kind, Limits

PROVIDERS = Providers(Outbound())


@pytest.mark.parametrize(
    ("hosts", "site", "connections", "messages"),
    [
        (["gmail-smtp-in.l.google.com"], "google", 5, 50),
        (["ASPMX.L.google.com."], "google", 5, 50),
        (["smtp.google.com"], "google", 5, 50),
        (["aspmx2.googlemail.com"], "google", 5, 50),
        (["mta5.am0.yahoodns.net", "mta6.am0.yahoodns.net"], "yahoo", 5, 20),
        (["mx-aol.mail.gm0.yahoodns.net"], "yahoo", 5, 20),
        (["outlook-com.olc.protection.outlook.com"], "microsoft-consumer", 5, 50),
        (["example-com.mail.protection.outlook.com"], "microsoft-365", 5, 50),
        (["example-com.a-v1.mx.microsoft"], "microsoft-365", 5, 50),
        (["mx01.mail.icloud.com", "mx02.mail.icloud.com"], "apple", 10, 5),
        (["mail.protonmail.ch"], "proton", 3, 20),
        (["mx00.gmx.net", "mx01.gmx.net"], "gmx", 3, 20),
        (["mx-ha02.web.de"], "gmx", 3, 20),
        (["mx.notgoogle.com"], "mx.notgoogle.com", 5, 100),
        (["google.com.evil.test"], "google.com.evil.test", 5, 100),
        (["b.hoster.test", "a.hoster.test"], "a.hoster.test,b.hoster.test", 5, 100),
        (["mx.evil.test", "aspmx.l.google.com"], "aspmx.l.google.com,mx.evil.test", 5, 100),
        (["google"], "google.", 5, 100),
        (["local"], "local.", 5, 100),
        (["smart.test:587"], "smart.test:587.", 5, 100),
        ([], "far.test", 5, 100),
    ],
)
def test_a_provider_is_told_by_its_mail_servers(hosts: list[str], site: str, connections: int, messages: int) -> None:
    """The limits are those of docs/operations.md."""
    place = PROVIDERS.place("far.test", hosts)
    assert (place.site, place.limits, place.direct) == (site, Limits(connections, messages), True)


def test_customers_share_the_limits_but_not_the_trouble_of_each_other() -> None:
    """One customer's dead server is not the provider's."""
    one = PROVIDERS.place("one.test", ["one-test.mail.protection.outlook.com"])
    two = PROVIDERS.place("two.test", ["two-test.mail.protection.outlook.com"])
    assert one.site == two.site
    assert one.hosts != two.hosts


def test_settings_override_what_is_built_in_and_add_to_it() -> None:
    """[[outbound.provider]]"""
    outbound = Outbound(
        provider=[
            Provider(name="apple", max_connections=2, messages_per_minute=30),
            Provider(name="hoster", mx=[".Hoster.test", "mx.other.test"], messages_per_hour=7),
        ],
        max_per_destination=4,
    )
    providers = Providers(outbound)
    assert providers.place("x.test", ["mx01.mail.icloud.com"]).limits == Limits(2, 5, per_minute=30)
    for host in ("a.hoster.test", "mx.other.test"):
        place = providers.place("x.test", [host])
        assert (place.site, place.limits) == ("hoster", Limits(4, 100, per_hour=7))
    assert providers.place("x.test", ["b.mx.other.test"]).site == "b.mx.other.test"


def test_the_names_for_the_settings_are_those_of_the_table() -> None:
    """pymx.config can't import this room."""
    assert tuple(p.name for p in BUILT_IN) == BUILT_IN_PROVIDERS


SLOW, DOWN = Kind.SLOW, Kind.DOWN


@pytest.mark.parametrize(
    ("site", "phase", "what", "expected"),
    [
        ("google", Phase.DOT, "421 4.7.28 Gmail has detected an unusual rate of unsolicited mail", SLOW),
        ("google", Phase.DOT, "550 5.7.28 Gmail has detected an unusual rate of mail", SLOW),
        ("google", Phase.RCPT, "450 4.2.1 The user you are trying to contact is receiving mail at a rate that", None),
        ("google", Phase.DOT, "550 5.7.26 Unauthenticated email is not accepted", None),
        ("yahoo", Phase.MAIL, "421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to user complaints",
         SLOW),
        ("yahoo", Phase.GREETING, "421 4.7.1 [TS03] All messages from 192.0.2.1 will be permanently deferred", SLOW),
        ("microsoft-consumer", Phase.MAIL, "550 5.7.1 Unfortunately, messages from [192.0.2.1] weren't sent. (S3150)",
         SLOW),
        ("microsoft-consumer", Phase.MAIL,
         "451 4.7.650 The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation", SLOW),
        ("microsoft-365", Phase.RCPT, "451 4.7.500 Server busy. Please try again later from [192.0.2.1]. (S77719)",
         SLOW),
        ("microsoft-365", Phase.RCPT, "550 5.7.606 Access denied, banned sending IP [192.0.2.1]", SLOW),
        ("apple", Phase.DOT, "554 5.7.1 [CS01] Message rejected due to local policy", SLOW),
        ("apple", Phase.RCPT, "452 4.2.2 mailbox full", None),
        ("mx.far.test", Phase.RCPT, "450 4.7.1 rate limited", SLOW),
        ("mx.far.test", Phase.MAIL, "421 4.7.0 Too many connections from your address", SLOW),
        ("mx.far.test", Phase.MAIL, "451 4.7.0 Throttled, try later", SLOW),
        ("mx.far.test", Phase.RCPT, "550 5.7.1 rate limited", None),
        ("mx.far.test", Phase.RCPT, "450 4.7.1 Greylisted, try again in 300 seconds", None),
        ("mx.far.test", Phase.RCPT, "452 4.5.3 too many recipients", None),
        ("mx.far.test", Phase.RCPT, "452 4.2.2 rate limit of this mailbox", None),
        ("mx.far.test", Phase.MAIL, "421 4.3.2 closing", DOWN),
        ("mx.far.test", Phase.GREETING, "554 5.7.1 blocked", DOWN),
        ("mx.far.test", Phase.AUTH, "535 5.7.8 wrong", DOWN),
        ("mx.far.test", Phase.DOT, "451 4.3.0 later", None),
        ("mx.far.test", Phase.CONNECT, Event.REFUSED, DOWN),
        ("mx.far.test", Phase.CONNECT, Event.TIMEOUT, DOWN),
        ("mx.far.test", Phase.STARTTLS, Event.TLS_FAILED, None),
        ("mx.far.test", Phase.STARTTLS, Event.NOT_OFFERED, None),
        ("mx.far.test", Phase.STARTTLS, "454 4.7.0 TLS not available", None),
        ("mx.far.test", Phase.MAIL, Event.LOST, DOWN),
        ("mx.far.test", Phase.CONTENT, Event.LOST, None),
        ("mx.far.test", Phase.DOT, Event.TIMEOUT, None),
        ("mx.far.test", Phase.DNS, Event.NOT_IN_POLICY, None),
        ("mx.far.test", Phase.STARTTLS, Event.NO_REQUIRETLS, None),
    ],
)  # fmt: skip
def test_what_trouble_says_about_the_place(site: str, phase: Phase, what: str | Event, expected: Kind | None) -> None:
    """Only what concerns all mail there; single messages and mailboxes slow nobody down."""
    if isinstance(what, str):
        code, _, text = what.partition(" ")
        strain = PROVIDERS.strain(site, phase, Remote(int(code), text))
        assert strain is None or strain.reason == what
    else:
        strain = PROVIDERS.strain(site, phase, what)
    assert (strain.kind if strain else None) is expected
    assert strain is None or (strain.pause_s >= 60) is (strain.kind is SLOW)


def test_only_a_places_own_servers_speak_for_it() -> None:
    """A domain may name a provider's or anybody's server first and one of its own behind it."""
    google = PROVIDERS.place("x.test", ["aspmx.l.google.com"])
    assert [PROVIDERS.speaks_for(google, host) for host in ("mx.evil.test", "ALT1.aspmx.l.google.com.")] == [
        False,
        True,
    ]
    other = PROVIDERS.place("x.test", ["b.hoster.test", "a.hoster.test"])
    assert [PROVIDERS.speaks_for(other, host) for host in ("mx.evil.test", "A.hoster.test")] == [False, True]
    assert PROVIDERS.speaks_for(PROVIDERS.place("yahoo", []), "yahoo")


def test_a_domain_with_the_short_name_of_a_provider_is_a_place_of_its_own() -> None:
    """Its dead server would else be taken for the provider's."""
    for hosts in ([], ["yahoo"], ["YAHOO."]):
        place = PROVIDERS.place("yahoo", hosts)
        assert "yahoo" not in (place.site, place.hosts)


@given(st.sampled_from([p.name for p in BUILT_IN]), st.sampled_from(Phase), st.integers(200, 399), st.text())
def test_a_success_never_slows_down(site: str, phase: Phase, code: int, text: str) -> None:
    """Whatever it says."""
    strain = PROVIDERS.strain(site, phase, Remote(code, text))
    assert strain is None or phase in (Phase.DNS, Phase.CONNECT, Phase.GREETING, Phase.EHLO, Phase.STARTTLS, Phase.AUTH)
