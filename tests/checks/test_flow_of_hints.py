"""Each result of SPF, and lists of hosts, from the message that comes in to its header, its folder and the log."""

from __future__ import annotations

import pytest
from checks_rig import ALICE, OTHER_IP, Rig, Start, letter, results
from support.dns_server import Failure

from pymx.config.model import Checks

LISTED = "2.0.0.127"  # 127.0.0.2, from where the good mail comes


def publish_spf(rig: Rig) -> None:
    """One domain for each result; the host is 127.0.0.2."""
    for name, record in {
        "pass.test": "v=spf1 ip4:127.0.0.2 -all",
        "fail.test": "v=spf1 -all",
        "softfail.test": "v=spf1 ~all",
        "neutral.test": "v=spf1 ?all",
        "permerror.test": "v=spf1 nonsense:x -all",
    }.items():
        rig.dns.add(name, "TXT", f'"{record}"')
    rig.dns.add("none.test", "A", "127.0.0.2")
    rig.dns.fail("temperror.test", Failure.SERVFAIL)


@pytest.mark.parametrize(
    ("result", "score"),
    [
        ("pass", ""),
        ("fail", "3.00"),
        ("softfail", "1.50"),
        ("neutral", ""),
        ("none", ""),
        ("permerror", "1.00"),
        ("temperror", ""),
    ],
)
async def test_each_result_of_spf_is_told_and_refuses_nothing(result: str, score: str, rig: Rig) -> None:
    """RFC 7208 s. 2.6 and 9.1, RFC 8601 s. 2.7.2: in both fields and in the log; a hint at most."""
    publish_spf(rig)
    sender = f"x@{result}.test"
    assert (await rig.send(letter("x@plain.test"), sender=sender))[0] == 250
    message = rig.only()
    assert f"spf={result} smtp.mailfrom={sender}" in results(message)
    assert message["Received-SPF"].startswith(f"{result} (")
    assert f'envelope-from="{sender}"' in message["Received-SPF"]
    assert message["X-Spam-Score"] == (score or None)
    (line,) = rig.lines("message_checked")
    assert f" spf={result} " in line["check"]
    assert (line["verdict"], line["score"]) == ("accept", float(score) if score else None)
    assert ("SPF" in line["reason"]) == (result in ("fail", "softfail", "permerror", "temperror"))


@pytest.mark.parametrize("result", ["fail", "softfail", "permerror"])
async def test_spf_with_other_hints_goes_to_junk_and_says_why(result: str, checked: Start) -> None:
    async with checked(checks=Checks(junk_score=4, dnsbl=["bl.test=3"])) as rig:
        publish_spf(rig)
        rig.dns.add(f"{LISTED}.bl.test", "A", "127.0.0.2")
        assert (await rig.send(letter("x@plain.test"), sender=f"x@{result}.test"))[0] == 250
        why = " ".join(rig.only(ALICE, "Junk")["X-Pymx-Junk"].split())
        assert f"SPF {result} for {result}.test" in why
        assert "127.0.0.2 is on a list of bad hosts: bl.test (127.0.0.2) (+3)" in why


@pytest.mark.parametrize(
    ("lists", "listed_on", "score", "junk"),
    [
        ({"dnsbl": ["bl.test=3"]}, {"bl.test": "127.0.0.2"}, 3, False),
        ({"dnsbl": ["bl.test=3", "other.test=2"]}, {"bl.test": "127.0.0.2", "other.test": "127.0.0.9"}, 5, True),
        ({"dnsbl": ["bl.test=1", "bl.test=127.0.0.4*6"]}, {"bl.test": "127.0.0.4"}, 6, True),
        ({"dnsbl": ["bl.test=99"]}, {"bl.test": "127.0.0.2"}, 99, True),
        ({"dnsbl": ["bl.test=6"], "dnswl": ["w.test=4"]}, {"bl.test": "127.0.0.2", "w.test": "127.0.9.1"}, 2, False),
        ({"dnsbl": ["bl.test=99"]}, {"bl.test": "127.255.255.254"}, 0, False),
        ({"dnsbl": ["bl.test=99"]}, {"bl.test": "203.0.113.1"}, 0, False),
        ({"dnsbl": ["bl.test=99"]}, {"bl.test": ""}, 0, False),
        ({"dnsbl": ["bl.test=99"]}, {}, 0, False),
    ],
    ids=["hint", "two lists", "one answer", "never a refusal", "good list", "refused", "parked", "down", "not listed"],
)  # fmt: skip
async def test_lists_of_hosts(
    lists: dict[str, list[str]], listed_on: dict[str, str], score: float, junk: bool, checked: Start
) -> None:
    """RFC 5782, RFC 8904: to Junk by the sum alone, never refused; what is no answer of a list counts for nothing."""
    async with checked(checks=Checks(**lists)) as rig:
        for zone, answer in listed_on.items():
            if answer:
                rig.dns.add(f"{LISTED}.{zone}", "A", answer)
            else:
                rig.dns.fail(f"{LISTED}.{zone}", Failure.SERVFAIL)
        assert (await rig.send(letter()))[0] == 250
        message = rig.only(ALICE, "Junk" if junk else "")
        assert message["X-Spam-Score"] == (f"{score:.2f}" if score else None)
        assert message["X-Spam-Flag"] == ("YES" if junk else None)
        assert ("dnswl=pass dns.zone=w.test" in results(message)) == ("dnswl" in lists)
        (line,) = rig.lines("message_checked")
        assert ("dnsbl=listed" in line["check"]) == bool(score)
        if junk:
            why = " ".join(message["X-Pymx-Junk"].split())
            assert all(f"{zone} ({answer})" in why for zone, answer in listed_on.items())
        refused = rig.lines("dnsbl_refused")
        assert [told["key"] for told in refused] == (["bl.test"] if not score and any(listed_on.values()) else [])


async def test_policy_for_names_that_do_not_exist(rig: Rig) -> None:
    """RFC 9989 s. 4.7: np= is done to mail from them, sp= to that of other subdomains."""
    rig.dns.add("_dmarc.strict.test", "TXT", '"v=DMARC1; p=none; sp=none; np=reject"')
    rig.dns.add("there.strict.test", "A", "127.0.0.2")
    assert (await rig.send(letter("x@there.strict.test"), sender="x@plain.test", peer=OTHER_IP))[0] == 250
    refused = await rig.send(letter("x@nowhere.strict.test"), sender="x@plain.test", peer=OTHER_IP)
    assert refused == (550, "5.7.1 Rejected by the DMARC policy of strict.test")
