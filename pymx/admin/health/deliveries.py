"""Deliveries to others, by provider: when was the last good one, and has one failed since?

From the store of events, so as far back as that reaches (`[events] keep_days`). A provider that was not written to has
nothing said of it; others are those of the queue's table, or else the organization of the mail server.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pymx.admin.health.finding import Finding, fail, info, ok, warn
from pymx.admin.health.subject import Subject
from pymx.admin.times import duration
from pymx.events.event import Event
from pymx.events.keeping import store_path
from pymx.events.store import EventStore, StoreError
from pymx.mailauth.dmarc.organization import registrable_domain

_SINCE_S = 14 * 86_400.0
_MAX_EVENTS = 50_000
_LONG_S = 86_400.0
_SHOWN = 20
_LOCAL = "local"


@dataclass(slots=True)
class _Account:
    """Times are Unix seconds; 0 = never."""

    good_s: float = 0.0
    bad_s: float = 0.0
    first_bad_s: float = 0.0  # since the last good one
    failures: int = 0
    reply: str = ""


def check(subject: Subject) -> Iterator[Finding]:
    """Blocking."""
    store = EventStore(store_path(subject.data_dir))
    try:
        store.open_to_read()
        events = store.containing(["delivery_attempt"], since_s=subject.now - _SINCE_S, limit=_MAX_EVENTS)
    except FileNotFoundError:
        yield info("delivery", "there is no record of deliveries yet")
        return
    except (StoreError, OSError) as e:
        yield warn(
            "delivery",
            f"the record of deliveries can't be read: {e}",
            "pymxctl trace says more",
            "nobody knows whether mail reaches the big providers",
        )
        return
    finally:
        store.close()
    accounts = _accounts(reversed(events))
    if not accounts:
        yield info("delivery", "nothing was sent to others in the last two weeks")
    for name, account in sorted(accounts.items(), key=lambda item: -max(item[1].good_s, item[1].bad_s))[:_SHOWN]:
        yield _judge(name, account, subject.now)


def _accounts(events: Iterator[Event]) -> dict[str, _Account]:
    """By provider; `events` are in order of time."""
    accounts: dict[str, _Account] = {}
    for event in events:
        if event.name != "delivery_attempt" or event.text("provider") == _LOCAL:
            continue
        name = event.text("provider") or _organization(event)
        account = accounts.setdefault(name, _Account())
        if event.text("verdict") == "delivered":
            account.good_s, account.failures, account.first_bad_s = event.at_s, 0, 0.0
        else:
            account.bad_s = event.at_s
            account.first_bad_s = account.first_bad_s or event.at_s
            account.failures += 1
            account.reply = event.text("reply") or event.text("reason")
    return accounts


def _organization(event: Event) -> str:
    host = event.text("mx") or event.text("rcpt_to").rpartition("@")[2]
    return registrable_domain(host.lower()) or host.lower()


def _judge(name: str, account: _Account, now: float) -> Finding:
    check = f"delivery:{name}"
    last = f"the last delivery to {name} was {duration(now - account.good_s)} ago" if account.good_s else ""
    if not account.failures:
        return ok(check, last)
    tries = f"{account.failures} {'try' if account.failures == 1 else 'tries'} since then failed" if last else (
        f"{account.failures} {'try' if account.failures == 1 else 'tries'} to deliver to {name} failed"
    )  # fmt: skip
    said = ", ".join(filter(None, (last, tries))) + (f": {account.reply[:200]}" if account.reply else "")
    remedy = "pymxctl log --warnings; pymxctl trace ID says what the reply means"
    if now - account.first_bad_s >= _LONG_S and account.failures > 1:
        return fail(check, said, remedy, f"no mail reaches {name} for a day or more")
    return (
        warn(check, said, remedy, "mail to it waits, and goes back to its senders in the end")
        if account.failures > 1
        else info(check, said, remedy)
    )
