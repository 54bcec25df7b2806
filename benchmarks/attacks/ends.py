"""SIGTERM, with a thousand clients of which ten never read."""

import asyncio
import signal
import subprocess
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress

from benchmarks.attacks.client import Peer
from benchmarks.attacks.target import Figures, Target, tracebacks
from tests.raw import CLOSE

__all__ = ["sigterm"]

READERS, DEAF = 990, 10
DEADLINE = 15.0  # seconds
TOLD = (1001, 1012)


async def sigterm(target: Target) -> Figures:
    """Seconds until the process has ended; the close codes of readers; unusual lines of the log."""
    codes: Counter[int] = Counter()
    async with AsyncExitStack() as stack:
        readers = [
            await stack.enter_async_context(target.client(f"/ws/{number}"))
            for number in range(READERS)
        ]
        deaf = [await stack.enter_async_context(target.client(buffer=4096)) for _ in range(DEAF)]
        reading = [asyncio.create_task(_read(reader, codes)) for reader in readers]
        await asyncio.gather(*(peer.stuff() for peer in deaf))
        before = target.log()
        begun = time.monotonic()
        target.process.popen.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(target.process.popen.wait, DEADLINE)
        gone = time.monotonic() - begun if target.process.popen.poll() is not None else None
        await asyncio.wait(reading, timeout=1)
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
    said = target.log()[len(before) :]
    return {
        "exit": gone,
        "told": sum(codes[code] for code in TOLD),
        "tracebacks": tracebacks(said),
        "lines": len(said.splitlines()),
    }


async def _read(peer: Peer, codes: Counter[int]) -> None:
    """Read as a correct client: answer the close, then wait for the end of the connection."""
    try:
        while True:
            for each in await peer.obey():
                if each.opcode == CLOSE:
                    codes[each.code] += 1
                    return
    except (EOFError, OSError):
        codes[1006] += 1
    finally:
        peer.close()
