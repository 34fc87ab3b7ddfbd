"""The checks of a process, and what becomes of them when a reload brings others.

Messages that began with the old ones end with them; then what those hold (a database, connections to rspamd, a thread)
is given back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pymx.checks.build import build_pipeline
from pymx.checks.check import Facts
from pymx.checks.pipeline import Pipeline
from pymx.checks.verdict import Level
from pymx.config.model import Config
from pymx.mailauth.questions import Questions


class CurrentChecks:
    """`pipeline` is the one in use, None when no check is on. Made once `judged` can be told; `close` at the end."""

    def __init__(self, resolver: Questions, judged: Callable[[Facts, Level], None] | None = None) -> None:
        self._resolver = resolver
        self._judged = judged
        self._settings: tuple[object, ...] | None = None
        self._retiring: dict[asyncio.Task[None], Pipeline] = {}
        self.pipeline: Pipeline | None = None

    def go_by(self, config: Config) -> None:
        """From now on these, in the running loop. Raises OSError, SecretUnavailable, with all as it was."""
        settings = (config.checks, config.rspamd, config.limits.trusted)
        if settings == self._settings:
            return
        pipeline = build_pipeline(config, self._resolver)
        if pipeline is not None:
            pipeline.judged = self._judged
        old, self.pipeline, self._settings = self.pipeline, pipeline, settings
        if old is not None:
            task = asyncio.get_running_loop().create_task(old.retire())
            self._retiring[task] = old
            task.add_done_callback(self._retiring.pop)

    async def close(self) -> None:
        """End them all, whatever message is still under way."""
        pipelines = list(self._retiring.values())
        waiting = list(self._retiring)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        if self.pipeline is not None:
            pipelines.append(self.pipeline)
        for pipeline in pipelines:
            await pipeline.close()
