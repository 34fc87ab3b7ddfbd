"""What limits and bans remember, in one small SQLite file that all processes and pymxctl share.

`<data_dir>/limits.sqlite`, 0600, WAL, synchronous NORMAL: what was committed outlives kill -9; a power cut may take the
last second, which is no loss worth a sync per login. Blocking: only a thread of its own and pymxctl call it.

    guess    one row per network, account and wrong password (16 bits of an HMAC under a key of this file)
    login    when an account was last logged in to from a network; of an IPv6 /64, guess and login have a second row
             for its /48
    ban      one row per network that is or was banned; `level` counts its bans
    rate     connections, messages, recipients of a network, by minute or hour
    sent     messages and new recipients of an account, by hour
    written  whom an account wrote to (64 bits of an HMAC)
    notice   which notice was given when, so that it is given once

A damaged file is moved aside and begun anew: bans are forgotten, nothing else. Who has it open sees by `is_current`
that another process did so, or that an administrator removed it. Errors: LimitStateError.

Times are those of the clock, and after it was wrong: what lies ahead then is taken for of now (`tidy`), so that nothing
is kept longer than it would have been.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import random
import secrets
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pymx.accounts.banrules import FORGIVEN_S, Rules, tag
from pymx.events.store import make_file, to_wal
from pymx.mail.peer import is_within, site_network

FILE_NAME = "limits.sqlite"
LimitStateError = sqlite3.Error
_VERSION = 1
_BUSY_S = 5.0
_BUSY_STILL_S = 0.2  # once it was in vain: whoever waits here keeps logins waiting
_HOUR_S = 3600
_DAY_HOURS = 24
_WRITTEN_S = 366 * 86_400  # so long an account is known to have written to somebody
_MAX_ROWS = 200_000  # of guesses and of written: the oldest go first
_RATE_S = 2 * _HOUR_S
_AHEAD_S = 600  # further ahead is nothing that was written by a right clock

_SCHEMA = """
CREATE TABLE secret(id INTEGER PRIMARY KEY CHECK (id = 1), key BLOB NOT NULL);
CREATE TABLE guess(
  network TEXT NOT NULL, account TEXT NOT NULL, tag INTEGER NOT NULL, first_s REAL NOT NULL, last_s REAL NOT NULL,
  times INTEGER NOT NULL, PRIMARY KEY (network, account, tag)) WITHOUT ROWID;
CREATE INDEX guess_account ON guess(account);
CREATE INDEX guess_last ON guess(last_s);
CREATE TABLE login(
  network TEXT NOT NULL, account TEXT NOT NULL, last_s REAL NOT NULL, PRIMARY KEY (network, account)) WITHOUT ROWID;
