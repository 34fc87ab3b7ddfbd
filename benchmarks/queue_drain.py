"""How fast a long queue drains: N messages that wait already are delivered to smtp-sink (postfix).

    python benchmarks/queue_drain.py [--messages 20000] [--domains 1] [DIRECTORY]

Prints one JSON line: messages per second from the runner's start to the last recorded result, CPU per message, when the
first message was out, connections made, memory. With `--domains` above 1 the messages are for that many recipient
domains with MX records of their own (answered by a stub name server in another process), which all lead to the sink;
with 1 they go by a route. DIRECTORY has to be on a real disk: every result is synced.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import subprocess
import tempfile
import time
from pathlib import Path

import dns.message
import dns.rrset
from queue_enqueue import UnsyncedDisk, copy, free_port, opened, told

from pymx import log, metrics
from pymx.config.model import Dns, Outbound, Route
from pymx.mta.deliver import Deliver
from pymx.queue.manager import Manager
from pymx.resolver.resolver import Resolver


def answer_dns(port: int) -> None:
    """MX and A records for every name."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", port))
        while True:
            data, peer = sock.recvfrom(4096)
            query = dns.message.from_wire(data)
            question = query.question[0]
            response = dns.message.make_response(query)
            name, kind = question.name, dns.rdatatype.to_text(question.rdtype)
            text = {"MX": f"10 mx.{name}", "A": "127.0.0.1"}.get(kind)
            if text:
                response.answer.append(dns.rrset.from_text(name, 3600, "IN", kind, text))
            sock.sendto(response.to_wire(), peer)


def count(result: str) -> int:
    return int(metrics.snapshot().counters.get(f"queue_{result}", 0))


async def drain(directory: Path, messages: int, domains: int, sink: int, name_server: int) -> dict[str, object]:
    route = [Route(domain="*", host="127.0.0.1", port=sink, tls="none")] if domains == 1 else []
    outbound = Outbound(route=route, port=sink, allow_private=True, max_queue_messages=messages + 1000)
    async with opened(directory / "drain", outbound, UnsyncedDisk()) as queue:
        queue.wake = lambda: None
        for start in range(0, messages, 1000):
            await queue.enqueue([copy(n, f"d{n % domains}.test") for n in range(start, min(start + 1000, messages))])
    deliver = Deliver(Resolver(Dns(nameservers=[f"127.0.0.1:{name_server}"])), outbound, "mx.example.test")
    started, cpu = time.monotonic(), time.process_time()
    first = 0.0
    async with opened(directory / "drain", outbound) as queue:
        manager = Manager(queue, deliver.attempt, told, told, find_place=deliver.place)
        async with asyncio.TaskGroup() as group:
            group.create_task(manager.run())
            while (done := count("delivered")) + count("deferred") < messages:
                first = first or (time.monotonic() - started if done else 0.0)
                await asyncio.sleep(0.01)
            manager.stop()
    took, used = time.monotonic() - started, time.process_time() - cpu
    await deliver.close()
    return {
        "what": "drain",
        "messages": messages,
        "domains": domains,
        "deferred": count("deferred"),
        "drained_per_s": round(messages / took),
        "seconds": round(took, 1),
        "first_after_s": round(first, 2),
        "cpu_us_per_message": round(used / messages * 1e6),
        "connections": metrics.snapshot().counters["outbound_connections"],
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--domains", type=int, default=1)
    parser.add_argument("directory", nargs="?", type=Path, default=Path("/var/tmp"))
    a = parser.parse_args()
    import uvloop

    sink_port, dns_port = free_port(), free_port()
    user = ["-u", "root"] if os.geteuid() == 0 else []
    names = multiprocessing.Process(target=answer_dns, args=(dns_port,), daemon=True)
    names.start()
    sink = subprocess.Popen(["/usr/sbin/smtp-sink", *user, f"127.0.0.1:{sink_port}", "100"])
    try:
        with tempfile.TemporaryDirectory(dir=a.directory) as made, open(os.devnull, "w") as nowhere:
            running = log.setup(stream=nowhere)
            print(json.dumps(uvloop.run(drain(Path(made), a.messages, a.domains, sink_port, dns_port))), flush=True)
            running.stop()
    finally:
        sink.terminate()
        sink.wait()
        names.terminate()


if __name__ == "__main__":
    main()
