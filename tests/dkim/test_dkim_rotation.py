"""Keys that replace each other: by a real name server, a real resolver, and a clock that jumps."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import dkim
import pytest
from support.dns_server import DnsServer, Failure

from pymx.config.model import Dkim, Dns
from pymx.mailauth.dkim import keys, rotation
from pymx.mailauth.dkim.keys import KeyUnusable, SigningKey
from pymx.mailauth.dkim.rotation import Happened, advance, begin, states
from pymx.mailauth.dkim.sign import Signer
from pymx.mta.rotate import Rotation
from pymx.resolver.resolver import Resolver
from pymx.spool import Content

DOMAIN = "example.test"
START = 1_795_000_000.0
HOUR_S, DAY_S = 3600, 86400
MESSAGE = Content.from_bytes(b"From: alice@example.test\r\nSubject: hi\r\n\r\nhello\r\n")


@dataclass
class Site:
    """A domain's keys, the name server that has its records, and the time."""

    directory: Path
    dns: DnsServer
    resolver: Resolver
    now: float = START
    said: list[tuple[str, str]] = field(default_factory=list)

    def publish(self, key: SigningKey, record: str = "") -> None:
        text = record or key.record
        self.dns.add(key.record_name, "TXT", " ".join(f'"{text[i : i + 255]}"' for i in range(0, len(text), 255)))

    async def after(self, seconds: float) -> list[tuple[Happened, str]]:
        """What the job does then."""
        self.now += seconds
        self.resolver.forget()
        settings = Dkim()
        steps = await advance(
            self.resolver, self.directory, DOMAIN,
            now=self.now, overlap_s=settings.overlap_s, settle_s=settings.settle_s,
        )  # fmt: skip
        return [(step.happened, step.selector) for step in steps]

    def rotate(self) -> SigningKey:
        (state,) = begin(self.directory, DOMAIN, now=self.now)
        assert state.key is not None
        return state.key

    def in_use(self) -> list[str]:
        return [key.selector for key in keys.active_keys(self.directory, DOMAIN)]

    def files(self) -> set[str]:
        return {path.name for path in (self.directory / DOMAIN).glob("*.pem")}


@pytest.fixture
def site(tmp_path: Path, dns_server: DnsServer) -> Site:
    found = Site(tmp_path / "dkim", dns_server, Resolver(Dns(nameservers=[dns_server.spec], timeout_s=2)))
    found.publish(keys.generate(found.directory, DOMAIN, "old"))
    return found


async def test_a_key_is_replaced_from_the_first_step_to_the_last(site: Site) -> None:
    """Made → published → seen → used → the old one retired after seven days → its record removed."""
    new = site.rotate()
    assert await site.after(HOUR_S) == []
    assert site.in_use() == ["old"]
    site.publish(new)
    assert await site.after(HOUR_S) == [(Happened.SEEN, new.selector)]
    assert site.in_use() == ["old"]  # secondaries may lag
    assert await site.after(HOUR_S / 2) == []
    assert await site.after(HOUR_S / 2) == [(Happened.USED, new.selector)]
    assert site.in_use() == [new.selector]
    assert site.files() == {"old.pem", f"{new.selector}.pem"}
    assert await site.after(7 * DAY_S - 1) == []
    assert await site.after(1) == [(Happened.RETIRED, "old")]
    assert site.files() == {f"{new.selector}.pem"}
    assert await site.after(DAY_S) == []
    (_, retired) = states(site.directory, DOMAIN)
    assert (retired.selector, retired.key, bool(retired.dates.retired)) == ("old", None, True)
    site.dns.remove("old._domainkey.example.test")
    assert await site.after(DAY_S) == [(Happened.GONE, "old")]
    assert await site.after(365 * DAY_S) == []
    (only,) = states(site.directory, DOMAIN)
    assert (only.selector, only.active) == (new.selector, True)
    assert [only.dates.made, only.dates.seen, only.dates.used] == [START, START + 2 * HOUR_S, START + 3 * HOUR_S]


async def test_a_running_signer_changes_over_and_every_signature_verifies(site: Site) -> None:
    """With the records that are in DNS at each moment, also for mail that was signed just before."""
    known = {f"{k.record_name}.".encode(): k.record.encode() for k in keys.load_all(site.directory, DOMAIN)}
    signed: list[bytes] = []

    def sign() -> bytes:
        signed.append(MESSAGE.prepended(Signer(site.directory).sign(DOMAIN, MESSAGE)).read())
        return signed[-1]

    assert b"s=old;" in sign()
    new = site.rotate()
    assert b"s=old;" in sign()
    site.publish(new)
    known[f"{new.record_name}.".encode()] = new.record.encode()
    await site.after(HOUR_S)
    await site.after(HOUR_S)
    assert b"s=" + new.selector.encode() in sign()
    await site.after(6 * DAY_S)
    assert all(dkim.verify(message, dnsfunc=lambda name, timeout=5: known.get(name)) for message in signed)


