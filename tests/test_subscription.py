"""Subscriptions: values in, decisions out."""

from collections import deque
from random import Random

import pytest

from chatserver.hub.subscription import (
    OVERHEAD,
    Continuity,
    State,
    Step,
    Subscribed,
    Subscription,
    Verdict,
    before,
)
from chatserver.publication import History, Position, Publication

NEXT, OLD, HELD, GAP, LOST = Verdict

#: Enough for whatever these tests hold.
MUCH = 1 << 20
#: What one publication of these tests counts for.
ONE = OVERHEAD + 1


def at(offset: int, epoch: str = "e") -> Position:
    return Position(offset, epoch)


def pub(offset: int, epoch: str = "e", data: str = "x") -> Publication:
    return Publication("a", data, offset, epoch)


def pubs(first: int, last: int, epoch: str = "e") -> tuple[Publication, ...]:
    return tuple(pub(offset, epoch) for offset in range(first, last + 1))


def read(first: int, last: int, epoch: str = "e") -> History:
    """A history that ends at the top of its stream."""
    return History(pubs(first, last, epoch), at(last, epoch))


def started(offset: int = 0, most: int = MUCH) -> Continuity:
    continuity = Continuity(most)
    assert continuity.start(at(offset)) == []
    return continuity


# Continuity: what a broker delivers


def test_what_follows_the_position_is_next_and_what_does_not_is_old() -> None:
    continuity = started(3)
    assert [continuity.take(pub(offset)) for offset in (2, 3, 4, 4, 3, 5)] == [
        *(OLD, OLD, NEXT, OLD, OLD, NEXT)
    ]
    assert continuity.top == at(5)


def test_what_comes_before_the_broker_has_answered_is_held() -> None:
    continuity = Continuity(MUCH)
    assert [continuity.take(pub(offset)) for offset in (2, 3, 4, 5)] == [HELD] * 4
    assert continuity.top is None
    assert continuity.start(at(3)) == [pub(4), pub(5)]
    assert continuity.top == at(5)


def test_before_the_answer_a_stream_may_be_begun_anew() -> None:
    """The answer is older than what was delivered; no member was told of the old stream."""
    continuity = Continuity(MUCH)
    for publication in (pub(8), pub(1, "new"), pub(2, "new")):
        assert continuity.take(publication) is HELD
    assert continuity.start(at(7)) == [pub(1, "new"), pub(2, "new")]
    assert continuity.top == at(2, "new")


def test_too_much_before_the_answer_is_read_from_history_behind_it() -> None:
    continuity = Continuity(3 * ONE)
    for offset in range(1, 100):
        assert continuity.take(pub(offset)) is HELD
    assert continuity.top is None  # it is not taken for confirmed
    assert continuity.start(at(0)) == []
    assert continuity.gap
    first = continuity.fill(read(1, 99))
    assert first == [*pubs(1, 99)]


def test_a_gap_is_filled_from_history_and_what_came_meanwhile_follows() -> None:
    continuity = started(3)
    assert [continuity.take(pub(offset)) for offset in (6, 7)] == [GAP, HELD]
    assert (continuity.gap, continuity.top) == (True, at(3))
    assert continuity.take(pub(8)) is HELD
    assert continuity.fill(read(4, 7)) == [*pubs(4, 8)]
    assert (continuity.gap, continuity.top) == (False, at(8))
    assert continuity.take(pub(8)) is OLD
    assert continuity.take(pub(9)) is NEXT


def test_behind_a_gap_there_may_be_another() -> None:
    continuity = started(3)
    assert [continuity.take(pub(offset)) for offset in (5, 6, 9, 10)] == [GAP, HELD, HELD, HELD]
    assert continuity.fill(read(4, 5)) == [*pubs(4, 6)]
    assert continuity.gap
    assert continuity.fill(read(7, 10)) == [*pubs(7, 10)]
    assert not continuity.gap


@pytest.mark.parametrize(
    "history",
    [
        None,  # it could not be read
        History((), at(6)),  # nothing is retained
        read(7, 8),  # it is retained from behind what is held on
        History((), at(3)),  # it was read at an engine that lags behind
        History((), at(2)),
        History((), at(9, "other")),
    ],
)
def test_a_gap_that_can_not_be_filled_ends_with_what_is_held(history: History | None) -> None:
    continuity = started(3)
    for offset in (6, 7):
        continuity.take(pub(offset))
    assert continuity.fill(history) == [at(5), pub(6), pub(7)]
    assert (continuity.gap, continuity.top) == (False, at(7))


def test_of_a_gap_that_is_filled_in_part_the_rest_is_not_lost_too() -> None:
    continuity = started(3)
    for offset in (8, 9):
        continuity.take(pub(offset))
    assert continuity.fill(read(6, 8)) == [at(5), *pubs(6, 9)]


