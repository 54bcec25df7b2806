"""A sitting: one server is started, measured in one regime, and ended."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.environments import command
from benchmarks.load import Connected, GeneratorFailed, Load, Outcome
from benchmarks.probes import Checker, Checks, percentile
from benchmarks.process import NotServing, Process, cores, free_port
from benchmarks.regimes import Form, Regime
from benchmarks.results import Measurement
from benchmarks.servers import Server

__all__ = ["Table", "measure", "measure_drive"]

PAUSE = 0.2  # seconds for a server to finish what it does after a connection comes or goes
WARM = 20  # connections that come and go before memory is measured for the first time
BUSY = 0.9  # share of its core from which the generator may be the limit


@dataclass
class Table:
    """A server that runs, members that are connected, and their probes."""

    server: Server
    process: Process
    port: int
    load: Load
    checker: Checker
    clients: int = 0
    groups: int = 1

    def connect(
        self, clients: int, *, compression: bool = False, groups: int = 1, publishers: int = 1
    ) -> Connected:
        """Connect members.

        Raises:
            NotServing: Not all of them were accepted.
        """
        done = self.load.connect(
            *(self.server, self.port, clients),
            compression=compression,
            groups=groups,
            publishers=publishers,
        )
        if done.connected < clients:
            raise NotServing(f"{done.connected} of {clients} clients connected: {done.failure}")
        self.clients = clients
        self.groups = groups
        self.checker = Checker(self.load.words(), done.extension)
        time.sleep(PAUSE)
        return done

    def check(self, size: int, window: tuple[int, int] = (0, 0)) -> Checks:
        """Check what the probes got in the drive that has just ended. Call it after each drive.

        A compressed message may refer to all earlier ones on its connection. Latencies are of
        messages that were due in the window, in nanoseconds.
        """
        return self.checker.check(
            self.load.record.read_bytes(),
            size=size - self.server.prefix,
            reply=self.server.reply,
            groups=self.groups,
            window=window,
        )


@contextmanager
def _serving(server: Server, load: Load, folder: Path, *, compression: bool) -> Iterator[Table]:
    """Start the server on its core; it is killed at the end, and all members are dropped.

    Raises:
        NotServing: It does not start.
    """
    port = free_port()
    arguments = command(server, port, compression=compression, folder=folder)
    with Process(arguments, core=cores()[0], log=folder / f"{server.name}.log") as process:
        process.wait_for_port(port)
        try:
            yield Table(server, process, port, load, Checker(""))
        finally:
            load.close()


def measure(server: Server, regime: Regime, form: Form, folder: Path) -> Measurement:
    """Measure the server in the regime. The caller numbers the rounds."""
    if regime.program:
        server = replace(server, program=regime.program, path=regime.path)
    try:
        with (
            Load(core=cores()[1], folder=folder) as load,
            _serving(server, load, folder, compression=regime.compression) as table,
        ):
            measurement = KINDS[regime.kind](table, regime, form)
    except (NotServing, GeneratorFailed) as error:
        return Measurement(server.name, regime.name, 0, None, problems=[str(error)])
    if measurement.generator_cpu is not None and measurement.generator_cpu > BUSY:
        measurement.problems.append("generator busy")
    return measurement


def _join(table: Table, regime: Regime, form: Form) -> Connected:
    return table.connect(
        _clients(regime, form),
        compression=regime.compression,
        groups=max(1, round(regime.groups * form.share)),
        publishers=regime.publishers,
    )


def _clients(regime: Regime, form: Form) -> int:
    return max(1, round(regime.clients * form.share))


def _warm_up(table: Table, regime: Regime) -> None:
    """Let some clients come and go: what a server sets up for its first ones must not count."""
    table.connect(WARM, compression=regime.compression)
    table.load.drive(table.server, seconds=0.02, warmup=0, size=64)
    table.load.close()
    time.sleep(PAUSE)


def _echo(table: Table, regime: Regime, form: Form) -> Measurement:
    clients = _clients(regime, form)
    used = table.process.cpu()
    start = time.monotonic()
    done = table.load.echo(
        *(table.server, table.port), clients=clients, seconds=form.seconds, warmup=form.warmup
    )
    measurement = Measurement(table.server.name, regime.name, 0, done.echoes / done.seconds)
    measurement.p50, measurement.p99 = done.p50, done.p99
    measurement.generator_cpu = done.cpu
    measurement.server_cpu = (table.process.cpu() - used) / (time.monotonic() - start)
    if done.connected < clients or done.lost or not done.echoes:
        measurement.value = None
        measurement.problems.append(f"echo: {done.failure or 'connections were lost'}")
    return measurement


def _accept(table: Table, regime: Regime, form: Form) -> Measurement:
    _warm_up(table, regime)
    joined = _join(table, regime, form)
    measurement = Measurement(table.server.name, regime.name, 0, joined.connected / joined.seconds)
    measurement.generator_cpu = joined.cpu
    return measurement


def _idle(table: Table, regime: Regime, form: Form) -> Measurement:
    """Memory after connecting, and again after each client has got some messages; that counts."""
    _warm_up(table, regime)
    before = table.process.memory()
    _join(table, regime, form)
    fresh = (table.process.memory() - before) / table.clients / 1000
    done = table.load.drive(table.server, seconds=0.1, warmup=0, size=64)
    checks = table.check(64)
    time.sleep(PAUSE)
    used = (table.process.memory() - before) / table.clients / 1000
    measurement = Measurement(table.server.name, regime.name, 0, max(used, 0.0))
    measurement.detail = {"fresh": fresh, "messages": done.sent}
    measurement.problems += checks.problems()
    if not done.complete:
        measurement.problems.append("not all had got their messages when memory was measured")
    return measurement


def _drive(table: Table, regime: Regime, form: Form) -> Measurement:
    _warm_up(table, regime)
    _join(table, regime, form)
    return measure_drive(table, regime, form)


def measure_drive(table: Table, regime: Regime, form: Form) -> Measurement:
    """Publish as the regime says, and check what the probes got."""
    used = table.process.cpu()
    start = time.monotonic()
    done = table.load.drive(
        table.server,
        seconds=form.seconds,
        warmup=form.warmup,
        drain=form.drain,
        patience=form.patience,
        size=regime.size,
        publishers=regime.publishers,
        each=regime.each,
        rate=regime.rate,
    )
    used = (table.process.cpu() - used) / (time.monotonic() - start)
    checks = table.check(regime.size, (done.begin, done.end))
    value = done.deliveries / done.seconds
    if regime.rate:
        value = 100 * done.received / (done.offered * table.clients)
    measurement = Measurement(table.server.name, regime.name, 0, value)
    measurement.p50 = percentile(checks.latencies, 0.5)
    measurement.p99 = percentile(checks.latencies, 0.99)
    measurement.server_cpu = used
    _judge(measurement, regime, done, checks)
    if not done.quiet:
        measurement.problems.append("something was still on its way at the start")
    if not done.deliveries:
        measurement.value = None
    return measurement


def _herd(table: Table, regime: Regime, form: Form) -> Measurement:
    """The value is the median of the waits; `p99` is the longest."""
    _warm_up(table, regime)
    _join(table, regime, form)
    done = table.load.herd(
        *(table.server, table.port),
        times=form.herds,
        size=regime.size,
        drain=form.drain,
        patience=form.patience,
    )
    waits = sorted(wait for wait in done.waits if wait is not None)
    measurement = Measurement(table.server.name, regime.name, 0, None)
    if waits:
        measurement.value, measurement.p99 = statistics.median(waits), waits[-1]
    _judge(measurement, regime, done, table.check(regime.size))
    return measurement


KINDS: dict[str, Callable[[Table, Regime, Form], Measurement]] = {
    "echo": _echo,
    "accept": _accept,
    "idle": _idle,
    "drive": _drive,
    "herd": _herd,
}


def _judge(measurement: Measurement, regime: Regime, done: Outcome, checks: Checks) -> None:
    """Remove a value that can't be compared with the others, and say why."""
    measurement.generator_cpu = done.cpu
    measurement.detail = {
        "messages": done.sent,
        "checked": checks.messages,
        "one_order": checks.one_order,
        "bytes_each": done.bytes / done.received if done.received else None,
    }
    problems = measurement.problems
    problems += checks.problems()
    if regime.one_order and not checks.one_order:
        problems.append("the probes saw different orders")
    if done.lost:
        problems.append(f"{done.lost} connections lost ({done.failure})")
        measurement.value = None
    if not done.recorded:
        problems.append("the probes' record was cut short")
    elif not checks.messages:
        problems.append("the probes got nothing")
    if done.odd:
        problems.append(f"{done.odd} frames of an unexpected kind")
    if not regime.rate and not done.complete:
        _incomplete(measurement, done)


def _incomplete(measurement: Measurement, done: Outcome) -> None:
    missing = f"{done.owed - done.received:,} of {done.owed:,} deliveries"
    if done.received >= done.owed:
        measurement.problems.append("not everybody got each message once")
    elif done.stalled:
        measurement.problems.append(f"stopped: {missing} never came")
    else:
        measurement.problems.append(f"too slow to wait for the last {missing}")
        return
    measurement.value = None
