"""The guards: each attack on FastAPI's tutorial as users start it, and on our server.

`GUARDS` is the table of attacks, by their rows in the project's reliability table. An attack
returns figures; a figure with a goal gets a verdict.
"""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.attacks import ends, handshakes, messages, rooms
from benchmarks.attacks.target import Figures, Refused, Target
from benchmarks.environments import usual_command
from benchmarks.load import GeneratorFailed
from benchmarks.process import NotServing, Process, cores, free_port, pinned
from benchmarks.regimes import Form
from benchmarks.results import Measurement, Results
from benchmarks.rounds import Progress, about, prepare_all
from benchmarks.servers import BY_NAME, OURS, Server
from benchmarks.tables import NONE, Table, number

__all__ = ["BY_ROW", "FORM", "GUARDS", "SERVERS", "Figure", "Guard", "met", "run", "tables"]

FORM = Form("guards", rounds=1, seconds=0, warmup=0)
SERVERS = (BY_NAME["fastapi"], OURS)
PATHS = ("/ws", "/ws/1")  # the echo, and the room
DEADLINE = 120.0  # seconds for one attack, whatever happens
NEVER = "never"
CODES = ("code", "status")  # figures that are names rather than numbers


@dataclass(frozen=True)
class Figure:
    """One number of an attack, and the goal for it, if there is one.

    If the attack returns None, the table shows `none`, and the goal is missed.
    """

    name: str
    label: str
    unit: str = ""  # with "yes", 1 is yes and 0 is no
    most: float | None = None
    least: float | None = None
    among: tuple[int, ...] = ()
    none: str = NONE

    @property
    def goal(self) -> str:
        """The goal in words; empty if there is none."""
        unit = f" {self.unit}" if self.unit else ""
        if self.unit == "yes":
            return "" if self.least is None else "yes"
        if self.among:
            return " or ".join(map(str, self.among))
        if self.most == 0:
            return "0"
        if self.most is not None:
            return f"≤ {self.most:,g}{unit}"
        return "" if self.least is None else f"≥ {self.least:,g}{unit}"

    def show(self, value: float | None) -> str:
        if value is None:
            return self.none
        if self.unit == "yes":
            return "yes" if value else "no"
        if self.name in CODES:
            return f"{value:.0f}"
        text = f"{value:,.0f}" if value == int(value) else number(value)
        return f"{text} {self.unit}".rstrip()


def met(figure: Figure, value: float | None) -> bool | None:
    """Whether the goal is reached; None if there is none."""
    if not figure.goal:
        return None
    return (
        value is not None
        and (figure.most is None or value <= figure.most)
        and (figure.least is None or value >= figure.least)
        and (not figure.among or value in figure.among)
    )


@dataclass(frozen=True)
class Guard:
    """One attack: the servers that it is made on, flags besides the defaults, and its figures."""

    row: int
    name: str
    title: str
    attack: Callable[[Target], Awaitable[Figures]]
    figures: tuple[Figure, ...]
    ours: Sequence[str] = ()
    theirs: Sequence[str] = ()
    program: str = ""  # peers/<server>_<program>.py instead of the server's usual application
    paths: Sequence[str] = PATHS  # used by some clients before the attack


PINGS = ("ping-interval", "ping-timeout")
OUR_PINGS = [part for name in PINGS for part in (f"--{name}", f"{rooms.SILENCE:g}")]
UVICORN_PINGS = [part for name in PINGS for part in (f"--ws-{name}", f"{rooms.SILENCE:g}")]
REAPED = 2 * rooms.SILENCE + 2
OUR_LIMITS = [
    *("--max-connections", str(handshakes.LIMIT)),
    *("--max-address-connections", str(handshakes.ADDRESS_LIMIT)),
    *("--max-user-connections", str(handshakes.USER_LIMIT)),
    *("--token-secret", handshakes.SECRET),
]