def test_a_stream_begun_anew_is_lost_and_goes_on() -> None:
    continuity = started(3)
    assert continuity.take(pub(1, "new")) is LOST
    assert continuity.take(pub(2, "new")) is NEXT
    assert continuity.take(pub(2, "new")) is OLD


def test_a_stream_begun_anew_behind_a_gap_is_told_of() -> None:
    continuity = started(3)
    for publication in (pub(6), pub(1, "new"), pub(2, "new")):
        continuity.take(publication)
    steps: list[Step] = [*pubs(4, 6), at(0, "new"), pub(1, "new"), pub(2, "new")]
    assert continuity.fill(read(4, 6)) == steps
    assert continuity.top == at(2, "new")


def test_a_gap_that_is_too_large_to_hold_is_lost() -> None:
    continuity = started(3, most=3 * ONE)
    verdicts = [continuity.take(pub(offset)) for offset in range(6, 11)]
    assert verdicts == [GAP, HELD, HELD, LOST, NEXT]
    assert (continuity.gap, continuity.top) == (False, at(10))


def test_what_is_held_counts_by_its_bytes() -> None:
    continuity = Continuity(1000)
    continuity.start(at(0))
    assert continuity.take(pub(3, data="é" * 400)) is GAP
    assert continuity.take(pub(4, data="é" * 100)) is LOST


def test_after_a_reset_the_new_position_is_the_top() -> None:
    continuity = started(3)
    continuity.take(pub(6))
    continuity.reset(at(10))
    assert (continuity.gap, continuity.top) == (False, at(10))
    assert continuity.take(pub(10)) is OLD
    assert continuity.take(pub(11)) is NEXT


# Subscription: one member's way in


def answered(position: int = 3, most: int = MUCH) -> Subscription:
    subscription = Subscription(most)
    subscription.answer(None, None, at(position))
    return subscription


def test_the_answer_is_the_position_and_what_was_held_before_it_is_old() -> None:
    subscription = Subscription(MUCH)
    assert [subscription.take(pub(offset)) for offset in (2, 3)] == [False, False]
    assert subscription.answer(None, None, at(3)) == Subscribed(False, (), at(3))
    assert subscription.open() == []


def test_until_it_is_opened_what_follows_is_held() -> None:
    subscription = answered(3)
    assert [subscription.take(pub(offset)) for offset in (3, 4, 5)] == [False] * 3
    assert subscription.state is State.ANSWERED
    assert subscription.open() == [pub(4), pub(5)]
    assert subscription.take(pub(6))


def test_live_it_takes_what_is_behind_its_position() -> None:
    subscription = Subscription(MUCH)
    subscription.answer(at(1), read(2, 9), at(3))
    subscription.open()
    assert not subscription.caught_up(at(3))
    assert [subscription.take(pub(offset)) for offset in (4, 9, 10)] == [False, False, True]
    assert subscription.caught_up(at(9))


@pytest.mark.parametrize("top", [at(9), at(11), at(1, "new")])
def test_a_member_has_been_caught_up_with(top: Position) -> None:
    assert answered(9).caught_up(top)


def test_recovery_is_what_history_has_and_what_was_held_behind_it() -> None:
    subscription = Subscription(MUCH)
    for offset in (4, 5, 6):
        subscription.take(pub(offset))
    got = subscription.answer(at(2), read(3, 5), at(6))
    assert got == Subscribed(True, pubs(3, 6), at(6))
    assert subscription.open() == []


def test_nothing_missed_is_recovered() -> None:
    subscription = Subscription(MUCH)
    assert subscription.answer(at(6), History((), at(6)), at(6)) == Subscribed(True, (), at(6))


@pytest.mark.parametrize(
    ("since", "history", "top", "position"),
    [
        (at(2), read(4, 6), 6, at(6)),  # the history is not long enough
        (at(2), History((), at(6)), 6, at(6)),
        (at(2, "old"), History((), at(6)), 6, at(6)),
        (at(9), History((), at(6)), 6, at(6)),  # from the future
        (at(-1), read(1, 6), 6, at(6)),
        (at(2), read(3, 4), 6, at(6)),  # read at an engine that lags behind
        (at(2), History((), at(2)), 6, at(6)),
        (at(2, "new"), read(3, 4, "new"), 6, at(6)),  # the channel is not there yet
    ],
)
def test_what_is_not_exactly_what_was_missed_is_no_recovery(
    since: Position, history: History, top: int, position: Position
) -> None:
    subscription = Subscription(MUCH)
    assert subscription.answer(since, history, at(top)) == Subscribed(False, (), position)


