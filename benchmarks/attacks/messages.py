"""What one connection may send: too large, too slowly, in too many pieces, too often, too dense."""

import asyncio
import time
import zlib
from contextlib import suppress

from benchmarks.attacks.client import Peer
from benchmarks.attacks.target import PATIENCE, Figures, Refused, Target, worst
from benchmarks.probes import percentile
from tests.raw import CLOSE, CONTINUATION, FIN, PING, PONG, RSV1, TEXT, frame

__all__ = ["bomb", "flood", "fragments", "large", "pings"]

# 14
SIZES = (65_536, 65_537, 1 << 20, 1 << 24, (1 << 24) + 1)  # bytes
UNFINISHED = {  # the beginning, and what follows every second
    "half a header": (b"\x81", b""),
    "dripping bytes": (frame(FIN | TEXT, size=60_000), b"x"),
    "fragments": (frame(TEXT, b"x"), frame(CONTINUATION, b"x")),
}
UNFINISHED_WATCHED = 32.0  # seconds

# 15
MOST_FRAGMENTS = 2_000_000
FRAGMENTS_AT_ONCE = 256  # at first; more after all of these were taken
FRAGMENTS_SECONDS = 12.0

# 16 and 17
FLOOD_SECONDS, AT_FIRST = 10.0, 3.0
PAUSE = 0.005  # seconds between two echoes of the other client

# 18
BOMB = 100_000_000  # bytes, inflated


async def large(target: Target) -> Figures:
    """The largest message that is taken; and seconds until unfinished messages are closed."""
    taken = 0
    before = target.process.reset_peak()
    for size in SIZES:
        text = "x" * size
        with suppress(TimeoutError, EOFError, OSError):
            async with target.client() as peer, asyncio.timeout(PATIENCE):
                sending = asyncio.create_task(peer.say(text))
                try:
                    await peer.hear(f"Message text was: {text}")
                finally:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)
                taken = size
    memory = target.grown(before)
    seconds = await asyncio.gather(*(_unfinished(target, kind) for kind in UNFINISHED))
    return {"taken": taken / 1024, "memory": memory, "closed": worst(seconds)}


async def _unfinished(target: Target, kind: str) -> float | None:
    """Seconds until the connection is closed."""
    beginning, more = UNFINISHED[kind]
    async with target.client() as peer, peer.dripping(more):
        await peer.send(beginning)
        begun = time.monotonic()
        with suppress(TimeoutError):
            await asyncio.wait_for(peer.end(), UNFINISHED_WATCHED)
            return time.monotonic() - begun
    return None


async def fragments(target: Target) -> Figures:
    """One message in more and more fragments of a byte; a ping shows how many were taken."""
    taken, code, size = 0, None, FRAGMENTS_AT_ONCE
    before = target.process.reset_peak()
    deadline = time.monotonic() + FRAGMENTS_SECONDS
    async with target.client() as peer:
        first = TEXT
        while taken < MOST_FRAGMENTS and time.monotonic() < deadline and code is None:
            more = frame(first, b"x") + frame(CONTINUATION, b"x") * (size - 1)
            first = CONTINUATION
            async with asyncio.timeout(PATIENCE):
                code = await _sent(peer, more + frame(FIN | PING))
            if code is None:
                taken += size
                size = min(2 * size, 1 << 16) if taken > 4096 else size
    return {"taken": taken, "code": code, "memory": target.grown(before)}


async def _sent(peer: Peer, data: bytes) -> int | None:
    """Send data that ends with a ping: None when its pong has come, or the code of the close."""
    with suppress(EOFError, OSError):
        await peer.send(data)
        while True:
            for each in await peer.frames():
                if each.opcode == PONG:
                    return None
                if each.opcode == CLOSE:
                    return each.code
    return 1006


async def pings(target: Target) -> Figures:
    """Pings as fast as they are taken, by a client that reads no pong."""
    before = target.process.reset_peak()
    sent = [0]
    async with target.client(buffer=4096) as peer:
        pouring = asyncio.create_task(_pour(peer, frame(FIN | PING, b"x" * 125) * 100, sent))
        # The rate at the beginning: once the server has closed, it may discard pings quickly.
        await asyncio.sleep(AT_FIRST)
        rate = 100 * sent[0] / AT_FIRST
        gone = (await target.let_go([peer], FLOOD_SECONDS - AT_FIRST))[peer]
        memory = target.grown(before)
        pouring.cancel()
        await asyncio.gather(pouring, return_exceptions=True)
    return {"rate": rate, "closed": None if gone is None else AT_FIRST + gone, "memory": memory}


async def flood(target: Target) -> Figures:
    """Tiny messages in large packets, as fast as they are taken; another client echoes."""
    echoes: list[float] = []
    begun = time.monotonic()
    closed = code = None
    async with target.client() as peer, target.client() as other:
        echoing = asyncio.create_task(_echo(other, echoes))
        pouring = asyncio.create_task(_pour(peer, frame(FIN | TEXT, b"x") * 10_000, [0]))
        with suppress(TimeoutError):
            code = await asyncio.wait_for(peer.end(), FLOOD_SECONDS)
            closed = time.monotonic() - begun
        for task in (echoing, pouring):
            task.cancel()
        await asyncio.gather(echoing, pouring, return_exceptions=True)
    echoes.sort()
    return {
        "p50": percentile(echoes, 0.5),
        "p99": percentile(echoes, 0.99),
        "slowest": echoes[-1] if echoes else None,
        **{"closed": closed, "code": code},
    }


async def _pour(peer: Peer, some: bytes, sent: list[int]) -> None:
    """Send the same bytes again and again, until the connection ends; `sent` counts."""
    with suppress(OSError):
        while True:
            await peer.send(some)
            sent[0] += 1


async def _echo(peer: Peer, took: list[float]) -> None:
    """Milliseconds of one echo after the other; the last one, if unanswered, counts up to now."""
    while True:
        begun = time.monotonic()
        try:
            await peer.say("hi")
            await peer.hear("Message text was: hi")
        finally:
            took.append(1000 * (time.monotonic() - begun))
        await asyncio.sleep(PAUSE)


async def bomb(target: Target) -> Figures:
    """A message of 100 kB that is 100 MB when it is inflated."""
    compressor = zlib.compressobj(9, wbits=-15)
    data = compressor.compress(b"0" * BOMB) + compressor.flush(zlib.Z_SYNC_FLUSH)
    headers = "Sec-WebSocket-Extensions: permessage-deflate\r\n"
    before = target.process.reset_peak()
    async with target.client(headers=headers) as peer:
        if "permessage-deflate" not in peer.head:
            raise Refused("compression was not agreed on")
        await peer.send(frame(FIN | TEXT | RSV1, data.removesuffix(b"\x00\x00\xff\xff")))
        code = None
        with suppress(TimeoutError):
            code = await asyncio.wait_for(peer.end(), PATIENCE)
        return {"code": code, "memory": target.grown(before)}
