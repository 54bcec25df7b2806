"""A sitting: one server is started, measured in one regime after the other, and ended."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.environments import command
from benchmarks.load import Connected, Drive, Load
from benchmarks.probes import Checker, Checks, percentile
from benchmarks.process import NotServing, Process, cores, free_port
from benchmarks.regimes import Form, Regime
from benchmarks.results import Measurement
from benchmarks.servers import Server

__all__ = ["WARM", "Table", "measure_drive", "serving", "sit", "warm_up"]

PAUSE = 0.2  # seconds for a server to finish what it does after a connection comes or goes
WARM = 20  # connections that come and go before memory is measured for the first time
BUSY = 0.9  # share of its core from which the generator may be what was measured


@dataclass
class Table:
    """A server that runs, members that are connected, and what watches them."""

    server: Server
    process: Process
    port: int
    load: Load
    checker: Checker
    clients: int = 0
    groups: int = 1

    def connect(self, clients: int, *, compression: bool = False, groups: int = 1) -> Connected:
        """Connect members.

        Raises:
            NotServing: Not all of them got in.
        """
        done = self.load.connect(
            self.server, self.port, clients, compression=compression, groups=groups
        )
        if done.connected < clients:
            raise NotServing(f"{done.connected} of {clients} clients connected: {done.failure}")
        self.clients += clients
        self.groups = groups
        self.checker = Checker(self.load.words(), done.extension)
        time.sleep(PAUSE)
        return done

    def check(self, done: Drive, size: int) -> Checks:
        """What the probes say of the drive that has just ended. None may be left out.

        A compressed message may refer to all that came before it on its connection.
        """
        return self.checker.check(
            self.load.record.read_bytes(),
            size=size - self.server.prefix,
            reply=self.server.reply,
            groups=self.groups,
            window=(done.begin, done.end),
        )


@contextmanager
def serving(server: Server, load: Load, folder: Path, *, compression: bool) -> Iterator[Table]:
    """Start the server on its core; it is killed at the end, and all members are dropped.

    Raises:
        NotServing: It does not come up.
    """
    port = free_port()
    arguments = command(server, port, compression=compression, folder=folder)
    with Process(arguments, core=cores()[0], log=folder / f"{server.name}.log") as process:
        process.wait_for_port(port)
        try:
            yield Table(server, process, port, load, Checker(""))
        finally:
            load.close()


def sit(
    server: Server,
    regimes: list[Regime],
    form: Form,
    load: Load,
    folder: Path,
    told: Callable[[Regime], None] = lambda regime: None,
) -> Iterator[Measurement]:
    """Measure the regimes, which all have compression or all have not; `told` hears what is next.

    Where something stays on its way the server is started anew for the regimes that are left. Who
    calls numbers the rounds.
    """
    left = list(regimes)
    while left:
        before = len(left)
        try:
            with serving(server, load, folder, compression=left[0].compression) as table:
                for measurement in _measure(table, left, form, told):
                    yield measurement
                    left = [regime for regime in left if regime.name != measurement.regime]
                    if not measurement.detail.get("drained", True):
                        break
        except NotServing as error:
            for regime in left:
                yield Measurement(server.name, regime.name, 0, None, problems=[str(error)])
            return
        if len(left) == before:  # cannot be, but a loop must have an end
            return


def _measure(
    table: Table, regimes: list[Regime], form: Form, told: Callable[[Regime], None]
) -> Iterator[Measurement]:
    wanted = {regime.kind: regime for regime in regimes}
    if "echo" in wanted:
        told(wanted["echo"])
        yield _echo(table, wanted["echo"], form)
    if not wanted.keys() - {"echo"}:
        return
    compression = regimes[0].compression
    warm_up(table, compression)
    before = table.process.memory()
    if "accept" in wanted:
        told(wanted["accept"])
    joined = table.connect(form.clients, compression=compression)
    if "accept" in wanted:
        yield _accept(table, wanted["accept"], joined)
    if "idle" in wanted:
        told(wanted["idle"])
        yield _idle(table, wanted["idle"], before)
    for regime in regimes:
        if regime.kind == "drive":
            told(regime)
            yield measure_drive(table, regime, form)


def warm_up(table: Table, compression: bool = False) -> None:
    """What a server sets up for its first clients is no memory of the later ones."""
    table.connect(WARM, compression=compression)
    table.load.drive(table.server, seconds=0.02, warmup=0, size=64)
    table.load.close()
    table.clients = 0
    time.sleep(PAUSE)


def _echo(table: Table, regime: Regime, form: Form) -> Measurement:
    used = table.process.cpu()
    start = time.monotonic()
    done = table.load.echo(
        *(table.server, table.port),
        clients=form.echo_clients,
        seconds=form.seconds,
        warmup=form.warmup,
    )
    measurement = Measurement(table.server.name, regime.name, 0, done.echoes / done.seconds)
    measurement.p50, measurement.p99 = done.p50, done.p99
    measurement.generator_cpu = done.cpu
    measurement.server_cpu = (table.process.cpu() - used) / (time.monotonic() - start)
    if done.connected < form.echo_clients or done.lost or not done.echoes:
        measurement.value = None
        measurement.problems.append(f"echo: {done.failure or 'connections were lost'}")
    _note_busy(measurement)
    return measurement


def _accept(table: Table, regime: Regime, joined: Connected) -> Measurement:
    measurement = Measurement(table.server.name, regime.name, 0, joined.connected / joined.seconds)
    measurement.generator_cpu = joined.cpu
    _note_busy(measurement)
    return measurement


def _idle(table: Table, regime: Regime, before: int) -> Measurement:
    """Memory right after connecting, and again when each has got some messages; that one counts."""
    fresh = (table.process.memory() - before) / table.clients / 1000
    drive = table.load.drive(table.server, seconds=0.1, warmup=0, size=64)
    checks = table.check(drive, 64)
    time.sleep(PAUSE)
    used = (table.process.memory() - before) / table.clients / 1000
    measurement = Measurement(table.server.name, regime.name, 0, max(used, 0.0))
    measurement.detail = {"fresh": fresh, "messages": drive.sent, "drained": drive.complete}
    measurement.problems += checks.problems()
    if not drive.complete:
        measurement.problems.append("not all had got their messages when memory was measured")
    return measurement


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
        publishers=min(regime.publishers, table.clients),
        inflight=regime.inflight,
        rate=regime.rate,
    )
    used = (table.process.cpu() - used) / (time.monotonic() - start)
    checks = table.check(done, regime.size)
    value = done.deliveries / done.seconds
    if regime.rate:
        value = 100 * done.received / (done.offered * table.clients)
    measurement = Measurement(table.server.name, regime.name, 0, value)
    measurement.p50 = percentile(checks.latencies, 0.5)
    measurement.p99 = percentile(checks.latencies, 0.99)
    measurement.generator_cpu, measurement.server_cpu = done.cpu, used
    measurement.detail = {
        "messages": done.sent,
        "checked": checks.messages,
        "one_order": checks.one_order,
        "drained": done.complete,
        "bytes_each": done.bytes / done.received if done.received else None,
    }
    _judge(measurement, regime, done, checks)
    return measurement


def _judge(measurement: Measurement, regime: Regime, done: Drive, checks: Checks) -> None:
    """A value that does not mean what the others mean is none."""
    problems = measurement.problems
    problems += checks.problems()
    if not checks.one_order:
        problems.append("the probes saw different orders")
    if done.lost:
        problems.append(f"{done.lost} connections lost ({done.failure})")
    if not done.recorded:
        problems.append("the probes' record was cut short")
    elif not checks.messages:
        problems.append("the probes got nothing")
    if done.odd:
        problems.append(f"{done.odd} frames of an unexpected kind")
    if not done.quiet:
        problems.append("something was still on its way at the start")
    missing = f"{done.owed - done.received:,} of {done.owed:,} deliveries"
    if not regime.rate and done.stalled:
        problems.append(f"stopped: {missing} never came")
        measurement.value = None
    elif not regime.rate and not done.complete:
        problems.append(f"too slow to wait for the last {missing}")
    if done.lost or not done.deliveries:
        measurement.value = None
    _note_busy(measurement)


def _note_busy(measurement: Measurement) -> None:
    if measurement.generator_cpu is not None and measurement.generator_cpu > BUSY:
        measurement.problems.append("generator busy")
