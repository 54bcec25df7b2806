"""What Redis stores and announces: bytes, made and read. What can't be read is foreign."""

import logging
import re
from collections.abc import Iterator
from typing import Literal

import msgspec
from msgspec import Raw, Struct

from chatserver.brokers.engine import UNREADABLE, Read
from chatserver.brokers.redis.connections import Answer
from chatserver.publication import ClientInfo, History, Payload, Position, Publication

__all__ = [
    "Entry",
    "announced",
    "as_bytes",
    "channel_and_client",
    "decode_info",
    "entry_of",
    "history_of",
    "member_of",
    "position_of",
    "present_in",
    "publication_of",
]

logger: logging.Logger = logging.getLogger("chatserver")

#: Before each publication that was announced.
HEAD = re.compile(rb"(\d{1,16}) (\w+) (\d{1,9}) (\d{1,9}) ")


class Entry(Struct, frozen=True, gc=False, array_like=True):
    """A publication as it is stored and announced, as MessagePack.

    Attributes:
        kind: 0 text, 1 bytes, 2 JSON.
        data: What was published.
        info: The publisher as JSON; empty if unknown.
        skip: The client that does not get it.
    """

    kind: Literal[0, 1, 2]
    data: bytes
    info: bytes = b""
    skip: str = ""


_encode = msgspec.msgpack.Encoder().encode
_decode_entry = msgspec.msgpack.Decoder(Entry).decode
decode_info = msgspec.json.Decoder(ClientInfo).decode


def announced(data: bytes) -> Iterator[tuple[Position, bytes, Entry]]:
    """Position, id and entry of each publication that a script has announced.

    Raises:
        ValueError: Somebody else has.
    """
    end = 0
    while end < len(data):
        head = HEAD.match(data, end)
        if head is None:
            raise ValueError("expected an offset, an epoch and two lengths")
        offset, epoch, id_length, length = head.groups()
        start = head.end() + int(id_length)
        end = start + int(length)
        entry = _decode_entry(data[start:end])
        yield Position(int(offset), epoch.decode()), data[head.end() : start], entry


def position_of(answer: bytes) -> Position:
    """The position that a script has answered with."""
    offset, _, epoch = answer.partition(b" ")
    return Position(int(offset), epoch.decode())


def entry_of(data: Payload, info: ClientInfo | None, skip: str) -> bytes:
    """A publication as an entry."""
    about = b"" if info is None else msgspec.json.encode(info)
    if isinstance(data, str):
        return _encode(Entry(0, data.encode(), about, skip))
    if isinstance(data, Raw):
        return _encode(Entry(2, bytes(data), about, skip))
    return _encode(Entry(1, data, about, skip))


def publication_of(channel: str, position: Position, read: Entry) -> Publication:
    """An entry as the publication at a position."""
    info = decode_info(read.info) if read.info else None
    data: Payload = read.data
    if read.kind == 0:
        data = read.data.decode()
    elif read.kind == 2:
        data = Raw(read.data)
    return Publication(channel, data, position.offset, position.epoch, info, read.skip)


def history_of(read: Read, answer: Answer) -> History:
    """What the script `read` has answered."""
    position, now, found = answer
    top = position_of(position)
    publications: list[Publication] = []
    for number, fields in found:
        offset, _, ours = number.partition(b"-")
        named = dict(zip(fields[::2], fields[1::2], strict=True))
        try:
            if ours == b"0" and int(named[b"t"]) > int(now) - read.ttl * 1000:
                at = Position(int(offset), top.epoch)
                publications.append(publication_of(read.channel, at, _decode_entry(named[b"e"])))
        except UNREADABLE:
            logger.warning("Redis has an entry that can't be read, in channel %.100r", read.channel)
    return History(tuple(publications), top)


def present_in(answer: list[bytes]) -> dict[str, tuple[str, ClientInfo]]:
    """Process and info of each client, from a hash of presence."""
    found: dict[str, tuple[str, ClientInfo]] = {}
    for client, value in zip(answer[::2], answer[1::2], strict=True):
        try:
            process, length, rest = value.split(b" ", 2)
            found[client.decode()] = (process.decode(), decode_info(rest[: int(length)]))
        except UNREADABLE:
            logger.warning("Redis has an entry of presence that can't be read")
    return found


def as_bytes(text: str) -> bytes:
    """A text as bytes; lone surrogates are no error."""
    return text.encode("utf-8", "surrogatepass")


def member_of(channel: str, client: str) -> bytes:
    """An entry of presence as it is noted for its process."""
    return as_bytes(f"{channel}\0{client}")


def channel_and_client(member: bytes) -> tuple[str, str]:
    """What `member_of` was made of.

    Raises:
        ValueError: It is something else.
    """
    channel, separator, client = member.decode("utf-8", "surrogatepass").rpartition("\0")
    if not separator:
        raise ValueError("expected a channel and a client")
    return channel, client
