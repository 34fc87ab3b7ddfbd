"""The active window: deliveries in memory, and which of them starts next. PURE: `now` (Unix seconds) is an argument.

Every destination has a lane, every site (see `queue.place`) its lanes and its pace. `next` goes round the sites, and
within a site round the lanes, so that a thousand messages for one get no more turns than one for another. Whoever has
a turn may keep it for a few messages, if they are quick, so that connections are reused.

Bounds. Some thousand deliveries are in the window, new and deferred ones counted apart; at most a hundred of each of
one site, so that a slow provider does not fill it. What does not fit stays on disk, and its destination is remembered
(`spilled`). Deferred mail gets at most four fifths of the slots. So nothing that is slow or old keeps new mail waiting.

What can't start because its place is dead or paused, or within a minute because of a rate, does not wait in the window:
`next` gives it back with the time when it may be tried. It is then judged like all that waits: too old, told of.

A destination whose place is not known yet waits until it is told (`place`); it holds up nobody else.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, islice

from pymx.queue.lane import Lane, Site
from pymx.queue.pace import FOREVER, Change, Pace, Rules
from pymx.queue.place import Kind, Limits, Place, Strain
from pymx.queue.state import Item, Taken, Want

HOLD_S = 60.0  # who has to wait for a rate no longer than that waits in the window
WINDOW = 4000  # deliveries in memory: of new mail, and as many of deferred
PER_SITE = 100  # of them, of one site
PAGE = 256
_REFILLS = 16  # destinations of one site asked for at once
_TURN = 10  # messages
_TURN_S = 2.0
_PLACES = 50_000
_PLACE_S = 3600.0
_GUESS_S = 60.0
_PACES = 20_000
_SET_BACK_S = 1.0


@dataclass(frozen=True, slots=True)
class Start:
    """Try this now; to be given back to `end`."""

    item: Item
    place: Place
    began: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Postpone:
    """This can't be tried before `until_s`."""

    item: Item
    until_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Noted:
    """A change of pace, for the log. `name` is of the site or of the hosts."""

    change: Change
    name: str
    pace: Pace


