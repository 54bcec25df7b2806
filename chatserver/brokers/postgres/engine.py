"""PostgreSQL as an engine: what is asked becomes arrays, and a call of a function of schema.sql.

There are three connections. One appends; one answers all other questions; one hears what is
announced, and reads on it what was too large to be announced.
"""

import asyncio
import hashlib
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import Raw

from chatserver.brokers.base import Control
from chatserver.brokers.engine import (
    Answers,
    Draft,
    Engine,
    Enter,
    Heard,
    Interrupted,
    Leave,
    Read,
    Receive,
    read_control,
    write_control,
)
from chatserver.brokers.postgres.announcements import (
    UNREADABLE,
    Entered,
    Event,
    Gone,
    Parts,
    Published,
    Span,
    Told,
    client_info,
    publication,
)
from chatserver.brokers.postgres.server import Server
from chatserver.brokers.postgres.sessions import POOLED, Row, Session, Unfit
from chatserver.brokers.remote import RemoteBroker
from chatserver.errors import BrokerUnavailable
from chatserver.publication import (
    ClientInfo,
    History,
    Joined,
    Left,
    Payload,
    Position,
    Publication,
)
from chatserver.rules import Rules

__all__ = ["PostgresBroker", "PostgresEngine"]

logger: logging.Logger = logging.getLogger("chatserver")

Question = TypeVar("Question")
Packed = TypeVar("Packed")
Answer = TypeVar("Answer")

