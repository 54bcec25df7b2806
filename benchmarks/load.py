"""The load generator: starts `load.c`, gives it commands, and reads what it measured."""

import json
import os
import select
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.environments import HERE, compiled
from benchmarks.process import Process
from benchmarks.servers import Server

__all__ = ["Connected", "Drive", "Echo", "GeneratorFailed", "Herd", "Load", "Outcome", "parse"]

MARGIN = 30  # seconds that an answer may take longer than the command asks for


class GeneratorFailed(Exception):
    """The generator ended or did not answer; its values can't be used any more."""


@dataclass(frozen=True)
class Connected:
    """The answer to `connect`."""

    connected: int
    failed: int
    seconds: float
    cpu: float
    extension: str  # what the server answered about compression
    failure: str  # the first failure; empty if there is none


@dataclass(frozen=True)
class Outcome:
    """The result for everything that was published, up to the last message that was awaited."""

    cpu: float  # share of a core that the generator used while it was measured
    sent: int
    received: int
    owed: int  # deliveries that should follow from all messages sent
    unsent: int
    complete: bool  # every member got as many messages as were sent in its group
    stalled: bool  # nothing came for `patience` seconds, though something was expected
    lost: int  # connections
    odd: int  # frames of an unexpected kind
    recorded: bool  # everything that the probes got is recorded
    bytes: int
    failure: str


@dataclass(frozen=True)
class Drive(Outcome):
    """The answer to `drive`."""

    seconds: float  # measured, after the warm-up
    deliveries: int  # in the measured time
    offered: int  # messages that were due at the given rate, sent or not
    quiet: bool  # nothing was in flight any more when it began
    # The measured time: from and to nanoseconds of the monotonic clock.
    begin: int
    end: int


@dataclass(frozen=True)
class Herd(Outcome):
    """The answer to `herd`: milliseconds of each wait; None for one that did not end."""

    waits: list[float | None]


@dataclass(frozen=True)
class Echo:
    """The answer to `echo`; p50 and p99 in milliseconds."""

    connected: int
    seconds: float
    echoes: int
    cpu: float
    lost: int
    p50: float
    p99: float
    failure: str


def parse(line: bytes) -> dict[str, Any]:
    """Parse one answer.

    Raises:
        GeneratorFailed: It is not a JSON object.
    """
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise GeneratorFailed(f"expected a JSON object from the generator, but got {line[:80]!r}")
    if "from" in answer:
        answer["begin"], answer["end"] = answer.pop("from"), answer.pop("to")
    return answer


class Load:
    """A context in which the generator runs, on its own core.

    Raises:
        Unavailable: There is no gcc to compile it.
    """

    def __init__(self, *, core: int, folder: Path) -> None:
        self.record = folder / "record"
        self._process = Process(
            [str(compiled(HERE / "load.c"))],
            core=core,
            log=folder / "load.log",
            stdin=subprocess.PIPE,
        )

    def __enter__(self) -> Self:
        self._process.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.__exit__(kind, error, traceback)

    def words(self) -> str:
        """The words that fill messages, from `number * 37` on, modulo their length."""
        return str(self._ask("words", MARGIN)["words"])

    def connect(
        self,
        server: Server,
        port: int,
        clients: int,
        *,
        compression: bool,
        groups: int = 1,
        publishers: int = 1,
    ) -> Connected:
        """Open members; they stay until `close`.

        A client that publishes in a `drive` with as many `publishers` offers no compression,
        because it must recognise its own messages.
        """
        options = {
            "n": clients,
            "groups": groups,
            "publishers": publishers,
            "timeout": 60,
            **_address(server, port, compression),
        }
        return Connected(**self._ask("connect", 60 + MARGIN, **options))

    def drive(
        self,
        server: Server,
        *,
        seconds: float,
        warmup: float,
        size: int,
        publishers: int = 1,
        each: int = 1,
        rate: float = 0,
        drain: float = 5,
        patience: float = 5,
    ) -> Drive:
        """Publish and count. `size` is that of the delivered text, with the server's prefix."""
        options = {
            "seconds": seconds,
            "warmup": warmup,
            "publishers": publishers,
            "each": each,
            "rate": rate,
            "drain": drain,
            "patience": patience,
            **self._texts(server, size),
        }
        return Drive(
            **self._ask("drive", seconds + warmup + 2 * (drain + patience) + MARGIN, **options)
        )

    def herd(
        self, server: Server, port: int, *, times: int, size: int, drain: float, patience: float
    ) -> Herd:
        """All members publish at once, and another client sends an echo; `times` times."""
        options = {
            "port": port,
            "path": "/ws",
            "times": times,
            "drain": drain,
            "patience": patience,
            **self._texts(server, size),
        }
        return Herd(**self._ask("herd", 2 * times * (drain + patience) + MARGIN, **options))

    def _texts(self, server: Server, size: int) -> dict[str, Any]:
        return {
            "size": size - server.prefix,
            "prefix": server.prefix,
            "reply": server.reply,
            "before": server.before,
            "after": server.after,
            "record": self.record,
        }

    def echo(
        self, server: Server, port: int, *, clients: int, seconds: float, warmup: float
    ) -> Echo:
        """Open connections that echo, measure, and close them."""
        options = {"n": clients, "seconds": seconds, "warmup": warmup, "size": 64, "port": port}
        return Echo(**self._ask("echo", seconds + warmup + 2 * MARGIN, path="/ws", **options))

    def close(self) -> None:
        """Drop all members."""
        self._ask("close", MARGIN)

    def _ask(self, verb: str, deadline: float, **options: Any) -> dict[str, Any]:
        """Send a command. Empty options are left out: the generator has the same defaults."""
        words = [f"{key}={value}" for key, value in options.items() if value != ""]
        stdin, stdout = self._process.popen.stdin, self._process.popen.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            os.write(stdin.fileno(), f"{verb} {' '.join(words)}\n".encode())
        except OSError as error:
            raise GeneratorFailed(f"the generator is gone: {error}") from None
        if not select.select([stdout], [], [], deadline)[0]:
            raise GeneratorFailed(f"no answer to {verb!r} within {deadline:g} seconds")
        answer = parse(stdout.readline())
        answer.pop("closed", None)
        return answer


def _address(server: Server, port: int, compression: bool) -> dict[str, Any]:
    return {
        "port": port,
        "path": server.path,
        "offer": int(compression),
        "hello": server.hello,
        "wait": server.greetings,
        "pings": int(bool(server.hello)),
    }