GUARDS = (
    Guard(
        *(8, "slow-reader", "One client joins 99 and never reads", rooms.slow_reader),
        (
            Figure("delivered", "delivered to the others", "%", least=100),
            Figure("without", "the others' p99 without it", "ms"),
            Figure("with", "the others' p99 with it", "ms"),
            Figure("ratio", "… as a multiple", "×", most=1.2),
            Figure("lives", "the room lives afterwards", "yes", least=1),
            Figure("aborted", "socket aborted after 1 MiB waits", "s", most=5, none=NEVER),
            Figure("memory", "memory grown by", "MB", most=5),
        ),
    ),
    Guard(
        *(9, "silence", "Peers fall silent; pings every 2 s, time-out 2 s", rooms.silence),
        (
            Figure("idle", "idle ones reaped after", "s", most=REAPED, none=NEVER),
            Figure("full", "ones with a full socket reaped after", "s", most=REAPED, none=NEVER),
            # No ping ends these, because its answer would not be read: the send timeout does.
            # The goal is that for the default pings.
            Figure("unread", "… that are not read either", "s", most=42, none=NEVER),
        ),
        *(OUR_PINGS, UVICORN_PINGS),
    ),
    Guard(
        *(10, "resets", "20 of 40 clients reset in the middle of broadcasts", rooms.resets),
        (
            Figure("closed", "others closed", most=0),
            Figure("lost", "messages that the others miss", most=0),
            Figure("lives", "the room lives afterwards", "yes", least=1),
        ),
    ),
    Guard(
        *(11, "poison", "10,000 poisonous frames and payloads", rooms.poison),
        (
            Figure("sent", "sent", least=rooms.POISONOUS),
            Figure("lives", "the room lives afterwards", "yes", least=1),
            Figure("closed", "others closed", most=0),
            Figure("odd", "offenders not closed as they should be", most=0),
            Figure("tracebacks", "tracebacks", most=0),
            Figure("lines", "log lines for each", most=1),
        ),
    ),
    Guard(
        *(12, "half-open", "2,000 half-open handshakes", handshakes.half_open),
        (
            Figure("closed", "closed within 10 s", least=handshakes.HALF_OPEN),
            Figure("slowest", "the last one closed after", "s", most=10, none=NEVER),
            Figure("honest", "an honest client connects within", "ms", most=100),
        ),
    ),
    Guard(
        *(13, "headers", "Headers without end, 64 MB at most", handshakes.endless),
        (
            Figure("taken", "taken", "kB", most=72),
            Figure("status", "answer", among=(431,)),
            Figure("memory", "memory grown by", "MB", most=1),
        ),
    ),
    Guard(
        *(14, "large", "Large messages, and unfinished ones", messages.large),
        (
            Figure("taken", "largest taken", "KiB", most=64),
            Figure("memory", "memory grown by", "MB"),
            Figure("closed", "unfinished ones closed after", "s", most=30, none=NEVER),
        ),
    ),
    Guard(
        *(15, "fragments", "Fragments without end, 2,000,000 at most", messages.fragments),
        (
            Figure("taken", "taken", most=1024),
            Figure("code", "closed with", among=(1008,), none="not"),
            Figure("memory", "memory grown by", "MB", most=1),
        ),
    ),
    Guard(
        *(16, "pings", "Pings as fast as they are taken for 10 s, no pong read", messages.pings),
        (
            Figure("rate", "taken a second, at first"),
            Figure("closed", "socket let go after", "s", none=NEVER),
            Figure("memory", "memory grown by", "MB", most=1),
        ),
    ),
    Guard(
        *(17, "flood", "Tiny messages as fast as they are taken for 10 s", messages.flood),
        (
            Figure("p50", "another's echo, p50", "ms"),
            Figure("p99", "another's echo, p99", "ms", most=20),
            Figure("slowest", "another's echo, slowest", "ms"),
            Figure("code", "closed with", among=(1008,), none="not"),
            Figure("closed", "closed after", "s", none=NEVER),
        ),
    ),
    Guard(
        *(18, "bomb", "A message of 100 kB that inflates to 100 MB", messages.bomb),
        (
            Figure("code", "closed with", among=(1009,), none="not"),
            Figure("memory", "memory grown by", "MB", most=1),
        ),
        ours=("--compression", "on"),
    ),
    Guard(
        *(19, "connections", "One connection more than allowed", handshakes.connections),
        (
            Figure("server", "of the server (50)", among=(503,)),
            Figure("address", "of an address (10)", among=(429,)),
            Figure("user", "of a user (2), to an endpoint that refuses by 403", among=(403,)),
        ),
        *(OUR_LIMITS, ("--limit-concurrency", str(handshakes.LIMIT))),
        paths=(),
    ),
    Guard(
        *(24, "sigterm", "SIGTERM with 1,000 clients, ten of which never read", ends.sigterm),
        (
            Figure("exit", "exit after", "s", most=5, none=NEVER),
            Figure("told", "readers told (of 990)", least=ends.READERS),
            Figure("tracebacks", "tracebacks", most=0),
            Figure("lines", "log lines", most=20),
        ),
    ),
    Guard(
        *(27, "sender-only", "The client of an endpoint that only sends", rooms.sender_only),
        (
            Figure("stays", "still there after 10 s", "yes", least=1),
            Figure("kicked", "kicked after", "s", none=NEVER),
        ),
        *(UVICORN_PINGS, UVICORN_PINGS),
        program="sender",
        paths=(),
    ),
)
BY_ROW = {guard.row: guard for guard in GUARDS}


