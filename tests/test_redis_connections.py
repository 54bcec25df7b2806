"""Connections to Redis that break at the wrong moment; the right ones are in `test_brokers`."""

import asyncio
import gc

import pytest

from chatserver.brokers.engine import Interrupted
from chatserver.brokers.redis.connections import MOST_HEARD, Ear, Pipe

pytestmark = pytest.mark.anyio


class Transport(asyncio.Transport):
    """A connection whose other side has gone, which it notices when something is sent.

    Args:
        error: What sending raises; None if it is noticed by reading only.
    """

    def __init__(self, error: Exception | None) -> None:
        super().__init__()
        self.error = error
        self.protocol: asyncio.BaseProtocol | None = None
        self.paused = self.closed = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.error is not None:
            raise self.error
        self.abort()

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        assert self.protocol is not None
        self.closed = True
        lost = self.protocol.connection_lost
        asyncio.get_running_loop().call_soon(lost, ConnectionResetError("reset"))


class Connection:
    """A connection of redis-py over a transport."""

    def __init__(self, transport: asyncio.Transport) -> None:
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        loop = asyncio.get_running_loop()
        self._writer: asyncio.StreamWriter | None
        self._writer = asyncio.StreamWriter(transport, protocol, reader, loop)

    async def connect(self) -> None:
        """It is connected."""

    async def disconnect(self, nowait: bool = False) -> None:
        assert self._writer is not None
        self._writer.close()


class Silent(Transport):
    """The other side says nothing."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """It is sent."""


async def test_whoever_gives_up_waiting_leaves_nothing_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Else the event loop would complain of an error that nobody has asked for."""
    pipe, ear = Pipe(Connection(Silent(None))), Ear(Connection(Silent(None)), sharded=False)
    for call in (pipe.ask([b"x"]), ear.ping()):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call, 0.01)
    await pipe.close()
    await ear.close()
    del pipe, ear
    gc.collect()
    assert caplog.messages == []


# uvloop raises RuntimeError for a connection that it has closed itself.
ERRORS = [None, ConnectionResetError("reset"), RuntimeError("the handler is closed")]


@pytest.mark.parametrize("error", ERRORS)
async def test_whoever_asks_is_interrupted_and_nothing_is_left_behind(
    error: Exception | None,
) -> None:
    pipe = Pipe(Connection(Transport(error)))
    asked = [asyncio.create_task(pipe.ask([b"x"])) for _ in range(3)]
    for answer in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(answer, Interrupted)
    with pytest.raises(Interrupted):
        await pipe.ask([b"x"])
    await pipe.close()


@pytest.mark.parametrize("error", ERRORS)
async def test_whoever_listens_is_interrupted_and_nothing_is_left_behind(
    error: Exception | None,
) -> None:
    async def receive(news: list[tuple[bytes, bytes]]) -> None:
        raise AssertionError("nothing is heard")

    ear = Ear(Connection(Transport(error)), sharded=False)
    calls = [ear.subscribe([b"x"]), ear.ping(), ear.hand_on(receive)]
    for answer in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(answer, Interrupted)
    await ear.close()


async def test_answers_that_come_in_pieces_are_given_to_those_who_asked() -> None:
    pipe = Pipe(Connection(Silent(None)))
    asked = [asyncio.create_task(pipe.ask([b"x"] * count)) for count in (2, 1)]
    await asyncio.sleep(0)
    for piece in (b"+O", b"K\r\n-ER", b"R no\r\n$1\r", b"\nx\r\n"):
        pipe.data_received(piece)
    (first, error), third = await asyncio.gather(*asked)
    assert (first, str(error), third) == (b"OK", "ERR no", [b"x"])
    await pipe.close()


@pytest.mark.parametrize("data", [b"HTTP/1.1 400 Bad Request\r\n", b"+OK\r\n+OK\r\n"])
async def test_what_is_no_answer_ends_the_connection(data: bytes) -> None:
    pipe = Pipe(Connection(Silent(None)))
    asked = asyncio.create_task(pipe.ask([b"x"]))
    await asyncio.sleep(0)
    pipe.data_received(data)
    await asyncio.gather(asked, return_exceptions=True)
    with pytest.raises(Interrupted):
        await pipe.ask([b"x"])
    await pipe.close()


@pytest.mark.parametrize("size", [10, 1024 * 1024])
async def test_what_nobody_takes_is_not_read(size: int) -> None:
    """However large it is, it takes no more memory; and what was taken makes room."""
    transport = Silent(None)
    ear = Ear(Connection(transport), sharded=False)
    taken: list[int] = []

    async def receive(news: list[tuple[bytes, bytes]]) -> None:
        taken.append(sum(len(data) for _, data in news))

    handing_on = asyncio.create_task(ear.hand_on(receive))
    announcement = b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$%d\r\n%s\r\n" % (size, bytes(size))
    for number in range(1, 4):
        while not transport.paused:
            ear.data_received(announcement)
        assert len(taken) < number
        for _ in range(3):
            await asyncio.sleep(0)
        assert not transport.paused
        assert len(taken) == number
    assert all(0 < each <= MOST_HEARD + size for each in taken)
    await ear.close()
    with pytest.raises(Interrupted):
        await handing_on
