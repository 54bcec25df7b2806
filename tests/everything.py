"""Endpoint classes with whatever an AsyncAPI document has to describe, in one application."""

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, NamedTuple, TypedDict, TypeVar

from fastapi import Depends, FastAPI, Header, Query, Security, security
from msgspec import Meta, Struct
from pydantic import BaseModel, Field, computed_field
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Host, Mount, Router, WebSocketRoute
from starlette.websockets import WebSocket

from chatserver import (
    Endpoint,
    FromCookie,
    FromHeader,
    FromPath,
    FromQuery,
    ItemEndpoint,
    Message,
    Publication,
    identify,
    on_message,
)
from chatserver.asyncapi import asyncapi_route

if TYPE_CHECKING:
    from decimal import Decimal

__all__ = ["app"]

T = TypeVar("T")


class Colour(Enum):
    """The colours that there are."""

    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Custom:
    """A class that neither msgspec nor pydantic knows."""


class Leaf(Message):
    n: int = 0


class Tree(Message):
    """A tree.

    Grows.

    Attributes:
        left: What is on the left,
            if anything.
    """

    left: "Tree | None" = None
    pair: tuple[int, str] = (1, "a")
    colour: Colour = Colour.RED
    level: Level = Level.LOW
    most: float = math.inf
    raw: bytes = b""
    custom: Custom | None = None
    name: Annotated[str, Meta(pattern="^[a-z]+$", description="In small letters.")] = "a"
    children: dict[str, list["Tree"]] | None = None
    one_of: "Tree | Leaf | int | None" = None


class Part(BaseModel):
    pair: tuple[int, str]


class Quiet(BaseModel):
    type: Literal["quiet"]
    inner: "Quiet | None" = None


class Loud(BaseModel):
    """A loud one."""

    type: Literal["loud"] = "loud"
    part: Part = Field(description="A part.")
    either: Annotated["Loud | Quiet | None", Field(discriminator="type")] = None

    @computed_field
    def length(self) -> int:
        return 1


class Sum(BaseModel):
    type: Literal["sum"] = "sum"
    a: int

    @computed_field
    def double(self) -> int:
        return 2 * self.a


class Wave(BaseModel):
    hand: str = "right"


class Exact(BaseModel, extra="forbid"):
    user_name: str = Field(alias="userName")


class Closed(Message, forbid_unknown_fields=True):
    n: int


@dataclass
class Point:
    x: int
    y: int = 0


class Typed(TypedDict, total=False):
    points: list[Point]


class Named(NamedTuple):
    a: int
    b: str = ""


class Page(Struct, Generic[T]):
    items: list[T]


class Array(Struct, array_like=True, tag=True):
    a: int


Answer = Typed | Point | Named | Page[int] | Array | dict[str, Any] | list[int] | int | str | bytes


class Every(Endpoint):
    """Has every kind of parameter.

    And a second paragraph.

    Attributes:
        name: Who it is.
        request_id: What the log calls it.
    """

    name: FromPath[str]
    number: FromPath[int]
    colour: FromPath[Colour]
    letter: FromPath[Literal["a", "b"]]
    level: FromPath[Level]
    ident: FromPath[uuid.UUID]
    count: FromQuery[Annotated[int, Meta(ge=1, description="How many.", examples=[3])]] = 3
    tags: FromQuery[tuple[str, ...]] = ()
    pair: FromQuery[tuple[int, str]] = (1, "a")
    when: FromQuery[datetime | None] = None
    most: FromQuery[float] = math.inf
    shade: FromQuery[Colour] = Colour.RED
    required: FromQuery[int | Literal["x"]]
    request_id: FromHeader[str]
    user_agent: FromHeader[str | None] = None
    session: FromCookie[str]
    channels = ("x:{name}", "y:{number}")
    subprotocols = ("v1.example", "v2.example")
    sends = (Tree, Loud, Sum, Page[Point], Publication)
    presence = True
    history = 5
    reject_as = "close"

    def welcome(self, recent: Sequence[Publication]) -> Quiet | list[Tree] | None: ...

    def last_will(self) -> str:
        return "gone"

    @on_message
    async def tree(self, websocket: WebSocket, message: Tree) -> Tree | Leaf | None:
        """Plant a tree.

        And water it.
        """
        return message

    @on_message
    async def exact(self, websocket: WebSocket, message: Exact) -> Closed:
        raise NotImplementedError

    @on_message
    async def closed(self, websocket: WebSocket, message: Closed) -> None:
        raise NotImplementedError

    @on_message
    async def wave(self, websocket: WebSocket, message: Wave) -> Wave:
        return message

    @on_message
    async def loud(self, websocket: WebSocket, message: Loud) -> Answer | Custom:
        return 1

    @on_message
    async def quiet(self, websocket: WebSocket, message: Quiet) -> "Decimal":
        raise NotImplementedError


