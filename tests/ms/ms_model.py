"""What an account may look like after operations that ran one after the other, at the same time, or not to their end.

A `Step` is what happens at once; an operation is a list of steps that others may come between. `Model` keeps every
account that is possible by what was told so far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from ms_workers import Message, Op

from pymx.mail.flags import DELETED


@dataclass(frozen=True)
class Instance:
    """One message in one mailbox; a copy has an identity of its own."""

    identity: tuple[object, ...]
    token: str
    flags: int = 0
    keywords: frozenset[str] = frozenset()


Boxes = frozenset[tuple[str, frozenset[Instance]]]


@dataclass(frozen=True)
class Running:
    """An operation on its way: its next step, whom it is about, and what it tells."""

    op: Op
    serial: int
    step: int = 0
    about: frozenset[tuple[object, ...]] = frozenset()
    told: object = "ok"
    killed: bool = False  # may stop anywhere
    told_counts: bool = True


def _boxes(there: Mapping[str, frozenset[Instance]]) -> Boxes:
    return frozenset(there.items())


END = -1
World = tuple[Boxes, tuple[Running, ...]]
Step = tuple[Boxes, Running]


def _end(boxes: Boxes, run: Running, told: object = "ok") -> Step:
    return boxes, replace(run, step=END, told=told)


def _deliver(boxes: Boxes, run: Running) -> list[Step]:
    there = dict(boxes)
    op = run.op
    name = op.name if op.name in there else "INBOX"
    there[name] |= {Instance((run.serial,), op.token)}
    return [_end(_boxes(there), run, name)]


def _append(boxes: Boxes, run: Running) -> list[Step]:
    there, op = dict(boxes), run.op
    if op.name not in there:
        return [_end(boxes, run, "NoSuchMailbox")]
    there[op.name] |= {Instance((run.serial,), op.token, op.flags, frozenset(op.keywords))}
    return [_end(_boxes(there), run)]


def _create(boxes: Boxes, run: Running) -> list[Step]:
    there = dict(boxes)
    if run.op.name in there:
        return [_end(boxes, run, "MailboxExists")]
    return [_end(_boxes({**there, run.op.name: frozenset()}), run)]


def _delete(boxes: Boxes, run: Running) -> list[Step]:
    there = dict(boxes)
    if there.pop(run.op.name, None) is None:
        return [_end(boxes, run, "NoSuchMailbox")]
    return [_end(_boxes(there), run)]


def _rename(boxes: Boxes, run: Running) -> list[Step]:
    there = dict(boxes)
    if run.op.name not in there:
        return [_end(boxes, run, "NoSuchMailbox")]
    if run.op.target in there:
        return [_end(boxes, run, "MailboxExists")]
    there[run.op.target] = there.pop(run.op.name)
    return [_end(_boxes(there), run)]


def _look(boxes: Boxes, run: Running) -> list[Step]:
    there = dict(boxes)
    if run.op.name not in there:
        return [_end(boxes, run, "NoSuchMailbox")]
    return [_end(boxes, run, tuple(plain(there[run.op.name])))]


def _on_messages(boxes: Boxes, run: Running) -> list[Step]:
    """Find the messages, then do it to them: to all at once for COPY, else to one after the other."""
    there, op = dict(boxes), run.op
    if op.name not in there:
        return [_end(boxes, run, "NoSuchMailbox")]
    mine = there[op.name]
    if run.step == 0:
        about = frozenset(i.identity for i in mine if i.token == op.token)
        if op.kind in ("copy", "move") and op.target not in there:
            return [_end(boxes, run, "NoSuchMailbox")]
        return [(boxes, replace(run, step=1, about=about))]
    if run.step == 1 and op.kind in ("copy", "move"):
        if op.target not in there:
            return [_end(boxes, run, "NoSuchMailbox")]
        found = [i for i in mine if i.identity in run.about]
        there[op.target] |= {replace(i, identity=(run.serial, i.identity)) for i in found}
        if op.kind == "copy":
            return [_end(_boxes(there), run)]
        return [(_boxes(there), replace(run, step=2))]
    if not run.about:
        return [_end(boxes, run)]
    out = []
    for identity in run.about:
        left = replace(run, about=run.about - {identity})
        found = [i for i in mine if i.identity == identity]
        if found and op.kind == "expunge" and not found[0].flags & DELETED:
            changed, left = replace(found[0], flags=found[0].flags | DELETED), run
            out.append((_boxes({**there, op.name: mine - {found[0]} | {changed}}), left))
            out.append((boxes, replace(run, about=run.about - {identity})))  # somebody took \Deleted away again
        elif found and op.kind in ("expunge", "move"):
            out.append((_boxes({**there, op.name: mine - {found[0]}}), left))
        elif found:
            changed = _flagged(found[0], op)
            out.append((_boxes({**there, op.name: mine - {found[0]} | {changed}}), left))
        else:
            out.append((boxes, left))
    return out


def _flagged(found: Instance, op: Op) -> Instance:
    named = frozenset(op.keywords)
    match op.mode:
        case "add":
            return replace(found, flags=found.flags | op.flags, keywords=found.keywords | named)
        case "remove":
            return replace(found, flags=found.flags & ~op.flags, keywords=found.keywords - named)
        case _:
            return replace(found, flags=op.flags, keywords=named)


def _foreign(boxes: Boxes, run: Running) -> list[Step]:
    """What a program does that knows of no locks; if somebody renames a file under its hands, nothing."""
    there, op = dict(boxes), run.op
    nothing = [_end(boxes, run, "nothing")]
    if op.name not in there:
        return nothing
    mine = there[op.name]
    if op.kind == "foreign_deliver":
        return [_end(_boxes({**there, op.name: mine | {Instance((run.serial,), op.token)}}), run), *nothing]
    found = [i for i in mine if i.token == op.token]
    if not found or (op.kind == "foreign_move" and op.target not in there):
        return nothing
    out = nothing
    for one in found:
        now = {**there, op.name: mine - {one}}
        if op.kind == "foreign_flag":
            now[op.name] |= {replace(one, flags=op.flags)}
        elif op.kind == "foreign_move":
            fresh = replace(one, identity=(run.serial, one.identity), flags=op.flags, keywords=frozenset())
            now[op.target] = now[op.target] | {fresh}
        out.append(_end(_boxes(now), run))
    return out


_STEPS: dict[str, Callable[[Boxes, Running], list[Step]]] = {
    "deliver": _deliver,
    "append": _append,
    "create": _create,
    "delete": _delete,
    "rename": _rename,
    "look": _look,
    "foreign_deliver": _foreign,
    "foreign_flag": _foreign,
    "foreign_unlink": _foreign,
    "foreign_move": _foreign,
}


def plain(messages: Iterable[Instance]) -> list[Message]:
    return sorted((i.token, i.flags, tuple(sorted(i.keywords))) for i in messages)


@dataclass
class Model:
    """All accounts that are possible, each with the operations that may still come to light."""

    worlds: set[World] = field(default_factory=lambda: {(_boxes({"INBOX": frozenset()}), ())})
    expected: dict[int, object] = field(default_factory=dict)

    def start(self, *runs: Running) -> None:
        self.worlds = {(boxes, (*old, *runs)) for boxes, old in self.worlds}
        self._spread()

    def _spread(self) -> None:
        """Everything that can happen from here."""
        todo, seen = list(self.worlds), set(self.worlds)
        while todo:
            boxes, runs = todo.pop()
            for at, run in enumerate(runs):
                if run.step == END:
                    continue
                for now, then in _STEPS.get(run.op.kind, _on_messages)(boxes, run):
                    world = (now, (*runs[:at], then, *runs[at + 1 :]))
                    if world not in seen:
                        seen.add(world)
                        todo.append(world)
        self.worlds = seen

    def told(self, serial: int, told: object) -> None:
        """That operation has ended, and said so."""
        kept = set()
        for boxes, runs in self.worlds:
            for run in runs:
                if run.serial == serial and run.step == END and (not run.told_counts or run.told == told):
                    kept.add((boxes, tuple(r for r in runs if r is not run)))
        self.worlds = kept

    def did(self, serial: int, told: object) -> None:
        """A foreign program did this; it may come to light later."""
        self.expected[serial] = told

    def settle(self) -> None:
        """Nothing is hidden any more: what a foreign program did is done, what was killed is not done later."""
        self.worlds = {
            (boxes, ())
            for boxes, runs in self.worlds
            if all(run.killed or (run.step == END and run.told == self.expected[run.serial]) for run in runs)
        }

    def unsettled(self) -> int:
        return max((len(runs) for _, runs in self.worlds), default=0)

    def accounts(self) -> list[dict[str, list[Message]]]:
        """What may be found."""
        return [{name: plain(messages) for name, messages in boxes} for boxes, _ in self.worlds]