#: Characters of announcements that wait to be handed on, at most. Beyond, the process is too slow,
#: and connects again: then it reads from the history what it has missed.
MOST_WAITING = 64 * 1024 * 1024
#: Notifications that are handed on together at most, and their characters, about.
MOST_TAKEN, ENOUGH = 32, 64 * 1024
#: Bytes that one statement appends, about.
MOST_APPENDED = 8 * 1024 * 1024
#: Channels in one statement, at most.
MOST_CHANNELS = 1000
#: Rows that are deleted in one statement, and such statements in a row.
TIDY_ROWS, TIDY_ROUNDS = 2000, 50
#: The largest number that a `bigint` holds, and seconds of a time to live at most: 100 years.
LARGEST, LONGEST = 2**63 - 1, 100 * 365 * 86400.0
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

    def __init__(self, url: str, *, schema: str = "chatserver") -> None:
        self._server = Server(url, schema)
        self.address: str = self._server.address
        self._sessions: list[Session] = []
        self._notifications = Notifications()
        # The names of channels that are followed.
        self._followed: set[bytes] = set()

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
        places = ", ".join(f"${number + 1}" for number in range(len(values)))
        query = f"SELECT * FROM {self._server.schema}.{function}({places})"
        return await session.fetch(query, *values)

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
            heard += next(read) if type(event) is Span else _readable(_READERS[type(event)], event)
        return heard

    def _is_ours(self, event: Event) -> bool:
        return type(event) is Told or event.name in self._followed

    async def _read_spans(self, spans: Sequence[Span]) -> Iterator[list[Publication]]:
        """The publications of each span; those that are not there any more are left out."""
        found: list[list[Publication]] = [[] for _ in spans]
        if spans:
            columns = _columns([(each.name, each.epoch, each.first, each.last) for each in spans])
            for row in await self._call(self._hearing, "read_spans", *columns):
                span = spans[row["number"] - 1]
                found[row["number"] - 1] += _readable(
                    publication, span.name.decode(), span.epoch, *row[1:]
                )
        return iter(found)

    # Streams

    async def follow(self, channels: Mapping[str, Rules]) -> Answers[Position]:
        async def follow(streams: Sequence[_Stream]) -> Answers[Position]:
            # Followed first: what is committed after the tops were read is heard.
            self._followed.update(stream.name for stream in streams)
            return await self._stand(streams)

        wanted = [(channel, UNKNOWN, rules) for channel, rules in channels.items()]
        return await _each(wanted, _stream, follow)

    async def unfollow(self, channels: Collection[str]) -> None:
        for channel in channels:
            self._followed.discard(channel.encode("utf-8", "replace"))

    async def tops(self, known: Mapping[str, Position]) -> Mapping[str, Position]:
        found: dict[str, Position] = {}
        wanted = [(channel, position, None) for channel, position in known.items()]
        answers = await _each(wanted, _stream, self._stand)
        for channel, answer in zip(known, answers, strict=True):
            if isinstance(answer, Interrupted | BrokerUnavailable):
                raise answer
            found[channel] = answer
        return found

    async def _stand(self, streams: Sequence["_Stream"]) -> list[Position]:
        """The tops of streams, given what is known of each."""
        tops: list[Position] = []
        for start in range(0, len(streams), MOST_CHANNELS):
            columns = _columns(streams[start : start + MOST_CHANNELS])
            rows = await self._call(self._asking, "stand", *columns)
            tops += [Position(row["top"], row["epoch"]) for row in rows]
        return tops

    async def append(self, drafts: Sequence[Draft]) -> Answers[Position]:
        return await _each(drafts, _draft, self._append_all)

    async def _append_all(self, drafts: Sequence["_Draft"]) -> list[Position | BrokerUnavailable]:
        answers: list[Position | BrokerUnavailable] = []
        for some in _of_size(drafts):
            answers += await self._append_some(some)
        return answers

    async def _append_some(self, drafts: Sequence["_Draft"]) -> list[Position | BrokerUnavailable]:
        try:
            return [*await self._append(drafts)]
        except Unfit as error:
            if len(drafts) == 1:
                return [_refused(error)]
        # One spoils it for all, so each is tried by itself.
        return [answer for draft in drafts for answer in await self._append_some([draft])]

    async def _append(self, drafts: Sequence["_Draft"]) -> list[Position]:
        distinct: dict[tuple[bytes, bytes], _Draft] = {}
        for draft in drafts:
            distinct.setdefault((draft.name, draft.id), draft)
        streams = {draft.name: (draft.name, draft.size, draft.ttl) for draft in drafts}
        ordered = sorted(streams, key=lambda name: hashlib.sha256(name).digest())
        index = {name: number + 1 for number, name in enumerate(ordered)}
        publications = [(index[draft.name], *draft[3:]) for draft in distinct.values()]
        values = (*_columns([streams[name] for name in ordered]), *_columns(publications))
        (row,) = await self._call(self._appending, "append", *values)
        epochs = dict(zip(ordered, row["epochs"], strict=True))
        answers = {
            (name, id): Position(offset, epochs[name])
            for (name, id), offset in zip(distinct, row["positions"], strict=True)
        }
        return [answers[draft.name, draft.id] for draft in drafts]

    async def read(self, reads: Sequence[Read]) -> Answers[History]:
        return await _each(reads, _read, self._read)

    async def _read(self, reads: Sequence["_Read"]) -> list[History]:
        rows = await self._call(self._asking, "read", *_columns([read[1:] for read in reads]))
        # A stream that doesn't exist has no row, and would begin with an epoch of its own.
        tops = [Position(0, secrets.token_hex(4)) for _ in reads]
        found: list[list[Publication]] = [[] for _ in reads]
        for number, epoch, top, *row in rows:
            tops[number - 1] = Position(top, epoch)
            if row[0] is not None:
                channel = reads[number - 1].channel
                found[number - 1] += _readable(publication, channel, epoch, *row)
        return [History(tuple(some), top) for some, top in zip(found, tops, strict=True)]

    async def tell(self, controls: Sequence[Control]) -> Answers[None]:
        events = [Told(write_control(control)) for control in controls]
        await self._call(self._asking, "announce", msgspec.json.encode(events).decode())
        return [None] * len(controls)

    # Presence

    async def enter_and_leave(self, changes: Sequence[Enter | Leave]) -> Answers[None]:
        async def change(packed: Sequence[_Change]) -> Answers[None]:
            await self._call(self._asking, "enter_and_leave", *_columns(packed))
            return [None] * len(packed)

        return await _each(changes, _change, change)

    async def present(self, channels: Sequence[str]) -> Answers[dict[str, ClientInfo]]:
        async def present(names: Sequence[bytes]) -> Answers[dict[str, ClientInfo]]:
            found: list[dict[str, ClientInfo]] = [{} for _ in names]
            for row in await self._call(self._asking, "present", names):
                for info in _readable(client_info, row["info"]):
                    found[row["number"] - 1][info.client] = info
            return found

        return await _each(channels, str.encode, present)

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
            except (Unfit, BrokerUnavailable) as error:
                logger.warning("PostgreSQL can't delete what is not needed any more: %s", error)
                return
            if not row[0]:
                return


class Notifications:
    """What was heard and not yet handed on."""

    def __init__(self) -> None:
        self._texts: deque[str] = deque()
        self._size = 0
        self._reason = ""
        self._something = asyncio.Event()

    def add(self, text: str) -> None:
        """A notification has come."""
        self._texts.append(text)
        self._size += len(text)
        if self._size > MOST_WAITING:
            self.end("this process takes too long over what is announced")
        self._something.set()

    def end(self, reason: str = "the connection was lost") -> None:
        """Nothing comes any more."""
        self._reason = self._reason or reason
        self._something.set()

    async def take(self) -> list[str]:
        """The oldest notifications; waits for one.

        Raises:
            Interrupted: Nothing comes any more.
        """
        while not self._texts:
            self._something.clear()
            if self._reason:
                raise Interrupted(self._reason)
            await self._something.wait()
        taken: list[str] = []
        size = 0
        while self._texts and len(taken) < MOST_TAKEN and size < ENOUGH:
            taken.append(self._texts.popleft())
            size += len(taken[-1])
        self._size -= size
        return taken


