"""A broker whose engine is another process: what is the same for Redis and PostgreSQL.

    connect → listen → follow every channel → lease → check → open for questions → …
            → the connection is lost → close → wait → connect

Questions wait until the lease is held, so that no client enters without one, and until `check` is
done, so that a stream that has gone back begins its new epoch before anything is appended to it.
"""

import asyncio
import itertools
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from msgspec import structs

from chatserver.brokers.base import Broker, Control, Health
from chatserver.brokers.batches import Batches
from chatserver.brokers.engine import (
    Answers,
    Draft,
    Engine,
    Enter,
    Heard,
    Interrupted,
    Leave,
    Read,
)
from chatserver.brokers.reads import answers_of, shared
from chatserver.errors import BrokerUnavailable
from chatserver.publication import (
    ClientInfo,
    History,
    Joined,
    Left,
    Payload,
    Position,
    Publication,
)
from chatserver.rules import Rules

__all__ = ["RemoteBroker"]

logger: logging.Logger = logging.getLogger("chatserver")

T = TypeVar("T")
Question = TypeVar("Question")
Answer = TypeVar("Answer")

#: Seconds for which a publisher's id, and an id that the broker gave, are remembered.
ID_TTL, OWN_ID_TTL = 300.0, 60.0
#: Seconds that connecting may take.
CONNECT_TIMEOUT = 5.0
#: Seconds between two attempts to connect: at first, and at most.
FIRST_DELAY, MOST_DELAY = 0.05, 1.0
#: Seconds between two pings, and until one without an answer means that the connection is lost.
PING_INTERVAL, PING_TIMEOUT = 2.0, 2.0
#: Seconds between two looks at where all followed streams stand.
CHECK_INTERVAL = 25.0
#: Seconds between two calls that let the engine delete what is not needed any more.
TIDY_INTERVAL = 5.0
#: Channels that are followed in one call, and entries of a dead process that are read in one.
CHANNELS_AT_ONCE, ENTRIES_AT_ONCE = 1000, 500
#: Seconds that saying goodbye to the engine may take.
GOODBYE = 1.0
NOT_STARTED = (
    "the broker has not been started: give the application lifespan=chatserver.lifespan, "
    "or await hub.start()"
)


