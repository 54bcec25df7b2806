"""The goals: how many times a peer's value ours is to be, and what ours is to be in itself."""

from typing import NamedTuple

from benchmarks.results import Results
from benchmarks.servers import OURS

__all__ = ["GOALS", "Goal", "Verdict", "verdicts"]


class Goal(NamedTuple):
    """`peer` is empty where the goal is a number of its own."""

    regime: str
    peer: str
    bound: float
    value: str = "value"
    at_most: bool = False


def _row(regime: str, **peers: float) -> list[Goal]:
    return [Goal(regime, name.replace("_", "-"), bound) for name, bound in peers.items()]


GOALS = (
    *_row("one", fastapi=1.5, websockets=1.2, ws=1.2, nchan=1.0, c_batched=0.85),
    *_row("eight", fastapi=6, websockets=5, ws=5, nchan=1.5, c_batched=0.75),
    *_row("deflate", fastapi=12, websockets=10, ws=25),
    *_row("publishers", fastapi=45, websockets=35, ws=35, nchan=8, c_batched=0.6),
    Goal("offered", "", 100),
    Goal("offered", "", 25, "p99", at_most=True),
    *_row("echo", fastapi=1.5, websockets=1.3, ws=0.85),
    Goal("idle", "", 12, at_most=True),
    Goal("idle-deflate", "", 12, at_most=True),
    *_row("accept", fastapi=3.5, websockets=1.4),
)


class Verdict(NamedTuple):
    """A goal, what was reached (None: not measured), and whether that is enough."""

    goal: Goal
    reached: float | None
    met: bool | None


def verdicts(results: Results) -> list[Verdict]:
    """All goals, by the median of the rounds."""
    return [_verdict(results, goal) for goal in GOALS]


def _verdict(results: Results, goal: Goal) -> Verdict:
    found = (
        results.ratio(goal.regime, OURS.name, goal.peer)
        if goal.peer
        else results.values(OURS.name, goal.regime, goal.value)
    )
    if found is None:
        return Verdict(goal, None, None)
    reached = found.median
    return Verdict(goal, reached, reached <= goal.bound if goal.at_most else reached >= goal.bound)
