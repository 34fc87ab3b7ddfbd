"""Replacing signing keys without a person watching: made, published, used, retired.

    begin     a new key of each algorithm in use; it waits, the old one signs
    advance   its record is in DNS and was for `settle_s`: it signs, the old one is replaced
              the old one has been replaced for `overlap_s`: its key file is deleted, its record may be removed
              that record is gone: the selector is forgotten

Mail signed just before the change is verified days later, so the old record stays for the overlap. Whether a record is
there is asked by verifying a signature of ours with what is published; when that can't be told now, nothing changes.

The dates are in `<directory>/<domain>/rotation.json`. Whoever changes them holds the lock of that directory, and never
while DNS is being asked. Written whole or not at all; a kill between two steps leaves a state from which the next
`advance` goes on. `activate` (pymxctl dkim use) overrules all of it.

Errors: `keys.KeyUnusable`, ValueError for what is no domain name, OSError.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pymx.mailauth.dkim import keys
from pymx.mailauth.dkim.keys import Algorithm, KeyUnusable, SigningKey
from pymx.mailauth.dkim.record import RecordError, published_keys
from pymx.mailauth.questions import Questions
from pymx.resolver.answer import TemporaryDnsError

_FILE = "rotation.json"
_FORGET_S = 180 * 86400  # a retired selector whose record nobody removes
_PROBE = b"is this key published?"


class Dates(msgspec.Struct, omit_defaults=True):
    """The life of one selector, in Unix seconds; 0 is not yet."""

    algorithm: str
    made: float
    waiting: bool = False  # takes over by itself when its record is seen
    seen: float = 0.0
    used: float = 0.0
    replaced: float = 0.0
    retired: float = 0.0


class Happened(enum.Enum):
    """What `advance` did or found."""

    SEEN = "seen"  # the record of a waiting key is in DNS
    USED = "used"  # the key signs now
    RETIRED = "retired"  # the key file is gone; the record may be removed
    GONE = "gone"  # the record of a retired key is no longer in DNS
    MISSING = "missing"  # a key signs, but its record is not in DNS


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened to one selector."""

    happened: Happened
    selector: str
    record_name: str


@dataclass(frozen=True, slots=True)
class KeyState:
    """A selector as `pymxctl dkim show` has it; `key` is None once it is retired."""

    selector: str
    dates: Dates
    key: SigningKey | None
    active: bool


def states(directory: Path, domain: str) -> list[KeyState]:
    """Every selector of `domain`, those without a key at the end."""
    folder = keys.domain_directory(directory, domain)
    known = _read(folder)
    in_use = {key.selector for key in keys.active_keys(directory, domain)}
    found = []
    for key in keys.load_all(directory, domain):
        dates = known.pop(key.selector) if key.selector in known else _made(folder, key)
        found.append(KeyState(key.selector, dates, key, key.selector in in_use))
    return found + [KeyState(selector, dates, None, False) for selector, dates in sorted(known.items())]


def begin(
    directory: Path, domain: str, algorithms: Sequence[Algorithm] = (), *, now: float, bits: int = 2048
) -> list[KeyState]:
    """Make a new key of each of `algorithms`, by default of those in use; one that waits already is taken as it is.

    A domain without keys gets an RSA key, which signs at once.
    """
    folder = keys.domain_directory(directory, domain)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(folder):
        in_use = keys.active_keys(directory, domain)
        wanted = list(algorithms) or [_algorithm(key.algorithm) for key in in_use] or ["rsa"]
        known = _read(folder)
        waiting = {dates.algorithm: selector for selector, dates in known.items() if dates.waiting}
        replaced = {_algorithm(key.algorithm) for key in in_use}
        chosen = []
        for algorithm in dict.fromkeys(wanted):
            selector = waiting.get(algorithm, "")
            if not selector:
                selector = _free_selector(folder, known, algorithm, now)
                keys.generate(directory, domain, selector, algorithm=algorithm, bits=bits)
                active = algorithm not in replaced
                known[selector] = Dates(algorithm, now, waiting=not active, used=now if active else 0.0)
            chosen.append(selector)
        _write(folder, known)
    return [state for state in states(directory, domain) if state.selector in chosen]


def activate(directory: Path, domain: str, selectors: Sequence[str], *, now: float) -> None:
    """Sign with these from now on, whatever was under way for them. Raises KeyUnusable."""
    folder = keys.domain_directory(directory, domain)
    if not folder.is_dir():
        raise KeyUnusable(f"{domain} has no key of selector {selectors[0]}")
    with _locked(folder):
        keys.activate(directory, domain, list(selectors))
        known = _read(folder)
        for key in keys.active_keys(directory, domain):
            dates = known.setdefault(key.selector, _made(folder, key))
            dates.waiting, dates.replaced, dates.retired, dates.used = False, 0.0, 0.0, dates.used or now
        _write(folder, known)


async def advance(
    resolver: Questions, directory: Path, domain: str, *, now: float, overlap_s: float, settle_s: float
) -> list[Step]:
    """Take the next steps that are due; what happened."""
    found = await asyncio.to_thread(states, directory, domain)
    published = dict(
        zip(
            [state.selector for state in found],
            await asyncio.gather(*(_is_published(resolver, domain, state) for state in found)),
            strict=True,
        )
    )
    return await asyncio.to_thread(_advance, directory, domain, published, now, overlap_s, settle_s)


