"""The channels of one connection: joined with its accept or later, left before its end or with it.

Where the class has a `while_occupied`, a connection is also a member for the tasks of its channels:
see `occupancy`.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from chatserver.endpoints import recovery
from chatserver.endpoints.occupancy import Occupancy, Place, enter, joined, leave
from chatserver.endpoints.served import Served
from chatserver.errors import InvalidToken
from chatserver.hub import Subscribed
from chatserver.publication import PLAIN, Frame, Payload, Position, Publication, frame, payload

__all__ = ["check_may", "join_channel", "join_declared", "leave_channel", "occupied_by", "occupy"]


def check_may(endpoint: Served, channel: str) -> None:
    """Check that the client's token opens a channel.

    Raises:
        InvalidToken: It doesn't.
    """
    identity = endpoint.identity
    if identity is not None and not identity.may(channel):
        reason = f"the token doesn't open the channel {channel!r}"
        raise InvalidToken(reason, code=4403, status=403)


async def join_declared(endpoint: Served) -> None:
    """Follow the channels that the class declares, which the client's token opens."""
    if endpoint._channels:
        last_will = _last_will(endpoint)
        for channel in endpoint._channels:
            await _subscribe(endpoint, channel, None, last_will)


async def join_channel(
    endpoint: Served,
    channel: str,
    since: Position | None,
    fail: Callable[[BaseException], None],
) -> Subscribed:
    """Follow a channel; what its answer has is written before what is live.

    Args:
        endpoint: The connection's.
        channel: The channel.
        since: Where the client stands, if it does.
        fail: As for `occupy`.

    Raises:
        InvalidToken: The token doesn't open it.
        ValueError: It is joined already.
        TooManyChannels: These are as many as the limits allow.
    """
    check_may(endpoint, channel)
    subscribed = await _subscribe(endpoint, channel, since, _last_will(endpoint))
    await occupy(endpoint, (channel,), fail)
    return subscribed


async def leave_channel(endpoint: Served, channel: str) -> None:
    """Leave a channel; of the last one this waits until the channel's task has ended."""
    occupied = occupied_by(endpoint, (channel,))
    await endpoint.hub.leave(endpoint.connection, channel)
    for each in occupied:
        await each.ended()


async def occupy(
    endpoint: Served, channels: Iterable[str], fail: Callable[[BaseException], None]
) -> None:
    """Make an accepted connection a member for the tasks of channels that it has joined.

    Args:
        endpoint: The connection's.
        channels: The channels.
        fail: Closes the connection, when a task ends with an error that is no fault.

    Raises:
        WebSocketDisconnect: As for `occupancy.enter`.
    """
    if endpoint._has_channel_task:
        for channel in channels:
            await enter(_place(endpoint, channel), endpoint.connection, fail)


def occupied_by(endpoint: Served, channels: Iterable[str]) -> Sequence[Occupancy]:
    """What a connection is a member of, because of the tasks of these channels."""
    if not endpoint._has_channel_task:
        return ()
    found = (joined(_place(endpoint, channel), endpoint.connection) for channel in channels)
    return [each for each in found if each is not None]


def _place(endpoint: Served, channel: str) -> Place:
    """Where a connection is a member, for the task of a channel."""
    return Place(asyncio.get_running_loop(), endpoint.hub, type(endpoint), channel)


def _has_left(endpoint: Served, channel: str) -> None:
    leave(_place(endpoint, channel), endpoint.connection)


def _last_will(endpoint: Served) -> Payload | None:
    will = endpoint.last_will()
    return None if will is None else payload(will)


async def _subscribe(
    endpoint: Served, channel: str, since: Position | None, last_will: Payload | None
) -> Subscribed:
    """Follow a channel that the client's token opens."""
    presence = endpoint.presence or endpoint.hub.broker.rules(channel).presence
    encoder, answer, on_lost = PLAIN[endpoint.encoding], partial(_begin, endpoint), None
    if endpoint.recover:
        since = since or endpoint._positions.get(channel)
        welcome = endpoint.welcome if endpoint.history else None
        encoder, on_lost = recovery.enveloped, recovery.lost
        answer = partial(recovery.begin, channel, since, welcome)
    subscribed = await endpoint.hub.subscribe(
        endpoint.connection,
        channel,
        encoder=encoder,
        since=since,
        recent=endpoint.history,
        info=endpoint._info() if presence else None,
        last_will=last_will,
        answer=answer,
        on_lost=on_lost,
        on_left=partial(_has_left, endpoint) if endpoint._has_channel_task else None,
    )
    if endpoint.recover:
        endpoint._positions.pop(channel, None)  # if it joins again, it stands elsewhere
    return subscribed


def _begin(endpoint: Served, subscribed: Subscribed) -> Sequence[Frame]:
    """What a client gets first of a channel: what it missed, or the welcome."""
    publications = subscribed.publications
    if subscribed.recovered or not endpoint.history:
        return _frames(endpoint, publications)
    data = endpoint.welcome(publications)
    if data is publications or recovery.are_publications(data):
        return _frames(endpoint, data)
    return () if data is None else (frame(payload(data), endpoint.encoding),)


def _frames(endpoint: Served, publications: Sequence[Publication]) -> Sequence[Frame]:
    made = map(PLAIN[endpoint.encoding], publications)
    return tuple(each for each in made if each is not None)
