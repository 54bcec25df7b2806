"""What Redis or Valkey and two servers need, for the figures in docs/many-machines.md.

    .venv/bin/python -m benchmarks.sizing           # in two minutes; Valkey comes from PyPI

Memory is what the engine says of itself (`MEMORY USAGE`, `used_memory`). Time is the processor time
of the engine and of two servers while a third process publishes texts of 64 bytes to one channel,
so many at once, and the next ones when all clients have those.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Iterable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from urllib.request import urlopen

import psutil
import valkey
from websockets.asyncio.client import ClientConnection, connect

from chatserver.brokers.redis import RedisBroker
from chatserver.publication import ClientInfo
from tests.engines import Valkey, free_port, until

ROOT = Path(__file__).resolve().parent.parent
MANY = 2000


async def memory() -> None:
    """Print the bytes that each kind of thing takes in the engine."""
    with Valkey("appendonly yes") as engine, valkey.Valkey(port=engine.port) as client:
        broker = RedisBroker(engine.url)
        await broker.start()
        for size in (64, 1024):
            for _ in range(100):
                await broker.publish(f"of {size}", "x" * size)
            stream = client.memory_usage(f"chatserver:{{of {size}}}:stream", samples=0)
            print(f"a publication of {size} bytes in a history: {int(stream or 0) / 100:.0f} bytes")

        async def growth(what: str, made: Iterable[Awaitable[object]]) -> None:
            before = client.info("memory")["used_memory"]
            await asyncio.gather(*made)
            grown = client.info("memory")["used_memory"] - before
            print(f"{what}: {grown / MANY:.0f} bytes")

        numbers = range(MANY)
        await growth("a followed channel", (broker.subscribe(f"channel {n}") for n in numbers))
        people = (ClientInfo(f"{n:032x}", f"user {n}") for n in numbers)
        await growth("a client in a presence", (broker.enter("chat", each) for each in people))
        await growth("a remembered id", (broker.publish("a", "", keep=False) for _ in numbers))
        await broker.stop()


async def time(clients: int, publications: int, at_once: int) -> None:
    """Print the processor time that publications cost the engine and two servers."""
    async with AsyncExitStack() as stack:
        engine = stack.enter_context(Valkey("appendonly yes"))
        ports = free_port(), free_port()
        servers = [serve(stack, engine.url, port) for port in ports]
        for port in ports:
            await asyncio.to_thread(until, partial(answers, port), "a server answers")
        broker = RedisBroker(engine.url)
        await broker.start()
        stack.push_async_callback(broker.stop)
        addresses = [f"ws://127.0.0.1:{ports[n % 2]}/ws/{n}" for n in range(clients)]
        connected = [await connect(each, compression=None, open_timeout=30) for each in addresses]
        await asyncio.sleep(3)  # what the accepts cost has been paid
        before = [used(process) for process in (engine.pid, *servers)]
        for _ in range(publications // at_once):
            published = (broker.publish("chat", "x" * 64) for _ in range(at_once))
            await asyncio.gather(*published, *(read(each, at_once) for each in connected))
        after = [used(process) for process in (engine.pid, *servers)]
        in_engine, *in_servers = (new - old for new, old in zip(after, before, strict=True))
        print(
            f"1,000 publications to {clients} clients, {at_once} at once: "
            f"{in_engine / publications * 1e6:.0f} ms in the engine, "
            f"{sum(in_servers) / 2 / publications * 1e6:.0f} ms in each server"
        )
        for each in connected:
            each.transport.abort()


def serve(stack: AsyncExitStack, url: str, port: int) -> int:
    """Start a server; returns its process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "chatserver", "run", "--port", str(port), "--log-level", "error"],
        cwd=ROOT,
        env={**os.environ, "CHATSERVER_BROKER": url},
        stdout=subprocess.DEVNULL,
    )
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process.pid


def answers(port: int) -> bool:
    """Whether a server is ready."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/readyz") as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


async def read(connection: ClientConnection, number: int) -> None:
    """Read so many messages."""
    for _ in range(number):
        await connection.recv()


def used(process: int) -> float:
    """Seconds of processor time that a process has used."""
    times = psutil.Process(process).cpu_times()
    return float(times.user + times.system)


async def main() -> None:
    """Measure all."""
    await memory()
    await time(2, 3000, at_once=1)
    await time(2, 64_000, at_once=64)
    await time(500, 500, at_once=1)


if __name__ == "__main__":
    asyncio.run(main())