async def _is_published(resolver: Questions, domain: str, state: KeyState) -> bool | None:
    """Is the record there (for a retired key: any record)? None: that can't be told now."""
    name = f"{state.selector}._domainkey.{domain}"
    key = state.key
    if key is not None and not (state.active or state.dates.waiting):
        return None  # nobody wants to know
    kind = key.algorithm.partition("-")[0] if key is not None else state.dates.algorithm
    try:
        records = await published_keys(resolver, name, kind, subdomain=False)
    except RecordError:
        return False
    except TemporaryDnsError:
        return None
    if key is None:
        return True
    signature, digest = key.sign(_PROBE), hashlib.sha256(_PROBE).digest()
    return any(record.verify(signature, digest) for record in records)


def _advance(
    directory: Path, domain: str, published: dict[str, bool | None], now: float, overlap_s: float, settle_s: float
) -> list[Step]:
    """The part of `advance` that needs no DNS; everything is looked at again, since somebody may have changed it."""
    folder = keys.domain_directory(directory, domain)
    steps: list[Step] = []

    def note(happened: Happened, selector: str) -> None:
        steps.append(Step(happened, selector, f"{selector}._domainkey.{domain}"))

    with _locked(folder):
        known = _read(folder)
        current = {state.selector: state for state in states(directory, domain)}
        for selector, dates in known.items():
            if dates.waiting and selector in current and published.get(selector) is not None:
                if not published[selector]:
                    dates.seen = 0.0
                elif not dates.seen:
                    dates.seen = now
                    note(Happened.SEEN, selector)
        ready = [s for s, d in known.items() if d.waiting and d.seen and now - d.seen >= settle_s and published.get(s)]
        if ready:
            _switch(directory, domain, known, ready, now)
            for selector in ready:
                note(Happened.USED, selector)
        active = {key.selector for key in keys.active_keys(directory, domain)}
        for selector in active:
            if published.get(selector) is False and selector not in ready:
                note(Happened.MISSING, selector)
        for selector, dates in list(known.items()):
            if selector in active:
                continue
            if dates.retired:
                if current[selector].key is not None:
                    (folder / f"{selector}.pem").unlink(missing_ok=True)  # killed before it had gone
                elif published.get(selector) is False or now - dates.retired > _FORGET_S:
                    del known[selector]
                    note(Happened.GONE, selector)
            elif dates.replaced and now - dates.replaced >= overlap_s:
                dates.retired = now
                _write(folder, known)
                (folder / f"{selector}.pem").unlink(missing_ok=True)
                note(Happened.RETIRED, selector)
        if known != _read(folder):
            _write(folder, known)
    return steps


def _switch(directory: Path, domain: str, known: dict[str, Dates], ready: Sequence[str], now: float) -> None:
    """Sign with the keys of `ready` instead of those of the same algorithms."""
    folder = keys.domain_directory(directory, domain)
    in_use = {_algorithm(key.algorithm): key for key in keys.active_keys(directory, domain)}
    chosen = {algorithm: key.selector for algorithm, key in in_use.items()}
    for selector in ready:
        algorithm = _algorithm(known[selector].algorithm)
        old = in_use.get(algorithm)
        if old is not None and old.selector != selector:
            known.setdefault(old.selector, _made(folder, old)).replaced = now
        chosen[algorithm] = selector
    # Killed after this line, the new keys still wait, and all is done again; after the next, only the last is.
    _write(folder, known)
    keys.activate(directory, domain, list(chosen.values()))
    for selector in ready:
        known[selector].waiting, known[selector].used = False, now


def _algorithm(text: str) -> Algorithm:
    return "ed25519" if text.startswith("ed25519") else "rsa"


def _made(folder: Path, key: SigningKey) -> Dates:
    """The dates of a key that was there before dates were kept."""
    return Dates(_algorithm(key.algorithm), (folder / f"{key.selector}.pem").stat().st_mtime)


def _free_selector(folder: Path, known: dict[str, Dates], algorithm: Algorithm, now: float) -> str:
    """One that no key has, and no record that may still be in DNS."""
    day = time.gmtime(now)
    names = [time.strftime("%Y%m", day) + algorithm, time.strftime("%Y%m%d", day) + algorithm]
    names += [names[1] + letter for letter in "bcdefghijklmnopqrstuvwxyz"]
    for name in names:
        if name not in known and not (folder / f"{name}.pem").exists():
            return name
    raise KeyUnusable(f"{folder}: too many keys were made today")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _read(folder: Path) -> dict[str, Dates]:
    try:
        return msgspec.json.decode((folder / _FILE).read_bytes(), type=dict[str, Dates])
    except FileNotFoundError:
        return {}
    except msgspec.DecodeError as e:
        raise KeyUnusable(f"{folder / _FILE}: {e}; remove it, then no key is replaced by itself") from None


def _write(folder: Path, known: dict[str, Dates]) -> None:
    keys.write_private(folder / _FILE, msgspec.json.format(msgspec.json.encode(known)) + b"\n")
