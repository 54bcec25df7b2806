"""A TCP proxy for tests of faults: the way to an engine, which can be cut, frozen and slowed.

    with Proxy(engine.port) as proxy:
        url = proxy.way(engine.url)                  # the engine's URL, through the proxy
        proxy.cut()                                  # connections are reset, new ones too
        proxy.freeze()                               # nothing is reset, nothing arrives
        proxy.heal()                                 # what was frozen goes on

It runs on an event loop in a thread of its own, so that it works while a test blocks its own loop.
"""

import asyncio
import enum
import socket
import struct
import threading
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

__all__ = ["Proxy", "Way"]

#: Bytes that are carried at once.
CHUNK = 65_536
#: SO_LINGER for no time: a close drops what was not sent, and the other end gets an RST.
RESET = struct.pack("ii", 1, 0)
#: Seconds within which the proxy does what it is told.
PATIENCE = 10.0


class Way(enum.Enum):
    """A direction through the proxy."""

    TO = "to the engine"
    BACK = "back to the client"


class Proxy:
    """Carries bytes between clients and one port of this machine.

    Args:
        target: The port.

    Attributes:
        port: Where clients connect to, on 127.0.0.1; the same for as long as the proxy lives.
        target: May be changed: the next connections go there.
        delay: Seconds that bytes take on the way, each time they are read; 0 at first.
        accepted: How many connections were accepted.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.delay = 0.0
        self.accepted = 0
        self._cut = False
        self._links: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._flows = {way: asyncio.Event() for way in Way}

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._start())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def way(self, url: str) -> str:
        """The URL of an engine, through the proxy."""
        return url.replace(f":{urlsplit(url).port}", f":{self.port}")

    @property
    def links(self) -> int:
        """How many connections go through it now."""
        return len(self._links)

    def cut(self) -> None:
        """Reset all connections, and every new one, until `heal`."""
        self._cut = True
        self.drop()

    def drop(self) -> None:
        """Reset all connections; new ones are carried, unless it is cut."""
        self._run(self._reset())

    def freeze(self, *ways: Way) -> None:
        """Carry nothing, in these directions or in both, until `heal`.

        Connections are accepted, and what is sent waits for as long as buffers take it. With
        `Way.BACK` alone the engine does what it is asked to, and nobody is told.
        """
        self._run(self._let(False, ways))

    def heal(self) -> None:
        """Carry everything again, at once."""
        self._cut = False
        self.delay = 0.0
        self._run(self._let(True))

    async def _let(self, flow: bool, ways: tuple[Way, ...] = ()) -> None:
        for way in ways or Way:
            if flow:
                self._flows[way].set()
            else:
                self._flows[way].clear()

    async def _start(self) -> None:
        await self._let(True)
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        self._server.close()
        await self._reset()

    async def _reset(self) -> None:
        links = list(self._links)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        link = asyncio.current_task()
        assert link is not None
        self._links[link] = [writer]
        try:
            if not self._cut:
                await self._connect(link, reader, writer)
        except OSError:
            pass  # nobody listens there
        except asyncio.CancelledError:
            pass  # it is reset
        finally:
            for each in self._links.pop(link):
                _reset(each)

    async def _connect(
        self, link: asyncio.Task[None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        # Behind a frozen way, the engine doesn't learn that somebody connects.
        await self._flows[Way.TO].wait()
        engine_reader, engine_writer = await asyncio.open_connection("127.0.0.1", self.target)
        self._links[link].append(engine_writer)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(reader, engine_writer, Way.TO))
                group.create_task(self._carry(engine_reader, writer, Way.BACK))
            # Both have ended in order: what is not sent yet must still arrive.
            for each in (engine_writer, writer):
                each.close()
                await each.wait_closed()
            self._links[link].clear()
        except* OSError:
            pass  # one end was reset, and so is the other

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way
    ) -> None:
        """Carry one direction until its sender ends it."""
        while data := await reader.read(CHUNK):
            if self.delay:
                await asyncio.sleep(self.delay)
            await self._flows[way].wait()
            writer.write(data)
            await writer.drain()
        await self._flows[way].wait()
        writer.write_eof()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)


def _reset(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()
