"""The server under attack, and questions to it."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.attacks.client import Peer
from benchmarks.attacks.kernel import now, sockets
from benchmarks.process import Process
from benchmarks.servers import Server

__all__ = ["Figures", "Refused", "Target", "tracebacks", "unusual", "worst"]

WARM = 20  # clients that come and go before memory is measured
PATIENCE = 5.0  # seconds in which an answer must come
#: Log lines that every connection causes, whatever it does; uvicorn's and ours.
USUAL = re.compile(r"\[accepted\]|connection (open|closed)$")

#: The figures of an attack, by name; None for what did not happen.
Figures = dict[str, float | None]


class Refused(Exception):
    """The server did not accept a client that it should; the message has its response."""


def unusual(log: str) -> int:
    """How many lines are not caused by every connection."""
    return sum(not USUAL.search(line) for line in log.splitlines())


def tracebacks(log: str) -> int:
    return log.count("Traceback (most recent call last)")


def worst(values: Iterable[float | None]) -> float | None:
    """The largest value; None means never, and is larger than all."""
    found = list(values)
    numbers = [value for value in found if value is not None]
    return max(numbers) if found and len(numbers) == len(found) else None


@dataclass
class Target:
    """A running server.

    Attributes:
        folder: For files of the attack.
    """

    server: Server
    process: Process
    port: int
    folder: Path

    @asynccontextmanager
    async def client(
        self, path: str = "/ws", *, buffer: int = 0, headers: str = ""
    ) -> AsyncIterator[Peer]:
        """A client after its handshake.

        Raises:
            Refused: It was not accepted.
        """
        with Peer(buffer=buffer) as peer:
            async with asyncio.timeout(PATIENCE):
                status = await peer.join(self.port, path, headers)
            if status != 101:
                raise Refused(f"{path} was answered with {status}")
            yield peer

    async def warm_up(self, paths: Iterable[str]) -> None:
        """Let some clients come and go: what is set up for the first ones must not count."""
        for path in paths:
            for _ in range(WARM):
                async with self.client(path) as peer, asyncio.timeout(PATIENCE):
                    await peer.say("hi")
                    await peer.frames()
                    await peer.leave()

    async def lives(self) -> float:
        """Whether two new clients in the room get a message of one of them: 1 if so, else 0."""
        with suppress(TimeoutError, EOFError, OSError, Refused):
            async with (
                asyncio.timeout(PATIENCE),
                self.client("/ws/7") as one,
                self.client("/ws/8") as other,
            ):
                await one.say("hello")
                for peer in (one, other):
                    await peer.hear("Client #7 says: hello")
                return 1
        return 0

    async def let_go(
        self, peers: Iterable[Peer], seconds: float, poll: float = 0.05
    ) -> dict[Peer, float | None]:
        """Watch which sockets the server's process closes.

        The clients do nothing meanwhile. They can't tell: if a server drops a full connection,
        the kernel still sends the rest.

        Args:
            peers: Clients that are connected.
            seconds: How long to watch at most.
            poll: Seconds between two looks.

        Returns:
            Seconds until each was closed; None if it was not.
        """
        begun = time.monotonic()
        found = now(self.port)
        inodes = {peer: found[peer.port].inode if peer.port in found else 0 for peer in peers}
        gone = dict[Peer, float | None].fromkeys(inodes)
        while None in gone.values() and time.monotonic() < begun + seconds:
            held = sockets(self.process.popen.pid)
            for peer, inode in inodes.items():
                if gone[peer] is None and inode not in held:
                    gone[peer] = time.monotonic() - begun
            await asyncio.sleep(poll)
        return gone

    def log(self) -> str:
        """The whole log."""
        return self.process.log.read_text("utf-8", "replace")

    def grown(self, before: int) -> float:
        """Megabytes by which its memory exceeded `before` at most, since `reset_peak`."""
        return max(self.process.peak() - before, 0) / 1e6
