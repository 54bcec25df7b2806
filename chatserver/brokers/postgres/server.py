"""What a server has to be like, and the schema in it: checked when the broker connects."""

import re
from collections.abc import Sequence
from importlib.resources import files
from urllib.parse import parse_qs

from chatserver.brokers.engine import Interrupted
from chatserver.brokers.postgres.sessions import POOLED, Row, Session, connected
from chatserver.errors import BrokerUnavailable

__all__ = ["Server"]

#: The version of the schema; `chatserver.version()` in schema.sql says the same.
VERSION = 2
LOWEST = 14
#: How often each connection is looked at for a pooler that exchanges them.
LOOKS = 3

# Set by a statement, for a pooler may refuse settings at the start of a connection.
SETTINGS = (
    # Plans must not depend on statistics: the tables grow and shrink within minutes.
    "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off;"
    " SET plan_cache_mode = force_generic_plan; SET jit = off;"
    " SET default_transaction_isolation = 'read committed';"
    # What a process doesn't take fills a queue that all share. So its connection is ended.
    " SET tcp_user_timeout = '30s';"
    # What was acknowledged is stored, whatever the database does for others.
    " SELECT set_config('synchronous_commit', 'on', false)"
    " WHERE current_setting('synchronous_commit') = 'off'"
)
TABLES = ("channel", "publication", "publication_id", "lease", "presence", "outbox")
# With pg_namespace, because PostgreSQL learns what others have just made when it reads a table.
RIGHTS = """
    SELECT quote_ident(current_user) AS role,
        EXISTS (SELECT FROM pg_namespace WHERE nspname = $1) AS is_there,
        has_database_privilege(current_database(), 'CREATE') AS may_create,
        coalesce(has_schema_privilege(to_regnamespace($1), 'CREATE'), false) AS may_change,
        coalesce(has_schema_privilege(to_regnamespace($1), 'USAGE'), false) AND NOT EXISTS (
            SELECT FROM pg_proc
            WHERE pronamespace = to_regnamespace($1) AND NOT has_function_privilege(oid, 'EXECUTE')
        ) AS may_use
"""
TABLE_RIGHTS = """
    SELECT bool_and(has_table_privilege(oid, right_)) AS are_given
    FROM pg_class, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS right_
    WHERE relnamespace = to_regnamespace($1) AND relname = ANY ($2)
"""


