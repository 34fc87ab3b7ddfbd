"""What mailboxes hold and what each session must be told of them: a model for interleavings of IMAP sessions.

`World` is the account as it should be. Time is a counter of changes: a message knows when it last changed, a mailbox
when each UID was expunged, and a session up to when it has been told. MODSEQs are not foretold but held together: one
change has one MODSEQ wherever it is told, later ones are higher, and HIGHESTMODSEQ moves if and only if there was a
change.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

Flags = frozenset[bytes]

_EXPUNGE = re.compile(rb"\* (\d+) EXPUNGE")
_VANISHED = re.compile(rb"\* VANISHED( \(EARLIER\))? ([\d:,]+)")
_EXISTS = re.compile(rb"\* (\d+) EXISTS")
_FETCH = re.compile(rb"\* (\d+) (UID)?FETCH \((.*)\)", re.DOTALL)
_FLAG_LIST = re.compile(rb"\* FLAGS \(([^)]*)\)")
_FLAGS = re.compile(rb"\bFLAGS \(([^)]*)\)")
_UID = re.compile(rb"\bUID (\d+)")
_MODSEQ = re.compile(rb"\bMODSEQ \((\d+)\)")
_HIGHEST = re.compile(rb"\[HIGHESTMODSEQ (\d+)\]")
FOREIGN = -1  # the session number of a program that is none


def uids_of(text: bytes) -> list[int]:
    """A sequence set without `*`."""
    pairs = [part.split(b":") for part in text.split(b",")] if text else []
    return [uid for pair in pairs for uid in range(int(pair[0]), int(pair[-1]) + 1)]


@dataclass
class Message:
    """One message in one mailbox; `token` is its subject."""

    token: str
    flags: Flags
    changed: int  # when
    floor: int  # its modseq is higher than this
    modseq: int = 0  # as told, 0 = nobody was told


@dataclass
class Box:
    """A mailbox. `points` are HIGHESTMODSEQs that were told, and when."""

    name: str
    uidvalidity: int = 0
    uidnext: int = 1
    messages: dict[int, Message] = field(default_factory=dict)
    gone: dict[int, int] = field(default_factory=dict)  # UID to when
    touched: list[tuple[int, int, int]] = field(default_factory=list)  # when, UID, by which session
    changed: int = 0
    told_highest: int = 0
    told_at: int = -1
    seen_modseq: int = 0  # the highest of any kind
    points: list[tuple[int, int]] = field(default_factory=list)
    named: bool = False  # a STORE named keywords, which may be new, though no message has them then
    unseen: bool = False  # a foreign program changed it, and nobody has looked since

    @property
    def uids(self) -> list[int]:
        return sorted(self.messages)

    def deleted(self, uids: Iterable[int]) -> list[int]:
        return [uid for uid in uids if uid in self.messages and b"\\Deleted" in self.messages[uid].flags]

    def highest(self, value: int, now: int) -> None:
        """HIGHESTMODSEQ was told (RFC 7162 s. 3.1.2)."""
        if self.named and self.changed <= self.told_at:
            assert value >= self.told_highest, f"HIGHESTMODSEQ {value} is below {self.told_highest}"
        elif self.told_at >= 0 and self.changed <= self.told_at:
            assert value == self.told_highest, f"HIGHESTMODSEQ {value}, was {self.told_highest}, and nothing changed"
        else:
            assert value > self.told_highest, f"HIGHESTMODSEQ {value} is not above {self.told_highest} after a change"
        assert value >= self.seen_modseq, f"HIGHESTMODSEQ {value} is below {self.seen_modseq} of a message"
        self.named = False
        self.told_highest, self.told_at, self.seen_modseq = value, now, max(value, self.seen_modseq)
        self.points.append((value, now))

    def modseq(self, uid: int, value: int) -> None:
        """A message's MODSEQ was told."""
        message = self.messages[uid]
        if message.modseq:
            assert value == message.modseq, f"{uid} has MODSEQ {value}, was {message.modseq}"
        else:
            assert value > message.floor, f"{uid} has MODSEQ {value}, not above {message.floor} from before its change"
        message.modseq = value
        self.seen_modseq = max(self.seen_modseq, value)

    def changed_since(self, when: int) -> set[int]:
        return {uid for uid, message in self.messages.items() if message.changed > when}

    def gone_since(self, when: int) -> set[int]:
        return {uid for uid, at in self.gone.items() if at > when}

    def matches(self, uid: int, key: str, since: int) -> bool:
        """Whether SEARCH finds it; `since` is for MODSEQ."""
        flags = self.messages[uid].flags
        return {
            "ALL": True,
            "SEEN": b"\\Seen" in flags,
            "UNSEEN": b"\\Seen" not in flags,
            "DELETED": b"\\Deleted" in flags,
            "KEYWORD work": b"work" in flags,
            "UNKEYWORD $Label": b"$Label" not in flags,
            "MODSEQ": self.messages[uid].changed > since,
        }[key]

    def touched_by_others(self, session: int, since: int) -> set[int]:
        """UIDs whose flags somebody else changed."""
        recent = [(uid, by) for when, uid, by in self.touched if when > since]
        if any(by == FOREIGN for _, by in recent):
            return {uid for uid, _ in recent}  # a session's own change may be told with what was found there
        return {uid for uid, by in recent if by != session}


