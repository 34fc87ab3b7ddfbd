"""Greylisting at RCPT: only who has hints against him, and only once."""

from __future__ import annotations

import asyncio

from checks_rig import ALICE, OTHER_IP, Rig, Start, letter

from pymx.config.model import Checks

BOB = "bob@example.test"
GREY = Checks(greylist=True, greylist_delay_s=1, greylist_window_s=1000)


async def until_let_in(rig: Rig, *, to: str = ALICE, sender: str = "x@plain.test") -> int:
    """How many tries it takes from the bad host."""
    tries = 0
    async with asyncio.timeout(20):
        while True:
            tries += 1
            code, text = await rig.send(letter("x@plain.test"), sender=sender, to=[to], peer=OTHER_IP)
            if code == 250:
                return tries
            assert (code, text) == (451, "4.7.1 Greylisted, try again in some minutes")
            await asyncio.sleep(0.05)


async def test_who_looks_good_is_not_delayed(checked: Start) -> None:
    async with checked(checks=GREY) as rig:
        assert (await rig.send(letter()))[0] == 250
        (line,) = rig.lines("message_checked")
        assert "greylist=not-asked" in line["check"]


async def test_who_has_hints_against_him_is_let_in_when_he_comes_back(checked: Start) -> None:
    """451 at RCPT, before the message is sent; then he is known, for other senders of the domain and recipients too."""
    async with checked(checks=GREY) as rig:
        assert await until_let_in(rig) > 1
        assert len(rig.folder(ALICE)) + len(rig.folder(ALICE, "Junk")) == 1
        refused = rig.lines("rcpt_refused")
        assert refused[0]["reason"].startswith("greylist: 127.0.0.0/24 has hints of ")
        assert "greylist=passed" in rig.lines("message_checked")[0]["check"]
        assert await until_let_in(rig, to=BOB, sender="y@plain.test") == 1


async def test_one_recipient_is_delayed_without_the_others(checked: Start) -> None:
    """postmaster@ is always open; the message goes to those who were accepted."""
    async with checked(checks=GREY) as rig:
        to = [ALICE, "postmaster@example.test"]
        assert (await rig.send(letter("x@plain.test"), sender="x@plain.test", to=to, peer=OTHER_IP))[0] == 250
        (line,) = rig.lines("message_checked")
        assert line["rcpt_to"] == "postmaster@example.test"


async def test_a_file_that_can_not_be_used_delays_nobody(checked: Start) -> None:
    async with checked(checks=GREY) as rig:
        (rig.directory / "greylist.sqlite").mkdir()
        for _ in range(2):
            assert (await rig.send(letter("x@plain.test"), sender="x@plain.test", peer=OTHER_IP))[0] == 250
        assert len(rig.lines("greylist_unavailable")) == 1


async def test_it_is_off_by_default(checked: Start) -> None:
    async with checked() as rig:
        assert (await rig.send(letter("x@plain.test"), sender="x@plain.test", peer=OTHER_IP))[0] == 250
        assert not (rig.directory / "greylist.sqlite").exists()
