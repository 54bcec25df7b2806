"""Subscriptions, decided with values alone: what is held, what is old, what is a gap.

Two machines, without I/O, threads or an event loop:

    Continuity      one per followed channel: what a broker delivers, checked once for all
    Subscription    one per member, until it is live: what belongs to its answer, what follows it

A member that is live needs no machine: it stands in a row of the fan-out, and whatever the
`Continuity` of its channel lets pass is written to it.
"""

from enum import IntEnum
from typing import TypeAlias

from msgspec import Struct

from chatserver.publication import History, Position, Publication, payload_size

__all__ = ["Continuity", "State", "Step", "Subscribed", "Subscription", "Verdict", "before"]

#: What is passed on of a channel: a publication, or the position behind which the stream goes
#: on where something was lost.
Step: TypeAlias = Publication | Position

#: Bytes for which a held publication counts besides its payload.
OVERHEAD = 64


class Subscribed(Struct, frozen=True):
    """The answer to a subscription.

    Attributes:
        recovered: Whether `publications` are exactly what was missed since the position
            asked for; False too where none was asked for.
        publications: What was missed, or the newest ones where they were asked for, in order.
            Later ones are written to the connection.
        position: Where in the stream the live publications go on.
    """

    recovered: bool
    publications: tuple[Publication, ...]
    position: Position


class Verdict(IntEnum):
    """What a delivered publication is to the members of its channel."""

    NEXT = 0  # the one that follows: write it
    OLD = 1  # delivered before: drop it
    HELD = 2  # too early to tell: the position, or what was missed, is being asked for
    GAP = 3  # as HELD, and what was missed is to be read from history now
    LOST = 4  # of another stream, or behind a gap too large to hold: members are to be told


class Continuity:
    """Where the deliveries of one followed channel stand.

    A broker delivers in the order of offsets, but its engine may break: what was delivered
    while it was away is missing, delivered again, or of a stream that was begun anew.

    Args:
        most: Bytes that are held at most while a position or a gap is asked for.

    Attributes:
        top: The last publication that was passed on; None until the broker has said where the
            stream stands.
        gap: Whether what was missed is to be read from history since `top`, and given to `fill`.
    """

    __slots__ = ("_held", "_most", "_size", "gap", "top")

    def __init__(self, most: int) -> None:
        self.top: Position | None = None
        self._most = most
        self._held: list[Publication] = []
        self._size = 0
        self.gap: bool = False

    def start(self, position: Position) -> list[Publication]:
        """The broker has said where the stream stands; returns what is to be passed on."""
        self.top = position
        passed: list[Publication] = []
        for step in self._release():
            if isinstance(step, Position):
                passed.clear()  # nobody was answered yet, so nobody missed what came before
            else:
                passed.append(step)
        return passed

    def take(self, publication: Publication) -> Verdict:
        """Decide about what the broker has delivered."""
        top = self.top
        if top is None or self.gap:
            return self._hold(publication, Verdict.HELD)
        if publication.epoch != top.epoch:
            return self._lose(publication)
        if publication.offset <= top.offset:
            return Verdict.OLD
        if publication.offset > top.offset + 1:
            self.gap = True
            return self._hold(publication, Verdict.GAP)
        self.top = Position(publication.offset, publication.epoch)
        return Verdict.NEXT

    def fill(self, history: History | None) -> list[Step]:
        """Go on after a gap, with all that history has since `top`; with None it has nothing.

        Where that doesn't join on, it goes on with the first publication behind the gap that
        is known, be it from history or held.
        """
        top, first = self.top, self._held[0]
        assert top is not None, "a gap is behind a position"
        self.gap = False
        joins = history is not None and history.position.epoch == top.epoch
        read = history.publications if history is not None and joins else ()
        if not read or read[0].offset > first.offset:
            self.top = before(first)
            return [self.top, *self._release()]
        self.top = Position(read[-1].offset, top.epoch)
        missed = [] if read[0].offset == top.offset + 1 else [before(read[0])]
        return [*missed, *read, *self._release()]

    def reset(self, position: Position) -> None:
        """The stream goes on at another position; what was held is of no use."""
        self.top, self.gap = position, False
        self._held, self._size = [], 0

    def _hold(self, publication: Publication, verdict: Verdict) -> Verdict:
        self._size += payload_size(publication.data) + OVERHEAD
        if self._size > self._most:
            if self.top is not None:
                return self._lose(publication)
            # The newest one is enough to find out later that the others are missing.
            self._held, self._size = [], payload_size(publication.data) + OVERHEAD
        self._held.append(publication)
        return verdict

    def _lose(self, publication: Publication) -> Verdict:
        self.reset(Position(publication.offset, publication.epoch))
        return Verdict.LOST

    def _release(self) -> list[Step]:
        """What was held and follows the top; behind another gap it is held again."""
        held, self._held, self._size = self._held, [], 0
        steps: list[Step] = []
        for each in held:
            verdict = self.take(each)
            if verdict is Verdict.LOST:
                steps.append(before(each))
            if verdict in (Verdict.NEXT, Verdict.LOST):
                steps.append(each)
        return steps


