"""A server with a trivial worker under the real supervisor, run as a process of its own by test_supervisor.py.

The worker says on its connection who it is and as whom it runs; "die", "hang", "freeze" and "stop" do what they say.
Arguments: port file, workers, user, drain_s, behaviour of the start ("ok", "fail", "loop", "watched": a worker that
freezes is replaced after a second).
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from pymx.config.model import Config
from pymx.supervisor import run_supervisor

# something to be shared: objects of the kind that imported code consists of
BALLAST = [[[i], [str(i)]] for i in range(100_000)]


def main() -> int:
    port_file, workers, user, drain_s, behaviour = sys.argv[1:]
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    listener.setblocking(False)
    config = msgspec.structs.replace(
        Config(), user=user, drain_s=int(drain_s), hang_s=1 if behaviour == "watched" else 0
    )
    reloads = []

    def worker(role: str, number: int, ready: Callable[[], None], alive: Callable[[], None]) -> int:
        stop, hups = [], []
        if behaviour == "fail" and role == "runner":
            print("no schema", file=sys.stderr)
            return 3
        signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
        signal.signal(signal.SIGHUP, lambda *_: hups.append(1))
        gc.collect()
        ready()
        if behaviour == "loop" and role == "runner":
            return 1
        if role == "runner":
            assert listener.fileno() == -1, "the runner must not hold the ports"
        hanging = False
        while not stop or hanging:
            alive()
            if role == "runner":
                time.sleep(0.02)
                continue
            readable, _, _ = select.select([listener], [], [], 0.02)
            if not readable:
                continue
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                continue
            connection.setblocking(True)
            with connection:
                command = connection.recv(100).decode().strip()
                hanging = command == "hang"
                words = [role, number, os.getpid(), os.getuid(), os.getgid(), len(os.getgroups()), len(hups)]
                connection.sendall(" ".join(map(str, [*words, len(reloads)])).encode())
                if command == "freeze":
                    while True:
                        time.sleep(60)
                if command == "stop":
                    os.kill(os.getpid(), signal.SIGSTOP)
                if command == "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                if command == "slow":  # a session that needs its time to drain
                    while not stop:
                        time.sleep(0.01)
                    time.sleep(0.3)
                    connection.sendall(b" drained")
        return 0

    partial = Path(port_file + ".new")
    partial.write_text(str(listener.getsockname()[1]))
    partial.rename(port_file)
    return run_supervisor(config, {"smtp": [listener]}, int(workers), worker, reload=lambda: reloads.append(1))


if __name__ == "__main__":
    sys.exit(main())
