"""Connections to PostgreSQL, and what its errors mean: they pass, or somebody has to act.

Each statement is a transaction of its own. asyncpg carries out one at a time on a connection, so
they take turns, in the order in which they were given.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import asyncpg
from asyncpg.exceptions import InterfaceError, InternalClientError, PostgresError

from chatserver.brokers.engine import Interrupted
from chatserver.errors import BrokerUnavailable

__all__ = ["POOLED", "Row", "Session", "Unfit", "connected"]

#: A row of a result; its columns have the types of the statement.
Row: TypeAlias = Any

#: Seconds that the answer to a statement may take.
ANSWER_TIMEOUT = 10.0
#: Seconds that a connection to one host may take: two in time for the broker's time-out.
CONNECT_TIMEOUT = 2.0
#: How often a statement is tried that collides with others.
ATTEMPTS = 5

#: What the server's own tables call our connections.
NAME = {"application_name": "chatserver"}

# SQLSTATEs, or how they begin: https://www.postgresql.org/docs/current/errcodes-appendix.html
#: These pass by themselves, or when the connection is made anew, to another server perhaps:
#: connections lost or too many, shutdown, start, a cancelled statement, a server that is read-only
#: after a failover, and what was dropped and will be made when we connect.
WEATHER = ("08", "57", "53300", "25006", "3F000", "42P01", "42883")
#: The transaction was rolled back because of others: the same can be done again at once.
CONFLICTS = ("40001", "40P01")
#: The values are to blame: they are out of range, break a constraint, or are too large.
VALUES = ("22", "23", "54")
#: The user or password is refused.
REFUSED = ("28",)
#: There is no such database, or the user may not connect to it.
NO_DATABASE = ("3D000", "42501")
#: A statement was prepared by one process of the server, and another one was to carry it out.
SHUFFLED = ("26000", "42P05")
POOLED = (
    "PostgreSQL is behind a pooler in transaction mode, which loses notifications: give the broker "
    "the server's own address, or that of a pool with pool_mode = session."
)
WRONG_URL = (
    "The URL of PostgreSQL can't be used: expected postgresql://user:password@host:port/database, "
    "with % and two digits for each character of user and password that is no letter or digit."
)


class Unfit(BrokerUnavailable):
    """A statement can't be done with these values.

    Args:
        why: What is wrong with them.
    """

    def __init__(self, why: object) -> None:
        super().__init__(f"PostgreSQL can't be given this: {why}.")


class Session:
    """One connection.

    Args:
        connection: The connection.

    Attributes:
        order: Held by who asks a list of questions, which may take several statements.
    """

    def __init__(self, connection: "asyncpg.Connection[Any]") -> None:
        self.order = asyncio.Lock()
        self._connection = connection
        self._turn = asyncio.Lock()
        self._is_lost = False
        self._process = 0

    @property
    def is_busy(self) -> bool:
        """Whether a statement is on the way, or waits for its turn."""
        return self._turn.locked()

    @property
    def named(self) -> int:
        """The server's process, as it was named when the connection was made."""
        return self._connection.get_server_pid()

    async def is_same(self) -> bool:
        """Whether it is still the process of the server that it was at first."""
        first, self._process = self._process, await self.process()
        return first in (0, self._process)

    async def process(self) -> int:
        """The server's process that does what this connection asks for."""
        return int((await self.fetchone("SELECT pg_backend_pid() AS process"))["process"])

    @property
    def version(self) -> int:
        """The server's major version."""
        return self._connection.get_server_version().major

    async def fetch(self, query: str, *values: object) -> Sequence[Row]:
        """The rows of a statement's result.

        Raises:
            Interrupted: The connection is lost, or the server can't serve now.
            Unfit: It can't be done with these values.
            BrokerUnavailable: It can't be done.
        """
        async with self._turn:
            if self._is_lost:
                raise Interrupted("the connection was lost")
            try:
                return await self._fetch(query, *values)
            except Interrupted:
                # This is asked again. What was given later must not be done before.
                self._is_lost = True
                raise

    async def _fetch(self, query: str, *values: object) -> Sequence[Row]:
        for _ in range(ATTEMPTS):
            with _translated():
                rows: Sequence[Row] = await self._connection.fetch(
                    query, *values, timeout=ANSWER_TIMEOUT
                )
                return rows
        raise Interrupted("its transactions collide with others")

    async def fetchone(self, query: str, *values: object) -> Row:
        """The only row of a statement's result; it raises what `fetch` does."""
        return (await self.fetch(query, *values))[0]

    async def execute(self, script: str) -> None:
        """Carry out statements."""
        async with self._turn:
            with _translated():
                await self._connection.execute(script, timeout=ANSWER_TIMEOUT)

    async def listen(self, name: str, heard: Callable[[str], None]) -> None:
        """Hear the notifications of a name from now on."""
        with _translated():
            await self._connection.add_listener(name, lambda *event: heard(str(event[3])))

    def when_lost(self, call: Callable[[], None]) -> None:
        """Call something when the connection is lost."""
        self._connection.add_termination_listener(lambda _: call())

    def close(self) -> None:
        """Give the connection up, without waiting."""
        self._connection.terminate()