class State(IntEnum):
    """Where a member stands on its way into a channel."""

    JOINING = 0  # the broker is being asked
    ANSWERED = 1  # its position is known; it can't be written to before its accept
    LIVE = 2  # what follows its position is written


class Subscription:
    """A member's way into a channel.

    Args:
        most: Bytes that are held for it at most. Beyond, it has `overflowed`: the broker, or
            the accept, took longer than we can wait.

    Attributes:
        state: Where it stands.
        answered: The answer, once there is one.
    """

    __slots__ = ("_held", "_most", "_size", "answered", "state")

    def __init__(self, most: int) -> None:
        self.state: State = State.JOINING
        self.answered: Subscribed | None = None
        self._held: list[Publication] = []
        self._most = most
        self._size = 0

    @property
    def overflowed(self) -> bool:
        """Whether more came than could be held, so that something is missing."""
        return self._size > self._most

    def take(self, publication: Publication) -> bool:
        """Decide about what was passed on to the channel: whether it is written now."""
        if self._is_old(publication):
            return False
        if self.state is State.LIVE:
            return True
        self._size += payload_size(publication.data) + OVERHEAD
        if self.overflowed:
            self._held.clear()
        else:
            self._held.append(publication)
        return False

    def lose(self) -> None:
        """Something was lost for the channel: an answer has to begin behind that."""
        if self.state is State.JOINING:
            self._held, self._size = [], 0

    def answer(
        self, since: Position | None, history: History | None, top: Position, recent: int = 0
    ) -> Subscribed:
        """The broker has answered: settle what belongs to the answer, and what follows it.

        Args:
            since: The position that was asked for, if any.
            history: What was read since then; where none was asked for, the newest ones.
            top: The last publication that was passed on to the channel, and so to `take`.
            recent: How many of the newest publications were asked for, in place of `since`.
        """
        self.answered = Subscribed(False, (), top)
        # A history of another stream than the channel's is about to be followed by a loss, or
        # was overtaken by one.
        if history is not None and history.position.epoch == top.epoch:
            if since is not None:
                self.answered = self._merged(since, history, top)
            elif recent:
                publications, position = self._joined(history, top)
                self.answered = Subscribed(False, publications[-recent:], position)
        self.state = State.ANSWERED
        self._held = [each for each in self._held if not self._is_old(each)]
        return self.answered

    def open(self) -> list[Publication]:
        """It can be written to from now on; what was held for it is to be written first."""
        self.state = State.LIVE
        held, self._held = self._held, []
        return held

    def caught_up(self, top: Position) -> bool:
        """Whether the channel, standing at `top`, has come to its position."""
        assert self.answered is not None, "it was answered"
        position = self.answered.position
        return position.epoch != top.epoch or position.offset <= top.offset

    def _merged(self, since: Position, history: History, top: Position) -> Subscribed:
        """What was missed: recovered where it is complete."""
        publications, position = self._joined(history, top)
        # They are in order, so they are complete if they are as many as were missed.
        recovered = len(publications) == position.offset - since.offset
        if recovered and since.epoch == position.epoch and not self.overflowed:
            return Subscribed(True, publications, position)
        return Subscribed(False, (), position)

    def _joined(self, history: History, top: Position) -> tuple[tuple[Publication, ...], Position]:
        """Put what was held behind what was read from history; with the position of the last."""
        read = history.position
        held = [each for each in self._held if each.offset > read.offset]
        # History may know what the broker is still to deliver here, or not yet what it has.
        position = max(read, top, key=lambda each: each.offset)
        return (*history.publications, *held), position

    def _is_old(self, publication: Publication) -> bool:
        if self.answered is None:
            return False
        position = self.answered.position
        return publication.epoch == position.epoch and publication.offset <= position.offset


def before(publication: Publication) -> Position:
    """The position behind which a publication comes."""
    return Position(publication.offset - 1, publication.epoch)
