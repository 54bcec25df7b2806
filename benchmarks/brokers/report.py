"""The goals for our brokers, and the tables."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from benchmarks.brokers.participants import ENGINES, PUBLISHERS, Participant, of, regime
from benchmarks.brokers.room import ROOM, WORKERS, name_of
from benchmarks.results import Results, Spread
from benchmarks.tables import Table, number, share, span

__all__ = ["Verdict", "tables", "verdicts"]

#: Of what the bare client's pipelined writes reach; of the latency of a bare publish; of what the
#: fastest of the others reaches; and of the processor time that one process needs.
THROUGHPUT, LATENCY, PEERS, PROCESSOR = 0.5, 1.5, 5.0, 1.15
NAMES = {"valkey": "Valkey", "postgres": "PostgreSQL"}


class Verdict(NamedTuple):
    """A goal, what was reached, and whether its median is enough."""

    engine: str
    what: str
    beside: str
    bound: float
    reached: Spread
    at_most: bool = False

    @property
    def met(self) -> bool:
        reached = self.reached.median
        return reached <= self.bound if self.at_most else reached >= self.bound


def verdicts(results: Results) -> list[Verdict]:
    """All goals of which both sides were measured."""
    return [verdict for engine in ENGINES for verdict in _verdicts(results, engine)]


def _verdicts(results: Results, engine: str) -> Iterator[Verdict]:
    ours, *others = of(engine)
    pipelined, plain, *peers = others
    most = regime(max(PUBLISHERS))
    what = f"acknowledged, {max(PUBLISHERS)} publishers"
    if found := results.ratio((ours.name, most), (pipelined.name, most)):
        yield Verdict(engine, what, pipelined.label, THROUGHPUT, found)
    fastest = max(peers, key=lambda peer: _median(results, peer, most), default=None)
    if fastest and (found := results.ratio((ours.name, most), (fastest.name, most))):
        yield Verdict(engine, what, f"{fastest.label}, the fastest peer", PEERS, found)
    for publishers in PUBLISHERS:
        sides = (ours.name, regime(publishers)), (plain.name, regime(publishers))
        if found := results.ratio(*sides, "p50"):
            what = f"latency (p50), {publishers} publishers"
            yield Verdict(engine, what, plain.label, LATENCY, found, at_most=True)
    sides = (name_of(engine, 2), ROOM.name), (name_of(engine, 1), ROOM.name)
    if found := results.ratio(*sides):
        yield Verdict(engine, "processor time of 2 workers", "1 process", PROCESSOR, found, True)


def _median(results: Results, participant: Participant, regime: str) -> float:
    found = results.values(participant.name, regime)
    return found.median if found else 0.0


def tables(results: Results) -> list[Table]:
    """The goals, a table for each engine, the room, and who was left out."""
    found = [_goals(results)]
    found += [_engine(results, engine) for engine in ENGINES]
    found.append(_rooms(results))
    if results.skipped:
        rows: list[Sequence[str]] = [[name, why] for name, why in results.skipped.items()]
        found.append(Table("Not measured", ["environment", "why"], rows))
    return [table for table in found if table.rows]


def _goals(results: Results) -> Table:
    table = Table(
        "Goals: ours as a multiple; median of the rounds (lowest–highest)",
        ["", "", "beside", "goal", "reached", ""],
    )
    for verdict in verdicts(results):
        table.rows.append(
            [
                *(NAMES[verdict.engine], verdict.what, verdict.beside),
                f"{'≤' if verdict.at_most else '≥'} {verdict.bound:g} ×",
                *(span(verdict.reached), "met" if verdict.met else "MISSED"),
            ]
        )
    return table


def _engine(results: Results, engine: str) -> Table:
    """One row for each participant, with a column of each kind for each number of publishers."""
    head = ["publishers at once"]
    head += [f"{count}: acknowledged/s" for count in PUBLISHERS]
    head += [f"{count}: ms, p50 (p99)" for count in PUBLISHERS]
    head += [f"{max(PUBLISHERS)}: µs of processors", "lost"]
    table = Table(f"{NAMES[engine]}: publications of 64 bytes", head)
    for participant in of(engine):
        if any(results.of(participant.name, regime(count)) for count in PUBLISHERS):
            table.rows.append(_row(results, participant))
            table.notes += _notes(results, participant)
    return table


def _row(results: Results, participant: Participant) -> list[str]:
    def median(count: int, name: str = "value") -> float | None:
        found = results.values(participant.name, regime(count), name)
        return found.median if found else None

    def latency(count: int) -> str:
        return f"{number(median(count, 'p50'))} ({number(median(count, 'p99'))})"

    most = max(PUBLISHERS)
    sides = [median(most, name) for name in ("publisher_us", "engine_us", "subscriber_us")]
    lost = [value for count in PUBLISHERS if (value := median(count, "lost")) is not None]
    return [
        participant.label,
        *(number(median(count)) for count in PUBLISHERS),
        *(
            f"{number(median(count, 'p50'))} ({number(median(count, 'p99'))})"
            for count in PUBLISHERS
        ),
        " + ".join(map(number, sides)),
        share(max(lost, default=None)),
    ]


def _notes(results: Results, participant: Participant) -> Iterator[str]:
    yield f"- {participant.label}: {participant.promise}."
    for count in PUBLISHERS:
        for problem in results.problems(participant.name, regime(count)):
            yield f"- {participant.label}, {count} publishers: {problem}."


def _rooms(results: Results) -> Table:
    table = Table(
        f"{ROOM.label[0].upper()}{ROOM.label[1:]}: processor seconds for 1,000 publications",
        ["", "1 process", "2 workers", "two ÷ one"],
    )
    for engine in ENGINES:
        one, two = ((name_of(engine, workers), ROOM.name) for workers in WORKERS)
        if not results.of(*one) and not results.of(*two):
            continue
        cells = [span(results.values(*side)) for side in (one, two)]
        table.rows.append([NAMES[engine], *cells, span(results.ratio(two, one))])
        for side in (one, two):
            table.notes += [f"- {side[0]}: {problem}." for problem in results.problems(*side)]
    return table
