"""One side of a broker, in a process of its own: it publishes, or it subscribes.

    python talk.py publish MODULE URL KIND      or subscribe

MODULE is a file beside this one, with

    publisher(url, kind)        a context with the function that publishes a text to the channel
    subscribe(url, kind, heard) gives `heard` each text of the channel, until it is cancelled

It answers each line of JSON on standard input by one on standard output. A text begins with the
time at which it was published, by the clock that all processes of a machine share.
"""

# mypy: disable-error-code="import-not-found, import-untyped"

import asyncio
import contextlib
import importlib
import json
import sys
import time
from array import array
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import uvloop

#: Publishes one text, or several at once where a program can do that.
Publish: TypeAlias = Callable[..., Awaitable[object]]

DIGITS = 20
WORDS = "the kettle is on and the tea is ready"  # to 64 bytes
PROBES = 0.05  # seconds between two texts that are published until one has been heard
QUIET = 2.0  # seconds without a text after which the missing ones are lost


def text_of(sent: int, number: int = 0) -> str:
    """A text with the time in nanoseconds; several of one moment are numbered."""
    return f"{sent:0{DIGITS}d} {number:05d} {WORDS}"


async def _line() -> dict[str, Any]:
    """The next command; empty at the end of the input."""
    line = await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    return dict(json.loads(line)) if line else {}


def _answer(**values: Any) -> None:
    print(json.dumps(values), flush=True)


# The side that publishes


class Drive:
    """A closed loop: each publisher publishes again when its last text was acknowledged.

    Args:
        publish: What is measured.
        together: Whether one call publishes for all publishers.
    """

    def __init__(self, publish: Publish, *, together: bool) -> None:
        self._publish = publish
        self._together = together
        self._begin = self._end = 0
        self._sent = self._acknowledged = 0

    async def run(self, publishers: int, warmup: float, seconds: float) -> dict[str, Any]:
        """Publish for some seconds; only what is acknowledged after the warm-up counts."""
        tasks, each = (1, publishers) if self._together else (publishers, 1)
        # Many clients have a connection for each publisher, made when it publishes first.
        await asyncio.gather(*(self._say(each) for _ in range(tasks)))
        self._begin = time.monotonic_ns() + int(warmup * 1e9)
        self._end = self._begin + int(seconds * 1e9)
        used = time.process_time()
        await asyncio.gather(*(self._loop(each) for _ in range(tasks)))
        return {
            "sent": self._sent,
            "acknowledged": self._acknowledged,
            "seconds": seconds,
            "begin": self._begin,
            "end": self._end,
            "cpu": time.process_time() - used,
        }

    async def _loop(self, each: int) -> None:
        while time.monotonic_ns() < self._end:
            await self._say(each)
            if self._begin <= time.monotonic_ns() < self._end:
                self._acknowledged += each

    async def _say(self, each: int) -> None:
        now = time.monotonic_ns()
        await self._publish(*(text_of(now, number) for number in range(each)))
        self._sent += each


async def publish(module: Any, url: str, kind: str) -> None:
    async with module.publisher(url, kind) as publish:
        heard = asyncio.ensure_future(_line())
        while not heard.done():
            await publish(text_of(0))
            await asyncio.wait([heard], timeout=PROBES)
        while command := await _line():
            drive = Drive(publish, together=command.pop("together"))
            _answer(**await drive.run(**command))


# The side that subscribes


class Ears:
    """Notes when each text was published, and when it arrived."""

    def __init__(self) -> None:
        self.heard_any = asyncio.Event()
        self._sent, self._arrived = array("q"), array("q")

    def __call__(self, text: str | bytes) -> None:
        if sent := int(text[:DIGITS]):
            self._sent.append(sent)
            self._arrived.append(time.monotonic_ns())
        else:
            self.heard_any.set()

    async def report(self, sent: int, begin: int, end: int) -> dict[str, Any]:
        """What has come of the texts that were sent; begins anew then."""
        await self._all(sent)
        heard = zip(self._sent, self._arrived, strict=True)
        latencies = sorted(arrived - at for at, arrived in heard if begin <= at < end)
        received = len(self._sent)
        self._sent, self._arrived = array("q"), array("q")
        return {
            "received": received,
            "p50": _milliseconds(latencies, 0.5),
            "p99": _milliseconds(latencies, 0.99),
        }

    async def _all(self, sent: int) -> None:
        """Wait for all texts, as long as some come."""
        came, since = -1, time.monotonic()
        while (here := len(self._sent)) < sent and time.monotonic() < since + QUIET:
            if here != came:
                came, since = here, time.monotonic()
            await asyncio.sleep(0.02)


def _milliseconds(latencies: list[int], share: float) -> float | None:
    return latencies[int(share * (len(latencies) - 1))] / 1e6 if latencies else None


async def subscribe(module: Any, url: str, kind: str) -> None:
    ears = Ears()
    hearing = asyncio.ensure_future(module.subscribe(url, kind, ears))
    waiting = asyncio.ensure_future(ears.heard_any.wait())
    await asyncio.wait([hearing, waiting], return_when=asyncio.FIRST_COMPLETED)
    if hearing.done():
        hearing.result()
    _answer(ready=True)
    used = time.process_time()
    while command := await _line():
        report = await ears.report(**command)
        _answer(**report, cpu=time.process_time() - used)
        used = time.process_time()
    hearing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await hearing


if __name__ == "__main__":
    role, name, *options = sys.argv[1:]
    side = {"publish": publish, "subscribe": subscribe}[role]
    uvloop.run(side(importlib.import_module(name), *options))
