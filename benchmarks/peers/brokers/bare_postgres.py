"""PostgreSQL through asyncpg: what can be had of it, without what a broker promises.

`batched` writes what all publishers have to say in one statement: into a table, and to the
subscribers. `plain` only notifies, one statement for each, on the connections of a pool.
"""

# mypy: disable-error-code="import-untyped"

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import asyncpg

TABLE = "CREATE TABLE IF NOT EXISTS bare (number bigserial PRIMARY KEY, text text NOT NULL)"
BATCH = """
WITH added AS (INSERT INTO bare (text) SELECT * FROM unnest($1::text[]) RETURNING text)
SELECT count(pg_notify('bare', text)) FROM added
"""


@asynccontextmanager
async def publisher(url: str, kind: str) -> AsyncIterator[Callable[..., Awaitable[object]]]:
    async with asyncpg.create_pool(url) as pool:
        if kind == "plain":
            yield lambda text: pool.execute("SELECT pg_notify('bare', $1)", text)
            return
        await pool.execute(TABLE)
        async with pool.acquire() as connection:
            yield lambda *texts: connection.execute(BATCH, texts)


async def subscribe(url: str, kind: str, heard: Callable[[str], None]) -> None:
    connection = await asyncpg.connect(url)
    await connection.add_listener("bare", lambda *notification: heard(notification[-1]))
    await asyncio.Event().wait()
