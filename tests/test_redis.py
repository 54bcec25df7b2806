"""What Redis does besides the contract: streams that have gone back."""

import asyncio
import contextlib

import pytest

from chatserver.brokers.redis import RedisBroker
from chatserver.errors import BrokerUnavailable
from chatserver.publication import ClientInfo, Position
from tests.asgi import until
from tests.engines import Valkey, free_port
from tests.proxy import Proxy

pytest_plugins = ["tests.engines"]
pytestmark = [pytest.mark.anyio, pytest.mark.live]


class Lagging:
    """Puts a channel back to where it stood, as a replica that had not got all."""

    def __init__(self, engine: Valkey, channel: str) -> None:
        self.engine = engine
        self.keys = [f"chatserver:{{{channel}}}:{name}" for name in ("top", "stream")]
        self.dumps = [engine.ask("DUMP", key) for key in self.keys]

    def take_over(self) -> None:
        for key, dump in zip(self.keys, self.dumps, strict=True):
            self.engine.ask("RESTORE", key, 0, dump, "REPLACE")


async def published(broker: RedisBroker, channel: str, count: int) -> Position:
    for _ in range(count):
        position = await broker.publish(channel, "always the same")
    return position


@pytest.mark.parametrize("since_then", [0, 1, 2, 3, 10])
async def test_a_stream_that_has_gone_back_begins_a_new_epoch(
    valkey: Valkey, since_then: int
) -> None:
    """However much others have published since the replica took over."""
    channel = f"lag{since_then}"
    heard: list[object] = []
    with Proxy(valkey.port) as proxy:
        follower, other = RedisBroker(proxy.way(valkey.url)), RedisBroker(valkey.url)
        follower.deliver = heard.append
        await follower.start()
        await other.start()
        await follower.subscribe(channel)
        await published(follower, channel, 3)
        replica = Lagging(valkey, channel)
        known = await published(follower, channel, 2)
        await until(lambda: len(heard) == 5)
        proxy.cut()
        await until(lambda: follower.health.state == "down")
        replica.take_over()
        if since_then:
            assert await published(other, channel, since_then) == Position(
                3 + since_then, known.epoch
            )
        proxy.heal()
        await until(lambda: follower.health.state == "up")
        top = (await follower.tops({channel: known}))[channel]
        assert top.epoch != known.epoch
        assert await other.tops({channel: top}) == {channel: top}
        assert (await published(other, channel, 1)) == Position(1, top.epoch)
        await follower.stop()
        await other.stop()


async def test_a_stream_that_went_on_keeps_its_epoch(valkey: Valkey) -> None:
    heard: list[object] = []
    with Proxy(valkey.port) as proxy:
        follower, other = RedisBroker(proxy.way(valkey.url)), RedisBroker(valkey.url)
        follower.deliver = heard.append
        await follower.start()
        await other.start()
        await follower.subscribe("on")
        known = await published(follower, "on", 5)
        await until(lambda: len(heard) == 5)
        proxy.cut()
        await until(lambda: follower.health.state == "down")
        later = await published(other, "on", 3)
        proxy.heal()
        await until(lambda: follower.health.state == "up")
        assert await follower.tops({"on": known}) == {"on": later}
        assert later == Position(8, known.epoch)
        await follower.stop()
        await other.stop()


@pytest.mark.parametrize(
    ("directives", "keeps"),
    [(("appendonly yes", "appendfsync always"), True), (("save 3600 1",), False)],
)
async def test_after_a_restart_a_stream_keeps_its_epoch_if_redis_writes_down_all(
    directives: tuple[str, ...], keeps: bool
) -> None:
    """A snapshot may be an old one, so nothing is known of what came after it."""
    with Valkey(*directives) as engine:
        broker = RedisBroker(engine.url)
        await broker.start()
        await broker.subscribe("a")
        known = await published(broker, "a", 5)
        if not keeps:
            engine.ask("SAVE")
        await asyncio.to_thread(engine.kill)
        await until(lambda: broker.health.state == "down")
        await asyncio.to_thread(engine.start)
        await until(lambda: broker.health.state == "up")
        history = await broker.history("a", since=known)
        assert (history.position == known) is keeps
        assert history.position.offset == 5
        assert len((await broker.history("a")).publications) == 5
        assert (await published(broker, "a", 1)) == Position(6, history.position.epoch)
        await broker.stop()


async def test_after_a_failover_every_stream_has_a_new_epoch_and_what_the_replica_had() -> None:
    with Valkey("appendonly yes") as main, Proxy(main.port) as proxy, main.replica() as replica:
        broker = RedisBroker(proxy.way(main.url))
        await broker.start()
        known = await published(broker, "a", 5)
        await until(lambda: replica.ask("XLEN", "chatserver:{a}:stream") == 5)
        replica.promote()
        proxy.target = replica.port
        proxy.drop()
        await until(lambda: broker.health.state == "down")
        await until(lambda: broker.health.state == "up")
        history = await broker.history("a")
        assert history.position.epoch != known.epoch
        assert [each.offset for each in history.publications] == [1, 2, 3, 4, 5]
        assert await published(broker, "a", 1) == Position(6, history.position.epoch)
        await broker.stop()


async def test_another_process_at_the_same_server_does_not_begin_a_new_epoch(
    valkey: Valkey,
) -> None:
    brokers = [RedisBroker(valkey.url) for _ in range(3)]
    positions = []
    for broker in brokers:
        await broker.start()
        positions.append(await published(broker, "several", 1))
    for broker in brokers:
        positions.append(await published(broker, "several", 1))
        await broker.stop()
    assert [position.offset for position in positions] == [1, 2, 3, 4, 5, 6]
    assert len({position.epoch for position in positions}) == 1


