"""How connections spread over workers: one shared listening socket, or one each with SO_REUSEPORT.

    python benchmarks/accept_spread.py {shared|reuseport} {uvloop|asyncio} [WORK_MS] [CONNECTIONS] [BURST]

Two forked workers; each connection costs its worker WORK_MS of CPU (a TLS handshake, a message). Prints connections per
worker and how long a connection took from connect to reply. See docs/adr/0002-one-shared-listening-socket.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time

WORKERS = 2


def listener(port: int, *, reuseport: bool) -> socket.socket:
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuseport:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    s.bind(("127.0.0.1", port))
    s.listen(512)
    s.setblocking(False)
    return s


class Worker(asyncio.Protocol):
    count = 0
    work_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        Worker.count += 1
        self.transport = transport
        transport.write(b"220 hi\r\n")

    def data_received(self, _data: bytes) -> None:
        end = time.perf_counter() + Worker.work_s
        while time.perf_counter() < end:
            pass
        self.transport.write(b"250 ok\r\n")


async def serve(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Worker, sock=sock, backlog=512)
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    server.close()


def fork_worker(sock: socket.socket, loop_name: str) -> tuple[int, int]:
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write_end)
        return pid, read_end
    if loop_name == "uvloop":
        import uvloop

        uvloop.run(serve(sock))
    else:
        asyncio.run(serve(sock))
    os.write(write_end, json.dumps(Worker.count).encode())
    os._exit(0)


async def client(port: int, connections: int, burst: int) -> list[float]:
    took, writers = [], []

    async def one() -> None:
        started = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await reader.readline()
        writer.write(b"x\r\n")
        await reader.readline()
        took.append(time.perf_counter() - started)
        writers.append(writer)

    for _ in range(0, connections, burst):
        await asyncio.gather(*(one() for _ in range(burst)))
    for writer in writers:
        writer.close()
    return sorted(took)


def main() -> None:
    mode, loop_name = sys.argv[1:3]
    work_ms, connections, burst = (float(x) for x in (*sys.argv[3:], *("2", "200", "10")[len(sys.argv) - 3 :]))
    Worker.work_s = work_ms / 1000
    first = listener(0, reuseport=mode == "reuseport")
    port = first.getsockname()[1]
    socks = [first] * WORKERS
    if mode == "reuseport":
        socks = [first, *(listener(port, reuseport=True) for _ in range(WORKERS - 1))]
    workers = [fork_worker(s, loop_name) for s in socks]
    time.sleep(0.5)
    started = time.perf_counter()
    took = asyncio.run(client(port, int(connections), int(burst)))
    wall = time.perf_counter() - started
    counts = []
    for pid, read_end in workers:
        os.kill(pid, signal.SIGTERM)
        counts.append(json.loads(os.read(read_end, 100)))
        os.waitpid(pid, 0)
    p50, p99 = took[len(took) // 2] * 1000, took[int(len(took) * 0.99)] * 1000
    print(f"{mode} {loop_name}: per worker {counts}, wall {wall:.2f} s, p50 {p50:.1f} ms, p99 {p99:.1f} ms")


if __name__ == "__main__":
    main()
