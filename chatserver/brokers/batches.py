"""What is asked within one turn of the event loop goes to the engine together.

No timer delays anything: a list is sent at the end of the turn in which its first question came,
or as soon as fewer lists than allowed are on the way. So lists grow under load, by themselves.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Generic, TypeVar

from chatserver.brokers.engine import Answers, Interrupted
from chatserver.errors import BrokerUnavailable

__all__ = ["Batches"]

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class _Asked(Generic[Question, Answer]):
    __slots__ = ("deadline", "future", "number", "question")

    def __init__(
        self, number: int, question: Question, future: "asyncio.Future[Answer]", deadline: float
    ) -> None:
        self.number = number
        self.question = question
        self.future = future
        self.deadline = deadline


class Batches(Generic[Question, Answer]):
    """Carries questions of one kind to the engine, in lists, and gives each its answer.

    It is used on one event loop. A question whose answer was lost with the connection is asked
    again, in the old order, once the connection is back. Without an answer in time its asker gets
    `BrokerUnavailable`.

    Args:
        carry: Asks the engine.
        at_once: Lists on the way at once.
        most: Questions in one list at most.
        timeout: Seconds until an asker gets an error.
        why: The error's sentence.
        broken: Called when the engine was `Interrupted`; nothing is sent until `open`.
    """

    def __init__(
        self,
        carry: Callable[[Sequence[Question]], Awaitable[Answers[Answer]]],
        *,
        at_once: int,
        most: int,
        timeout: float,
        why: Callable[[], str],
        broken: Callable[[Interrupted], None],
    ) -> None:
        self._carry = carry
        self._at_once = at_once
        self._most = most
        self._timeout = timeout
        self._why = why
        self._broken = broken
        self._is_open = False
        # Takes what is waiting at the end of this turn.
        self._sending: asyncio.Task[None] | None = None
        self._count = 0
        self._waiting: deque[_Asked[Question, Answer]] = deque()
        self._on_the_way: dict[asyncio.Task[None], list[_Asked[Question, Answer]]] = {}
        self._sweeping: asyncio.TimerHandle | None = None

    def ask(self, question: Question) -> "asyncio.Future[Answer]":
        """Ask a question; if the future is cancelled before it is sent, it is not sent.

        The future's exception is `BrokerUnavailable`.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._count += 1
        deadline = loop.time() + self._timeout
        self._waiting.append(_Asked(self._count, question, future, deadline))
        if self._sweeping is None:
            self._sweep_later()
        self._wake()
        return future

    def open(self) -> None:
        """The engine can be asked now."""
        self._is_open = True
        self._wake()

    async def shut(self) -> None:
        """The engine can't be asked any more; returns when no list is on the way."""
        self._is_open = False
        while self._on_the_way:
            await asyncio.wait(self._on_the_way)

    def fail(self) -> None:
        """Give up what is waiting: each asker gets an error."""
        waiting, self._waiting = self._waiting, deque()
        self._expire(waiting)
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None

    def _wake(self) -> None:
        if (
            self._is_open
            and self._waiting
            and (self._sending is None or self._sending.done())
            and len(self._on_the_way) < self._at_once
        ):
            self._sending = asyncio.create_task(self._send())

    def _next(self) -> list[_Asked[Question, Answer]]:
        some = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
        return [asked for asked in some if not asked.future.done()]

    async def _send(self) -> None:
        task, self._sending = self._sending, None
        assert task is not None, "it is this one"
        batch = self._next() if self._is_open else []
        if not batch:
            self._wake()
            return
        self._on_the_way[task] = batch
        self._wake()  # for what is too much for one list
        try:
            answers = await self._carry([asked.question for asked in batch])
        except Exception as error:
            self._fail_or_retry(batch, error)
        else:
            self._answer(batch, answers)
        finally:
            del self._on_the_way[task]
            self._wake()

    def _answer(self, batch: list[_Asked[Question, Answer]], answers: Answers[Answer]) -> None:
        failed: dict[Exception, list[_Asked[Question, Answer]]] = {}
        for asked, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Interrupted | BrokerUnavailable):
                failed.setdefault(answer, []).append(asked)
            elif not asked.future.done():
                asked.future.set_result(answer)
        for error, some in failed.items():
            self._fail_or_retry(some, error)

    def _fail_or_retry(self, batch: Iterable[_Asked[Question, Answer]], error: Exception) -> None:
        if isinstance(error, Interrupted):
            self._is_open = False
            again = [*batch, *self._waiting]
            self._waiting = deque(sorted(again, key=lambda asked: asked.number))
            self._broken(error)
            return
        for asked in batch:
            if not asked.future.done():
                asked.future.set_exception(error)

    # Deadlines: one timer looks at all, while there are any

    def _sweep_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweeping = loop.call_later(self._timeout / 10, self._sweep)

    def _sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        late = [asked for asked in self._outstanding() if asked.deadline <= now]
        self._expire(late)
        self._sweeping = None
        if self._waiting or self._on_the_way:
            self._sweep_later()

    def _outstanding(self) -> Iterable[_Asked[Question, Answer]]:
        yield from self._waiting
        for batch in self._on_the_way.values():
            yield from batch

    def _expire(self, late: Iterable[_Asked[Question, Answer]]) -> None:
        for asked in late:
            if not asked.future.done():
                asked.future.set_exception(BrokerUnavailable(self._why()))
