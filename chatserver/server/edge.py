"""What the connections of one server share: the limits, the counts, a sweep over them all, an end.

One timer for the whole server watches all deadlines: once a second each connection checks whether
one of its own has passed. So a connection needs no timer while nothing is wrong with it.

When the server stops, its WebSockets end one after the other, so that their clients don't all come
back at once. Until its turn has come a connection is served as before.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Set
from itertools import islice
from math import ceil
from time import monotonic
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from chatserver.hub import ADMISSION, Admission
from chatserver.limits import Counts, Limits
from chatserver.server.uvicorn_ import Config, ServerState

__all__ = ["Address", "Edge", "Watched", "edge_of"]

#: Seconds between two sweeps at most; less if a deadline is short, so that it is at most a quarter
#: late.
INTERVAL = 1.0
#: Connections that are checked before other tasks get a turn.
TURN_CHECKS = 100

#: Connections that end in a second when the server stops; more if the longest end were over.
ENDS_PER_SECOND = 1000
#: Seconds in which all connections have ended at most; two thirds of the grace, if that is less.
LONGEST_END = 2.0
#: Seconds between two turns in which connections end.
END_TURN = 0.02

#: The address that a client connected to: host and port, or the path of a Unix socket.
Address: TypeAlias = tuple[str, int | None] | None


class Watched:
    """A connection with deadlines; uvicorn's own classes have none."""

    __slots__ = ()

    def check(self, now: float) -> None:
        """Do what is due at this time, in seconds; called once per interval."""
        raise NotImplementedError


class Edge:
    """The shared part of one server's protocols.

    Args:
        config: uvicorn's; it has the pings' interval and timeout.
        server_state: uvicorn's; it has the connections, and the tasks to wait for at the end.
        app_state: The lifespan's state, with or without the hub's `ADMISSION`.

    Attributes:
        admission: Counts the WebSockets, and refuses those beyond the limits.
        limits: What a client may take.
        counts: How often a client was refused or closed for going beyond a limit.
        loop: The server's event loop, stored because Python 3.11 makes a system call whenever it
            is asked for the running loop.
        ping_interval: Seconds without a sign of life after which a client is pinged.
        ping_timeout: Seconds in which the client must answer.
        interval: Seconds between two sweeps.
        ended: Set unless connections wait for their turn to end.
    """

    def __init__(
        self, config: Config, server_state: ServerState, app_state: Mapping[str, Any]
    ) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.admission: Admission = app_state.get(ADMISSION) or Admission()
        self.limits: Limits = self.admission.limits
        self.counts: Counts = self.admission.counts
        self.ping_interval: float = config.ws_ping_interval or float("inf")
        self.ping_timeout: float = config.ws_ping_timeout or float("inf")
        self.interval: float = min(INTERVAL, self._shortest() / 4)
        self._servers: dict[Address, Address] = {}
        self._connections: Set[Any] = server_state.connections
        self._tasks = server_state.tasks
        # One bound method for all tasks.
        self._forget_task = server_state.tasks.discard
        # Runs while there are connections.
        self._timer: asyncio.TimerHandle | None = None
        self._ending: deque[Callable[[], None]] = deque()
        self.ended = asyncio.Event()
        self.ended.set()
        grace = config.timeout_graceful_shutdown
        self._longest_end = LONGEST_END if grace is None else min(LONGEST_END, grace * 2 / 3)

    def _shortest(self) -> float:
        limits = self.limits
        deadlines = (limits.header_timeout, limits.message_timeout, limits.send_timeout)
        return min(*deadlines, self.ping_interval, self.ping_timeout)

    def shared(self, server: Address) -> Address:
        """The server's address, as one object for all connections with it."""
        return self._servers.setdefault(server, server)

    def start(self, application: Coroutine[Any, Any, None]) -> None:
        """Run the application for a connection, in a task."""
        task = self.loop.create_task(application)
        self._tasks.add(task)
        task.add_done_callback(self._forget_task)

    # The end

    def stop(self) -> None:
        """The server stops: refuse every handshake from now on."""
        self.admission.stopping = True

    def end_in_turn(self, end: Callable[[], None]) -> None:
        """End a connection in its turn; called for all of them in one turn of the event loop.

        So 1,000 connections end within a second, a few at once, and however many there are within
        two seconds or two thirds of the server's grace.
        """
        self.stop()
        if not self._ending:
            self.ended.clear()
            self.loop.call_soon(self._end_all)
        self._ending.append(end)

    def _end_all(self) -> None:
        seconds = min(len(self._ending) / ENDS_PER_SECOND, self._longest_end)
        self._end_some(self.loop.time() + seconds)

    def _end_some(self, until: float) -> None:
        turns = max(ceil((until - self.loop.time()) / END_TURN), 1)
        for _ in range(ceil(len(self._ending) / turns)):
            self._ending.popleft()()
        if self._ending:
            self.loop.call_later(END_TURN, self._end_some, until)
        else:
            self.ended.set()

    # The sweep

    def watch(self) -> None:
        """Start the sweeps; called by each connection when it is made."""
        if self._timer is None:
            self._timer = self.loop.call_later(self.interval, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        if self._connections:
            self.watch()
            self._check(iter(tuple(self._connections)))

    def _check(self, connections: Iterator[Any]) -> None:
        """Let connections do what is due, a number of them per turn of the event loop."""
        now = monotonic()
        turn = list(islice(connections, TURN_CHECKS))
        for connection in turn:
            if isinstance(connection, Watched):
                connection.check(now)
        if turn:
            self.loop.call_soon(self._check, connections)


_edges: WeakKeyDictionary[ServerState, Edge] = WeakKeyDictionary()


def edge_of(config: Config, server_state: ServerState, app_state: Mapping[str, Any]) -> Edge:
    """The edge of a server, made for its first connection."""
    edge = _edges.get(server_state)
    if edge is None:
        edge = _edges[server_state] = Edge(config, server_state, app_state)
    return edge
