"""Publications: a channel's messages, their position in its stream, and how they are encoded.

A publication's data is fixed when it is published, in one of three forms (`Payload`):
text, bytes, or encoded JSON. Each wire format encodes it into one `Frame`, which
all subscribers with that format share.
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
    "check_name",
    "continues",
    "frame",
    "payload",
    "payload_size",
    "value_of",
]

Payload: TypeAlias = str | bytes | Raw
Encoding: TypeAlias = Literal["text", "bytes", "json"] | None

# The following hold only values, so they can't be in reference cycles. With `gc=False` the garbage
# collector skips them, however many are kept.


class Position(Struct, frozen=True, gc=False):
    """A place in a channel's stream.

    Attributes:
        offset: The number of the last publication, counted from 1; 0 before the first.
        epoch: Identifies the stream; it changes when the stream was lost and begun anew.
    """

    offset: int
    epoch: str


class ClientInfo(Struct, frozen=True, gc=False):
    """The client that has published something, or is present in a channel.

    Attributes:
        client: The connection's identifier, unique among all processes.
        user: The user that the connection was authenticated as; empty if unknown.
        info: What `Endpoint.info` says of the client, as values of JSON.
        since: Unix time in seconds at which it entered the presence that this was read from; 0
            elsewhere.
    """

    client: str
    user: str = ""
    info: Any = None
    since: float = 0.0


class Publication(Struct, frozen=True, gc=False):
    """One message in a channel, with the number that the broker gave it.

    Attributes:
        channel: The channel's name.
        data: What was published: text, bytes, or JSON as it was encoded.
        offset: Its number in the channel's stream; 0 if it is not kept and has no place there.
        epoch: The stream's name.
        info: The publisher; None if unknown.
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
        return value_of(self.data)


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


#: Encodes a delivery for a client; None if the client doesn't get it.
Encoder: TypeAlias = Callable[[Delivery], Frame | None]


def check_name(what: str, name: object) -> None:
    """Check the name of a channel, or the id of a publication, before anything is done with it.

    Args:
        what: What the error calls it.
        name: What the application gave.

    Raises:
        TypeError: It is not a string.
        ValueError: It is empty, or has lone surrogates.
    """
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a str, got {type(name).__name__}")
    if not name:
        raise ValueError(f"{what} must not be empty")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} must not have lone surrogates") from None


def payload(data: Any) -> Payload:
    """Encode what is to be published: text and bytes unchanged, anything else as JSON.

    Args:
        data: Text, bytes, a `Message` or other msgspec struct, a pydantic model, or
            anything else that msgspec can encode.

    Raises:
        TypeError: The data can't be encoded as JSON.
        UnicodeError: A text has lone surrogates, or raw JSON is not UTF-8.
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
        return Raw(data.model_dump_json(by_alias=True).encode())
    return Raw(msgspec.json.encode(data))


def value_of(data: Payload) -> Any:
    """A payload as a Python value: text, bytes, or what the JSON says."""
    return msgspec.json.decode(data) if isinstance(data, Raw) else data


def payload_size(data: Payload) -> int:
    """Bytes of a payload; for a text, in UTF-8."""
    if isinstance(data, str):
        return len(data) if data.isascii() else len(data.encode())
    return len(data) if isinstance(data, bytes) else memoryview(data).nbytes


def frame(data: Payload, encoding: Encoding) -> Frame:
    """Encode a payload for a client with this `encoding`.

    Bytes are always sent as a binary frame, because no other frame can carry them.
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
#: under which a publication's frame is shared, so there is one of each.
PLAIN: dict[Encoding, Encoder] = {
    None: _text,
    "text": _text,
    "bytes": _plain("bytes"),
    "json": _plain("json"),
}


def continues(since: Position, publications: Sequence[Publication], top: Position) -> bool:
    """Whether `publications` are exactly what was missed between `since` and `top`."""
    if since.epoch != top.epoch:
        return False
    if not publications:
        return since.offset == top.offset
    return publications[0].offset == since.offset + 1 and publications[-1].offset == top.offset
