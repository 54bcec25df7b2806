"""The checker of histories: right ones pass, and each kind of wrong one is found.

The right ones are those of a model, made of a seed. The wrong ones are the same with one change.
"""

from collections.abc import Callable
from random import Random

import pytest
from msgspec import structs

from chatserver.publication import Position
from tests.checker import (
    Acknowledged,
    Answered,
    Delivered,
    Disagreement,
    Event,
    FalseAcknowledgement,
    FalseRecovery,
    Gap,
    Gone,
    Invented,
    Lost,
    Missing,
    NotRecovered,
    OutOfOrder,
    Published,
    Seen,
    Twice,
    Violation,
    check,
)

CHANNELS = ("a", "b")
SEEDS = range(60)

History = list[Event]


class Model:
    """An engine that does everything right, with publishers and subscribers.

    Attributes:
        history: What they recorded.
    """

    def __init__(self, random: Random, losing: bool = False) -> None:
        self.random = random
        self.losing = losing
        self.history: History = []
        self.streams: dict[str, tuple[str, list[str]]] = {name: ("e0", []) for name in CHANNELS}
        self.epochs = 0
        self.ids = 0
        # Of each publisher what it waits for, and where that stands once it is stored.
        self.pending: dict[int, tuple[Published, Position | None]] = {}
        # Of each subscriber and channel the position; and the pairs that are live.
        self.positions: dict[tuple[str, str], Position] = {}
        self.live: set[tuple[str, str]] = set()

    def run(self, steps: int) -> History:
        everything = [self.publish, self.publish, self.store, self.store, self.acknowledge]
        everything += [self.deliver] * 6 + [self.come, self.come, self.go, self.give_up]
        if self.losing:
            everything.append(self.lose)
        for _ in range(steps):
            self.random.choice(everything)()
        self.end()
        return self.history

    def end(self) -> None:
        """All come back and are told all; the last publication of each channel is acknowledged."""
        while self.pending:
            self.store()
            self.acknowledge()
        for channel in CHANNELS:
            self.publish_to(channel, 0)
            self.store()
            self.acknowledge()
        for pair in [(subscriber, channel) for subscriber in "STU" for channel in CHANNELS]:
            self.answer(*pair)
            self.deliver_to(*pair)  # or it is told of a loss, and has to ask again
            self.answer(*pair)
            while self.next_of(*pair):
                self.deliver_to(*pair)

    def publish(self) -> None:
        publisher = self.random.randrange(3)
        if publisher not in self.pending:
            self.publish_to(self.random.choice(CHANNELS), publisher)

    def publish_to(self, channel: str, publisher: int) -> None:
        self.ids += 1
        event = Published(channel, f"id{self.ids}", f"text{self.ids}")
        self.pending[publisher] = event, None
        self.history.append(event)

    def shuffled(self) -> list[tuple[int, Published, Position | None]]:
        waiting = [(number, *waits_for) for number, waits_for in self.pending.items()]
        return self.random.sample(waiting, len(waiting))

    def store(self) -> None:
        for publisher, event, position in self.shuffled():
            if position is None:
                epoch, texts = self.streams[event.channel]
                texts.append(event.data)
                self.pending[publisher] = event, Position(len(texts), epoch)
                return

    def acknowledge(self) -> None:
        for publisher, event, position in self.shuffled():
            if position is not None:
                self.history.append(Acknowledged(event.channel, event.id, position))
                del self.pending[publisher]
                return

    def give_up(self) -> None:
        """A publisher gets no answer; some ask again."""
        for publisher, event, position in self.shuffled():
            if self.random.random() < 0.5:
                del self.pending[publisher]
            else:
                self.history.append(event)
                lost = position is not None and position.epoch != self.streams[event.channel][0]
                self.pending[publisher] = event, None if lost else position
            return

    def next_of(self, subscriber: str, channel: str) -> Seen | None:
        epoch, texts = self.streams[channel]
        position = self.positions[subscriber, channel]
        if position.epoch != epoch or position.offset == len(texts):
            return None
        return Seen(Position(position.offset + 1, epoch), texts[position.offset])

    def deliver(self) -> None:
        if self.live:
            self.deliver_to(*self.random.choice(sorted(self.live)))

    def deliver_to(self, subscriber: str, channel: str) -> None:
        seen = self.next_of(subscriber, channel)
        if seen is not None:
            self.history.append(Delivered(subscriber, channel, seen))
            self.positions[subscriber, channel] = seen.position
        elif self.positions[subscriber, channel].epoch != self.streams[channel][0]:
            self.history.append(Lost(subscriber, channel))
            self.live.discard((subscriber, channel))

    def come(self) -> None:
        self.answer(self.random.choice("STU"), self.random.choice(CHANNELS))

    def answer(self, subscriber: str, channel: str) -> None:
        pair = subscriber, channel
        if pair in self.live:
            return
        epoch, texts = self.streams[channel]
        since, top = self.positions.get(pair), Position(len(texts), epoch)
        recovered = since is not None and since.epoch == epoch
        missed: list[Seen] = []
        if since is not None and recovered:
            for offset in range(since.offset, len(texts)):
                missed.append(Seen(Position(offset + 1, epoch), texts[offset]))
        self.history.append(Answered(*pair, since, recovered, tuple(missed), top))
        self.live.add(pair)
        self.positions[pair] = top

    def go(self) -> None:
        gone = self.random.choice("STU")
        self.history.append(Gone(gone))
        self.live = {pair for pair in self.live if pair[0] != gone}

    def lose(self) -> None:
        if self.random.random() < 0.3:
            self.epochs += 1
            self.streams[self.random.choice(CHANNELS)] = f"e{self.epochs}", []