def test_what_does_not_fit_into_half_of_the_buffer_is_no_recovery() -> None:
    for since, recovered in ((2, False), (3, True)):
        subscription = Subscription(4 * ONE)
        answer = subscription.answer(at(since), read(since + 1, 5), at(5))
        assert (answer.recovered, answer.position) == (recovered, at(5))
        assert answer.publications == (pubs(4, 5) if recovered else ())


@pytest.mark.parametrize(
    ("since", "history"),
    [
        (at(1), read(3, 6)),  # after a gap
        (at(9), read(1, 6)),  # ahead of the stream
        (at(3, "other"), read(1, 6)),  # of another one
    ],
)
def test_who_recovers_nothing_gets_the_newest(since: Position, history: History) -> None:
    subscription = Subscription(MUCH)
    subscription.take(pub(7))
    answer = subscription.answer(since, history, at(7), recent=3)
    assert answer == Subscribed(False, pubs(5, 7), at(7))


def test_what_was_held_before_a_loss_is_no_part_of_the_answer() -> None:
    subscription = Subscription(MUCH)
    subscription.take(pub(7))
    assert not subscription.lose(at(0, "new"))
    subscription.take(pub(1, "new"))
    expected = Subscribed(False, (), at(1, "new"))
    assert subscription.answer(at(6), read(7, 7), at(1, "new")) == expected
    assert subscription.open() == []


def test_what_was_held_for_the_accept_is_written_in_spite_of_a_loss() -> None:
    subscription = answered(3)
    subscription.take(pub(4))
    assert subscription.lose(at(0, "new"))
    subscription.take(pub(1, "new"))
    assert subscription.open() == [pub(4), pub(1, "new")]


def test_an_answer_that_was_not_written_yet_begins_after_a_loss() -> None:
    subscription = answered(3)
    subscription.take(pub(4))
    assert subscription.lose(at(0, "new"))
    subscription.answer_anew(at(0, "new"))
    subscription.take(pub(1, "new"))
    assert subscription.answered == Subscribed(False, (), at(0, "new"))
    assert subscription.open() == [pub(1, "new")]


@pytest.mark.parametrize(("lost", "told"), [(at(2), False), (at(3), False), (at(4), True)])
def test_who_has_what_the_channel_lost_is_not_told(lost: Position, told: bool) -> None:
    """Its history knew more than the broker has delivered."""
    assert answered(3).lose(lost) is told


def test_too_much_to_hold_is_an_overflow() -> None:
    subscription = answered(0, most=3 * ONE)
    for offset in (1, 2, 3):
        subscription.take(pub(offset))
    assert not subscription.overflowed
    subscription.take(pub(4))
    assert subscription.overflowed
    assert subscription.open() == []


def test_what_overflowed_while_joining_is_no_recovery() -> None:
    subscription = Subscription(2 * ONE)
    for offset in (1, 2, 3):
        subscription.take(pub(offset))
    assert subscription.overflowed
    assert not subscription.answer(at(0), read(1, 3), at(3)).recovered


# Both together, against a model of a broker whose engine breaks