class RemoteBroker(Broker):
    """Uses an engine. It lives on the event loop that started it; calls may come from others.

    Args:
        engine: The engine.
        rules: What is kept of every channel for which the hub has no rules.
        publish_timeout: Seconds until a question without an answer is `BrokerUnavailable`.
        lease: Seconds after which the clients of a killed process are gone.
        publish_only: It belongs to no server: it has no clients and no lease, and leaves what is
            kept of a channel as the servers want it.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        rules: Rules | None = None,
        publish_timeout: float = 5.0,
        lease: float = 30.0,
        publish_only: bool = False,
    ) -> None:
        super().__init__(rules)
        self._publish_only = publish_only
        self._engine = engine
        self._timeout = publish_timeout
        self._lease = lease
        self._health = Health("down", time.time(), NOT_STARTED)
        self._down_since = time.monotonic()
        self._home: asyncio.AbstractEventLoop | None = None
        self._running: asyncio.Task[None] | None = None
        self._broken: asyncio.Future[None] | None = None
        self._is_up = asyncio.Event()
        self._followed: set[str] = set()
        self._entered: dict[tuple[str, str], Enter] = {}
        # Clients that have left, until the engine has confirmed it.
        self._left: dict[tuple[str, str], Leave] = {}
        self._numbers = itertools.count()
        self._appends = self._batches(engine.append, engine.at_once)
        self._follows = self._batches(self._follow, engine.at_once)
        self._presence = self._batches(engine.enter_and_leave, engine.at_once)
        self._present = self._batches(engine.present, engine.at_once)
        self._tells = self._batches(engine.tell, engine.at_once)
        # One at once, so that what is asked meanwhile can be read together.
        self._reads = self._batches(self._read, 1)
        self._questions: tuple[Batches[Any, Any], ...] = (
            *(self._appends, self._follows, self._presence, self._present, self._tells),
            self._reads,
        )
        self._new_process()

    def _new_process(self) -> None:
        """Take a name for the lease: at the start, as this process may have been forked since."""
        self._process = secrets.token_hex(8)
        self._is_new = True

    # The contract

    async def start(self) -> None:
        if self._running is not None:
            raise RuntimeError("the broker has been started already")
        self._home = asyncio.get_running_loop()
        self._new_process()
        self._go_down(f"Connecting to {self._engine.address}.")
        try:
            await self._connect()
        except BaseException as error:
            self._home = None
            await self._engine.close()
            if isinstance(error, Interrupted):
                error = BrokerUnavailable(self._down_because(str(error)))
            self._go_down(str(error))
            raise error from None
        self._is_up = asyncio.Event()
        self._running = self._home.create_task(self._run())
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await self._is_up.wait()
        except BaseException as error:
            why = self._health.why
            await self.stop()
            if isinstance(error, TimeoutError):
                raise BrokerUnavailable(why) from None
            raise

    async def stop(self) -> None:
        running, self._running = self._running, None
        if running is None:
            return
        running.cancel()
        try:
            await asyncio.wait([running])
        finally:
            self._home = None

    @property
    def health(self) -> Health:
        return self._health

    async def publish(
        self,
        channel: str,
        data: Payload,
        *,
        id: str | None = None,
        info: ClientInfo | None = None,
        keep: bool = True,
        skip: str = "",
    ) -> Position:
        draft = Draft(
            channel,
            data,
            f"~{self._process}{next(self._numbers):x}" if id is None else id,
            OWN_ID_TTL if id is None else ID_TTL,
            None if self._publish_only else self.rules(channel),
            info,
            keep,
            skip,
        )
        return await self._ask(self._appends, draft)

    async def subscribe(self, channel: str) -> Position:
        async def follow() -> Position:
            self._refuse_if_gone()
            self._followed.add(channel)
            return await self._follows.ask(channel)

        return await self._at_home(follow)

    async def unsubscribe(self, channel: str) -> None:
        async def unfollow() -> None:
            self._followed.discard(channel)
            with suppress(Interrupted):  # then it is not followed any more either
                await self._engine.unfollow([channel])

        await self._at_home(unfollow)

    async def tops(self, known: Mapping[str, Position]) -> Mapping[str, Position]:
        try:
            answers = await self._at_home(lambda: self._engine.tops(known))
            for answer in answers:
                if isinstance(answer, Interrupted):
                    raise answer
        except Interrupted as error:
            raise BrokerUnavailable(self._why(str(error))) from None
        found = dict(zip(known, answers, strict=True))
        tops = {channel: top for channel, top in found.items() if isinstance(top, Position)}
        if unread := [channel for channel in found if channel not in tops]:
            text = "The positions of %d channels can't be read, such as %.100r: %s"
            logger.warning(text, len(unread), unread[0], found[unread[0]])
        return tops

    async def history(
        self,
        channel: str,
        *,
        since: Position | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> History:
        read = Read(channel, self.rules(channel).history_ttl, since, limit, reverse)
        return await self._ask(self._reads, read)

    async def enter(
        self, channel: str, info: ClientInfo, *, last_will: Payload | None = None
    ) -> None:
        announce = self.rules(channel).join_leave
        enter = Enter(channel, info, self._process, announce, last_will)

        async def ask() -> None:
            self._refuse_if_gone()
            self._entered[channel, info.client] = enter
            self._left.pop((channel, info.client), None)
            await self._presence.ask(enter)

        await self._at_home(ask)

    async def leave(self, channel: str, client: str) -> None:
        await self._leave(Leave(channel, client, self.rules(channel)))

    async def lapse(self, channel: str, client: str) -> None:
        await self._leave(Leave(channel, client, self.rules(channel), dead=True))

    async def _leave(self, leave: Leave) -> None:
        async def ask() -> None:
            key = leave.channel, leave.client
            if self._entered.pop(key, None) is not None:
                self._left[key] = leave
            self._refuse_if_gone()
            await self._ask_to_leave(leave)

        await self._at_home(ask)

    def _ask_to_leave(self, leave: Leave) -> "asyncio.Future[None]":
        """Tell the engine that a client has left, until it confirms that."""

        def note(answer: "asyncio.Future[None]") -> None:
            key = leave.channel, leave.client
            is_done = not answer.cancelled() and answer.exception() is None
            if is_done and self._left.get(key) is leave:  # else it has come back since
                del self._left[key]

        answer = self._presence.ask(leave)
        answer.add_done_callback(note)
        return answer

    async def present(self, channel: str) -> dict[str, ClientInfo]:
        return await self._ask(self._present, channel)

    async def tell(self, control: Control) -> None:
        await self._ask(self._tells, control)

    # The way to the engine's event loop

    def _ask(self, batches: Batches[Question, Answer], question: Question) -> Awaitable[Answer]:
        def ask() -> Awaitable[Answer]:
            self._refuse_if_gone()
            return batches.ask(question)

        return self._at_home(ask)

    def _at_home(self, call: Callable[[], Awaitable[T]]) -> Awaitable[T]:
        """Await something on the event loop that started the broker."""
        home = self._home
        if home is None or home.is_closed():
            raise BrokerUnavailable(self._health.why or NOT_STARTED)
        if home is asyncio.get_running_loop():
            return call()

        async def at_home() -> T:
            return await call()

        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(at_home(), home))

    def _refuse_if_gone(self) -> None:
        """Don't let anybody wait for an engine that has been away for so long already."""
        health = self._health
        if health.state == "down" and time.monotonic() - self._down_since > self._timeout:
            raise BrokerUnavailable(health.why)

    # Life

    def _batches(
        self,
        carry: Callable[[Sequence[Question]], Awaitable[Answers[Answer]]],
        at_once: int,
    ) -> Batches[Question, Answer]:
        return Batches(
            carry,
            at_once=at_once,
            most=self._engine.most,
            timeout=self._timeout,
            why=self._why,
            broken=self._break,
        )

    def _why(self, reason: str = "it does not answer") -> str:
        if self._health.state == "down":
            return self._health.why
        return f"The broker at {self._engine.address} is not available: {reason}."

    def _break(self, error: Interrupted) -> None:
        """The engine could not serve a question: connect again."""
        if self._broken is not None and not self._broken.done():
            self._broken.set_exception(error)

    async def _run(self) -> None:
        """Serve, and connect again whenever the connection is lost, until cancelled."""
        try:
            while True:
                why = await self._serve()
                if self._running is None:
                    return  # before Python 3.13, a task group that fails swallows a cancellation
                try:
                    await self._tear_down()
                except Exception:
                    # A fault of ours; without this task nothing would ever come back.
                    logger.exception("The broker failed")
                self._went_down(why)
                await self._connect_again()
        finally:
            await self._say_goodbye()

    async def _serve(self) -> str:
        """Work with a connected engine until the connection is lost; returns why it was."""
        self._broken = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_wait_for(self._broken))
                group.create_task(self._engine.listen(self._receive))
                group.create_task(_every(PING_INTERVAL, self._ping))
                await self._begin()
                group.create_task(_every(TIDY_INTERVAL, self._engine.tidy))
                if not self._publish_only:
                    group.create_task(_every(self._lease / 3, self._keep_leases))
                    group.create_task(_every(CHECK_INTERVAL, self.check))
        except ExceptionGroup as errors:
            error = _first(errors)
            if not isinstance(error, Interrupted | BrokerUnavailable | OSError):
                logger.error("The broker failed", exc_info=error)
            return str(error) or type(error).__name__
        raise AssertionError("its tasks run until one fails")

    async def _begin(self) -> None:
        followed = sorted(self._followed)
        for start in range(0, len(followed), CHANNELS_AT_ONCE):
            some = followed[start : start + CHANNELS_AT_ONCE]
            # Without those that were left meanwhile.
            wanted = [channel for channel in some if channel in self._followed]
            for answer in await self._follow(wanted):
                if isinstance(answer, Interrupted):
                    raise answer
        if not self._publish_only:
            await self._keep_lease()
            for leave in tuple(self._left.values()):
                self._ask_to_leave(leave)
            await self.check()
        for batches in self._questions:
            batches.open()
        self._came_up()

    async def _tear_down(self) -> None:
        await self._engine.close()
        for batches in self._questions:
            await batches.shut()

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await self._engine.connect()
        except TimeoutError:
            raise Interrupted(f"it did not answer within {CONNECT_TIMEOUT:g} s") from None
        except (Interrupted, BrokerUnavailable):
            raise
        except Exception as error:
            # Something else may answer at that address. In the log's details for the case that
            # the fault is ours; without a next attempt nothing would ever come back.
            logger.debug("Connecting to %s failed", self._engine.address, exc_info=True)
            raise Interrupted(f"{type(error).__name__}: {error}") from None

    async def _connect_again(self) -> None:
        delay = FIRST_DELAY
        while True:
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            try:
                await self._connect()
                return
            except (Interrupted, BrokerUnavailable) as error:
                self._health = structs.replace(self._health, why=self._down_because(str(error)))
                await self._engine.close()
            delay = min(2 * delay, MOST_DELAY)

    async def _say_goodbye(self) -> None:
        """End the lease if the engine answers, and give up what is waiting."""
        if self._health.state == "up" and not self._publish_only:
            with suppress(Interrupted, BrokerUnavailable, OSError, TimeoutError):
                async with asyncio.timeout(GOODBYE):
                    await self._engine.end(self._process)
        self._go_down("The broker was stopped.")
        await self._tear_down()
        for batches in self._questions:
            batches.fail()
        self._new_process()
        self._entered.clear()
        self._left.clear()

    def _came_up(self) -> None:
        self._health = Health("up", time.time())
        if self._is_up.is_set():
            away = time.monotonic() - self._down_since
            logger.warning("The broker at %s is back after %.1f s", self._engine.address, away)
        else:
            logger.info("The broker at %s is connected", self._engine.address)
        self._is_up.set()

    def _go_down(self, why: str) -> None:
        self._health = Health("down", time.time(), why)
        self._down_since = time.monotonic()  # the clock may be set meanwhile

    def _went_down(self, why: str) -> None:
        why = self._down_because(why)
        if self._health.state == "up":
            self._go_down(why)
            logger.warning("%s Publications wait until it is back", why)
        else:
            self._health = structs.replace(self._health, why=why)

    def _down_because(self, why: str) -> str:
        return f"The broker at {self._engine.address} can't be reached: {why.rstrip('.')}."

    # While it is connected

    async def _ping(self) -> None:
        try:
            async with asyncio.timeout(PING_TIMEOUT):
                await self._engine.ping()
        except TimeoutError:
            raise Interrupted(f"it did not answer within {PING_TIMEOUT:g} s") from None

    async def _receive(self, heard: Sequence[Heard]) -> None:
        channels: dict[str, None] = {}
        for each in heard:
            if isinstance(each, Publication | Joined | Left):
                self.deliver(each)
                channels[each.channel] = None
            else:
                self.control(each)
        for channel in channels:
            await self.written(channel)

    async def _follow(self, channels: Sequence[str]) -> Answers[Position]:
        distinct = {channel: self.rules(channel) for channel in channels}
        found = dict(zip(distinct, await self._engine.follow(distinct), strict=True))
        return [found[channel] for channel in channels]

    async def _read(self, reads: Sequence[Read]) -> Answers[History]:
        """Read once what several have asked for."""
        distinct = shared(reads)
        return answers_of(reads, distinct, await self._engine.read(distinct))

    async def _keep_leases(self) -> None:
        await self._keep_lease()
        for process in await self._engine.expired(self._lease):
            try:
                await self._bury(process)
            except BrokerUnavailable as error:
                logger.warning("The entries of a dead process can't be removed: %s", error)

    async def _keep_lease(self) -> None:
        if not self._is_new:
            if await self._engine.renew(self._process, self._lease, new=False):
                return
            # It was taken while this process could not renew it, or the engine has forgotten all.
            self._new_process()
        await self._engine.renew(self._process, self._lease, new=True)
        self._is_new = False
        for key, enter in tuple(self._entered.items()):
            if enter.process != self._process:
                self._entered[key] = again = structs.replace(enter, process=self._process)
                self._presence.ask(again).add_done_callback(_retrieve)

    async def _bury(self, process: str) -> None:
        """Remove the entries of a process that has ended, and publish its clients' last wills."""
        removed = 0
        while entries := await self._engine.entries(process, ENTRIES_AT_ONCE):
            left = [
                Leave(channel, client, self.rules(channel), dead=True, process=process)
                for channel, client in entries
            ]
            for error in await asyncio.gather(
                *map(self._presence.ask, left), return_exceptions=True
            ):
                if error is not None:
                    logger.warning("The entries of a dead process can't be removed: %s", error)
                    return
            removed += len(entries)
        await self._engine.end(process)
        logger.warning(
            "A process let its lease expire: %d entries of presence are removed, and the last "
            "wills with them published",
            removed,
        )


async def _wait_for(future: "asyncio.Future[None]") -> None:
    await future


async def _every(seconds: float, call: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(seconds)
        await call()


def _first(errors: Exception) -> Exception:
    """The first error in a group of groups."""
    while isinstance(errors, ExceptionGroup):
        errors = errors.exceptions[0]
    return errors


def _retrieve(future: "asyncio.Future[None]") -> None:
    """Nobody waits for this answer; if it is an error, the next lease is tried in its turn."""
    if not future.cancelled():
        future.exception()
