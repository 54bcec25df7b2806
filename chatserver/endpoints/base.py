"""The endpoint class: what a subclass may override and call. `lifecycle` runs a connection."""

import inspect
from collections.abc import Collection, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Self, TypeAlias, cast

from starlette.endpoints import WebSocketEndpoint
from starlette.types import Message as Event
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from chatserver import logs
from chatserver.auth import Credential, Identity, credentials
from chatserver.connection import Connection, connect
from chatserver.endpoints.application import check_server, hub_in, note_outer, verifier_of
from chatserver.endpoints.channels import Template, compile_channels
from chatserver.endpoints.declaration import (
    check_class,
    collect_dependencies,
    collect_parameters,
    resolver,
)
from chatserver.endpoints.dependencies import Dependency
from chatserver.endpoints.internals import asgi_of
from chatserver.endpoints.lifecycle import Lifecycle
from chatserver.endpoints.membership import join_channel, leave_channel
from chatserver.endpoints.messages import (
    ErrorMessage,
    Handler,
    check_received,
    find_handlers,
    parse_json,
)
from chatserver.endpoints.params import Parameter
from chatserver.endpoints.resolution import Opened
from chatserver.endpoints.tasks import TaskGroup
from chatserver.errors import InvalidMessage, InvalidToken, KeysUnavailable
from chatserver.hub import Hub, Presence, Subscribed
from chatserver.publication import (
    ClientInfo,
    Encoding,
    Position,
    Publication,
    frame,
    payload,
    value_of,
)

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    User = TypeVar("User", default=Any)
else:
    from typing import TypeVar  # of Python 3.13 on it has a default, too

    User = TypeVar("User")

__all__ = ["Endpoint", "RejectAs"]

RejectAs: TypeAlias = Literal["http", "close", "policy"]
"""How a handshake is refused; `Endpoint` says what each means."""

#: Messages that a handler may push to a client that is gone; the next push ends the handler.
MAX_PUSHED_IN_VAIN = 1000

#: What FastAPI takes for the arguments of an endpoint class, and calls it with.
CALLED_WITH = inspect.Signature(
    [inspect.Parameter("websocket", inspect.Parameter.KEYWORD_ONLY, annotation=WebSocket)]
)

# Before the first handshake, because its log lines are to be redacted, too.
logs.install()


