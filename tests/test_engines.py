"""The engines of the tests do what the tests of faults rely on."""

import socket

import psutil
import pytest

from tests.engines import Cluster, Postgres, Sentinel, Valkey, free_port, until

pytest_plugins = ["tests.engines"]
pytestmark = pytest.mark.live


def silent(port: int) -> bool:
    """Whether a connection is taken and a command is not answered."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.settimeout(0.1)
        connection.sendall(b"PING\r\n")
        try:
            connection.recv(1)
        except TimeoutError:
            return True
        return False


def test_a_killed_valkey_comes_back_on_its_port_with_its_data() -> None:
    with Valkey("appendonly yes", "appendfsync always", password="s") as engine:
        url = engine.url
        engine.ask("SET", "key", "value")
        first = engine.pid
        engine.kill()
        assert engine.role() == ""
        engine.start()
        assert engine.pid != first
        assert engine.url == url
        assert engine.ask("GET", "key") == b"value"
        engine.flush()
        assert engine.ask("GET", "key") is None


def test_a_frozen_valkey_answers_once_it_is_thawed() -> None:
    with Valkey() as engine:
        engine.freeze()
        assert silent(engine.port)
        engine.thaw()
        assert engine.role() == "master"
        engine.freeze()  # and its end doesn't wait for it


def test_a_killed_postgres_comes_back_on_its_port_with_its_data() -> None:
    with Postgres() as engine:
        engine.sql("CREATE SCHEMA chatserver; CREATE TABLE chatserver.one AS SELECT 1 AS value")
        engine.kill()
        with pytest.raises(RuntimeError, match="Connection refused"):
            engine.sql("SELECT 1")
        engine.start()
        assert engine.sql("SELECT * FROM chatserver.one") == [["1"]]
        engine.flush()
        assert engine.sql("SELECT * FROM chatserver.one") == []


def test_a_frozen_postgres_is_frozen_with_all_its_processes() -> None:
    with Postgres() as engine:
        first = psutil.Process(engine.pid)
        everyone = [first, *first.children(recursive=True)]
        assert len(everyone) > 3
        engine.freeze()
        assert silent(engine.port)
        assert {each.status() for each in everyone} == {psutil.STATUS_STOPPED}
        engine.thaw()
        assert engine.sql("SELECT 1") == [["1"]]
        engine.freeze()
        engine.kill()
        engine.start()
        assert engine.sql("SELECT 1") == [["1"]]


def test_a_replica_becomes_the_server_when_the_server_dies() -> None:
    with Sentinel() as group:
        group.main.ask("SET", "key", "value")
        until(lambda: group.replica.ask("GET", "key") == b"value", "the replica has it")
        group.main.kill()
        until(lambda: group.replica.role() == "master", "the replica is the server")
        assert group.replica.ask("GET", "key") == b"value"


@pytest.mark.parametrize("engine", [Valkey, Postgres])
def test_a_replica_that_was_promoted_has_what_was_there_until_then(
    engine: type[Valkey] | type[Postgres],
) -> None:
    with engine() as main:
        write(main, "before")
        with main.replica() as replica:
            until(lambda: "before" in read(replica), "the replica has it")
            replica.promote()
            write(main, "after")
            write(replica, "elsewhere")
            assert read(main) == {"before", "after"}
            assert read(replica) == {"before", "elsewhere"}


def write(engine: Valkey | Postgres, text: str) -> None:
    if isinstance(engine, Valkey):
        engine.ask("SADD", "texts", text)
    else:
        engine.sql("CREATE TABLE IF NOT EXISTS texts (text text)")
        engine.sql(f"INSERT INTO texts VALUES ('{text}')")


def read(engine: Valkey | Postgres) -> set[str]:
    if isinstance(engine, Valkey):
        return {text.decode() for text in engine.ask("SMEMBERS", "texts")}
    return {text for (text,) in engine.sql("SELECT text FROM texts")}


def test_each_node_of_a_cluster_has_a_third(cluster: Cluster) -> None:
    owners = {node.ask("CLUSTER", "MYID"): node.port for node in cluster.nodes}
    assert len(owners) == 3
    assert len(cluster.nodes[0].ask("CLUSTER", "SLOTS")) == 3


def test_an_engine_that_does_not_start_says_why() -> None:
    engine = Valkey("nonsense yes")
    try:
        with pytest.raises(RuntimeError, match="nonsense"):
            engine.start()
    finally:
        engine.close()


def test_free_ports_are_not_those_of_outgoing_connections() -> None:
    assert all(15_000 <= free_port() < 32_000 for _ in range(20))