async def connected(url: str, address: str) -> Session:
    """Connect.

    Args:
        url: Where, with user and password.
        address: The same for a person, without a password.

    Raises:
        Interrupted: The server can't be reached, or can't serve yet.
        BrokerUnavailable: It refuses the user or the database.
    """
    try:
        connection = await asyncpg.connect(url, timeout=CONNECT_TIMEOUT, server_settings=NAME)
    except PostgresError as error:
        raise _refusal(error, address) from None
    except ValueError:  # what asyncpg says of a URL may quote a part of the password
        raise BrokerUnavailable(WRONG_URL) from None
    except TimeoutError:
        raise Interrupted(f"it did not answer within {CONNECT_TIMEOUT:g} s") from None
    except (InterfaceError, InternalClientError, OSError) as error:
        raise Interrupted(_text(error)) from None
    return Session(connection)


def _refusal(error: PostgresError, address: str) -> Exception:
    state = error.sqlstate or ""
    if state.startswith(REFUSED):
        return BrokerUnavailable(
            f"PostgreSQL at {address} refuses the user or password: {_text(error)}."
        )
    if state.startswith(NO_DATABASE):
        return BrokerUnavailable(
            f"PostgreSQL at {address} refuses the database: {_text(error)}; "
            "create it (CREATE DATABASE), grant CONNECT on it, or give the broker another URL."
        )
    return Interrupted(_text(error))


@contextmanager
def _translated() -> Iterator[None]:
    """Raise what an error means; nothing, if the same should be done again."""
    try:
        yield
    except PostgresError as error:
        meaning = _meaning(error)
        if meaning is not None:
            raise meaning from None
    except InterfaceError as error:
        if isinstance(error, ValueError):  # a value that has no form in PostgreSQL's protocol
            raise Unfit(_text(error)) from None
        raise Interrupted(_text(error)) from None
    except TimeoutError:
        raise Interrupted(f"it did not answer within {ANSWER_TIMEOUT:g} s") from None
    except (InternalClientError, OSError) as error:
        raise Interrupted(_text(error)) from None


def _meaning(error: PostgresError) -> Exception | None:
    state = error.sqlstate or ""
    if state.startswith(CONFLICTS):
        return None
    if state.startswith(WEATHER):
        return Interrupted(_text(error))
    if state in SHUFFLED:
        return BrokerUnavailable(POOLED)
    if state.startswith(VALUES):
        return Unfit(_text(error))
    return BrokerUnavailable(f"PostgreSQL refuses: {_text(error)}.")


def _text(error: Exception) -> str:
    """One line of an error, without a full stop."""
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there"
    # What PostgreSQL says comes without details and hints.
    text = str(error.args[0]) if isinstance(error, PostgresError) and error.args else str(error)
    lines = text.strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
