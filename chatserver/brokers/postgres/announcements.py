"""What processes announce to each other by PostgreSQL's notifications, from text to values.

A notification holds a JSON array of events, in ASCII, which `schema.sql` writes: binary values are
in base64. What is longer than a notification may be comes in parts `serial:part:of:text`, one
behind the other, because PostgreSQL sends the notifications of a transaction together.

Anybody who may connect to the database may send notifications, so everything is checked.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeAlias, final

import msgspec
from msgspec import Meta, Raw, Struct

from chatserver.brokers.engine import Heard, read_control
from chatserver.publication import ClientInfo, Joined, Left, Payload, Publication

__all__ = [
    "UNREADABLE",
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
]

#: Of a publication's data: text, bytes or JSON.
Kind: TypeAlias = Literal["t", "b", "j"]
Number: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]
#: What reading raises; the second one if JSON is nested too deeply.
UNREADABLE = (ValueError, RecursionError)
#: Characters of one announcement at most; a longer one is foreign.
MOST = 2**30


class Published(Struct, array_like=True, frozen=True, gc=False, tag="p"):
    """A publication. Its offset is 0 if it is not kept."""

    name: bytes
    epoch: str
    offset: Number
    kind: Kind
    data: bytes
    info: bytes | None
    skip: bytes | None


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


def content(kind: str, data: bytes) -> Payload:
    """Data as it was published.

    Raises:
        ValueError: It is not what its kind says.
    """
    if kind == "b":
        return data
    text = data.decode()
    if kind == "t":
        return text
    _json.decode(data)
    return Raw(data)


def client_info(data: bytes) -> ClientInfo:
    """The client that JSON describes.

    Raises:
        ValueError: It describes none.
    """
    return _info.decode(data)


def publication(
    channel: str,
    epoch: str,
    offset: int,
    kind: str,
    data: bytes,
    info: bytes | None,
    skip: bytes | None,
) -> Publication:
    """A publication from what is stored of it, or announced.

    Raises:
        ValueError: It can't be one.
    """
    return Publication(
        channel,
        content(kind, data),
        offset,
        epoch,
        None if info is None else client_info(info),
        "" if skip is None else skip.decode(),
    )


#: By type, because `isinstance` of a struct takes long.
_READERS: dict[type[Event], Callable[[Any], Heard]] = {
    Published: lambda event: publication(event.name.decode(), *msgspec.structs.astuple(event)[1:]),
    Entered: lambda event: Joined(event.name.decode(), client_info(event.info)),
    Gone: lambda event: Left(event.name.decode(), client_info(event.info)),
    Told: lambda event: read_control(event.control),
}


def heard_of(event: Event) -> Heard:
    """What an event says; not that of a `Span`, which has to be read.

    Raises:
        ValueError: It can't be read.
    """
    return _READERS[type(event)](event)
