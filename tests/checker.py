"""Judges what publishers and subscribers recorded while faults were at work. No I/O.

Everyone records what happened to them into one list, as it happens; `check` says what must not
have. Each publication has an id of its own and says something of its own, so that it is known
wherever it turns up. What a history must be like for the contract of `chatserver.brokers.Broker`:

- What was acknowledged stands in the stream where the acknowledgement says, and nowhere else.
- All agree on what a position holds, and nobody gets what nobody published.
- A subscriber gets offset after offset of one epoch, until its connection ends or it is told of a
  loss. An answer with `recovered` holds exactly what it missed.
- Who is subscribed at the end has got all that was acknowledged in the stream as it is then.
- What is published after another was acknowledged stands behind it.

Only an engine that really lost data may begin a new epoch, or answer that it can't recover. Whoever
takes its data away says so (`may_lose`).
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import TypeAlias

from msgspec import Struct

from chatserver.publication import Position

__all__ = [
    "Acknowledged",
    "Answered",
    "Delivered",
    "Disagreement",
    "Event",
    "FalseAcknowledgement",
    "FalseRecovery",
    "Gap",
    "Gone",
    "Invented",
    "Lost",
    "Missing",
    "NotRecovered",
    "OutOfOrder",
    "Published",
    "Seen",
    "Twice",
    "Violation",
    "check",
]

# What is recorded


class Published(Struct, frozen=True):
    """A publisher is about to publish, for the first time or again with the same id."""

    channel: str
    id: str
    data: str


class Acknowledged(Struct, frozen=True):
    """A publisher got its answer. Without one, it is uncertain whether it has published."""

    channel: str
    id: str
    position: Position


class Seen(Struct, frozen=True):
    """A publication as a subscriber got it."""

    position: Position
    data: str


class Answered(Struct, frozen=True):
    """A subscriber is subscribed, for the first time or again.

    Attributes:
        since: The position that it asked for: the furthest that it has come to by publications
            and answers; None the first time.
        recovered: Whether the answer says that `publications` are all that it missed.
        position: After which publications are delivered.
    """

    subscriber: str
    channel: str
    since: Position | None
    recovered: bool
    publications: tuple[Seen, ...]
    position: Position


class Delivered(Struct, frozen=True):
    """A subscriber got a publication."""

    subscriber: str
    channel: str
    seen: Seen


class Lost(Struct, frozen=True):
    """A subscriber was told that it has missed something, and has to subscribe again."""

    subscriber: str
    channel: str


class Gone(Struct, frozen=True):
    """A subscriber's connection has ended, whoever ended it."""

    subscriber: str


Event: TypeAlias = Published | Acknowledged | Answered | Delivered | Lost | Gone

# What is found


class Violation(Struct, frozen=True):
    """Something that must not have happened; as a string, a sentence."""

    channel: str
    position: Position

    def __str__(self) -> str:
        return f"{self.at}: {type(self).__name__}"

    @property
    def at(self) -> str:
        return self.place(self.position)

    def place(self, position: Position) -> str:
        """A position for a person: channel, epoch and offset."""
        return f"{self.channel}/{position.epoch}:{position.offset}"


class Missing(Violation, frozen=True):
    """An acknowledged publication is not there: for a subscriber, or (empty) for everyone."""

    id: str
    subscriber: str = ""

    def __str__(self) -> str:
        who = self.subscriber or "everyone"
        return f"{self.id} was acknowledged at {self.at}, and is missing for {who}"


class Twice(Violation, frozen=True):
    """A publication was delivered again, or (no subscriber) stands in the stream twice."""

    data: str
    first: Position
    subscriber: str = ""

    def __str__(self) -> str:
        who = self.subscriber or "everyone"
        return f"{self.data!r} is at {self.place(self.first)}, and at {self.at} again, for {who}"


class OutOfOrder(Violation, frozen=True):
    """A publication stands, or was delivered, after one that comes behind it."""

    data: str
    after: Position

    def __str__(self) -> str:
        return f"{self.data!r} at {self.at} came after {self.place(self.after)}"


class Gap(Violation, frozen=True):
    """A subscriber missed publications, and was not told."""

    subscriber: str
    after: Position

    def __str__(self) -> str:
        after = self.place(self.after)
        return f"{self.subscriber} got {self.at} right after {after}, and was told of no loss"


class FalseRecovery(Violation, frozen=True):
    """An answer says `recovered`, and is not exactly what was missed."""

    subscriber: str
    since: Position | None
    offsets: tuple[int, ...]

    def __str__(self) -> str:
        since = "nothing" if self.since is None else self.place(self.since)
        return f"{self.subscriber} recovered from {since} to {self.at} by {list(self.offsets)}"


class NotRecovered(Violation, frozen=True):
    """A subscriber could not recover, though nobody had taken the engine's data away."""

    subscriber: str
    since: Position

    def __str__(self) -> str:
        since = self.place(self.since)
        return f"{self.subscriber} could not recover from {since}, and goes on after {self.at}"