async def test_both_algorithms_are_replaced_each_when_its_record_is_there(site: Site) -> None:
    site.publish(keys.generate(site.directory, DOMAIN, "old-ed", algorithm="ed25519"))
    rsa, ed = (
        state.key
        for state in sorted(begin(site.directory, DOMAIN, now=site.now), key=lambda s: s.dates.algorithm != "rsa")
    )
    assert rsa
    assert ed
    site.publish(ed)
    await site.after(HOUR_S)
    assert await site.after(HOUR_S) == [(Happened.USED, ed.selector)]
    assert site.in_use() == ["old", ed.selector]
    site.publish(rsa)
    await site.after(HOUR_S)
    assert await site.after(HOUR_S) == [(Happened.USED, rsa.selector)]
    assert site.in_use() == [rsa.selector, ed.selector]
    assert {s for _, s in await site.after(8 * DAY_S)} == {"old", "old-ed"}


@pytest.mark.parametrize(
    "record",
    [
        "v=DKIM1; k=rsa; p=",
        "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
        "v=spf1 -all",
        "p=AAAA",
    ],
)
async def test_a_wrong_record_is_no_record(record: str, site: Site) -> None:
    """Revoked, another key's, cut short by a provider's form: nobody could verify what the key signs."""
    new = site.rotate()
    site.publish(new, record)
    for _ in range(3):
        assert await site.after(HOUR_S) == []
    assert site.in_use() == ["old"]


async def test_a_record_cut_short_is_no_record(site: Site) -> None:
    new = site.rotate()
    site.publish(new, new.record[:255])
    assert await site.after(HOUR_S) == []
    site.dns.remove(new.record_name)
    site.publish(new, new.record.replace("v=DKIM1; ", "").replace("p=", "p=  "))
    assert await site.after(HOUR_S) == [(Happened.SEEN, new.selector)]


async def test_a_record_that_vanishes_again_has_to_settle_anew(site: Site) -> None:
    new = site.rotate()
    site.publish(new)
    await site.after(HOUR_S)
    site.dns.remove(new.record_name)
    assert await site.after(HOUR_S) == []
    site.publish(new)
    assert await site.after(HOUR_S) == [(Happened.SEEN, new.selector)]
    assert await site.after(HOUR_S) == [(Happened.USED, new.selector)]


@pytest.mark.parametrize("failure", [Failure.SERVFAIL, Failure.REFUSED, Failure.GARBAGE])
async def test_nothing_changes_while_dns_fails(failure: Failure, site: Site) -> None:
    new = site.rotate()
    site.publish(new)
    await site.after(HOUR_S)
    site.dns.fail(new.record_name, failure)
    assert await site.after(HOUR_S) == []
    site.dns.fail(new.record_name, None)
    assert await site.after(1) == [(Happened.USED, new.selector)]
    site.dns.fail("old._domainkey.example.test", failure)
    assert await site.after(7 * DAY_S) == [(Happened.RETIRED, "old")]
    assert await site.after(DAY_S) == []  # is it gone? nobody knows


async def test_rotate_again_gives_the_key_that_waits(site: Site) -> None:
    assert site.rotate().selector == site.rotate().selector
    assert len(site.files()) == 2


async def test_two_rotations_in_one_month_have_different_selectors(site: Site) -> None:
    """Also from a retired one whose record may still be in DNS."""
    selectors = set()
    for _ in range(3):
        new = site.rotate()
        site.publish(new)
        await site.after(HOUR_S)
        await site.after(HOUR_S)
        selectors.add(new.selector)
    assert len(selectors) == 3
    await site.after(8 * DAY_S)
    assert site.files() == {f"{site.in_use()[0]}.pem"}
    assert site.rotate().selector not in selectors


async def test_the_administrator_overrules(site: Site) -> None:
    """`dkim use`: the old key is taken again during the overlap, so it is not deleted after it."""
    new = site.rotate()
    site.publish(new)
    await site.after(HOUR_S)
    await site.after(HOUR_S)
    rotation.activate(site.directory, DOMAIN, ["old"], now=site.now)
    assert site.in_use() == ["old"]
    assert await site.after(30 * DAY_S) == []
    assert site.files() == {"old.pem", f"{new.selector}.pem"}
    other = rotation.begin(site.directory, DOMAIN, now=site.now)[0].selector
    rotation.activate(site.directory, DOMAIN, [other], now=site.now)  # without waiting
    assert await site.after(30 * DAY_S) == [(Happened.MISSING, other)]
    with pytest.raises(KeyUnusable, match="no key of selector"):
        rotation.activate(site.directory, "none.test", ["x"], now=site.now)


