"""SQLAlchemy's Core in the event loop: an engine with an async driver, used through greenlets.

This is what `sqlalchemy.ext.asyncio` does for its AsyncConnection, without importing it: that package brings the
ORM with it, 6 MiB in every process for something nobody here uses.

Guarantees: a connection goes back to the pool, or is closed, whatever happens to the caller. A cancellation that comes
while a statement runs is raised inside SQLAlchemy, at the await of the driver; SQLAlchemy then gives the connection up
instead of returning one on which an answer is still due. One that comes while the connection is being handed back waits
until that is done, so that nothing is left checked out and `dispose` never runs beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import Any

from sqlalchemy import Connection, Engine, Executable
from sqlalchemy.util.concurrency import greenlet_spawn

Query = tuple[Executable, Mapping[str, object]]
Row = tuple[Any, ...]


@contextlib.asynccontextmanager
async def connect(engine: Engine) -> AsyncIterator[Connection]:
    """A connection of the pool for one block."""
    connection = await greenlet_spawn(engine.connect)
    try:
        yield connection
    finally:
        await to_the_end(greenlet_spawn(connection.close))


async def fetch(connection: Connection, query: Query) -> list[Row]:
    """All rows of one query."""
    return await greenlet_spawn(_fetch, connection, query)


async def dispose(engine: Engine) -> None:
    """Close the connections that are in the pool."""
    await greenlet_spawn(engine.dispose)


def _fetch(connection: Connection, query: Query) -> list[Row]:
    statement, values = query
    return [tuple(row) for row in connection.execute(statement, dict(values)).all()]


async def to_the_end(closing: Coroutine[Any, Any, None]) -> None:
    """Wait for `closing` even when cancelled meanwhile; the cancellation is raised afterwards."""
    task = asyncio.get_running_loop().create_task(closing)
    cancelled: asyncio.CancelledError | None = None
    while True:
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as e:
            if task.done():
                raise
            cancelled = e
        else:
            break
    if cancelled is not None:
        raise cancelled
