"""The endpoint class: what a subclass may override and call; its life is in `lifecycle`."""

from collections.abc import Collection, Coroutine, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

from starlette.endpoints import WebSocketEndpoint
from starlette.types import Message as Event
from starlette.websockets import WebSocket, WebSocketDisconnect

from chatserver import logs
from chatserver.auth import Credential, Identity, credentials
from chatserver.connection import Connection, connect
from chatserver.endpoints.application import hub_in, note_outer, verifier_of
from chatserver.endpoints.channels import Template, compile_channels
from chatserver.endpoints.declaration import check_class, collect_parameters, resolver
from chatserver.endpoints.lifecycle import Lifecycle
from chatserver.endpoints.messages import ErrorMessage, Handler, find_handlers, parse_json
from chatserver.endpoints.params import Parameter
from chatserver.endpoints.tasks import TaskGroup
from chatserver.errors import InvalidMessage, InvalidToken, KeysUnavailable
from chatserver.hub import Hub, Subscribed
from chatserver.publication import ClientInfo, Encoding, Position, Publication, frame, payload

__all__ = ["Endpoint", "RejectAs"]

RejectAs: TypeAlias = Literal["http", "close", "policy"]
"""How a handshake is refused; `Endpoint` says what each means."""

#: Messages that may be pushed to a client that is gone; then a handler that only pushes ends.
MAX_PUSHED_IN_VAIN = 1000

# Before the first handshake, whose own lines are to be redacted.
logs.install()


