"""The application of the tests of faults: it tells its clients all that the hub tells it.

    CHATSERVER_BROKER=redis://127.0.0.1:6379/0 uvicorn tests.recorder:app

A client sends, and gets:

    {"subscribe": "a", "since": [3, "epoch"]}
        {"answer": "a", "recovered": true, "publications": [[4, "epoch", "text"]], "position": …}
        then {"got": "a", "publication": [5, "epoch", "text"]} … until {"lost": "a"}
    {"publish": "a", "id": "1", "data": "text"}
        {"acknowledged": "1", "position": [6, "epoch"]}
    either, if the broker is not available:
        {"uncertain": "what it was about"}
"""

import asyncio
import os
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from chatserver import Endpoint, FromPath, Hub, health_routes, lifespan
from chatserver.brokers import Broker
from chatserver.brokers.postgres import PostgresBroker
from chatserver.brokers.redis import RedisBroker
from chatserver.errors import BrokerUnavailable
from chatserver.publication import ClientInfo, Delivery, Frame, Position, Publication
from chatserver.rules import Rules

#: More than is published in any run, so that whoever comes back recovers.
RULES = Rules(history_size=100_000)
#: Seconds after which the clients of a killed process are gone.
LEASE = 3.0


def of_publication(publication: Publication) -> list[Any]:
    return [publication.offset, publication.epoch, publication.data]


def of_position(position: Position) -> list[Any]:
    return [position.offset, position.epoch]


def as_frame(message: dict[str, Any]) -> Frame:
    return Frame(msgspec.json.encode(message).decode())


def encode(delivery: Delivery) -> Frame | None:
    if not isinstance(delivery, Publication):
        return None
    return as_frame({"got": delivery.channel, "publication": of_publication(delivery)})


class Recorder(Endpoint):
    encoding = "json"

    async def on_receive(self, websocket: WebSocket, data: dict[str, Any]) -> Any:
        try:
            if "publish" in data:
                return await self.acknowledge(data)
            await self.subscribe(data["subscribe"], data.get("since"), data.get("last_will"))
        except BrokerUnavailable:
            return {"uncertain": data.get("id") or data.get("subscribe")}

    async def acknowledge(self, data: dict[str, Any]) -> Any:
        position = await self.hub.publish(data["publish"], data["data"], id=data["id"])
        return {"acknowledged": data["id"], "position": of_position(position)}

    async def subscribe(self, channel: str, since: list[Any] | None, last_will: str | None) -> None:
        if channel in self.connection.members:
            await self.hub.leave(self.connection, channel)
        await self.hub.subscribe(
            self.connection,
            channel,
            encoder=encode,
            since=Position(*since) if since else None,
            info=None if last_will is None else ClientInfo(self.connection.id),
            last_will=last_will,
            answer=lambda subscribed: [
                as_frame(
                    {
                        "answer": channel,
                        "recovered": subscribed.recovered,
                        "publications": list(map(of_publication, subscribed.publications)),
                        "position": of_position(subscribed.position),
                    }
                )
            ],
            on_lost=lambda channel, _: self.task_group.start_soon(self.push, {"lost": channel}),
        )


class Followed(Endpoint):
    """What a class needs for clients that come back without a gap."""

    encoding = "json"
    channel_name: FromPath[str]
    channels = ("{channel_name}",)
    recover = True


async def tasks(request: Request) -> JSONResponse:
    """How many tasks the event loop has, without that of this request."""
    return JSONResponse(len(asyncio.all_tasks()) - 1)


def broker(url: str) -> Broker:
    kind = PostgresBroker if url.startswith("postgresql:") else RedisBroker
    return kind(url, rules=RULES, lease=LEASE)


app = Starlette(
    routes=[
        WebSocketRoute("/", Recorder),
        WebSocketRoute("/follow/{channel_name}", Followed),
        Route("/tasks", tasks),
        *health_routes(),
    ],
    lifespan=lifespan,
)
app.state.hub = Hub(broker(os.environ["CHATSERVER_BROKER"]))