def test_a_domain_without_keys_gets_one_that_signs_at_once(tmp_path: Path) -> None:
    (state,) = begin(tmp_path, DOMAIN, now=START)
    assert state.active
    assert not state.dates.waiting
    assert re.fullmatch(r"20\d{4}rsa", state.selector)


def test_keys_and_dates_are_for_nobody_else_to_read(site: Site) -> None:
    (site.directory / DOMAIN / "rotation.json.tmp").touch(mode=0o666)  # left by somebody
    site.rotate()
    for path in (site.directory / DOMAIN).iterdir():
        assert path.stat().st_mode & 0o777 == 0o600, path
    assert (site.directory / DOMAIN).stat().st_mode & 0o777 == 0o700
    assert "PRIVATE" not in repr(states(site.directory, DOMAIN))


def test_damaged_dates_are_an_error_that_says_what_to_do(site: Site) -> None:
    (site.directory / DOMAIN / "rotation.json").write_text("{")
    with pytest.raises(KeyUnusable, match=r"rotation\.json.*remove it"):
        states(site.directory, DOMAIN)


@pytest.mark.parametrize("killed", ["before the dates", "before the change", "after the change"])
async def test_a_kill_in_the_change_is_made_good_by_the_next_look(killed: str, site: Site) -> None:
    """At every moment there is a key to sign with, and in the end all is as if nothing had happened."""
    new = site.rotate()
    site.publish(new)
    await site.after(HOUR_S)
    folder = site.directory / DOMAIN
    in_the_way = folder / ("rotation.json.tmp" if killed == "before the dates" else "active.tmp")
    in_the_way.mkdir()  # where the next file would be written
    with pytest.raises(OSError, match="directory"):
        await site.after(HOUR_S)
    in_the_way.rmdir()
    assert site.in_use() == ["old"]
    if killed == "after the change":
        keys.activate(site.directory, DOMAIN, [new.selector])
    assert await site.after(HOUR_S) == [(Happened.USED, new.selector)]
    assert site.in_use() == [new.selector]
    assert await site.after(7 * DAY_S) == [(Happened.RETIRED, "old")]
    assert site.files() == {f"{new.selector}.pem"}


async def test_a_key_file_that_outlives_its_retirement_goes_at_the_next_look(site: Site) -> None:
    """Killed between the note and the deletion."""
    new = site.rotate()
    site.publish(new)
    await site.after(HOUR_S)
    await site.after(HOUR_S)
    pem = (site.directory / DOMAIN / "old.pem").read_bytes()
    await site.after(7 * DAY_S)
    (site.directory / DOMAIN / "old.pem").write_bytes(pem)
    assert await site.after(HOUR_S) == []
    assert site.files() == {f"{new.selector}.pem"}
    site.dns.remove("old._domainkey.example.test")
    assert await site.after(HOUR_S) == [(Happened.GONE, "old")]


# --- the job ---------------------------------------------------------------------------------------------------------


async def test_the_job_says_each_step_once_and_what_is_wrong_once_a_day(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="pymx")
    job = Rotation(site.resolver, site.directory, Dkim(), clock=lambda: site.now)
    keys.generate(site.directory, "unpublished.test", "k")
    (site.directory / "broken.test").mkdir()
    (site.directory / "broken.test" / "k.pem").write_text("not a key")
    (site.directory / DOMAIN / "old.pem").chmod(0o644)
    new = site.rotate()
    site.publish(new)

    async def look(seconds: float) -> list[tuple[str, str]]:
        caplog.clear()
        site.now += seconds
        site.resolver.forget()
        await job.look()
        return [(r.message, str(r.fields.get("key", ""))) for r in caplog.records if r.name == "pymx.mta"]  # type: ignore[attr-defined]

    first = await look(HOUR_S)
    assert ("dkim_record_seen", new.record_name) in first
    assert ("dkim_record_missing", "k._domainkey.unpublished.test") in first
    assert {event for event, _ in first} == {
        "dkim_record_seen", "dkim_record_missing", "dkim_key_unusable", "dkim_key_readable",
    }  # fmt: skip
    assert await look(HOUR_S) == [("dkim_key_used", new.record_name)]
    assert await look(HOUR_S) == []
    again = await look(DAY_S)
    assert {event for event, _ in again} == {"dkim_record_missing", "dkim_key_unusable", "dkim_key_readable"}
    assert ("dkim_key_retired", "old._domainkey.example.test") in await look(7 * DAY_S)
    private = (site.directory / DOMAIN / f"{new.selector}.pem").read_text().splitlines()[1]
    assert private not in json.dumps([str(r.__dict__) for r in caplog.records])
