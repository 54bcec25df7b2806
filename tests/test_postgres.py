"""The broker on PostgreSQL: what it promises beyond the contract, on a real server."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeAlias

import asyncpg
import pytest

from chatserver.brokers import Disconnect
from chatserver.brokers.base import Control
from chatserver.brokers.postgres import PostgresBroker, PostgresEngine, server
from chatserver.brokers.postgres import engine as engine_module
from chatserver.errors import BrokerUnavailable
from chatserver.publication import ClientInfo, Delivery, Joined, Left, Position, Publication
from chatserver.rules import Rules
from tests.asgi import until
from tests.engines import PASSWORD, Postgres

pytest_plugins = ["tests.engines"]
pytestmark = [pytest.mark.anyio, pytest.mark.live]

#: Carries out SQL on a connection of its own.
Sql: TypeAlias = "asyncpg.Connection[Any]"
#: Makes a broker that is not started, in the schema of the test.
Make: TypeAlias = Callable[..., PostgresBroker]

TABLES = ("channel", "publication", "publication_id", "lease", "presence", "outbox")


@pytest.fixture
def schema() -> str:
    return f"test_{secrets.token_hex(4)}"


@pytest.fixture
async def sql(postgres: Postgres, schema: str) -> AsyncIterator[Sql]:
    connection = await asyncpg.connect(postgres.url)
    # What the test finds without its schema's name is in its schema.
    await connection.execute(f"SET search_path = {schema}")
    yield connection
    await connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
    await connection.close()


@pytest.fixture
def make(postgres: Postgres, schema: str) -> Make:
    return lambda **options: PostgresBroker(postgres.url, schema=schema, **options)


@asynccontextmanager
async def started(broker: PostgresBroker) -> AsyncIterator[PostgresBroker]:
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()


@pytest.fixture
async def broker(make: Make, sql: Sql) -> AsyncIterator[PostgresBroker]:
    async with started(make()) as broker:
        yield broker


@pytest.fixture
async def another(make: Make, sql: Sql) -> AsyncIterator[PostgresBroker]:
    """The broker of another process."""
    async with started(make()) as broker:
        yield broker


class Delivered(list[Delivery]):
    def __init__(self, broker: PostgresBroker) -> None:
        super().__init__()
        broker.deliver = self.append

    @property
    def data(self) -> list[Any]:
        return [each.data for each in self if isinstance(each, Publication)]

    async def reach(self, count: int) -> None:
        await until(lambda: len(self) >= count)


@pytest.fixture
async def delivered(broker: PostgresBroker) -> Delivered:
    """What the broker delivers of the channel `chat`."""
    delivered = Delivered(broker)
    await broker.subscribe("chat")
    return delivered


async def data_of(broker: PostgresBroker, channel: str = "chat") -> list[Any]:
    return [each.data for each in (await broker.history(channel)).publications]


async def refusal(broker: PostgresBroker) -> str:
    """The sentence with which a broker does not start."""
    with pytest.raises(BrokerUnavailable) as raised:
        await broker.start()
    sentence = str(raised.value)
    assert sentence.endswith((".", ";"))
    assert "\n" not in sentence
    assert PASSWORD not in sentence
    assert "hidden" not in sentence
    return sentence


# The schema


async def test_many_processes_make_the_schema_at_once(make: Make, sql: Sql) -> None:
    async with AsyncExitStack() as stack:
        brokers = [make() for _ in range(8)]
        await asyncio.gather(*(stack.enter_async_context(started(each)) for each in brokers))
        positions = await asyncio.gather(*(each.publish("chat", "x") for each in brokers))
        assert sorted(each.offset for each in positions) == list(range(1, 9))


async def test_an_older_schema_is_brought_up_to_date_and_keeps_its_rows(
    make: Make, sql: Sql, schema: str
) -> None:
    async with started(make()) as broker:
        position = await broker.publish("chat", "x")
    await sql.execute(
        f"CREATE OR REPLACE FUNCTION {schema}.version() RETURNS integer LANGUAGE sql AS 'SELECT 0'"
    )
    async with started(make()) as broker:
        assert (await broker.history("chat")).position == position
    assert await sql.fetchval("SELECT version()".replace("version", f"{schema}.version")) == 1


async def test_a_newer_schema_is_refused(make: Make, sql: Sql, schema: str) -> None:
    async with started(make()):
        pass
    await sql.execute(
        f"CREATE OR REPLACE FUNCTION {schema}.version() RETURNS integer LANGUAGE sql AS 'SELECT 9'"
    )
    assert "has version 9, and this program knows 1: upgrade" in await refusal(make())


@pytest.mark.parametrize("schema", ["Chat", "a-b", "a" * 41, "", 'a"b', "1a"])
def test_a_schema_whose_name_needs_quotes_is_refused(schema: str) -> None:
    with pytest.raises(ValueError, match="expected the name of a schema"):
        PostgresBroker("postgresql://127.0.0.1/x", schema=schema)


# Servers that can't be used


@pytest.fixture
async def role(sql: Sql) -> AsyncIterator[str]:
    """A role with the password `hidden` and no rights."""
    name = f"role_{secrets.token_hex(4)}"
    await sql.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'hidden'")
    yield name
    await sql.execute(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


def url_of(postgres: Postgres, user: str, password: str = "hidden", database: str = "") -> str:
    return f"postgresql://{user}:{password}@127.0.0.1:{postgres.port}/{database or 'postgres'}"


async def test_a_role_without_rights_is_told_what_to_run(
    postgres: Postgres, sql: Sql, role: str, schema: str
) -> None:
    broker = PostgresBroker(url_of(postgres, role), schema=schema)
    sentence = await refusal(broker)
    assert sentence.endswith(f"run CREATE SCHEMA {schema} AUTHORIZATION {role};")
    await sql.execute(sentence.partition(" run ")[2])
    async with started(broker):
        assert (await broker.publish("chat", "x")).offset == 1


async def test_a_role_is_told_how_to_use_the_schema_of_another(
    postgres: Postgres, sql: Sql, role: str, schema: str, make: Make
) -> None:
    async with started(make()):
        pass
    other = PostgresBroker(url_of(postgres, role), schema=schema)
    for granted in ("", f"GRANT USAGE ON SCHEMA {schema} TO {role}"):
        if granted:
            await sql.execute(granted)
        sentence = await refusal(other)
        assert f"GRANT USAGE ON SCHEMA {schema} TO {role}; GRANT SELECT, INSERT" in sentence
    await sql.execute(sentence.partition(" run ")[2])
    async with started(other):
        assert (await other.publish("chat", "x")).offset == 1
        await other.enter("chat", ClientInfo("c"))
        await other._engine.tidy()


async def test_a_role_is_told_to_own_an_empty_schema(
    postgres: Postgres, sql: Sql, role: str, schema: str
) -> None:
    await sql.execute(f"CREATE SCHEMA {schema}; GRANT USAGE ON SCHEMA {schema} TO {role}")
    broker = PostgresBroker(url_of(postgres, role), schema=schema)
    sentence = await refusal(broker)
    assert f"run ALTER SCHEMA {schema} OWNER TO {role};" in sentence
    await sql.execute(sentence.partition(" run ")[2])
    async with started(broker):
        pass


async def test_a_wrong_password(postgres: Postgres) -> None:
    sentence = await refusal(PostgresBroker(url_of(postgres, "postgres")))
    assert f"127.0.0.1:{postgres.port}/postgres refuses the user or password" in sentence


async def test_no_such_database(postgres: Postgres) -> None:
    sentence = await refusal(PostgresBroker(url_of(postgres, "postgres", PASSWORD, "nowhere")))
    assert 'database "nowhere" does not exist; create it (CREATE DATABASE)' in sentence


async def test_nobody_listens() -> None:
    broker = PostgresBroker("postgresql://ann:hidden@127.0.0.1:1/chat")
    assert "The broker at 127.0.0.1:1/chat can't be reached" in await refusal(broker)


async def test_a_server_that_is_too_old(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LOWEST", 99)
    assert "the broker needs 99 or newer: upgrade it" in await refusal(make())


async def test_a_role_that_may_only_read(postgres: Postgres, sql: Sql, role: str) -> None:
    await sql.execute(f"ALTER ROLE {role} SET default_transaction_read_only = on")
    sentence = await refusal(PostgresBroker(url_of(postgres, role)))
    assert "set default_transaction_read_only = off" in sentence


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("postgresql://ann:hidden@db:5432/chat", "db:5432/chat"),
        ("postgres://ann@db/chat?password=hidden&sslmode=require", "db/chat"),
        ("postgresql://ann:hi%40dden@a:1,b:2/chat", "a:1,b:2/chat"),
        ("postgresql:///chat?host=/run/postgresql&user=ann", "/run/postgresql/chat"),
        ("postgresql://[::1]:5432/chat", "[::1]:5432/chat"),
        ("postgresql://", "localhost"),
    ],
)
def test_an_address_has_no_password(url: str, address: str) -> None:
    assert PostgresEngine(url).address == address


async def test_a_url_that_cant_be_read_is_refused_without_its_password() -> None:
    sentence = await refusal(PostgresBroker("postgresql://ann:hidden@db:port/chat"))
    assert "The URL of PostgreSQL can't be used" in sentence


# Batches


async def test_batches_of_the_same_channels_in_any_order_never_wait_in_a_circle(
    broker: PostgresBroker, another: PostgresBroker, sql: Sql
) -> None:
    before = await deadlocks(sql)
    channels = [f"chat:{number}" for number in range(40)]

    async def publish(each: PostgresBroker, names: list[str]) -> None:
        for _ in range(10):
            await asyncio.gather(*(each.publish(name, "x") for name in names))

    await asyncio.gather(publish(broker, channels), publish(another, channels[::-1]))
    tops = await broker.tops({name: Position(0, "") for name in channels})
    assert {top.offset for top in tops.values()} == {20}
    assert await deadlocks(sql) == before


async def deadlocks(sql: Sql) -> int:
    query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    return int(await sql.fetchval(query))


async def test_a_repeated_id_in_one_batch_appends_once(
    broker: PostgresBroker, delivered: Delivered
) -> None:
    await broker.publish("chat", "a", id="1")
    positions = await asyncio.gather(
        *(broker.publish("chat", f"{id}", id=id) for id in ("1", "2", "2", "3", "2", "1"))
    )
    assert [each.offset for each in positions] == [1, 2, 2, 3, 2, 1]
    await delivered.reach(3)
    assert delivered.data == ["a", "2", "3"]


async def test_an_id_is_forgotten_after_its_time(
    broker: PostgresBroker, sql: Sql, delivered: Delivered
) -> None:
    first = await broker.publish("chat", "a", id="1")
    left = await sql.fetchval("SELECT expires - now() FROM publication_id")
    assert 290 < left.total_seconds() <= 300
    await sql.execute("UPDATE publication_id SET expires = now()")
    assert (await broker.publish("chat", "b", id="1")).offset == 2
    assert (await broker.publish("chat", "c", id="1")).offset == 2
    assert first.offset == 1


async def test_what_is_too_large_to_be_announced_is_read(
    broker: PostgresBroker, another: PostgresBroker, delivered: Delivered
) -> None:
    """In the order of offsets, whatever is announced between; kept or not."""
    other = Delivered(another)
    await another.subscribe("chat")
    sizes = [10, 300_000, 10, 100, 50_000, 8_000, 1, 400_000, 30_000, 7_000]
    texts = [chr(97 + number) * size for number, size in enumerate(sizes)]
    for number, text in enumerate(texts):
        await broker.publish("chat", text, keep=number % 3 != 1)
    await asyncio.gather(*(broker.publish("chat", text, keep=text[0] != "c") for text in texts))
    expected = [*texts, *texts]
    await delivered.reach(20)
    await other.reach(20)
    assert sorted(delivered.data[10:]) == sorted(texts)
    assert delivered.data[:10] == texts
    for each in (delivered, other):
        offsets = [one.offset for one in each if isinstance(one, Publication) and one.offset]
        assert offsets == list(range(1, len(offsets) + 1))
        assert len(each.data) == len(expected)


async def test_equal_parts_of_one_announcement_all_arrive(
    broker: PostgresBroker, delivered: Delivered
) -> None:
    """Of equal notifications in a transaction PostgreSQL sends one."""
    info = ClientInfo("c", info={"name": "x" * 100_000})
    await asyncio.gather(
        *(broker.publish("chat", "x" * 100_000, keep=False, info=info) for _ in range(3))
    )
    await delivered.reach(3)
    assert delivered.data == ["x" * 100_000] * 3


async def test_large_joins_leaves_and_control_messages_arrive(
    make: Make, sql: Sql, another: PostgresBroker
) -> None:
    told: list[Control] = []
    info = ClientInfo("c", info="x" * 50_000)
    async with started(make(rules=Rules(join_leave=True))) as broker:
        delivered = Delivered(broker)
        broker.control = told.append
        await broker.subscribe("chat")
        await broker.enter("chat", info)
        await broker.leave("chat", "c")
        await another.tell(Disconnect(user="ann", reason="x" * 50_000))
        await delivered.reach(2)
        await until(lambda: told)
    assert delivered == [Joined("chat", info), Left("chat", info)]
    assert told == [Disconnect(user="ann", reason="x" * 50_000)]


async def test_a_batch_that_is_too_large_for_one_statement_is_cut(
    broker: PostgresBroker, delivered: Delivered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "MOST_APPENDED", 1000)
    texts = [f"{number:0400}" for number in range(20)] + ["y" * 3000]
    positions = await asyncio.gather(*(broker.publish("chat", text) for text in texts))
    assert [each.offset for each in positions] == list(range(1, 22))
    await delivered.reach(21)
    assert delivered.data == texts


async def test_one_that_cant_be_stored_fails_alone(
    broker: PostgresBroker, delivered: Delivered, sql: Sql
) -> None:
    await sql.execute("ALTER TABLE publication ADD CHECK (data <> 'bad'::bytea)")
    answers = await asyncio.gather(
        *(broker.publish("chat", text) for text in ("a", "bad", "b", "\ud800", "c")),
        broker.publish("chat\ud800", "x"),
        broker.publish("chat", "x", info=ClientInfo("c", info={1, object()})),
        return_exceptions=True,
    )
    failed = {number for number, each in enumerate(answers) if isinstance(each, BaseException)}
    assert failed == {1, 3, 5, 6}
    for number in failed:
        assert isinstance(answers[number], BrokerUnavailable)
        assert str(answers[number]).startswith("PostgreSQL can't be given this: ")
    await delivered.reach(3)
    assert delivered.data == ["a", "b", "c"]
    assert broker.health.state == "up"


async def test_questions_that_cant_be_asked_fail_alone(broker: PostgresBroker) -> None:
    bad = "\ud800"
    answers = await asyncio.gather(
        *(broker.subscribe("chat"), broker.subscribe(bad)),
        *(broker.history("chat"), broker.history(bad)),
        *(broker.present("chat"), broker.present(bad)),
        *(broker.enter("chat", ClientInfo("c")), broker.enter(bad, ClientInfo("c"))),
        *(broker.leave("chat", "c"), broker.leave("chat", bad)),
        return_exceptions=True,
    )
    for good, refused in zip(answers[::2], answers[1::2], strict=True):
        assert not isinstance(good, BaseException)
        assert isinstance(refused, BrokerUnavailable)
    assert await broker.present("chat") == {}
    with pytest.raises(BrokerUnavailable):
        await broker.tops({bad: Position(0, "")})
    await broker.unsubscribe(bad)
    assert broker.health.state == "up"


async def test_names_and_texts_may_hold_nul(broker: PostgresBroker) -> None:
    delivered = Delivered(broker)
    await broker.subscribe("a\0b")
    await broker.publish("a\0b", "x\0y", id="\0", info=ClientInfo("\0", "\0"), skip="\0")
    await broker.publish("a", "other")
    await delivered.reach(1)
    (kept,) = (await broker.history("a\0b")).publications
    assert delivered == [kept]
    assert (kept.channel, kept.data, kept.skip) == ("a\0b", "x\0y", "\0")


async def test_limits_of_rules_are_no_limits_of_postgresql(make: Make, sql: Sql) -> None:
    endless = Rules(history_size=10**30, history_ttl=float("inf"))
    async with started(make(rules=endless)) as broker:
        await broker.publish("chat", "x")
        await broker.enter("chat", ClientInfo("c"), last_will="gone")
        await broker.lapse("chat", "c")
        assert await data_of(broker) == ["x", "gone"]
        await sql.execute("UPDATE channel SET due = now()")
        await broker._engine.tidy()
        assert await data_of(broker) == ["x", "gone"]
