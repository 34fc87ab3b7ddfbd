"""The parent of all processes when `workers` is more than one: forks them, replaces them, passes signals on.

Guarantees:

- The code is imported and the heap frozen before the first fork, so the children share its memory.
- A child that dies is replaced within a second; one that keeps dying at once is restarted with growing gaps of up to
  30 s. A child that can't even start the first time ends the server with status 1, because its reason (a missing
  schema, a taken socket) will not go away by itself.
- SIGTERM and SIGINT are passed on; children that have not drained within `drain_s` and a grace period are killed. A
  second one kills at once. SIGHUP reloads what the supervisor holds and is passed on.
- "ready" is said, once, when every child has reported that it serves.
- A child whose event loop stands still for `hang_s` is killed and replaced. It gets SIGABRT first, at which it writes
  to standard error where each of its threads is.
- If the supervisor itself is killed, its children die with it: a new server finds the ports free and nobody else in
  the mailboxes.

It is a plain poll loop: no threads (fork copies only the calling one, and locks held by others would stay held for
ever) and no event loop (its epoll descriptor would be shared with the children). Signals arrive through a self-pipe
(`signal.set_wakeup_fd`), so none is lost between a check and the wait.

All session workers accept from the same listening sockets, inherited by fork; see docs/adr/.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import mmap
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pymx import log
from pymx.config.model import Config
from pymx.net import notify
from pymx.net.privileges import drop_privileges

Ready = Callable[[], None]
Alive = Callable[[], None]
Worker = Callable[[str, int, Ready, Alive], int]

GRACE_S = 5.0  # beyond drain_s, for what ends after the sessions: thread pools, databases
_HEALTHY_S = 2.0  # who has served that long did not die at once
_FIRST_GAP_S = 0.5
_LONGEST_GAP_S = 30.0
_ABORT_S = 2.0  # from SIGABRT to SIGKILL
_RUNNERS = frozenset({"status", "http", "https"})  # what the runner listens on, and nobody else
_BEAT = struct.Struct("d")
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_PR_SET_PDEATHSIG = 1  # prctl(2)


def run_supervisor(
    config: Config,
    sockets: Mapping[str, Sequence[socket.socket]],
    workers: int,
    worker: Worker,
    *,
    reload: Callable[[], None] | None = None,
) -> int:
    """Fork `workers` processes of role "session" and one "runner", and look after them until SIGTERM.

    `worker(role, number, ready, alive)` runs in the child, calls `ready()` when it serves, then `alive()` every second
    or so, handles SIGTERM and SIGHUP itself and returns its exit status. `sockets` are the listening ones; a child
    closes those that are not for its role. `reload()` is called
    on SIGHUP before the children hear of it, so that later children start with the new state too. Returns the exit
    status of the server.
    """
    log.setup_without_thread(
        level=config.log.level, form=config.log.format, timestamps="JOURNAL_STREAM" not in os.environ
    )
    drop_privileges(config.user)
    places = [Place("session", n) for n in range(1, workers + 1)] + [Place("runner", 0)]
    supervisor = _Supervisor(places, worker, reload, drain_s=config.drain_s, hang_s=config.hang_s)
    supervisor.listening = {name: list(group) for name, group in sockets.items()}
    return supervisor.run()


@dataclass(slots=True)
class Place:
    """A process that should be there, and the one that is."""

    role: str
    number: int
    pid: int = 0
    started: float = 0.0
    ready_pipe: int = -1  # read end; -1 once the child has reported or died
    ready: bool = False
    gap_s: float = 0.0  # before the next start
    due: float = 0.0  # when that is, while pid is 0
    kill_due: float = 0.0  # when a child that hangs and was told to abort is killed


class _Supervisor:
    def __init__(
        self,
        places: list[Place],
        worker: Worker,
        reload: Callable[[], None] | None,
        *,
        drain_s: float,
        hang_s: float,
    ) -> None:
        self._places = places
        self._worker = worker
        self._reload = reload
        self._drain_s = drain_s
        self._hang_s = hang_s
        self._looked = self._excused = time.monotonic()
        # when each child was last alive, by its place; 0 = it has not said so yet
        self._beats = mmap.mmap(-1, _BEAT.size * len(places))
        self.listening: dict[str, list[socket.socket]] = {}
        self._log = log.get("supervisor")
        self._announced = False
        self._kill_at: float | None = None  # set while stopping
        self._exit_status = 0
        self._wake_r, self._wake_w = -1, -1
        self._pid = os.getpid()
        self._heartbeat_s = notify.heartbeat_interval_s()

    def run(self) -> int:
        if threading.active_count() > 1:
            raise RuntimeError("the supervisor must not have threads when it forks")
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        old_handlers = {s: signal.signal(s, _only_wake_up) for s in _SIGNALS}
        old_wakeup = signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        try:
            # garbage first, then everything that is left moves out of the collector's reach: a later collection
            # in a child would write to each object's header and copy its page
            gc.collect()
            gc.freeze()
            for place in self._places:
                self._start(place)
            while self._kill_at is None or any(p.pid for p in self._places):
                self._wait()
        finally:
            signal.set_wakeup_fd(old_wakeup)
            for number, handler in old_handlers.items():
                signal.signal(number, handler)
            os.close(self._wake_r)
            os.close(self._wake_w)
        self._log.info("server_stopped", reason="status" if self._exit_status else "")
        return self._exit_status

    def _wait(self) -> None:
        """One turn: sleep until something happens or is due, then deal with it."""
        poll = select.poll()
        poll.register(self._wake_r, select.POLLIN)
        waiting = {p.ready_pipe: p for p in self._places if p.ready_pipe >= 0}
        for fd in waiting:
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(self._timeout_ms()):
            if fd != self._wake_r:
                self._heard_from(waiting[fd])
        for number in self._signals():
            if number in (signal.SIGTERM, signal.SIGINT):
                self._stop()
            elif number == signal.SIGHUP:
                self._pass_reload_on()
        self._reap()
        self._act_on_time()

    def _signals(self) -> list[int]:
        try:
            return sorted(set(os.read(self._wake_r, 4096)))
        except BlockingIOError:
            return []

    def _timeout_ms(self) -> int:
        now = time.monotonic()
        due = [p.due for p in self._places if not p.pid] if self._kill_at is None else [self._kill_at]
        if self._heartbeat_s is not None:
            due.append(now + self._heartbeat_s)
        if self._hang_s and self._kill_at is None:
            due.append(now + self._hang_s / 4)
            due += [p.kill_due for p in self._places if p.kill_due]
        return max(0, int((min(due) - now) * 1000) + 1) if due else -1

    def _act_on_time(self) -> None:
        now = time.monotonic()
        if self._heartbeat_s is not None:
            notify.heartbeat()
        if self._kill_at is None:
            for place in self._places:
                if not place.pid and place.due <= now:
                    self._start(place)
            if self._hang_s:
                self._look_for_hanging(now)
        elif self._kill_at <= now:
            for place in self._places:
                if place.pid:
                    self._log.warning("worker_killed", role=place.role, pid=place.pid, reason="did not drain in time")
            self._signal_all(signal.SIGKILL)
            self._kill_at = now + GRACE_S  # SIGKILL takes a moment, longer in uninterruptible I/O

    def _look_for_hanging(self, now: float) -> None:
        if now - self._looked > self._hang_s / 2:
            self._excused = now  # we did not run either: the machine or the container was frozen
        self._looked = now
        for number, place in enumerate(self._places):
            if not place.pid or not place.ready:
                continue
            (beat,) = _BEAT.unpack_from(self._beats, number * _BEAT.size)
            if place.kill_due:
                if place.kill_due <= now:
                    os.kill(place.pid, signal.SIGKILL)
            elif beat and now - max(beat, self._excused) > self._hang_s:
                self._log.error(
                    "worker_hangs", role=place.role, number=place.number, pid=place.pid,
                    reason=f"its event loop has stood still for {now - beat:.0f} s; it is killed",
                )  # fmt: skip
                os.kill(place.pid, signal.SIGABRT)
                place.kill_due = now + _ABORT_S

    # children

    def _start(self, place: Place) -> None:
        slot = self._places.index(place) * _BEAT.size
        _BEAT.pack_into(self._beats, slot, 0.0)
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(read_end, False)
        # until the child has its own handlers a signal must neither run ours in it nor be lost
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            pid = os.fork()
        except OSError as e:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            os.close(read_end)
            os.close(write_end)
            place.gap_s = min(max(place.gap_s * 2, _FIRST_GAP_S), _LONGEST_GAP_S)
            place.due = time.monotonic() + place.gap_s
            self._log.error("fork_failed", role=place.role, error=e.strerror)
            return
        if pid == 0:
            os.close(read_end)
            self._run_child(place, write_end, slot)  # never returns
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        os.close(write_end)
        place.pid, place.started, place.ready_pipe, place.ready = pid, time.monotonic(), read_end, False
        place.kill_due = 0.0
        self._log.info("worker_started", role=place.role, number=place.number, pid=pid)

    def _run_child(self, place: Place, ready_pipe: int, slot: int) -> None:
        """What the child does from fork to exit."""
        status = 1
        try:
            _die_with_parent(self._pid)
            notify.forget()
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            # Ctrl-C goes to the whole process group; the supervisor says when and how to stop
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            for fd in (self._wake_r, self._wake_w, *(p.ready_pipe for p in self._places if p.ready_pipe >= 0)):
                os.close(fd)
            for name, group in self.listening.items():
                if (place.role == "runner") != (name in _RUNNERS):
                    for sock in group:
                        sock.close()
            faulthandler.enable()  # SIGABRT from the supervisor says where it hangs
            # SIGHUP waits until `ready`: by then the worker has a handler, and it is not lost
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})

            def ready() -> None:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
                os.write(ready_pipe, b"1")
                os.close(ready_pipe)

            def alive() -> None:
                _BEAT.pack_into(self._beats, slot, time.monotonic())

            status = self._worker(place.role, place.number, ready, alive)
        except BaseException:  # a forked child must not return into its parent's frames, whatever happens
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):  # whoever read our output may be gone
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def _heard_from(self, place: Place) -> None:
        """The child has reported, or died before it did (then the pipe is just closed)."""
        try:
            place.ready = os.read(place.ready_pipe, 1) == b"1"
        except BlockingIOError:
            place.ready = False  # the child is dead, but a child of its own still holds the other end
        os.close(place.ready_pipe)
        place.ready_pipe = -1
        if place.ready and not self._announced and self._kill_at is None and all(p.ready for p in self._places):
            self._announced = True
            self._log.info("server_ready", count=len(self._places))
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            notify.ready()

    def _reap(self) -> None:
        """Collect all children that have ended. Several deaths may come with one SIGCHLD."""
        while True:
            try:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            place = next((p for p in self._places if p.pid == pid), None)
            if place is not None:
                self._ended(place, os.waitstatus_to_exitcode(wait_status))

    def _ended(self, place: Place, code: int) -> None:
        now = time.monotonic()
        pid, place.pid = place.pid, 0
        if place.ready_pipe >= 0:
            self._heard_from(place)
        if self._kill_at is not None:
            if code:
                self._log.warning("worker_died", role=place.role, pid=pid, reason=_reason(code))
            return
        self._log.error("worker_died", role=place.role, number=place.number, pid=pid, reason=_reason(code))
        if not self._announced and not place.ready and code > 0:
            self._exit_status = 1
            self._stop()
            return
        if place.ready and now - place.started >= _HEALTHY_S:
            place.gap_s = 0.0
            place.due = now
        else:
            # the first quick death may be bad luck, the next ones are not
            place.due = now + place.gap_s
            place.gap_s = min(max(place.gap_s * 2, _FIRST_GAP_S), _LONGEST_GAP_S)

    # signals

    def _stop(self) -> None:
        now = time.monotonic()
        if self._kill_at is not None:
            self._kill_at = now
            return
        self._log.info("server_stopping", count=sum(1 for p in self._places if p.pid))
        notify.stopping()
        self._kill_at = now + self._drain_s + GRACE_S
        # the children still accept from their own copies until they have heard it; ours would keep the port taken
        for sock in (sock for group in self.listening.values() for sock in group):
            sock.close()
        self._signal_all(signal.SIGTERM)

    def _pass_reload_on(self) -> None:
        if self._kill_at is not None:
            return
        self._log.info("server_reloading")
        notify.reloading()
        if self._reload is not None:
            self._reload()
        self._signal_all(signal.SIGHUP)
        notify.ready()

    def _signal_all(self, number: signal.Signals) -> None:
        for place in self._places:
            if place.pid:
                # not reaped yet, so the pid is still ours even if the process is gone
                os.kill(place.pid, number)


def _only_wake_up(_number: int, _frame: object) -> None:
    """The signal is read from the self-pipe; without a Python handler nothing would be written to it."""


def _die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends; nobody would look after it any more."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        raise RuntimeError("the supervisor ended during the fork")


def _reason(code: int) -> str:
    """Of a child's end, for the log."""
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"ended with status {code}"
