"""The broker on PostgreSQL: what it promises beyond the contract, on a real server."""

import asyncio
import itertools
import secrets
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from typing import Any, TypeAlias
from unittest.mock import AsyncMock

import asyncpg
import pytest
from msgspec import Raw

from chatserver.brokers import Disconnect
from chatserver.brokers.base import Control
from chatserver.brokers.engine import Draft, Interrupted
from chatserver.brokers.postgres import (
    PostgresBroker,
    PostgresEngine,
    notifications,
    server,
    sessions,
)
from chatserver.brokers.postgres import engine as engine_module
from chatserver.errors import BrokerUnavailable
from chatserver.publication import ClientInfo, Delivery, Joined, Left, Position, Publication
from chatserver.rules import Rules
from tests.asgi import until
from tests.engines import PASSWORD, Postgres
from tests.proxy import Proxy, Way

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


def sessions_of(broker: PostgresBroker) -> list[sessions.Session]:
    engine = broker._engine
    assert isinstance(engine, PostgresEngine)
    return engine._sessions


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


#: Makes of the schema what it was in version 1, with one publication.
VERSION_1 = """
    ALTER TABLE channel DROP COLUMN key,
        ADD COLUMN key bytea PRIMARY KEY GENERATED ALWAYS AS (sha256(name)) STORED;
    ALTER TABLE publication DROP COLUMN content,
        ADD COLUMN kind "char" NOT NULL DEFAULT 't' CHECK (kind IN ('t', 'b', 'j')),
        ADD COLUMN data bytea NOT NULL DEFAULT 'hello',
        ADD COLUMN info bytea, ADD COLUMN skip bytea;
    UPDATE publication SET info = '{"client":"c"}', skip = 'd';
    DROP FUNCTION append, read, read_spans;
    CREATE FUNCTION append(contents bytea[]) RETURNS bytea LANGUAGE sql AS 'SELECT null::bytea';
    CREATE FUNCTION read(names bytea[]) RETURNS bytea LANGUAGE sql AS 'SELECT null::bytea';
    CREATE FUNCTION read_spans(names bytea[]) RETURNS bytea LANGUAGE sql AS 'SELECT null::bytea';
    CREATE OR REPLACE FUNCTION version() RETURNS integer LANGUAGE sql AS 'SELECT 1';
"""


async def test_an_older_schema_is_brought_up_to_date_and_keeps_its_rows(
    make: Make, sql: Sql, schema: str
) -> None:
    async with started(make()) as broker:
        position = await broker.publish("chat", "x")
    await sql.execute(VERSION_1.replace(" version()", f" {schema}.version()"))
    async with started(make()) as broker:
        (found,) = (await broker.history("chat")).publications
        assert found == Publication("chat", "hello", 1, position.epoch, ClientInfo("c"), "d")
        assert await broker.publish("chat", "y") == Position(2, position.epoch)
        assert (await broker.publish("new", "z")).offset == 1
    assert await sql.fetchval("SELECT version()".replace("version", f"{schema}.version")) == 2


async def test_a_newer_schema_is_refused(make: Make, sql: Sql, schema: str) -> None:
    async with started(make()):
        pass
    await sql.execute(
        f"CREATE OR REPLACE FUNCTION {schema}.version() RETURNS integer LANGUAGE sql AS 'SELECT 9'"
    )
    assert "has version 9, and this program knows 2: upgrade" in await refusal(make())


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


MISSING = [
    *(f"{right} ON {{0}}.{each}" for each in TABLES for right in ("INSERT", "DELETE")),
    *("SELECT ON {0}.presence", "UPDATE ON {0}.lease", "USAGE ON SCHEMA {0}"),
    *("EXECUTE ON FUNCTION {0}.tidy", "EXECUTE ON ALL FUNCTIONS IN SCHEMA {0}"),
]


@pytest.mark.parametrize("missing", MISSING)
async def test_each_right_is_looked_for_at_the_start(
    postgres: Postgres, sql: Sql, role: str, schema: str, make: Make, missing: str
) -> None:
    async with started(make()):
        pass
    await sql.execute(f"REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} FROM PUBLIC")
    other = PostgresBroker(url_of(postgres, role), schema=schema)
    everything = (await refusal(other)).partition(" run ")[2]
    await sql.execute(everything)
    async with started(other):
        pass
    await sql.execute(f"REVOKE {missing.format(schema)} FROM {role}")
    assert (await refusal(other)).endswith(f" run {everything}")


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
    sentence = await refusal(broker)
    assert sentence == "The broker at 127.0.0.1:1/chat can't be reached: nobody listens there."


