"""From a configuration file to running processes."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

from pymx import log
from pymx.accounts.account import AccountsError
from pymx.admin.control_client import ControlError
from pymx.app.lean import load_shared
from pymx.app.process import Process
from pymx.config.check import check
from pymx.config.load import ConfigError, load
from pymx.config.model import Config
from pymx.events.keeping import keep_events
from pymx.mailauth.dmarc.organization import load_suffixes
from pymx.metrics.lines import count_line
from pymx.net import notify
from pymx.net.listener import BindError
from pymx.net.tls import PemError, apply_asyncio_tls_buffer
from pymx.startup import Site, StartError, prepare
from pymx.supervisor import run_supervisor


def serve(path: Path) -> int:
    """Run the server with the configuration in `path` until SIGTERM. Returns the exit status.

    Raises ConfigError and OSError; what else keeps it from starting is said on standard error.
    """
    config = load(path)
    problems = check(config)
    if problems:
        raise ConfigError(f"{path}:\n" + "\n".join(f"  {problem}" for problem in problems))
    try:
        site = prepare(path, config)
        workers = (os.cpu_count() or 1) if config.workers == "auto" else config.workers
        if config.checks.dmarc:
            load_suffixes()  # once, for all processes that are forked from this one
        if workers == 1:
            return _run_process(site, "all", 0, _announce_ready, lambda: None)
        load_shared(config)
        return run_supervisor(
            config,
            site.sockets,
            workers,
            lambda role, number, ready, alive: _run_process(site, role, number, ready, alive),
            reload=lambda: _reload_certificates(site),
        )
    except (StartError, BindError, PemError) as e:
        print(f"pymx: {e}", file=sys.stderr)
        return 1


def _announce_ready() -> None:
    print("ready", flush=True)
    notify.ready()


def _run_process(site: Site, role: str, number: int, ready: Callable[[], None], alive: Callable[[], None]) -> int:
    """Run one process of the server in this one, until SIGTERM."""
    config = site.config
    writer = log.setup(level=config.log.level, form=config.log.format, timestamps="JOURNAL_STREAM" not in os.environ)
    events = keep_events(
        site.data_dir, site.runtime_dir, keep_days=config.events.keep_days, max_mb=config.events.max_mb,
        records=role != "session",
    )  # fmt: skip
    try:
        with events, asyncio.Runner(loop_factory=_loop_factory(config)) as runner:
            log.tap(count_line)
            return runner.run(Process(site, role, number).run(ready, alive))
    except (AccountsError, ControlError, StartError) as e:
        log.get("app").error("start_failed", reason=str(e))
        return 1
    finally:
        writer.stop()


def _loop_factory(config: Config) -> Callable[[], asyncio.AbstractEventLoop]:
    if config.event_loop == "uvloop":
        try:
            import uvloop
        except ImportError:
            log.get("app").warning("uvloop_missing", reason="asyncio's own event loop is used; it needs more memory")
        else:
            return uvloop.new_event_loop
    apply_asyncio_tls_buffer()
    return asyncio.new_event_loop


def _reload_certificates(site: Site) -> None:
    """In the supervisor: processes that are forked later start with the new certificate."""
    if site.certificates.configured:
        try:
            site.certificates.reload()
        except PemError as e:
            log.get("app").error("reload_failed", reason=f"{e}; everything stays as it was")
