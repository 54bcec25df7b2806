"""Connections to Redis: one for commands and one to hear announcements, on each node.

redis-py makes them (addresses, TLS, passwords, Sentinel, Cluster). What is here then takes the
transport over, writes many commands at once, and reads the answers as they come: a stream's reader
would cost a turn of the event loop, and redis-py's parser a time-out and a task's switch, for each.
"""

import asyncio
import re
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeAlias, cast

import hiredis
from redis import exceptions
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import ConnectionPool

from chatserver.brokers.engine import Interrupted
from chatserver.errors import BrokerUnavailable

__all__ = [
    "CONNECT_TIMEOUT",
    "Answer",
    "ClusterNodes",
    "Ear",
    "News",
    "Nodes",
    "OneNode",
    "Pipe",
    "answer_of",
    "pack",
    "text_of",
]

#: What Redis says to a command: a reply of any type, or its error.
Answer: TypeAlias = Any
#: The name under which something was announced, and its bytes.
News: TypeAlias = tuple[bytes, bytes]
#: Bytes of announcements that were read and not yet handed on, about; beyond, nothing more is read.
#: Each announcement counts for so many besides its content.
MOST_HEARD, OVERHEAD = 8 * 1024 * 1024, 128
#: Seconds that TCP and TLS may take. A packet that was lost is sent again after one second, then
#: after two more; to begin anew is faster then.
CONNECT_TIMEOUT = 2.0

#: These pass by themselves, or when the connection is made anew, to another node perhaps.
WEATHER: tuple[type[Exception], ...] = (
    exceptions.ConnectionError,  # and what it is the base of: BusyLoadingError
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.NoScriptError,
    exceptions.ClusterDownError,
    exceptions.MovedError,
    exceptions.AskError,
    exceptions.TryAgainError,
    exceptions.MasterDownError,
    OSError,
)
#: These don't: somebody has to change something.
AUTHENTICATION: tuple[type[Exception], ...] = (
    exceptions.AuthenticationError,
    exceptions.AuthenticationWrongNumberOfArgsError,
    exceptions.AuthorizationError,
    exceptions.NoPermissionError,
)
#: Whatever connecting may raise.
ANY: tuple[type[Exception], ...] = (
    *WEATHER,
    exceptions.RedisError,
    exceptions.RedisClusterException,  # which is none of the former
)
#: The same, as Redis begins an answer to a command.
NOT_NOW = (
    *("READONLY ", "NOSCRIPT ", "LOADING ", "BUSY ", "MASTERDOWN ", "NOREPLICAS "),
    *("CLUSTERDOWN ", "MOVED ", "ASK ", "TRYAGAIN "),
)
#: What says no more to a person than the sentence behind it.
CODE = re.compile("^(ERR|OOM|NOPERM) ")


class Connection(Protocol):
    """What is used of a connection of redis-py.

    Attributes:
        _writer: Where it writes to once it is connected. The only thing that is used of it without
            being promised.
    """

    _writer: asyncio.StreamWriter | None

    async def connect(self) -> None: ...

    async def disconnect(self, nowait: bool = False) -> None: ...


def pack(*command: bytes | str | int) -> bytes:
    """A command as bytes of the protocol (RESP)."""
    return bytes(hiredis.pack_command(cast(Any, command)))  # its hint allows only one argument


def answer_of(answer: Answer) -> Answer | Interrupted | BrokerUnavailable:
    """An answer, or the error that stands for it."""
    if not isinstance(answer, Exception):
        return answer
    if str(answer).startswith(NOT_NOW):
        return Interrupted(text_of(answer))
    return BrokerUnavailable(f"Redis refuses: {text_of(answer)}.")


def text_of(error: BaseException) -> str:
    """What an error says, as a part of a sentence."""
    return CODE.sub("", str(error)).rstrip(".") or type(error).__name__


def _no_entry(error: Exception) -> BrokerUnavailable:
    return BrokerUnavailable(f"Redis refuses the user or password: {text_of(error)}.")


