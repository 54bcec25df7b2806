"""Results as tables: for the terminal, and as Markdown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks import regimes, servers
from benchmarks.goals import Verdict, verdicts
from benchmarks.results import Results, Spread

__all__ = ["Table", "markdown", "number", "plain", "share", "span", "summary", "tables"]

GAP = "  "
NONE = "–"
USUAL = {
    "p50": "p50 ms",
    "p99": "p99 ms",
    "server_cpu": "server CPU",
    "generator_cpu": "generator CPU",
}
# Columns besides value and ratio, by the kind of the regime.
COLUMNS = {
    "drive": USUAL,
    "echo": USUAL,
    "idle": {"fresh": "before its first message"},
    "accept": {"generator_cpu": "generator CPU"},
    "herd": {"p99": "longest", "generator_cpu": "generator CPU"},
}
# The columns of the summary: a regime each, and the unit of its values.
BRIEF = {
    "one": ("one in flight", 1000.0),
    "eight": ("8 in flight", 1000.0),
    "deflate": ("8, compressed", 1000.0),
    "publishers": ("100 publishers", 1000.0),
    "thousand": ("1,000 publishers", 1000.0),
    "crowd": ("10,000 clients", 1000.0),
    "echo": ("echoes", 1000.0),
    "accept": ("accepted", 1000.0),
    "idle": ("KB each", 1.0),
    "idle-deflate": ("KB, compressed", 1.0),
    "offered": ("% of 1,000/s", 1.0),
    "herd": ("ms among 2,000", 1.0),
}


@dataclass
class Table:
    """Rows of text below a head; the first column is aligned left, the others right."""

    title: str
    head: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def number(value: float | None) -> str:
    """A number with three significant digits; a dash for None."""
    if value is None:
        return NONE
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def plain(table: Table) -> str:
    """The table as text, for the terminal."""
    lines = [table.head, *table.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.head))]

    def laid(line: Sequence[str]) -> str:
        first = line[0].ljust(widths[0])
        rest = [text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True)]
        return GAP.join([first, *rest]).rstrip()

    body = [laid(table.head), "─" * len(laid(table.head)), *map(laid, table.rows)]
    return "\n".join([table.title, *body, *table.notes])


def markdown(table: Table) -> str:
    """The table as Markdown."""
    rule = ["---"] + ["---:"] * (len(table.head) - 1)
    body = ["| " + " | ".join(line) + " |" for line in [table.head, rule, *table.rows]]
    notes = [f"\n{note}" for note in table.notes]
    return "\n".join([f"### {table.title}\n", *body, *notes])


def tables(results: Results) -> list[Table]:
    """The summary, the goals, one table for each regime, and the servers that were left out."""
    found = [summary(results), _goals(results)]
    for regime in regimes.REGIMES:
        table = _regime(results, regime)
        if table.rows:
            found.append(table)
    if results.skipped:
        found.append(_skipped(results))
    return found


def summary(results: Results) -> Table:
    """All servers and regimes in one table, by their medians: the README shows it."""
    shown = [name for name in BRIEF if any(m.regime == name for m in results.measurements)]
    table = Table("In brief", ["thousands a second", *(BRIEF[name][0] for name in shown)])
    for server in servers.SERVERS:
        found = [(results.values(server.name, name), BRIEF[name][1]) for name in shown]
        if any(value for value, _ in found):
            cells = [number(value.median / unit if value else None) for value, unit in found]
            table.rows.append([server.label, *cells])
    return table


def span(found: Spread | None, show: Callable[[float | None], str] = number) -> str:
    """The median, and in brackets the lowest and the highest if they differ from it."""
    if found is None:
        return NONE
    if show(found.low) == show(found.high):
        return show(found.median)
    return f"{show(found.median)} ({show(found.low)}–{show(found.high)})"


def share(value: float | None) -> str:
    """A share as percent; a dash for None."""
    return NONE if value is None else f"{value:.0%}"


def _goals(results: Results) -> Table:
    table = Table(
        "Goals: ours as a multiple of the peer; median of the rounds (lowest–highest)",
        ["regime", "beside", "goal", "reached", ""],
    )
    for verdict in verdicts(results):
        if verdict.reached is not None:
            table.rows.append(_goal(results, verdict))
    return table


def _goal(results: Results, verdict: Verdict) -> list[str]:
    goal = verdict.goal
    unit = "×" if goal.peer else regimes.BY_NAME[goal.regime].unit
    sides = [(servers.OURS.name, goal.regime), (goal.peer, goal.beside or goal.regime)]
    busy = any("generator busy" in results.problems(*side) for side in sides)
    return [
        regimes.BY_NAME[goal.regime].label + (f", {goal.value}" if goal.value != "value" else ""),
        regimes.BY_NAME[goal.beside].label
        if goal.beside
        else servers.BY_NAME[goal.peer].label
        if goal.peer
        else "",
        f"{'≤' if goal.at_most else '≥'} {goal.bound:g} {unit}",
        span(verdict.reached),
        ("met" if verdict.met else "MISSED") + (", generator busy" if busy else ""),
    ]


def _regime(results: Results, regime: regimes.Regime) -> Table:
    table = Table(
        f"{regime.label} [{regime.unit}]",
        ["server", "value", "ours ÷ it", *COLUMNS[regime.kind].values()],
    )
    for server in servers.SERVERS:
        if results.of(server.name, regime.name):
            table.rows.append(_row(results, server, regime))
            problems = results.problems(server.name, regime.name)
            if problems:
                table.notes.append(f"{server.label}: {'; '.join(problems)}.")
    return table


def _row(results: Results, server: servers.Server, regime: regimes.Regime) -> list[str]:
    def values(name: str) -> Spread | None:
        return results.values(server.name, regime.name, name)

    ratio = None
    if server is not servers.OURS:
        ratio = results.ratio((servers.OURS.name, regime.name), (server.name, regime.name))
    return [
        server.label,
        span(values("value")),
        span(ratio),
        *(
            (share if name.endswith("cpu") else number)(
                found.median if (found := values(name)) else None
            )
            for name in COLUMNS[regime.kind]
        ),
    ]


def _skipped(results: Results) -> Table:
    rows: list[Sequence[str]] = [
        [servers.BY_NAME[name].label, why] for name, why in results.skipped.items()
    ]
    return Table("Not measured", ["server", "why"], rows)