CREATE INDEX login_account ON login(account);
CREATE TABLE ban(
  network TEXT PRIMARY KEY, since_s REAL NOT NULL, until_s REAL NOT NULL, level INTEGER NOT NULL,
  manual INTEGER NOT NULL, reason TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE rate(
  kind TEXT NOT NULL, network TEXT NOT NULL, since_s INTEGER NOT NULL, count INTEGER NOT NULL,
  PRIMARY KEY (kind, network, since_s)) WITHOUT ROWID;
CREATE TABLE sent(
  account TEXT NOT NULL, hour INTEGER NOT NULL, messages INTEGER NOT NULL, recipients INTEGER NOT NULL,
  PRIMARY KEY (account, hour)) WITHOUT ROWID;
CREATE TABLE written(
  account TEXT NOT NULL, recipient BLOB NOT NULL, last_s REAL NOT NULL, PRIMARY KEY (account, recipient)) WITHOUT ROWID;
CREATE INDEX written_last ON written(last_s);
CREATE TABLE notice(
  account TEXT NOT NULL, about TEXT NOT NULL, at_s REAL NOT NULL, PRIMARY KEY (account, about)) WITHOUT ROWID;
"""

_NO_GUESS = -1  # the tag of a password that can't be judged: it is answered as late as others, and counts for no ban
_COUNTED = """
FROM guess WHERE network = :network AND tag >= 0 AND last_s > :since AND NOT EXISTS (
  SELECT 1 FROM login WHERE login.network = guess.network AND login.account = guess.account AND login.last_s > :good)
"""


@dataclass(frozen=True, slots=True)
class Ban:
    """A ban. `accounts` are those that may be logged in to from there all the same; none with a manual one."""

    network: str
    since_s: float
    until_s: float
    level: int
    manual: bool
    reason: str
    accounts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """What a wrong password leads to. `ban` is the ban that it earned, if it did, `site_ban` that of its IPv6 /48."""

    times: int  # wrong passwords of the network within the window, repeated ones too
    distinct: int  # those that count for a ban
    account_guesses: int
    ban: Ban | None
    distinct_in_site: int = 0
    site_ban: Ban | None = None


@dataclass(frozen=True, slots=True)
class Guesses:
    """Wrong passwords from a network for an account, for `pymxctl bans explain`."""

    network: str
    account: str
    distinct: int
    times: int
    first_s: float
    last_s: float


@dataclass(frozen=True, slots=True)
class Sent:
    """What an account sent within 24 hours."""

    messages: int
    new_recipients: int
    oldest_hour: int  # the hour whose end frees the first of it; 0 when there is nothing


class LimitState:
    """An open file. Not for use by several threads at the same time."""

    def __init__(self, path: Path, rules: Rules) -> None:
        """Raises LimitStateError, OSError."""
        self.path = path
        self.rules = rules
        self.moved: Path | None = None  # where a damaged file went
        try:
            self._db, self._key = _open(path)
        except sqlite3.OperationalError:
            raise  # busy, no room, not permitted: the file may be good
        except sqlite3.DatabaseError:
            self.moved = _move_aside(path)
            self._db, self._key = _open(path)
        self._inode = path.stat().st_ino
        self._patience_s = _BUSY_S

    def close(self) -> None:
        self._db.close()

    def is_current(self) -> bool:
        """Is it still the file of that name?"""
        try:
            return self.path.stat().st_ino == self._inode
        except OSError:
            return False

    def abandon(self) -> Path | None:
        """Close a file that proved to be damaged, and move it aside: where to, if nobody else has done so."""
        self.close()
        return _move_aside(self.path) if self.is_current() else None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is committed at once, or not at all."""
        try:
            _begin(self._db, self._patience_s)
        except sqlite3.OperationalError:
            self._patience_s = _BUSY_STILL_S
            raise
        self._patience_s = _BUSY_S
        try:
            yield
        except BaseException:
            self._db.rollback()
            raise
        self._db.commit()

    @property
    def version(self) -> tuple[int, int]:
        """Changes when anybody has written: another connection, or this one."""
        return int(self._db.execute("PRAGMA data_version").fetchone()[0]), self._db.total_changes

    # Logins

    def ban_of(self, network: str, account: str, now: float) -> Ban | None:
        """The ban that keeps this network from this account; None when it may try."""
        if self.knows(network, account, now):
            return self._manual_ban(network, now)
        ban = self._ban(network, now)
        site = site_network(network)
        if ban is None and site and not self.knows(site, account, now):
            ban = self._ban(site, now)
        return ban

    def knows(self, network: str, account: str, now: float) -> bool:
        """Was the account logged in to from there lately?"""
        found = self._db.execute(
            "SELECT 1 FROM login WHERE network = ? AND account = ? AND last_s > ?",
            (network, account, now - self.rules.good_s),
        )
        return found.fetchone() is not None

    def succeeded(self, network: str, account: str, now: float) -> None:
        for counted in filter(None, (network, site_network(network))):
            self._db.execute("INSERT OR REPLACE INTO login VALUES (?, ?, ?)", (counted, account, now))

    def failed(self, network: str, account: str, password: str, now: float, *, is_guess: bool = True) -> Failed:
        """Note a wrong password, and ban the network, or its IPv6 /48, if it was one too many."""
        since = now - self.rules.window_s
        mark = tag(self._key, account, password) if is_guess else _NO_GUESS
        self._note_guess(network, account, mark, now)
        times = self._count("SELECT sum(times) FROM guess WHERE network = ? AND last_s > ?", network, since)
        from_everywhere = self._count(
            "SELECT count(*) FROM guess WHERE account = ? AND tag >= 0 AND last_s > ? AND network NOT LIKE '%/48'",
            account, since,
        )  # fmt: skip
        distinct = self.counted(network, now)
        ban = self._earned(network, distinct, now) if self.rules.earns_ban(distinct) else None
        site = site_network(network)
        if not site or not is_guess:
            return Failed(times, distinct, from_everywhere, ban)
        self._note_guess(site, account, mark, now)
        in_site = self.counted(site, now)
        site_ban = self._earned(site, in_site, now) if self.rules.earns_site_ban(in_site) else None
        return Failed(times, distinct, from_everywhere, ban, in_site, site_ban)

    def _note_guess(self, network: str, account: str, mark: int, now: float) -> None:
        since = now - self.rules.window_s
        self._db.execute(
            "INSERT INTO guess VALUES (?, ?, ?, ?, ?, 1) ON CONFLICT DO UPDATE SET "
            "times = CASE WHEN last_s > ? THEN times + 1 ELSE 1 END, "
            "first_s = CASE WHEN last_s > ? THEN first_s ELSE excluded.first_s END, last_s = excluded.last_s",
            (network, account, mark, now, now, since, since),
        )

    def _earned(self, network: str, distinct: int, now: float) -> Ban | None:
        if self._ban(network, now) is not None:
            return None  # by another process, while the password was checked
        values = self._values(network, now)
        rows = self._db.execute(f"SELECT account {_COUNTED} GROUP BY account ORDER BY count(*) DESC", values).fetchall()
        before = self._db.execute("SELECT level, until_s FROM ban WHERE network = ?", (network,)).fetchone()
        level = 0 if before is None or before[1] + FORGIVEN_S < now else int(before[0])
        named = ", ".join(str(account) for (account,) in rows[:3]) + (f" and {len(rows) - 3} more" if rows[3:] else "")
        reason = f"{distinct} different wrong passwords for {named}"
        ban = Ban(
            network, now, now + self.rules.ban_s(level), level + 1, manual=False, reason=reason,
            accounts=self._exempt(network, now),
        )  # fmt: skip
        self._put(ban)
        # they are paid for: the next ban takes as many again
        self._db.execute("DELETE FROM guess WHERE network = ?", (network,))
        return ban

    # Bans

    def ban(self, network: str, until_s: float, reason: str, now: float) -> Ban:
        """The administrator's: it holds for every account, and does not count as one the network earned."""
        before = self._db.execute("SELECT level FROM ban WHERE network = ?", (network,)).fetchone()
        ban = Ban(network, now, until_s, int(before[0]) if before else 0, manual=True, reason=reason)
        self._put(ban)
        return ban

    def lift(self, network: str) -> bool:
        """Forget a network's bans and wrong passwords. False when there was no ban."""
        self._db.execute("DELETE FROM guess WHERE network = ?", (network,))
        return self._db.execute("DELETE FROM ban WHERE network = ?", (network,)).rowcount > 0

    def bans(self, now: float) -> list[Ban]:
        """Those in force, the newest first."""
        rows = self._db.execute("SELECT * FROM ban WHERE until_s > ? ORDER BY since_s DESC", (now,)).fetchall()
        return [self._read(row, now) for row in rows]

    def ban_on(self, network: str, now: float) -> Ban | None:
        """The ban in force on a network, whoever may log in all the same."""
        site = site_network(network)
        return self._ban(network, now) or (self._ban(site, now) if site else None)

    def former_ban(self, network: str) -> Ban | None:
        """The last ban of a network, over or not."""
        row = self._db.execute("SELECT * FROM ban WHERE network = ?", (network,)).fetchone()
        return None if row is None else Ban(row[0], row[1], row[2], row[3], bool(row[4]), row[5])

    def _put(self, ban: Ban) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO ban VALUES (?, ?, ?, ?, ?, ?)",
            (ban.network, ban.since_s, ban.until_s, ban.level, int(ban.manual), ban.reason),
        )

    def _ban(self, network: str, now: float) -> Ban | None:
        row = self._db.execute("SELECT * FROM ban WHERE network = ? AND until_s > ?", (network, now)).fetchone()
        return self._manual_ban(network, now) if row is None else self._read(row, now)

    def _manual_ban(self, network: str, now: float) -> Ban | None:
        """A ban by the administrator, who may have meant a whole network."""
        rows = self._db.execute("SELECT * FROM ban WHERE manual = 1 AND until_s > ?", (now,)).fetchall()
        return next((self._read(row, now) for row in rows if is_within(network, str(row[0]))), None)

    def _read(self, row: Sequence[object], now: float) -> Ban:
        network, since_s, until_s, level, manual, reason = row
        return Ban(
            str(network), float(str(since_s)), float(str(until_s)), int(str(level)), bool(manual), str(reason),
            () if manual else self._exempt(str(network), now),
        )  # fmt: skip

    def _exempt(self, network: str, now: float) -> tuple[str, ...]:
        rows = self._db.execute(
            "SELECT account FROM login WHERE network = ? AND last_s > ? ORDER BY account",
            (network, now - self.rules.good_s),
        )
        return tuple(str(account) for (account,) in rows)

    def known_networks(self, now: float) -> set[str]:
        """Where somebody logged in from lately."""
        rows = self._db.execute("SELECT DISTINCT network FROM login WHERE last_s > ?", (now - self.rules.good_s,))
        return {str(network) for (network,) in rows}

    # For explanations

    def guesses(self, *, network: str = "", account: str = "", now: float) -> list[Guesses]:
        """Wrong passwords within the window, of a network or for an account; the last ones first."""
        rows = self._db.execute(
            "SELECT network, account, count(*), sum(times), min(first_s), max(last_s) FROM guess "
            "WHERE (network = ? OR account = ? AND network NOT LIKE '%/48') AND last_s > ? "
            "GROUP BY network, account ORDER BY max(last_s) DESC",
            (network, account, now - self.rules.window_s),
        )
        return [Guesses(*row) for row in rows]

    def counted(self, network: str, now: float) -> int:
        """How many different wrong passwords of a network count for its next ban."""
        return int(self._db.execute(f"SELECT count(*) {_COUNTED}", self._values(network, now)).fetchone()[0])

    def _values(self, network: str, now: float) -> dict[str, object]:
        return {"network": network, "since": now - self.rules.window_s, "good": now - self.rules.good_s}

    def logins(self, *, network: str = "", account: str = "", now: float) -> list[tuple[str, str, float]]:
        """(network, account, when) of good logins that still count."""
        rows = self._db.execute(
            "SELECT network, account, last_s FROM login "
            "WHERE (network = ? OR account = ? AND network NOT LIKE '%/48') AND last_s > ? ORDER BY last_s DESC",
            (network, account, now - self.rules.good_s),
        )
        return [(str(n), str(a), float(s)) for n, a, s in rows]

    # Rates

    def add_rates(self, changes: Iterable[tuple[str, str, int, int]]) -> list[int]:
        """Add (kind, network, since_s, count); the sums of all processes, in order."""
        sums = []
        for change in changes:
            row = self._db.execute(
                "INSERT INTO rate VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count "
                "RETURNING count",
                change,
            ).fetchone()
            sums.append(int(row[0]))
        return sums

    # Sending

    def sent(self, account: str, now: float) -> Sent:
        """What an account sent within 24 hours, to the hour."""
        since = int(now // _HOUR_S) - _DAY_HOURS
        row = self._db.execute(
            "SELECT total(messages), total(recipients), min(hour) FROM sent WHERE account = ? AND hour > ?",
            (account, since),
        ).fetchone()
        return Sent(int(row[0]), int(row[1]), int(row[2] or 0))

    def unknown_of(self, account: str, recipients: Sequence[str]) -> list[bytes]:
        """Those of the addresses that the account never wrote to, as they are kept."""
        found = []
        for recipient in dict.fromkeys(recipients):
            mark = hmac.digest(self._key, f"{account}\0{recipient}".encode("utf-8", "replace"), hashlib.sha256)[:8]
            row = self._db.execute("SELECT 1 FROM written WHERE account = ? AND recipient = ?", (account, mark))
            if row.fetchone() is None:
                found.append(mark)
        return found

    def add_sent(self, account: str, recipients: Sequence[str], now: float, *, messages: int = 1) -> None:
        """Count a message and whom it is the first for."""
        new = self.unknown_of(account, recipients)
        self._db.execute(
            "INSERT INTO sent VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
            "messages = messages + excluded.messages, recipients = recipients + excluded.recipients",
            (account, int(now // _HOUR_S), messages, len(new)),
        )
        self._db.executemany("INSERT INTO written VALUES (?, ?, ?)", [(account, mark, now) for mark in new])

    def first_notice(self, account: str, about: str, now: float, every_s: float) -> bool:
        """True for the one who is to give a notice that was not given within `every_s`."""
        done = self._db.execute(
            "INSERT INTO notice VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET at_s = excluded.at_s WHERE at_s <= ?",
            (account, about, now, now - every_s),
        )
        return done.rowcount > 0

    # Housekeeping

    def tidy(self, now: float) -> None:
        """Forget what is over."""
        rules = self.rules
        self._set_back(now)
        self._db.execute("DELETE FROM guess WHERE last_s <= ?", (now - rules.window_s,))
        self._db.execute("DELETE FROM login WHERE last_s <= ?", (now - rules.good_s,))
        self._db.execute("DELETE FROM ban WHERE until_s <= ?", (now - FORGIVEN_S,))
        self._db.execute("DELETE FROM rate WHERE since_s <= ?", (now - _RATE_S,))
        self._db.execute("DELETE FROM sent WHERE hour <= ?", (int(now // _HOUR_S) - _DAY_HOURS,))
        self._db.execute("DELETE FROM written WHERE last_s <= ?", (now - _WRITTEN_S,))
        self._db.execute("DELETE FROM notice WHERE at_s <= ?", (now - FORGIVEN_S,))
        for table in ("guess", "written"):
            last = f"SELECT last_s FROM {table} ORDER BY last_s DESC LIMIT 1 OFFSET {_MAX_ROWS}"  # noqa: S608  # ours
            self._db.execute(f"DELETE FROM {table} WHERE last_s < ({last})")  # noqa: S608  # names from above

    def _set_back(self, now: float) -> None:
        """What was noted while the clock was ahead."""
        ahead, hour = now + _AHEAD_S, int(now // _HOUR_S)
        for table in ("guess", "login", "written"):
            self._db.execute(f"UPDATE {table} SET last_s = ? WHERE last_s > ?", (now, ahead))  # noqa: S608  # ours
        self._db.execute(
            "UPDATE ban SET until_s = until_s - since_s + ?1, since_s = ?1 WHERE since_s > ?2", (now, ahead)
        )
        self._db.execute("UPDATE notice SET at_s = ? WHERE at_s > ?", (now, ahead))
        self._db.execute("UPDATE OR REPLACE sent SET hour = ?1 WHERE hour > ?1 + 1", (hour,))
        self._db.execute("DELETE FROM rate WHERE since_s > ?", (ahead,))

    def _count(self, statement: str, *values: object) -> int:
        return int(self._db.execute(statement, values).fetchone()[0] or 0)


def _open(path: Path) -> tuple[sqlite3.Connection, bytes]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    make_file(path, 0o600)
    db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        to_wal(db)
        db.execute("PRAGMA synchronous = NORMAL")
        _begin(db, _BUSY_S)
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if version == 0:
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            db.execute("INSERT INTO secret VALUES (1, ?)", (secrets.token_bytes(32),))
            db.execute(f"PRAGMA user_version = {_VERSION}")
        elif version != _VERSION:
            raise sqlite3.OperationalError(f"{path} was written by another version of pymx ({version})")
        key = db.execute("SELECT key FROM secret").fetchone()[0]
        db.commit()
    except BaseException:
        db.close()
        raise
    return db, bytes(key)


def is_damage(error: sqlite3.Error) -> bool:
    """Is the file itself broken? Else it is busy, full, not permitted, or not understood."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _begin(db: sqlite3.Connection, patience_s: float) -> None:
    """Take the right to write. SQLite itself waits in steps of up to 0.1 s, between which a busy process finds the way
    free again and again, and one that waits never does."""
    until = time.monotonic() + patience_s
    db.execute("PRAGMA busy_timeout = 0")
    try:
        while True:
            try:
                db.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as e:
                if e.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
            time.sleep(random.uniform(0.0003, 0.002))  # noqa: S311  # not a secret
    finally:
        db.execute(f"PRAGMA busy_timeout = {_BUSY_S * 1000:.0f}")


def _move_aside(path: Path) -> Path:
    aside = path.with_name(path.name + ".damaged")
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    path.replace(aside)
    return aside