@pytest.mark.parametrize("losing", [False, True])
def test_right_histories_pass(losing: bool) -> None:
    events: list[Event] = []
    for seed in range(300):
        history = Model(Random(seed), losing).run(300)
        assert check(history, may_lose=losing) == [], seed
        events += history
    assert {type(event) for event in events} >= {Published, Acknowledged, Answered, Delivered, Gone}
    answers = [event for event in events if isinstance(event, Answered)]
    assert any(event.recovered and event.publications for event in answers)
    if losing:
        assert any(event.since and not event.recovered for event in answers)
        assert Lost in {type(event) for event in events}


# Each mutation changes a history in one place, or returns None if there is no such place.

Mutation = Callable[[Random, History], History | None]

#: By name: a mutation, what must be found, and whether the model loses data.
MUTATIONS: dict[str, tuple[Mutation, set[type[Violation]], bool]] = {}


def finds(*expected: type[Violation], losing: bool = False) -> Callable[[Mutation], Mutation]:
    def register(mutation: Mutation) -> Mutation:
        MUTATIONS[mutation.__name__] = mutation, set(expected), losing
        return mutation

    return register


def pair_of(event: Answered | Delivered | Lost) -> tuple[str, str]:
    return event.subscriber, event.channel


def deliveries(history: History, then: type[Event] | None) -> list[int]:
    """Deliveries after which something of a kind, or nothing, happens to that subscriber there."""
    return [
        index
        for index, event in enumerate(history)
        if isinstance(event, Delivered) and next_of(history[index + 1 :], pair_of(event)) is then
    ]


def next_of(rest: History, pair: tuple[str, str]) -> type[Event] | None:
    """What happens next to a subscriber in a channel."""
    for event in rest:
        if isinstance(event, Gone) and event.subscriber == pair[0]:
            return Gone
        if isinstance(event, Answered | Delivered | Lost) and pair_of(event) == pair:
            return type(event)
    return None


def answers(history: History, recovered: bool, least: int) -> list[int]:
    """Answers to a position, with a number of publications at least."""
    return [
        index
        for index, event in enumerate(history)
        if isinstance(event, Answered)
        and event.since is not None
        and event.recovered is recovered
        and len(event.publications) >= least
    ]


def acknowledgements(history: History) -> list[tuple[int, Acknowledged]]:
    return [(i, e) for i, e in enumerate(history) if isinstance(e, Acknowledged)]


def one(random: Random, indices: list[int]) -> int | None:
    return random.choice(indices) if indices else None


def delivered(history: History, index: int) -> Delivered:
    event = history[index]
    assert isinstance(event, Delivered)
    return event