class Disagreement(Violation, frozen=True):
    """Two have got different publications at one position."""

    one: str
    other: str

    def __str__(self) -> str:
        return f"{self.at} holds {self.one!r} for one, and {self.other!r} for another"


class Invented(Violation, frozen=True):
    """A subscriber got what nobody had published to the channel."""

    subscriber: str
    data: str

    def __str__(self) -> str:
        return f"{self.subscriber} got {self.data!r} at {self.at}, which nobody had published"


class FalseAcknowledgement(Violation, frozen=True):
    """A publisher was told a position at which its publication does not stand."""

    id: str
    instead: str

    def __str__(self) -> str:
        return f"{self.id} was acknowledged at {self.at}, but {self.instead}"


def check(history: Iterable[Event], *, may_lose: bool = False) -> list[Violation]:
    """What must not have happened in a history; empty if it is right.

    Args:
        history: What was recorded, in the order in which it happened.
        may_lose: Whether the engine's data was taken away, so that it may begin a new epoch, and
            answer that it can't recover.

    Raises:
        ValueError: It is no history: who recorded it made a mistake.
    """
    checker = _Checker(may_lose)
    for event in history:
        checker.take(event)
    return checker.verdict()


class _Stream:
    """A channel, as it is known from all that publishers and subscribers were told.

    Attributes:
        datas: By id, what was published.
        said: All that was published.
        holds: What a position holds.
        places: Where a publication stands, by what it says.
        acknowledged: By id, where it was acknowledged.
        epoch: That of the last acknowledgement.
        tops: By epoch, the highest acknowledged offset.
        floors: By id, those offsets when it was published first.
    """

    def __init__(self) -> None:
        self.datas: dict[str, str] = {}
        self.said: set[str] = set()
        self.holds: dict[Position, str] = {}
        self.places: defaultdict[str, list[Position]] = defaultdict(list)
        self.acknowledged: dict[str, Position] = {}
        self.epoch = ""
        self.tops: dict[str, int] = {}
        self.floors: dict[str, dict[str, int]] = {}


class _Subscription:
    """A subscriber in a channel.

    Attributes:
        position: The furthest that it has come to by publications and answers.
        live: Whether it is subscribed now.
        got: Where it has got a publication, by what it says.
    """

    def __init__(self) -> None:
        self.position: Position | None = None
        self.live = False
        self.got: dict[str, Position] = {}


