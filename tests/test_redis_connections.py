"""Connections to Redis that break at the wrong moment; the right ones are in `test_brokers`."""

import asyncio
import gc
from collections.abc import Iterable
from typing import Any

import pytest

from chatserver.brokers.engine import Interrupted
from chatserver.brokers.redis.connections import MOST_HEARD, Ear, Pipe

pytestmark = pytest.mark.anyio


class Connection:
    """A connection whose other side has gone, which it notices when something is sent.

    Args:
        error: What sending raises; None if it is noticed by reading only.
    """

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.gone = asyncio.Event()

    async def connect(self) -> None:
        """It is connected."""

    async def disconnect(self, nowait: bool = False) -> None:
        self.gone.set()

    async def send_packed_command(
        self, command: Iterable[bytes], check_health: bool = True
    ) -> None:
        self.gone.set()
        if self.error is not None:
            raise self.error

    async def read_response(self, disable_decoding: bool = False) -> Any:
        await self.gone.wait()
        raise ConnectionResetError("reset")


async def test_who_closes_it_can_be_cancelled_meanwhile() -> None:
    """Else a server that stops in this moment would not stop."""
    pipe, ear = Pipe(Connection(None)), Ear(Connection(None), sharded=False)
    await asyncio.sleep(0)
    for each in (pipe, ear):
        closing = asyncio.create_task(each.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await each.close()


class Full(Connection):
    """A connection that takes nothing more."""

    async def send_packed_command(
        self, command: Iterable[bytes], check_health: bool = True
    ) -> None:
        await self.gone.wait()


async def test_whoever_gives_up_while_sending_leaves_nothing_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Else the event loop would complain of an error that nobody has asked for."""
    pipe, ear = Pipe(Full(None)), Ear(Full(None), sharded=False)
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
    pipe = Pipe(Connection(error))
    await asyncio.sleep(0)  # it waits for something to read an answer to
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

    ear = Ear(Connection(error), sharded=False)
    await asyncio.sleep(0)
    calls = [ear.subscribe([b"x"]), ear.ping(), ear.hand_on(receive)]
    for answer in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(answer, Interrupted)
    await ear.close()


class Talking(Connection):
    """A connection on which large announcements come without end."""

    def __init__(self, size: int) -> None:
        super().__init__(None)
        self.size = size
        self.read = 0

    async def read_response(self, disable_decoding: bool = False) -> Any:
        self.read += 1
        return [b"message", b"name", bytes(self.size)]


@pytest.mark.parametrize("size", [10, 1024 * 1024])
async def test_what_nobody_takes_is_not_read(size: int) -> None:
    """However large it is, it takes no more memory; and what was taken makes room."""
    connection = Talking(size)
    ear = Ear(connection, sharded=False)
    taken: list[int] = []

    async def receive(news: list[tuple[bytes, bytes]]) -> None:
        taken.append(sum(len(data) for _, data in news))
        if len(taken) == 3:
            raise Interrupted("it has had enough")

    for _ in range(3):
        await asyncio.sleep(0)
    before = connection.read
    for _ in range(3):
        await asyncio.sleep(0)
    assert connection.read == before
    with pytest.raises(Interrupted):
        await ear.hand_on(receive)
    assert all(0 < each <= MOST_HEARD + size for each in taken)
    await ear.close()
