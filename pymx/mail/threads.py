"""Messages as threads: ORDEREDSUBJECT and REFERENCES (RFC 5256 s. 3), REFS (draft-ietf-morg-inthread).

Input is one tuple per message in mailbox order: `(uid, date, base subject, reply, thread)`, the last four as the index
keeps them (`pymx.proto.imap.keys`): dates are Unix seconds, `thread` is 8 octets per message id.

Time is near linear whatever the messages refer to: a new link looks for a loop at most MAX_CLIMB steps up, and if that
was not far enough for all of them, loops are looked for once in the end. No recursion, since threads may be deep.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from struct import unpack

MAX_CLIMB = 256

Message = tuple[int, int, bytes, int, bytes]


@dataclass(slots=True)
class Forest:
    """Threads in order: nodes are UIDs, or negative for a message that is not there but holds others together."""

    roots: list[int]
    children: dict[int, list[int]] = field(default_factory=dict)


def by_subject(messages: Sequence[Message]) -> Forest:
    """ORDEREDSUBJECT: the earliest message of each base subject, the others of that subject under it."""
    groups: dict[bytes, list[int]] = {}
    for uid, _, subject, _, _ in sorted(messages, key=itemgetter(1)):
        groups.setdefault(subject, []).append(uid)
    # A dict keeps its order, so the groups are in the order of their first messages' dates.
    return Forest([group[0] for group in groups.values()], {group[0]: group[1:] for group in groups.values()})


def by_references(messages: Sequence[Message], *, merge_subjects: bool) -> Forest:
    """REFERENCES; without `merge_subjects` REFS, whose threads are in the order of their latest messages."""
    linked = _Linked(messages)
    roots, children = linked.pruned()
    dates = {uid: (date, number) for number, (uid, date, *_) in enumerate(messages)}
    for siblings in children.values():
        if len(siblings) > 1:
            siblings.sort(key=dates.__getitem__)
    _date_dummies(dates, roots, children)
    if merge_subjects:
        roots.sort(key=dates.__getitem__)
        roots = _merged(roots, children, {uid: (subject, reply) for uid, _, subject, reply, _ in messages})
        _date_again(dates, roots, children)
        roots.sort(key=dates.__getitem__)
    else:
        latest = _latest(roots, children, dates)
        roots.sort(key=latest.__getitem__)
    return Forest(roots, children)


class _Linked:
    """Step 1: who is whose parent. Nodes are message ids as numbers; the negative UID where there is none."""

    def __init__(self, messages: Iterable[Message]) -> None:
        self.parent: dict[int, int] = {}  # 0: none
        self.uid_of: dict[int, int] = {}
        self._gave_up = False
        for uid, _, _, _, thread in messages:
            self._add(uid, unpack(f">{len(thread) // 8}Q", thread) if thread else (0,))
        if self._gave_up:
            self._break_loops()

    def _add(self, uid: int, ids: tuple[int, ...]) -> None:
        parent = self.parent
        own = ids[0]
        if own == 0 or own in self.uid_of:
            own = -uid
        self.uid_of[own] = uid
        previous = 0
        for reference in ids[1:]:
            known = parent.get(reference)
            if known is None:
                parent[reference] = previous  # it is new, so it is above nobody
            elif known == 0 and previous and not self._is_above(reference, previous):
                parent[reference] = previous
            previous = reference
        known = parent.get(own)
        if known is None:
            parent[own] = previous
        elif known != previous:
            # Step 1 B: its own References say it better than those of others.
            parent[own] = 0
            if previous and not self._is_above(own, previous):
                parent[own] = previous

    def _is_above(self, node: int, other: int) -> bool:
        for _ in range(MAX_CLIMB):
            if other == node:
                return True
            other = self.parent[other]
            if other == 0:
                return False
        self._gave_up = True
        return False

    def _break_loops(self) -> None:
        parent = self.parent
        seen: dict[int, int] = {}
        for start in parent:
            node = start
            while node and node not in seen:
                seen[node] = start
                node = parent[node]
            if node and seen[node] == start:
                parent[node] = 0  # came back to where this walk has been

    def pruned(self) -> tuple[list[int], dict[int, list[int]]]:
        """Steps 2 and 3: roots and children by UID; what is not there remains only above several messages."""
        parent, uid_of = self.parent, self.uid_of
        top: dict[int, int] = {}  # node that is not there: the next above it that is, or its root
        children: dict[int, list[int]] = {}
        roots: list[int] = []
        absent: dict[int, int] = {}
        for node, uid in uid_of.items():
            above = parent[node]
            if above and above not in uid_of:
                above = self._next_there(above, top)
            if not above:
                roots.append(uid)
            elif above in uid_of:
                children.setdefault(uid_of[above], []).append(uid)
            else:
                children.setdefault(absent.setdefault(above, -1 - len(absent)), []).append(uid)
        for dummy in absent.values():
            if len(children[dummy]) == 1:
                roots += children.pop(dummy)
            else:
                roots.append(dummy)
        return roots, children

    def _next_there(self, node: int, top: dict[int, int]) -> int:
        passed = []
        while node not in self.uid_of and node not in top:
            passed.append(node)
            above = self.parent[node]
            if not above:
                break
            node = above
        found = top.get(node, node)
        for each in passed:
            top[each] = found
        return found


def _date_dummies(dates: dict[int, tuple[int, int]], nodes: Iterable[int], children: dict[int, list[int]]) -> None:
    """Step 4: what is not there has the date of its first child."""
    for node in nodes:
        if node < 0:
            dates[node] = dates[children[node][0]]


def _date_again(dates: dict[int, tuple[int, int]], roots: list[int], children: dict[int, list[int]]) -> None:
    """Step 6, where merging changed something: below roots."""
    for root in roots:
        if len(children.get(root, ())) > 1:
            children[root].sort(key=dates.__getitem__)
    _date_dummies(dates, roots, children)


def _merged(roots: list[int], children: dict[int, list[int]], subjects: dict[int, tuple[bytes, int]]) -> list[int]:
    """Step 5: threads of the same base subject become one."""

    def subject_of(root: int) -> tuple[bytes, int]:
        return subjects[root if root > 0 else children[root][0]]

    table: dict[bytes, int] = {}
    for root in roots:
        subject, reply = subject_of(root)
        first = table.get(subject)
        if first is None or (first > 0 and (root < 0 or (subject_of(first)[1] and not reply))):
            table[subject] = root
    kept: dict[int, None] = dict.fromkeys(roots)
    lowest = min(min(roots, default=0), 0)
    for root in roots:
        subject, reply = subject_of(root)
        first = table[subject]
        if not subject or first == root:
            continue
        del kept[root]
        if first < 0:
            children[first] += children.pop(root) if root < 0 else [root]
        elif reply and not subject_of(first)[1]:
            children.setdefault(first, []).append(root)
        else:
            lowest -= 1
            children[lowest] = [first, root]
            del kept[first]
            kept[lowest] = None
            table[subject] = lowest
    return list(kept)


def _latest(
    roots: list[int], children: dict[int, list[int]], dates: dict[int, tuple[int, int]]
) -> dict[int, tuple[int, int]]:
    """The latest date in each thread and the number of its root, by root."""
    found = {}
    for root in roots:
        latest, number = dates[root]
        waiting = list(children.get(root, ()))
        while waiting:
            node = waiting.pop()
            latest = max(latest, dates[node][0])
            waiting += children.get(node, ())
        found[root] = (latest, number)
    return found
