"""PostgreSQL as an engine: what is asked becomes arrays, and a call of a function of schema.sql.

There are three connections. One appends; one answers all other questions; one hears what is
announced, and reads on it what was too large to be announced.
"""

import hashlib
import logging
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

import msgspec

from chatserver.brokers.base import Control
from chatserver.brokers.engine import (
    UNREADABLE,
    Answers,
    Draft,
    Engine,
    Enter,
    Heard,
    Interrupted,
    Leave,
    Read,
    Receive,
    write_control,
)
from chatserver.brokers.postgres.announcements import (
    Event,
    Parts,
    Published,
    Span,
    Told,
    client_info,
    heard_of,
    publication,
    stored_content,
)
from chatserver.brokers.postgres.notifications import Notifications
from chatserver.brokers.postgres.questions import (
    KEPT_ANYWAY,
    ChangeRow,
    DraftRow,
    ReadRow,
    StreamRow,
    change_row,
    columns,
    draft_row,
    kept,
    read_row,
    stream_row,
)
from chatserver.brokers.postgres.server import Server
from chatserver.brokers.postgres.sessions import POOLED, Row, Session, Unfit
from chatserver.brokers.remote import RemoteBroker
from chatserver.errors import BrokerUnavailable
from chatserver.publication import (
    ClientInfo,
    History,
    Position,
    Publication,
)
from chatserver.rules import Rules

__all__ = ["PostgresBroker", "PostgresEngine"]

logger: logging.Logger = logging.getLogger("chatserver")

Question = TypeVar("Question")
Packed = TypeVar("Packed")
Answer = TypeVar("Answer")

#: Bytes that one statement appends, about.
MOST_APPENDED = 8 * 1024 * 1024
#: Channels in one statement, at most.
MOST_CHANNELS = 1000
#: Rows that are deleted in one statement, and such statements in a row.
TIDY_ROWS, TIDY_ROUNDS = 2000, 50
#: No stream's position, because no stream's epoch is empty.
UNKNOWN = Position(0, "")


class PostgresBroker(RemoteBroker):
    """Carries publications through PostgreSQL 14 or newer.

    It needs the package asyncpg (`pip install 'starlette-chatserver[postgres]'`), three connections
    for each process, and a schema, which it creates. A pooler has to give each connection of ours a
    connection of its own (PgBouncer's `pool_mode = session`).

    Args:
        url: Where the database is: `postgresql://user:password@host:5432/database`. Of several
            hosts (`host1,host2`), the primary is used.
        rules: What is kept of every channel for which the hub has no rules.
        publish_timeout: Seconds until a question without an answer is `BrokerUnavailable`.
        lease: Seconds after which the clients of a killed process are gone.
        publish_only: See `RemoteBroker`.
        schema: The schema's name; brokers of other schemas in the database have other channels.

    Raises:
        ValueError: The name of the schema can't be used.
    """

    def __init__(
        self,
        url: str,
        *,
        rules: Rules | None = None,
        publish_timeout: float = 5.0,
        lease: float = 30.0,
        publish_only: bool = False,
        schema: str = "chatserver",
    ) -> None:
        super().__init__(
            PostgresEngine(url, schema=schema),
            rules=rules,
            publish_timeout=publish_timeout,
            lease=lease,
            publish_only=publish_only,
        )