async def test_a_client_that_left_while_the_engine_was_away_is_not_present(valkey: Valkey) -> None:
    with Proxy(valkey.port) as proxy:
        broker = RedisBroker(proxy.way(valkey.url), publish_timeout=0.2)
        await broker.start()
        for client in ("ann", "bob"):
            await broker.enter("away", ClientInfo(client))
        proxy.cut()
        for client in ("ann", "bob"):
            with pytest.raises(BrokerUnavailable):
                await broker.leave("away", client)
        proxy.heal()
        await until(lambda: broker.health.state == "up")
        await broker.enter("away", ClientInfo("bob"))  # came back into the channel
        assert {*await broker.present("away")} == {"bob"}
        await broker.stop()


async def test_a_publication_that_a_read_only_redis_refused_is_tried_again() -> None:
    with Valkey() as engine:
        broker = RedisBroker(engine.url)
        await broker.start()
        engine.ask("REPLICAOF", "127.0.0.1", free_port())
        publishing = asyncio.create_task(broker.publish("a", "x"))
        await until(lambda: broker.health.state == "down")
        engine.promote()
        assert (await publishing).offset == 1
        await broker.stop()


async def test_a_full_memory_is_no_missing_right() -> None:
    with Valkey("maxmemory-policy noeviction") as engine:
        engine.ask("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(BrokerUnavailable) as refused:
            await RedisBroker(engine.url).start()
        assert ": command not allowed when used memory " in str(refused.value)
        assert str(refused.value).count("refuses") == 1
        assert "The user at" not in str(refused.value)


async def test_a_server_that_is_no_cluster_is_one_sentence(valkey: Valkey) -> None:
    broker = RedisBroker(f"redis+cluster://127.0.0.1:{valkey.port}")
    with pytest.raises(BrokerUnavailable, match="Cluster mode is not enabled on this node"):
        await broker.start()


@pytest.mark.parametrize(
    "garbage", [b":1\r\n", b"*-1\r\n", b"$-1\r\n", b"*1\r\n:1\r\n", b"\0" * 99]
)
async def test_something_else_at_the_address_does_not_end_the_broker(garbage: bytes) -> None:
    """Another program may have the engine's port while the engine is away."""
    asked: list[None] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(None)
        with contextlib.suppress(OSError):
            while await reader.read(65_536):
                writer.write(garbage * 9)
        writer.close()

    with Valkey("appendonly yes") as engine:
        broker = RedisBroker(engine.url)
        await broker.start()
        engine.kill()
        await until(lambda: broker.health.state == "down")
        server = await asyncio.start_server(answer, "127.0.0.1", engine.port)
        await until(lambda: len(asked) > 2)
        server.close()
        await asyncio.to_thread(engine.start)
        await until(lambda: broker.health.state == "up")
        assert (await broker.publish("a", "b")).offset >= 1
        await broker.stop()


async def test_who_can_not_be_buried_does_not_enter(valkey: Valkey) -> None:
    broker = RedisBroker(valkey.url)
    await broker.start()
    key = f"chatserver:{{{broker._process}}}:entries"
    valkey.ask("SET", key, "of another type")
    with pytest.raises(BrokerUnavailable, match="WRONGTYPE"):
        await broker.enter("grave", ClientInfo("c1"), last_will="gone")
    assert await broker.present("grave") == {}
    valkey.ask("DEL", key)
    await broker.stop()


async def test_a_channel_whose_position_cant_be_read_is_left_out(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    broker = RedisBroker(valkey.url)
    await broker.start()
    top = await broker.subscribe("readable")
    for channel in ("foreign:1", "foreign:2"):
        valkey.ask("SADD", f"chatserver:{{{channel}}}:top", "of another type")
    assert await broker.tops({"foreign:1": top, "readable": top, "foreign:2": top}) == {
        "readable": top
    }
    assert broker.health.state == "up"
    (line,) = caplog.messages
    assert line.startswith("The positions of 2 channels can't be read, such as 'foreign:1': ")
    await broker.stop()


def heard_again(engine: Valkey) -> list[bytes]:
    channels: list[bytes] = engine.ask("PUBSUB", "CHANNELS", "chatserver:{again:*")
    return channels


async def test_what_was_left_while_others_are_followed_again_stays_left(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatserver.brokers.remote.CHANNELS_AT_ONCE", 1)
    channels = [f"again:{number}" for number in range(50)]
    with Proxy(valkey.port) as proxy:
        broker = RedisBroker(proxy.way(valkey.url))
        await broker.start()
        await asyncio.gather(*map(broker.subscribe, channels))
        proxy.delay = 0.01
        proxy.drop()
        await until(lambda: broker.health.state == "down")
        await until(lambda: 2 < len(heard_again(valkey)) < 40)  # in the middle
        await asyncio.gather(*map(broker.unsubscribe, channels))
        proxy.delay = 0.0
        await until(lambda: broker.health.state == "up")
        assert heard_again(valkey) == []
        await broker.stop()


@pytest.mark.parametrize("kind", ["redis", "unix", "redis+sentinel", "redis+cluster"])
def test_a_wrong_option_of_the_url_is_one_sentence(kind: str) -> None:
    with pytest.raises(ValueError, match="no options of this kind"):
        RedisBroker(f"{kind}://user:secret@127.0.0.1/a?foo=1")
