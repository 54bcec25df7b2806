"""Recovery for plain JSON endpoints: a client says in the query where it stands, and gets the rest.

    GET /rooms/kitchen?since={"room:kitchen":{"offset":16,"epoch":"9f2c"}}

    {"channel":"room:kitchen","since":{"offset":16,"epoch":"9f2c"},"recovered":true}
    {"channel":"room:kitchen","offset":17,"data":"what was missed"}
    {"channel":"room:kitchen","offset":18,"data":"what is live"}

After each of these messages the client knows where it stands, so that the connection may break
between any two. The epoch is told only where it may have changed: at the start, and after a loss.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field
from starlette.requests import HTTPConnection

from chatserver.endpoints.params import QUERY, Parameter, make_parameter
from chatserver.errors import InvalidHandshake
from chatserver.hub import Subscribed
from chatserver.publication import Delivery, Frame, Payload, Position, Publication, payload

__all__ = [
    "SINCE",
    "Envelope",
    "Standing",
    "are_publications",
    "begin",
    "enveloped",
    "lost",
    "positions",
]

BYTES: Final = "What was published, if that is bytes: in place of `data`."
EXAMPLE: Final = '{"room":{"offset":17,"epoch":"9f2c"}}'

#: The query parameter, for what describes a class; `positions` reads it.
SINCE: Final[Parameter] = make_parameter(
    "recover",
    "since",
    QUERY,
    Annotated[
        str,
        Meta(
            description="Of a client that comes back: JSON with its position in each channel.",
            examples=[EXAMPLE],
            extra_json_schema={"contentMediaType": "application/json"},
        ),
    ],
    None,
)


class Standing(Struct, omit_defaults=True):
    """Where in a channel's stream the client stands now; what comes next follows without a gap.

    Sent for each channel at the start, and again when publications were lost meanwhile.

    Attributes:
        channel: The channel's name.
        since: The position. A client that comes back names it, with the offset of the last
            publication that came since.
        recovered: Whether the client gets all that it missed. Absent if it named no position.
    """

    channel: str
    since: Position
    recovered: bool | UnsetType = UNSET


class Envelope(Struct, omit_defaults=True):
    """A publication.

    Attributes:
        channel: The channel's name.
        offset: Its number in the channel's stream, where the client stands now. Absent if it is
            not kept: then the client stands where it stood.
        data: What was published.
        binary: What was published, if that is bytes: named `bytes`, and in place of `data`.
    """

    channel: str
    offset: int = 0
    data: Any = UNSET
    binary: Annotated[bytes, Meta(description=BYTES)] | UnsetType = field(
        default=UNSET, name="bytes"
    )


class _Given(Struct):
    """A position as a client names it. An offset and an epoch are no larger than brokers make."""

    offset: Annotated[int, Meta(ge=0, le=2**53)]
    epoch: Annotated[str, Meta(max_length=64, pattern="^[!-~]*$")]


_decoder = msgspec.json.Decoder(dict[str, _Given])


def positions(connection: HTTPConnection, most: int) -> dict[str, Position]:
    """The positions that a handshake names, by channel.

    Args:
        connection: The handshake.
        most: How many there may be; 0 for any number.

    Raises:
        InvalidHandshake: The query parameter is no such JSON, is repeated, or names too many.
    """
    given = connection.query_params.getlist(SINCE.sent_as)
    if not given:
        return {}
    if len(given) > 1:
        raise InvalidHandshake(f"{SINCE.label} must not be repeated: it has all channels")
    try:
        found = _decoder.decode(given[0])
    except (msgspec.DecodeError, RecursionError):
        raise InvalidHandshake(
            f"{SINCE.label} must be JSON, a position for each channel, such as {EXAMPLE}"
        ) from None
    if most and len(found) > most:
        raise InvalidHandshake(f"{SINCE.label} must not have more than {most} channels")
    return {name: Position(each.offset, each.epoch) for name, each in found.items()}


def begin(
    channel: str,
    since: Position | None,
    welcome: Callable[[Sequence[Publication]], Any] | None,
    subscribed: Subscribed,
) -> Sequence[Frame]:
    """What a client gets first of a channel: where it stands, and what it missed.

    Args:
        channel: The channel's name.
        since: The client's position; None without one.
        welcome: Makes of the newest publications what a client gets that recovers nothing; None
            in a class without history.
        subscribed: What the hub has found.
    """
    recovered = UNSET if since is None else subscribed.recovered
    if since is not None and recovered:
        told = Standing(channel, since, recovered)
        return tuple(_frames(told, subscribed.publications))
    recent, top = subscribed.publications, subscribed.position
    data = None if welcome is None else welcome(recent)
    if data is None:
        return tuple(_frames(Standing(channel, top, recovered), ()))
    # Not where the stream ends: the connection may break before the client has the history.
    start = Position(recent[0].offset - 1, top.epoch) if recent else top
    told = Standing(channel, start, recovered)
    if data is recent or are_publications(data):
        return tuple(_frames(told, data))
    return (_frame(told), _frame(_envelope(channel, top.offset, payload(data))))


def lost(channel: str, position: Position) -> Sequence[Frame]:
    """What a client gets when publications were lost: the stream goes on after `position`."""
    return (_frame(Standing(channel, position, recovered=False)),)


def enveloped(delivery: Delivery) -> Frame | None:
    """The encoder of all classes that recover; see `PLAIN` for those of the others."""
    if not isinstance(delivery, Publication):
        return None
    return _frame(_envelope(delivery.channel, delivery.offset, delivery.data))


def are_publications(data: Any) -> bool:
    """Whether these are publications, at least one."""
    is_list = isinstance(data, list | tuple) and bool(data)
    return is_list and all(isinstance(each, Publication) for each in data)


def _frames(told: Standing, publications: Sequence[Publication]) -> Iterator[Frame]:
    yield _frame(told)
    for each in publications:
        yield _frame(_envelope(each.channel, each.offset, each.data))


def _envelope(channel: str, offset: int, data: Payload) -> Envelope:
    if isinstance(data, bytes):
        return Envelope(channel, offset, binary=data)
    return Envelope(channel, offset, data)


def _frame(message: Standing | Envelope) -> Frame:
    return Frame(msgspec.json.encode(message).decode())
