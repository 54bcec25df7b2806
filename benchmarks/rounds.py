"""A whole run: rounds; in each round every regime; in each regime every server in turn.

Servers that are measured one after the other in one regime find the machine in the same state; a
ratio is made from two values of one round. Every other round is in reverse order, so that no server
always comes first.
"""

import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from benchmarks import environments, goals
from benchmarks.environments import REPOSITORY, Unavailable
from benchmarks.process import cores
from benchmarks.regimes import QUICK, Form, Regime
from benchmarks.results import Results
from benchmarks.servers import Server
from benchmarks.sitting import measure

__all__ = ["Progress", "about", "asked", "prepare_all", "run"]


class Progress(Protocol):
    """Gets the progress of a run."""

    def begin(self, total: int) -> None:
        """A run with so many steps begins."""

    def tell(self, text: str) -> None:
        """The step that begins now."""

    def step(self) -> None:
        """One step is done."""


def asked(server: Server, regime: Regime, form: Form) -> bool:
    """Whether the form measures the server in this regime.

    The quick form measures ours, and of the others only what a goal needs.
    """
    return (
        (server.compression or not regime.compression)
        and (server.echo or regime.kind not in ("echo", "herd"))
        and (server.crowds or not regime.crowded)
        and (server.kind == "ours" or not regime.program)
        and (form.name != QUICK.name or goals.compared(server.name, regime.name))
    )


def prepare_all(servers: Sequence[Server], results: Results, progress: Progress) -> list[Server]:
    """Install what they need, and return them; servers that can't be had are noted as skipped."""
    there = []
    for server in servers:
        progress.tell(f"installing {server.label}")
        try:
            environments.prepare(server)
            results.versions[server.name] = environments.version(server)
            there.append(server)
        except Unavailable as error:
            results.skipped[server.name] = str(error)
    return there


def run(
    servers: Sequence[Server],
    regimes: Sequence[Regime],
    form: Form,
    progress: Progress,
    saved: Callable[[Results], None] = lambda results: None,
) -> Results:
    """Measure them all. `saved` gets all results so far after each round, in case the next fails.

    Raises:
        Unavailable: The generator can't be compiled.
    """
    results = Results(about=about(form))
    there = prepare_all(servers, results, progress)
    cells = [
        (regime, server) for regime in regimes for server in there if asked(server, regime, form)
    ]
    progress.begin(form.rounds * len(cells))
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for number in range(form.rounds):
            for regime, server in cells if number % 2 == 0 else reversed(cells):
                progress.tell(f"round {number + 1}: {regime.label}: {server.label}")
                measurement = measure(server, regime, form, Path(folder))
                measurement.round = number
                results.measurements.append(measurement)
                progress.step()
            results.about["seconds"] = round(time.monotonic() - start)
            results.about["rounds"] = number + 1
            saved(results)
    return results


def about(form: Form) -> dict[str, Any]:
    """The machine, the code, and the form of the run."""
    server, generator = cores()
    return {
        "form": form.name,
        "rounds": form.rounds,
        "seconds_each": form.seconds,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "server_core": server,
        "generator_core": generator,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": _commit(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    """The commit that was measured; empty outside a checkout."""
    arguments = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(
            arguments, cwd=REPOSITORY, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