class World:
    """All mailboxes, by name."""

    def __init__(self) -> None:
        self.now = 0
        self.boxes: dict[str, Box] = {}
        self._tokens = 0

    def token(self) -> str:
        self._tokens += 1
        return f"message{self._tokens}"

    def _tick(self, box: Box) -> int:
        self.now += 1
        box.changed = self.now
        return self.now

    def add(self, box: Box, token: str, flags: Flags) -> int:
        """The UID it gets."""
        uid, box.uidnext = box.uidnext, box.uidnext + 1
        box.messages[uid] = Message(token, flags, self._tick(box), box.seen_modseq)
        return uid

    def flag(self, box: Box, uid: int, flags: Flags, by: int) -> None:
        message = box.messages[uid]
        if message.flags != flags:
            message.flags, message.changed = flags, self._tick(box)
            message.floor, message.modseq = box.seen_modseq, 0
            box.touched.append((self.now, uid, by))

    def remove(self, box: Box, uids: Iterable[int]) -> None:
        for uid in uids:
            del box.messages[uid]
            box.gone[uid] = self._tick(box)

    def copy(self, source: Box, uids: Sequence[int], target: Box) -> list[int]:
        return [self.add(target, source.messages[uid].token, source.messages[uid].flags) for uid in uids]

    def rename(self, old: str, new: str) -> None:
        box = self.boxes.pop(old)
        box.name = new
        self.boxes[new] = box


@dataclass
class Heard:
    """The responses to one command."""

    lines: list[bytes] = field(default_factory=list)
    fetched: dict[int, bytes] = field(default_factory=dict)  # by UID, all items
    flags: set[int] = field(default_factory=set)  # UIDs whose flags were told
    earlier: list[int] = field(default_factory=list)  # VANISHED (EARLIER)

    @property
    def tagged(self) -> bytes:
        return self.lines[-1]

    def code(self, pattern: bytes) -> re.Match[bytes] | None:
        return re.search(pattern, b"\n".join(self.lines))


class View:
    """A session's selected mailbox as its client knows it, moved only by what it is told.

    A client that is told of new messages is taken to look at them at once. During a race a message may be seen whose
    UID nobody knows yet, which is None here.
    """

    def __init__(self, box: Box, world: World, session: int, *, read_only: bool) -> None:
        self.box = box
        self.name = box.name
        self.world = world
        self.session = session
        self.read_only = read_only
        self.uids: list[int | None] = []
        self.flags: dict[int, Flags] = {}
        self.known_flags: Flags = frozenset()
        self.synced = world.now  # it was told everything up to then
        self.modseq = 0  # what a QRESYNC client would come back with

    @property
    def alive(self) -> bool:
        return self.world.boxes.get(self.name) is self.box

    @property
    def sure(self) -> list[int]:
        return [uid for uid in self.uids if uid is not None]

    def is_told(self, *, but_expunged: bool = False) -> bool:
        """Whether it knows of everything."""
        there = self.box.messages
        seen = [uid for uid in self.uids if uid in there] if but_expunged else self.uids
        return seen == self.box.uids and all(self.flags[uid] == message.flags for uid, message in there.items())

    def check(self, *, but_expunged: bool = False) -> None:
        """It has been told everything (RFC 3501 s. 5.2, 7.4.1)."""
        there = self.box.messages
        seen = [uid for uid in self.uids if uid in there] if but_expunged else self.uids
        assert seen == self.box.uids, f"session {self.session} sees {seen}, not {self.box.uids}"
        for uid, message in there.items():
            assert self.flags[uid] == message.flags, f"session {self.session}: {uid} was told as {self.flags[uid]}"
        self.synced = self.world.now

    def arrive(self, number: int) -> None:
        """EXISTS: only at the end, and never fewer (RFC 3501 s. 7.3.1, RFC 9051 s. 7.4.1)."""
        assert number >= len(self.uids), f"EXISTS {number} after {len(self.uids)}, but for no EXPUNGE"
        last = max(self.sure, default=0)
        # what it saw and lost again, or never saw before it was gone, does not come back
        fresh = [uid for uid in self.box.uids if uid > last]
        missing = number - len(self.uids)
        assert len(fresh) >= missing, f"EXISTS {number}, {missing} more, but there are only {fresh}"
        for uid in fresh[:missing]:
            self.uids.append(uid)
            self.flags[uid] = self.box.messages[uid].flags


