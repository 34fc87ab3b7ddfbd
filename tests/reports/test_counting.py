"""What is counted for reports: which messages, how alike, and that counting never stands in the way."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import msgspec
import pytest

from pymx.mail.address import Address, parse_address
from pymx.mailauth.dkim.verify import DkimResult
from pymx.mailauth.dmarc.evaluate import DmarcResult
from pymx.mailauth.spf.check import SpfResult
from pymx.reports.aggregate import DkimAuth, Override, Published, Row, SpfAuth
from pymx.reports.error import StoreUnavailable
from pymx.reports.outcome import Judged, dmarc_key
from pymx.reports.received import Received
from pymx.reports.recorder import MAX_KEYS, Key, Recorder
from pymx.reports.store import DAY_S, MAX_ROWS, Full, Store

NOW = 20_000 * DAY_S + 100.0
RECORD = {"v": "DMARC1", "p": "reject", "sp": "quarantine", "adkim": "s", "rua": "mailto:r@good.test"}
FAIL = DmarcResult("fail", "reject", "reject", "good.test", "news.good.test", record=RECORD)


def judged(
    dmarc: DmarcResult = FAIL,
    *,
    refused: bool = True,
    voucher: str = "",
    mail_from: Address | None = None,
    spf: SpfResult | None = None,
) -> tuple[Published, Row] | None:
    key = dmarc_key(
        Judged(
            "192.0.2.1", mail_from, dmarc, spf or SpfResult("fail", "helo", "host.else.test"),
            (DkimResult("pass", "list.test", "k"), DkimResult("none")), refused, voucher,
        ),
        NOW,
    )  # fmt: skip
    if key is None:
        return None
    day, domain, published, row = key
    assert (day, domain) == (20_000, "good.test")
    return msgspec.json.decode(published, type=Published), msgspec.json.decode(row, type=Row)


def test_refused_message_is_counted_with_what_was_found() -> None:
    """RFC 7489 s. 7.2: identifiers, results and what was done."""
    assert judged() == (
        Published("good.test", "reject", "quarantine", adkim="s"),
        Row(
            "192.0.2.1", "news.good.test", "reject", False, False, envelope_from="",
            dkim_auth=(DkimAuth("list.test", "pass", "k"),), spf_auth=(SpfAuth("host.else.test", "fail", "helo"),),
            count=0,
        ),
    )  # fmt: skip


def test_forwarder_that_is_trusted_is_the_reason() -> None:
    """An override: taken although the policy says reject (RFC 7489 s. 7.2, local_policy)."""
    found = judged(refused=False, voucher="list.test")
    assert found is not None
    assert found[1].disposition == "none"
    assert found[1].overrides == (Override("local_policy", "arc=pass, sealed by list.test"),)


def test_pass_has_no_reason_even_if_somebody_vouches() -> None:
    """Nothing was overridden."""
    passed = DmarcResult("pass", "reject", "none", "good.test", "good.test", aligned=("spf",), record=RECORD)
    found = judged(passed, refused=False, voucher="list.test")
    assert found is not None
    assert (found[1].disposition, found[1].spf, found[1].dkim, found[1].overrides) == ("none", True, False, ())


def test_pass_that_another_check_refused_counts_as_pass() -> None:
    """The disposition is DMARC's, not the spam filter's."""
    passed = DmarcResult("pass", "reject", "none", "good.test", "good.test", aligned=("spf",), record=RECORD)
    found = judged(passed, refused=True)
    assert found is not None
    assert found[1].disposition == "none"


def test_message_to_postmaster_is_taken_and_says_so() -> None:
    """What is refused elsewhere goes to Junk there."""
    found = judged(refused=False)
    assert found is not None
    assert found[1].disposition == "quarantine"
    assert found[1].overrides[0].kind == "local_policy"


@pytest.mark.parametrize(("tags", "comment"), [({"pct": "10"}, "pct=10"), ({"t": "y"}, "t=y")])
def test_sampled_out_is_the_reason(tags: Mapping[str, str], comment: str) -> None:
    """RFC 7489 s. 6.6.4."""
    sampled = DmarcResult(
        "fail", "reject", "quarantine", "good.test", "good.test", sampled_out=True, record={**RECORD, **tags}
    )
    found = judged(sampled, refused=False)
    assert found is not None
    assert found[1].disposition == "quarantine"
    assert found[1].overrides == (Override("sampled_out", comment),)


@pytest.mark.parametrize(
    "dmarc",
    [
        DmarcResult("temperror", domain="good.test", record=RECORD),
        DmarcResult("none", header_from="good.test"),
        DmarcResult("permerror", header_from="x"),
        DmarcResult("fail", "reject", "reject", "good.test", "good.test", record={"v": "DMARC1", "p": "reject"}),
    ],
)
def test_what_nobody_wants_to_know_is_not_counted(dmarc: DmarcResult) -> None:
    """No record, no rua, or no result."""
    assert judged(dmarc) is None


def test_envelope_sender_is_only_a_domain() -> None:
    """No addresses of people in reports."""
    found = judged(mail_from=parse_address("Someone.Secret@bücher.test"))
    assert found is not None
    assert found[1].envelope_from == "xn--bcher-kva.test"


# --- the way into the database ------------------------------------------------------------------------------------


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    made = Store(tmp_path / "reports" / "reports.sqlite", max_octets=1 << 20)
    yield made
    await made.aclose()


def key(number: int = 0) -> Key:
    return (20_000, "good.test", "{}", str(number))


async def test_counts_add_up(store: Store) -> None:
    """Also over several writes, by several processes."""
    one, other = Recorder(store, Store.add_dmarc), Recorder(store, Store.add_dmarc)
    for recorder in (one, other, one):
        recorder.add(key())
        recorder.add(key(1))
        await recorder.flush()
    assert sorted(store.dmarc_rows(20_000, "good.test", 10)) == [("{}", "0", 3), ("{}", "1", 3)]


async def test_counts_are_written_by_themselves_and_at_the_end(store: Store) -> None:
    """Every few seconds, and when the process ends."""
    recorder = Recorder(store, Store.add_dmarc, every_s=0.01)
    recorder.start()
    recorder.add(key())
    async with asyncio.timeout(20):
        while not await store.call(lambda s: s.dmarc_rows(20_000, "good.test", 1)):
            await asyncio.sleep(0.01)
    recorder.add(key())
    await recorder.close()
    assert store.dmarc_rows(20_000, "good.test", 1) == [("{}", "0", 2)]


async def test_too_many_different_ones_are_dropped_and_said(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """Memory is bounded; said once an hour."""
    recorder = Recorder(store, Store.add_dmarc)
    for number in range(MAX_KEYS + 100):
        recorder.add(key(number))
    await recorder.flush()
    assert len(store.dmarc_rows(20_000, "good.test", 10_000)) == MAX_KEYS
    assert [r.getMessage() for r in caplog.records] == ["report_results_dropped"]


async def test_a_domain_has_so_many_different_results_a_day(store: Store) -> None:
    """Signatures with selectors made up for each message must not fill the database; those known go on counting."""
    for part in range(0, MAX_ROWS + 1000, 1000):
        lost = store.add_dmarc({key(number): 1 for number in range(part, part + 1000)})
    assert lost == 1000
    assert store.add_dmarc({key(0): 5, key(MAX_ROWS + 5000): 7}) == 7
    assert store.dmarc_rows(20_000, "good.test", 1) == [("{}", "0", 6)]
    assert store.add_dmarc({(20_001, "good.test", "{}", "x"): 1, (20_000, "other.test", "{}", "x"): 1}) == 0


async def test_broken_database_loses_counts_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A directory where the file should be: nothing is raised."""
    (tmp_path / "reports.sqlite").mkdir()
    store = Store(tmp_path / "reports.sqlite", max_octets=1 << 20)
    recorder = Recorder(store, Store.add_dmarc)
    recorder.add(key())
    await recorder.flush()
    assert [r.getMessage() for r in caplog.records] == ["report_results_dropped"]
    await store.aclose()


