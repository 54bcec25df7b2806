"""Batches: what is asked in one turn goes together; order, retries, deadlines, cancellation."""

import asyncio
from collections.abc import Sequence

import pytest

from chatserver.brokers.batches import Batches
from chatserver.brokers.engine import Answers, Interrupted
from chatserver.errors import BrokerUnavailable

pytestmark = pytest.mark.anyio


class Far:
    """Something that is asked, answers when it is told to, and can be interrupted."""

    def __init__(self, at_once: int = 1, timeout: float = 5.0) -> None:
        self.asked: list[list[int]] = []
        self.answers: list[asyncio.Future[Answers[int]]] = []
        self.broken: list[Interrupted] = []
        self.batches = Batches[int, int](
            self.carry,
            at_once=at_once,
            most=512,
            timeout=timeout,
            why=lambda: "gone",
            broken=self.broke,
        )

    def broke(self, error: Interrupted) -> None:
        self.broken.append(error)

    async def carry(self, questions: Sequence[int]) -> Answers[int]:
        self.asked.append(list(questions))
        self.answers.append(asyncio.get_running_loop().create_future())
        return await self.answers[-1]

    def answer(self, batch: int) -> None:
        """Answer each question of a list with its square."""
        self.answers[batch].set_result([number**2 for number in self.asked[batch]])

    async def answer_all(self) -> None:
        while not all(answer.done() for answer in self.answers):
            for number, answer in enumerate(self.answers):
                if not answer.done():
                    self.answer(number)
            await turns()
        await self.batches.shut()


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_what_is_asked_in_one_turn_goes_together_and_what_comes_meanwhile_next() -> None:
    far = Far()
    far.batches.open()
    first = [far.batches.ask(number) for number in (1, 2)]
    await turns()
    later = [far.batches.ask(number) for number in (3, 4, 5)]
    await turns()
    assert far.asked == [[1, 2]]
    far.answer(0)
    assert await asyncio.gather(*first) == [1, 4]
    await turns()
    assert far.asked == [[1, 2], [3, 4, 5]]
    far.answer(1)
    assert await asyncio.gather(*later) == [9, 16, 25]


async def test_several_lists_are_on_the_way_at_once_if_they_may() -> None:
    far = Far(at_once=2)
    far.batches.open()
    for number in (1, 2, 3):
        far.batches.ask(number)
        await turns()
    assert far.asked == [[1], [2]]
    await far.answer_all()


async def test_a_list_is_bounded() -> None:
    far = Far(at_once=9)
    far.batches.open()
    for number in range(1200):
        far.batches.ask(number)
    await turns()
    assert list(map(len, far.asked)) == [512, 512, 176]
    await far.answer_all()


async def test_nothing_is_sent_before_it_is_open() -> None:
    far = Far()
    future = far.batches.ask(3)
    await turns()
    assert far.asked == []
    far.batches.open()
    await turns()
    far.answer(0)
    assert await future == 9


async def test_after_an_interruption_all_is_asked_again_in_the_old_order() -> None:
    far = Far(at_once=2)
    far.batches.open()
    futures = []
    for number in (1, 2, 3):
        futures.append(far.batches.ask(number))
        await turns()
    far.answers[1].set_exception(Interrupted("the second first"))
    far.answers[0].set_exception(Interrupted("then the first"))
    await far.batches.shut()
    assert [str(error) for error in far.broken] == ["the second first", "then the first"]
    assert far.asked == [[1], [2]]
    far.batches.open()
    await turns()
    assert far.asked[2:] == [[1, 2, 3]]
    far.answer(2)
    assert await asyncio.gather(*futures) == [1, 4, 9]


async def test_one_question_of_a_list_may_fail_or_be_asked_again() -> None:
    far = Far()
    far.batches.open()
    futures = [far.batches.ask(number) for number in (1, 2, 3)]
    await turns()
    far.answers[0].set_result([1, BrokerUnavailable("it can't"), Interrupted("not now")])
    assert await futures[0] == 1
    with pytest.raises(BrokerUnavailable, match="it can't"):
        await futures[1]
    await far.batches.shut()
    far.batches.open()
    await turns()
    assert far.asked == [[1, 2, 3], [3]]
    far.answer(1)
    assert await futures[2] == 9


async def test_who_waits_too_long_gets_an_error_and_is_not_asked_for_any_more() -> None:
    far = Far(timeout=0.05)
    waiting = far.batches.ask(1)
    with pytest.raises(BrokerUnavailable, match="gone"):
        await waiting
    far.batches.open()
    await turns()
    assert far.asked == []
    asked = far.batches.ask(2)
    with pytest.raises(BrokerUnavailable, match="gone"):
        await asked
    assert far.asked == [[2]]
    far.answer(0)  # too late; nobody is disturbed
    await far.batches.shut()


async def test_what_was_cancelled_is_not_sent() -> None:
    far = Far()
    futures = [far.batches.ask(number) for number in (1, 2)]
    futures[0].cancel()
    far.batches.open()
    await turns()
    assert far.asked == [[2]]
    futures[1].cancel()
    far.answer(0)
    await far.batches.shut()


async def test_giving_up_tells_everybody_who_waits() -> None:
    far = Far()
    futures = [far.batches.ask(number) for number in (1, 2)]
    far.batches.fail()
    for future in futures:
        with pytest.raises(BrokerUnavailable):
            await future


async def test_a_mistake_of_the_engine_reaches_who_asked() -> None:
    far = Far()
    far.batches.open()
    future = far.batches.ask(1)
    await turns()
    far.answers[0].set_exception(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await future
    assert far.broken == []
