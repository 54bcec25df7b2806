"""What an endpoint class hears and says: its operations, with the types of their messages."""

import inspect
import types
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from chatserver.asyncapi.docstrings import Docstring, read_docstring
from chatserver.endpoints import Ack, Endpoint, ErrorMessage
from chatserver.endpoints.messages import Handler
from chatserver.endpoints.recovery import Envelope, Standing
from chatserver.publication import Publication

__all__ = ["MessageType", "Operation", "operations_of"]

JSON, TEXT, BINARY = "application/json", "text/plain", "application/octet-stream"

#: What a frame holds where the class doesn't say more, by `encoding`.
PLAIN: dict[Any, tuple[Any, ...]] = {
    None: (str, bytes),
    "text": (str,),
    "bytes": (bytes,),
    "json": (Any,),
}


class MessageType(NamedTuple):
    """The type of a message.

    Attributes:
        type: The class, or another type; `Any` for any JSON.
        content_type: How it is written on the wire.
        tag: The field "type" without which the server doesn't take it; None where it needs none.
    """

    type: Any
    content_type: str
    tag: str | None = None


class Operation(NamedTuple):
    """What the server does with messages of a channel.

    Attributes:
        name: Its name within the channel.
        action: "receive" for what clients send, "send" for what the server does by itself.
        messages: The types of its messages.
        replies: The types of what the server answers, to this client alone.
        docstring: The handler's.
        carries_id: Whether a message may have an id, which the answer carries back.
    """

    name: str
    action: Literal["receive", "send"]
    messages: tuple[MessageType, ...]
    replies: tuple[MessageType, ...]
    docstring: Docstring
    carries_id: bool = False


def operations_of(cls: type[Endpoint]) -> tuple[Operation, ...]:
    """The operations of an endpoint class: those that receive, then the one that sends."""
    sent = tuple(_message_types(_sent(cls), cls))
    says = read_docstring("What the server sends by itself.")
    sending = [Operation("send", "send", sent, (), says)] if sent else []
    return (*_receiving(cls), *sending)


def _receiving(cls: type[Endpoint]) -> Iterator[Operation]:
    for tag, handler in cls.handlers.items():
        said = read_docstring(getattr(cls, handler.name).__doc__)
        received = (MessageType(handler.type, JSON, tag),)
        replies = tuple(_message_types(_replies(handler), cls))
        carries_id = not handler.keeps_id
        yield Operation(handler.name, "receive", received, replies, said, carries_id)
    if not cls.handlers and cls.on_receive is not Endpoint.on_receive:
        kinds = _members(_annotation(cls.on_receive, "data")) or PLAIN[cls.encoding]
        heard = tuple(_message_types(kinds, cls))
        replies = tuple(_message_types(_members(_annotation(cls.on_receive, "return")), cls))
        said = read_docstring(cls.on_receive.__doc__)
        yield Operation("receive", "receive", heard, replies, said)


def _replies(handler: Handler) -> Iterator[Any]:
    """The types of a handler's replies. What has an id and gets no reply gets an `Ack`."""
    members = _members(handler.reply)
    yield from members
    may_be_none = type(None) in get_args(getattr(handler.reply, "__value__", handler.reply))
    if (may_be_none or not members) and not handler.keeps_id:
        yield Ack


def _sent(cls: type[Endpoint]) -> Iterator[Any]:
    """The types of what the server sends by itself, as far as the class says."""
    declared = cls.sends if isinstance(cls.sends, tuple) else (cls.sends,)
    for each in declared:
        yield from _members(each)
    if cls.recover:
        yield from (Standing, Envelope)
    else:
        yield from _published(cls)
    if cls.handlers and cls.on_invalid is Endpoint.on_invalid:
        yield ErrorMessage


def _published(cls: type[Endpoint]) -> Iterator[Any]:
    """The types of what is written as it was published, as far as the class says."""
    if not (cls.sends or cls.handlers):
        yield from PLAIN[cls.encoding]
    if cls.history and cls.welcome is not Endpoint.welcome:
        yield from _members(_annotation(cls.welcome, "return"))
    if cls.last_will is not Endpoint.last_will:
        yield from _members(_annotation(cls.last_will, "return"))


def _message_types(kinds: Iterable[Any], cls: type[Endpoint]) -> Iterator[MessageType]:
    for kind in dict.fromkeys(kinds):
        content_type = {str: TEXT, bytes: BINARY}.get(kind, JSON)
        # A class with this encoding writes texts as JSON, too.
        yield MessageType(kind, JSON if kind is str and cls.encoding == "json" else content_type)


def _members(annotation: Any) -> tuple[Any, ...]:
    """The types of messages that an annotation stands for; none if it doesn't say."""
    annotation = getattr(annotation, "__value__", annotation)  # of `type Answer = Yes | No`
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(each for member in get_args(annotation) for each in _members(member))
    if annotation in (None, type(None), Any, inspect.Signature.empty):
        return ()
    if isinstance(annotation, str) or not isinstance(annotation, Hashable):
        return ()  # it could not be resolved
    # Publications are sent as they were published.
    return () if Publication in (annotation, *get_args(annotation)) else (annotation,)


def _annotation(function: Callable[..., Any], name: str) -> Any:
    """The annotation of a parameter, or of what is returned; Any where it can't be resolved."""
    written = inspect.unwrap(function)
    try:
        annotation = inspect.get_annotations(written).get(name, Any)
        return eval(annotation, written.__globals__) if isinstance(annotation, str) else annotation
    except Exception:  # whatever evaluating it raises
        return Any