async def test_damaged_database_is_moved_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Statistics: an empty one is made."""
    path = tmp_path / "reports.sqlite"
    path.write_bytes(b"no database at all" * 1000)
    store = Store(path, max_octets=1 << 20)
    store.add_dmarc({key(): 1})
    assert (tmp_path / "reports.sqlite.damaged").exists()
    assert "reports_damaged" in [r.getMessage() for r in caplog.records]
    await store.aclose()


async def test_database_has_a_size(store: Store) -> None:
    """`max_mb`: counting stops; the oldest received reports go for new ones."""

    def fill() -> None:
        for number in range(100):
            store.add_dmarc({(20_000, f"{number}.test", "{}", f"{number}-{i}" + "x" * 500): 1 for i in range(100)})

    with pytest.raises(Full):
        fill()
    assert (store._path.stat().st_size) < 3 << 20
    with pytest.raises(StoreUnavailable):
        store.add_received(received("a"), b"x")


def received(report_id: str, *, domain: str = "good.test", proof: str = "") -> Received:
    return Received("dmarc", domain, "org", report_id, int(NOW) - 100, int(NOW), int(NOW), proof, 1, 2)


async def test_oldest_reports_go_first(store: Store) -> None:
    """When there is no room any more."""
    for number in range(60):
        assert store.add_received(received(f"{number}"), random.Random(number).randbytes(50_000))
    kept = [int(r.report_id) for r in store.received()]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] == 59
    assert 0 not in kept
    document = store.document(store.received(limit=1)[0].id)
    assert document == random.Random(59).randbytes(50_000)


async def test_reports_without_proof_go_before_those_with(store: Store) -> None:
    """A flood of made-up reports does not push out the true ones."""
    assert store.add_received(received("true", proof="dkim=pass dmarc=pass google.com"), b"x")
    for number in range(60):
        store.add_received(received(f"{number}"), random.Random(number).randbytes(50_000))
    assert "true" in {r.report_id for r in store.received()}


async def test_a_report_is_kept_once(store: Store) -> None:
    """Reports come twice: after a crash of their sender, or to two addresses."""
    assert store.add_received(received("1"), b"x")
    assert not store.add_received(received("1"), b"x")
    assert store.add_received(received("1", domain="other.test"), b"x")


async def test_old_things_are_forgotten(store: Store) -> None:
    """`keep_days` for reports, thirty days for counts."""
    store.add_dmarc({key(): 1})
    store.add_received(received("1"), b"x")
    assert store.prune(now=NOW + 29 * DAY_S, received_days=90, counted_days=30) == 0
    assert store.prune(now=NOW + 31 * DAY_S, received_days=90, counted_days=30) == 1
    assert store.prune(now=NOW + 91 * DAY_S, received_days=90, counted_days=30) == 1
    assert store.received() == []


async def test_another_version_is_not_touched_by_two(tmp_path: Path) -> None:
    """Two processes that make the database at once make it once."""
    stores = [Store(tmp_path / "reports.sqlite", max_octets=1 << 20) for _ in range(4)]
    await asyncio.gather(*(store.call(lambda s: s.add_dmarc({key(): 1})) for store in stores))
    assert stores[0].dmarc_rows(20_000, "good.test", 1) == [("{}", "0", 4)]
    with sqlite3.connect(tmp_path / "reports.sqlite") as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    db.close()
    for store in stores:
        await store.aclose()