async def test_a_server_that_is_too_old(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LOWEST", 99)
    assert "the broker needs 99 or newer: upgrade it" in await refusal(make())


async def test_a_role_that_may_only_read(postgres: Postgres, sql: Sql, role: str) -> None:
    await sql.execute(f"ALTER ROLE {role} SET default_transaction_read_only = on")
    sentence = await refusal(PostgresBroker(url_of(postgres, role)))
    assert "set default_transaction_read_only = off" in sentence


async def test_a_standby_is_refused_until_it_takes_over() -> None:
    with Postgres() as main, main.replica() as standby:
        broker = PostgresBroker(standby.url)
        assert "is a standby, which can only be read: give the broker" in await refusal(broker)
        hosts = f"127.0.0.1:{standby.port},127.0.0.1:{main.port}"
        either = PostgresBroker(standby.url.replace(f"127.0.0.1:{standby.port}", hosts))
        for _ in range(3):
            async with started(either):  # it finds the primary
                await either.publish("chat", "x")
        main.stop()
        standby.promote()
        async with started(broker), started(either):
            pass


async def test_a_host_that_does_not_answer_is_passed_over(
    postgres: Postgres, sql: Sql, schema: str
) -> None:
    with Proxy(postgres.port) as proxy:
        proxy.freeze()
        url = postgres.url.replace("127.0.0.1:", f"127.0.0.1:{proxy.port},127.0.0.1:")
        async with started(PostgresBroker(url, schema=schema)) as broker:
            assert (await broker.publish("chat", "x")).offset == 1


class Pooler:
    """A pooler in transaction mode: all its clients share one connection to the server.

    The first client logs in, and the others are told the same. A client has the connection from
    its first message until the server is ready for another transaction.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._greeting = b""
        self._turn = asyncio.Lock()
        self._client: asyncio.StreamWriter | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Pooler":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self._answers, self._questions = await asyncio.open_connection("127.0.0.1", self._target)
        self._tasks.append(asyncio.create_task(self._answer()))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._questions.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.append(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(asyncio.IncompleteReadError, OSError):
            length = await reader.readexactly(4)
            startup = length + await reader.readexactly(int.from_bytes(length, "big") - 4)
            await self._turn.acquire()
            if self._greeting:
                writer.write(self._greeting)
                self._turn.release()
            else:
                self._client = writer
                self._questions.write(startup)
            while (question := await self._message(reader))[:1] != b"X":
                if self._client is not writer:
                    await self._turn.acquire()
                    self._client = writer
                self._questions.write(question)

    async def _answer(self) -> None:
        """Hand on what the server says, in whoever's turn it is."""
        is_greeting = True
        while answer := await self._message(self._answers):
            assert self._client is not None
            self._client.write(answer)
            if is_greeting:
                self._greeting += answer
            if answer == b"Z\0\0\0\x05I":  # ready, outside of a transaction
                is_greeting = False
                self._client = None
                self._turn.release()

    @staticmethod
    async def _message(reader: asyncio.StreamReader) -> bytes:
        head = await reader.readexactly(5)
        return head + await reader.readexactly(int.from_bytes(head[1:], "big") - 4)


async def test_a_pooler_of_transactions_is_refused() -> None:
    with Postgres() as engine:
        rules = engine.folder / "data" / "pg_hba.conf"
        rules.write_text("host all all 127.0.0.1/32 trust\n")
        engine.stop()
        engine.start()
        async with Pooler(engine.port) as pooler:
            url = url_of(engine, "postgres").replace(f"{engine.port}", f"{pooler.port}")
            sentence = await refusal(PostgresBroker(f"{url}?sslmode=disable"))
        assert "is behind a pooler in transaction mode" in sentence


async def test_a_pooler_that_is_noticed_later_is_refused_then(
    broker: PostgresBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had so much to do that each connection looked as if it were one of the server's own."""
    process = AsyncMock(side_effect=itertools.count(10**9))
    monkeypatch.setattr(sessions.Session, "process", process)
    await until(lambda: "pooler in transaction mode" in broker.health.why)
    monkeypatch.undo()
    await until(lambda: broker.health.state == "up")


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("postgresql://ann:hidden@db:5432/chat", "db:5432/chat"),
        ("postgres://ann@db/chat?password=hidden&sslmode=require", "db/chat"),
        ("postgresql://ann:hi%40dden@a:1,b:2/chat", "a:1,b:2/chat"),
        ("postgresql:///chat?host=/run/postgresql&user=ann", "/run/postgresql/chat"),
        ("postgresql://[::1]:5432/chat", "[::1]:5432/chat"),
        ("postgresql://", "localhost"),
        ("postgresql://ann:hid@den/hid?den#hid@db/chat?password=hidden", "db/chat"),
    ],
)
def test_an_address_has_no_password(url: str, address: str) -> None:
    assert PostgresEngine(url).address == address


@pytest.mark.parametrize(
    "place", ["ann:hidden@db:port/chat", "ann:x:hidden/@db/chat", "ann:x@db:hidden@db:1:2/chat"]
)
async def test_a_url_that_cant_be_read_is_refused_without_its_password(place: str) -> None:
    sentence = await refusal(PostgresBroker(f"postgresql://{place}"))
    assert "The URL of PostgreSQL can't be used" in sentence


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_the_encoding_of_the_database_is_no_matter(
    postgres: Postgres, sql: Sql, encoding: str
) -> None:
    name = f"database_{encoding.lower()}"
    await sql.execute(f"CREATE DATABASE {name} ENCODING {encoding} TEMPLATE template0 LOCALE 'C'")
    url = url_of(postgres, "postgres", PASSWORD, name)
    async with started(PostgresBroker(url)) as broker:
        delivered = Delivered(broker)
        for channel in ("é", "😀"):
            await broker.subscribe(channel)
        info = ClientInfo("😀", info={"name": "😀\0"})
        top = await broker.publish("😀", "😀", id="😀", info=info, skip="😀")
        await broker.enter("😀", info)
        connection = await asyncpg.connect(url)
        await connection.execute("SELECT chatserver.publish('é', 'é')")
        await connection.close()
        await delivered.reach(2)
        assert delivered[0] == Publication("😀", "😀", 1, top.epoch, info, "😀")
        assert delivered.data[1] == "é"
        assert await broker.present("😀") == {"😀": info}
    await sql.execute(f"DROP DATABASE {name} WITH (FORCE)")


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
    bad = b64encode(b"bad").decode()
    await sql.execute(f"ALTER TABLE publication ADD CHECK (content NOT LIKE '%{bad}%')")
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


