"""Reads of history that are shared by all who ask at the same moment."""

from random import Random

import pytest

from chatserver.brokers.engine import Interrupted, Read
from chatserver.brokers.reads import answers_of, shared
from chatserver.publication import History, Position, Publication

TOP = Position(100, "e")
STREAM = tuple(Publication("a", f"{offset}", offset, "e") for offset in range(51, 101))


def engine(read: Read) -> History:
    """What an engine answers to one read."""
    found = STREAM
    if read.since is not None:
        if read.since.epoch != TOP.epoch:
            return History((), TOP)
        since = read.since.offset
        later = (each for each in found if each.offset > since)
        earlier = (each for each in found if each.offset < since)
        found = tuple(earlier if read.reverse else later)
    if read.reverse:
        found = found[::-1]
    return History(found if read.limit is None else found[: read.limit], TOP)


def test_two_thousand_who_come_back_are_one_read() -> None:
    reads = [Read("a", 60.0, Position(offset % 100, "e")) for offset in range(2000)]
    assert shared(reads) == [Read("a", 60.0, Position(0, "e"))]


@pytest.mark.parametrize("seed", range(20))
def test_each_gets_what_it_would_have_got_alone(seed: int) -> None:
    random = Random(seed)

    def read() -> Read:
        epoch = random.choice(["e", "e", "e", "another"])
        since = random.choice([None, Position(random.randint(0, 105), epoch)])
        limit = random.choice([None, None, 0, 3])
        return Read("a", 60.0, since, limit, random.random() < 0.2)

    reads = [read() for _ in range(random.randint(1, 30))]
    distinct = shared(reads)
    answers = answers_of(reads, distinct, [engine(each) for each in distinct])
    assert answers == [engine(each) for each in reads]
    assert len(distinct) <= len(set(reads))


def test_an_error_is_the_answer_of_all_who_share_it() -> None:
    reads = [Read("a", 60.0, Position(1, "e")), Read("a", 60.0, Position(2, "e"))]
    error = Interrupted("gone")
    assert answers_of(reads, shared(reads), [error]) == [error, error]
