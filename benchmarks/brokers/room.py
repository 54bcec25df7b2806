"""One room of 1,000 clients, served by one process, and by two workers, through the same broker."""

import time
from pathlib import Path

from benchmarks.brokers.talk import Engine
from benchmarks.environments import usual_command
from benchmarks.load import GeneratorFailed, Load
from benchmarks.probes import Checker
from benchmarks.process import NotServing, Process, cores, free_port
from benchmarks.regimes import Form, Regime
from benchmarks.results import Measurement
from benchmarks.servers import OURS
from benchmarks.sitting import Table, measure_drive

__all__ = ["ROOM", "WORKERS", "measure", "name_of"]

WORKERS = (1, 2)
#: The same work for both: so many messages are offered, and each process gets them one by one.
ROOM = Regime("room", "a room of 1,000 clients, 50 messages a second", "drive", rate=50)
#: No limit for the one client that publishes for all.
FLAGS = ("--log-level", "warning", "--max-message-rate", "0")
SETTLING = 0.5  # seconds until the processes have nothing left to do


def name_of(engine: str, workers: int) -> str:
    """What the servers are called in the results."""
    return f"{engine}-workers-{workers}"


def measure(
    name: str, workers: int, engine: Engine, *, seconds: float, folder: Path
) -> list[Measurement]:
    """Seconds of processor time that the servers use for 1,000 publications."""
    form = Form("room", rounds=1, seconds=seconds, warmup=0.5)
    port = free_port()
    flags = [*FLAGS, "--workers", str(workers), "--broker", engine.url]
    command = usual_command(OURS, port, flags)
    name = name_of(name, workers)
    measurement = Measurement(name, ROOM.name, 0, None)
    try:
        with (
            Load(core=cores()[1], folder=folder) as load,
            Process(command, core=cores()[0], log=folder / f"{name}.log") as process,
        ):
            process.wait_for_port(port)
            table = Table(OURS, process, port, load, Checker(""))
            table.connect(ROOM.clients)
            time.sleep(SETTLING)
            used = process.cpu()
            drive = measure_drive(table, ROOM, form)
            time.sleep(SETTLING)
            used = process.cpu() - used
            load.close()
    except (NotServing, GeneratorFailed) as error:
        measurement.problems.append(str(error))
        return [measurement]
    measurement.problems += drive.problems
    measurement.detail = {"delivered": drive.value, **drive.detail}
    measurement.p50, measurement.p99 = drive.p50, drive.p99
    if drive.detail["messages"]:
        measurement.value = 1000 * used / drive.detail["messages"]
    return [measurement]
