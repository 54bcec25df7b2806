"""Publish in a transaction of PostgreSQL: what is rolled back is never delivered.

    export DATABASE_URL=postgresql://user:password@127.0.0.1/shop
    uvicorn examples.publish_in_transaction:app

Follow the sales in a second terminal, and buy in a third; there are three apples:

    python -m websockets ws://127.0.0.1:8000/sales
    curl -X POST http://127.0.0.1:8000/buy/2
"""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute

from chatserver import Endpoint, Hub, broker_from_url, lifespan

URL = os.environ["DATABASE_URL"]
STOCK = "CREATE TABLE IF NOT EXISTS stock (apples integer CHECK (apples >= 0))"
FILL = "INSERT INTO stock SELECT 3 WHERE NOT EXISTS (SELECT FROM stock)"
PUBLISH = "SELECT chatserver.publish('sales', jsonb_build_object('sold', $1::int))"
SELL = "UPDATE stock SET apples = apples - $1"


class Sales(Endpoint):
    channels = ("sales",)
    encoding = "json"


async def buy(request: Request) -> JSONResponse:
    count = request.path_params["count"]
    try:
        async with request.app.state.pool.acquire() as database, database.transaction():
            await database.execute(PUBLISH, count)  # delivered when the transaction commits
            await database.execute(SELL, count)
    except asyncpg.CheckViolationError:
        return JSONResponse({"error": "not so many are left"}, 409)
    return JSONResponse({"sold": count})


@asynccontextmanager
async def with_pool(app: Starlette) -> AsyncGenerator[dict[str, Any]]:
    async with lifespan(app) as state, asyncpg.create_pool(URL) as app.state.pool:
        await app.state.pool.execute(f"{STOCK}; {FILL}")
        yield state


app = Starlette(
    routes=[Route("/buy/{count:int}", buy, methods=["POST"]), WebSocketRoute("/sales", Sales)],
    lifespan=with_pool,
)
app.state.hub = Hub(broker_from_url(URL))
