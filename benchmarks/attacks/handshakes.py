"""Requests without an end, and more connections than allowed."""

import asyncio
import base64
import hmac
import json
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress

from benchmarks.attacks.client import Peer
from benchmarks.attacks.target import PATIENCE, Figures, Refused, Target, worst

__all__ = ["ADDRESS_LIMIT", "LIMIT", "SECRET", "USER_LIMIT", "connections", "endless", "half_open"]

HALF_OPEN = 2000
IN_TIME, WATCHED = 10.0, 12.0  # seconds
OFTEN = 0.03  # seconds between two normal clients
APART = 0.001  # seconds from one half-open handshake to the next
DRIPPING = b"GET /ws HTTP/1.1\r\nHost: x\r\nX: "  # followed by a byte a second
BEGINNINGS = (b"", b"GET /ws HT", DRIPPING)

MOST_HEADERS = 64_000_000
HEADER_SECONDS = 8.0
HEADER = b"X-%d: " + b"y" * 1000 + b"\r\n"
# Headers sent at once: FEW up to CLOSELY bytes, then MANY.
FEW, MANY, CLOSELY = 4, 64, 1_000_000

LIMIT, ADDRESS_LIMIT, USER_LIMIT = 50, 10, 2
PAUSE = 0.2  # seconds
SECRET = "benchmarks-" * 3  # signs the tokens of one user


async def half_open(target: Target) -> Figures:
    """2,000 connections, a third each silent, cut off, and dripping; a normal client meanwhile."""
    hanging = []
    honest: list[float] = []
    meanwhile = asyncio.create_task(_connect_again_and_again(target, honest))
    for number in range(HALF_OPEN):
        hanging.append(asyncio.create_task(_hang(target.port, BEGINNINGS[number % 3])))
        await asyncio.sleep(APART)
    seconds = await asyncio.gather(*hanging)
    meanwhile.cancel()
    await asyncio.gather(meanwhile, return_exceptions=True)
    return {
        "closed": sum(each is not None and each <= IN_TIME for each in seconds),
        "slowest": worst(seconds),
        "honest": 1000 * max(honest) if honest else None,
    }


async def _hang(port: int, beginning: bytes) -> float | None:
    """Seconds until the server ends the connection."""
    begun = time.monotonic()
    with Peer() as peer, suppress(TimeoutError):
        async with asyncio.timeout(WATCHED):
            with suppress(ConnectionError):
                await peer.connect(port)
                await peer.send(beginning)
            async with peer.dripping(b"x" if beginning is DRIPPING else b""):
                await peer.gone()
        return time.monotonic() - begun
    return None


async def _connect_again_and_again(target: Target, took: list[float]) -> None:
    while True:
        begun = time.monotonic()
        with suppress(TimeoutError):
            async with target.client():
                pass
        took.append(time.monotonic() - begun)
        await asyncio.sleep(OFTEN)


async def endless(target: Target) -> Figures:
    """Headers without end: how many bytes are taken before a response comes."""
    before = target.process.reset_peak()
    sent, status = 0, None
    with Peer() as peer:
        await peer.connect(target.port)
        answer = asyncio.create_task(peer.answer())
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(HEADER_SECONDS):
                async for piece in _headers():
                    if answer.done():
                        break
                    await peer.send(piece)
                    sent += len(piece)
        with suppress(EOFError, OSError, TimeoutError):
            status = await asyncio.wait_for(answer, 0.5)
    return {"taken": sent / 1000, "status": status, "memory": target.grown(before)}


async def _headers() -> AsyncIterator[bytes]:
    """Headers, slow enough that a response is seen in between."""
    yield b"GET /ws HTTP/1.1\r\nHost: x\r\n"
    number, most = 0, MOST_HEADERS // len(HEADER)
    while number < most:
        count = FEW if number < CLOSELY // len(HEADER) else MANY
        yield b"".join(HEADER % each for each in range(number, number + count))
        number += count
        await asyncio.sleep(0.001)


async def connections(target: Target) -> Figures:
    """The response to one connection more than allowed: of a user, an address, and the server."""
    ours = target.server.kind == "ours"
    path = f"/items/1/ws?token={_token()}" if ours else "/ws/1"
    with ExitStack() as stack:

        async def fill(path: str, host: int, count: int) -> None:
            for _ in range(count):
                peer = stack.enter_context(Peer(source=f"127.0.0.{host}"))
                if (status := await _answer(peer, target.port, path)) != 101:
                    raise Refused(f"{path} was answered with {status}, within the limit")

        async def one_more(path: str, host: int) -> int:
            with Peer(source=f"127.0.0.{host}") as peer:
                status = await _answer(peer, target.port, path)
            await asyncio.sleep(PAUSE)  # until the server counts it no more
            return status

        await fill(path, 2, USER_LIMIT)
        user = await one_more(path, 2)
        await fill("/ws", 3, ADDRESS_LIMIT)
        address = await one_more("/ws", 3)
        for number in range(LIMIT - USER_LIMIT - ADDRESS_LIMIT):
            await fill("/ws", 4 + number // ADDRESS_LIMIT, 1)
        return {"user": user, "address": address, "server": await one_more("/ws", 9)}


async def _answer(peer: Peer, port: int, path: str) -> int:
    async with asyncio.timeout(PATIENCE):
        return await peer.join(port, path)


def _token() -> str:
    """A JSON Web Token of one user (RFC 7519), signed with `SECRET`."""

    def encoded(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    claims = {"sub": "ann", "exp": int(time.time()) + 600}
    head = json.dumps({"alg": "HS256", "typ": "JWT"}).encode()
    signed = f"{encoded(head)}.{encoded(json.dumps(claims).encode())}"
    return f"{signed}.{encoded(hmac.digest(SECRET.encode(), signed.encode(), 'sha256'))}"
