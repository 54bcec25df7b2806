"""The goals for our server: multiples of another server's value, and absolute values."""

from typing import NamedTuple

from benchmarks.results import Results, Spread
from benchmarks.servers import BEFORE, OURS

__all__ = ["GOALS", "Goal", "Verdict", "compared", "verdicts"]


class Goal(NamedTuple):
    """A bound for our server, as a multiple of a peer's value; absolute if `peer` is empty.

    `beside` is the regime in which the peer is measured, if it is another one.
    """

    regime: str
    peer: str
    bound: float
    value: str = "value"
    at_most: bool = False
    beside: str = ""


def _row(regime: str, **peers: float) -> list[Goal]:
    return [Goal(regime, name.replace("_", "-"), bound) for name, bound in peers.items()]


# Not slower than before, except for the variation between runs.
AS_BEFORE = 0.95

GOALS = (
    *_row("one", bun=1.5, fastapi=3, c_single=1.5),
    *_row("eight", bun=1.1, fastapi=10, c_batched=1, nchan=3),
    *_row("eight-1k", bun=1.1, fastapi=10, c_batched=1, nchan=3),
    *_row("publishers", bun=2, fastapi=100, c_batched=1.1),
    *_row("thousand", bun=4, fastapi=200, c_batched=0.8),
    *_row("crowd", bun=1.7, fastapi=10),
    Goal("offered", "", 100),
    Goal("offered", "bun", 0.9, "p50", at_most=True),
    Goal("offered", "bun", 1, "p99", at_most=True),
    Goal("herd", "bun", 2, at_most=True),
    *_row("deflate", fastapi=18),
    Goal("deflate", OURS.name, 0.9, beside="eight"),
    Goal("deflate-1k", OURS.name, 0.9, beside="eight-1k"),
    *_row("accept", fastapi=3, websockets=1.3),
    *_row("echo", broadcaster=1.5, ws=0.85),
    Goal("idle", "", 10, at_most=True),
    Goal("rooms", BEFORE.name, AS_BEFORE),
    Goal("fifty", BEFORE.name, AS_BEFORE),
)


class Verdict(NamedTuple):
    """A goal, what was reached (None: not measured), and whether its median is enough."""

    goal: Goal
    reached: Spread | None
    met: bool | None


def compared(server: str, regime: str) -> bool:
    """Whether a goal needs this server's value in this regime."""
    return server == OURS.name or any(
        (server, regime) == (goal.peer, goal.beside or goal.regime) for goal in GOALS
    )


def verdicts(results: Results) -> list[Verdict]:
    """All goals, by the median of the rounds."""
    return [_verdict(results, goal) for goal in GOALS]


def _verdict(results: Results, goal: Goal) -> Verdict:
    found = (
        results.ratio((OURS.name, goal.regime), (goal.peer, goal.beside or goal.regime), goal.value)
        if goal.peer
        else results.values(OURS.name, goal.regime, goal.value)
    )
    if found is None:
        return Verdict(goal, None, None)
    enough = found.median <= goal.bound if goal.at_most else found.median >= goal.bound
    return Verdict(goal, found, enough)
