"""Core through greenlets: what cancellation and errors leave behind in the pool."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy.exc import DBAPIError

from pymx.accounts import reading, tables
from pymx.accounts.database import configured_url, is_sqlite, reading_url
from pymx.accounts.registry import Registry
from pymx.config.model import Database

NAMES = (select(tables.domains.c.name).order_by(tables.domains.c.name), {})


@pytest.fixture
async def engine(database: Database, registry: Registry) -> AsyncIterator[Engine]:
    engine = create_engine(reading_url(configured_url(database)), isolation_level="AUTOCOMMIT", pool_size=1)
    yield engine
    await reading.dispose(engine)


def long_query(database: Database) -> reading.Query:
    """One that takes about a second."""
    if is_sqlite(configured_url(database)):
        count = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000000) SELECT max(i) FROM n"
        return text(count), {}
    return text("SELECT SLEEP(1)"), {}


async def names(engine: Engine) -> list[reading.Row]:
    async with reading.connect(engine) as connection:
        return await reading.fetch(connection, NAMES)


async def test_rows_come_as_plain_tuples_and_the_connection_goes_back(engine: Engine):
    assert await names(engine) == [("example.test",), ("other.test",)]
    assert engine.pool.checkedout() == 0
    assert engine.pool.checkedin() == 1


async def test_an_error_leaves_a_connection_that_works(engine: Engine):
    with pytest.raises(DBAPIError):
        async with reading.connect(engine) as connection:
            await reading.fetch(connection, (text("SELECT nothing FROM nowhere"), {}))
    assert engine.pool.checkedout() == 0
    assert await names(engine) == [("example.test",), ("other.test",)]


@pytest.mark.parametrize("at", ["at once", "in the query"])
async def test_a_cancelled_query_leaves_nothing_behind(engine: Engine, database: Database, at: str):
    """The next one must not be given the rows of the one before it, nor a connection that still waits for them."""
    if at == "in the query":
        await names(engine)  # there is a connection: the query starts without waiting for one

    async def ask() -> None:
        async with reading.connect(engine) as connection:
            await reading.fetch(connection, long_query(database))

    asking = asyncio.create_task(ask())
    await asyncio.sleep(0)
    assert not asking.done()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert engine.pool.checkedout() == 0
    assert await names(engine) == [("example.test",), ("other.test",)]


async def test_many_that_are_cancelled_at_any_step_do_not_use_up_the_pool(engine: Engine):
    for steps in range(40):
        asking = asyncio.create_task(names(engine))
        for _ in range(steps):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert engine.pool.checkedout() == 0
    assert await names(engine) == [("example.test",), ("other.test",)]


async def test_a_time_limit_ends_the_wait(engine: Engine, database: Database):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), reading.connect(engine) as connection:
            await reading.fetch(connection, long_query(database))
    assert engine.pool.checkedout() == 0
    assert await names(engine) == [("example.test",), ("other.test",)]


async def test_handing_back_is_finished_though_cancelled_twice():
    """Nobody may close the pool, or think it closed, while a connection is on its way back."""
    may_end, steps = asyncio.Event(), []

    async def close() -> None:
        steps.append("begun")
        await may_end.wait()
        steps.append("done")

    closing = asyncio.create_task(reading.to_the_end(close()))
    for _ in range(2):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        closing.cancel()
    await asyncio.sleep(0)
    assert steps == ["begun"]
    assert not closing.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert steps == ["begun", "done"]