class Engine:
    """A stream that drops, repeats and withholds deliveries, and sometimes begins anew."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.epoch = 0
        self.stream: list[Publication] = []
        self.retained = random.choice([0, 2, 5, 100])
        self.deliveries: deque[Publication] = deque()

    @property
    def top(self) -> Position:
        return at(len(self.stream), f"e{self.epoch}")

    def publish(self) -> None:
        publication = pub(len(self.stream) + 1, f"e{self.epoch}")
        self.stream.append(publication)
        chance = self.random.random()
        if chance < 0.9:
            self.deliveries.append(publication)
        if chance < 0.05:
            self.deliveries.append(publication)

    def flush(self) -> None:
        self.epoch += 1
        self.stream = []

    def history(self, since: Position) -> History:
        kept = self.stream[-self.retained :] if self.retained else []
        if since.epoch != f"e{self.epoch}":
            kept = []
        return History(tuple(each for each in kept if each.offset > since.offset), self.top)


class Member:
    """A member of the channel.

    Attributes:
        since: Its position before.
        told: Whether it is told of losses, and not only its handler.
        steps: Its answer's position, or the one recovered from, and what it was written.
        losses: The positions behind which it was told to go on.
    """

    def __init__(self, since: Position | None, told: bool) -> None:
        self.since = since
        self.told = told
        self.subscription = Subscription(MUCH)
        self.history: History | None = None
        self.steps: list[Step] = []
        self.losses: set[Position] = set()

    def lose(self, position: Position) -> None:
        if not self.told:
            self.losses.add(position)
        elif self.subscription.state is State.ANSWERED:
            self.subscription.answer_anew(position)
            self.steps = [position]
        else:
            self.steps.append(position)


def play(seed: int) -> None:
    """Whatever happens, a member gets each publication after its answer once and in order.

    A hole must have a loss before it, which its member was told of.
    """
    random = Random(seed)
    engine = Engine(random)
    continuity = Continuity(random.choice([4 * ONE, MUCH]))
    members: list[Member] = []
    asked: Position | None = None
    for _ in range(random.randrange(3)):
        engine.publish()
    answer = engine.top  # the broker's, which is a while on its way

    def pass_on(steps: list[Step]) -> None:
        for step in steps:
            for member in members:
                if isinstance(step, Position):
                    if member.subscription.lose(step):
                        member.lose(step)
                elif member.subscription.take(step):
                    member.steps.append(step)

    for _ in range(random.randrange(40, 120)):
        chance = random.random()
        if chance < 0.4:
            engine.publish()
        elif chance < 0.42:
            engine.flush()
        elif chance < 0.7:
            if engine.deliveries:
                publication = engine.deliveries.popleft()
                verdict = continuity.take(publication)
                if verdict is LOST:
                    pass_on([at(publication.offset - 1, publication.epoch), publication])
                elif verdict is NEXT:
                    pass_on([publication])
        elif chance < 0.8:
            if continuity.top is None:
                pass_on([*continuity.start(answer)])
            elif continuity.gap and asked is None:
                asked = continuity.top
                history = engine.history(asked)
            elif asked is not None:
                if continuity.gap and asked == continuity.top:
                    pass_on(continuity.fill(history))
                asked = None
        elif continuity.top is not None:
            follow(random, engine, members, continuity.top)
    for member in members:
        check(member, seed)


def follow(random: Random, engine: Engine, members: list[Member], top: Position) -> None:
    """Let a member come, or one that has come take its next step."""
    waiting = [each for each in members if each.subscription.state is not State.LIVE]
    if not waiting or random.random() < 0.3:
        since = at(random.randint(0, engine.top.offset), engine.top.epoch)
        members.append(Member(random.choice([None, since, top]), told=random.random() < 0.5))
        return
    member = random.choice(waiting)
    subscription = member.subscription
    if subscription.state is State.ANSWERED:
        member.steps += subscription.open()
    elif member.since is not None and member.history is None:
        member.history = engine.history(member.since)
    else:
        subscribed = subscription.answer(member.since, member.history, top)
        if subscribed.recovered:
            assert member.since is not None
            member.steps += [member.since, *subscribed.publications]
            ends = [member.since.offset, *(each.offset for each in subscribed.publications)]
            assert ends[-1] == subscribed.position.offset
        else:
            member.steps.append(subscribed.position)


def check(member: Member, seed: int) -> None:
    seen: set[Position] = set()
    last: Position | None = None
    for step in member.steps:
        if isinstance(step, Position):
            last = step
            continue
        assert last is not None, f"{seed}: a publication before the answer"
        behind = before(step)
        assert behind == last or behind in member.losses, f"{seed}: a hole, and not a word"
        last = at(step.offset, step.epoch)
        assert last not in seen, f"{seed}: twice"
        seen.add(last)


@pytest.mark.parametrize("block", range(4))
def test_whatever_an_engine_does_a_loss_is_told_and_nothing_comes_twice(block: int) -> None:
    for seed in range(block * 500, block * 500 + 500):
        play(seed)


# The newest publications, for a member that asks for no position


@pytest.mark.parametrize(
    ("history", "held", "top", "recent", "offsets", "position"),
    [
        (read(1, 5), (), 5, 3, [3, 4, 5], 5),
        (read(1, 5), (), 5, 9, [1, 2, 3, 4, 5], 5),
        (read(1, 5), (6, 7), 7, 3, [5, 6, 7], 7),  # published while it was read
        (read(1, 5), (4, 5, 6), 6, 3, [4, 5, 6], 6),  # some of it delivered before
        (read(1, 7), (4, 5), 5, 3, [5, 6, 7], 7),  # some of it still to be delivered
        (History((), at(5)), (), 5, 3, [], 5),  # nothing is kept
        (read(1, 5, "other"), (6,), 6, 3, [], 6),  # of a stream that was lost meanwhile
        (None, (6,), 6, 0, [], 6),
    ],
)
def test_the_newest_are_followed_by_all_that_is_live(
    history: History | None,
    held: tuple[int, ...],
    top: int,
    recent: int,
    offsets: list[int],
    position: int,
) -> None:
    joining = Subscription(MUCH)
    for offset in held:
        joining.take(pub(offset))
    answered = joining.answer(None, history, at(top), recent)
    assert [each.offset for each in answered.publications] == offsets
    assert (answered.recovered, answered.position) == (False, at(position))
    assert not joining.take(pub(position))
    assert joining.open() == []
    assert joining.take(pub(position + 1))