class PostgresEngine(Engine):
    """See `PostgresBroker` and `Engine`.

    Args:
        url: Where the database is.
        schema: The schema's name.
    """

    # While PostgreSQL carries out one list, the next is made; short ones, so that there are two.
    at_once: int = 2
    most: int = 128

    def __init__(self, url: str, *, schema: str = "chatserver") -> None:
        self._server = Server(url, schema)
        self.address: str = self._server.address
        self._sessions: list[Session] = []
        self._notifications = Notifications()
        # The names of channels that are followed.
        self._followed: set[bytes] = set()
        # The ids of publications that may have been appended or not, and when that was noticed.
        self._uncertain: deque[tuple[bytes, float]] = deque()

    # Connections

    async def connect(self) -> None:
        self._followed = set()
        self._notifications = notifications = Notifications()
        await self._server.connect(self._sessions, 3)
        await self._hearing.listen(self._server.schema, notifications.add)
        for session in self._sessions:
            session.when_lost(notifications.end)

    async def close(self) -> None:
        self._notifications.end()
        while self._sessions:
            self._sessions.pop().close()

    async def ping(self) -> None:
        for session in tuple(self._sessions):
            # A statement that is on the way has a time-out of its own.
            if not session.is_busy and not await session.is_same():
                raise BrokerUnavailable(POOLED)

    @property
    def _appending(self) -> Session:
        return self._session(0)

    @property
    def _asking(self) -> Session:
        return self._session(1)

    @property
    def _hearing(self) -> Session:
        return self._session(2)

    def _session(self, number: int) -> Session:
        if number >= len(self._sessions):
            raise Interrupted("it is not connected")
        return self._sessions[number]

    async def _call(self, session: Session, function: str, *values: object) -> Sequence[Row]:
        """Call a function of schema.sql."""
        return await session.fetch(_query(self._server.schema, function, len(values)), *values)

    # Hearing

    async def listen(self, receive: Receive) -> None:
        notifications, parts = self._notifications, Parts()
        while True:
            heard = await self._heard(parts, await notifications.take())
            if heard:
                await receive(heard)

    async def _heard(self, parts: Parts, texts: Sequence[str]) -> list[Heard]:
        """What notifications say of channels that are followed, and to all processes."""
        events = [event for text in texts for event in _events(parts, text) if self._is_ours(event)]
        read = await self._read_spans([event for event in events if type(event) is Span])
        heard: list[Heard] = []
        for event in events:
            if type(event) is Published:
                channel, epoch = event.name.decode(), event.epoch
                for offset, content in event.numbered():
                    heard += _readable(publication, channel, epoch, offset, content)
            else:
                heard += next(read) if type(event) is Span else _readable(heard_of, event)
        return heard

    def _is_ours(self, event: Event) -> bool:
        return type(event) is Told or event.name in self._followed

    async def _read_spans(self, spans: Sequence[Span]) -> Iterator[list[Publication]]:
        """The publications of each span; those that are not there any more are left out."""
        found: list[list[Publication]] = [[] for _ in spans]
        if spans:
            rows = [(each.name, each.epoch, each.first, each.last) for each in spans]
            for number, *row in await self._call(self._hearing, "read_spans", *columns(rows)):
                span = spans[number - 1]
                found[number - 1] += _readable(_stored, span.name.decode(), span.epoch, *row)
        return iter(found)

    # Streams

    async def follow(self, channels: Mapping[str, Rules]) -> Answers[Position]:
        async def follow(streams: Sequence[StreamRow]) -> Answers[Position]:
            # Followed first: what is committed after the tops were read is heard.
            self._followed.update(stream.name for stream in streams)
            return await self._stand(streams)

        wanted = [(channel, UNKNOWN, rules) for channel, rules in channels.items()]
        return await _each(self._asking, wanted, stream_row, follow)

    async def unfollow(self, channels: Collection[str]) -> None:
        for channel in channels:
            self._followed.discard(channel.encode("utf-8", "replace"))

    async def tops(self, known: Mapping[str, Position]) -> Answers[Position]:
        wanted = [(channel, position, None) for channel, position in known.items()]
        return await _each(self._asking, wanted, stream_row, self._stand)

    async def _stand(self, streams: Sequence[StreamRow]) -> list[Position]:
        """The tops of streams, given what is known of each."""
        tops: list[Position] = []
        for start in range(0, len(streams), MOST_CHANNELS):
            some = columns(streams[start : start + MOST_CHANNELS])
            rows = await self._call(self._asking, "stand", *some)
            tops += [Position(row["top"], row["epoch"]) for row in rows]
        return tops

    async def append(self, drafts: Sequence[Draft]) -> Answers[Position]:
        async def append(rows: Sequence[DraftRow]) -> Answers[Position]:
            try:
                return [top for some in _of_size(rows) for top in await self._append(some)]
            except (Interrupted, Unfit):
                # Some of them may have been appended, and all are asked again.
                self._uncertain += [(row.id, time.monotonic()) for row in rows]
                raise

        return await _each(self._appending, drafts, draft_row, append)

    def _may_be_there(self, drafts: Sequence[DraftRow]) -> bool:
        """Whether one of them may have been appended before the connection was lost."""
        oldest = time.monotonic() - KEPT_ANYWAY
        while self._uncertain and self._uncertain[0][1] < oldest:
            self._uncertain.popleft()
        if not self._uncertain:
            return False
        return not {draft.id for draft in drafts}.isdisjoint(id for id, _ in self._uncertain)

    async def _append(self, drafts: Sequence[DraftRow]) -> list[Position]:
        rules = {draft.name: draft.rules for draft in drafts}
        keys = {hashlib.sha256(name).digest(): name for name in rules}
        names = [keys[key] for key in sorted(keys)]
        streams = [(name, *kept(rules[name])) for name in names]
        distinct: dict[
            tuple[bytes, bytes], DraftRow
        ] = {}  # an id that comes twice is appended once
        for draft in drafts:
            distinct.setdefault((draft.name, draft.id), draft)
        publications = [*distinct.values()]
        values = (sorted(keys), *columns(streams), *_publications(publications, names))
        (row,) = await self._call(self._appending, "append", *values, self._may_be_there(drafts))
        epochs = dict(zip(names, row["epochs"], strict=True))
        answers = [
            Position(offset, epochs[draft.name])
            for draft, offset in zip(publications, row["positions"], strict=True)
        ]
        if len(answers) == len(drafts):
            return answers
        by_id = dict(zip(distinct, answers, strict=True))
        return [by_id[draft.name, draft.id] for draft in drafts]

    async def read(self, reads: Sequence[Read]) -> Answers[History]:
        return await _each(self._asking, reads, read_row, self._read)

    async def _read(self, reads: Sequence[ReadRow]) -> list[History]:
        rows = await self._call(self._asking, "read", *columns([read[1:] for read in reads]))
        # A stream that doesn't exist has no row, and would begin with an epoch of its own.
        tops = [Position(0, secrets.token_hex(4)) for _ in reads]
        found: list[list[Publication]] = [[] for _ in reads]
        for number, epoch, top, *row in rows:
            tops[number - 1] = Position(top, epoch)
            if row[0] is not None:
                channel = reads[number - 1].channel
                found[number - 1] += _readable(_stored, channel, epoch, *row)
        return [History(tuple(some), top) for some, top in zip(found, tops, strict=True)]

    async def tell(self, controls: Sequence[Control]) -> Answers[None]:
        events = [Told(write_control(control)) for control in controls]
        await self._call(self._asking, "announce", msgspec.json.encode(events).decode())
        return [None] * len(controls)

    # Presence

    async def enter_and_leave(self, changes: Sequence[Enter | Leave]) -> Answers[None]:
        async def change(packed: Sequence[ChangeRow]) -> Answers[None]:
            await self._call(self._asking, "enter_and_leave", *columns(packed))
            return [None] * len(packed)

        return await _each(self._asking, changes, change_row, change)

    async def present(self, channels: Sequence[str]) -> Answers[dict[str, ClientInfo]]:
        async def present(names: Sequence[bytes]) -> Answers[dict[str, ClientInfo]]:
            found: list[dict[str, ClientInfo]] = [{} for _ in names]
            for row in await self._call(self._asking, "present", names):
                for info in _readable(client_info, row["info"]):
                    found[row["number"] - 1][info.client] = info
            return found

        return await _each(self._asking, channels, str.encode, present)

    async def renew(self, process: str, ttl: float, *, new: bool) -> bool:
        (row,) = await self._call(self._asking, "renew", process, ttl, new)
        return bool(row[0])

    async def expired(self, ttl: float) -> Sequence[str]:
        return [row[0] for row in await self._call(self._asking, "expired", ttl)]

    async def entries(self, process: str, limit: int) -> Sequence[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for channel, client, *row in await self._call(self._asking, "entries", process, limit):
            entry = _readable(_entry, *row)
            found += entry
            if not entry:  # then nobody could ask for it to be removed
                await self._call(self._asking, "forget", channel, client)
        return found

    async def end(self, process: str) -> None:
        await self._call(self._asking, "end_lease", process)

    # Cleaning up

    async def tidy(self) -> None:
        for _ in range(TIDY_ROUNDS):
            try:
                (row,) = await self._call(self._asking, "tidy", TIDY_ROWS)
            except BrokerUnavailable as error:
                logger.warning("PostgreSQL can't delete what is not needed any more: %s", error)
                return
            if not row[0]:
                return


@cache
def _query(schema: str, function: str, count: int) -> str:
    places = ", ".join(f"${number}" for number in range(1, count + 1))
    return f"SELECT * FROM {schema}.{function}({places})"


def _events(parts: Parts, text: str) -> Sequence[Event]:
    try:
        return parts.add(text)
    except UNREADABLE as error:
        logger.warning("A notification of PostgreSQL can't be read: %s", error)
        return ()


def _readable(read: Callable[..., Answer], *values: Any) -> list[Answer]:
    """What was read, in a list; nothing if it can't be read."""
    try:
        return [read(*values)]
    except UNREADABLE as error:
        logger.warning("PostgreSQL has what can't be read: %s", error)
        return []


def _publications(drafts: Sequence[DraftRow], names: Sequence[bytes]) -> list[list[Any]]:
    """The arguments of `append` that have one element for each publication.

    An array of which all elements are as usual is empty: asyncpg takes long over each element.
    """
    index = {name: number for number, name in enumerate(names, 1)}
    count = dict.fromkeys(names, 0)
    counts: list[int] = []
    for draft in drafts:
        count[draft.name] += draft.keep
        counts.append(count[draft.name])
    id_ttls = [draft.id_ttl for draft in drafts]
    keeps = [draft.keep for draft in drafts]
    return [
        [index[draft.name] for draft in drafts],
        counts,
        [draft.id for draft in drafts],
        [] if id_ttls.count(None) == len(drafts) else id_ttls,
        [draft.content for draft in drafts],
        [] if all(keeps) else keeps,
    ]


def _stored(channel: str, epoch: str, offset: int, content: str) -> Publication:
    return publication(channel, epoch, offset, stored_content(content))


def _entry(name: bytes, info: bytes) -> tuple[str, str]:
    return name.decode(), client_info(info).client


def _of_size(drafts: Sequence[DraftRow]) -> Iterator[Sequence[DraftRow]]:
    """Drafts in their order, cut where a statement would be too large."""
    start = size = 0
    for number, draft in enumerate(drafts):
        if size > 0 and size + len(draft.content) > MOST_APPENDED:
            yield drafts[start:number]
            start, size = number, 0
        size += len(draft.content)
    yield drafts[start:]


async def _each(
    session: Session,
    questions: Sequence[Question],
    pack: Callable[[Question], Packed],
    ask: Callable[[Sequence[Packed]], Awaitable[Answers[Answer]]],
) -> Answers[Answer]:
    """Ask all questions that PostgreSQL can be asked; the others are answered with an error."""
    answers: dict[int, Answer | Interrupted | BrokerUnavailable] = {}
    packed: dict[int, Packed] = {}
    for number, question in enumerate(questions):
        try:
            packed[number] = pack(question)
        except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
            answers[number] = Unfit(error)
    if packed:
        async with session.order:
            found = await _ask([*packed.values()], ask)
        answers.update(zip(packed, found, strict=True))
    return [answers[number] for number in range(len(questions))]


async def _ask(
    packed: Sequence[Packed], ask: Callable[[Sequence[Packed]], Awaitable[Answers[Answer]]]
) -> Answers[Answer]:
    """Ask together, or each alone if one spoils it for all."""
    try:
        return await ask(packed)
    except Unfit as error:
        if len(packed) == 1:
            return [error]
    return [answer for one in packed for answer in await _ask([one], ask)]
