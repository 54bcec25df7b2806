"""Break things under load for a long time, and see whether servers come back to what they were.

    make soak                                  an hour
    make soak ARGS="--minutes 10 --only postgres"

Three servers use one engine. One fault after the other harms the engine or the way to it while
clients publish and subscribe; no server is ended. After each, when all is well and the clients have
gone, each server has to have as many tasks and descriptors as it had after the first; a second of
patience is for what ends by itself. Its memory is shown, and must level off: a reader judges that.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import NamedTuple

import psutil

from tests.engines import PATIENCE, Postgres, Valkey
from tests.faults import Field, Server, Store, Verdict, run
from tools.interrupts import exit_with

#: What is harmed. A server that is ended begins anew, and a failover leaves engines behind.
FAULTS = (
    *("the engine killed", "the engine restarted", "the engine frozen", "data flushed"),
    *("the way cut", "the way frozen", "answers lost", "connections dropped", "the way slow"),
)
ENGINES: dict[str, Callable[[], Store]] = {
    "redis": lambda: Valkey("appendonly yes", "appendfsync always"),
    "postgres": Postgres,
}
#: How many lines are printed about the memory.
LINES = 20


class State(NamedTuple):
    """What the idle servers have.

    Attributes:
        memory: Mebibytes of resident memory, of each.
        descriptors: Open files, of each.
        tasks: Tasks of the event loop, of each.
    """

    memory: Sequence[float]
    descriptors: Sequence[int]
    tasks: Sequence[int]

    def is_more_than(self, other: "State") -> bool:
        """Whether a server has more tasks or descriptors than in another state."""
        mine, others = (*self.descriptors, *self.tasks), (*other.descriptors, *other.tasks)
        return any(a > b for a, b in zip(mine, others, strict=True))

    def __str__(self) -> str:
        memory = " ".join(f"{each:.1f}" for each in self.memory)
        return f"memory {memory} MiB, descriptors {self.descriptors}, tasks {self.tasks}"


def main() -> int:
    options = _options()
    failed = False
    for name in options.only or ENGINES:
        print(f"{name}: {options.minutes:g} minutes, seed {options.seed}")
        with Field(ENGINES[name]) as field:
            failed |= asyncio.run(_soak(field, options.minutes * 60, options.seed))
    return int(failed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make soak", description="Break things for a long time.")
    parser.add_argument("--only", action="append", choices=ENGINES, help="this engine only")
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="for each engine; by default 60"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the first fault; 1 by default")
    return parser.parse_args()


async def _soak(field: Field, seconds: float, seed: int) -> bool:
    """Do harm for so long; returns whether anything is wrong."""
    began = shown = time.monotonic()
    failed = False
    idle: State | None = None
    faults = _faults(seed)
    while (now := time.monotonic()) < began + seconds:
        fault, number = next(faults)
        _show((now - began) / seconds, f"{fault}, seed {number}")
        verdict = await run(field, fault, number)
        await asyncio.to_thread(field.heal)
        state = await _state(field.servers, idle)
        failed |= _is_wrong(verdict, state, idle)
        if idle is None or now - shown >= seconds / LINES:
            shown = now
            print(f"\nafter {(now - began) / 60:.1f} minutes: {state}")
        idle = idle or state
    _show(1.0, "done")
    print(f"\nat the end: {await _state(field.servers, idle)}")
    return failed


def _faults(seed: int) -> Iterator[tuple[str, int]]:
    while True:
        yield Random(seed).choice(FAULTS), seed
        seed += 1


async def _state(servers: Sequence[Server], idle: State | None) -> State:
    """The servers' state, once it is not more than the idle one, or does not become so."""
    end = time.monotonic() + PATIENCE
    while True:
        await asyncio.sleep(0.2)
        processes = [psutil.Process(server.pid) for server in servers]
        state = State(
            [process.memory_info().rss / 2**20 for process in processes],
            [process.num_fds() for process in processes],
            [await asyncio.to_thread(server.tasks) for server in servers],
        )
        late = time.monotonic() > end
        # The first state is the one of which no part ends by itself any more.
        if late or (idle is not None and not state.is_more_than(idle)):
            return state


def _is_wrong(verdict: Verdict, state: State, idle: State | None) -> bool:
    found = [*map(str, verdict.violations), *verdict.complaints]
    if idle is not None and state.is_more_than(idle):
        found.append(f"tasks or descriptors are left: {state}")
    for sentence in found[:20]:
        print(f"\n{verdict.fault}, seed {verdict.seed}: {sentence}")
    return bool(found)


def _show(done: float, what: str) -> None:
    """Draw the progress bar."""
    filled = int(30 * min(done, 1.0))
    line = f"[{'#' * filled}{'.' * (30 - filled)}] {done:4.0%}  {what}"
    if sys.stdout.isatty():
        print(f"\r{line:<100}", end="", flush=True)


if __name__ == "__main__":
    exit_with(main)
