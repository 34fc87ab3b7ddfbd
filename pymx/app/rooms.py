"""What every process builds, whatever its role, and hands to the parts that differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pymx.accounts.directory import Directory
from pymx.config.model import Config
from pymx.junk.filter import Filter
from pymx.mda.deliver import Mda
from pymx.ms.store import Store
from pymx.mta.bounce import Bounce
from pymx.mta.dispatch import Dispatch
from pymx.mta.forward import Forwarder
from pymx.queue.queue import Queue
from pymx.resolver.resolver import Resolver
from pymx.startup import Site

INVALIDATE = "invalidate"


class Notices:
    """Who wants to hear which notice of the other processes: the first word decides, the rest is its argument."""

    def __init__(self) -> None:
        self._listeners: dict[str, list[Callable[[str], None]]] = {}
        self.broadcast: Callable[[str], None] | None = None  # to the other processes

    def on(self, word: str, listener: Callable[[str], None]) -> None:
        """Call `listener` in the loop with what follows `word` and a space ("" when nothing does)."""
        self._listeners.setdefault(word, []).append(listener)

    def heard(self, notice: str) -> None:
        """A notice has arrived; nobody has to want it."""
        word, _, argument = notice.partition(" ")
        for listener in self._listeners.get(word, ()):
            listener(argument)

    def tell(self, notice: str) -> None:
        """Let all processes hear it, this one too."""
        self.heard(notice)
        if self.broadcast is not None:
            self.broadcast(notice)


@dataclass(frozen=True, slots=True)
class Rooms:
    """The rooms that a process of any role has, started."""

    site: Site
    directory: Directory
    store: Store
    queue: Queue
    mda: Mda
    dispatch: Dispatch
    bounce: Bounce
    forwarder: Forwarder
    resolver: Resolver
    own_filter: Filter | None = None
    notices: Notices = field(default_factory=Notices)

    @property
    def config(self) -> Config:
        return self.site.config
