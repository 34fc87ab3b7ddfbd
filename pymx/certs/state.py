"""What is remembered of each certificate by ACME, in `<data_dir>/acme/state/NAME.json`: failures and when to try again.

A certificate without such a file was installed by hand or by certbot's hook, and is left alone. A file that can't be
read counts as none has been tried yet, so that nothing worse follows from it than a try too early.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from pymx.certs.files import write

LONGEST_WAIT_S = 86_400.0
_GROWTH = 4


class LeftOut(msgspec.Struct):
    """A name that the authority would not take."""

    reason: str
    not_before: float  # when it may be tried again
    failures: int = 1


class State(msgspec.Struct):
    """`failures` in a row; `not_before`: not tried before that time; `issued`: when it was last got."""

    failures: int = 0
    not_before: float = 0.0
    reason: str = ""
    issued: float = 0.0
    left_out: dict[str, LeftOut] = msgspec.field(default_factory=dict)

    def failed(self, reason: str, now: float, *, first_s: float, at_least: float = 0.0) -> None:
        """Note a failure; the wait grows fourfold each time. `at_least` is a time that the authority gave."""
        self.failures += 1
        self.reason = reason
        self.not_before = max(now + _wait(self.failures, first_s), at_least)

    def succeeded(self, left_out: dict[str, str], now: float, *, first_s: float) -> None:
        """Note what was got, without the names in `left_out`."""
        self.failures, self.not_before, self.reason, self.issued = 0, 0.0, "", now
        before = self.left_out
        self.left_out = {}
        for name, reason in left_out.items():
            failures = before[name].failures + 1 if name in before else 1
            self.left_out[name] = LeftOut(reason, now + _wait(failures, first_s), failures)


def _wait(failures: int, first_s: float) -> float:
    return float(min(first_s * _GROWTH ** min(failures - 1, 10), LONGEST_WAIT_S))


def _path(data_dir: Path, name: str) -> Path:
    return data_dir / "acme" / "state" / f"{name}.json"


def load(data_dir: Path, name: str) -> State | None:
    """None when it is not ours to renew."""
    try:
        return msgspec.json.decode(_path(data_dir, name).read_bytes(), type=State)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError):
        return State()


def save(data_dir: Path, name: str, state: State) -> None:
    """Raises OSError."""
    write(_path(data_dir, name), msgspec.json.encode(state))


def forget(data_dir: Path, name: str) -> None:
    """From now on somebody else keeps it up. Raises OSError."""
    _path(data_dir, name).unlink(missing_ok=True)
