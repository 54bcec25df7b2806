"""Channels of a connection: history first, channels that come and go, publications to others."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from chatserver import (
    Endpoint,
    FromPath,
    Hub,
    Identity,
    Limits,
    MemoryBroker,
    Message,
    Position,
    Publication,
)
from chatserver.testing import AsyncSession, open_session

pytestmark = pytest.mark.anyio


class Plain(Endpoint):
    """Sends what was said before, as it was said."""

    encoding = "json"
    channels = ("room",)
    history = 3


class Welcome(Message):
    messages: list[Any]


class Greeting(Plain):
    """Sends it in one message, with what that makes of it."""

    def welcome(self, recent: Sequence[Publication]) -> Welcome:
        return Welcome(messages=[each.value for each in recent])


class Shorter(Plain):
    """Chooses among the publications."""

    def welcome(self, recent: Sequence[Publication]) -> Sequence[Publication]:
        return list(recent)[-2:]


class Silent(Plain):
    def welcome(self, recent: Sequence[Publication]) -> None:
        return None


class Broken(Plain):
    def welcome(self, recent: Sequence[Publication]) -> None:
        raise RuntimeError("a bug")


class Wanderer(Endpoint):
    """Joins and leaves what its client names."""

    encoding = "json"
    token: FromPath[str]

    async def authenticate(self, websocket: WebSocket) -> Any:
        if self.token == "none":
            return None
        return Identity("ann", channels=frozenset({"a", "b"}))

    async def on_receive(self, websocket: WebSocket, data: Any) -> Any:
        match data:
            case ["join", channel]:
                await self.join(channel)
            case ["join", channel, offset, epoch]:
                return (await self.join(channel, since=Position(offset, epoch))).recovered
            case ["leave", channel]:
                await self.leave(channel)
        return "done"


def application(**limits: Any) -> Starlette:
    classes = (Plain, Greeting, Shorter, Silent, Broken)
    routes = [WebSocketRoute(f"/{cls.__name__.lower()}", cls) for cls in classes]
    app = Starlette(routes=[*routes, WebSocketRoute("/wander/{token}", Wanderer)])
    app.state.hub = Hub(limits=Limits(**limits))
    return app


async def received(session: AsyncSession, count: int) -> list[Any]:
    return [await session.receive_json() for _ in range(count)]


# History with the join


async def test_what_was_said_comes_first_and_is_followed_by_what_is_live() -> None:
    app = application()
    for n in range(5):
        await app.state.hub.publish("room", {"n": n})
    async with open_session(app, "/plain") as session:
        await app.state.hub.publish("room", {"n": 5})
        assert await received(session, 4) == [{"n": n} for n in (2, 3, 4, 5)]
        await session.assert_no_message(timeout=0.01)


async def test_one_message_of_what_was_said() -> None:
    app = application()
    async with open_session(app, "/greeting") as first:
        assert await first.receive_json() == {"type": "welcome", "messages": []}
        for n in range(5):
            await app.state.hub.publish("room", [n])
        async with open_session(app, "/greeting") as session:
            await app.state.hub.publish("room", "live")
            assert await session.receive_json() == {"type": "welcome", "messages": [[2], [3], [4]]}
            assert await session.receive_json() == "live"
        assert await received(first, 6) == [[0], [1], [2], [3], [4], "live"]


async def test_publications_that_a_welcome_returns_are_sent_as_they_were() -> None:
    app = application()
    for n in range(5):
        await app.state.hub.publish("room", {"n": n})
    async with open_session(app, "/shorter") as session:
        assert await received(session, 2) == [{"n": 3}, {"n": 4}]
        await session.assert_no_message(timeout=0.01)


async def test_history_takes_half_of_the_buffer_at_most() -> None:
    app = application(max_buffer=10_000)
    for n in range(3):
        await app.state.hub.publish("room", f"{n}" * 2_000)
    async with open_session(app, "/plain") as session:
        await app.state.hub.publish("room", "live")
        assert [text[0] for text in await received(session, 3)] == ["1", "2", "l"]


async def test_a_class_may_say_nothing() -> None:
    app = application()
    await app.state.hub.publish("room", 1)
    async with open_session(app, "/silent") as session:
        await app.state.hub.publish("room", 2)
        assert await session.receive_json() == 2


async def test_a_bug_in_the_welcome_closes_its_own_connection_only() -> None:
    app = application()
    async with open_session(app, "/plain") as healthy:
        async with open_session(app, "/broken") as session:
            assert (await session.receive())["code"] == 1011
            with pytest.raises(RuntimeError, match="a bug"):
                await session.receive()
        await app.state.hub.publish("room", 1)
        assert await healthy.receive_json() == 1
    assert app.state.hub.statistics().subscriptions == 0


async def test_joins_among_publications_miss_nothing_and_get_nothing_twice() -> None:
    app = application()

    async def publish() -> None:
        for n in range(300):
            await app.state.hub.publish("room", n)
            await asyncio.sleep(0)

    async def visit(number: int) -> None:
        for _ in range(number * 7):
            await asyncio.sleep(0)
        async with open_session(app, "/plain") as session:
            numbers = [await session.receive_json()]
            while numbers[-1] < 299:
                numbers.append(await session.receive_json())
            assert numbers == list(range(numbers[0], 300))

    await asyncio.gather(publish(), *map(visit, range(30)))


# Channels that come and go


async def test_channels_come_and_go() -> None:
    app = application()
    async with open_session(app, "/wander/none") as session:
        for step, heard in (
            (["join", "a"], True),
            (["leave", "a"], False),
            (["leave", "a"], False),
            (["join", "a"], True),
        ):
            await session.send_json(step)
            assert await session.receive_json() == "done"
            await app.state.hub.publish("a", "said")
            if heard:
                assert await session.receive_json() == "said"
            else:
                await session.assert_no_message(timeout=0.01)
    assert app.state.hub.statistics().subscriptions == 0


async def test_to_join_with_a_position_sends_what_was_missed_first() -> None:
    app = application()
    position = await app.state.hub.publish("a", 1)
    for n in (2, 3):
        await app.state.hub.publish("a", n)
    async with open_session(app, "/wander/none") as session:
        await session.send_json(["join", "a", position.offset, position.epoch])
        assert await received(session, 3) == [2, 3, True]
        await app.state.hub.publish("a", 4)
        assert await session.receive_json() == 4
    async with open_session(app, "/wander/none") as session:
        await session.send_json(["join", "a", 1, "another stream"])
        assert await session.receive_json() is False


async def test_to_join_with_a_position_that_is_gone_is_as_without() -> None:
    class Greeted(Wanderer):
        history = 2

        def welcome(self, recent: Sequence[Publication]) -> list[Any]:
            return ["welcome", *(each.value for each in recent)]

    app = Starlette(routes=[WebSocketRoute("/{token}", Greeted)])
    app.state.hub = Hub()
    for n in range(5):
        position = await app.state.hub.publish("a", n)
    for epoch, expected in (
        ("another stream", [["welcome", 3, 4], False]),
        (position.epoch, [2, 3, 4, True]),
    ):
        async with open_session(app, "/none") as session:
            await session.send_json(["join", "a", 2, epoch])
            assert await received(session, len(expected)) == expected


async def test_the_token_has_its_say() -> None:
    app = application()
    async with open_session(app, "/wander/some") as session:
        await session.send_json(["join", "a"])
        assert await session.receive_json() == "done"
        await session.send_json(["join", "c"])
        close = await session.receive()
        assert (close["code"], close["reason"]) == (4403, "the token doesn't open the channel 'c'")


async def test_channels_are_bounded() -> None:
    app = application(max_channels=1)
    async with open_session(app, "/wander/none") as session:
        await session.send_json(["join", "a"])
        assert await session.receive_json() == "done"
        await session.send_json(["join", "b"])
        assert (await session.receive())["code"] == 4429


# To the others; not kept


class Talk(Endpoint):
    encoding = "json"
    channels = ("room",)
    history = 5

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        match data:
            case {"to": "others"}:
                await self.publish(data, to_others=True)
            case {"typing": _}:
                await self.publish(data, to_others=True, keep=False)
            case _:
                await self.publish(data)


async def test_to_the_others() -> None:
    app = Starlette(routes=[WebSocketRoute("/talk", Talk)])
    async with open_session(app, "/talk") as one, open_session(app, "/talk") as two:
        said = [1, {"to": "others"}, 2, {"to": "others"}, {"to": "others"}, 3]
        for each in said:
            await one.send_json(each)
        assert await received(two, 6) == said
        assert await received(one, 3) == [1, 2, 3]
        await two.send_json({"to": "others"})
        assert await one.receive_json() == {"to": "others"}
        await two.assert_no_message(timeout=0.01)
        async with open_session(app, "/talk") as three:  # all of it is kept
            assert await received(three, 5) == [*said[2:], {"to": "others"}]


async def test_what_is_not_kept_has_no_offset() -> None:
    app = Starlette(routes=[WebSocketRoute("/talk", Talk)])
    async with open_session(app, "/talk") as one, open_session(app, "/talk") as two:
        await one.send_json("first")
        await one.send_json({"typing": "ann"})
        await one.send_json("second")
        assert await received(two, 3) == ["first", {"typing": "ann"}, "second"]
        assert await received(one, 2) == ["first", "second"]
        hub: Hub = app.state.hub
        top = await hub.publish("room", "third")
        assert top.offset == 3
        assert await hub.publish("room", {"typing": "bob"}, keep=False) == top
        history = await hub.history("room")
        assert [each.value for each in history.publications] == ["first", "second", "third"]


async def test_what_is_not_kept_leaves_nothing_behind() -> None:
    hub = Hub()
    assert (await hub.publish("nobody here", "typing", keep=False)).offset == 0
    assert (await hub.history("nobody here")).publications == ()
    assert isinstance(hub.broker, MemoryBroker)
    assert not hub.broker._streams