def changed(history: History, index: int, event: Event) -> History:
    return [*history[:index], event, *history[index + 1 :]]


def replaced(history: History, index: int, text: str) -> History:
    """With another text in a delivery."""
    event = delivered(history, index)
    seen = Seen(event.seen.position, text)
    return changed(history, index, structs.replace(event, seen=seen))


def answered(
    random: Random,
    history: History,
    least: int,
    change: Callable[[tuple[Seen, ...]], tuple[Seen, ...]],
) -> History | None:
    """With other publications in a recovery that has so many at least."""
    index = one(random, answers(history, recovered=True, least=least))
    if index is None:
        return None
    event = history[index]
    assert isinstance(event, Answered)
    publications = change(event.publications)
    return changed(history, index, structs.replace(event, publications=publications))


@finds(Gap)
def one_delivery_is_missing(random: Random, history: History) -> History | None:
    index = one(random, deliveries(history, then=Delivered))
    return None if index is None else [*history[:index], *history[index + 1 :]]


@finds(Missing)
def the_last_delivery_is_missing(random: Random, history: History) -> History | None:
    acknowledged = {event.id for event in history if isinstance(event, Acknowledged)}
    texts = {e.data for e in history if isinstance(e, Published) and e.id in acknowledged}
    last = deliveries(history, then=None)
    index = one(random, [each for each in last if delivered(history, each).seen.data in texts])
    return None if index is None else [*history[:index], *history[index + 1 :]]


@finds(Twice)
def one_comes_twice(random: Random, history: History) -> History | None:
    index = one(random, deliveries(history, then=Delivered) + deliveries(history, then=None))
    return None if index is None else [*history[: index + 1], *history[index:]]


@finds(OutOfOrder)
def two_come_in_the_wrong_order(random: Random, history: History) -> History | None:
    index = one(random, deliveries(history, then=Delivered))
    if index is None:
        return None
    first = delivered(history, index)
    other = next(
        number
        for number in range(index + 1, len(history))
        if isinstance(event := history[number], Delivered)
        and (event.subscriber, event.channel) == (first.subscriber, first.channel)
    )
    mutated = [*history]
    mutated[index], mutated[other] = history[other], history[index]
    # What is delivered before it is published would be found for another reason.
    moved = delivered(mutated, index).seen.data
    published = [e.data for e in mutated[:index] if isinstance(e, Published)]
    return mutated if moved in published else None


@finds(Disagreement, FalseAcknowledgement)
def one_gets_something_else(random: Random, history: History) -> History | None:
    """What it gets stands nowhere else, and was published."""
    seen = {event.seen.data for event in history if isinstance(event, Delivered)}
    seen |= {s.data for e in history if isinstance(e, Answered) for s in e.publications}
    positions = [event.position for event in history if isinstance(event, Acknowledged)]
    places = [
        (index, event.data)
        for index in deliveries(history, then=Delivered)
        for event in history[:index]
        if isinstance(event, Published)
        and event.channel == delivered(history, index).channel
        and event.data not in seen
        and delivered(history, index).seen.position in positions
    ]
    if not places:
        return None
    index, text = random.choice(places)
    return replaced(history, index, text)


@finds(Invented)
def one_gets_what_nobody_published(random: Random, history: History) -> History | None:
    index = one(random, deliveries(history, then=Delivered))
    return None if index is None else replaced(history, index, "nobody said so")


@finds(Invented)
def one_gets_what_was_published_elsewhere(random: Random, history: History) -> History | None:
    index = one(random, deliveries(history, then=Delivered))
    if index is None:
        return None
    channel = delivered(history, index).channel
    texts = [e.data for e in history if isinstance(e, Published) and e.channel != channel]
    return replaced(history, index, random.choice(texts)) if texts else None


@finds(Invented)
def one_gets_what_is_published_later(random: Random, history: History) -> History | None:
    index = one(random, deliveries(history, then=Delivered))
    if index is None:
        return None
    text = delivered(history, index).seen.data
    kept = [e for e in history[: index + 1] if not (isinstance(e, Published) and e.data == text)]
    if any(isinstance(e, Acknowledged) and f"text{e.id[2:]}" == text for e in kept):
        return None
    event = next(e for e in history if isinstance(e, Published) and e.data == text)
    return [*kept, event, *history[index + 1 :]]


