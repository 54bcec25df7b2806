"""Decides about publications of a subscription without I/O: held, old, or after a gap.

Two state machines, without I/O, threads or an event loop:

    Continuity      one per followed channel: checks what a broker delivers, once for all members
    Subscription    one per member until it is live: what is in its answer, what comes after it

A live member needs no state machine: it is in a row of the fan-out, and gets whatever the
`Continuity` of its channel lets pass.
"""

from enum import IntEnum
from typing import TypeAlias

from msgspec import Struct

from chatserver.publication import History, Position, Publication, payload_size

__all__ = ["Continuity", "State", "Step", "Subscribed", "Subscription", "Verdict", "before"]

#: What is passed on of a channel: a publication, or, where something was lost, the position after
#: which the stream goes on.
Step: TypeAlias = Publication | Position

#: Bytes that a held publication counts for besides its payload.
OVERHEAD = 64


class Subscribed(Struct, frozen=True):
    """The answer to a subscription.

    Attributes:
        recovered: Whether `publications` are exactly what was missed since the position
            asked for; False, too, if none was asked for.
        publications: What was missed, or the newest publications if those were asked for, in
            order. Later publications are written to the connection.
        position: Where in the stream the live publications begin.
    """

    recovered: bool
    publications: tuple[Publication, ...]
    position: Position


class Verdict(IntEnum):
    """What a delivered publication means for the members of its channel."""

    NEXT = 0  # it follows the one before: write it
    OLD = 1  # delivered before: drop it
    HELD = 2  # undecided: the position, or what was missed, is being asked for
    GAP = 3  # as HELD, and what was missed is to be read from history now
    LOST = 4  # of another stream, or after a gap too large to hold: members are to be told


class Continuity:
    """The state of the deliveries of one followed channel.

    A broker delivers in the order of offsets. But after a failure of its engine, publications may
    be missing, come again, or belong to a stream that was begun anew.

    Args:
        most: Bytes that are held at most while a position or missed publications are read.

    Attributes:
        top: The position of the last publication that was passed on; None until the broker has
            told the stream's position.
        gap: Whether what was missed since `top` is to be read from history and given to `fill`.
    """

    __slots__ = ("_held", "_most", "_size", "gap", "top")

    def __init__(self, most: int) -> None:
        self.top: Position | None = None
        self._most = most
        self._held: list[Publication] = []
        self._size = 0
        self.gap: bool = False

    def start(self, position: Position) -> list[Publication]:
        """The broker has told the stream's position; returns what is to be passed on."""
        self.top = position
        passed: list[Publication] = []
        for step in self._release():
            if isinstance(step, Position):
                passed.clear()  # no member was answered yet, so none missed what came before
            else:
                passed.append(step)
        return passed

    def take(self, publication: Publication) -> Verdict:
        """Decide about a publication that the broker has delivered."""
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

    def compare(self, known: Position, top: Position) -> Verdict:
        """Decide about where the broker says that the stream stands.

        Args:
            known: `self.top` when the broker was asked.
            top: Its answer; deliveries may have come in between.

        Returns:
            OLD, HELD or GAP: as in `take`; LOST: the stream goes on after `top`.
        """
        if self.top is None:
            return Verdict.HELD
        if self.top.epoch != known.epoch:
            return Verdict.OLD  # a publication of the new stream came first
        if top.epoch != known.epoch:
            self.reset(top)
            return Verdict.LOST
        if top.offset <= self.top.offset:
            return Verdict.OLD
        self.gap = True  # or it is one already, and could not be read when it was found
        return Verdict.GAP

    def fill(self, history: History | None) -> list[Step]:
        """Go on after a gap, with what history has since `top`, or None if it can't be read.

        If history doesn't begin right after `top`, it goes on with the first publication after
        the gap that is known, from history or held.
        """
        top, first = self.top, self._held[0] if self._held else None
        assert top is not None, "a gap is behind a position"
        self.gap = False
        joins = history is not None and history.position.epoch == top.epoch
        read = history.publications if history is not None and joins else ()
        if read and (first is None or read[0].offset <= first.offset):
            self.top = Position(read[-1].offset, top.epoch)
            missed = [] if read[0].offset == top.offset + 1 else [before(read[0])]
            return [*missed, *read, *self._release()]
        if first is not None:
            self.top = before(first)
        elif history is None or (joins and history.position.offset <= top.offset):
            return []  # nothing is known of what was missed: the next `compare` asks again
        else:
            self.top = history.position
        return [self.top, *self._release()]

    def reset(self, position: Position) -> None:
        """The stream goes on at another position; drop what was held."""
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
        """Decide about what was held; after another gap it is held again."""
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
    """The state of a member while it joins a channel."""

    JOINING = 0  # the broker is being asked
    ANSWERED = 1  # its position is known; it can't be written to before its accept
    LIVE = 2  # publications after its position are written