class Window:
    """`limits` are for places of which nothing else is known; without `placing` there are no others, with it `known`
    are those that need not be asked for. `saved` is what the last runner's `saved` gave.
    """

    def __init__(
        self, limits: Limits, rules: Rules, *, slots: int, placing: bool,
        known: Mapping[str, Place] | None = None, saved: Mapping[str, Mapping[str, object]] | None = None,
        now: float = 0.0,
    ) -> None:  # fmt: skip
        self._limits = limits
        self._rules = rules
        self._known = known or {}
        self._placing = placing
        self._deferred_slots = max(1, slots - max(1, slots // 5))
        self._lanes: dict[str, Lane] = {}
        self._sites: dict[str, Site] = {}
        self._unplaced: dict[str, None] = {}  # destinations
        self._unasked: dict[str, None] = {}  # of them, with new mail
        self._unasked_deferred: dict[str, None] = {}  # with deferred mail alone
        self._paces: dict[str, Pace] = {}
        self._places: OrderedDict[str, tuple[Place, float]] = OrderedDict()
        self._groups: dict[str, str] = {}  # destination → site, where they differ
        self._ready: deque[Site] = deque()
        self._timers: list[tuple[float, str]] = []
        self._spilled: dict[tuple[str, bool], dict[str, None]] = {}  # site and whether new mail → destinations
        self._stalled: dict[str, None] = {}  # sites with deferred mail that wants a slot
        self._saved = dict(saved or {})
        self._began = self._now = now
        self._active_deferred = 0
        self._forget_over = _PACES
        self.hungry = False  # there is room again for what is known to lie on disk
        self.fresh = 0
        self.deferred = 0

    # -- places -----------------------------------------------------------------------------------------------------

    def _place_of(self, destination: str, now: float) -> Place | None:
        found = self._places.get(destination)
        if found is not None and now < found[1] <= now + _PLACE_S:
            return found[0]
        if destination in self._known or not self._placing:
            return self._known.get(destination) or Place(destination, destination, self._limits)
        return None

    def to_place(self, limit: int) -> list[str]:
        """Destinations whose place is not known and was not asked for yet; they count as asked for now.

        Those with new mail first: after a restart thousands whose name servers are dead may be in line.
        """
        asked = list(islice(chain(self._unasked, self._unasked_deferred), limit))
        for destination in asked:
            self._forget_question(destination)
        return asked

    def _forget_question(self, destination: str) -> None:
        self._unasked.pop(destination, None)
        self._unasked_deferred.pop(destination, None)

    def place(self, destination: str, place: Place, now: float) -> list[Item]:
        """Where a destination's mail goes; what is too much of that site, to be given back."""
        self._remember(destination, place, now)
        self._unplaced.pop(destination, None)
        self._forget_question(destination)
        lane = self._lanes.get(destination)
        if lane is None or lane.place is not None:
            return []
        site = self._attach(lane, place)
        excess = []
        for kind, room in ((lane.fresh, PER_SITE - site.fresh), (lane.deferred, PER_SITE - site.deferred)):
            while len(kind) > max(0, room):
                excess.append(kind.pop())
        for item in excess:
            self._count(item, -1)
            self._spill(destination, fresh=item.fresh)
        site.fresh += len(lane.fresh)
        site.deferred += len(lane.deferred)
        self._drop_if_empty(site, lane)
        return excess

    def _remember(self, destination: str, place: Place, now: float) -> None:
        before = self._groups.get(destination, destination)
        self._places[destination] = (place, now + (_GUESS_S if place.is_guess else _PLACE_S))
        self._places.move_to_end(destination)
        while len(self._places) > _PLACES:
            gone, _ = self._places.popitem(last=False)
            if gone not in self._lanes:
                self._groups.pop(gone, None)
        if place.site != destination:
            self._groups[destination] = place.site
        else:
            self._groups.pop(destination, None)
        if before != place.site:
            for fresh in (True, False):
                if destination in self._spilled.get((before, fresh), ()):
                    self._unspill(before, destination, fresh=fresh)
                    self._spill(destination, fresh=fresh)

    def _attach(self, lane: Lane, place: Place) -> Site:
        lane.place = place
        site = self._sites.get(place.site)
        if site is None:
            site = self._sites[place.site] = Site(place.site, self._pace(place.site, place))
        site.lanes.append(lane)
        return site

    def _pace(self, name: str, place: Place) -> Pace:
        pace = self._paces.get(name)
        if pace is None:
            # the rates are counted at the site, where it is not the same
            limits = place.limits if name == place.site else Limits(place.limits.connections, 0)
            pace = self._paces[name] = Pace(limits, self._rules, warms_up=place.direct and name == place.site)
            if (saved := self._saved.pop(name, None)) is not None:
                pace.restore(saved, self._began)
        return pace

    # -- filling ----------------------------------------------------------------------------------------------------

    def want(self, now: float, *, lease: int, after_id: int, after_due: tuple[float, int]) -> Want:
        """What there is room for."""
        self.hungry = False
        waiting: dict[tuple[str, bool], int] = {}
        for site in self._sites.values():
            waiting[site.name, True] = site.fresh
            waiting[site.name, False] = site.deferred
        for destination in self._unplaced:
            lane = self._lanes[destination]
            waiting[destination, True] = len(lane.fresh)
            waiting[destination, False] = len(lane.deferred)
        return Want(
            now=now,
            lease=lease,
            after_id=after_id,
            fresh_limit=max(0, min(PAGE, WINDOW - self.fresh)),
            after_due=after_due,
            deferred_limit=max(0, min(PAGE, WINDOW - self.deferred)),
            per_site=PER_SITE,
            waiting=waiting,
            sites=self._groups,
            refill=self._refills(),
        )

    def _refills(self) -> list[tuple[str, bool]]:
        chosen: list[tuple[str, bool]] = []
        for (name, fresh), destinations in self._spilled.items():
            if len(chosen) >= PAGE:
                break
            if self._wants(name, fresh=fresh):
                chosen += [(destination, fresh) for destination in islice(destinations, _REFILLS)]
        return chosen

    def _wants(self, name: str, *, fresh: bool) -> bool:
        """Whether a site of which more lies on disk has room."""
        site, lane = self._sites.get(name), self._lanes.get(name)
        waiting = 0
        if site is not None:
            waiting = site.fresh if fresh else site.deferred
        elif lane is not None:
            waiting = len(lane.fresh if fresh else lane.deferred)
        return waiting <= PER_SITE // 2 and (self.fresh if fresh else self.deferred) < WINDOW

    def taken(self, taken: Taken) -> None:
        """What came of `want`; its items are to be added one by one."""
        for destination, fresh in taken.refilled:
            self._unspill(self._groups.get(destination, destination), destination, fresh=fresh)
        for destination, fresh in taken.spilled:
            self._spill(destination, fresh=fresh)

    def _spill(self, destination: str, *, fresh: bool) -> None:
        name = self._groups.get(destination, destination)
        self._spilled.setdefault((name, fresh), {})[destination] = None
        self.hungry = self.hungry or self._wants(name, fresh=fresh)

    def _unspill(self, name: str, destination: str, *, fresh: bool) -> None:
        destinations = self._spilled.get((name, fresh))
        if destinations is not None:
            destinations.pop(destination, None)
            if not destinations:
                del self._spilled[name, fresh]

    def add(self, item: Item, now: float) -> None:
        lane = self._lanes.get(item.destination)
        if lane is None:
            lane = self._lanes[item.destination] = Lane(item.destination)
            place = self._place_of(item.destination, now)
            if place is None:
                self._unplaced[item.destination] = None
                (self._unasked if item.fresh else self._unasked_deferred)[item.destination] = None
            else:
                self._attach(lane, place)
        elif item.fresh and item.destination in self._unasked_deferred:
            del self._unasked_deferred[item.destination]
            self._unasked[item.destination] = None
        (lane.fresh if item.fresh else lane.deferred).append(item)
        self._count(item, 1)
        if lane.place is not None:
            site = self._sites[lane.place.site]
            if item.fresh:
                site.fresh += 1
            else:
                site.deferred += 1
            self._list(site)

    def _count(self, item: Item, n: int) -> None:
        if item.fresh:
            self.fresh += n
        else:
            self.deferred += n

    def empty(self) -> list[Item]:
        """Take out everything that waits."""
        items = [item for lane in self._lanes.values() for kind in (lane.fresh, lane.deferred) for item in kind]
        self._lanes.clear()
        self._sites.clear()
        self._unplaced.clear()
        self._unasked.clear()
        self._unasked_deferred.clear()
        self._spilled.clear()
        self._ready.clear()
        self._timers.clear()
        self._stalled.clear()
        self.fresh = self.deferred = 0
        return items

    # -- choosing ---------------------------------------------------------------------------------------------------

    def _list(self, site: Site) -> None:
        if not site.listed:
            site.listed = True
            self._ready.append(site)

    def next(self, now: float, after: Start | None = None) -> Start | Postpone | None:
        """What to do next. `after` is what the asker just did: it may go on with the same destination for a while."""
        if after is not None and (again := self._same_again(after, now)) is not None:
            return again
        if now < self._now - _SET_BACK_S:
            # what waits for a time would wait until the clock has come there again
            self._timers.clear()
            for waiting in self._sites.values():
                self._list(waiting)
        self._now = now
        while self._timers and self._timers[0][0] <= now:
            _, name = heapq.heappop(self._timers)
            if (site := self._sites.get(name)) is not None:
                self._list(site)
        while self._ready or self._unstall():
            site = self._ready.popleft()
            site.listed = False
            if self._sites.get(site.name) is site and (found := self._of_site(site, now)) is not None:
                return found
        return None

    def _unstall(self) -> bool:
        """List a site again whose deferred mail had no slot, when there is one now."""
        while self._stalled and self._active_deferred < self._deferred_slots:
            name = next(iter(self._stalled))
            del self._stalled[name]
            if (site := self._sites.get(name)) is not None:
                self._list(site)
                return True
        return False

    def next_timer(self) -> float:
        """When `next` may have something because time has passed."""
        return self._timers[0][0] if self._timers else FOREVER

    def _same_again(self, after: Start, now: float) -> Start | None:
        lane = self._lanes.get(after.item.destination)
        if lane is None or lane.place is None or lane.turn >= _TURN or now - lane.turn_began > _TURN_S:
            return None
        site = self._sites[lane.place.site]
        hosts = self._hosts(lane.place, site)
        if site.pace.free_at(now) > now or hosts.free_at(now) > now:
            return None
        return self._start(site, lane, hosts, now)

    def _hosts(self, place: Place, site: Site) -> Pace:
        return site.pace if place.hosts == place.site else self._pace(place.hosts, place)

    def _of_site(self, site: Site, now: float) -> Start | Postpone | None:
        """Something of a site's lanes; it is listed again when there may be more."""
        at = site.pace.free_at(now)
        if _is_long(site.pace, at, now):
            return self._postpone(site, site.lanes[0], site.pace, now)
        if at > now:
            self._wake_at(site, at)
            return None
        earliest = FOREVER
        for _ in range(len(site.lanes)):
            lane = site.lanes[0]
            assert lane.place is not None
            hosts = self._hosts(lane.place, site)
            at = hosts.free_at(now)
            if _is_long(hosts, at, now):
                return self._postpone(site, lane, hosts, now)
            site.lanes.rotate(-1)
            if at > now:
                earliest = min(earliest, at)
                continue
            lane.turn, lane.turn_began = 0, now
            found = self._start(site, lane, hosts, now)
            if found is not None:
                return found
        self._wake_at(site, earliest)
        return None

    def _wake_at(self, site: Site, at: float) -> None:
        if at < FOREVER:
            heapq.heappush(self._timers, (at, site.name))

    def _start(self, site: Site, lane: Lane, hosts: Pace, now: float) -> Start | None:
        item = lane.pop(deferred_too=self._active_deferred < self._deferred_slots)
        if item is None:
            self._stalled[site.name] = None
            return None
        place = lane.place
        assert place is not None
        if not item.fresh:
            self._active_deferred += 1
        lane.turn += 1
        began = site.pace.begin(now)
        start = Start(item, place, (began, began if hosts is site.pace else hosts.begin(now)))
        self._popped(site, lane, item)
        return start

    def _postpone(self, site: Site, lane: Lane, pace: Pace, now: float) -> Postpone:
        item = lane.pop(deferred_too=True)
        assert item is not None
        until_s, reason = pace.postponed_until(now), pace.why(now)
        self._popped(site, lane, item)
        return Postpone(item, until_s, reason)

    def _popped(self, site: Site, lane: Lane, item: Item) -> None:
        self._count(item, -1)
        if item.fresh:
            site.fresh -= 1
        else:
            site.deferred -= 1
        if (site.name, item.fresh) in self._spilled and self._wants(site.name, fresh=item.fresh):
            self.hungry = True
        self._drop_if_empty(site, lane)

    def _drop_if_empty(self, site: Site, lane: Lane) -> None:
        if not lane:
            site.lanes.remove(lane)
            del self._lanes[lane.destination]
        if site.lanes:
            self._list(site)
        else:
            del self._sites[site.name]

    def end(self, start: Start, strain: Strain | None, *, accepted: bool, now: float) -> list[Noted]:
        """An attempt has ended; what changed by it."""
        if not start.item.fresh:
            self._active_deferred -= 1
        place = start.place
        paces = [(place.site, self._pace(place.site, place), start.began[0])]
        if place.hosts != place.site:
            paces.append((place.hosts, self._pace(place.hosts, place), start.began[1]))
        noted = []
        for name, pace, began in paces:
            # a customer's dead server is not the provider's, a provider's limit is not one customer's
            whose = Kind.DOWN if name == place.hosts else Kind.SLOW
            own = strain if strain is None or strain.kind is whose or place.hosts == place.site else None
            change = pace.end(now, began, own, accepted=accepted and strain is None)
            if change is not None:
                noted.append(Noted(change, name, pace))
        if (site := self._sites.get(place.site)) is not None:
            self._list(site)
        if len(self._paces) > self._forget_over:
            self._forget(now)
        return noted

    def _forget(self, now: float) -> None:
        self._paces = {
            name: pace for name, pace in self._paces.items() if not pace.is_plain(now) or name in self._sites
        }
        # all are looked at, so not again at each end when most can't be forgotten yet
        self._forget_over = max(_PACES, len(self._paces) * 2)

    def forgive(self) -> None:
        """End all pauses: an administrator wants it tried now."""
        for pace in self._paces.values():
            pace.forgive()
        for site in self._sites.values():
            self._list(site)

    # -- to look at, and over a restart -----------------------------------------------------------------------------

    def paces(self, now: float) -> Iterable[tuple[str, Pace]]:
        """Those that are not as new."""
        return ((name, pace) for name, pace in self._paces.items() if not pace.is_plain(now))

    def saved(self, now: float) -> dict[str, Mapping[str, object]]:
        """What has to survive a restart, what the last runner saved and nobody needed yet included."""
        kept = {name: saved for name, saved in self._saved.items() if is_of_use(saved, now)}
        return kept | {name: pace.saved() for name, pace in self.paces(now)}


def _is_long(pace: Pace, at: float, now: float) -> bool:
    return now < pace.paused_until or now + HOLD_S < at < FOREVER


def is_of_use(saved: Mapping[str, object], now: float) -> bool:
    """Whether a saved pace still says something."""
    paused_until, day = saved.get("paused_until"), saved.get("day")
    return (isinstance(paused_until, int | float) and paused_until > now) or day == int(now // 86_400)
