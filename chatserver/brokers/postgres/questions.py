"""Questions to PostgreSQL as rows; their columns are the arrays that functions of SQL take."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from msgspec import Raw, Struct

from chatserver.brokers.engine import Draft, Enter, Leave, Read
from chatserver.brokers.postgres.announcements import Content, Kind
from chatserver.publication import Payload, Position
from chatserver.rules import Rules

__all__ = [
    "KEPT_ANYWAY",
    "ChangeRow",
    "DraftRow",
    "ReadRow",
    "StreamRow",
    "change_row",
    "columns",
    "draft_row",
    "kept",
    "read_row",
    "stream_row",
]

#: The largest number that a `bigint` holds, and seconds of a time to live at most: 100 years.
LARGEST, LONGEST = 2**63 - 1, 100 * 365 * 86400.0
#: Seconds for which each publication is kept, with its id, whatever its channel's rules say.
KEPT_ANYWAY = 60.0


class StreamRow(NamedTuple):
    """For `stand` of schema.sql."""

    name: bytes
    epoch: str
    offset: int
    size: int | None
    ttl: float | None


class DraftRow(Struct, frozen=True, gc=False):
    """For `append`."""

    name: bytes
    rules: Rules | None
    id: bytes
    id_ttl: float | None
    content: str
    keep: bool


class ReadRow(NamedTuple):
    """For `read`, all but the channel."""

    channel: str
    name: bytes
    ttl: float
    epoch: str | None
    offset: int | None
    limit: int | None
    reverse: bool


class ChangeRow(NamedTuple):
    """For `enter_and_leave`."""

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


def stream_row(known: tuple[str, Position, Rules | None]) -> StreamRow:
    """A stream, a position of it that is known, and what is kept of it if that is to change."""
    channel, position, rules = known
    return StreamRow(
        channel.encode(), _epoch(position.epoch), _bigint(position.offset), *kept(rules)
    )


def draft_row(draft: Draft) -> DraftRow:
    """A publication that is to be appended."""
    return DraftRow(
        draft.channel.encode(),
        draft.rules,
        _short(draft.id),
        None if draft.keep and draft.id_ttl <= KEPT_ANYWAY else draft.id_ttl,
        _text(draft),
        draft.keep,
    )


def read_row(read: Read) -> ReadRow:
    """A part of a history that is to be read."""
    since = read.since
    return ReadRow(
        read.channel,
        read.channel.encode(),
        min(read.ttl, LONGEST),
        None if since is None else _epoch(since.epoch),
        None if since is None else _bigint(since.offset),
        None if read.limit is None else max(_bigint(read.limit), 0),
        read.reverse,
    )


def change_row(change: Enter | Leave) -> ChangeRow:
    """A change of presence."""
    name = change.channel.encode()
    if isinstance(change, Enter):
        client = _short(change.info.client)
        will = (None, None) if change.last_will is None else _content(change.last_will)
        info = msgspec.json.encode(change.info)
        return ChangeRow(True, name, client, change.process, change.announce, info, *will)
    client, (size, ttl) = _short(change.client), kept(change.rules)
    announce, process = change.rules.join_leave, change.process
    return ChangeRow(False, name, client, process, announce, dead=change.dead, size=size, ttl=ttl)


def kept(rules: Rules | None) -> tuple[int | None, float | None]:
    """Size and time to live of a history; None if they are to stay as they are."""
    if rules is None:
        return None, None
    return _bigint(rules.history_size), min(rules.history_ttl, LONGEST)


def _text(draft: Draft) -> str:
    """What of a publication is stored and announced."""
    info = None if draft.info is None else msgspec.json.encode(draft.info)
    content = Content(*_content(draft.data), info, draft.skip.encode() or None, draft.keep)
    return msgspec.json.encode(content).decode()


def _content(data: Payload) -> tuple[Kind, bytes]:
    """Kind and bytes."""
    if isinstance(data, str):
        return "t", data.encode()
    return ("j", bytes(data)) if isinstance(data, Raw) else ("b", data)


def _epoch(text: str) -> str:
    """An epoch that somebody has named; empty, as no stream's is, if it can't be one."""
    return text if text.isascii() and text.isalnum() else ""


def _bigint(number: int) -> int:
    return max(min(number, LARGEST), -LARGEST)


def _short(identifier: str) -> bytes:
    """As the function of that name in schema.sql."""
    name = identifier.encode()
    return name if len(name) < 32 else hashlib.sha256(name).digest()


def columns(rows: Sequence[tuple[object, ...]]) -> list[list[object]]:
    """One list of each column of rows."""
    return [list(column) for column in zip(*rows, strict=True)]
