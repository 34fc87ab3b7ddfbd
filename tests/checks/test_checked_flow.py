"""A message comes in, the checks judge it, and what they say is in its header, in the log and in its folder."""

from __future__ import annotations

import pytest
from checks_rig import ALICE, BOB, OTHER_IP, Rig, Start, letter, results
from support.dns_server import Failure

from pymx.config.model import Checks
from pymx.mail.address import parse_address
from pymx.mail.envelope import Recipient


async def test_good_mail_is_in_the_inbox_with_its_results(rig: Rig) -> None:
    """RFC 8601: every method's result in one field of ours; RFC 7208 s. 9.1."""
    code, _ = await rig.send(rig.sign("good.test", letter()))
    assert code == 250
    message = rig.only()
    found = results(message)
    assert "iprev=pass" in found
    assert "policy.iprev=127.0.0.2" in found
    assert "spf=pass smtp.mailfrom=x@good.test" in found
    assert "dkim=pass header.d=good.test" in found
    assert "dmarc=pass header.from=good.test" in found
    assert message["Received-SPF"].startswith("pass (")
    assert "mail.good.test ([127.0.0.2])" not in message["Received"]
    assert "(mail.good.test [127.0.0.2])" in " ".join(message["Received"].split())
    assert "X-Pymx-Junk" not in message
    assert "X-Spam-Flag" not in message


async def test_one_line_says_everything(rig: Rig) -> None:
    """The whole verdict, with the ids that lead to session and mailbox."""
    await rig.send(rig.sign("good.test", letter()), to=[ALICE, BOB])
    (line,) = rig.lines("message_checked")
    (accepted,) = rig.lines("message_accepted")
    assert line["queue_id"] == accepted["queue_id"]
    assert line["session"] == accepted["session"]
    assert line["verdict"] == "accept"
    assert line["check"] == "iprev=pass helo=ok early_talker=ok spf=pass spf=pass dkim=pass arc=none dmarc=pass"
    assert line["rcpt_to"] == f"{ALICE},{BOB}"
    assert line["reply"] == ""


async def test_dmarc_reject_is_a_refusal_with_its_reason(rig: Rig) -> None:
    code, text = await rig.send(letter(), peer=OTHER_IP)
    assert (code, text) == (550, "5.7.1 Rejected by the DMARC policy of good.test")
    assert rig.folder(ALICE) == []
    (line,) = rig.lines("message_checked")
    assert line["verdict"] == "reject"
    assert "p=reject" in line["reason"]
    assert "spf=fail" in line["check"]
    assert rig.lines("message_refused")[0]["reply"] == "550 5.7.1"


@pytest.mark.parametrize(("author", "domain"), [("x@softie.test", "softie.test"), ("x@sub.good.test", "sub.good.test")])
async def test_dmarc_quarantine_is_filed_to_junk_and_says_why(author: str, domain: str, rig: Rig) -> None:
    """p=quarantine of the domain itself, and sp=quarantine for a subdomain."""
    code, _ = await rig.send(letter(author), sender="x@plain.test", peer=OTHER_IP)
    assert code == 250
    assert rig.folder(ALICE) == []
    message = rig.only(ALICE, "Junk")
    assert message["X-Pymx-Junk"].startswith(f"{domain} has not sent this (DMARC p=quarantine")
    assert message["X-Spam-Flag"] == "YES"
    assert message["X-Spam-Status"].startswith("Yes, ")
    assert "dmarc=fail" in results(message)
    assert "policy.dmarc=quarantine" in results(message)
    (line,) = rig.lines("message_delivered")
    assert line["mailbox"] == "Junk"


async def test_dmarc_none_only_notes_it(rig: Rig) -> None:
    await rig.send(letter("x@lax.test"), sender="x@plain.test", peer=OTHER_IP)
    assert "dmarc=fail" in results(rig.only())


async def test_a_domain_without_policy_is_none(rig: Rig) -> None:
    await rig.send(letter("x@plain.test"), sender="x@plain.test")
    assert "dmarc=none header.from=plain.test" in results(rig.only())
    assert "spf=none" in results(rig.only())


