"""Clients that harm others: they don't read, fall silent, disconnect, or send poison."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from statistics import median

from benchmarks.attacks.client import MOST_STUFFED, Peer
from benchmarks.attacks.kernel import now
from benchmarks.attacks.target import Figures, Target, tracebacks, unusual, worst
from benchmarks.load import Load
from benchmarks.probes import Checker
from benchmarks.process import cores
from benchmarks.regimes import SMOKE, Form, Regime
from benchmarks.results import Measurement
from benchmarks.sitting import Table, measure_drive
from tests.raw import CLOSE, CONTINUATION, FIN, PING, RSV1, TEXT, frame

__all__ = ["POISON", "SILENCE", "poison", "resets", "sender_only", "silence", "slow_reader"]

# 8
READERS = 99
PACED = Regime("paced", "", "drive", rate=100, size=8192)
WITHOUT = replace(SMOKE, seconds=3, warmup=0.5, drain=2, patience=2)
WITH = replace(WITHOUT, seconds=7)
ROUNDS = 3
BUFFER = 1 << 20  # bytes that wait for a client from which the time of the goal counts
AFTERWARDS = 4.0  # seconds for which a client that doesn't read is watched after the drive

# 9 and 27
SILENCE = 2.0  # seconds; ping interval and time-out
SILENT = 5  # of each kind
REAPED_WITHIN = 26.0
SPEAKS_FOR = 10.0

# 10
STEP = 0.03  # seconds
AT_A_TIME = 5  # messages of each speaker
SPEAKERS, VICTIMS = 8, 20

# 11
POISONOUS, AT_ONCE = 10_000, 20
GIVEN_UP = 0.3  # seconds without an answer
ENOUGH = 60.0

BROKEN = frozenset({1002})
TOO_BIG = frozenset({1009})
UNREADABLE = frozenset({1007})
FINE = frozenset({1000})
#: What is sent, and the allowed close codes. The last ones are texts like any other.
POISON: dict[str, tuple[bytes, frozenset[int]]] = {
    "binary for text": (frame(FIN | 2, b"\x00\xff"), frozenset({1003})),
    "not UTF-8": (frame(FIN | TEXT, b"\xff"), UNREADABLE),
    "a lone surrogate": (frame(FIN | TEXT, b"\xed\xa0\x80"), UNREADABLE),
    "half a character": (frame(FIN | TEXT, b"\xe2\x82"), UNREADABLE),
    "a reserved bit": (frame(FIN | RSV1 | TEXT, b"x"), BROKEN | UNREADABLE),
    "a reserved opcode": (frame(FIN | 3, b"x"), BROKEN),
    "continues nothing": (frame(FIN | CONTINUATION, b"x"), BROKEN),
    "a fragmented ping": (frame(PING, b"x"), BROKEN),
    "not masked": (b"\x81\x01x", BROKEN),
    "a long ping": (frame(FIN | PING, b"x" * 126), BROKEN),
    "close code 0": (frame(FIN | CLOSE, b"\x00\x00"), BROKEN),
    "a length of 2**63": (frame(FIN | TEXT, size=1 << 63), BROKEN | TOO_BIG),
    "a length of 2**62": (frame(FIN | TEXT, size=1 << 62), BROKEN | TOO_BIG),
    "too long": (frame(FIN | TEXT, b"x" * 65_537), TOO_BIG),
    "NUL": (frame(FIN | TEXT, b"\x00"), FINE),
    "bad JSON": (frame(FIN | TEXT, b'{"a": NaN, "a":'), FINE),
    "deep nesting": (frame(FIN | TEXT, b"[" * 10_000), FINE),
    "a huge integer": (frame(FIN | TEXT, b"9" * 10_000), FINE),
}


async def slow_reader(target: Target) -> Figures:
    """A client joins 99 others and reads nothing; they are measured without it and with it."""
    without, with_it = list[Measurement](), list[Measurement]()
    ends, memory, lives = list[float | None](), [0.0], [1.0]
    with Load(core=cores()[1], folder=target.folder) as load:
        table = Table(target.server, target.process, target.port, load, Checker(""))
        await asyncio.to_thread(table.connect, READERS)
        for _ in range(ROUNDS):
            async with target.client() as other:
                # Watched as the one that doesn't read is, because watching takes time, too.
                measurement, _ = await _drive(target, table, WITHOUT, other)
                without.append(measurement)
            resident = target.process.reset_peak()
            async with target.client("/ws/1000000", buffer=4096) as deaf:
                measurement, gone = await _drive(target, table, WITH, deaf)
                with_it.append(measurement)
                # What it was sent has filled the kernel's buffers first, then the server's.
                filled = (now(target.port)[deaf.port].queued + BUFFER) / (PACED.rate * PACED.size)
                ends.append(None if gone is None else gone - filled)
                memory.append(target.grown(resident))
                lives.append(await target.lives())
            if not _arrived(measurement):
                break
    stuck = not all(map(_arrived, with_it))
    ratios = [
        after.p99 / before.p99
        for before, after in zip(without, with_it, strict=True)
        if before.p99 and after.p99
    ]
    return {
        "delivered": min(each.value or 0 for each in with_it),
        "without": _p99(without),
        "with": None if stuck else _p99(with_it),
        "ratio": None if stuck or not ratios else median(ratios),
        "lives": min(lives),
        "aborted": worst(ends),
        "memory": max(memory),
    }


async def _drive(
    target: Target, table: Table, form: Form, watched: Peer
) -> tuple[Measurement, float | None]:
    """What the room got, and seconds until the server closed the socket of one client."""
    seconds = form.warmup + form.seconds + (AFTERWARDS if form is WITH else 0)
    watching = asyncio.create_task(target.let_go([watched], seconds, poll=0.2))
    measurement = await asyncio.to_thread(measure_drive, table, PACED, form)
    return measurement, (await watching)[watched]


def _arrived(measurement: Measurement) -> bool:
    return (measurement.value or 0) > 99


def _p99(measurements: list[Measurement]) -> float | None:
    found = [each.p99 for each in measurements if each.p99 is not None]
    return median(found) if found else None


async def silence(target: Target) -> Figures:
    """Clients that answer no ping: idle, with a full socket, and full in both directions."""
    async with AsyncExitStack() as stack:

        async def join(path: str = "/ws") -> list[Peer]:
            client = target.client
            return [
                await stack.enter_async_context(client(path, buffer=4096)) for _ in range(SILENT)
            ]

        unread = await join()
        await asyncio.gather(*(peer.stuff() for peer in unread))
        full = await join("/ws/1")
        await _fill(target, full)
        idle = await join()
        gone = await target.let_go([*full, *idle, *unread], REAPED_WITHIN)
    kinds = {"idle": idle, "full": full, "unread": unread}
    return {kind: worst(gone[peer] for peer in peers) for kind, peers in kinds.items()}


async def _fill(target: Target, deaf: list[Peer]) -> None:
    """Send messages in their room until more wait for each client than the kernel holds."""
    told = 0
    async with target.client("/ws/0") as speaker:
        with suppress(TimeoutError):
            for _ in range(MOST_STUFFED):
                async with asyncio.timeout(1):
                    await speaker.say("x" * 30_000)
                    await speaker.hear(f"Client #0 says: {'x' * 30_000}")
                told += 30_000
                found = now(target.port)
                if all(told > found[peer.port].queued + 100_000 for peer in deaf):
                    break


async def sender_only(target: Target) -> Figures:
    """A client that answers pings and sends messages to an endpoint that only sends."""
    begun = time.monotonic()
    heard = 0
    async with target.client() as peer, peer.dripping(frame(FIN | TEXT, b"still here")):
        with suppress(TimeoutError):
            async with asyncio.timeout(SPEAKS_FOR):
                with suppress(EOFError, OSError):
                    while CLOSE not in (found := [each.opcode for each in await peer.obey()]):
                        heard += found.count(TEXT)
                return {"kicked": time.monotonic() - begun, "stays": 0, "heard": heard}
    return {"kicked": None, "stays": 1, "heard": heard}


async def resets(target: Target) -> Figures:
    """Of 40 clients 20 reset their connections, each while other clients send messages."""
    heard: dict[Peer, set[bytes]] = {}
    sent = 0
    async with AsyncExitStack() as stack:

        async def join(number: int) -> Peer:
            return await stack.enter_async_context(target.client(f"/ws/{number}"))

        survivors, victims = [], []
        for number in range(VICTIMS):  # the ones between the others
            survivors.append(await join(number))
            victims.append(await join(100 + number))
        speakers = survivors[:SPEAKERS]
        listening = [asyncio.create_task(_listen(peer, heard)) for peer in survivors]
        for victim in victims:
            texts = [f"{sent} {number}".ljust(500, "x") for number in range(AT_A_TIME)]
            message = b"".join(frame(FIN | TEXT, text.encode()) for text in texts)
            # While the first members are written to, the reset waits with more messages behind it.
            for speaker in [*speakers[: SPEAKERS // 2], victim, *speakers[SPEAKERS // 2 :]]:
                with suppress(OSError):
                    if speaker is victim:
                        victim.reset()
                        continue
                    await speaker.send(message)
                    sent += AT_A_TIME
            await asyncio.sleep(STEP)
        before = -1
        while (count := sum(map(len, heard.values()))) > before and count < sent * len(survivors):
            before = count
            await asyncio.sleep(1)
        closed = sum(task.done() for task in listening)
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)
    return {
        "closed": closed,
        "lost": sent * len(survivors) - sum(map(len, heard.values())),
        "lives": await target.lives(),
    }


async def _listen(peer: Peer, heard: dict[Peer, set[bytes]]) -> None:
    """Collect what is sent in the room, until the connection ends."""
    said = heard.setdefault(peer, set())
    with suppress(EOFError, OSError):
        while True:
            for opcode, payload in await peer.obey():
                if opcode == CLOSE:
                    return
                if opcode == TEXT and payload.startswith(b"Client #") and b" says: " in payload:
                    said.add(payload)


async def poison(target: Target) -> Figures:
    """10,000 clients join, one after the other, and each sends something that it should not."""
    codes: Counter[tuple[str, int]] = Counter()
    todo = iter([list(POISON)[number % len(POISON)] for number in range(POISONOUS)])
    async with AsyncExitStack() as stack:
        innocents = [
            await stack.enter_async_context(target.client(f"/ws/{number}")) for number in range(5)
        ]
        reading = [asyncio.create_task(_listen(peer, {})) for peer in innocents]
        before = target.log()
        with suppress(TimeoutError):
            async with asyncio.timeout(ENOUGH):
                await asyncio.gather(*(_poison(target, todo, codes) for _ in range(AT_ONCE)))
        lives = await target.lives()
        closed = sum(task.done() for task in reading)
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
    said = target.log()[len(before) :]
    sent = codes.total()
    return {
        "sent": sent,
        "lives": lives,
        "closed": closed,
        "odd": sum(count for (kind, code), count in codes.items() if code not in POISON[kind][1]),
        "tracebacks": tracebacks(said),
        "lines": unusual(said) / sent if sent else None,
    }


async def _poison(target: Target, todo: Iterator[str], codes: Counter[tuple[str, int]]) -> None:
    for kind in todo:
        code = 1006
        with suppress(TimeoutError, EOFError, OSError):
            async with target.client("/ws/666") as peer:
                code = await _offend(peer, *POISON[kind])
        codes[kind, code] += 1


async def _offend(peer: Peer, data: bytes, allowed: frozenset[int]) -> int:
    """The code of its close: 1000 if the server accepted the data, and the client closed."""
    await peer.send(data)
    if allowed is not FINE:
        with suppress(TimeoutError):
            return await asyncio.wait_for(peer.end(), GIVEN_UP)
    await peer.send(frame(FIN | CLOSE, b"\x03\xe8"))
    return await asyncio.wait_for(peer.end(), GIVEN_UP)