class Endpoint(WebSocketEndpoint, Generic[User]):
    """A `WebSocketEndpoint` with handshake parameters, authentication, channels and typed messages.

    Everything that works in a `WebSocketEndpoint` works here. Override what you need:

        class Echo(Endpoint):
            encoding = "text"

            async def on_receive(self, websocket, data):
                await websocket.send_text(f"Message text was: {data}")

    `Endpoint[User]` says of what type `self.user` is, for type checkers.

    Class attributes:
        - `encoding`: What messages are: "text", "bytes" or "json"; None for text and bytes alike.
            With `@on_message` handlers it is "json".
        - `channels`: Channels that a connection joins at the accept and leaves at the end. A name
            may hold parameters: "room:{room}". Where it holds several, the text of each but the
            last must not contain the text between it and the next; such a handshake is refused, and
            so is one without a parameter that a name needs.
        - `presence`: Whether a connection is entered into the presence of its channels.
        - `subprotocols`: Subprotocols of this endpoint; the first one that the client offers is
            used.
        - `allowed_origins`: Foreign origins whose pages may connect; "*" for all. None takes the
            application's (`app.state.allowed_origins`), which has none unless set.
        - `reject_as`: How a handshake is refused. "http": with the HTTP status of the reason, 422
            for a parameter. "close": by accepting and closing with 4000 + status, 4422 for a
            parameter, because a browser's script can't see a status. "policy": with a close
            before accept, as Starlette does: HTTP 403, or 1008 in a test client; only a fault
            of the server (5xx) keeps its own status.
        - `sends`: Messages that this endpoint pushes; used for documentation only.
        - `linger`: Seconds after the end of a connection in which messages that were received
            before are still handled, in order. Then the handler is cancelled, and the messages
            left are counted in `Counts.unhandled`. At a shutdown the server's grace period may
            end sooner. None takes the application's limit; 0 cancels the handler at once.
        - `history`: How many of a channel's newest publications `welcome` is given; 0 for none.
        - `recover`: Whether a client that comes back gets what it missed: it names its positions in
            the query parameter `since`, and publications come in envelopes that tell them. Needs
            `encoding = "json"`.
        - `disconnect_timeout`: Seconds that `on_disconnect` may take.

    Attributes:
        user: What `authenticate` returned, or else the value of a dependency `user`.
        identity: Whom the client's token stands for, once `identify` has found out. The channels
            are checked with it, whatever `authenticate` returns.
        credential: The token that `identify` accepted, as the client sent it; empty before.
        message_id: In a handler, names the message if its client gave it an id: for
            `publish(..., id=self.message_id)`, so that a repeated message is published once. No
            message of another user has it. None without an id, and outside of handlers.
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
    recover: ClassVar[bool] = False
    disconnect_timeout: ClassVar[float] = 5.0

    parameters: ClassVar[Mapping[str, Parameter]] = {}
    dependencies: ClassVar[Mapping[str, Dependency]] = {}
    handlers: ClassVar[Mapping[str, Handler]] = {}

    user: User = cast("User", None)
    identity: Identity | None = None
    credential: str = ""
    message_id: str | None = None
    hub: Hub
    connection: Connection

    # Made from `channels`, once per class.
    _templates: ClassVar[tuple[Template, ...]] = ()
    # Whether the class has a `while_occupied` of its own.
    _has_channel_task: ClassVar[bool] = False
    # The names of this connection's channels.
    _channels: tuple[str, ...] = ()
    # Where the client stood when it came, in the channels that it has not joined yet; set if the
    # class recovers.
    _positions: dict[str, Position]
    # Whether `authenticate` has returned, and its user may join the channels.
    _admitted = False
    # Made on first use, and shared by all that this connection publishes.
    _client_info: ClientInfo | None = None
    # What dependencies have opened, to be closed at the end; set if the class has any.
    _opened: Sequence[Opened] = ()
    # Made when the first task is started.
    _tasks: TaskGroup | None = None
    _pushed_in_vain = 0
    _lifecycle: Lifecycle

    # FastAPI takes what stands under `@app.websocket` for a function, and reads its signature.
    __signature__: ClassVar[inspect.Signature] = CALLED_WITH

    def __new__(cls, *args: Any, websocket: WebSocket | None = None, **kwargs: Any) -> Self:
        """Make an endpoint; for FastAPI, which gives a `websocket`, the coroutine that serves it.

        Python calls `__init__` only for what is an instance, so not with the `websocket`.
        """
        if websocket is None:
            return super().__new__(cls)
        if websocket.application_state is not WebSocketState.CONNECTING:
            raise RuntimeError(
                f"{cls.__name__} must get its connection before a dependency accepts or closes it"
            )
        return cast("Self", cls(*asgi_of(websocket)).dispatch())

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        resolve = resolver(cls)
        cls.parameters = collect_parameters(cls, _TAKEN, resolve)
        cls.dependencies = collect_dependencies(cls, _TAKEN, resolve)
        cls.handlers = find_handlers(cls, resolve)
        if cls.handlers and cls.encoding is None:
            cls.encoding = "json"
        check_class(cls, _TAKEN)
        if cls.decode is Endpoint.decode:
            check_received(cls, resolve)
        task = inspect.getattr_static(cls, "while_occupied")
        cls._has_channel_task = task is not vars(Endpoint)["while_occupied"]
        cls._templates = compile_channels(cls)

    # What a subclass may override

    async def authenticate(self, websocket: WebSocket) -> User:
        """Find out who the client is, before accept. By default any client may connect.

        Args:
            websocket: Not accepted yet; the parameters are attributes of `self` already. To
                ask for a token in a message, accept it here: then `on_connect` is not called,
                and the channels are joined when this method has returned.

        Together with `on_connect` up to the accept it may take `handshake_timeout` seconds;
        then it is cancelled, and the handshake is refused with 408, or closed with 4408.

        Returns:
            The value for `self.user`; None leaves it as it is. If `identify` was called, or an
            `Identity` is returned, its channels are checked, and the connection is closed when
            the token expires.

        Raises:
            InvalidToken, HTTPException, WebSocketException: The handshake is refused.
        """
        return cast("User", None)

    async def on_connect(self, websocket: WebSocket) -> None:
        """Accept the connection, or refuse it with an exception or `websocket.close()`."""
        await websocket.accept()

    async def on_accept(self, websocket: WebSocket) -> None:
        """Called when the connection is accepted and has joined its channels, before messages."""

    async def on_receive(self, websocket: WebSocket, data: Any) -> Any:
        """Handle a message. Not called in a class that has `@on_message` handlers.

        Returns:
            What is pushed to the client; None pushes nothing.
        """

    async def on_invalid(self, websocket: WebSocket, error: InvalidMessage) -> None:
        """Handle a message that can't be decoded.

        By default an endpoint with handlers answers with an `ErrorMessage` and keeps the
        connection; any other closes it with the error's code, 1003 or 1007.
        """
        if not self.handlers:
            raise error
        await self.push(ErrorMessage(reason=error.reason, id=error.id))

    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        """Called once after an accepted connection has ended, its tasks are done and channels left.

        It runs in the task and context of `on_connect` and may take `disconnect_timeout` seconds.
        """

    def last_will(self) -> Any:
        """What is published to the channels if this process dies before `on_disconnect`.

        Another process publishes it, so that the other clients learn that this one left. When
        the connection ends normally, it is not published.

        Returns:
            Data as for `hub.publish`; None for nothing.
        """
        return None

    def info(self) -> Any:
        """What others see of this client besides its user's name: in presence and publications.

        Called once, after `authenticate`; what that publishes itself goes without. By default
        nothing: what `authenticate` returns may hold what is nobody else's business.

        Returns:
            Anything that can be encoded as JSON.
        """
        return None

    def welcome(self, recent: Sequence[Publication]) -> Any:
        """Make of a channel's newest publications what a client gets first, before what is live.

        Called for each channel with its accept, and when one is joined later, in a class with
        `history`; not for a client that gets what it missed instead. Nothing is missing between
        this and what is live, twice or out of order.

        Args:
            recent: As many as `history` says, the oldest first; empty where there are none.

        Returns:
            Data as for `hub.publish`, sent as one message; None for nothing. Publications, as by
            default, are sent one by one, as they were when they were published.
        """
        return recent

    @classmethod
    async def while_occupied(cls, channel: str, hub: Hub) -> None:
        """The task of a channel, for as long as clients of this class are in it: a game's loop.

        Per event loop, class and channel there is one at a time. It is started when the first
        client has been accepted and has joined the channel, and has come to its first `await` that
        waits when that client's `on_accept` is called. It is cancelled when the last one has left,
        and then has `disconnect_timeout` seconds to end. A client that comes meanwhile waits for
        its end, and is the first one of the next. It runs in an empty `contextvars` context.

        If it returns, it is not called again before the channel was empty. If it raises, that is
        one traceback in the log, and the clients are closed with 1011; what closes a connection
        when a handler raises it, such as `WebSocketException`, closes all of them.

        Args:
            channel: The channel's name.
            hub: The application's hub, to publish with.
        """

    # What a subclass may call

    async def identify(self, websocket: WebSocket) -> Identity:
        """Identify the client by its token: header, cookie `session`, subprotocol or query.

        The first token that `app.state.verifier` accepts counts, and becomes
        `self.credential`. With `OPEN_MODE` any non-empty token passes, as in FastAPI's
        tutorial, and the identity is anonymous.

        Raises:
            InvalidToken: There is no token, or none is valid.
            KeysUnavailable: The keys that verify tokens can't be fetched now.
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
                if identity is None:
                    failures.append((each, InvalidToken("the token stands for nobody here")))
                    continue
                if not isinstance(identity, Identity):
                    kind = type(verifier).__name__
                    raise TypeError(f"{kind}.verify() must return an Identity, got {identity!r}")
                self.credential, self.identity = each.value, identity
                return identity
        raise min(failures, key=_relevance)[1]

    async def push(self, data: Any) -> None:
        """Send to this client alone, after everything that was sent to it before.

        Waits while the client's socket is full. For a client that is gone it does nothing and
        raises nothing, so that a handler completes its work for other clients.

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
        self,
        data: Any,
        *,
        channel: str | None = None,
        id: str | None = None,
        to_others: bool = False,
        keep: bool = True,
    ) -> Position:
        """Publish to this endpoint's channel, or to another.

        Args:
            data: As for `hub.publish`.
            channel: May be left out where the endpoint has exactly one.
            id: As for `hub.publish`.
            to_others: If True, this client doesn't get it.
            keep: As for `hub.publish`.

        Raises:
            ValueError: The channel is left out, and the endpoint has none or several.
        """
        info = self._info()
        skip = info.client if to_others else ""
        position = await self.hub.publish(
            channel or self.channel, data, id=id, info=info, keep=keep, skip=skip
        )
        # So the publisher gets its own publication at once, in one write with its other messages.
        self.connection.catch_up()
        return position

    async def join(self, channel: str, *, since: Position | None = None) -> Subscribed:
        """Follow another channel, until it is left or the connection ends.

        Args:
            channel: Its name; not one that is joined already.
            since: Where the client stands; in a class with `recover` that is what its query says,
                if left out. What it missed is sent to it first. If that can't be had, it is sent
                what `welcome` makes.

        Returns:
            Where the channel stands, and whether the client has got all that it missed.

        Raises:
            InvalidToken: The client's token doesn't open the channel.
            TooManyChannels: The connection is in as many as the limits allow.
            ValueError: It is in this one.
            BrokerUnavailable: It is not certain that the broker delivers the channel.
        """
        return await join_channel(self, channel, since, self._lifecycle.fail)

    async def present(self, channel: str | None = None) -> Presence:
        """Who is in this endpoint's channel, or in another, in all processes.

        Args:
            channel: May be left out where the endpoint has exactly one.

        Raises:
            ValueError: The channel is left out, and the endpoint has none or several.
        """
        entries = await self.hub.present(channel or self.channel)
        return Presence.of(entries.values())

    async def leave(self, channel: str) -> None:
        """Leave a channel; nothing happens when the connection isn't in it."""
        await leave_channel(self, channel)

    @property
    def channel(self) -> str:
        """The name of this endpoint's one channel, its parameters filled in.

        Raises:
            ValueError: It has none or several.
        """
        if len(self._channels) != 1:
            raise ValueError(
                f"{type(self).__name__} has {len(self._channels)} channels; "
                "say which one is meant with channel=..."
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
        check_server(self.scope, self.hub)
        self.connection, receive, send = connect(
            self.scope, self.receive, self.send, self.hub.limits
        )
        self._lifecycle = Lifecycle(self)
        return self._lifecycle.run(receive, send)

    async def decode(self, websocket: WebSocket, message: Event) -> Any:
        """Decode a message as `encoding` says.

        Raises:
            InvalidMessage: It is of the other frame type (1003), or not JSON (1007).
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
        if not self._admitted:
            return ClientInfo(self.connection.id)
        if self._client_info is None:
            data = self.info()
            info = None if data is None else value_of(payload(data))
            if isinstance(info, bytes):
                raise TypeError(
                    f"{type(self).__name__}.info() must be what JSON can say, not bytes"
                )
            self._client_info = ClientInfo(self.connection.id, self.connection.user, info)
        return self._client_info


#: Names that a parameter can't have, because the endpoint itself has them.
_TAKEN = frozenset({*dir(Endpoint), *Endpoint.__annotations__, "scope", "receive", "send"})


def _relevance(failure: tuple[Credential, Exception]) -> int:
    """The rank of a failure; the lowest is reported. Of equals it is the first."""
    found, error = failure
    if isinstance(error, KeysUnavailable):
        return 0  # the token may be valid
    return 1 if found.looks_like_token else 2