async def test_spf_alone_aligns(rig: Rig) -> None:
    await rig.send(letter())
    assert "dkim=none" in results(rig.only())
    assert "dmarc=pass" in results(rig.only())


async def test_dkim_alone_aligns_and_excuses_spf(rig: Rig) -> None:
    """A forwarded message: SPF fails, the signature of the author's domain holds."""
    code, _ = await rig.send(rig.sign("good.test", letter()), peer=OTHER_IP)
    assert code == 250
    message = rig.only()
    assert "spf=fail" in results(message)
    assert "dmarc=pass" in results(message)
    assert rig.lines("message_checked")[0]["verdict"] == "accept"


async def test_spf_fail_alone_is_no_refusal(rig: Rig) -> None:
    """RFC 7208 s. 8.4 leaves it open; here it is a hint."""
    code, _ = await rig.send(letter("x@plain.test"), sender="x@lax.test")
    assert code == 250
    assert "spf=fail" in results(rig.only())
    assert rig.only()["X-Spam-Status"].startswith("No, score=3.00 required=5.00")


async def test_hints_add_up_to_junk_and_never_to_a_refusal(rig: Rig) -> None:
    """SPF fail, no name of the host, our own name in HELO: 3 + 1.5 + 3."""
    code, _ = await rig.send(letter("x@plain.test"), sender="x@lax.test", peer=OTHER_IP, helo="mx.example.test")
    assert code == 250
    why = " ".join(rig.only(ALICE, "Junk")["X-Pymx-Junk"].split())
    assert why.startswith("score 7.5 of 5: ")
    assert "HELO mx.example.test is our own name (+3)" in why
    assert "SPF fail for lax.test" in why


async def test_a_broken_signature_counts_as_none(rig: Rig) -> None:
    message = rig.sign("good.test", letter()).replace(b"Hello", b"Hullo")
    assert (await rig.send(message))[0] == 250
    assert 'dkim=fail reason="body hash differs"' in results(rig.only())
    assert (await rig.send(message, peer=OTHER_IP))[0] == 550


async def test_results_that_claim_to_be_ours_are_removed(rig: Rig) -> None:
    """RFC 8601 s. 5; those of others stay."""
    forged = "Authentication-Results: mx.example.test; dmarc=pass header.from=bank.test\r\n"
    other = "Authentication-Results: other.test; spf=pass\r\n"
    await rig.send(letter("x@plain.test", fields=forged + other), sender="x@plain.test")
    message = rig.only()
    assert "bank.test" not in str(message)
    assert len(message.get_all("Authentication-Results")) == 2
    assert "dmarc=none" in results(message)


async def test_what_others_say_about_spam_is_removed(rig: Rig) -> None:
    forged = "X-Spam-Flag: NO\r\nx-spam-status: No, score=-99\r\nX-Spam-Level:\r\nX-Pymx-Junk: not at all\r\n"
    await rig.send(letter(fields=forged))
    message = rig.only()
    assert not [name for name in message if name.lower().startswith(("x-spam", "x-pymx"))]


async def test_a_signature_over_removed_fields_still_holds(rig: Rig) -> None:
    """What is checked is the message as it came."""
    forged = "X-Spam-Flag: NO\r\nAuthentication-Results: mx.example.test; none\r\n"
    await rig.send(rig.sign("good.test", letter(fields=forged)))
    assert "dkim=pass" in results(rig.only())


async def test_lmtp_and_trusted_hosts_are_not_checked(checked: Start) -> None:
    """Who hands mail over there has checked it, and its mark is believed."""
    async with checked(trusted=["127.0.0.9"]) as rig:
        assert (await rig.send(letter(fields="X-Pymx-Junk: said before\r\n"), peer=OTHER_IP))[0] == 250
        assert "Authentication-Results" not in rig.only(ALICE, "Junk")
        assert rig.lines("message_checked") == []
        assert (await rig.send(letter(), peer="127.0.0.8"))[0] == 550


async def test_peers_that_only_try_addresses_cause_no_questions(rig: Rig) -> None:
    before = len(rig.dns.queries)
    code, _ = await rig.send(letter(), to=["nobody@example.test"])
    assert code == 550
    assert len(rig.dns.queries) == before


