"""Publications: what a channel carries, where it stands in the stream, and how it is encoded.

A publication's data is fixed when it is published, in one of three forms (`Payload`):
text, bytes, or JSON already encoded. Each wire format turns it into one `Frame`, which
every subscriber of that format shares.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Raw, Struct

from chatserver.wire import Frame

__all__ = [
    "PLAIN",
    "ClientInfo",
    "Delivery",
    "Encoder",
    "Encoding",
    "Frame",
    "History",
    "Joined",
    "Left",
    "Payload",
    "Position",
    "Publication",
    "continues",
    "frame",
    "payload",
    "payload_size",
]

Payload: TypeAlias = str | bytes | Raw
Encoding: TypeAlias = Literal["text", "bytes", "json"] | None

# The following hold nothing but values, so with `gc=False` the garbage collector looks for no
# cycles through them, however many are kept.


class Position(Struct, frozen=True, gc=False):
    """Where one stands in a channel's stream.

    Attributes:
        offset: The number of the last publication, counted from 1; 0 before the first.
        epoch: Names the stream; another one means that the stream was lost and begun anew.
    """

    offset: int
    epoch: str


class ClientInfo(Struct, frozen=True, gc=False):
    """Who is behind a publication or present in a channel.

    Attributes:
        client: The connection's identifier, unique among all processes.
        user: Whom the connection was authenticated as; empty where nobody asked.
    """

    client: str
    user: str = ""


class Publication(Struct, frozen=True, gc=False):
    """One message in a channel, as the broker numbered it.

    Attributes:
        channel: The channel's name.
        data: What was published: text, bytes, or JSON as it was encoded.
        offset: Its number in the channel's stream; 0 if it is not kept and has no place there.
        epoch: The stream's name.
        info: Who published it; None where nobody said.
        skip: The identifier of a client that does not get it.
    """

    channel: str
    data: Payload
    offset: int
    epoch: str
    info: ClientInfo | None = None
    skip: str = ""

    @property
    def value(self) -> Any:
        """What was published as a Python value: text, bytes, or what the JSON says."""
        return msgspec.json.decode(self.data) if isinstance(self.data, Raw) else self.data


class Joined(Struct, frozen=True, gc=False):
    """A client entered a channel's presence."""

    channel: str
    info: ClientInfo


class Left(Struct, frozen=True, gc=False):
    """A client left a channel's presence, or is known to be gone."""

    channel: str
    info: ClientInfo


#: What a broker delivers to the subscribers of a channel.
Delivery: TypeAlias = Publication | Joined | Left


class History(Struct, frozen=True):
    """A part of a channel's retained stream, and the position of the stream's top."""

    publications: tuple[Publication, ...]
    position: Position


#: Turns what is delivered into what a client gets; None where it gets nothing of it.
Encoder: TypeAlias = Callable[[Delivery], Frame | None]


def payload(data: Any) -> Payload:
    """Fix what is to be published: text and bytes as they are, anything else as JSON.

    Args:
        data: Text, bytes, a `Message` or other msgspec struct, a pydantic model, or
            whatever else msgspec can encode.

    Raises:
        TypeError: For data that is not JSON.
        UnicodeError: For text with lone surrogates, or raw JSON that is not UTF-8.
    """
    if isinstance(data, str):
        data.encode()
        return data
    if isinstance(data, bytes):
        return data
    if isinstance(data, Raw):
        bytes(data).decode()
        return data
    if isinstance(data, bytearray | memoryview):
        return bytes(data)
    if hasattr(data, "model_dump_json"):
        return Raw(data.model_dump_json().encode())
    return Raw(msgspec.json.encode(data))


def payload_size(data: Payload) -> int:
    """Bytes of a payload, as UTF-8 where it is text."""
    if isinstance(data, str):
        return len(data) if data.isascii() else len(data.encode())
    return len(data) if isinstance(data, bytes) else memoryview(data).nbytes


def frame(data: Payload, encoding: Encoding) -> Frame:
    """Encode a payload for a client that speaks `encoding`.

    Bytes go out as a binary frame whatever the encoding, since they fit nowhere else.
    """
    if isinstance(data, bytes):
        return Frame(data)
    if encoding == "bytes":
        return Frame(data.encode() if isinstance(data, str) else bytes(data))
    if isinstance(data, Raw):
        return Frame(bytes(data).decode())
    return Frame(msgspec.json.encode(data).decode() if encoding == "json" else data)


def _plain(encoding: Encoding) -> Encoder:
    def encode(delivery: Delivery) -> Frame | None:
        return frame(delivery.data, encoding) if isinstance(delivery, Publication) else None

    return encode


_text = _plain("text")

#: The encoder of each plain wire format: publications only. An encoder's identity is the key
#: under which a publication's frame is shared, so these are made once.
PLAIN: dict[Encoding, Encoder] = {
    None: _text,
    "text": _text,
    "bytes": _plain("bytes"),
    "json": _plain("json"),
}


def continues(since: Position, publications: Sequence[Publication], top: Position) -> bool:
    """Tell whether `publications` are exactly what was missed between `since` and `top`."""
    if since.epoch != top.epoch:
        return False
    if not publications:
        return since.offset == top.offset
    return publications[0].offset == since.offset + 1 and publications[-1].offset == top.offset