class Server:
    """A server, a database and a schema in it.

    Args:
        url: Where they are: `postgresql://user:password@host:5432/database`, as PostgreSQL's own
            programs understand it. With several hosts, the one that is the primary is used.
        schema: The schema.

    Attributes:
        schema: The schema's name.
        address: Where the database is, without a password.

    Raises:
        ValueError: The name of the schema can't be used.
    """

    def __init__(self, url: str, schema: str) -> None:
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,39}", schema):
            raise ValueError(
                "expected the name of a schema, of at most 40 lower-case letters, digits and _, "
                f"got {schema!r}"
            )
        self.schema = schema
        self.address, self._urls = _places(url)

    async def connect(self, sessions: list[Session], count: int) -> None:
        """Make connections, and whatever the schema lacks.

        Args:
            sessions: Each connection is added to it, so that they can be closed if this fails.
            count: How many.

        Raises:
            Interrupted: The server can't be reached, or can't serve yet.
            BrokerUnavailable: It can't be used as it is; one sentence says why, and what to do.
        """
        while len(sessions) < count:
            sessions.append(await self._connected())
        await _refuse_pooler(sessions)
        await self._check(sessions[0])
        for session in sessions:
            await session.execute(SETTINGS)
        await self._prepare(sessions[0])

    async def _connected(self) -> Session:
        """A connection to one of the hosts; the next one is to the same, if that answers."""
        for _ in self._urls[1:]:
            try:
                return await connected(self._urls[0], self.address)
            except Interrupted:
                self._urls.append(self._urls.pop(0))
        return await connected(self._urls[0], self.address)

    async def _check(self, session: Session) -> None:
        if session.version < LOWEST:
            raise BrokerUnavailable(
                f"PostgreSQL at {self.address} is of version {session.version}, and the broker "
                f"needs {LOWEST} or newer: upgrade it."
            )
        row = await session.fetchone(
            "SELECT pg_is_in_recovery() AS is_standby,"
            " current_setting('transaction_read_only') = 'on' AS is_read_only"
        )
        if row["is_standby"]:
            raise BrokerUnavailable(
                f"PostgreSQL at {self.address} is a standby, which can only be read: "
                "give the broker the address of the primary."
            )
        if row["is_read_only"]:
            raise BrokerUnavailable(
                f"PostgreSQL at {self.address} only lets this role read: set "
                "default_transaction_read_only = off for it."
            )

    # The schema

    async def _prepare(self, session: Session) -> None:
        rights = await session.fetchone(RIGHTS, self.schema)
        if await self._version(session, rights) < VERSION:
            self._refuse_without_rights(rights)
            await self._bring_up_to_date(session)
        elif not (await session.fetchone(TABLE_RIGHTS, self.schema, TABLES))["are_given"]:
            raise self._no_use(rights["role"])

    async def _version(self, session: Session, rights: Row) -> int:
        """The version of the schema; 0 if there is none, or nothing in it."""
        if not rights["is_there"]:
            return 0
        if not rights["may_use"]:
            raise self._no_use(rights["role"])
        name = f"{self.schema}.version()"
        there = await session.fetchone("SELECT to_regprocedure($1) IS NOT NULL AS is_there", name)
        if not there["is_there"]:
            return 0
        version = int((await session.fetchone(f"SELECT {name} AS version"))["version"])
        if version > VERSION:
            raise BrokerUnavailable(
                f"The schema {self.schema} of PostgreSQL at {self.address} has version {version}, "
                f"and this program knows {VERSION}: upgrade starlette-chatserver."
            )
        return version

    async def _bring_up_to_date(self, session: Session) -> None:
        """Run schema.sql; of many processes that start, one does."""
        await session.execute("BEGIN")
        await session.fetch("SELECT pg_advisory_xact_lock(hashtext($1), 1)", self.schema)
        rights = await session.fetchone(RIGHTS, self.schema)
        if await self._version(session, rights) < VERSION:
            if not rights["is_there"]:
                await session.execute(f"CREATE SCHEMA {self.schema}")
            script = files(__package__).joinpath("schema.sql").read_text("utf-8")
            await session.execute(script.replace("chatserver", self.schema))
        await session.execute("COMMIT")

    def _refuse_without_rights(self, rights: Row) -> None:
        role = rights["role"]
        if not rights["is_there"] and not rights["may_create"]:
            raise self._lacking(role, f"CREATE SCHEMA {self.schema} AUTHORIZATION {role}")
        if rights["is_there"] and not rights["may_change"]:
            raise self._lacking(role, f"ALTER SCHEMA {self.schema} OWNER TO {role}")

    def _no_use(self, role: str) -> BrokerUnavailable:
        return self._lacking(
            role,
            f"GRANT USAGE ON SCHEMA {self.schema} TO {role}; GRANT SELECT, INSERT, UPDATE, DELETE "
            f"ON ALL TABLES IN SCHEMA {self.schema} TO {role}; GRANT EXECUTE ON ALL FUNCTIONS IN "
            f"SCHEMA {self.schema} TO {role}",
        )

    def _lacking(self, role: str, statement: str) -> BrokerUnavailable:
        return BrokerUnavailable(
            f"PostgreSQL at {self.address} does not let the role {role} use a schema "
            f"{self.schema}: as the owner of the database, run {statement};"
        )


async def _refuse_pooler(sessions: Sequence[Session]) -> None:
    """Find out whether statements of one connection go to several processes of the server.

    A server names its process when a connection is made, and a pooler names another one. A pooler
    of transactions then gives the same process to all connections that are idle, or different ones
    to the same connection if there is much to do.
    """
    first = again = [await session.process() for session in sessions]
    looks = 0 if first == [session.named for session in sessions] else LOOKS
    for _ in range(looks):
        again = [await session.process() for session in sessions]
        if again != first:
            break
    if again != first or len(set(first)) < len(first):
        raise BrokerUnavailable(POOLED)


def _places(url: str) -> tuple[str, list[str]]:
    """The address for a person, and the URL of each host."""
    # Up to the last "@": an unencoded password may hold whatever ends it by the rules.
    user, at, rest = url.rpartition("@")
    scheme, mark, place = rest.rpartition("://")
    place, _, query = place.partition("?")
    hosts, slash, database = place.partition("/")
    named = hosts or parse_qs(query).get("host", ["localhost"])[0]
    address = f"{named}{slash}{database}".rstrip("/")
    if "," not in hosts:
        return address, [url]
    options = f"{query}&" if query else ""
    if "target_session_attrs" not in query:
        options += "target_session_attrs=primary"
    before = f"{user}{at}{scheme}{mark}"
    return address, [f"{before}{host}{slash}{database}?{options}" for host in hosts.split(",")]
