"""Break things under load, many times, and judge what clients recorded: `make chaos`.

    make chaos                                        all runs, and their tables in docs/chaos.md
    make chaos ARGS="--only redis"                    of one broker
    make chaos ARGS="--only redis --runs 20"          fewer; the table is only printed
    make chaos ARGS="--only redis --fault 'the way cut' --seed 17 --runs 1"      one run again

Each run is made of its kind of fault and its seed, but what several processes do at the same time
is not: a run that found something may have to be repeated.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.engines import Cluster, Postgres, Valkey
from tests.faults import CLUSTER, ENGINE, KINDS, Field, Store, Verdict, kinds, run
from tools.interrupts import exit_with

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "chaos.md"


class Setup(NamedTuple):
    """An engine that is harmed.

    Attributes:
        title: What it is, for the page.
        make: Makes it.
        harms: What its kinds of faults harm.
        runs: How many runs it takes.
    """

    title: str
    make: Callable[[], Store]
    harms: str
    runs: int


KEPT = "appendonly yes", "appendfsync always"
SETUPS = {
    "redis": Setup(f"Valkey with `{'`, `'.join(KEPT)}`", lambda: Valkey(*KEPT), ENGINE, 200),
    "postgres": Setup("PostgreSQL 18", Postgres, ENGINE, 200),
    "cluster": Setup(
        "A Valkey Cluster of three nodes, configured likewise",
        lambda: Cluster(*KEPT, "cluster-require-full-coverage no"),
        CLUSTER,
        60,
    ),
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
    for name in options.only or SETUPS:
        setup = SETUPS[name]
        runs = options.runs or setup.runs
        print(f"{setup.title}: seeds {options.seed} to {options.seed + runs - 1}")
        faults = options.fault or kinds(setup.harms)
        verdicts = asyncio.run(_break(setup, faults, options.seed, runs))
        failed |= any(verdict.violations or verdict.complaints for verdict in verdicts)
        table = _table(verdicts)
        print(f"\n{table}")
        if runs >= setup.runs and not options.fault:
            _write(setup.title, table)
    return int(failed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos", description="Break things under load.")
    parser.add_argument("--only", action="append", choices=SETUPS, help="this engine only")
    parser.add_argument("--runs", type=int, help="fewer or more than are needed for the page")
    parser.add_argument("--seed", type=int, default=1, help="of the first run; 1 by default")
    parser.add_argument("--fault", action="append", choices=KINDS, help="this fault only")
    return parser.parse_args()


def _write(title: str, table: str) -> None:
    """Put a table into the page, in place of the one that was there."""
    page = PAGE.read_text("utf-8") if PAGE.exists() else ""
    parts = dict(part.split("\n\n", 1) for part in page.split("\n## ")[1:])
    parts[title] = table
    titles = [setup.title for setup in SETUPS.values() if setup.title in parts]
    sections = [f"\n## {title}\n\n{parts[title].strip()}\n" for title in titles]
    PAGE.write_text(INTRODUCTION + "".join(sections), "utf-8")


async def _break(setup: Setup, faults: Sequence[str], first: int, runs: int) -> list[Verdict]:
    """Do all runs on one field, the kinds of faults in turn."""
    verdicts: list[Verdict] = []
    began = time.monotonic()
    with Field(setup.make) as field:
        for number in range(runs):
            fault, seed = faults[number % len(faults)], first + number
            _show(number, runs, began, verdicts, f"{fault}, seed {seed}")
            verdicts.append(await run(field, fault, seed))
            _report(verdicts[-1])
            await asyncio.to_thread(field.heal)
    _show(runs, runs, began, verdicts, "done")
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
    exit_with(main)
