"""Break things under load, many times, and judge what clients recorded: `make chaos`.

    make chaos                                        every broker, and the table in docs/chaos.md
    make chaos ARGS="--only redis --runs 20"          fewer; the table is only printed
    make chaos ARGS="--only redis --fault 'way cut' --seed 17 --runs 1"    one run again

Each run is made of its kind of fault and its seed, but what several processes do at the same time
is not: a run that found something may have to be repeated.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.engines import Engine, Postgres, Valkey
from tests.faults import Field, Verdict, kinds, run

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "chaos.md"
#: Runs per broker.
RUNS = 200

#: By the broker's name: its title, and what makes its engine.
ENGINES: dict[str, tuple[str, Callable[[], Engine]]] = {
    "redis": (
        "Valkey, `appendonly yes`, `appendfsync always`",
        lambda: Valkey("appendonly yes", "appendfsync always"),
    ),
    "postgres": ("PostgreSQL 18, `synchronous_commit = on`", Postgres),
}

INTRODUCTION = """\
# Under faults

<!-- Written by `make chaos`. -->

`make chaos` runs three servers and an engine as processes of their own, with a TCP proxy between
them. In each run five clients publish to three channels, as fast as they are answered, and eight
clients subscribe. Something is broken meanwhile. Clients connect to another server when theirs is
gone, ask for what they have missed, and publish again with the same id until they get an answer.
A checker then reads what all of them have recorded, and finds whatever must not have happened:
an acknowledged publication that is missing, twice or out of order; two clients that disagree on
what an offset holds; a recovery that is not complete; a delivery that nobody published; a false
acknowledgement. `tests/checker.py` has the rules, and `tests/faults.py` the faults.

Where a fault takes the engine's data away, publications are lost. Then what counts is that every
subscriber is told: it appears under "not recovered". SIGKILL is no power loss: what a process has
written is in the system's memory, and survives its end.

*Again*: how often a publisher had no answer, and published again. *Recovered*: how often a
subscriber came back and got exactly what it had missed. *Resumed*: seconds from the end of the
fault until the last subscriber had got something new, in the slowest run. *Away*: seconds that the
slowest client took to be subscribed again after its connection had ended.
"""
COLUMNS = (
    *("Fault", "Runs", "Published", "Again", "Delivered", "Recovered", "Not recovered"),
    *("Resumed", "Away", "Violations"),
)


def main() -> int:
    options = _options()
    failed = False
    sections = []
    for name in options.only or ENGINES:
        title, make = ENGINES[name]
        print(f"{title}: seeds {options.seed} to {options.seed + options.runs - 1}")
        verdicts = asyncio.run(_break(make, options.fault or kinds(), options))
        failed |= any(verdict.violations or verdict.complaints for verdict in verdicts)
        sections.append(f"\n## {title}\n\n{_table(verdicts)}")
        print(sections[-1])
    if not options.only and not options.fault:
        PAGE.write_text(INTRODUCTION + "".join(sections), "utf-8")
    return int(failed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=RUNS, help=f"per broker; {RUNS} by default")
    parser.add_argument("--seed", type=int, default=1, help="of the first run; 1 by default")
    parser.add_argument("--only", action="append", choices=ENGINES, help="this broker only")
    parser.add_argument("--fault", action="append", choices=kinds(), help="this fault only")
    return parser.parse_args()


async def _break(
    make: Callable[[], Engine], faults: Sequence[str], options: argparse.Namespace
) -> list[Verdict]:
    """Do all runs on one field, the kinds of faults in turn."""
    verdicts: list[Verdict] = []
    began = time.monotonic()
    with Field(make) as field:
        for number in range(options.runs):
            fault, seed = faults[number % len(faults)], options.seed + number
            _show(number, options.runs, began, verdicts, f"{fault}, seed {seed}")
            verdicts.append(await run(field, fault, seed))
            _report(verdicts[-1])
            await asyncio.to_thread(field.heal)
    _show(options.runs, options.runs, began, verdicts, "done")
    print()
    return verdicts


def _show(done: int, runs: int, began: float, verdicts: Sequence[Verdict], what: str) -> None:
    """Draw the progress bar."""
    width = 30
    filled = width * done // max(runs, 1)
    violations = sum(len(verdict.violations) for verdict in verdicts)
    minutes, seconds = divmod(int(time.monotonic() - began), 60)
    bar = "#" * filled + "." * (width - filled)
    line = f"[{bar}] {done}/{runs} {minutes}:{seconds:02} violations: {violations}  {what}"
    print(f"\r{line:<110}", end="" if sys.stdout.isatty() else "\n", flush=True)


def _report(verdict: Verdict) -> None:
    """Say what a run has found, if anything."""
    found = [*map(str, verdict.violations), *verdict.complaints]
    if found:
        print(f"\n{verdict.fault}, seed {verdict.seed}: {len(found)} found")
        for sentence in found[:20]:
            print(f"  {sentence}")


def _table(verdicts: Sequence[Verdict]) -> str:
    by_fault: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        by_fault.setdefault(verdict.fault, []).append(verdict)
    rows = [_row(fault, some) for fault, some in by_fault.items()]
    rows.append(_row("**all**", verdicts))
    head = [COLUMNS, ["---", *["---:"] * (len(COLUMNS) - 1)]]
    return "".join(f"| {' | '.join(row)} |\n" for row in [*head, *rows])


def _row(fault: str, verdicts: Sequence[Verdict]) -> list[str]:
    def total(count: Callable[[Verdict], int]) -> str:
        return f"{sum(map(count, verdicts)):,}"

    return [
        fault,
        f"{len(verdicts)}",
        total(lambda verdict: verdict.published),
        total(lambda verdict: verdict.again),
        total(lambda verdict: verdict.delivered),
        total(lambda verdict: verdict.recovered),
        total(lambda verdict: verdict.unrecovered),
        f"{max(verdict.resumed for verdict in verdicts):.1f} s",
        f"{max(verdict.away for verdict in verdicts):.1f} s",
        total(lambda verdict: len(verdict.violations) + len(verdict.complaints)),
    ]


if __name__ == "__main__":
    sys.exit(main())
