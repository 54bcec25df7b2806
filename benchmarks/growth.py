"""Growth: ours and FastAPI's tutorial, with more and more clients, and more and more channels."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.load import Load
from benchmarks.process import NotServing, cores
from benchmarks.regimes import BY_NAME, FULL, Form
from benchmarks.results import Measurement, Results
from benchmarks.rounds import Progress, about, prepare_all
from benchmarks.servers import BY_NAME as SERVERS
from benchmarks.servers import ROOMS, Server
from benchmarks.sitting import WARM, measure_drive, serving, warm_up
from benchmarks.tables import Table, number

__all__ = ["CHANNELS", "CLIENTS", "FORM", "run", "sizes", "tables"]

CLIENTS = (10, 100, 1000, 3000, 10_000)
CHANNELS = (1, 10, 100, 1000)
IN_CHANNELS = 1000  # clients, spread evenly over the channels
FORM = replace(FULL, name="growth", rounds=3, seconds=2, warmup=0.5)
EIGHT = BY_NAME["eight"]
SPARE_FILES = 200  # descriptors that a server needs besides its clients'


def run(form: Form, progress: Progress, files: int) -> Results:
    """Measure. `files` is how many descriptors a process may have; what exceeds it is left out."""
    results = Results(about=about(form))
    counts = [count for count in CLIENTS if count + SPARE_FILES <= files]
    if len(counts) < len(CLIENTS):
        results.about["left_out"] = (
            f"a process may open {files} files here, too few for {CLIENTS[len(counts)]} clients"
        )
    there = prepare_all([SERVERS["ours"], SERVERS["fastapi"]], results, progress)
    names = [server.name for server in there]
    progress.begin(form.rounds * len(there) * (len(counts) + len(CHANNELS)))
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        for number in range(form.rounds):
            for server in [*there, *(room for room in ROOMS if room.name in names)]:
                in_rooms = "{room}" in server.path
                sizes = CHANNELS if in_rooms else counts
                for size in sizes:
                    progress.tell(f"round {number + 1}: {server.label}, {size}")
                    measure = _channels if in_rooms else _clients
                    measurement = measure(server, size, form, Path(name))
                    measurement.round = number
                    results.measurements.append(measurement)
                    progress.step()
    return results


def _clients(server: Server, clients: int, form: Form, folder: Path) -> Measurement:
    return _measure(server, f"clients-{clients}", clients, 1, form, folder)


def _channels(server: Server, channels: int, form: Form, folder: Path) -> Measurement:
    return _measure(server, f"channels-{channels}", IN_CHANNELS, channels, form, folder)


def _measure(
    server: Server, name: str, clients: int, channels: int, form: Form, folder: Path
) -> Measurement:
    """8 messages in flight in each channel; so however many, as many deliveries are outstanding."""
    try:
        with (
            Load(core=cores()[1], folder=folder) as load,
            serving(server, load, folder, compression=False) as table,
        ):
            warm_up(table)
            before = table.process.memory()
            table.connect(clients, groups=channels)
            measurement = measure_drive(table, EIGHT, form)
            grown = (table.process.memory() - before) / 1000
    except NotServing as error:
        return Measurement(server.name, name, 0, None, problems=[str(error)])
    measurement.regime = name
    if clients > 2 * WARM:  # as many have been there before, and left their memory to these
        measurement.detail |= {"kb_each": grown / clients, "mb_all": grown / 1000}
    return measurement


def sizes(results: Results, kind: str) -> Sequence[int]:
    """The numbers of clients, or of channels, that were measured."""
    found = (m.regime.partition("-") for m in results.measurements)
    return sorted({int(size) for what, _, size in found if what == kind})


def tables(results: Results) -> list[Table]:
    """One over the clients, one over the channels; medians of the rounds."""
    found = []
    for kind in ("clients", "channels"):
        head = [kind, "server", "deliveries/s", "p50 ms", "p99 ms", "KB a client", "generator CPU"]
        table = Table(f"Growth over {kind}, 8 in flight in each channel", head)
        for size in sizes(results, kind):
            for server in results.servers(list(SERVERS)):
                row = _row(results, server, f"{kind}-{size}")
                table.rows.append([f"{size:,}", SERVERS[server].label, *row])
                problems = results.problems(server, f"{kind}-{size}")
                if problems:
                    table.notes.append(f"{server}, {size:,}: {'; '.join(problems)}.")
        found.append(table)
    return found


def _row(results: Results, server: str, regime: str) -> list[str]:
    names = ("value", "p50", "p99", "kb_each", "generator_cpu")
    medians = [
        found.median if (found := results.values(server, regime, n)) else None for n in names
    ]
    return [*map(number, medians[:-1]), "–" if medians[-1] is None else f"{medians[-1]:.0%}"]
