"""The id that a client may give its message, so that it knows the answer: `{"id": 7, …}`.

It is carried back as it came. For the broker, which ignores a second publication with the same id,
it is made unique among all clients.
"""

import types
from typing import Annotated, Any, TypeAlias, Union, get_args, get_origin

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from chatserver.errors import InvalidMessage
from chatserver.publication import Payload

__all__ = ["MessageId", "is_for_ids", "read_id", "unique_id", "with_id", "without"]

MessageId: TypeAlias = str | int
"""What a client may call its message: text of 1 to 64 characters, or an integer of 64 bits."""

#: Characters from which on an id is taken for unique: a UUID has 36, a counter never so many.
UNIQUE_LENGTH = 16

_Text = Annotated[str, Meta(min_length=1, max_length=64)]
_Integer = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class _Reply(Struct, gc=False):
    id: Raw | UnsetType = UNSET


_parse_id = msgspec.json.Decoder(_Text | _Integer | None).decode
_parse_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_parse_reply = msgspec.json.Decoder(_Reply).decode


def read_id(raw: Raw) -> MessageId | None:
    """The id of a message; null is none.

    Raises:
        InvalidMessage: It is too long, or no id.
    """
    try:
        id: MessageId | None = _parse_id(raw)
    except (msgspec.MsgspecError, ValueError):
        expected = "text of 1 to 64 characters or an integer of 64 bits"
        raise InvalidMessage(f"not a valid message: Expected {expected} - at `$.id`") from None
    return id


def without(field: str, data: str | bytes) -> bytes:
    """A message without one of its fields, for a type that refuses unknown ones."""
    fields = _parse_fields(data)
    del fields[field]
    return msgspec.json.encode(fields)


def with_id(data: Payload, id: MessageId) -> Payload | None:
    """A reply with the id of its message.

    Returns:
        The reply; None if it can't carry the id, because it is no JSON object or has another one
        than null.
    """
    if not isinstance(data, Raw):
        return None
    try:
        own = _parse_reply(data).id
    except msgspec.MsgspecError:
        return None
    if own is UNSET:
        body = bytes(data).strip()[:-1]
        comma = b"" if body.strip() == b"{" else b","
        return Raw(b'%s%s"id":%s}' % (body, comma, msgspec.json.encode(id)))
    value = msgspec.json.decode(own)
    if value is None:  # its type has a field for the id, and the handler left it
        return Raw(msgspec.json.encode({**_parse_fields(data), "id": id}))
    return data if type(value) is type(id) and value == id else None


def unique_id(id: MessageId, user: str, client: str) -> str:
    """An id for the broker, which no message of another user has.

    A client that comes back is another connection, so its id must be unique by itself to be
    recognised: a text of 16 characters or more. Others are counters, and several connections of
    one user count from 1: such an id is recognised on its own connection only.
    Clients whose user is unknown count as one user here: they have to choose unique ones, as
    `crypto.randomUUID()` does.

    Args:
        id: The client's.
        user: The client's user; empty if unknown.
        client: The connection's identifier.
    """
    is_unique = isinstance(id, str) and len(id) >= UNIQUE_LENGTH
    owner = ("user", user) if is_unique else ("client", client)
    # As JSON, in which no two of these are written alike, whatever a user is called.
    return msgspec.json.encode((*owner, id)).decode()


def is_for_ids(kind: Any) -> bool:
    """Whether a type is text, an integer, or either, and perhaps None."""
    if get_origin(kind) is Annotated:
        return is_for_ids(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return all(map(is_for_ids, get_args(kind)))
    return kind in (str, int, type(None))