class _Line(asyncio.Protocol):
    """A connection on which the replies come in the order of what was asked.

    Args:
        connection: It is connected, and has answered all that it was asked.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        # Who waits, and for how many replies.
        self._waiting: deque[tuple[int, asyncio.Future[Any]]] = deque()
        self._error: Interrupted | None = None
        self._replies = hiredis.Reader()
        assert connection._writer is not None, "it is connected"
        self._transport = cast(asyncio.Transport, connection._writer.transport)
        self._transport.set_protocol(self)

    async def close(self) -> None:
        """Give the connection up; who waits gets `Interrupted`."""
        self._fail(Interrupted("the connection was closed"))
        await _give_up(self._connection)

    def _take(self, reply: Answer) -> None:
        """Take a reply; one that can't be understood raises an error, and ends the connection."""
        raise NotImplementedError

    def data_received(self, data: bytes) -> None:
        try:
            self._replies.feed(data)
            while (reply := self._replies.gets()) is not False:
                self._take(reply)
        except Exception as error:  # whatever else it may be that answers there
            self._fail(error)
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or Interrupted("Redis has closed the connection"))

    def _write(self, commands: Sequence[bytes], replies: int) -> "asyncio.Future[Any]":
        """Write packed commands; what `_take` makes of so many replies is the future's result.

        Raises:
            Interrupted: The connection is lost.
        """
        if self._error is not None:
            raise self._error
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((replies, future))
        try:
            self._transport.write(b"".join(commands))
        except (OSError, RuntimeError) as error:  # uvloop, if it was reset just before
            self._fail(error)
        return future

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = Interrupted(text_of(error))
        while self._waiting:
            _, future = self._waiting.popleft()
            if not future.done():
                future.set_exception(self._error)