class Endpoint(WebSocketEndpoint):
    """A `WebSocketEndpoint` with handshake parameters, authentication, channels and typed messages.

    Everything that works in a `WebSocketEndpoint` works here. Override what you need:

        class Echo(Endpoint):
            encoding = "text"

            async def on_receive(self, websocket, data):
                await websocket.send_text(f"Message text was: {data}")

    Class attributes:
        - `encoding`: What messages are: "text", "bytes" or "json"; None for text and bytes alike.
            With `@on_message` handlers it is "json".
        - `channels`: Channels to join with the accept and to leave at the end. A name may hold
            parameters: "room:{room}". With several, the text of each but the last must not
            contain what separates it from the next; such a handshake is refused, and so is one
            without a parameter that a name needs.
        - `presence`: Whether to enter the channels' presence.
        - `subprotocols`: Those this endpoint speaks; the client's first choice among them is taken.
        - `allowed_origins`: Foreign origins whose pages may connect; "*" for all. None takes the
            application's (`app.state.allowed_origins`), which has none unless set.
        - `reject_as`: How a handshake is refused. "http": with the HTTP status of the reason, 422
            for a parameter. "close": by accepting and closing with 4000 + status, 4422 for a
            parameter, since a browser's script sees nothing of a status. "policy": with a
            close before accept, as Starlette does: HTTP 403, 1008 for a test client; only a
            fault of the server's side (5xx) is told as what it is.
        - `sends`: Messages that this endpoint pushes: for documentation.
        - `linger`: Seconds for which what was received before an end is still handled, in order;
            then the handler is cancelled, and what is left is counted in `Counts.unhandled`. At
            a shutdown the server's grace may be over sooner. None takes the application's limit;
            0 asks to be cancelled at once.
        - `history`: How many of a channel's newest publications `welcome` is given; 0 for none.
        - `disconnect_timeout`: Seconds that `on_disconnect` may take.

    Attributes:
        user: What `authenticate` returned.
        credential: The token that `identify` has taken, as the client sent it; empty before.
        hub: The application's hub.
        connection: This connection; see `chatserver.connection`.
        task_group: `self.task_group.start_soon(func, *args)` starts a task that is cancelled
            with the connection.
    """

    encoding: Encoding = None
    channels: ClassVar[Sequence[str]] = ()
    presence: ClassVar[bool] = False
    subprotocols: ClassVar[Sequence[str]] = ()
    allowed_origins: ClassVar[Collection[str] | None] = None
    reject_as: ClassVar[RejectAs] = "http"
    sends: ClassVar[type | tuple[type, ...]] = ()
    linger: ClassVar[float | None] = None
    history: ClassVar[int] = 0
    disconnect_timeout: ClassVar[float] = 5.0

    parameters: ClassVar[Mapping[str, Parameter]] = {}
    handlers: ClassVar[Mapping[str, Handler]] = {}

    user: Any = None
    credential: str = ""
    hub: Hub
    connection: Connection

    # Made of `channels`, once for the class.
    _templates: ClassVar[tuple[Template, ...]] = ()
    # The names of this connection's channels.
    _channels: tuple[str, ...] = ()
    # Made when the first one is started.
    _tasks: TaskGroup | None = None
    _pushed_in_vain = 0
    _lifecycle: Lifecycle

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        resolve = resolver(cls)
        cls.parameters = collect_parameters(cls, _TAKEN, resolve)
        cls.handlers = find_handlers(cls, resolve)
        if cls.handlers and cls.encoding is None:
            cls.encoding = "json"
        check_class(cls, _TAKEN)
        cls._templates = compile_channels(cls)

    # What a subclass may override

    async def authenticate(self, websocket: WebSocket) -> Any:
        """Say who this is, before accept. Override it; by default anyone may connect.

        Args:
            websocket: Not accepted yet; the parameters are attributes of `self` already. To
                ask for a token in a message, accept it here: `on_connect` is not called then,
                and the channels are joined when this has returned.

        It may take `handshake_timeout` seconds, together with `on_connect` up to the accept;
        then it is cancelled, and the handshake refused with 408, or closed with 4408.

        Returns:
            What becomes `self.user`. With an `Identity` (`await self.identify(websocket)`)
            the channels are checked, and the connection is closed when the token expires.

        Raises:
            InvalidToken, HTTPException, WebSocketException: The handshake is refused.
        """
        return None

    async def on_connect(self, websocket: WebSocket) -> None:
        """Accept the connection, or refuse it by an exception or `websocket.close()`."""
        await websocket.accept()

    async def on_accept(self, websocket: WebSocket) -> None:
        """Called once the connection is accepted and in its channels, before any message."""

    async def on_receive(self, websocket: WebSocket, data: Any) -> Any:
        """Handle a message. Not called in a class that has `@on_message` handlers.

        Returns:
            What is pushed to the client; None for nothing.
        """

    async def on_invalid(self, websocket: WebSocket, error: InvalidMessage) -> None:
        """Handle a message that can't be read.

        By default a typed endpoint answers with an `ErrorMessage` and the connection lives;
        any other closes with the error's code, 1003 or 1007.
        """
        if not self.handlers:
            raise error
        await self.push(ErrorMessage(reason=error.reason))

    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        """Called once when an accepted connection has ended, its tasks and channels with it.

        It runs in the task and context of `on_connect` and may take `disconnect_timeout` seconds.
        """

    def last_will(self) -> Any:
        """What is published to the channels if this process dies before `on_disconnect`.

        Another process does it, so that a client is not there for ever. When the connection
        ends as it should, nothing is published.

        Returns:
            Data as for `hub.publish`; None for nothing.
        """
        return None

    def welcome(self, recent: Sequence[Publication]) -> Any:
        """Make of a channel's newest publications what a client gets first, before what is live.

        Called for each channel with its accept, and when one is joined later, in a class with
        `history`. Nothing is missing between this and what is live, twice or out of order.

        Args:
            recent: As many as `history` says, the oldest first; empty where there are none.

        Returns:
            Data as for `hub.publish`, sent as one message; None for nothing. By default each
            publication is sent as it was when it was published.
        """
        return recent

    # What a subclass may call

    async def identify(self, websocket: WebSocket) -> Identity:
        """Who the client's token says it is: header, cookie `session`, subprotocol or query.

        The first token that `app.state.verifier` finds good counts, and becomes
        `self.credential`. With `OPEN_MODE` there any non-empty one passes, as in FastAPI's
        tutorial, and is nobody's in particular.

        Raises:
            InvalidToken: There is none, or none is valid.
            KeysUnavailable: They can't be verified now.
            VerifierMissing: The application has no verifier; the handshake gets a 503.
        """
        verifier = verifier_of(self.scope, type(self).__name__)
        found = credentials(websocket)
        if not found:
            raise InvalidToken("a token is required")
        failures: list[tuple[Credential, InvalidToken | KeysUnavailable]] = []
        for each in found:
            try:
                identity = await verifier.verify(each.value)
            except (InvalidToken, KeysUnavailable) as error:
                failures.append((each, error))
            else:
                self.credential = each.value
                return identity
        raise min(failures, key=_relevance)[1]

    async def push(self, data: Any) -> None:
        """Send to this client alone, behind whatever was sent to it before.

        Waits while the client's socket is full. To a client that is gone nothing is sent, and
        that is no error, so that a handler goes on to what it does for others.

        Args:
            data: As for `hub.publish`.

        Raises:
            WebSocketDisconnect: A thousand messages were pushed to a client that is gone.
        """
        if self.connection.close_code is not None:
            self._pushed_in_vain += 1
            if self._pushed_in_vain > MAX_PUSHED_IN_VAIN:
                raise WebSocketDisconnect(self.connection.close_code)
        await self.connection.push(frame(payload(data), self.encoding))

    async def publish(
        self, data: Any, *, channel: str | None = None, id: str | None = None
    ) -> Position:
        """Publish to this endpoint's channel, or to another.

        Args:
            data: As for `hub.publish`.
            channel: May be left out where the endpoint has exactly one.
            id: As for `hub.publish`.

        Raises:
            ValueError: The channel is left out, and the endpoint has none or several.
        """
        position = await self.hub.publish(channel or self.channel, data, id=id, info=self._info())
        # So that a speaker hears itself at once, in one write with what else it is sent now.
        self.connection.catch_up()
        return position

    async def join(self, channel: str, *, since: Position | None = None) -> Subscribed:
        """Follow another channel, until it is left or the connection ends.

        Args:
            channel: Its name; not one that is joined already.
            since: Where the client stands. What it missed is sent to it first, in place of
                what `welcome` makes.

        Returns:
            Where the channel stands, and whether the client has got all that it missed.

        Raises:
            InvalidToken: The client's token doesn't open the channel.
            TooManyChannels: The connection is in as many as the limits allow.
            ValueError: It is in this one.
            BrokerUnavailable: It is not certain that the broker delivers the channel.
        """
        return await self._lifecycle.join(channel, since)

    async def leave(self, channel: str) -> None:
        """Leave a channel; nothing happens when the connection isn't in it."""
        await self.hub.unsubscribe(self.connection, channel)

    @property
    def channel(self) -> str:
        """The name of this endpoint's one channel, its parameters filled in.

        Raises:
            ValueError: It has none or several.
        """
        if len(self._channels) != 1:
            raise ValueError(
                f"{type(self).__name__} has {len(self._channels)} channels; say which one is meant"
            )
        return self._channels[0]

    @property
    def task_group(self) -> TaskGroup:
        """Starts tasks that are cancelled with the connection."""
        if self._tasks is None:
            self._tasks = TaskGroup(self._lifecycle.fail)
        return self._tasks

    # What ASGI calls

    def dispatch(self) -> Coroutine[Any, Any, None]:
        """Serve the connection from handshake to end; see `Lifecycle`."""
        # No coroutine of its own: it would be kept for as long as the connection lasts.
        note_outer(self.scope)
        self.hub = hub_in(self.scope)
        self.connection, receive, send = connect(
            self.scope, self.receive, self.send, self.hub.limits
        )
        self._lifecycle = Lifecycle(self)
        return self._lifecycle.run(receive, send)

    async def decode(self, websocket: WebSocket, message: Event) -> Any:
        """Turn a message into what `encoding` says.

        Raises:
            InvalidMessage: It is of the other type (1003), or not JSON (1007).
        """
        text = message.get("text")
        if self.encoding == "json":
            return parse_json(message["bytes"] if text is None else text)
        if self.encoding == "text" and text is None:
            raise InvalidMessage("expected a text message, got a binary one", code=1003)
        if self.encoding == "bytes" and text is not None:
            raise InvalidMessage("expected a binary message, got text", code=1003)
        return message["bytes"] if text is None else text

    def _info(self) -> ClientInfo:
        user = self.user.user if isinstance(self.user, Identity) else ""
        return ClientInfo(client=self.connection.id, user=user)


#: Names that a parameter can't have, because the endpoint itself has them.
_TAKEN = frozenset({*dir(Endpoint), *Endpoint.__annotations__, "scope", "receive", "send"})


def _relevance(failure: tuple[Credential, Exception]) -> int:
    """Which failure is told: that of what looks like a token, or of the first there was."""
    found, error = failure
    if isinstance(error, KeysUnavailable):
        return 0  # it may have been a good one
    return 1 if found.looks_like_token else 2