class Anything(Endpoint):
    async def on_receive(self, websocket: WebSocket, data: str | bytes) -> None: ...


class Json(Endpoint):
    encoding = "json"

    async def on_receive(self, websocket: WebSocket, data: Typed) -> None: ...


class Strings(Endpoint):
    encoding = "json"

    async def on_receive(self, websocket: WebSocket, data: str) -> None: ...


class Bytes(Endpoint):
    encoding = "bytes"

    async def on_receive(self, websocket: WebSocket, data: Any) -> None: ...


class Silent(Endpoint):
    sends = Publication


class Back(Endpoint):
    """Recovers."""

    encoding = "json"
    channels = ("news",)
    history = 3
    recover = True


class Open(ItemEndpoint):
    """Takes anybody."""

    async def authenticate(self, websocket: WebSocket) -> Any:
        return None


async def user(
    bearer: Annotated[Any, Depends(security.HTTPBearer(bearerFormat="JWT"))],
    key: Annotated[Any, Depends(security.APIKeyCookie(name="key"))],
    form: Annotated[Any, Depends(security.OAuth2PasswordBearer(tokenUrl="token"))],
    code: Annotated[
        Any,
        Depends(
            security.OAuth2AuthorizationCodeBearer(
                authorizationUrl="https://id.example/authorize",
                tokenUrl="https://id.example/token",
                refreshUrl="https://id.example/refresh",
                scopes={"read": "Read all."},
            )
        ),
    ],
    about: Annotated[
        Any, Depends(security.OpenIdConnect(openIdConnectUrl="https://id.example/about"))
    ],
    limit: Annotated[int, Query(ge=1)],
    agent: Annotated[str | None, Header(alias="User-Agent")] = None,
) -> Any: ...


class Guarded(Endpoint):
    token: Annotated[Any, Depends(identify)]
    reader: Annotated[Any, Security(user, scopes=["read"])]


EVERY = "/every/{name}/{number:int}/{colour}/{letter}/{level}/{ident:uuid}"
INNER: list[BaseRoute] = [
    WebSocketRoute(EVERY, Every),
    WebSocketRoute("/files/{rest:path}", Anything),
    WebSocketRoute("/same", Silent),
]
app = Starlette(
    routes=[
        asyncapi_route(),
        Mount("/in/{organisation}", app=Starlette(routes=INNER)),
        Mount("/router", app=Router(routes=[WebSocketRoute("/json", Json)])),
        Mount("/fastapi", app=FastAPI(routes=[WebSocketRoute("/strings", Strings)])),
        Host("{customer}.example.org", app=Router(routes=[WebSocketRoute("/bytes", Bytes)])),
        WebSocketRoute("/same", Silent),
        WebSocketRoute("/guarded", Guarded),
        WebSocketRoute("/back", Back),
        WebSocketRoute("/items/{item_id}", ItemEndpoint, name="an item / with ~ and #"),
        WebSocketRoute("/open/{item_id}", Open, name="ü"),
        WebSocketRoute("/", Anything, name="ü"),
    ]
)