def _published(event: Published) -> Publication:
    row = (event.kind, event.data, event.info, event.skip)
    return publication(event.name.decode(), event.epoch, event.offset, *row)


def _entered(event: Entered) -> Joined:
    return Joined(event.name.decode(), client_info(event.info))


def _gone(event: Gone) -> Left:
    return Left(event.name.decode(), client_info(event.info))


def _told(event: Told) -> Control:
    return read_control(event.control)


#: By type, because `isinstance` of a struct takes long.
_READERS: dict[type[Event], Callable[[Any], Heard]] = {
    Published: _published,
    Entered: _entered,
    Gone: _gone,
    Told: _told,
}


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


# Questions as values of columns


class _Stream(NamedTuple):
    name: bytes
    epoch: str
    offset: int
    size: int | None
    ttl: float | None


class _Draft(NamedTuple):
    name: bytes
    size: int | None
    ttl: float | None
    id: bytes
    id_ttl: float
    kind: str
    data: bytes
    info: bytes | None
    skip: bytes | None
    keep: bool


class _Read(NamedTuple):
    channel: str
    name: bytes
    ttl: float
    epoch: str | None
    offset: int | None
    limit: int | None
    reverse: bool


class _Change(NamedTuple):
    enters: bool
    name: bytes
    client: bytes
    process: str
    announce: bool
    info: bytes | None = None
    will_kind: str | None = None
    will: bytes | None = None
    dead: bool = False
    size: int | None = None
    ttl: float | None = None


def _stream(known: tuple[str, Position, Rules | None]) -> _Stream:
    channel, position, rules = known
    return _Stream(
        channel.encode(), _epoch(position.epoch), _bigint(position.offset), *_kept(rules)
    )


def _draft(draft: Draft) -> _Draft:
    return _Draft(
        draft.channel.encode(),
        *_kept(draft.rules),
        _short(draft.id),
        draft.id_ttl,
        *_content(draft.data),
        None if draft.info is None else msgspec.json.encode(draft.info),
        draft.skip.encode() or None,
        draft.keep,
    )


def _read(read: Read) -> _Read:
    since = read.since
    return _Read(
        read.channel,
        read.channel.encode(),
        min(read.ttl, LONGEST),
        None if since is None else _epoch(since.epoch),
        None if since is None else _bigint(since.offset),
        None if read.limit is None else max(_bigint(read.limit), 0),
        read.reverse,
    )


def _change(change: Enter | Leave) -> _Change:
    name = change.channel.encode()
    if isinstance(change, Enter):
        client = _short(change.info.client)
        will = (None, None) if change.last_will is None else _content(change.last_will)
        info = msgspec.json.encode(change.info)
        return _Change(True, name, client, change.process, change.announce, info, *will)
    client, (size, ttl) = _short(change.client), _kept(change.rules)
    announce, process = change.rules.join_leave, change.process
    return _Change(False, name, client, process, announce, dead=change.dead, size=size, ttl=ttl)


def _kept(rules: Rules | None) -> tuple[int | None, float | None]:
    """Size and time to live of a history; None if they are to stay as they are."""
    if rules is None:
        return None, None
    return _bigint(rules.history_size), min(rules.history_ttl, LONGEST)


def _content(data: Payload) -> tuple[str, bytes]:
    """Kind and bytes."""
    if isinstance(data, str):
        return "t", data.encode()
    return ("j", bytes(data)) if isinstance(data, Raw) else ("b", data)


def _epoch(text: str) -> str:
    """An epoch that somebody has named; empty, as no stream's is, if it can't be one."""
    return text if text.isascii() and text.isalnum() else ""


def _bigint(number: int) -> int:
    return max(min(number, LARGEST), -LARGEST)


def _entry(name: bytes, info: bytes) -> tuple[str, str]:
    return name.decode(), client_info(info).client


def _short(identifier: str) -> bytes:
    """As the function of that name in schema.sql."""
    name = identifier.encode()
    return name if len(name) < 32 else hashlib.sha256(name).digest()


def _columns(rows: Sequence[tuple[object, ...]]) -> list[list[object]]:
    """One list of each column of rows."""
    return [list(column) for column in zip(*rows, strict=True)]


def _of_size(drafts: Sequence[_Draft]) -> Iterator[Sequence[_Draft]]:
    """Drafts in their order, cut where a statement would be too large."""
    start = size = 0
    for number, draft in enumerate(drafts):
        if size > 0 and size + len(draft.data) > MOST_APPENDED:
            yield drafts[start:number]
            start, size = number, 0
        size += len(draft.data)
    yield drafts[start:]


async def _each(
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
            answers[number] = _refused(error)
    if packed:
        found = await ask([*packed.values()])
        answers.update(zip(packed, found, strict=True))
    return [answers[number] for number in range(len(questions))]


def _refused(error: Exception) -> BrokerUnavailable:
    return BrokerUnavailable(f"PostgreSQL can't be given this: {error}.")
