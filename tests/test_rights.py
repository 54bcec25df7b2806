"""A user of Redis that lacks a right is told which at the start, and nothing is left behind."""

import re
from collections.abc import Iterator

import pytest

from chatserver.brokers.redis import RedisBroker, RedisEngine
from chatserver.brokers.redis.addresses import nodes_for
from chatserver.brokers.redis.scripts import TEXTS
from chatserver.errors import BrokerUnavailable
from chatserver.publication import ClientInfo
from tests.engines import Cluster, Valkey

pytest_plugins = ["tests.engines"]
pytestmark = [pytest.mark.anyio, pytest.mark.live]

RULE = ("~chatserver:*", "&chatserver:*", "+@all", "-@admin", "-@dangerous", "+info")
ENGINE = RedisEngine(nodes_for("redis://localhost"))
COMMANDS = sorted({str(command[0]) for command in ENGINE._needed()})


@pytest.fixture(scope="module")
def engine() -> Iterator[Valkey]:
    """One of its own, for its keys are counted."""
    with Valkey() as engine:
        yield engine


def user(engine: Valkey, *rule: str) -> RedisBroker:
    engine.ask("ACL", "SETUSER", "chat", "reset", "on", ">secret", *rule)
    return RedisBroker(f"redis://chat:secret@127.0.0.1:{engine.port}")


async def refusal(broker: RedisBroker) -> str:
    with pytest.raises(BrokerUnavailable) as refused:
        await broker.start()
    return str(refused.value)


async def test_the_rule_of_the_docs_is_enough(engine: Valkey) -> None:
    broker = user(engine, *RULE)
    await broker.start()
    assert engine.ask("KEYS", "*:{channel}:*") == []
    await broker.subscribe("a")
    await broker.publish("a", "x", id="1")
    await broker.enter("a", ClientInfo("c"), last_will="gone")
    assert {*await broker.present("a")} == {"c"}
    await broker.lapse("a", "c")
    assert len((await broker.history("a", reverse=True)).publications) == 2
    await broker.unsubscribe("a")
    await broker.stop()
    engine.ask("FLUSHALL")


@pytest.mark.parametrize("command", [*COMMANDS, "MULTI"])
async def test_a_command_that_is_not_allowed_is_named(engine: Valkey, command: str) -> None:
    sentence = await refusal(user(engine, *RULE, f"-{command}"))
    assert sentence.startswith(f"Redis refuses {command}")
    assert f"The user at redis://127.0.0.1:{engine.port} needs {' '.join(RULE)}." in sentence
    assert engine.ask("KEYS", "*") == []


@pytest.mark.parametrize(
    ("allowed", "refused"),
    [
        ("~chatserver:{channel}:top", "chatserver:{channel}:"),
        ("~chatserver:{channel}:*", "chatserver:{process}:entries"),
        ("~chatserver:{channel}:* ~chatserver:{process}:*", "chatserver:{leases}"),
        ("~other:*", "chatserver:{channel}:top"),
        ("%R~chatserver:*", "chatserver:{channel}:top"),
    ],
)
async def test_a_key_that_is_not_allowed_is_named(
    engine: Valkey, allowed: str, refused: str
) -> None:
    sentence = await refusal(user(engine, *allowed.split(), *RULE[1:]))
    assert f" {refused}" in sentence
    assert engine.ask("KEYS", "*") == []


@pytest.mark.parametrize(
    ("allowed", "refused"),
    [("&other", "{channel}:news:0"), ("&*:news:*", "{control}:0"), ("&*control*", "news:0")],
)
async def test_a_name_that_is_not_allowed_is_named(
    engine: Valkey, allowed: str, refused: str
) -> None:
    sentence = await refusal(user(engine, RULE[0], allowed, *RULE[2:]))
    assert re.match(rf"Redis refuses PUBLISH chatserver:\S*{re.escape(refused)}: ", sentence)


async def test_in_a_cluster_each_node_is_asked(cluster: Cluster) -> None:
    for node in cluster.nodes:
        node.ask("ACL", "SETUSER", "chat", "reset", "on", ">secret", *RULE)
    broker = RedisBroker(cluster.url.replace("://", "://chat:secret@"))
    await broker.start()
    await broker.publish("a", "x")
    await broker.stop()
    cluster.nodes[-1].ask("ACL", "SETUSER", "chat", "-spublish")
    assert (await refusal(broker)).startswith("Redis refuses SPUBLISH chatserver:{channel}:news:0")


def test_all_that_scripts_use_is_tried() -> None:
    used = {name for text in TEXTS.values() for name in re.findall(r"redis\.p?call\('(\w+)'", text)}
    assert len(used) > 10
    assert used <= {*COMMANDS}