class Ear:
    """How a session hears: every response is held against the model."""

    def __init__(self, session: int, *, condstore: bool, qresync: bool, uidonly: bool, rev2: bool) -> None:
        self.session = session
        self.condstore = condstore or qresync
        self.qresync = qresync
        self.uidonly = uidonly
        self.rev2 = rev2
        self.view: View | None = None

    def take(self, lines: Sequence[bytes], *, quiet: bool = False, racing: bool = False) -> Heard:
        """`quiet`: sequence numbers must stay; `racing`: others do something meanwhile."""
        heard = Heard(list(lines))
        view = self.view
        if view is None:
            for line in lines:
                about_messages = _EXPUNGE.fullmatch(line) or _FETCH.fullmatch(line)
                assert not about_messages, f"{line!r} without a mailbox"
            return heard
        highest = [int(found[1]) for line in lines if (found := _HIGHEST.search(line))]
        for line in lines:
            self._one(view, heard, line, quiet=quiet, racing=racing)
        modseqs = [int(found[1]) for items in heard.fetched.values() if (found := _MODSEQ.search(items))]
        view.modseq = highest[-1] if highest else max([view.modseq, *modseqs])
        return heard

    def _one(self, view: View, heard: Heard, line: bytes, *, quiet: bool, racing: bool) -> None:
        if found := _EXPUNGE.fullmatch(line):
            assert not quiet, f"{line!r} while numbers must stay"
            assert not self.qresync, f"{line!r} to a client that is to get VANISHED"
            assert not self.uidonly, f"{line!r}: a sequence number"
            assert 1 <= int(found[1]) <= len(view.uids), f"{line!r} of {len(view.uids)}"
            self._gone(view, view.uids[int(found[1]) - 1], racing=racing)
            del view.uids[int(found[1]) - 1]
        elif found := _VANISHED.fullmatch(line):
            if found[1]:
                assert not heard.fetched, "VANISHED (EARLIER) behind FETCH"
                heard.earlier += uids_of(found[2])
                return
            assert not quiet, f"{line!r} while numbers must stay"
            assert self.qresync or self.uidonly, f"{line!r} to a client that is to get EXPUNGE"
            for uid in uids_of(found[2]):
                self._gone(view, uid, racing=racing)
                self._vanish(view, uid)
        elif found := _EXISTS.fullmatch(line):
            if racing:
                assert int(found[1]) >= len(view.uids), f"EXISTS {line!r} after {len(view.uids)}"
                view.uids += [None] * (int(found[1]) - len(view.uids))
            else:
                view.arrive(int(found[1]))
        elif found := _FLAG_LIST.fullmatch(line):
            view.known_flags = frozenset(found[1].split())
        elif found := _FETCH.fullmatch(line):
            self._fetched(view, heard, found, racing=racing)

    @staticmethod
    def _vanish(view: View, uid: int) -> None:
        if uid in view.uids:
            view.uids.remove(uid)
            return
        unknown = [at for at, known in enumerate(view.uids) if known is None]
        assert unknown, f"VANISHED {uid}, which never was here"
        del view.uids[unknown[0]]

    @staticmethod
    def _gone(view: View, uid: int | None, *, racing: bool) -> None:
        assert racing or uid is not None, "expunged, but it was never named"
        assert racing or uid not in view.box.messages, f"{uid} was told as expunged, and is there"
        if uid is not None:
            view.flags.pop(uid, None)

    def _fetched(self, view: View, heard: Heard, found: re.Match[bytes], *, racing: bool) -> None:
        items, named = found[3], _UID.search(found[3].partition(b"{")[0])
        uid: int | None
        if found[2]:
            assert self.uidonly, "UIDFETCH to a client that has not asked for it"
            uid = int(found[1])
            if uid not in view.uids and None in view.uids:
                view.uids[view.uids.index(None)] = uid  # they ascend
        else:
            assert not self.uidonly, f"{found[0]!r}: a sequence number"
            assert 1 <= int(found[1]) <= len(view.uids), f"{found[0]!r} of {len(view.uids)}"
            at = int(found[1]) - 1
            uid = view.uids[at]
            if uid is None and named:
                uid = view.uids[at] = int(named[1])
        if uid is None:
            return  # told in a race
        assert named is None or int(named[1]) == uid, f"{found[0]!r}, but it is UID {uid}"
        assert uid in view.uids, f"{found[0]!r}: not told of yet"
        heard.fetched[uid] = heard.fetched.get(uid, b"") + b" " + items
        there = view.box.messages.get(uid)
        assert racing or there is not None, f"{found[0]!r}, and {uid} is expunged"
        if flags := _FLAGS.search(items):
            told = frozenset(flags[1].split()) - {b"\\Recent"}
            assert told <= view.known_flags, f"{found[0]!r} before FLAGS of these"
            # one that somebody else made meanwhile comes with FLAGS, before the command ends
            now = told if there is None or told == there.flags else there.flags & view.known_flags
            assert racing or there is None or told == now, f"{found[0]!r}, but {uid} has {there}"
            assert not self.condstore or _MODSEQ.search(items), f"{found[0]!r} without MODSEQ"
            assert not self.qresync or self.uidonly or named, f"{found[0]!r} without UID"
            view.flags[uid] = told
            heard.flags.add(uid)
        if (modseq := _MODSEQ.search(items)) and there is not None and not racing:
            view.box.modseq(uid, int(modseq[1]))


def subsets(items: Sequence[int], mask: int) -> Iterator[int]:
    """Those of `items` that the bits of `mask` choose, the mask used again for what lies beyond it."""
    for at, item in enumerate(items):
        if mask >> (at % 6) & 1:
            yield item
