"""Measurements, how they are kept, and the statistics over the rounds."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Measurement", "Results", "Spread", "spread"]


@dataclass
class Measurement:
    """One server in one regime in one round.

    `value` is in the regime's unit, and None where nothing could be measured; `problems` says why,
    or what else is to be known about it.
    """

    server: str
    regime: str
    round: int
    value: float | None
    p50: float | None = None  # milliseconds
    p99: float | None = None
    generator_cpu: float | None = None  # share of its core
    server_cpu: float | None = None
    detail: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Spread(NamedTuple):
    """The median of some rounds, with the lowest and the highest."""

    median: float
    low: float
    high: float


def spread(values: Iterable[float]) -> Spread | None:
    """None if there are no values."""
    found = sorted(values)
    return Spread(statistics.median(found), found[0], found[-1]) if found else None


@dataclass
class Results:
    """Everything that one run has found."""

    about: dict[str, Any] = field(default_factory=dict)  # machine, form, date
    versions: dict[str, str] = field(default_factory=dict)  # of each server that was measured
    skipped: dict[str, str] = field(default_factory=dict)  # servers that were not, and why
    measurements: list[Measurement] = field(default_factory=list)

    def of(self, server: str, regime: str) -> list[Measurement]:
        """In the order of the rounds."""
        found = [m for m in self.measurements if (m.server, m.regime) == (server, regime)]
        return sorted(found, key=lambda measurement: measurement.round)

    def values(self, server: str, regime: str, name: str = "value") -> Spread | None:
        """Over the rounds in which it was measured; `name` is a field, or a key of `detail`."""
        found = (vars(m).get(name, m.detail.get(name)) for m in self.of(server, regime))
        return spread(value for value in found if value is not None)

    def ratio(
        self, ours: tuple[str, str], peers: tuple[str, str], name: str = "value"
    ) -> Spread | None:
        """How many times the one's value the other's is, by rounds in which both have one.

        Both are a server and a regime.
        """
        theirs = {m.round: getattr(m, name) for m in self.of(*peers)}
        return spread(
            value / their
            for m in self.of(*ours)
            if (value := getattr(m, name)) is not None and (their := theirs.get(m.round))
        )

    def problems(self, server: str, regime: str) -> list[str]:
        """Each once, in the order in which they came up."""
        return list(dict.fromkeys(p for m in self.of(server, regime) for p in m.problems))

    def servers(self, among: Sequence[str]) -> list[str]:
        """Those that have a measurement."""
        have = {measurement.server for measurement in self.measurements}
        return [name for name in among if name in have]

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", "utf-8")

    @classmethod
    def load(cls, path: Path) -> "Results":
        data = json.loads(path.read_text("utf-8"))
        data["measurements"] = [Measurement(**each) for each in data["measurements"]]
        return cls(**data)
