"""The endpoint class: one instance per connection, and a lifecycle without holes.

The way of a connection through an `Endpoint`:

    handshake   origin, parameters, `authenticate`, channels    may be refused: no accept
    accept      `on_connect`, which accepts; the channels are joined with that
    open        `on_accept`, then per message `on_receive` or the `@on_message` handler of its
                type; in order, one at a time
    end         tasks are cancelled, channels left, then `on_disconnect`: once, whatever ended it

While a handler is busy the connection is still read, so that an end is noticed at once.
"""

import asyncio
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, Literal

import anyio
from starlette._exception_handler import wrap_app_handling_exceptions
from starlette.endpoints import WebSocketEndpoint
from starlette.exceptions import HTTPException, WebSocketException
from starlette.types import Message as Event
from starlette.types import Receive, Scope, Send
from starlette.websockets import (
    WebSocket,
    WebSocketDisconnect,
    WebSocketDisconnected,
    WebSocketState,
)

from chatserver import logs
from chatserver.auth import ANONYMOUS, Identity, credential, credentials
from chatserver.connection import Connection, connect
from chatserver.cookies import check_cookies
from chatserver.endpoints.application import hub_of, state_of
from chatserver.endpoints.declaration import check_class, collect_parameters, resolver
from chatserver.endpoints.messages import ErrorMessage, Handler, find_handlers, parse, parse_json
from chatserver.endpoints.origin import check_origin
from chatserver.endpoints.outcome import as_refusal, close_for, is_departure, is_ours
from chatserver.endpoints.params import Parameter
from chatserver.endpoints.tasks import TaskGroup, shielded
from chatserver.errors import InvalidHandshake, InvalidMessage, InvalidToken, KeysUnavailable
from chatserver.hub import Hub
from chatserver.publication import PLAIN, ClientInfo, Encoding, Position, frame, payload

__all__ = ["Endpoint"]

logger = logging.getLogger("chatserver")

