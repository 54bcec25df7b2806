"""Tasks that belong to a channel: `Endpoint.while_occupied`, while it has members of the class.

    occupied    the first member has started the task; if that returns, it is not started again
    ending      the last member has left, and the task is cancelled; who comes now waits for its end

What is neither is not kept. A member is an accepted connection. All of it belongs to one event
loop, so what happens between two awaits is one step.
"""

import asyncio
import logging
from collections.abc import Callable
from contextvars import Context
from typing import Any, NamedTuple

from starlette.websockets import WebSocketDisconnect

from chatserver.connection import Connection
from chatserver.endpoints.outcome import close_for, fault_of, is_ours, root_of
from chatserver.endpoints.tasks import CANCEL_TIMEOUT
from chatserver.hub import Hub

__all__ = ["Occupancy", "Place", "end_all", "enter", "joined", "leave"]

logger: logging.Logger = logging.getLogger("chatserver")


class Place(NamedTuple):
    """Where there is one task at a time.

    Attributes:
        loop: The event loop of the members.
        hub: The hub of the channel.
        cls: The endpoint class of the members.
        channel: The channel's name.
    """

    loop: asyncio.AbstractEventLoop
    hub: Hub
    cls: type[Any]
    channel: str


class Occupancy:
    """The members of one class in one channel, and the task that is theirs.

    Args:
        place: Where it is; there is no other now.

    Attributes:
        members: Each with what is called when the task fails for another reason than a fault.
            None is left while the task is ending.
        failed: Whether the task has failed.
    """

    __slots__ = ("_late", "_name", "_place", "_task", "failed", "members")

    def __init__(self, place: Place) -> None:
        self.members: dict[Connection, Callable[[BaseException], None]] = {}
        self.failed = False
        self._place = place
        self._name = f"{place.cls.__name__}.while_occupied({place.channel!r})"
        self._task: asyncio.Task[None]
        # Cancels the task for the second time.
        self._late: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start the task, after the first member was added."""
        # In an empty context, because that of a connection holds values of its client.
        loop = self._place.loop
        self._task = loop.create_task(self._run(), name=self._name, context=Context())
        self._task.add_done_callback(self._done)

    def end(self) -> None:
        """Cancel the task, once the last member has left."""
        self.members.clear()
        if self._task.done():
            self.forget()
        elif self._late is None:
            self._task.cancel()
            self._late = self._place.loop.call_later(self._timeout, self._is_late)

    async def ended(self) -> None:
        """Wait for the end of the task, if no member is left; not for ever if it doesn't end."""
        if not self.members:
            await asyncio.wait({self._task}, timeout=self._timeout + CANCEL_TIMEOUT)

    def forget(self) -> None:
        """Leave the place to the next one."""
        if _occupied.get(self._place) is self:
            del _occupied[self._place]

    async def _run(self) -> None:
        try:
            await self._place.cls.while_occupied(self._place.channel, self._place.hub)
        except (Exception, asyncio.CancelledError) as error:
            fault = fault_of(error, self._task)
            if not isinstance(fault, Exception):
                raise
            self._fail(fault)

    def _fail(self, error: Exception) -> None:
        """Log a fault once, and close the members."""
        self.failed = True
        self.forget()
        members, self.members = self.members, {}
        if not is_ours(root := root_of(error)):
            for fail in members.values():
                fail(root)
            return
        logger.error("%s failed", self._name, exc_info=error)
        for connection in members:
            connection.close(*close_for(root))

    def _is_late(self) -> None:
        logger.error(
            "%s took more than %g s to end and was cancelled again", self._name, self._timeout
        )
        self._task.cancel()

    def _done(self, _task: asyncio.Task[None]) -> None:
        if self._late is not None:
            self._late.cancel()
        if not self.members:
            self.forget()

    @property
    def _timeout(self) -> float:
        seconds: float = self._place.cls.disconnect_timeout
        return seconds


#: The channels that are occupied or ending, of all event loops.
_occupied: dict[Place, Occupancy] = {}


async def enter(
    place: Place, connection: Connection, fail: Callable[[BaseException], None]
) -> None:
    """Make a connection a member. When this returns, the task has come to its first await.

    Waits while the task of earlier members is ending, so that there are never two.

    Args:
        place: Where; the connection is in the channel, and accepted.
        connection: The connection.
        fail: Called with the error when the task ends with one that is no fault.

    Raises:
        WebSocketDisconnect: The task has failed, so the connection was closed.
    """
    while (found := _occupied.get(place)) is not None and not found.members:
        await found.ended()
    if place.channel not in connection.members:
        return  # it was made to leave meanwhile
    if found is not None:
        found.members[connection] = fail
    else:
        _forget_closed_loops()
        found = _occupied[place] = Occupancy(place)
        found.members[connection] = fail
        found.start()
    await asyncio.sleep(0)
    if found.failed:
        raise WebSocketDisconnect(connection.close_code or 1011)


def joined(place: Place, connection: Connection) -> Occupancy | None:
    """What a connection is a member of, at a place."""
    found = _occupied.get(place)
    return found if found is not None and connection in found.members else None


def leave(place: Place, connection: Connection) -> None:
    """A connection has left the channel; whether it had become a member or not."""
    found = joined(place, connection)
    if found is not None:
        del found.members[connection]
        if not found.members:
            found.end()


async def end_all(hub: Hub) -> None:
    """End all tasks that use a hub on this event loop; called before the hub is stopped."""
    loop = asyncio.get_running_loop()
    found = [each for place, each in tuple(_occupied.items()) if place[:2] == (loop, hub)]
    for each in found:
        each.end()
    await asyncio.gather(*(each.ended() for each in found))


def _forget_closed_loops() -> None:
    """Forget what a closed loop, such as one of a test client, has left behind."""
    for place in tuple(_occupied):
        if place.loop.is_closed():
            _occupied.pop(place, None)
