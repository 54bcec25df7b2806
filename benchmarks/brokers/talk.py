"""The two processes of a participant, and the engine between them."""

import json
import select
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.brokers.participants import ENGINES, PUBLISHERS, Participant, regime
from benchmarks.environments import PEERS, REPOSITORY, interpreter
from benchmarks.process import NotServing, Process
from benchmarks.regimes import Form
from benchmarks.results import Measurement
from benchmarks.servers import OURS

__all__ = ["Engine", "Side", "engine", "measure"]

PROGRAM = PEERS / "brokers" / "talk.py"
#: The tests have the same engines, in an environment that is here as well.
ENGINE_PROGRAM = REPOSITORY / "tests" / "engines.py"
PATIENCE = 30.0  # seconds for an answer, besides those that were asked for


class Side:
    """A process that answers each line of JSON by one."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def tell(self, **command: Any) -> None:
        """Give it a command.

        Raises:
            NotServing: It has ended.
        """
        stdin = self._process.popen.stdin
        assert stdin is not None, "it was started with a pipe"
        try:
            stdin.write(json.dumps(command).encode() + b"\n")
            stdin.flush()
        except OSError:
            raise NotServing(f"it ended: {self._process.last_words()}") from None

    def line(self, patience: float = PATIENCE) -> str:
        """The next line that it says.

        Raises:
            NotServing: It says none, or has ended.
        """
        stdout = self._process.popen.stdout
        assert stdout is not None, "it was started with a pipe"
        if not select.select([stdout], [], [], patience)[0]:
            raise NotServing(f"no answer within {patience:g} s: {self._process.last_words()}")
        line = stdout.readline().decode()
        if not line:
            raise NotServing(f"it ended: {self._process.last_words()}")
        return line.strip()

    def ask(self, patience: float = PATIENCE, **command: Any) -> dict[str, Any]:
        """Its answer to a command.

        Raises:
            NotServing: It says none, or has ended.
        """
        self.tell(**command)
        return dict(json.loads(self.line(patience)))


class Engine(NamedTuple):
    """An engine that runs.

    Attributes:
        url: Where it is.
        cpu: The seconds of processor time that it has used.
    """

    url: str
    cpu: Callable[[], float]


@contextmanager
def engine(name: str, folder: Path) -> Iterator[Engine]:
    """Run an engine with empty data.

    Raises:
        NotServing: It does not start.
    """
    arguments = [str(interpreter(OURS)), str(ENGINE_PROGRAM), name, *ENGINES[name]]
    log = folder / f"{name}.log"
    with Process(arguments, log=log, stdin=subprocess.PIPE) as process:
        yield Engine(Side(process).line(), process.cpu_of_all)
        assert process.popen.stdin is not None
        process.popen.stdin.close()  # it removes its files then
        process.popen.wait(PATIENCE)


def measure(
    participant: Participant, engine: Engine, *, form: Form, folder: Path
) -> list[Measurement]:
    """Measure a participant with each number of publishers. The caller numbers the rounds."""
    found: list[Measurement] = []
    problems: list[str] = []
    try:
        with (
            _side("subscribe", participant, engine.url, folder) as subscriber,
            _side("publish", participant, engine.url, folder) as publisher,
        ):
            subscriber.line()
            publisher.tell()  # enough: the first text was heard
            for publishers in PUBLISHERS:
                found.append(_drive(participant, publishers, form, engine, publisher, subscriber))
    except NotServing as error:
        problems.append(str(error))
    missing = [
        Measurement(participant.name, regime(publishers), 0, None, problems=problems)
        for publishers in PUBLISHERS[len(found) :]
    ]
    return found + missing


@contextmanager
def _side(role: str, participant: Participant, url: str, folder: Path) -> Iterator[Side]:
    python = interpreter(participant.environment)
    options = [participant.module, url, participant.kind]
    with Process(
        [str(python), str(PROGRAM), role, *options],
        log=folder / f"{participant.name}-{role}.log",
        stdin=subprocess.PIPE,
    ) as process:
        yield Side(process)


def _drive(
    participant: Participant,
    publishers: int,
    form: Form,
    engine: Engine,
    publisher: Side,
    subscriber: Side,
) -> Measurement:
    used = engine.cpu()
    sent = publisher.ask(
        form.warmup + form.seconds + PATIENCE,
        publishers=publishers,
        together=participant.together,
        warmup=form.warmup,
        seconds=form.seconds,
    )
    heard = subscriber.ask(sent=sent["sent"], begin=sent["begin"], end=sent["end"])
    measurement = Measurement(
        *(participant.name, regime(publishers), 0, sent["acknowledged"] / sent["seconds"]),
        p50=heard["p50"],
        p99=heard["p99"],
    )
    number = sent["sent"]
    lost = number - heard["received"]
    measurement.detail = {
        "sent": number,
        "lost": lost / number,
        # Microseconds of processor time for each publication, whatever else the machine does.
        "publisher_us": 1e6 * sent["cpu"] / number,
        "engine_us": 1e6 * (engine.cpu() - used) / number,
        "subscriber_us": 1e6 * heard["cpu"] / number,
    }
    if participant.is_ours and lost:
        measurement.problems.append(f"{lost:,} more were sent than heard")
    return measurement