class Pipe(_Line):
    """A connection on which commands are written without waiting for the answers before."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._answers: list[Answer] = []  # to whoever waits first

    async def ask(self, commands: Sequence[bytes]) -> list[Answer]:
        """The answers to packed commands, in their order; errors of Redis are among them.

        Raises:
            Interrupted: The connection is lost.
        """
        if not commands and self._error is None:
            return []
        answers: list[Answer] = await self._write(commands, len(commands))
        return answers

    async def ask_one(self, *command: bytes | str | int) -> Answer:
        """The answer to one command.

        Raises:
            Interrupted: The connection is lost, or Redis can't serve now.
            BrokerUnavailable: Redis refuses the command.
        """
        answer = answer_of((await self.ask([pack(*command)]))[0])
        if isinstance(answer, Interrupted | BrokerUnavailable):
            raise answer
        return answer

    def _take(self, reply: Answer) -> None:
        if not self._waiting:
            raise exceptions.ConnectionError("an answer to nothing that was asked")
        self._answers.append(reply)
        count, future = self._waiting[0]
        if len(self._answers) == count:
            answers, self._answers = self._answers, []
            self._waiting.popleft()
            if not future.done():
                future.set_result(answers)


class Ear(_Line):
    """A connection that hears what is announced.

    Args:
        connection: The connection.
        sharded: Whether it hears a shard of a Cluster (SSUBSCRIBE).
    """

    def __init__(self, connection: Connection, *, sharded: bool) -> None:
        super().__init__(connection)
        self._s = b"S" if sharded else b""
        self._message = b"smessage" if sharded else b"message"
        self._heard: list[News] = []
        self._heard_bytes = 0
        # In a Cluster: names that were left, and how often that is not confirmed yet.
        self._left: Counter[bytes] = Counter()
        self._something = asyncio.Event()

    async def subscribe(self, names: Iterable[bytes]) -> None:
        """Hear what is announced under these names; returns when it is certain.

        Raises:
            Interrupted: The connection is lost.
        """
        await self._send([pack(self._s + b"SUBSCRIBE", name) for name in names])

    async def unsubscribe(self, names: Iterable[bytes]) -> None:
        """Hear it no more."""
        left = list(names)
        if self._s:
            self._left.update(left)
        await self._send([pack(self._s + b"UNSUBSCRIBE", name) for name in left])

    async def ping(self) -> None:
        """Return when Redis has answered."""
        await self._send([])

    async def hand_on(self, receive: Callable[[list[News]], Awaitable[None]]) -> None:
        """Give `receive` the name and bytes of each announcement, in lists, until it is lost.

        Raises:
            Interrupted: The connection is lost.
        """
        while True:
            if not self._heard:
                if self._error is not None:
                    raise self._error
                self._something.clear()
                await self._something.wait()
                continue
            heard, self._heard = self._heard, []
            is_full, self._heard_bytes = self._heard_bytes >= MOST_HEARD, 0
            if is_full and not self._transport.is_closing():
                self._transport.resume_reading()
            await receive(heard)

    async def _send(self, commands: list[bytes]) -> None:
        """Send commands; a ping behind them is answered after they were carried out."""
        await self._write([*commands, pack("PING")], 1)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._heard_bytes >= MOST_HEARD and not self._transport.is_closing():
            self._transport.pause_reading()

    def _fail(self, error: Exception) -> None:
        super()._fail(error)
        self._something.set()

    def _take(self, reply: Answer) -> None:
        if isinstance(reply, Exception):
            raise exceptions.ConnectionError(str(reply))
        # Before it is subscribed to anything, Redis answers a ping as on any other connection.
        kind = reply[0] if isinstance(reply, list) else reply.lower()
        if kind == self._message:
            self._heard.append((reply[1], reply[2]))
            self._heard_bytes += len(reply[2]) + OVERHEAD
            self._something.set()
        elif kind == b"pong":
            _, pong = self._waiting.popleft()
            if not pong.done():
                pong.set_result(None)
        elif kind == b"sunsubscribe":
            if not self._left[reply[1]]:
                raise exceptions.ConnectionError("a slot has moved to another node")
            self._left -= Counter([reply[1]])


async def _give_up(connection: Connection) -> None:
    with suppress(*WEATHER):
        await connection.disconnect(nowait=True)


class Nodes(ABC):
    """The nodes of an engine, each with a pipe and an ear.

    Attributes:
        pipes: The pipe of each node.
        ears: The ear of each node.
        sharded: Whether each node announces only what belongs to it.
        address: Where they are, without a password.
        db: The number of the database.
    """

    sharded: bool = False

    def __init__(self, address: str, db: int = 0) -> None:
        self.address = address
        self.db = db
        self.pipes: list[Pipe] = []
        self.ears: list[Ear] = []

    @abstractmethod
    async def connect(self) -> None:
        """Connect to every node."""

    @abstractmethod
    def place(self, key: bytes) -> int:
        """The index of the node that has a key."""

    async def close(self) -> None:
        """Give up all connections."""
        for pipe in self.pipes:
            await pipe.close()
        for ear in self.ears:
            await ear.close()
        self.pipes, self.ears = [], []

    async def _add(self, make: Callable[[], Any]) -> None:
        self.pipes.append(Pipe(await _connected(make())))
        self.ears.append(Ear(await _connected(make()), sharded=self.sharded))


async def _connected(connection: Connection) -> Connection:
    try:
        await connection.connect()
    except AUTHENTICATION as error:
        await _give_up(connection)
        raise _no_entry(error) from None
    except ANY as error:
        await _give_up(connection)
        raise Interrupted(text_of(error)) from None
    return connection


class OneNode(Nodes):
    """A single node, or the master that Sentinels know."""

    def __init__(self, address: str, pool: ConnectionPool, db: int) -> None:
        super().__init__(address, db)
        self._pool = pool

    async def connect(self) -> None:
        await self._add(self._pool.make_connection)

    def place(self, key: bytes) -> int:
        return 0


class ClusterNodes(Nodes):
    """The primaries of a Cluster."""

    sharded: bool = True

    def __init__(self, address: str, hosts: list[tuple[str, int]], options: dict[str, Any]) -> None:
        super().__init__(address)
        self._hosts = hosts
        self._options = options
        self._cluster: RedisCluster | None = None
        self._index: dict[str, int] = {}

    async def connect(self) -> None:
        nodes = [ClusterNode(host, port) for host, port in self._hosts]
        self._cluster = RedisCluster(startup_nodes=nodes, **self._options)
        try:
            await self._cluster.initialize()
        except AUTHENTICATION as error:
            raise _no_entry(error) from None
        except ANY as error:
            raise Interrupted(text_of(error)) from None
        for node in self._cluster.get_primaries():
            self._index[node.name] = len(self.pipes)
            await self._add(node.acquire_connection)

    def place(self, key: bytes) -> int:
        assert self._cluster is not None, "it is connected"
        slot = self._cluster.keyslot(key)
        node = self._cluster.nodes_manager.get_node_from_slot(slot)
        return self._index[node.name]

    async def close(self) -> None:
        await super().close()
        self._index = {}
        if self._cluster is not None:
            with suppress(*WEATHER):
                await self._cluster.aclose()
            self._cluster = None