def run(
    servers: Sequence[Server],
    guards: Sequence[Guard],
    progress: Progress,
    saved: Callable[[Results], None] = lambda results: None,
) -> Results:
    """Attack each server in turn, in a fresh process each time. `saved` gets all results so far."""
    results = Results(about={k: v for k, v in about(FORM).items() if k != "seconds_each"})
    there = prepare_all(servers, results, progress)
    progress.begin(len(there) * len(guards))
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-") as name, pinned(cores()[1]):
        for guard in guards:
            for server in there:
                progress.tell(f"{guard.title}: {server.label}")
                results.measurements.append(asyncio.run(_attack(guard, server, Path(name))))
                progress.step()
            results.about["seconds"] = round(time.monotonic() - start)
            saved(results)
    return results


async def _attack(guard: Guard, server: Server, folder: Path) -> Measurement:
    measurement = Measurement(server.name, guard.name, 0, None)
    flags = guard.ours if server.kind == "ours" else guard.theirs
    if guard.program:
        server = replace(server, program=f"{server.name}_{guard.program}")
    port = free_port()
    command = usual_command(server, port, flags)
    try:
        with Process(command, core=cores()[0], log=folder / f"{server.name}.log") as process:
            process.wait_for_port(port)
            target = Target(server, process, port, folder)
            async with asyncio.timeout(DEADLINE):
                await target.warm_up(guard.paths)
                measurement.detail = await guard.attack(target)
    except TimeoutError:
        measurement.problems.append("something did not come in time")
    except (NotServing, GeneratorFailed, Refused, OSError, EOFError) as error:
        measurement.problems.append(str(error) or type(error).__name__)
    return measurement


def tables(results: Results) -> list[Table]:
    """One table: for each guard its title, and a row for each figure."""
    servers = [BY_NAME[name] for name in results.servers([server.name for server in SERVERS])]
    head = ["", "goal", *(server.label for server in servers), ""]
    table = Table("Attacks, and what they come to", head)
    for guard in GUARDS:
        found = {server.name: results.of(server.name, guard.name) for server in servers}
        if not any(found.values()):
            continue
        table.rows.append([f"{guard.row}. {guard.title}", *[""] * (len(head) - 1)])
        for figure in guard.figures:
            table.rows.append(_row(figure, servers, found))
        for server in servers:
            problems = results.problems(server.name, guard.name)
            if problems:
                table.notes.append(f"{guard.row}, {server.label}: {'; '.join(problems)}.")
    table.notes += [f"Not measured: {name}, {why}" for name, why in results.skipped.items()]
    return [table]


def _row(
    figure: Figure, servers: Sequence[Server], found: dict[str, list[Measurement]]
) -> list[str]:
    cells, verdict = [], ""
    for server in servers:
        details = [each.detail for each in found[server.name] if figure.name in each.detail]
        cells.append(figure.show(details[-1][figure.name]) if details else NONE)
        if server is OURS and figure.goal and found[server.name]:
            reached = details and met(figure, details[-1][figure.name])
            verdict = "met" if reached else "MISSED"
    return [f"· {figure.label}", figure.goal, *cells, verdict]