@finds(FalseRecovery)
def a_recovery_lacks_one(random: Random, history: History) -> History | None:
    def lack(seen: tuple[Seen, ...]) -> tuple[Seen, ...]:
        index = random.randrange(len(seen))
        return seen[:index] + seen[index + 1 :]

    return answered(random, history, 1, lack)


@finds(FalseRecovery)
def a_recovery_is_in_another_order(random: Random, history: History) -> History | None:
    return answered(random, history, 2, lambda seen: seen[::-1])


@finds(FalseRecovery, Twice)
def a_recovery_has_one_twice(random: Random, history: History) -> History | None:
    return answered(random, history, 1, lambda seen: (seen[0], *seen))


@finds(FalseRecovery, losing=True)
def a_recovery_from_a_lost_stream(random: Random, history: History) -> History | None:
    index = one(random, answers(history, recovered=False, least=0))
    if index is None:
        return None
    return changed(history, index, structs.replace(history[index], recovered=True))


@finds(FalseRecovery)
def a_recovery_from_nothing(random: Random, history: History) -> History | None:
    first = [i for i, e in enumerate(history) if isinstance(e, Answered) and e.since is None]
    index = random.choice(first)
    return changed(history, index, structs.replace(history[index], recovered=True))


@finds(NotRecovered)
def a_recovery_fails_for_no_reason(random: Random, history: History) -> History | None:
    index = one(random, answers(history, recovered=True, least=1))
    if index is None:
        return None
    event = structs.replace(history[index], recovered=False, publications=())
    return changed(history, index, event)


@finds(Twice)
def what_was_recovered_is_delivered_again(random: Random, history: History) -> History | None:
    index = one(random, answers(history, recovered=True, least=1))
    if index is None:
        return None
    event = history[index]
    assert isinstance(event, Answered)
    again = Delivered(event.subscriber, event.channel, event.publications[-1])
    return [*history[: index + 1], again, *history[index + 1 :]]


@finds(Gap, Missing, losing=True)
def a_loss_is_not_told(random: Random, history: History) -> History | None:
    """Neither by a word nor by an answer: the stream just goes on with another epoch."""
    index = one(random, [i for i, e in enumerate(history) if isinstance(e, Lost)])
    if index is None:
        return None
    lost = history[index]
    assert isinstance(lost, Lost)
    for number in range(index + 1, len(history)):
        event = history[number]
        if isinstance(event, Gone) and event.subscriber == lost.subscriber:
            return None
        if isinstance(event, Answered) and pair_of(event) == pair_of(lost):
            rest = history[number + 1 :]
            mutated = [*history[:index], *history[index + 1 : number], *rest]
            return mutated if next_of(rest, pair_of(lost)) in (Delivered, None) else None
    return None


@finds(NotRecovered, Missing, losing=True)
def data_is_lost_that_nobody_took_away(random: Random, history: History) -> History | None:
    return history if answers(history, recovered=False, least=0) else None


@finds(FalseAcknowledgement)
def one_is_told_the_position_of_another(random: Random, history: History) -> History | None:
    index, event = random.choice(acknowledgements(history))
    others = [e for _, e in acknowledgements(history) if e.channel == event.channel]
    other = random.choice(others)
    if other.position == event.position:
        return None
    return changed(history, index, structs.replace(event, position=other.position))


@finds(FalseAcknowledgement)
def one_gets_two_answers(random: Random, history: History) -> History | None:
    index, event = random.choice(acknowledgements(history))
    position = Position(event.position.offset + 1000, event.position.epoch)
    return [*history[: index + 1], structs.replace(event, position=position), *history[index + 1 :]]


@finds(Missing)
def what_is_acknowledged_was_never_stored(random: Random, history: History) -> History | None:
    channel = random.choice(CHANNELS)
    tops = [e.position for _, e in acknowledgements(history) if e.channel == channel]
    position = Position(tops[-1].offset + 1, tops[-1].epoch)
    published = Published(channel, "id", "never stored")
    return [*history, published, Acknowledged(channel, "id", position)]


