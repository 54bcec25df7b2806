"""One read of a channel's history serves all who ask at the same moment.

When a server comes back, its clients do, too, each with its own position. What they missed is the
end of the same history, so it is read once, from the earliest position on.
"""

from collections.abc import Sequence

from msgspec import structs

from chatserver.brokers.engine import Answers, Interrupted, Read
from chatserver.errors import BrokerUnavailable
from chatserver.publication import History

__all__ = ["answers_of", "shared"]


def shared(reads: Sequence[Read]) -> list[Read]:
    """The fewest reads that answer all of these."""
    merged: dict[Read, Read] = {}
    for read in reads:
        key = _key(read)
        known = merged.get(key)
        if known is None or (known.since and read.since and read.since.offset < known.since.offset):
            merged[key] = read
    return list(merged.values())


def answers_of(
    reads: Sequence[Read], distinct: Sequence[Read], answers: Answers[History]
) -> list[History | Interrupted | BrokerUnavailable]:
    """The answer of each read.

    Args:
        reads: What was asked for.
        distinct: What `shared` has made of it.
        answers: The engine's answers to that.
    """
    found = {_key(read): answer for read, answer in zip(distinct, answers, strict=True)}
    return [_part(read, found[_key(read)]) for read in reads]


def _key(read: Read) -> Read:
    """What reads that can be shared have in common: all but where they begin."""
    if read.since is None or read.reverse or read.limit is not None:
        return read
    return structs.replace(read, since=structs.replace(read.since, offset=0))


def _part(
    read: Read, answer: History | Interrupted | BrokerUnavailable
) -> History | Interrupted | BrokerUnavailable:
    if not isinstance(answer, History) or read.since is None or read.reverse:
        return answer
    since = read.since.offset
    publications = answer.publications
    if not publications or publications[0].offset > since:
        return answer
    later = tuple(each for each in publications if each.offset > since)
    return structs.replace(answer, publications=later)
