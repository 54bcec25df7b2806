"""What the modules of a connection's life need of an endpoint, whose class imports them."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol

from starlette.types import Message as Event
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from chatserver.auth import Identity
from chatserver.connection import Connection
from chatserver.endpoints.channels import Template
from chatserver.endpoints.dependencies import Dependency
from chatserver.endpoints.messages import Handler
from chatserver.endpoints.params import Parameter
from chatserver.endpoints.resolution import Opened
from chatserver.endpoints.tasks import TaskGroup
from chatserver.errors import InvalidMessage
from chatserver.hub import Hub
from chatserver.publication import ClientInfo, Encoding, Position, Publication

__all__ = ["Served"]


class Served(Protocol):
    """What the life of a connection needs of its endpoint; `Endpoint` says what each means."""

    encoding: Encoding
    presence: ClassVar[bool]
    subprotocols: ClassVar[Sequence[str]]
    allowed_origins: ClassVar[Collection[str] | None]
    reject_as: ClassVar[Literal["http", "close", "policy"]]
    linger: ClassVar[float | None]
    history: ClassVar[int]
    recover: ClassVar[bool]
    disconnect_timeout: ClassVar[float]
    parameters: ClassVar[Mapping[str, Parameter]]
    dependencies: ClassVar[Mapping[str, Dependency]]
    handlers: ClassVar[Mapping[str, Handler]]
    _templates: ClassVar[tuple[Template, ...]]
    _has_channel_task: ClassVar[bool]

    scope: Scope
    receive: Receive
    send: Send
    user: Any
    identity: Identity | None
    message_id: str | None
    hub: Hub
    connection: Connection
    _channels: tuple[str, ...]
    _positions: dict[str, Position]
    _admitted: bool
    _opened: Sequence[Opened]
    _lifecycle: Any
    _tasks: TaskGroup | None

    async def authenticate(self, websocket: WebSocket) -> Any:
        """See `Endpoint`."""

    async def on_connect(self, websocket: WebSocket) -> None:
        """See `Endpoint`."""

    async def on_accept(self, websocket: WebSocket) -> None:
        """See `Endpoint`."""

    async def on_receive(self, websocket: WebSocket, data: Any) -> Any:
        """See `Endpoint`."""

    async def on_invalid(self, websocket: WebSocket, error: InvalidMessage) -> None:
        """See `Endpoint`."""

    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        """See `Endpoint`."""

    async def decode(self, websocket: WebSocket, message: Event) -> Any:
        """See `Endpoint`."""

    async def push(self, data: Any) -> None:
        """See `Endpoint`."""

    def last_will(self) -> Any:
        """See `Endpoint`."""

    def welcome(self, recent: Sequence[Publication]) -> Any:
        """See `Endpoint`."""

    def _info(self) -> ClientInfo:
        """See `Endpoint`."""