UNSHIELDED: nullcontext[None] = nullcontext()

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
        encoding: What messages are: "text", "bytes" or "json"; None for text and bytes alike.
            With `@on_message` handlers it is "json".
        channels: Channels to join after accept and to leave at the end. A name may hold
            parameters: "room:{room}".
        presence: Whether to enter the channels' presence.
        subprotocols: Those this endpoint speaks; the client's first choice among them is taken.
        allowed_origins: Foreign origins whose pages may connect; "*" for all. None takes the
            application's (`app.state.allowed_origins`), which has none unless set.
        reject_as: How a handshake is refused. "http": with the HTTP status of the reason, 422
            for a parameter. "close": by accepting and closing with 4000 + status, 4422 for a
            parameter, since a browser's script sees nothing of a status. "policy": with a
            close before accept, as Starlette does: HTTP 403, 1008 for a test client.
        sends: Messages that this endpoint pushes: for documentation.
        linger: Seconds in which messages that came before the client's leave may still be
            handled; then their handler is cancelled.
        disconnect_timeout: Seconds that `on_disconnect` may take.

    Attributes:
        user: What `authenticate` returned.
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
    reject_as: ClassVar[Literal["http", "close", "policy"]] = "http"
    sends: ClassVar[type | tuple[type, ...]] = ()
    linger: ClassVar[float] = 0.25
    disconnect_timeout: ClassVar[float] = 5.0

    parameters: ClassVar[Mapping[str, Parameter]] = {}
    handlers: ClassVar[Mapping[str, Handler]] = {}

    user: Any = None
    hub: Hub
    connection: Connection

    _host: asyncio.Task[None] | None
    _limit: asyncio.Timeout
    _shield: anyio.CancelScope | None
    _tasks: TaskGroup | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        resolve = resolver(cls)
        cls.parameters = collect_parameters(cls, _TAKEN, resolve)
        cls.handlers = find_handlers(cls, resolve)
        if cls.handlers and cls.encoding is None:
            cls.encoding = "json"
        check_class(cls)

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(scope, receive, send)
        self._channels: list[str] = []
        self._authenticated = False
        self._denied = False
        self._said_goodbye = False
        self._counted_user = ""
        self._subprotocol: str | None = None
        self._error: BaseException | None = None

    # What a subclass may override

    async def authenticate(self, websocket: WebSocket) -> Any:
        """Say who this is, before accept. Override it; by default anyone may connect.

        Args:
            websocket: Not accepted yet; the parameters are attributes of `self` already. To
                ask for a token in a message, accept it here: `on_connect` is not called then,
                and the channels are joined when this has returned.

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

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        """Handle a message. Not called in a class that has `@on_message` handlers."""

    async def on_invalid(self, websocket: WebSocket, error: InvalidMessage) -> None:
        """Handle a message that can't be read.

        By default a typed endpoint answers with an `ErrorMessage` and the connection lives;
        any other closes with the error's code, 1003 or 1007.
        """
        if not self.handlers:
            raise error
        await self.push(ErrorMessage(reason=error.reason))

    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        """Called once when an accepted connection has ended, its tasks and channels with it."""

    # What a subclass may call

    async def identify(self, websocket: WebSocket) -> Identity:
        """Who the client's token says it is: header, cookie `session`, subprotocol or query.

        Without a verifier in `app.state.verifier` any non-empty token passes, as in FastAPI's
        tutorial, and is nobody's in particular.

        Raises:
            InvalidToken: There is none, or it is not valid.
        """
        found = credential(websocket)
        if found is None:
            raise InvalidToken("a token is required")
        verifier = self._setting("verifier", None)
        identity: Identity = ANONYMOUS if verifier is None else await verifier.verify(found.value)
        return identity

    async def push(self, data: Any) -> None:
        """Send to this client alone, behind whatever was sent to it before.

        Waits while the client's socket is full. To a client that is gone nothing is sent, and
        that is no error.

        Args:
            data: As for `hub.publish`.
        """
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
        return await self.hub.publish(channel or self.channel, data, id=id, info=self._info())

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
            self._tasks = TaskGroup(self._fail)
        return self._tasks

    # The lifecycle

    async def dispatch(self) -> None:
        """Serve the connection from handshake to end; what ASGI calls."""
        self.hub = hub_of(self.scope.get("app"))
        self.connection = connect(
            self.scope, self.receive, self.send, PLAIN[self.encoding], self.hub.limits
        )
        websocket = WebSocket(self.scope, self.connection.receive, self._send)
        try:
            await self._serve(websocket)
        except (Exception, asyncio.CancelledError) as exc:
            self._fail(exc)
        try:
            if self.connection.accepted:
                await self._end(websocket)
            else:
                await self._refuse(websocket, self._error)
        finally:
            if self._counted_user:
                self.hub.leave_user(self._counted_user)

    async def _serve(self, websocket: WebSocket) -> None:
        """Handshake, accept and messages, up to an end from whatever side."""
        self._host = asyncio.current_task()
        self._limit = limit = asyncio.timeout(None)
        self._shield = anyio.CancelScope() if self.connection.in_scopes else None
        with self._shield or UNSHIELDED:
            try:
                async with limit:
                    self.connection.on_gone = self._on_gone
                    self.connection.start()
                    await self._handshake(websocket)
                    if self.connection.accepted:
                        await self.on_accept(websocket)
                        await self._handle_all(websocket)
            except TimeoutError:
                if not limit.expired():
                    raise
            finally:
                self.connection.on_gone = None

    def _on_gone(self, _: int) -> None:
        """Leave the handler a moment for what came before the end."""
        if self._shield is not None:
            # Though the task be cancelled: TestClient does that as soon as it has said goodbye.
            self._shield.shield = True
        # A handler that closed its connection itself has something left to do.
        own = self._said_goodbye and asyncio.current_task() is self._host
        now = asyncio.get_running_loop().time()
        self._limit.reschedule(now + (self.disconnect_timeout if own else self.linger))

    async def _handshake(self, websocket: WebSocket) -> None:
        check_cookies(self.scope, self.hub.limits.max_cookie_size)
        self._keep_secrets(websocket)
        allowed = self.allowed_origins
        check_origin(
            self.scope, self._setting("allowed_origins", ()) if allowed is None else allowed
        )
        for parameter in self.parameters.values():
            setattr(self, parameter.name, parameter.read(websocket))
        self._channels = self._channel_names()
        self.user = await self.authenticate(websocket)
        if isinstance(self.user, Identity) and not all(map(self.user.may, self._channels)):
            raise InvalidToken("the token doesn't open this channel", code=4403, status=403)
        self._count_user()
        self._authenticated = True
        if self.connection.accepted:
            # By `authenticate`, which may have asked for the token in a message.
            await self._join()
        if websocket.application_state is WebSocketState.CONNECTING:
            await self._connect(websocket)

    def _count_user(self) -> None:
        user = self.user.user if isinstance(self.user, Identity) else ""
        if user:
            self.hub.enter_user(user)
            self._counted_user = user

    def _channel_names(self) -> list[str]:
        values = {name: getattr(self, name) for name in self.parameters}
        names = [channel.format_map(values) for channel in self.channels]
        if not all(names):
            raise InvalidHandshake("the name of a channel can't be empty")
        return list(dict.fromkeys(names))

    async def _connect(self, websocket: WebSocket) -> None:
        await self.on_connect(websocket)
        if self._error is not None:
            raise self._error  # of a task that has failed meanwhile
        if websocket.application_state is WebSocketState.CONNECTING:
            raise RuntimeError(
                f"{type(self).__name__}.on_connect() returned without 'await websocket.accept()'; "
                "accept, close, or call super().on_connect(websocket)"
            )

    async def _send(self, event: Event) -> None:
        """What `websocket` sends by; joins the channels with the accept."""
        self._denied |= event["type"] == "websocket.http.response.start"
        self._said_goodbye |= event["type"] == "websocket.close"
        if event["type"] != "websocket.accept":
            await self.connection.send(event)
            return
        await self.connection.send(self._with_subprotocol(event))
        self.hub.register(self.connection)
        if self._authenticated:
            await self._join()

    async def _join(self) -> None:
        """Follow the channels, until the token ends."""
        for channel in self._channels:
            info = self._info() if self.presence else None
            await self.hub.subscribe(self.connection, channel, info=info)
        if isinstance(self.user, Identity) and self.user.expires is not None:
            self.task_group.start_soon(self._expire, self.user.expires)

    async def _expire(self, expires: float) -> None:
        await asyncio.sleep(expires - time.time())
        raise InvalidToken("the token has expired")

    async def _handle_all(self, websocket: WebSocket) -> None:
        while (event := await websocket.receive())["type"] == "websocket.receive":
            try:
                await self._handle(websocket, event)
            except InvalidMessage as error:
                await self.on_invalid(websocket, error)

    async def _handle(self, websocket: WebSocket, event: Event) -> None:
        if not self.handlers:
            await self.on_receive(websocket, await self.decode(websocket, event))
            return
        text = event.get("text")
        handler, message = parse(self.handlers, event["bytes"] if text is None else text)
        reply = await getattr(self, handler.name)(websocket, message)
        if reply is not None:
            await self.push(reply)

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

    # The end

    def _fail(self, error: BaseException) -> None:
        """Note why the connection ends, and close it with the code that says so."""
        connection = self.connection
        gone = connection.close_code is not None
        if gone and (is_departure(error) or not connection.accepted):
            return
        if self._error is None:
            self._error = error
        if isinstance(error, KeysUnavailable):
            logger.error("%s: %s", type(self).__name__, error)
        if connection.accepted:
            code, reason = close_for(error)
            if connection.close_code is None and not is_ours(error):
                logger.info("%s: closed with %d: %s", type(self).__name__, code, reason)
            connection.close(code, reason)

    async def _end(self, websocket: WebSocket) -> None:
        self.connection.close()
        try:
            try:
                await shielded(self._leave(websocket))
            finally:
                await self.connection.finish()
        except (Exception, asyncio.CancelledError) as exc:
            if self._error is None or not is_ours(self._error):
                self._error = exc
        if self._error is not None and is_ours(self._error):
            raise self._error

    async def _end_tasks(self) -> None:
        await self.task_group.end()

    async def _leave(self, websocket: WebSocket) -> None:
        await self._end_tasks()
        try:
            async with asyncio.timeout(self.disconnect_timeout):
                await self.hub.unregister(self.connection)
        except Exception as exc:
            # The broker's trouble; in this process the channels are left all the same.
            self._fail(exc)
        limit = asyncio.timeout(self.disconnect_timeout)
        try:
            async with limit:
                await self.on_disconnect(websocket, self.connection.close_code or 1000)
        except TimeoutError:
            if not limit.expired():
                raise
            logger.error(
                "%s.on_disconnect() took more than %g s and was cancelled",
                type(self).__name__,
                self.disconnect_timeout,
            )
        except (WebSocketDisconnect, WebSocketDisconnected):
            pass  # it tried to send; there is nobody any more

    async def _refuse(self, websocket: WebSocket, error: BaseException | None) -> None:
        """Answer a handshake that is not accepted, in the manner of `reject_as`."""
        try:
            await shielded(self._end_tasks())
            refusal = as_refusal(error)
            if error is not None and refusal is None:
                raise error
            # Unless the endpoint has answered by itself, or the client is gone.
            if refusal is not None and websocket.application_state is WebSocketState.CONNECTING:
                if self.reject_as == "close":
                    await self._accept_and_close(refusal)
                else:
                    await self._deny(websocket, refusal)
            if self._denied:
                await self.connection.departure()
        finally:
            await self.connection.finish()

    async def _accept_and_close(self, refusal: HTTPException | WebSocketException) -> None:
        code, reason = close_for(refusal)
        logger.info("%s: refused with %d: %s", type(self).__name__, code, reason)
        await self.connection.send(self._with_subprotocol({"type": "websocket.accept"}))
        self.connection.close(code, reason)

    async def _deny(
        self, websocket: WebSocket, refusal: HTTPException | WebSocketException
    ) -> None:
        """Refuse before accept, by the application's own exception handlers if it has some."""
        can_respond = "websocket.http.response" in self.scope.get("extensions", {})
        if isinstance(refusal, HTTPException) and (self.reject_as == "policy" or not can_respond):
            refusal = WebSocketException(1008, refusal.detail)

        async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
            raise refusal

        if "starlette.exception_handlers" not in self.scope:
            raise refusal
        await wrap_app_handling_exceptions(refuse, websocket)(self.scope, self.receive, self._send)

    # Small things

    def _setting(self, name: str, default: Any) -> Any:
        return getattr(state_of(self.scope.get("app")), name, default)

    def _info(self) -> ClientInfo:
        user = self.user.user if isinstance(self.user, Identity) else ""
        return ClientInfo(client=self.connection.id, user=user)

    def _keep_secrets(self, websocket: WebSocket) -> None:
        """Keep this handshake's credentials out of the logs; choose the subprotocol."""
        logs.remember(*(found.value for found in credentials(websocket)))
        offered = self.scope.get("subprotocols", [])
        if "bearer" in offered:
            self._subprotocol = "bearer"
        else:
            self._subprotocol = next((name for name in offered if name in self.subprotocols), None)

    def _with_subprotocol(self, accept: Event) -> Event:
        # A browser that offered subprotocols gives up when none of them is echoed.
        return {**accept, "subprotocol": accept.get("subprotocol") or self._subprotocol}


#: Names that a parameter can't have, because the endpoint itself has them.
_TAKEN = frozenset({*dir(Endpoint), *Endpoint.__annotations__, "scope", "receive", "send"})