async def test_what_was_stored_before_one_that_cant_be_is_not_stored_again(
    broker: PostgresBroker, delivered: Delivered, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "MOST_APPENDED", 1)
    bad = b64encode(b"bad").decode()
    await sql.execute(f"ALTER TABLE publication ADD CHECK (content NOT LIKE '%{bad}%')")
    answers = await asyncio.gather(
        *(broker.publish("chat", text) for text in ("a", "bad", "b")), return_exceptions=True
    )
    assert isinstance(answers[1], BrokerUnavailable)
    await broker.publish("chat", "c")
    await delivered.reach(3)
    assert delivered.data == ["a", "b", "c"]


async def test_a_list_that_takes_several_statements_keeps_its_place(
    broker: PostgresBroker, sql: Sql
) -> None:
    await broker.publish("chat", "0")
    bad = b64encode(b"bad").decode()
    await sql.execute(f"ALTER TABLE publication ADD CHECK (content NOT LIKE '%{bad}%')")
    engine, numbers = broker._engine, itertools.count()
    lists = [
        [Draft("chat", text, f"{next(numbers)}", 60.0) for text in texts]
        for texts in (("1", "bad", "2"), ("3",), ("bad", "4"), ("5",))
    ]
    await asyncio.gather(*map(engine.append, lists))
    assert await data_of(broker) == ["0", "1", "2", "3", "4", "5"]


