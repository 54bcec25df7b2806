"""A crowd of subscribers that come at once; each as small as a client can be."""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from chatserver.publication import Position
from tests.raw import FIN, REQUEST, TEXT, frame

__all__ = ["come"]


async def come(
    ports: Sequence[int], count: int, channel: str, since: Sequence[Position]
) -> list[dict[str, Any]]:
    """Connect so many clients at once, and subscribe each; returns their answers.

    Args:
        ports: Those of the servers, which get the same number each.
        count: How many clients come.
        channel: What they subscribe to.
        since: The positions that they have come to, in turn.
    """

    async def one(number: int) -> dict[str, Any]:
        position = since[number % len(since)]
        reader, writer = await asyncio.open_connection("127.0.0.1", ports[number % len(ports)])
        try:
            request = {"subscribe": channel, "since": [position.offset, position.epoch]}
            # The message is sent with the handshake: whoever comes back is in a hurry.
            handshake = REQUEST.format(path="/", headers="").encode()
            writer.write(handshake + frame(FIN | TEXT, msgspec.json.encode(request)))
            assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
            return await _message(reader)
        finally:
            writer.close()

    return await asyncio.gather(*(one(number) for number in range(count)))


async def _message(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The next message, in one frame."""
    first, size = await reader.readexactly(2)
    assert first == FIN | TEXT
    if size >= 126:
        size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8))
    message: dict[str, Any] = msgspec.json.decode(await reader.readexactly(size))
    return message
