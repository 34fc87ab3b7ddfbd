"""What runs here: the server itself, its settings, the accounts database, rspamd, the queue, bans, backups."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime

from pymx.accounts.account import AccountsError
from pymx.accounts.banrules import Rules
from pymx.accounts.limitstate import FILE_NAME, LimitState, LimitStateError
from pymx.accounts.registry import Registry
from pymx.admin.health.finding import Finding, fail, info, ok, warn
from pymx.admin.health.subject import Subject
from pymx.admin.times import duration
from pymx.config.check import check as check_config
from pymx.queue import browse
from pymx.queue.browse import Selection
from pymx.queue.state import State, StateDamaged

_HOUR_S, _DAY_S = 3600.0, 86_400.0
_OLD_S, _VERY_OLD_S = 6 * _HOUR_S, 2 * _DAY_S
_MANY = 1000
_BACKUP_S, _NO_BACKUP_S = 2 * _DAY_S, 7 * _DAY_S
_RSPAMD_S = 5.0
_DAMAGED_IN = (".", "queue", "events", "reports")
_DAMAGED = {
    "outbound-tls.": "MTA-STS policies of other domains were forgotten: until they are fetched again mail to these may "
    "go unprotected, as to a domain never seen before (RFC 8461 s. 10.2)",
    "state.sqlite": "it was rebuilt from the messages; holds and the history of attempts are lost",
    "forwarding.": "bounces to long senders of forwarded mail don't come back",
    "limits.": "bans and counts are forgotten",
}


def check(subject: Subject) -> Iterator[Finding]:
    """Blocking."""
    for problem in check_config(subject.config):
        yield fail(
            f"config:{problem.partition(' =')[0]}",
            f"the configuration is wrong: {problem}",
            "pymxctl check-config",
            "pymx neither starts with it nor reloads it",
        )
    yield server(subject)
    yield from _database(subject)
    yield from _queue(subject)
    yield from _bans(subject)
    yield from _backup(subject)
    yield from _damaged(subject)


def server(subject: Subject) -> Finding:
    """Does it run, or would it when somebody connects?"""
    if subject.running:
        return ok("server", "pymx runs")
    start = "systemctl start pymx"
    if subject.activation.waits:
        units = ", ".join(subject.activation.units)
        text = f"pymx is stopped; systemd listens in its place ({units}) and starts it when somebody connects"
        return warn("server", text, start, "until then nothing in the queue is delivered")
    why = "no mail is accepted, and nobody can read theirs"
    if subject.activation.held and subject.activation.state == "failed":
        why = "systemd still listens in its place and tries again when somebody connects; until it starts they wait"
    return fail("server", "pymx does not run", f"{start}; journalctl -u pymx says why it ended", why)


def _database(subject: Subject) -> Iterator[Finding]:
    registry = Registry(subject.config.database)
    try:
        domains = registry.domains()
        users = registry.users()
    except AccountsError as e:
        yield fail("database", f"the accounts database can't be used: {e.reason}", "see [database]; pymxctl migrate",
                   "nobody can log in, and mail is put off")  # fmt: skip
        return
    finally:
        registry.close()
    if not domains or not users:
        remedy = "pymxctl domain add DOMAIN" if not domains else f"pymxctl user add USER@{domains[0].name}"
        yield warn("database", f"there is no {'user' if domains else 'domain'} yet", remedy, "all mail is refused")
    else:
        yield ok("database", f"the accounts database answers: {len(domains)} domains, {len(users)} users")
    if users and not subject.config.accounts.postmaster and not any(u.email.startswith("postmaster@") for u in users):
        text = "nobody is said to read postmaster@ and abuse@; every domain must have them (RFC 2142)"
        yield warn(
            "postmaster",
            text,
            f'[accounts] postmaster = "{users[0].email}"',
            "complaints, and reports on what is wrong with our mail, are lost",
        )


def _queue(subject: Subject) -> Iterator[Finding]:
    path = subject.data_dir / "queue" / "state.sqlite"
    if not path.exists():
        yield info("queue", "there is no queue yet")
        return
    state = State(path)
    try:
        state.open()
        totals = browse.totals(state)
        first = browse.lines(state, Selection(), limit=1)
    except (StateDamaged, OSError) as e:
        yield fail(
            "queue", f"the queue can't be read: {e}", "pymxctl queue rebuild", "mail that waits in it is not delivered"
        )
        return
    finally:
        state.close()
    age_s = subject.now - totals.oldest_s if totals.messages else 0.0
    reason = f": {first[0].destination}: {first[0].reason}" if first and first[0].reason else ""
    said = f"{totals.messages} messages wait, the oldest for {duration(max(age_s, 0))}{reason}"
    remedy = "pymxctl queue list; pymxctl queue show ID says why"
    if age_s >= _VERY_OLD_S:
        yield fail("queue", said, remedy, "after five days the sender gets it back")
    elif age_s >= _OLD_S or totals.messages >= _MANY:
        yield warn("queue", said, remedy, "if it goes on, the senders get it back")
    else:
        yield ok("queue", said if totals.messages else "the queue is empty")
    if totals.deliveries["held"]:
        yield info("queue:held", f"{totals.deliveries['held']} deliveries are held by hand", "pymxctl queue release ID")


def _bans(subject: Subject) -> Iterator[Finding]:
    path = subject.data_dir / FILE_NAME
    if not path.exists():
        return
    try:
        state = LimitState(path, Rules.of(subject.config.limits))
    except LimitStateError as e:
        yield warn(
            "bans",
            f"the file of bans can't be read: {e}",
            f"a server that runs begins a new one; or remove {path}",
            "who guesses passwords may not be kept out",
        )
        return
    try:
        banned = {ban.network for ban in state.bans(subject.now)}
        known = banned & state.known_networks(subject.now)
    finally:
        state.close()
    if known:
        text = f"an address from which one of our users logged in lately is banned: {', '.join(sorted(known))}"
        yield warn(
            "bans",
            text,
            f"pymxctl bans explain {min(known)}; pymxctl bans remove {min(known)}",
            "nobody there can log in, that user neither",
        )
    else:
        yield ok("bans", f"{len(banned)} addresses can't log in now" if banned else "nobody is banned")


def _damaged(subject: Subject) -> Iterator[Finding]:
    """What the server has found damaged, and moved aside to begin anew."""
    for path in sorted(path for directory in _DAMAGED_IN for path in (subject.data_dir / directory).glob("*.damaged*")):
        if path.name.endswith(("-wal", "-shm")):
            continue
        try:
            age_s = subject.now - path.stat().st_ctime  # when it got that name
        except FileNotFoundError:
            continue
        yield warn(
            f"damaged:{path}",
            f"{path}: the server found it damaged and began anew, {duration(max(age_s, 0))} ago",
            f"is the disk well (dmesg, smartctl)? then: rm {path}*",
            next((why for name, why in _DAMAGED.items() if path.name.startswith(name)), "what was in it is forgotten"),
        )


def _backup(subject: Subject) -> Iterator[Finding]:
    """What `pymxctl backup` has left: {"at": Unix time or ISO 8601, "ok": …, "target": …}."""
    path = subject.data_dir / "backup" / "last.json"
    remedy = "[backup] target in pymx.toml, then: systemctl enable --now pymx-backup.timer"
    try:
        last = json.loads(path.read_bytes())
        at, good, target = _unix(last["at"]), bool(last["ok"]), str(last.get("target", ""))
        reason = str(last.get("reason", ""))
    except FileNotFoundError:
        yield warn("backup", "no backup was ever made", remedy, "when the disk breaks, all mail is lost")
        return
    except (OSError, ValueError, KeyError, TypeError):
        yield warn(
            "backup",
            f"{path} can't be read: nobody knows when the last backup was made",
            remedy,
            "when the disk breaks, what is not in a backup is lost",
        )
        return
    age_s = max(subject.now - at, 0.0)
    if not good:
        said = f"the last backup, {duration(age_s)} ago, failed ({target})" + (f": {reason}" if reason else "")
        yield fail(
            "backup",
            said,
            "journalctl -u pymx-backup; pymxctl backup create tries again",
            "when the disk breaks, what came since the last good one is lost",
        )
    elif age_s >= _NO_BACKUP_S:
        yield fail(
            "backup",
            f"the last backup was made {duration(age_s)} ago ({target})",
            remedy,
            "when the disk breaks, what came since then is lost",
        )
    elif age_s >= _BACKUP_S:
        yield warn(
            "backup",
            f"the last backup was made {duration(age_s)} ago ({target})",
            remedy,
            "when the disk breaks, what came since then is lost",
        )
    else:
        yield ok("backup", f"the last backup was made {duration(age_s)} ago ({target})")


def _unix(value: object) -> float:
    if isinstance(value, int | float):
        return float(value)
    found = datetime.fromisoformat(str(value))
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


async def rspamd(subject: Subject) -> list[Finding]:
    url = subject.config.rspamd.url.rstrip("/")
    if not url:
        return []
    try:
        answer = await asyncio.to_thread(_ping, f"{url}/ping")
    except (OSError, urllib.error.URLError, ValueError) as e:
        reason = getattr(e, "reason", e)
        action = {"accept": "is accepted unfiltered", "junk": "goes to Junk", "defer": "is put off"}
        why = f"meanwhile mail {action[subject.config.rspamd.when_down]}"
        return [fail("rspamd", f"rspamd does not answer at {url}: {reason}", "systemctl restart rspamd", why)]
    if answer.strip() != b"pong":
        return [
            warn(
                "rspamd",
                f"at {url} is something else than rspamd",
                "see [rspamd] url",
                "incoming mail is not filtered by rspamd",
            )
        ]
    return [ok("rspamd", f"rspamd answers at {url}")]


def _ping(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=_RSPAMD_S) as response:  # noqa: S310  # http or https, as the config is checked
        return bytes(response.read(100))
