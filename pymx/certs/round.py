"""One look at all certificates by ACME: what is due is got, what fails is tried again later.

`look` works through a plan and returns an `Outcome` for each certificate in it. Nothing it meets stops it from looking
at the next one, and no failure touches what is installed. One round at a time: `Busy` when another process is at it.

A certificate that was installed by other means is left alone, unless it is asked for by name, or has expired: then
nobody keeps it up any more, and one by ACME is better than none.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from pymx.certs import files, state
from pymx.certs.plan import Plan, Wanted, due
from pymx.certs.state import State
from pymx.config.model import Acme
from pymx.net.certificate import CertificateUnreadable, Facts, read_certificate

if TYPE_CHECKING:
    from pymx.certs.issue import Authority, IssueFailed

Result = Literal["issued", "kept", "failed", "waiting", "foreign"]


class Busy(Exception):
    """Another process looks after the certificates just now."""


class Outcome(msgspec.Struct):
    """`why` it had to be got; `reason` it could not be; `retry_at`: Unix time of the next try, 0 = when it is due."""

    name: str
    result: Result
    names: list[str] = []
    why: str = ""
    reason: str = ""
    left_out: dict[str, str] = {}
    not_after: float = 0.0
    retry_at: float = 0.0


class Round(msgspec.Struct):
    """`left_out` are names that were not asked for, with the reason."""

    outcomes: list[Outcome] = []
    left_out: dict[str, str] = {}

    @property
    def retry_at(self) -> float:
        """The next try that is already settled; 0 = none."""
        return min((o.retry_at for o in self.outcomes if o.retry_at), default=0.0)

    @property
    def changed(self) -> bool:
        return any(o.result == "issued" for o in self.outcomes)


class How(msgspec.Struct, frozen=True):
    """`patient`: keep to the waits after failures (the timer does). `only`: these, due or not. `new_key`: with one."""

    patient: bool = False
    only: frozenset[str] = frozenset()
    new_key: bool = False


def look(settings: Acme, data_dir: Path, plan: Plan, how: How) -> Round:
    """Raises Busy, and OSError when the state can't be written."""
    with _alone(data_dir):
        looker = _Looker(settings, data_dir, how)
        try:
            return Round([looker.look_at(one) for one in plan.wanted], dict(plan.left_out))
        finally:
            looker.close()


@contextlib.contextmanager
def _alone(data_dir: Path) -> Iterator[None]:
    directory = data_dir / "acme"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy("another process is getting certificates just now") from None
        yield
    finally:
        os.close(descriptor)


class _Looker:
    def __init__(self, settings: Acme, data_dir: Path, how: How) -> None:
        self._settings = settings
        self._data_dir = data_dir
        self._how = how
        self._authority: Authority | None = None
        self._silent: IssueFailed | None = None  # why nothing more is asked in this round

    def close(self) -> None:
        if self._authority is not None:
            self._authority.close()

    def look_at(self, wanted: Wanted) -> Outcome:
        now = time.time()
        have, known = self._have(wanted.name), state.load(self._data_dir, wanted.name)
        asked = wanted.name in self._how.only
        if have is not None and known is None and not asked and have.not_after > now:
            return Outcome(wanted.name, "foreign", names=list(have.names), not_after=have.not_after)
        known = known or State()
        failing = {name: out.not_before for name, out in known.left_out.items()} if self._how.patient else {}
        why = "it was asked for" if asked else due(wanted, have, now, failing=failing)
        if not why and have is not None:
            why = due(wanted, have, now, failing=failing, suggested=self._suggested(have))
        if not why:
            assert have is not None
            return Outcome(
                wanted.name, "kept", names=list(have.names), not_after=have.not_after,
                left_out={name: out.reason for name, out in known.left_out.items()},
            )  # fmt: skip
        if self._how.patient and known.not_before > now:
            return Outcome(wanted.name, "waiting", why=why, reason=known.reason, retry_at=known.not_before)
        return self._get(wanted, known, why, now)

    def _get(self, wanted: Wanted, known: State, why: str, now: float) -> Outcome:
        from pymx.certs.issue import IssueFailed

        if self._silent is not None and self._silent.not_before > now:
            # one certificate has used up the authority's patience for all
            return Outcome(wanted.name, "waiting", why=why, reason=str(self._silent), retry_at=self._silent.not_before)
        # a name that failed and whose wait is not over would cost the authority's patience again
        skipped = {n: o for n, o in known.left_out.items() if self._how.patient and o.not_before > now}
        names = tuple(name for name in wanted.names if name not in skipped or name in wanted.required)
        trimmed = Wanted(wanted.name, names or wanted.names, wanted.required)
        first_s = float(self._settings.retry_first_s)
        try:
            issued = self._ready().issue(trimmed, new_key=self._how.new_key)
        except IssueFailed as e:
            if e.not_before:
                self._silent = e
            known.failed(str(e), now, first_s=first_s, at_least=e.not_before)
            state.save(self._data_dir, wanted.name, known)
            return Outcome(
                wanted.name, "failed", why=why, reason=str(e), left_out=e.left_out, retry_at=known.not_before
            )
        known.succeeded(issued.left_out, now, first_s=first_s)
        known.left_out |= {name: out for name, out in skipped.items() if name not in trimmed.names}
        state.save(self._data_dir, wanted.name, known)
        return Outcome(
            wanted.name, "issued", names=list(issued.facts.names), why=why, left_out=issued.left_out,
            not_after=issued.facts.not_after,
        )  # fmt: skip

    def _have(self, name: str) -> Facts | None:
        try:
            return read_certificate(files.place(self._data_dir, name))
        except (CertificateUnreadable, files.NotInstalled):
            return None

    def _suggested(self, have: Facts) -> float:
        from pymx.certs.issue import IssueFailed

        try:
            return self._ready().renewal_time(have.path)
        except IssueFailed:
            return 0.0  # only a hint: the dates decide

    def _ready(self) -> Authority:
        """Connected at the first need."""
        from pymx.certs.issue import Authority, IssueFailed, clear_challenges

        if self._authority is None:
            if self._silent is not None:
                raise self._silent  # it did not answer a moment ago
            clear_challenges(self._data_dir, time.time())
            try:
                self._authority = Authority(self._settings, self._data_dir)
            except IssueFailed as e:
                self._silent = e
                raise
        return self._authority