class _Checker:
    def __init__(self, may_lose: bool) -> None:
        self._may_lose = may_lose
        self._streams: defaultdict[str, _Stream] = defaultdict(_Stream)
        self._subscriptions: dict[tuple[str, str], _Subscription] = {}
        self._found: list[Violation] = []

    def take(self, event: Event) -> None:
        match event:
            case Published():
                self._published(event)
            case Acknowledged():
                self._acknowledged(event)
            case Answered():
                self._answered(event)
            case Delivered(subscriber, channel):
                self._delivered(event, self._live(subscriber, channel))
            case Lost(subscriber, channel):
                self._live(subscriber, channel).live = False
            case Gone(gone):
                for (subscriber, _), subscription in self._subscriptions.items():
                    subscription.live &= subscriber != gone

    def verdict(self) -> list[Violation]:
        for channel, stream in self._streams.items():
            self._judge_places(channel, stream)
            self._judge_order(channel, stream)
            self._judge_losses(channel, stream)
        for (subscriber, channel), subscription in self._subscriptions.items():
            if subscription.live:
                self._judge_end(subscriber, channel, subscription)
        return self._found

    # Publishers

    def _published(self, event: Published) -> None:
        stream = self._streams[event.channel]
        if event.id not in stream.datas and event.data in stream.said:
            raise ValueError(f"{event.data!r} is published with two ids, so none can be told")
        if (data := stream.datas.setdefault(event.id, event.data)) != event.data:
            raise ValueError(f"{event.id} is published with {data!r}, and with {event.data!r}")
        stream.said.add(event.data)
        stream.floors.setdefault(event.id, dict(stream.tops))

    def _acknowledged(self, event: Acknowledged) -> None:
        stream, position = self._streams[event.channel], event.position
        if event.id not in stream.datas:
            raise ValueError(f"{event.id} was acknowledged, and not published before")
        first = stream.acknowledged.setdefault(event.id, position)
        if first != position and (first.epoch == position.epoch or not self._may_lose):
            instead = f"at offset {first.offset} of {first.epoch} before"
            self._find(FalseAcknowledgement(event.channel, position, event.id, instead))
        stream.acknowledged[event.id] = position
        stream.epoch = position.epoch
        stream.tops[position.epoch] = max(position.offset, stream.tops.get(position.epoch, 0))

    # Subscribers

    def _answered(self, event: Answered) -> None:
        key = event.subscriber, event.channel
        subscription = self._subscriptions.setdefault(key, _Subscription())
        since, position = event.since, event.position
        if subscription.live:
            raise ValueError(f"{event.subscriber} was subscribed to {event.channel!r} already")
        if since != subscription.position:
            raise ValueError(f"{event.subscriber} is at {subscription.position}, not at {since}")
        if event.recovered:
            self._judge_recovery(event)
        elif since is not None and not self._may_lose:
            self._find(NotRecovered(event.channel, position, event.subscriber, since))
        for seen in event.publications:
            self._see(event.subscriber, event.channel, seen, subscription)
        subscription.position, subscription.live = position, True

    def _judge_recovery(self, event: Answered) -> None:
        since, position = event.since, event.position
        found = [seen.position for seen in event.publications]
        missed = [] if since is None else range(since.offset + 1, position.offset + 1)
        if (
            since is None
            or since.epoch != position.epoch
            or found != [Position(offset, position.epoch) for offset in missed]
        ):
            offsets = tuple(each.offset for each in found)
            self._find(FalseRecovery(event.channel, position, event.subscriber, since, offsets))

    def _delivered(self, event: Delivered, subscription: _Subscription) -> None:
        last, position = subscription.position, event.seen.position
        assert last is not None, "it is live"
        if position.epoch != last.epoch or position.offset > last.offset + 1:
            self._find(Gap(event.channel, position, event.subscriber, last))
        elif position.offset <= last.offset and event.seen.data not in subscription.got:
            self._find(OutOfOrder(event.channel, position, event.seen.data, last))
        self._see(event.subscriber, event.channel, event.seen, subscription)
        if position.epoch != last.epoch or position.offset > last.offset:
            subscription.position = position

    def _see(self, subscriber: str, channel: str, seen: Seen, subscription: _Subscription) -> None:
        """A subscriber got a publication, by delivery or in an answer."""
        stream, position, data = self._streams[channel], seen.position, seen.data
        if data not in stream.said:
            self._find(Invented(channel, position, subscriber, data))
        held = stream.holds.setdefault(position, data)
        if held != data:
            self._find(Disagreement(channel, position, held, data))
        if position not in stream.places[data]:
            stream.places[data].append(position)
        first = subscription.got.get(data)
        if first is not None and self._is_again(first, position):
            self._find(Twice(channel, position, data, first, subscriber))
        subscription.got[data] = position

    def _live(self, subscriber: str, channel: str) -> _Subscription:
        subscription = self._subscriptions.get((subscriber, channel))
        if subscription is None or not subscription.live:
            raise ValueError(f"{subscriber} is not subscribed to {channel!r}")
        return subscription

    # All of them together

    def _judge_places(self, channel: str, stream: _Stream) -> None:
        """Each publication stands once, and where it was acknowledged."""
        for data, places in stream.places.items():
            for place in places[1:]:
                if self._is_again(places[0], place):
                    self._find(Twice(channel, place, data, places[0]))
        for id, position in stream.acknowledged.items():
            data = stream.datas[id]
            # What was acknowledged there before this one is another's, and so is what was seen.
            held = stream.holds.setdefault(position, data)
            if held != data:
                self._find(FalseAcknowledgement(channel, position, id, f"{held!r} is there"))
            for place in stream.places.get(data, ()):
                if place.epoch == position.epoch and place != position:
                    instead = f"it is at offset {place.offset}"
                    self._find(FalseAcknowledgement(channel, position, id, instead))

    def _judge_order(self, channel: str, stream: _Stream) -> None:
        """What was published after another was acknowledged stands behind it."""
        for id, floor in stream.floors.items():
            data = stream.datas[id]
            places = set(stream.places.get(data, ()))
            if (acknowledged := stream.acknowledged.get(id)) is not None:
                places.add(acknowledged)
            for place in places:
                if place.offset <= (least := floor.get(place.epoch, 0)):
                    self._find(OutOfOrder(channel, place, data, Position(least, place.epoch)))

    def _judge_losses(self, channel: str, stream: _Stream) -> None:
        if self._may_lose:
            return
        for id, position in stream.acknowledged.items():
            if position.epoch != stream.epoch:
                self._find(Missing(channel, position, id))

    def _judge_end(self, subscriber: str, channel: str, subscription: _Subscription) -> None:
        """Who is subscribed at the end has got all that the stream is known to hold."""
        stream, last = self._streams[channel], subscription.position
        assert last is not None, "it is live"
        for id, position in stream.acknowledged.items():
            if position.epoch == stream.epoch and (
                last.epoch != position.epoch or last.offset < position.offset
            ):
                self._find(Missing(channel, position, id, subscriber))

    def _is_again(self, first: Position, second: Position) -> bool:
        """Whether these may not both hold the same: after a loss, it may be published anew."""
        return first.epoch == second.epoch or not self._may_lose

    def _find(self, violation: Violation) -> None:
        self._found.append(violation)
