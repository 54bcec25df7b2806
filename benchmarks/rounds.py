"""A whole run: rounds, and in each of them every server in turn.

Measured one after the other within a round, two servers meet the same machine; a ratio is made of
the two values of one round. Every other round goes backwards, so that none always comes first.
"""

import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from benchmarks import environments
from benchmarks.environments import REPOSITORY, Unavailable
from benchmarks.load import Load
from benchmarks.process import cores
from benchmarks.regimes import QUICK, TOO_SLOW, Form, Regime
from benchmarks.results import Measurement, Results
from benchmarks.servers import Server
from benchmarks.sitting import sit

__all__ = ["Progress", "about", "cells", "prepare_all", "run"]


class Progress(Protocol):
    """What is told while it goes on."""

    def begin(self, total: int) -> None:
        """So many steps are to come."""

    def tell(self, text: str) -> None:
        """This is done now."""

    def step(self) -> None:
        """One step is done."""


def cells(server: Server, regimes: Iterable[Regime], form: Form) -> list[Regime]:
    """The regimes that this server has anything to say to, and the form has time for."""
    return [
        regime
        for regime in regimes
        if (server.compression or not regime.compression)
        and (server.echo or regime.kind != "echo")
        and (form.name != QUICK.name or (server.name, regime.name) not in TOO_SLOW)
    ]


def prepare_all(servers: Sequence[Server], results: Results, progress: Progress) -> list[Server]:
    """Make what they need; what can't be had here is noted as skipped. Returns the others."""
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
    """Measure them all. `saved` gets what there is after each round, should the next one fail.

    Raises:
        Unavailable: The generator can't be made.
    """
    results = Results(about=about(form))
    there = prepare_all(servers, results, progress)
    progress.begin(form.rounds * sum(len(cells(server, regimes, form)) for server in there))
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        for number in range(form.rounds):
            for server in there if number % 2 == 0 else reversed(there):
                results.measurements += _both(
                    server, cells(server, regimes, form), form, number, folder, progress
                )
            results.about["seconds"] = round(time.monotonic() - start)
            results.about["rounds"] = number + 1
            saved(results)
    return results


def _both(
    server: Server, regimes: list[Regime], form: Form, number: int, folder: Path, progress: Progress
) -> list[Measurement]:
    """Without compression, then with it; each with a generator of its own."""
    found = []

    def told(regime: Regime) -> None:
        progress.tell(f"round {number + 1}: {server.label}, {regime.label}")

    for compression in (False, True):
        part = [regime for regime in regimes if regime.compression == compression]
        with Load(core=cores()[1], folder=folder) as load:
            for measurement in sit(server, part, form, load, folder, told):
                measurement.round = number
                found.append(measurement)
                progress.step()
    return found


def about(form: Form) -> dict[str, Any]:
    """The machine, the code, and what was asked for."""
    server, generator = cores()
    return {
        "form": form.name,
        "rounds": form.rounds,
        "clients": form.clients,
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
    """Which state of the code was measured; empty outside of a checkout."""
    arguments = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(
            arguments, cwd=REPOSITORY, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