async def test_dns_that_does_not_answer_costs_no_more_than_the_limit(checked: Start) -> None:
    """SPF, DKIM, iprev and HELO all time out: the message is there within timeout_s, with temperror."""
    async with checked(checks=Checks(timeout_s=1), dns_timeout_s=5) as rig:
        for name in ("slow.test", "mail.slow.test", "_dmarc.slow.test", "rsa._domainkey.slow.test"):
            rig.dns.fail(name, Failure.TIMEOUT)
        rig.dns.fail("9.0.0.127.in-addr.arpa", Failure.TIMEOUT)
        signed = rig.sign("slow.test", letter("x@slow.test"), publish=False)
        code, _ = await rig.send(signed, sender="x@slow.test", helo="mail.slow.test", peer=OTHER_IP)
        assert code == 250
        found = results(rig.only())
        for method in ("spf", "dkim", "dmarc", "iprev"):
            assert f"{method}=temperror" in found
        (line,) = rig.lines("message_checked")
        assert line["duration_ms"] < 1500
        assert line["verdict"] == "accept"


@pytest.mark.parametrize("which", ["rsa._domainkey.hang.test", "hang.test"])
async def test_servers_of_the_sender_that_never_answer_do_not_open_a_way_past_dmarc(which: str, checked: Start) -> None:
    """A liar's own signature, or SPF record, must not use up the time for the policy of whom he pretends to be."""
    async with checked(checks=Checks(timeout_s=1), dns_timeout_s=5) as rig:
        rig.dns.fail(which, Failure.TIMEOUT)
        code, text = await rig.send(rig.sign("hang.test", letter(), publish=False), sender="x@hang.test", peer=OTHER_IP)
        assert (code, text) == (550, "5.7.1 Rejected by the DMARC policy of good.test")


async def test_dmarc_of_a_domain_that_does_not_answer_is_a_temperror(rig: Rig) -> None:
    rig.dns.fail("_dmarc.good.test", Failure.SERVFAIL)
    assert (await rig.send(letter(), peer=OTHER_IP))[0] == 250
    assert "dmarc=temperror" in results(rig.only())


@pytest.mark.parametrize(
    "author",
    [
        "x@good.test, y@plain.test",
        "y@plain.test,\r\n x@good.test",
        '"x@good.test" <y@plain.test> <z@plain.test>',
        "x@plain.test\r\nFrom: x@good.test",
        "Good <x@good.test> trailing",
    ],
)
async def test_an_ambiguous_author_is_judged_by_the_strictest_of_its_domains(author: str, rig: Rig) -> None:
    """RFC 7489 s. 6.6.1."""
    code, _ = await rig.send(letter(author), sender="x@plain.test", peer=OTHER_IP)
    assert code == 550


@pytest.mark.parametrize(
    "message",
    [
        "no header at all\r\n",
        "\r\nbody only\r\n",
        "From: <<<>>>@@@\r\n\r\nx\r\n",
        "From: undisclosed:;\r\n\r\n",
        "From:\r\nDKIM-Signature: v=1; a=\r\nARC-Seal: i=x\r\nAuthentication-Results: \r\n\r\n\xff\x80\r\n",
    ],
)
async def test_a_message_without_an_author_is_a_hint(message: str, rig: Rig) -> None:
    """Stored as it came; nothing raises out of a check."""
    code, _ = await rig.send(message.encode("latin-1"))
    assert code == 250
    assert "dmarc=permerror" in results(rig.only())
    assert rig.lines("check_failed") == []


async def test_junk_is_filed_to_junk_from_the_queue_as_well(checked: Start) -> None:
    """A copy that waits for a mailbox keeps its mark."""
    async with checked() as rig:
        await rig.send(letter("x@softie.test"), sender="x@plain.test", peer=OTHER_IP, to=["info@example.test"])
        (copy,) = rig.flow.queued
        assert b"X-Pymx-Junk: " in copy.content.head
        waiting = copy.envelope.with_recipients((Recipient(parse_address(ALICE)),))
        outcomes = await rig.flow.dispatch.deliver_queued(copy.queue_id, waiting, copy.content)
        assert outcomes[0].status == "2.0.0"
        assert rig.only(ALICE, "Junk")