class Subscription:
    """A member that joins a channel.

    Args:
        most: Bytes that are held for it at most. Beyond, it has `overflowed`: the broker or
            the accept took too long.

    Attributes:
        state: Its state.
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
        """Whether more came than can be held, so that something is missing."""
        return self._size > self._most

    def take(self, publication: Publication) -> bool:
        """Decide about a publication of the channel: whether it is written now."""
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

    def lose(self, position: Position) -> bool:
        """The channel has lost something, and goes on after `position`.

        Returns:
            Whether the member is to be told: it was answered, and the answer doesn't hold what
            was lost. An answer that is still to come begins after it.
        """
        if self.answered is None:
            self._held, self._size = [], 0
            return False
        return not self._holds(position)

    def answer_anew(self, position: Position) -> None:
        """Replace an answer that was not written yet, because of a loss: begin after that."""
        self.answered = Subscribed(False, (), position)
        self._held, self._size = [], 0

    def answer(
        self, since: Position | None, history: History | None, top: Position, recent: int = 0
    ) -> Subscribed:
        """The broker has answered: decide what is in the answer, and what comes after it.

        Args:
            since: The position that was asked for, or None. What was missed since is no more than
                fits into half of what may be held; else it is not recovered.
            history: What was read since then, or the newest publications.
            top: The position of the last publication that was passed on to the channel, and so
                to `take`.
            recent: How many of the newest publications were asked for, if there is no `since` or
                it is not recovered; no more than fit likewise.
        """
        self.answered = Subscribed(False, (), top)
        # If the history is of another stream than the channel's, a loss is about to follow, or
        # has come first.
        if history is not None and history.position.epoch == top.epoch:
            self.answered = self._merged(since, history, top, recent)
        self.state = State.ANSWERED
        self._held = [each for each in self._held if not self._is_old(each)]
        return self.answered

    def open(self) -> list[Publication]:
        """It can be written to from now on; returns what was held, to be written first."""
        self.state = State.LIVE
        held, self._held = self._held, []
        return held

    def caught_up(self, top: Position) -> bool:
        """Whether the channel, now at `top`, has reached its position."""
        assert self.answered is not None, "it was answered"
        position = self.answered.position
        return position.epoch != top.epoch or position.offset <= top.offset

    def _merged(
        self, since: Position | None, history: History, top: Position, recent: int
    ) -> Subscribed:
        """What was missed, if it is complete and fits, or else the newest."""
        publications, position = self._joined(history, top)
        newest = _newest(publications, self._most // 2)
        # They are in order, so they are complete if there are as many as were missed.
        if (
            since is not None
            and since.epoch == position.epoch
            and len(newest) == position.offset - since.offset
            and not self.overflowed
        ):
            return Subscribed(True, newest, position)
        return Subscribed(False, newest[-recent:] if recent > 0 else (), position)

    def _joined(self, history: History, top: Position) -> tuple[tuple[Publication, ...], Position]:
        """Put what was held behind what was read from history; with the position of the last."""
        read = history.position
        held = [each for each in self._held if each.offset > read.offset]
        # History may know what the broker is still to deliver here, or not yet what it has.
        position = max(read, top, key=lambda each: each.offset)
        return (*history.publications, *held), position

    def _is_old(self, publication: Publication) -> bool:
        return self._holds(Position(publication.offset, publication.epoch))

    def _holds(self, position: Position) -> bool:
        """Whether the answer reaches up to a position, or further."""
        if self.answered is None:
            return False
        end = self.answered.position
        return position.epoch == end.epoch and position.offset <= end.offset


def before(publication: Publication) -> Position:
    """The position right before a publication."""
    return Position(publication.offset - 1, publication.epoch)


def _newest(publications: tuple[Publication, ...], most: int) -> tuple[Publication, ...]:
    """The last publications that fit into so many bytes together."""
    count = 0
    for publication in reversed(publications):
        most -= payload_size(publication.data) + OVERHEAD
        if most < 0:
            break
        count += 1
    return publications[len(publications) - count :]
