"""What processes announce to each other by PostgreSQL's notifications, from text to values.

A notification holds a JSON array of events, in ASCII, which `schema.sql` writes: binary values are
in base64. What is longer than a notification may be comes in parts `serial:part:of:text`, one
behind the other, because PostgreSQL sends the notifications of a transaction together.

Anybody who may connect to the database may send notifications, so everything is checked.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal, TypeAlias, final

import msgspec
from msgspec import Meta, Raw, Struct

from chatserver.brokers.engine import Heard, read_control
from chatserver.publication import ClientInfo, Joined, Left, Payload, Publication

__all__ = [
    "UNREADABLE",
    "Content",
    "Entered",
    "Event",
    "Gone",
    "Kind",
    "Parts",
    "Published",
    "Span",
    "Told",
    "client_info",
    "heard_of",
    "publication",
    "stored_content",
]

#: Of a publication's data: text, bytes or JSON.
Kind: TypeAlias = Literal["t", "b", "j"]
Number: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]
#: What reading raises. msgspec's errors are ValueErrors in its newer versions only; RecursionError is
#: for JSON that is nested too deeply.
UNREADABLE: tuple[type[Exception], ...] = (ValueError, msgspec.MsgspecError, RecursionError)
#: Characters of one announcement at most; a longer one is foreign.
MOST = 2**30


class Content(Struct, array_like=True, frozen=True, gc=False):
    """What a publication holds; the publisher is JSON."""

    kind: Kind
    data: bytes
    info: bytes | None
    skip: bytes | None
    keep: bool


class Published(Struct, array_like=True, frozen=True, gc=False, tag="p"):
    """Publications. The first that is kept has the offset `first`, and so on; the others have 0."""

    name: bytes
    epoch: str
    first: Number
    contents: list[Content]

    def numbered(self) -> Iterator[tuple[int, Content]]:
        """Each with its offset."""
        offset = self.first
        for content in self.contents:
            yield offset if content.keep else 0, content
            offset += content.keep


class Span(Struct, array_like=True, frozen=True, gc=False, tag="r"):
    """Publications that are too large for notifications: they have to be read."""

    name: bytes
    epoch: str
    first: Number
    last: Number


class Entered(Struct, array_like=True, frozen=True, gc=False, tag="j"):
    """A client entered a channel's presence."""

    name: bytes
    info: bytes


class Gone(Struct, array_like=True, frozen=True, gc=False, tag="l"):
    """A client left a channel's presence."""

    name: bytes
    info: bytes


@final
class Told(Struct, array_like=True, frozen=True, gc=False, tag="c"):
    """A control message."""

    control: bytes


Event: TypeAlias = Published | Span | Entered | Gone | Told

_events: msgspec.json.Decoder[list[Event]] = msgspec.json.Decoder(list[Event])
_content: msgspec.json.Decoder[Content] = msgspec.json.Decoder(Content)
_info: msgspec.json.Decoder[ClientInfo] = msgspec.json.Decoder(ClientInfo)
_json: msgspec.json.Decoder[Raw] = msgspec.json.Decoder(Raw)


class Parts:
    """Puts announcements together again."""

    def __init__(self) -> None:
        self._serial = ""
        self._texts: list[str] = []
        self._size = 0

    def add(self, text: str) -> Sequence[Event]:
        """The events of an announcement, once its last notification is there.

        Raises:
            ValueError: This is something else. It may also be a RecursionError, here and below.
        """
        if text.startswith("["):
            return _events.decode(text)
        serial, part, of, rest = _split(text)
        if part == 1:
            self._begin(serial)
        if serial != self._serial or part != len(self._texts) + 1:
            self._begin("")
            raise ValueError("this is a part of an announcement, without those before it")
        self._texts.append(rest)
        self._size += len(rest)
        if self._size > MOST:
            self._begin("")
            raise ValueError("this announcement is too long")
        if part < of:
            return ()
        whole = "".join(self._texts)
        self._begin("")
        return _events.decode(whole)

    def _begin(self, serial: str) -> None:
        self._serial, self._texts, self._size = serial, [], 0


def _split(text: str) -> tuple[str, int, int, str]:
    serial, _, text = text.partition(":")
    part, _, text = text.partition(":")
    of, _, rest = text.partition(":")
    return serial, int(part), int(of), rest


def stored_content(text: str) -> Content:
    """What is stored of a publication.

    Raises:
        ValueError: It is something else.
    """
    return _content.decode(text)


def _payload(content: Content) -> Payload:
    if content.kind == "b":
        return content.data
    text = content.data.decode()
    if content.kind == "t":
        return text
    _json.decode(content.data)
    return Raw(content.data)


def client_info(data: bytes) -> ClientInfo:
    """The client that JSON describes.

    Raises:
        ValueError: It describes none.
    """
    return _info.decode(data)


def publication(channel: str, epoch: str, offset: int, content: Content) -> Publication:
    """A publication from what is stored of it, or announced.

    Raises:
        ValueError: It can't be one.
    """
    return Publication(
        channel,
        _payload(content),
        offset,
        epoch,
        None if content.info is None else client_info(content.info),
        "" if content.skip is None else content.skip.decode(),
    )


#: By type, because `isinstance` of a struct takes long.
_READERS: dict[type[Event], Callable[[Any], Heard]] = {
    Entered: lambda event: Joined(event.name.decode(), client_info(event.info)),
    Gone: lambda event: Left(event.name.decode(), client_info(event.info)),
    Told: lambda event: read_control(event.control),
}


def heard_of(event: Event) -> Heard:
    """What an event says; not that of publications.

    Raises:
        ValueError: It can't be read.
    """
    return _READERS[type(event)](event)