@finds(Twice)
def one_stands_in_the_stream_twice(random: Random, history: History) -> History | None:
    """As after a publisher asked again, and the engine had forgotten its id."""
    channel = random.choice(CHANNELS)
    seen = [e.seen for e in history if isinstance(e, Delivered) and e.channel == channel]
    position = Position(seen[-1].position.offset + 1, seen[-1].position.epoch)
    again = Seen(position, random.choice(seen).data)
    return [*history, *(Delivered(subscriber, channel, again) for subscriber in "STU")]


@finds(OutOfOrder)
def one_overtakes_what_was_there_before(random: Random, history: History) -> History | None:
    """It is published only after another, which stands behind it, was acknowledged."""
    found = [
        (index, before, late)
        for index, before in acknowledgements(history)
        for second, late in acknowledgements(history)
        if index < second
        and before.channel == late.channel
        and before.position.offset > late.position.offset
    ]
    if not found:
        return None
    index, _, late = random.choice(found)
    (published,) = {e for e in history if isinstance(e, Published) and e.id == late.id}
    before, after = (
        [e for e in part if e != published] for part in (history[: index + 1], history[index + 1 :])
    )
    return [*before, published, *after]


@pytest.mark.parametrize("name", MUTATIONS)
def test_wrong_histories_are_found(name: str) -> None:
    mutation, expected, losing = MUTATIONS[name]
    tried = 0
    for seed in SEEDS:
        random = Random(seed)
        mutated = mutation(random, Model(random, losing).run(300))
        if mutated is None:
            continue
        tried += 1
        allowed = losing and mutation is not data_is_lost_that_nobody_took_away
        found = check(mutated, may_lose=allowed)
        assert expected & {type(violation) for violation in found}, (seed, found)
        assert all(violation.at in str(violation) for violation in found)
    assert tried >= len(SEEDS) // 4


def test_each_kind_of_violation_is_found_by_a_mutation() -> None:
    kinds = {kind for _, expected, _ in MUTATIONS.values() for kind in expected}
    assert kinds == set(Violation.__subclasses__())


E, F, G = Position(1, "e"), Position(5, "e"), Position(1, "g")
PUBLISHED = Published("a", "1", "x")
SUBSCRIBED = Answered("S", "a", None, False, (), Position(0, "e"))


@pytest.mark.parametrize(
    ("events", "sentence"),
    [
        ([Published("a", "2", "x")], "'x' is published with two ids"),
        ([Published("a", "1", "y")], "1 is published with 'x', and with 'y'"),
        ([Acknowledged("a", "2", E)], "2 was acknowledged, and not published before"),
        ([Delivered("S", "a", Seen(E, "x"))], "S is not subscribed to 'a'"),
        ([SUBSCRIBED, Gone("S"), Lost("S", "a")], "S is not subscribed to 'a'"),
        ([SUBSCRIBED, SUBSCRIBED], "S was subscribed to 'a' already"),
        ([SUBSCRIBED, Gone("S"), SUBSCRIBED], "S is at Position.*, not at None"),
    ],
)
def test_what_is_no_history_is_refused(events: History, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check([PUBLISHED, *events])


@pytest.mark.parametrize(
    ("events", "violation"),
    [
        (
            [
                SUBSCRIBED,
                Delivered("S", "a", Seen(E, "x")),
                Answered("T", "a", None, False, (), E),
                Delivered("T", "a", Seen(Position(2, "e"), "x")),
            ],
            Twice("a", Position(2, "e"), "x", E),
        ),
        (
            [SUBSCRIBED, Delivered("S", "a", Seen(E, "x")), Acknowledged("a", "1", F), Gone("S")],
            FalseAcknowledgement("a", F, "1", "it is at offset 1"),
        ),
        (
            [Acknowledged("a", "1", E), Published("a", "2", "y"), Acknowledged("a", "2", G)],
            Missing("a", E, "1"),
        ),
    ],
)
def test_what_no_single_subscriber_can_know_is_found(events: History, violation: Violation) -> None:
    assert check([PUBLISHED, *events]) == [violation]
