"""What `pymxctl doctor --nightly` does with its findings: only what changed is mailed, and why it matters.

The last run is remembered in `<data_dir>/doctor/last.json`, each finding with the day it began. New is what was not
there or is worse, over what is gone or better. Small print (info) is not mailed. A mail that could not be handed over
leaves the memory as it was, so that the next night says it. Nothing is mailed by the first run when all is well.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pymx.admin.context import Context, Exit
from pymx.admin.control_client import ControlError
from pymx.admin.health.finding import Finding, Severity, worst
from pymx.admin.health.present import lines, summary
from pymx.mail.date import format_date
from pymx.mail.header import build_field
from pymx.mailauth.dkim.keys import write_private

_FILE = "last.json"


class Remembered(msgspec.Struct):
    """One finding of the last run; `since` in Unix seconds."""

    severity: int
    sentence: str
    since: float


@dataclass(frozen=True, slots=True)
class Changes:
    """`begun`: what is bad and was not, or was less so. `over`: sentences of what was bad and is not any more."""

    begun: tuple[Finding, ...]
    over: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.begun or self.over)


def compare(findings: Sequence[Finding], before: dict[str, Remembered]) -> Changes:
    """What a person has to know of."""
    now = {f.check: f for f in findings if f.severity >= Severity.WARN}
    begun = [f for f in now.values() if f.check not in before or f.severity > before[f.check].severity]
    over = [old.sentence for check, old in before.items() if check not in now]
    return Changes(tuple(sorted(begun, key=lambda f: -f.severity)), tuple(over))


def run(
    context: Context, findings: Sequence[Finding], *, again: Callable[[], list[Finding]], second_look_s: float
) -> int:
    """`again` looks once more: a name server that did not answer for a moment is not worth a mail."""
    now, path = time.time(), Path(context.config.data_dir) / "doctor" / _FILE
    before = _read(path)
    changes = compare(findings, before)
    if changes.begun and second_look_s > 0:
        time.sleep(second_look_s)
        findings = again()
        changes = compare(findings, before)
    mailed = False
    if changes:
        message = mail(context.config.hostname, changes, findings, now)
        try:
            context.control.call("send", {"to": "postmaster", "message": base64.b64encode(message).decode()})
            mailed = True
        except ControlError as e:
            context.out.warn(f"the mail can't be sent ({e}); this is what it says:")
            print(message.decode())
            return Exit.FAILED  # it is said again tomorrow
    _write(path, findings, before, now)
    text = f"{len(changes.begun)} new, {len(changes.over)} over" + ("; mailed" if mailed else "")
    context.out.done(
        text, mailed=mailed, new=[f.check for f in changes.begun], over=len(changes.over),
        worst=worst(findings).name.lower(),
    )  # fmt: skip
    return Exit.OK


def mail(hostname: str, changes: Changes, findings: Sequence[Finding], now: float) -> bytes:
    """In wire form, unsigned."""
    count = len(changes.begun)
    what = f"{count} new problem{'' if count == 1 else 's'}" if count else f"{len(changes.over)} solved"
    text: list[str] = []
    if changes.begun:
        text += ["New since the last check:", ""]
        for finding in changes.begun:
            text += [*lines(finding), ""]
    if changes.over:
        text += ["Over:", "", *(f"      {sentence}" for sentence in changes.over), ""]
    rest = sum(f.severity >= Severity.WARN for f in findings) - count
    if rest:
        text += [f"{rest} known before and not mentioned here: pymxctl doctor", ""]
    text.append(summary(findings, hostname))
    fields = [
        build_field("From", f"pymx doctor <postmaster@{hostname}>"),
        build_field("To", f"postmaster@{hostname}"),
        build_field("Subject", f"{hostname}: {what}"),
        build_field("Date", format_date(now)),
        build_field("Message-ID", f"<doctor.{int(now)}@{hostname}>"),
        build_field("Auto-Submitted", "auto-generated"),
        build_field("MIME-Version", "1.0"),
        build_field("Content-Type", "text/plain; charset=utf-8"),
        build_field("Content-Transfer-Encoding", "base64"),
    ]
    body = base64.encodebytes("\r\n".join(text).encode() + b"\r\n").replace(b"\n", b"\r\n")
    return b"".join(fields) + b"\r\n" + body


def _read(path: Path) -> dict[str, Remembered]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Remembered])
    except (FileNotFoundError, msgspec.DecodeError):
        return {}


def _write(path: Path, findings: Sequence[Finding], before: dict[str, Remembered], now: float) -> None:
    known = {
        f.check: Remembered(int(f.severity), f.sentence, before[f.check].since if f.check in before else now)
        for f in findings
        if f.severity >= Severity.WARN
    }
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_private(path, msgspec.json.format(msgspec.json.encode(known)) + b"\n")
