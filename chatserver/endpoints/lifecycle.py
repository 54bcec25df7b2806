"""The life of one connection, from handshake to end.

    handshake   origin, parameters, dependencies, `authenticate`; may be refused: no accept
    accept      `on_connect`; the channels are joined, then the accept is sent
    open        `on_accept`, then per message `on_receive` or its handler: one at a time
    end         messages received before are handled for `linger` seconds at most; tasks are
                cancelled, channels left, and `on_disconnect` is called once, whatever the cause;
                then what dependencies opened is closed

What needs no state is in `handshake`, which reads and checks, and in `membership`, which joins and
leaves channels.

The rules of this file:

- All of it runs in one task and context, so that `on_disconnect` can undo what `on_connect` did.
  On our own server that is the server's task. Other servers may cancel their task at any time,
  and repeatedly, so there it is a task of ours, which is cancelled once at most.
- We cancel that task ourselves in two cases, and `_verdict` says in which: the handshake takes
  too long, or `linger` is over.
- Every step of the end is taken, even if the step before it failed.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import anyio
from starlette.exceptions import HTTPException, WebSocketException
from starlette.types import Message as Event
from starlette.types import Receive, Send
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from chatserver import logs
from chatserver.auth import credentials, user_of
from chatserver.connection import Connection
from chatserver.cookies import check_cookies
from chatserver.endpoints.application import ENDING
from chatserver.endpoints.handshake import (
    read_handshake,
    take_user,
    tells_status,
    with_subprotocol,
)
from chatserver.endpoints.ids import MessageId, unique_id
from chatserver.endpoints.internals import DEPARTURES, answer_by_handlers, has_handlers
from chatserver.endpoints.membership import join_declared, occupied_by, occupy
from chatserver.endpoints.messages import Handler, answers, parse
from chatserver.endpoints.outcome import (
    OutageLog,
    as_refusal,
    close_for,
    fault_of,
    is_departure,
    is_expected,
    is_ours,
    is_outage,
    one_line,
    root_of,
)
from chatserver.endpoints.resolution import Opened
from chatserver.endpoints.served import Served
from chatserver.endpoints.tasks import ENDED, run_apart
from chatserver.errors import BrokerUnavailable, InvalidHandshake, InvalidMessage, InvalidToken

__all__ = ["Lifecycle"]

logger: logging.Logger = logging.getLogger("chatserver")
outages: OutageLog = OutageLog()


class Lifecycle:
    """One connection's life.

    Args:
        endpoint: The endpoint whose hooks are called; its `hub` is set.
    """

    __slots__ = (
        "_closes_itself",
        "_connection",
        "_counted_user",
        "_denied",
        "_endpoint",
        "_error",
        "_expiry",
        "_host",
        "_interrupted",
        "_registered",
        "_send_event",
        "_shield",
        "_timer",
        "_verdict",
    )

    def __init__(self, endpoint: Served) -> None:
        self._endpoint = endpoint
        self._connection: Connection = endpoint.connection
        self._send_event: Send
        # The task in which all hooks run.
        self._host: asyncio.Task[Any] | None = None
        # On other servers: protects the server's task from the cancel scopes around it.
        self._shield: anyio.CancelScope | None = None
        # Before the accept the time limit of the handshake; after the end that of `linger`.
        self._timer: asyncio.TimerHandle | None = None
        # Closes the connection when the token expires.
        self._expiry: asyncio.TimerHandle | None = None
        # Why we have cancelled the host ourselves.
        self._verdict: Exception | None = None
        # Why the connection ends; None for a normal end.
        self._error: BaseException | None = None
        self._registered = False
        self._counted_user = ""
        # Whether the endpoint has begun to answer the handshake with an HTTP response.
        self._denied = False
        # Whether the endpoint has sent a close.
        self._closes_itself = False
        # Whether a handler was cancelled while it handled its message.
        self._interrupted = False

    def run(self, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        """Run it from handshake to end. Not async: a coroutine is kept as long as the connection.

        Args:
            receive: The connection's.
            send: The connection's.

        Raises:
            Exception: A fault of the application or of ours; the connection was closed
                with 1011 before, or the handshake answered with 500.
            asyncio.CancelledError: The server has cancelled the application.
        """
        self._send_event = send
        websocket = WebSocket(self._endpoint.scope, receive, self._send)
        self._keep_secrets(websocket)
        life = self._live(websocket, receive)
        if self._connection.cancelled_at_will:
            self._shield = anyio.CancelScope()
            return run_apart(life, self._shield)
        return life

    def _keep_secrets(self, websocket: WebSocket) -> None:
        """Have the log redact the credentials, unless there are too many cookies to parse.

        In the server's task, because the server logs a fault's traceback after we have ended.
        """
        try:
            check_cookies(self._endpoint.scope, self._connection.limits.max_cookie_size)
        except InvalidHandshake as error:
            self._error = error
        else:
            if found := credentials(websocket):
                logs.remember(*(each.value for each in found))

    async def _live(self, websocket: WebSocket, receive: Receive) -> None:
        try:
            await self._open(websocket)
            if self._connection.accepted:
                await self._handle_all(websocket, receive)
        except (Exception, asyncio.CancelledError) as exc:
            self._stop(fault_of(exc, self._host))
        else:
            self._stop(None)
        try:
            if self._connection.accepted:
                await self._end(websocket)
            else:
                await self._refuse(websocket)
        finally:
            if self._counted_user:
                self._endpoint.hub.admission.leave_user(self._counted_user)
            # Breaks a reference cycle, so that no garbage collection is needed.
            del self._endpoint._lifecycle

    async def _open(self, websocket: WebSocket) -> None:
        """The handshake, up to and including the accept."""
        connection = self._connection
        self._host = asyncio.current_task()
        connection.on_gone = self._on_gone
        connection.start()
        self._set_timer(connection.limits.handshake_timeout, self._handshake_is_late)
        await self._handshake(websocket)
        if connection.accepted:
            await self._endpoint.on_accept(websocket)

    def _stop(self, error: BaseException | None) -> None:
        """Handle no more messages, and note why the connection ends."""
        self._connection.on_gone = None
        self._stop_timer()
        cancelled = isinstance(error, asyncio.CancelledError)
        if cancelled or (error is None and self._verdict is not None):
            self._count_unhandled()
            if self._verdict is not None and self._host is not None and not self._host.uncancel():
                error = self._verdict
        if error is not None:
            self._note(error)

    # Time limits

    def _set_timer(self, seconds: float, action: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, action)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _handshake_is_late(self) -> None:
        limits, counts = self._connection.limits, self._endpoint.hub.counts
        counts.late_handshakes += 1
        reason = f"the handshake was not completed within {limits.handshake_timeout:g} s"
        self._cancel(InvalidHandshake(reason, status=408, code=4408))

    def _on_gone(self, _code: int) -> None:
        """The connection has ended: received messages are still handled for `linger` seconds."""
        endpoint = self._endpoint
        if self._shield is not None:
            # TestClient cancels its scope as soon as it has sent its disconnect.
            self._shield.shield = True
        linger = self._connection.limits.linger if endpoint.linger is None else endpoint.linger
        if self._closes_itself and asyncio.current_task() is self._host:
            # A handler that closed the connection itself gets time to finish.
            linger = max(linger, endpoint.disconnect_timeout)
        self._set_timer(linger, self._linger_is_over)

    def _linger_is_over(self) -> None:
        self._cancel(WebSocketDisconnect(self._connection.close_code or 1006))

    def _cancel(self, verdict: Exception) -> None:
        """Cancel the host. It is suspended now; `_live` catches the cancellation."""
        self._timer = None
        self._verdict = verdict
        if self._host is not None:
            self._host.cancel()

    def _count_unhandled(self) -> None:
        unhandled = self._connection.unhandled + self._interrupted
        if unhandled:
            self._endpoint.hub.counts.unhandled += unhandled
            name = type(self._endpoint).__name__
            logger.info("%s: %d received messages were not handled in time", name, unhandled)

    # The handshake

    async def _handshake(self, websocket: WebSocket) -> None:
        endpoint = self._endpoint
        if self._error is not None:
            raise self._error  # there are too many cookies to parse
        await read_handshake(endpoint, websocket)
        take_user(endpoint, await endpoint.authenticate(websocket))
        # In open mode all users are anonymous, so their connections are not one user's.
        if name := user_of(endpoint.user) or user_of(endpoint.identity):
            endpoint.hub.admission.enter_user(name)
            self._connection.user = self._counted_user = name
        endpoint._admitted = True
        if self._connection.accepted:
            # `authenticate` has accepted it, to ask for the token in a message.
            await self._join()
            await self._complete_handshake()
        if websocket.application_state is WebSocketState.CONNECTING:
            await self._connect(websocket)

    async def _connect(self, websocket: WebSocket) -> None:
        await self._endpoint.on_connect(websocket)
        if self._error is not None:
            raise self._error  # a task has failed meanwhile
        if websocket.application_state is WebSocketState.CONNECTING:
            raise RuntimeError(
                f"{type(self._endpoint).__name__}.on_connect() returned without "
                "'await websocket.accept()'; accept, close, or call super().on_connect(websocket)"
            )

    async def _send(self, event: Event) -> None:
        """The `send` of the `WebSocket`."""
        kind = event["type"]
        if kind == "websocket.accept":
            await self._accept(event)
            return
        if kind == "websocket.close":
            self._closes_itself = True
            if self._error is None and not self._connection.accepted:
                self._log_refusal(403, event.get("reason") or "closed before accept")
        elif kind == "websocket.http.response.start":
            self._denied = True
            if self._error is None:
                self._log_refusal(event["status"], "answered by the endpoint itself")
        await self._send_event(event)

    async def _accept(self, event: Event) -> None:
        """Join the channels, then accept: nothing published after the accept is missed."""
        hub, connection = self._endpoint.hub, self._connection
        hub.register(connection, self._counted_user)
        self._registered = True
        if self._endpoint._admitted:
            await self._join()
        await self._send_event(with_subprotocol(self._endpoint, event))
        hub.opened(connection)
        if self._endpoint._admitted:
            await self._complete_handshake()

    async def _complete_handshake(self) -> None:
        await occupy(self._endpoint, self._endpoint._channels, self.fail)
        if self._connection.close_code is None:
            self._stop_timer()

    async def _join(self) -> None:
        """Join the channels, and have the connection closed when the token expires."""
        endpoint = self._endpoint
        await join_declared(endpoint)
        if endpoint.identity is not None and endpoint.identity.expires is not None:
            left = endpoint.identity.expires - time.time()
            expired = InvalidToken("the token has expired")
            self._expiry = asyncio.get_running_loop().call_later(left, self.fail, expired)

    # Messages

    async def _handle_all(self, websocket: WebSocket, receive: Receive) -> None:
        """Handle what is received; the disconnect comes after all messages."""
        endpoint, connection = self._endpoint, self._connection
        while self._verdict is None:
            event = await receive()
            if event["type"] == "websocket.disconnect":
                websocket.client_state = WebSocketState.DISCONNECTED
                return
            try:
                await self._handle(websocket, event)
            except InvalidMessage as error:
                await endpoint.on_invalid(websocket, error)
            except asyncio.CancelledError:
                self._interrupted = True
                raise
            except Exception as error:
                # The handler tried to send to a client that is gone. Messages received before
                # are handled nevertheless.
                if connection.close_code is None or not is_departure(error):
                    raise

    async def _handle(self, websocket: WebSocket, event: Event) -> None:
        endpoint = self._endpoint
        if endpoint.handlers:
            text = event.get("text")
            data = event["bytes"] if text is None else text
            handler, message, id = parse(endpoint.handlers, data)
            if id is not None:
                await self._handle_with_id(websocket, handler, message, id)
                return
            reply = await getattr(endpoint, handler.name)(websocket, message)
        else:
            reply = await endpoint.on_receive(websocket, await endpoint.decode(websocket, event))
        if reply is not None:
            await endpoint.push(reply)

    async def _handle_with_id(
        self, websocket: WebSocket, handler: Handler, message: Any, id: MessageId
    ) -> None:
        """Handle a message whose client waits for its answer."""
        endpoint = self._endpoint
        endpoint.message_id = unique_id(id, self._counted_user, self._connection.id)
        try:
            reply = await getattr(endpoint, handler.name)(websocket, message)
        except InvalidMessage as error:
            error.id = id
            raise
        finally:
            endpoint.message_id = None
        for answer in answers(reply, id):
            await endpoint.push(answer)

    # The end

    def fail(self, error: BaseException) -> None:
        """Note why the connection ends, and close it with the code for that."""
        connection, name = self._connection, type(self._endpoint).__name__
        if not is_ours(root := root_of(error)):
            error = root  # a fault keeps the groups around it: they are part of its traceback
        ended = connection.close_code is not None
        if ended and (is_expected(error) or not connection.accepted):
            return
        if self._error is None or (is_ours(error) and not is_ours(self._error)):
            self._error = error
        if is_outage(error):
            outages.log(error)
        if isinstance(error, BrokerUnavailable) and not ended:
            self._endpoint.hub.counts.broker_unavailable += 1
        if connection.accepted:
            code, reason = close_for(error)
            if not ended and not is_ours(error):
                logger.info("%s: closed with %d: %s", name, code, one_line(reason))
            connection.close(code, reason)

    async def _end(self, websocket: WebSocket) -> None:
        self._connection.close()
        ENDING.add(self)
        try:
            await self._leave()
            await self._attempt(self._say_goodbye(websocket))
            if self._endpoint._opened:
                await self._close_dependencies()
        finally:
            ENDING.discard(self)
        await self._attempt(self._connection.finish())
        if self._error is not None and is_ours(self._error):
            raise self._error

    async def _attempt(self, step: Coroutine[Any, Any, None]) -> None:
        """Take a step; note its failure, so that the next step is taken, too."""
        try:
            await step
        except (Exception, asyncio.CancelledError) as exc:
            self._note(fault_of(exc, self._host))

    def _note(self, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError) and self._host is not None:
            # It is raised again at the end; until then it must not count as pending.
            self._host.uncancel()
        self.fail(error)

    async def _leave(self) -> None:
        """Cancel the tasks, and leave the channels."""
        if self._expiry is not None:
            self._expiry.cancel()
        tasks, self._endpoint._tasks = self._endpoint._tasks, ENDED
        if tasks is not None:
            await self._attempt(tasks.end())
        if self._registered:
            self._registered = False
            occupied = occupied_by(self._endpoint, self._connection.members)
            await self._attempt(self._unregister())
            for each in occupied:
                await self._attempt(each.ended())

    async def _unregister(self) -> None:
        """Leave the channels; a broker that does not answer in time is away.

        Raises:
            BrokerUnavailable: It was not told; what it can do, it does when it is back.
        """
        seconds, channels = self._endpoint.disconnect_timeout, [*self._connection.members]
        try:
            async with asyncio.timeout(seconds):
                await self._endpoint.hub.unregister(self._connection)
        except (TimeoutError, BrokerUnavailable) as error:
            why = str(error) or f"it did not answer within {seconds:g} s"
            raise BrokerUnavailable(
                f"The broker could not be told that a client has left {one_line(channels)}: {why}"
            ) from None

    async def _say_goodbye(self, websocket: WebSocket) -> None:
        endpoint = self._endpoint
        last = endpoint.on_disconnect(websocket, self._connection.close_code or 1000)
        with suppress(*DEPARTURES):  # it tried to send, and the client is gone
            await self._limited(last, f"{type(endpoint).__name__}.on_disconnect()")

    async def _close_dependencies(self) -> None:
        """Close what dependencies have opened, the last first, even if one before fails."""
        for opened in reversed(self._endpoint._opened):
            await self._attempt(self._close_dependency(opened))

    async def _close_dependency(self, opened: Opened) -> None:
        error = self._error
        if error is None and self._interrupted:
            error = WebSocketDisconnect(self._connection.close_code or 1006)
        what = f"{type(self._endpoint).__name__}: closing {opened.name}()"
        try:
            await self._limited(opened.close(error), what)
        except Exception:
            if not self._connection.accepted:
                self._error = None  # what it raises instead says how the handshake is refused
            raise

    async def _limited(self, step: Coroutine[Any, Any, None], what: str) -> None:
        """Take a step of the end, within `disconnect_timeout` seconds."""
        seconds = self._endpoint.disconnect_timeout
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                await step
        except TimeoutError:
            if not limit.expired():
                raise
            late = f"{what} took more than {seconds:g} s and was cancelled"
            health = self._endpoint.hub.broker.health
            if health.state == "down":  # so it waited for the broker, as those of other clients do
                raise BrokerUnavailable(f"{late}: {health.why}") from None
            logger.error(late)

    async def _refuse(self, websocket: WebSocket) -> None:
        """Answer a handshake that is not accepted, as `reject_as` says."""
        try:
            await self._leave()
            if self._endpoint._opened:
                await self._close_dependencies()
            error = self._error
            refusal = as_refusal(error)
            if error is not None and refusal is None:
                raise error
            if websocket.application_state is WebSocketState.CONNECTED:
                # Joining the channels failed before the accept was sent.
                websocket.application_state = WebSocketState.CONNECTING
            # Unless the endpoint has answered itself, or the client is gone.
            if refusal is not None and websocket.application_state is WebSocketState.CONNECTING:
                if self._endpoint.reject_as == "close":
                    await self._accept_and_close(refusal)
                else:
                    await self._deny(websocket, refusal)
            if self._denied:
                await self._connection.departure()
        finally:
            await self._connection.finish()

    async def _accept_and_close(self, refusal: HTTPException | WebSocketException) -> None:
        code, reason = close_for(refusal)
        self._log_refusal(code, reason)
        await self._send_event(with_subprotocol(self._endpoint, {"type": "websocket.accept"}))
        self._connection.close(code, reason)

    async def _deny(
        self, websocket: WebSocket, refusal: HTTPException | WebSocketException
    ) -> None:
        """Refuse before accept, with the application's own exception handlers if it has any."""
        endpoint = self._endpoint
        if isinstance(refusal, HTTPException) and not tells_status(endpoint, refusal.status_code):
            refusal = WebSocketException(1008, refusal.detail)
        # Any other end without an accept is answered with 403 by every server.
        told = refusal.status_code if isinstance(refusal, HTTPException) else 403
        self._log_refusal(told, close_for(refusal)[1])
        if not has_handlers(endpoint.scope):
            raise refusal
        await answer_by_handlers(websocket, refusal, self._send)

    def _log_refusal(self, told: int, reason: object) -> None:
        """Log why a handshake was refused, but not an outage: `outages` logs that once for all."""
        if self._error is None or not is_outage(self._error):
            name = type(self._endpoint).__name__
            logger.warning("%s: handshake refused with %d: %s", name, told, one_line(reason))
