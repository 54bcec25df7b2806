"""Measurements, their file, and the statistics over the rounds."""

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

    `value` is in the regime's unit, and None if nothing could be measured; `problems` says why,
    or what else there is to know about it.
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
    """The spread of these values; None if there are none."""
    found = sorted(values)
    return Spread(statistics.median(found), found[0], found[-1]) if found else None


@dataclass
class Results:
    """All results of one run."""

    about: dict[str, Any] = field(default_factory=dict)  # machine, form, date
    versions: dict[str, str] = field(default_factory=dict)  # of each measured server
    skipped: dict[str, str] = field(default_factory=dict)  # servers left out, and why
    measurements: list[Measurement] = field(default_factory=list)

    def of(self, server: str, regime: str) -> list[Measurement]:
        """Measurements in the order of the rounds."""
        found = [m for m in self.measurements if (m.server, m.regime) == (server, regime)]
        return sorted(found, key=lambda measurement: measurement.round)

    def values(self, server: str, regime: str, name: str = "value") -> Spread | None:
        """Over the rounds in which it was measured; `name` is a field, or a key of `detail`."""
        found = (vars(m).get(name, m.detail.get(name)) for m in self.of(server, regime))
        return spread(value for value in found if value is not None)

    def ratio(
        self, ours: tuple[str, str], peers: tuple[str, str], name: str = "value"
    ) -> Spread | None:
        """The value of `ours` divided by that of `peers`, for rounds in which both have one.

        Each of the two is a server and a regime.
        """
        theirs = {m.round: getattr(m, name) for m in self.of(*peers)}
        return spread(
            value / their
            for m in self.of(*ours)
            if (value := getattr(m, name)) is not None and (their := theirs.get(m.round))
        )

    def problems(self, server: str, regime: str) -> list[str]:
        """The problems in their order, each once."""
        return list(dict.fromkeys(p for m in self.of(server, regime) for p in m.problems))

    def servers(self, among: Sequence[str]) -> list[str]:
        """The servers that have a measurement."""
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
