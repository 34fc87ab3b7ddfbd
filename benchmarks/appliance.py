"""Start a pymx with many users for a load generator, and leave it running until Ctrl-C.

    python benchmarks/appliance.py DIRECTORY [--workers N] [--database URL] [--users 200] [--no-checks] [--no-events]

Writes into DIRECTORY: `users.txt` ("address password" per line), `procs.txt` ("pymx=PID"), `pymx.toml`, the log. Ports:
SMTP 2525+1000·k are fixed so that a command line can be repeated: 3525 SMTP, 3465 submission (TLS), 3587 submission
(STARTTLS), 3993 IMAP (TLS). Mail for sink.test is handed to 127.0.0.1:REMOTE-PORT. The disk under DIRECTORY is what is
measured; a tmpfs would hide the syncs.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from pathlib import Path

from pymx.admin import ctl
from pymx.net.certificate import write_self_signed

CONFIG = """\
hostname = "mx.alpha.test"
data_dir = "{top}/data"
user = "none"
workers = {workers}
event_loop = "{loop}"
[database]
url = "{database}"
[mail]
root = "{top}/vmail"
[accounts]
bcrypt_cost = 5
postmaster = "u001@alpha.test"
[tls]
certificate = "{top}/tls/cert.pem"
private_key = "{top}/tls/key.pem"
[smtp]
listen = ["127.0.0.1:3525"]
max_connections_per_ip = 500
[submission]
listen_tls = ["127.0.0.1:3465"]
listen_starttls = ["127.0.0.1:3587"]
[imap]
listen_tls = ["127.0.0.1:3993"]
max_connections_per_ip = 10000
max_connections = 10000
[control]
socket = "{top}/run/control.sock"
[dns]
nameservers = [{nameservers}]
[checks]
spf = {checks}
dkim = {checks}
dmarc = {checks}
arc = {checks}
iprev = {checks}
helo = {checks}
early_talker = {checks}
[limits]
account_messages_per_day = 0
account_new_recipients_per_day = 0
[events]
keep_days = {keep_days}
[outbound]
allow_private = true
max_per_destination = 20
keep_connection_s = 1
[[outbound.route]]
domain = "sink.test"
host = "127.0.0.1"
port = {remote_port}
tls = "none"
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--database", default="")
    parser.add_argument("--loop", default="uvloop")
    parser.add_argument("--no-checks", action="store_true", help="no SPF, DKIM, DMARC, ARC")
    parser.add_argument("--no-events", action="store_true", help="nothing is kept for pymxctl trace")
    parser.add_argument("--nameserver", default="", help="ADDRESS:PORT for the checks")
    parser.add_argument("--remote-port", type=int, default=2525)
    a = parser.parse_args()
    top = a.directory.resolve()
    config = top / "pymx.toml"
    for directory in (top, top / "data", top / "vmail"):
        directory.mkdir(parents=True, exist_ok=True)
    if not (top / "tls").exists():
        write_self_signed(top / "tls", ("mx.alpha.test", "localhost"), address="127.0.0.1")
    config.write_text(
        CONFIG.format(
            top=top,
            workers=a.workers,
            loop=a.loop,
            database=a.database or f"sqlite:///{top}/pymx.sqlite",
            remote_port=a.remote_port,
            checks=str(not a.no_checks).lower(),
            keep_days=0 if a.no_events else 30,
            nameservers=f'"{a.nameserver}"' if a.nameserver else "",
        )
    )
    if not (top / "users.txt").exists():
        set_up(config, top, a.users)
    server = subprocess.Popen(
        [sys.executable, "-m", "pymx", "serve", "--config", str(config)],
        stdout=subprocess.PIPE,
        stderr=(top / "pymx.log").open("ab"),
        text=True,
        start_new_session=True,
    )
    (top / "procs.txt").write_text(f"pymx={server.pid}\n")
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: server.terminate())
    for line in server.stdout or ():
        print(line.strip(), flush=True)
    return server.wait()


def set_up(config: Path, top: Path, count: int) -> None:
    from pymx.accounts.passwords import make
    from pymx.accounts.registry import Registry
    from pymx.config.load import load

    run = ["--config", str(config)]
    for domain in ("alpha.test", "beta.test"):
        assert ctl.main([*run, "domain", "add", domain]) == 0
        assert ctl.main([*run, "dkim", "generate", domain]) == 0
    loaded = load(config)
    registry = Registry(loaded.database)
    lines = []
    for i in range(1, count // 2 + 1):
        for domain in ("alpha.test", "beta.test"):
            registry.add_user(f"u{i:03d}@{domain}", make(f"secret{i:03d}", loaded.accounts.bcrypt_cost))
            lines.append(f"u{i:03d}@{domain} secret{i:03d}\n")
    registry.close()
    (top / "users.txt").write_text("".join(lines))


if __name__ == "__main__":
    sys.exit(main())