async def test_nothing_overtakes_a_list_that_is_asked_again(
    broker: PostgresBroker, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    await broker.publish("chat", "0")
    monkeypatch.setattr(sessions, "ANSWER_TIMEOUT", 0.2)
    engine = broker._engine
    async with sql.transaction():
        await sql.execute("SELECT FROM channel FOR UPDATE")
        lists = [[Draft("chat", text, text, 60.0)] for text in ("1", "2")]
        first, second = (asyncio.ensure_future(engine.append(each)) for each in lists)
        with pytest.raises(Interrupted):
            await first
    with pytest.raises(Interrupted):
        await second
    await until(lambda: broker.health.state == "up")
    assert "2" not in await data_of(broker)


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
    await broker.unsubscribe(bad)
    assert broker.health.state == "up"


async def test_a_channel_whose_position_cant_be_read_is_left_out(
    broker: PostgresBroker, caplog: pytest.LogCaptureFixture
) -> None:
    top = await broker.subscribe("chat")
    known = dict.fromkeys(("\ud800", "chat", "a\ud800"), top)
    assert await broker.tops(known) == {"chat": top}
    assert broker.health.state == "up"
    (line,) = caplog.messages
    assert line.startswith("The positions of 2 channels can't be read, such as '\\ud800': ")


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


# An application's own transaction


async def test_what_a_transaction_publishes_is_delivered_when_it_commits(
    broker: PostgresBroker, delivered: Delivered, sql: Sql
) -> None:
    transaction = sql.transaction()
    await transaction.start()
    await sql.execute("SELECT publish('chat', 'hello'), publish('chat', '{\"a\": 1}'::jsonb)")
    await sql.execute("SELECT publish('other', 'elsewhere')")
    # Nobody waits for the transaction, and nobody sees what it has published.
    await broker.publish("chat", "meanwhile")
    assert await data_of(broker) == ["meanwhile"]
    await transaction.commit()
    await delivered.reach(3)
    assert delivered.data[:2] == ["meanwhile", "hello"]
    json = delivered.data[2]
    assert isinstance(json, Raw)
    assert bytes(json) == b'{"a": 1}'
    assert [each.offset for each in delivered if isinstance(each, Publication)] == [1, 2, 3]
    assert await data_of(broker, "other") == ["elsewhere"]
    assert await sql.fetchval("SELECT count(*) FROM outbox") == 0


@pytest.mark.parametrize("values", ["'', 'secret'", "NULL, 'secret'", "'chat', NULL::text"])
async def test_what_cant_be_published_in_a_transaction_is_refused_in_a_sentence(
    broker: PostgresBroker, sql: Sql, values: str
) -> None:
    with pytest.raises(asyncpg.DataError, match="needs a channel and data"):
        await sql.execute(f"SELECT publish({values})")


async def test_what_is_rolled_back_is_never_delivered(
    broker: PostgresBroker, delivered: Delivered, sql: Sql
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with sql.transaction():
            await sql.execute("SELECT publish('chat', 'never', 'id')")
            raise ZeroDivisionError
    async with sql.transaction():
        await sql.execute("SELECT publish('chat', 'a', '1')")
        with pytest.raises(ZeroDivisionError):
            async with sql.transaction():  # a savepoint
                await sql.execute("SELECT publish('chat', 'never', '2')")
                raise ZeroDivisionError
        await sql.execute("SELECT publish('chat', 'b', 'id')")
    await broker.publish("chat", "c", id="2")
    await delivered.reach(3)
    assert delivered.data == ["a", "b", "c"]
    assert await data_of(broker) == ["a", "b", "c"]


async def test_a_transactions_ids_are_the_brokers_ids(
    broker: PostgresBroker, delivered: Delivered, sql: Sql
) -> None:
    await broker.publish("chat", "a", id="é1")
    async with sql.transaction():
        await sql.execute("SELECT publish('chat', 'again', 'é1'), publish('chat', 'b', '2')")
        await sql.execute("SELECT publish('chat', 'again', '2'), publish('other', 'x', '2')")
        await sql.execute("SELECT publish('chat', 'c', NULL), publish('chat', 'c', NULL)")
    await sql.execute("SELECT publish('chat', 'again', '2')")
    assert (await broker.publish("chat", "again", id="2")).offset == 2
    await delivered.reach(4)
    assert delivered.data == ["a", "b", "c", "c"]


async def test_a_transaction_leaves_what_is_kept_of_a_channel(make: Make, sql: Sql) -> None:
    async with started(make(rules=Rules(history_size=2))) as broker:
        await broker.publish("chat", "a")
        await sql.execute("SELECT publish('chat', 'b'), publish('chat', 'c')")
        assert await data_of(broker) == ["b", "c"]


async def test_what_is_kept_of_a_followed_channel_holds_for_those_who_dont_know_it(
    make: Make, sql: Sql
) -> None:
    async with (
        started(make(rules=Rules(history_size=2))) as broker,
        started(make(publish_only=True)) as publisher,
    ):
        await broker.subscribe("chat")
        await sql.execute("SELECT publish('chat', 'a'), publish('chat', 'b')")
        await publisher.publish("chat", "c")
        assert await data_of(broker) == ["b", "c"]
        await publisher.publish("other", "x")
        query = "SELECT size, ttl FROM channel ORDER BY size"
        assert await sql.fetch(query) == [(2, 300), (100, 300)]


async def test_transactions_publish_to_channels_in_any_order_without_a_deadlock(
    broker: PostgresBroker, postgres: Postgres, schema: str, sql: Sql
) -> None:
    before = await deadlocks(sql)
    channels = [f"chat:{number}" for number in range(10)]

    async def publish(names: list[str]) -> None:
        connection = await asyncpg.connect(postgres.url)
        for _ in range(20):
            async with connection.transaction():
                for name in names:
                    await connection.execute(f"SELECT {schema}.publish($1, 'x')", name)
        await connection.close()

    await asyncio.gather(publish(channels), publish(channels[::-1]), publish(channels))
    tops = await broker.tops({name: Position(0, "") for name in channels})
    assert {top.offset for top in tops.values()} == {60}
    assert await deadlocks(sql) == before


async def test_a_role_with_nothing_but_usage_may_publish_and_do_no_more(
    broker: PostgresBroker,
    delivered: Delivered,
    postgres: Postgres,
    sql: Sql,
    role: str,
    schema: str,
) -> None:
    await sql.execute(f"GRANT USAGE ON SCHEMA {schema} TO {role}")
    connection = await asyncpg.connect(url_of(postgres, role))
    await connection.execute(f"SELECT {schema}.publish('chat', 'hello')")
    for forbidden in (
        f"SELECT * FROM {schema}.publication",
        f"SELECT {schema}.append_each('{{a}}', '{{}}', '{{}}', '{{}}', '{{t}}', '{{x}}')",
        f"SELECT {schema}.tidy(1)",
        f"DELETE FROM {schema}.outbox",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(forbidden)
    await connection.close()
    await delivered.reach(1)
    assert delivered.data == ["hello"]


async def test_a_large_transaction_arrives_whole(
    broker: PostgresBroker, delivered: Delivered, sql: Sql
) -> None:
    await sql.execute(
        "SELECT publish('chat', n || repeat('x', 100)) FROM generate_series(1, 3000) n"
    )
    await delivered.reach(3000)
    assert [text.rstrip("x") for text in delivered.data] == [f"{n}" for n in range(1, 3001)]


# Streams that went back


async def test_a_stream_that_went_back_begins_one_new_epoch_and_keeps_its_history(
    broker: PostgresBroker, another: PostgresBroker, sql: Sql
) -> None:
    for number in range(5):
        top = await broker.publish("chat", f"{number}")
    other = await broker.publish("other", "x")
    await sql.execute("UPDATE channel SET top = 3 WHERE top = 5")
    await sql.execute("DELETE FROM publication WHERE position > 3")
    known = {"chat": top, "other": other}
    found = await asyncio.gather(*(each.tops(known) for each in (broker, another) * 4))
    assert all(each == found[0] for each in found)
    assert found[0]["other"] == other
    assert found[0]["chat"].offset == 3
    assert found[0]["chat"].epoch != top.epoch
    # Who knows less has missed nothing of it, and still is told of the new epoch.
    assert await another.tops({"chat": Position(2, top.epoch)}) == {"chat": found[0]["chat"]}
    assert await data_of(broker) == ["0", "1", "2"]
    assert await broker.publish("chat", "3") == Position(4, found[0]["chat"].epoch)


async def test_each_stream_begins_a_new_epoch_on_a_server_that_took_over(
    broker: PostgresBroker, another: PostgresBroker, delivered: Delivered, sql: Sql
) -> None:
    """It may lack publications that some process has delivered, and others are about to replace."""
    first = await broker.publish("chat", "a")
    assert await sql.fetchval("SELECT timeline FROM channel") == "00000001"
    await sql.execute("UPDATE channel SET timeline = '00000000'")
    second = await another.publish("chat", "b")
    assert second.offset == 2
    assert second.epoch != first.epoch
    await delivered.reach(2)
    assert delivered[1] == Publication("chat", "b", 2, second.epoch)
    await sql.execute("UPDATE channel SET timeline = '00000000'")
    third = (await broker.tops({"chat": second}))["chat"]
    assert third.offset == 2
    assert third.epoch not in (first.epoch, second.epoch)
    assert await broker.publish("chat", "c") == Position(3, third.epoch)


async def test_a_follower_learns_that_a_lagging_standby_took_over_however_much_came_since() -> None:
    with Postgres() as main, main.replica() as standby, Proxy(main.port) as proxy:
        follower, other = PostgresBroker(proxy.way(main.url)), PostgresBroker(standby.url)
        delivered = Delivered(follower)
        async with started(follower):
            await follower.subscribe("chat")
            await follower.publish("chat", "1")
            ((position,),) = main.sql("SELECT pg_current_wal_lsn()")
            query = f"SELECT pg_last_wal_replay_lsn() >= '{position}'"
            await until(lambda: standby.sql(query) == [["t"]])
            standby.stop()
            for text in ("2", "3"):
                known = await follower.publish("chat", text)
            await delivered.reach(3)
            proxy.cut()
            main.kill()
            standby.start()
            standby.promote()
            async with started(other):
                for text in ("b", "c", "d"):
                    top = await other.publish("chat", text)
                assert top.offset == 4
                assert top.epoch != known.epoch
                proxy.target = standby.port
                proxy.heal()
                await until(lambda: follower.health.state == "up")
                assert await follower.tops({"chat": known}) == {"chat": top}
                assert (await follower.publish("chat", "e")) == Position(5, top.epoch)
                assert await data_of(follower) == ["1", "b", "c", "d", "e"]


async def test_what_was_acknowledged_is_stored_though_the_database_says_otherwise(
    postgres: Postgres, sql: Sql, role: str, schema: str
) -> None:
    await sql.execute(f"ALTER ROLE {role} SET synchronous_commit = off")
    await sql.execute(f"CREATE SCHEMA {schema} AUTHORIZATION {role}")
    async with started(PostgresBroker(url_of(postgres, role), schema=schema)) as broker:
        for session in sessions_of(broker):
            assert (await session.fetchone("SHOW synchronous_commit"))[0] == "on"


@pytest.mark.parametrize("loss", ["TRUNCATE {}", "DROP SCHEMA {} CASCADE"])
async def test_what_was_deleted_begins_anew(
    broker: PostgresBroker, delivered: Delivered, sql: Sql, schema: str, loss: str
) -> None:
    first = await broker.publish("chat", "a")
    await broker.enter("chat", ClientInfo("c"))
    tables = ", ".join(f"{schema}.{table}" for table in TABLES)
    await sql.execute(loss.format(tables if "TRUNCATE" in loss else schema))
    second = await broker.publish("chat", "b")
    assert second.offset == 1
    assert second.epoch != first.epoch
    await until(lambda: "b" in delivered.data)


# Cleaning up


async def age(sql: Sql, seconds: float) -> None:
    """Let time pass."""
    interval = f"interval '{seconds} seconds'"
    await sql.execute(
        f"UPDATE channel SET used = used - {interval}, due = due - {interval};"
        f"UPDATE publication SET time = time - {interval};"
        f"UPDATE publication_id SET expires = expires - {interval};"
        f"UPDATE lease SET expires = expires - {interval}"
    )


async def rows(sql: Sql) -> dict[str, int]:
    return {table: await sql.fetchval(f"SELECT count(*) FROM {table}") for table in TABLES}


async def test_what_is_beyond_the_size_is_deleted_after_a_while(make: Make, sql: Sql) -> None:
    async with started(make(rules=Rules(history_size=10, history_ttl=1000))) as broker:
        await asyncio.gather(*(broker.publish("chat", f"{number}") for number in range(500)))
        await age(sql, 50)
        await broker._engine.tidy()
        assert (await rows(sql))["publication"] == 500  # someone may be about to read them
        await age(sql, 61)
        await broker._engine.tidy()
        assert (await rows(sql))["publication"] == 10
        assert await data_of(broker) == [f"{number}" for number in range(490, 500)]


async def test_what_is_too_old_is_deleted(make: Make, sql: Sql) -> None:
    async with started(make(rules=Rules(history_ttl=100))) as broker:
        position = await broker.publish("chat", "old")
        await age(sql, 30)
        await broker._engine.tidy()
        await broker.publish("chat", "young")
        await age(sql, 71)
        await broker._engine.tidy()
        assert await sql.fetch("SELECT position FROM publication") == [(2,)]
        await age(sql, 100)
        await broker._engine.tidy()
        assert (await rows(sql))["publication"] == 0
        assert (await broker.history("chat")).position == Position(2, position.epoch)


async def test_ids_are_deleted_when_they_have_expired(broker: PostgresBroker, sql: Sql) -> None:
    await broker.publish("chat", "a")
    await broker.publish("chat", "b", id="1")
    for passed, left in ((61, 1), (200, 1), (61, 0)):
        await age(sql, passed)
        await broker._engine.tidy()
        assert (await rows(sql))["publication_id"] == left


async def test_an_idle_channel_is_deleted_unless_it_is_followed(
    broker: PostgresBroker, another: PostgresBroker, sql: Sql
) -> None:
    followed = await broker.subscribe("followed")
    await broker.publish("idle", "x")
    await broker.unsubscribe("idle")
    for _ in range(8):
        await age(sql, 600)
        assert await broker.tops({"followed": followed}) == {"followed": followed}
        await another._engine.tidy()
    assert [row["name"] for row in await sql.fetch("SELECT name FROM channel")] == [b"followed"]
    assert (await broker.publish("idle", "y")).offset == 1


async def test_nothing_is_left_of_a_busy_day(make: Make, sql: Sql) -> None:
    async with started(make(rules=Rules(history_size=5))) as broker:
        for number in range(20):
            names = [f"chat:{number}:{index}" for index in range(50)]
            await asyncio.gather(*(broker.publish(name, "x") for name in names))
            await asyncio.gather(*(broker.enter(name, ClientInfo(name)) for name in names))
            await asyncio.gather(*(broker.leave(name, name) for name in names))
            await age(sql, 600)
            await broker._engine.tidy()
        assert (await rows(sql))["channel"] <= 500
        await age(sql, 4000)
        await broker._engine.tidy()
        left = await rows(sql)
    assert left == dict.fromkeys(TABLES, 0) | {"lease": 1}
    assert (await rows(sql))["lease"] == 0


async def test_many_rows_are_deleted_in_small_batches(
    make: Make, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "TIDY_ROWS", 7)
    async with started(make(rules=Rules(history_size=0))) as broker:
        await asyncio.gather(*(broker.publish(f"{number % 3}", "x") for number in range(100)))
        await age(sql, 100)
        await broker._engine.tidy()
        left = await rows(sql)
        assert (left["publication"], left["publication_id"]) == (0, 0)


async def test_one_process_at_a_time_deletes_and_nobody_waits(
    broker: PostgresBroker, postgres: Postgres, schema: str, sql: Sql
) -> None:
    await broker.publish("chat", "x")
    await age(sql, 1000)
    other = await asyncpg.connect(postgres.url)
    async with other.transaction():
        assert await other.fetchval(f"SELECT {schema}.tidy(100)") is False
        await broker._engine.tidy()
        assert (await rows(sql))["publication"] == 1
        # Publishers don't wait for it either.
        assert (await broker.publish("new", "x")).offset == 1
    await other.close()
    await age(sql, 1000)
    await broker._engine.tidy()
    assert (await rows(sql))["publication"] == 0


async def test_a_process_that_may_not_delete_says_so_and_goes_on(
    broker: PostgresBroker, sql: Sql, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    await sql.execute(
        "DROP FUNCTION tidy; CREATE FUNCTION tidy(integer) RETURNS boolean"
        " LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$"
    )
    await broker._engine.tidy()
    assert "can't delete what is not needed any more: PostgreSQL refuses: no." in caplog.text
    assert (await broker.publish("chat", "x")).offset == 1


# Foreign rows and notifications


async def test_what_others_write_into_our_tables_does_no_harm(
    broker: PostgresBroker, delivered: Delivered, sql: Sql, caplog: pytest.LogCaptureFixture
) -> None:
    await broker.publish("chat", "1")
    channel = await sql.fetchval("SELECT id FROM channel")
    insert = "INSERT INTO publication VALUES ($1, $2, now(), $3)"
    text = '["t","eA==",null,null,true]'
    await sql.execute(insert, channel, 2, text)  # where the next one belongs
    await sql.execute(insert, channel, 9, text)  # beyond the top
    await sql.execute(insert, 10**15, 1, text)  # of no channel
    assert (await broker.publish("chat", "2")).offset == 2
    assert await data_of(broker) == ["1", "2"]
    for foreign in (
        "",
        "[]",
        '["t","/w==",null,null,true]',
        '["t","","ew==",null,true]',
        '["t","",null,"/w==",true]',
        '["z","",null,null,true]',
        '["t","é",null,null,true]',
    ):
        await sql.execute("DELETE FROM publication WHERE position = 2")
        await sql.execute(insert, channel, 2, foreign)
        assert await data_of(broker) == ["1"]
    assert "PostgreSQL has what can't be read" in caplog.text
    await broker.publish("chat", "3")
    await delivered.reach(3)
    assert delivered.data == ["1", "2", "3"]


async def test_a_channel_written_by_hand_is_a_channel(broker: PostgresBroker, sql: Sql) -> None:
    await sql.execute(
        "INSERT INTO channel (key, name, epoch, timeline, top, used, due)"
        " VALUES (sha256('hand'), 'hand', 'Not hex!', '', 7, '-infinity', 'infinity')"
    )
    top = await broker.subscribe("hand")
    assert top.offset == 7
    assert await broker.publish("hand", "x") == Position(8, top.epoch)


async def test_entries_that_cant_be_read_are_left_out_and_removed(
    broker: PostgresBroker, sql: Sql, caplog: pytest.LogCaptureFixture
) -> None:
    await broker.enter("chat", ClientInfo("c"))
    process = await sql.fetchval("SELECT process FROM lease")
    insert = "INSERT INTO presence VALUES (sha256('chat'), $1, $2, $3, $4)"
    await sql.execute(insert, b"1", b"chat", process, b"no JSON")
    await sql.execute(insert, b"2", b"\xff", process, b'{"client":"d"}')
    assert set(await broker.present("chat")) == {"c", "d"}
    assert await broker._engine.entries(process, 10) == [("chat", "c")]
    assert (await rows(sql))["presence"] == 1
    assert "can't be read" in caplog.text


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "hello",
        "[",
        '[["p"]]',
        "a:1:2:x",
        '[["c","eA=="]]',
        '[["r","Y2hhdA==","nope",1,5]]',
        '[["p","Y2hhdA==","e",1,[["t","/w==",null,null,true]]]]',
        '[["p","Y2hhdA==","e",1,[]]]',
        '[["j","Y2hhdA==","e30="]]',
        '[["l","/w==","e30="]]',
        '[["r","Y2hhdA==","e",9,1]]',
        "x" * 7999,
    ],
)
async def test_foreign_notifications_do_no_harm(
    broker: PostgresBroker, delivered: Delivered, sql: Sql, schema: str, payload: str
) -> None:
    await sql.execute("SELECT pg_notify($1, $2)", schema, payload)
    await sql.execute("SELECT pg_notify('chatserver', 'other')")
    await broker.publish("chat", "x")
    await delivered.reach(1)
    assert delivered.data == ["x"]
    assert broker.health.state == "up"


# Weather


async def test_a_killed_connection_is_made_anew_and_nothing_is_lost(
    broker: PostgresBroker, another: PostgresBroker, delivered: Delivered, sql: Sql
) -> None:
    """Each of the three in turn, while it is published."""
    checks: list[int] = []
    stopped = False

    async def check() -> None:
        checks.append(1)

    broker.check = check

    async def publish() -> int:
        number = 0
        while not stopped:
            await asyncio.gather(*(broker.publish("chat", f"{number + n}") for n in range(5)))
            number += 5
        return number

    publishing = asyncio.create_task(publish())
    for number in range(3):
        session = sessions_of(broker)[number]
        await sql.execute("SELECT pg_terminate_backend($1)", session.named)
        await until(lambda: checks)
        checks.clear()
    stopped = True
    count = await publishing
    assert (await broker.history("chat")).position.offset == count
    assert (await another.history("chat", limit=0)).position.offset == count


async def test_what_was_stored_before_its_answer_was_lost_is_not_stored_again(
    postgres: Postgres, sql: Sql, schema: str
) -> None:
    with Proxy(postgres.port) as proxy:
        async with started(PostgresBroker(proxy.way(postgres.url), schema=schema)) as broker:
            await broker.publish("chat", "0")
            proxy.freeze(Way.BACK)
            lost = [asyncio.ensure_future(broker.publish("chat", f"{n}")) for n in (1, 2, 3)]
            async with asyncio.timeout(5):
                while await sql.fetchval("SELECT top FROM channel") < 4:
                    pass  # it is asked again at once
            proxy.cut()
            later = asyncio.ensure_future(broker.publish("chat", "4"))
            proxy.heal()
            positions = await asyncio.gather(*lost, later)
            assert [each.offset for each in positions] == [2, 3, 4, 5]
            assert await data_of(broker) == ["0", "1", "2", "3", "4"]
            assert await sql.fetchval("SELECT count(*) FROM publication_id") == 0


async def test_a_deadlock_is_tried_again_by_itself(
    broker: PostgresBroker, postgres: Postgres, schema: str, sql: Sql
) -> None:
    """Somebody locks our rows in another order."""
    for name in ("a", "b"):
        await broker.publish(name, "x")
    lock = f"SELECT FROM {schema}.channel WHERE name = $1 FOR UPDATE"
    first, second = sorted(
        (b"a", b"b"), key=lambda name: __import__("hashlib").sha256(name).digest()
    )
    other = await asyncpg.connect(postgres.url)
    await other.execute("SET deadlock_timeout = '1h'")
    async with other.transaction():
        await other.execute(lock, second)
        waiting = [asyncio.ensure_future(broker.publish(name, "y")) for name in ("a", "b")]
        query = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        async with asyncio.timeout(10):
            while not await sql.fetchval(query):
                pass  # it is asked again at once
        await other.execute(lock, first)
    assert [each.offset for each in await asyncio.gather(*waiting)] == [2, 2]
    await other.close()
    assert broker.health.state == "up"


async def test_what_is_refused_at_once_is_no_weather(
    broker: PostgresBroker, sql: Sql, schema: str
) -> None:
    await sql.execute(
        "REVOKE ALL ON publication FROM PUBLIC; ALTER TABLE publication RENAME TO p;"
        " CREATE VIEW publication AS SELECT 1 AS one"
    )
    with pytest.raises(BrokerUnavailable, match="PostgreSQL refuses: "):
        await broker.publish("chat", "x")
    assert broker.health.state == "up"


async def test_a_process_that_is_too_slow_connects_again_and_checks(
    broker: PostgresBroker, delivered: Delivered, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[int] = []
    stalled, go_on = asyncio.Event(), asyncio.Event()

    async def check() -> None:
        checked.append(1)

    async def written(channel: str) -> None:
        stalled.set()
        await go_on.wait()

    monkeypatch.setattr(notifications, "MOST_WAITING", 10_000)
    broker.check, broker.written = check, written
    await broker.publish("chat", "1")
    await stalled.wait()
    for number in range(2, 30):
        await broker.publish("chat", f"{number}".ljust(1000))
    checked.clear()
    go_on.set()
    await until(lambda: checked)
    assert [each.offset for each in (await broker.history("chat")).publications][-1] == 29
    await broker.publish("chat", "30")
    await until(lambda: "30" in delivered.data)
    assert delivered.data[0] == "1"
    assert len(delivered) < 10


# Presence


async def test_a_thawed_process_learns_that_its_lease_was_taken(
    broker: PostgresBroker, another: PostgresBroker, sql: Sql
) -> None:
    """Even if it enters a client before it looks at its lease."""
    engine = broker._engine
    await engine.renew("frozen", 30, new=True)
    assert await engine.renew("frozen", 30, new=False)
    await sql.execute("UPDATE lease SET expires = now() WHERE process = 'frozen'")
    taken = await asyncio.gather(*(each._engine.expired(30) for each in (broker, another) * 3))
    assert [process for some in taken for process in some] == ["frozen"]
    await another._engine.end("frozen")
    broker._process = "frozen"
    await broker.enter("chat", ClientInfo("c"))
    assert await broker.present("chat") == {}
    assert not await engine.renew("frozen", 30, new=False)
    assert await another._engine.expired(30) == ["frozen"]
    assert await another._engine.entries("frozen", 10) == [("chat", "c")]


async def test_a_lease_that_nobody_has_taken_can_be_renewed(
    broker: PostgresBroker, sql: Sql
) -> None:
    await broker.enter("chat", ClientInfo("c"))
    await sql.execute("UPDATE lease SET expires = now() - interval '1 hour'")
    assert await broker.present("chat") == {}
    assert await broker._engine.renew(broker._process, 30, new=False)
    assert set(await broker.present("chat")) == {"c"}


async def test_who_takes_leases_and_dies_is_followed_by_another(
    broker: PostgresBroker, another: PostgresBroker, sql: Sql
) -> None:
    await broker._engine.renew("dead", 0, new=True)
    assert await broker._engine.expired(0) == ["dead"]
    assert await another._engine.expired(30) == ["dead"]
    assert await broker._engine.expired(30) == []


# Queries


async def test_no_table_is_read_from_end_to_end(make: Make, sql: Sql, schema: str) -> None:
    async with started(make(rules=Rules(join_leave=True), lease=3)) as broker:
        for number in range(30):
            await broker.publish(f"chat:{number}", "x" * 40_000)
            await broker.enter(f"chat:{number}", ClientInfo("c"), last_will="gone")
        await broker.subscribe("chat:1")
        top = await broker.publish("chat:1", "x" * 40_000)
        await broker.history("chat:1", since=Position(0, top.epoch))
        await broker.history("chat:1", reverse=True, limit=1)
        await broker.tops({"chat:1": top})
        await broker.present("chat:1")
        await broker.lapse("chat:1", "c")
        await broker._engine.expired(1)
        await broker._engine.entries("x", 1)
        await age(sql, 10_000)
        await broker._engine.tidy()
    await sql.execute(f"SELECT {schema}.publish('chat', 'x')")
    scans = (
        "SELECT relname, seq_scan FROM pg_stat_user_tables"
        " WHERE schemaname = $1 AND relname = ANY ($2) AND idx_scan > 0"
    )
    async with asyncio.timeout(10):
        # A process of the server tells what it has read when it ends, or after a while.
        while len(found := await sql.fetch(scans, schema, TABLES)) < len(TABLES):
            pass
    # Each index was built by one, and `age` has made some.
    query = "SELECT tablename, count(*) FROM pg_indexes WHERE schemaname = $1 GROUP BY tablename"
    for table, indexes in await sql.fetch(query, schema):
        aged = table in ("channel", "publication", "publication_id", "lease")
        assert dict(found)[table] == indexes + aged, table


async def test_plans_made_for_small_tables_hold_for_large_ones(make: Make, sql: Sql) -> None:
    count = 20_000

    async def use(broker: PostgresBroker) -> None:
        info = ClientInfo("c")
        top = await broker.publish("chat", "x", id=secrets.token_hex(4))
        await broker.publish("chat", "x" * 200_000)
        await broker.history("chat", since=Position(top.offset - 1, top.epoch))
        await broker.history("chat", reverse=True, limit=1)
        await broker.tops({"chat": top, "other": top})
        await broker.subscribe("chat")
        await broker.enter("chat", info)
        assert await broker.present("chat") == {"c": info}
        await broker.leave("chat", "c")

    async with started(make()) as broker:
        await use(broker)
        await sql.execute("ANALYZE channel, publication, publication_id, presence")
        await use(broker)
        await sql.execute(
            "INSERT INTO channel (key, name, epoch, timeline, used, due)"
            " SELECT sha256(n::text::bytea), n::text::bytea, 'e', '', now(), 'infinity'"
            f" FROM generate_series(1, {count}) AS n;"
            "INSERT INTO publication"
            f" SELECT n, 1, now(), 'x' FROM generate_series(100, {count}) AS n;"
            "INSERT INTO publication_id"
            f" SELECT n, 'x', 1, 'infinity' FROM generate_series(100, {count}) AS n;"
            "INSERT INTO presence"
            f" SELECT 'x', n::text::bytea, 'x', 'p', 'x' FROM generate_series(1, {count}) AS n"
        )
        for _ in range(3):
            await use(broker)
    query = (
        "SELECT sum(idx_tup_read) FROM pg_stat_user_indexes"
        " WHERE schemaname = current_schema() AND relname <> 'lease'"
    )
    async with asyncio.timeout(10):
        # A process of the server tells what it has read when it ends, or after a while.
        while not (read := await sql.fetchval(query)):
            pass
    assert 50 < read < count / 2
