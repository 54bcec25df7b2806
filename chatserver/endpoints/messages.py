"""Typed messages: a struct per type on the wire, a method per type in the endpoint.

    class SayHello(Message):                # {"type": "say_hello", "text": "hi"}
        text: str

    class Room(Endpoint):
        @on_message
        async def say(self, websocket, message: SayHello) -> Said | None: ...

The field "type" selects the handler. What a handler returns goes back to the sender. A pydantic
model can take the place of a `Message`; its type is the default of its field `type`, or else its
class's name in snake_case.

A client that gives its message an "id" gets it back, in the reply, in an `ErrorMessage` or in an
`Ack`, and so knows its own answer. A type that declares a field "id" for something else keeps it.
"""

import inspect
import re
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import is_dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar, dataclass_transform, get_args

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType
from starlette.websockets import WebSocket

from chatserver.endpoints.ids import MessageId, is_for_ids, read_id, with_id, without
from chatserver.errors import InvalidMessage
from chatserver.publication import payload

__all__ = [
    "Ack",
    "ErrorMessage",
    "Handler",
    "Message",
    "answers",
    "check_received",
    "find_handlers",
    "on_message",
    "parse",
    "parse_json",
]

F = TypeVar("F", bound=Callable[[Any, WebSocket, Any], Coroutine[Any, Any, Any]])

_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def _tag(name: str) -> str:
    return _WORD.sub("_", name.rpartition(".")[2]).lower()


# A subclass is frozen, too, without repeating it.
@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Message(Struct, frozen=True, tag_field="type", tag=_tag):
    """A message on the wire: a JSON object whose "type" is the class's name in snake_case."""


class ErrorMessage(Message, frozen=True, tag="error", omit_defaults=True):
    """Sent by the server to a client whose message could not be used; the connection lives.

    Attributes:
        reason: What was expected and what came.
        id: The id of that message; left out where it had none.
    """

    reason: str
    id: MessageId | None = None


class Ack(Message, frozen=True):
    """Sent by the server when a message with an id was handled, and no reply carries the id.

    Attributes:
        id: The id of that message.
    """

    id: MessageId


class Handler(NamedTuple):
    """A method of an endpoint class, and the messages that it handles.

    Attributes:
        name: The method's name.
        type: The class of its messages.
        tag: The value of their field "type".
        decode: Decodes one from JSON.
        keeps_id: Whether its field "id" is its own, and not the id of the message.
        forbids_id: Whether it has no such field, and refuses unknown ones.
        reply: What the method is annotated to return; used for documentation only.
    """

    name: str
    type: Any
    tag: str
    decode: Callable[[str | bytes], Any]
    keeps_id: bool
    forbids_id: bool
    reply: Any


class _Envelope(Struct, gc=False):
    type: str | UnsetType = UNSET
    id: Raw | UnsetType = UNSET


_parse_envelope = msgspec.json.Decoder(_Envelope).decode
_parse_any = msgspec.json.Decoder().decode


def on_message(method: F) -> F:
    """Mark a method `async def name(self, websocket, message: Type)` as the handler of `Type`."""
    method.__on_message__ = True  # type: ignore[attr-defined]
    return method


def find_handlers(cls: type, resolve: Callable[[Any], Any]) -> dict[str, Handler]:
    """The handlers of a class by the tag of their messages, including those of its bases.

    Args:
        cls: The class.
        resolve: Resolves an annotation that is a string.

    Raises:
        TypeError: A handler has no annotated message, or two have the same type.
    """
    by_method: dict[str, Handler] = {}
    for base in reversed(cls.__mro__[1:]):
        by_method |= {h.name: h for h in vars(base).get("handlers", {}).values()}
    for name in dir(cls):
        method = getattr(cls, name, None)
        # A `staticmethod` may have the mark itself.
        marked = any(map(_is_marked, (method, inspect.getattr_static(cls, name, None))))
        # A base that is an endpoint has collected its handlers; other bases are searched here.
        if marked and (name not in by_method or name in vars(cls)):
            by_method[name] = _handler(cls, name, method, resolve)
    return _by_tag(cls, by_method)


def _is_marked(method: object) -> bool:
    return getattr(method, "__on_message__", False) is True


def _by_tag(cls: type, by_method: Mapping[str, Handler]) -> dict[str, Handler]:
    found: dict[str, Handler] = {}
    for handler in by_method.values():
        if handler.tag in found:
            raise TypeError(
                f"{cls.__name__}: {found[handler.tag].name!r} and {handler.name!r} "
                f"both handle messages of type {handler.tag!r}"
            )
        found[handler.tag] = handler
    return found


def check_received(cls: Any, resolve: Callable[[Any], Any]) -> None:
    """Check that `on_receive` expects no class that a message would have to be converted to.

    Raises:
        TypeError: It does, and so its annotation is not true.
    """
    written = inspect.getattr_static(cls, "on_receive")
    if hasattr(written, "__wrapped__"):
        return  # a decorator may well convert it
    expected = resolve(inspect.get_annotations(written).get("data"))
    if _has_to_be_converted(expected):
        raise TypeError(
            f"{cls.__name__}.on_receive gets what JSON holds, not {expected!r}; write a handler: "
            "'@on_message async def name(self, websocket, message: SomeMessage)'"
        )


def _has_to_be_converted(kind: Any) -> bool:
    is_class = inspect.isclass(kind) and (
        issubclass(kind, Struct) or is_dataclass(kind) or hasattr(kind, "model_validate_json")
    )
    return is_class or any(map(_has_to_be_converted, get_args(kind)))


def parse(
    handlers: Mapping[str, Handler], data: str | bytes
) -> tuple[Handler, Any, MessageId | None]:
    """Find the handler of a message, and decode the message for it.

    Returns:
        The handler, the message, and the id that the answer has to carry; None without one.

    Raises:
        InvalidMessage: It isn't JSON, has no known type or a bad id, or doesn't fit its type.
    """
    envelope = _decode(_parse_envelope, data)
    handler = None if envelope.type is UNSET else handlers.get(envelope.type)
    if handler is not None and (envelope.id is UNSET or handler.keeps_id):
        return handler, _decode(handler.decode, data), None
    id = None if envelope.id is UNSET else read_id(envelope.id)
    try:
        if envelope.type is UNSET:
            raise InvalidMessage("not a valid message: Object missing required field `type`")
        if handler is None:
            known = ", ".join(repr(name) for name in sorted(handlers))
            tag = envelope.type[:40]
            raise InvalidMessage(f"unknown message type {tag!r}; expected one of {known}")
        if id is not None and handler.forbids_id:
            data = without("id", data)
        return handler, _decode(handler.decode, data), id
    except InvalidMessage as error:
        error.id = id
        raise


def answers(reply: Any, id: MessageId) -> tuple[Any, ...]:
    """What a client is sent for a message with an id, in this order.

    Args:
        reply: What the handler returned.
        id: The message's.

    Returns:
        The reply with the id. A reply that can't carry it, because it is no JSON object or has
        another id of its own, is followed by an `Ack`; None is an `Ack` alone.

    Raises:
        TypeError: The reply can't be encoded as JSON.
    """
    if reply is None:
        return (Ack(id=id),)
    data = payload(reply)
    carrying = with_id(data, id)
    return (data, Ack(id=id)) if carrying is None else (carrying,)


def parse_json(data: str | bytes) -> Any:
    """Decode any JSON value.

    Raises:
        InvalidMessage: It is not JSON (RFC 8259) or not UTF-8, is nested too deeply, or has
            numbers too large.
    """
    return _decode(_parse_any, data)


def _decode(decode: Callable[[str | bytes], Any], data: str | bytes) -> Any:
    try:
        return decode(data)
    except msgspec.MsgspecError as exc:
        raise InvalidMessage(f"not a valid message: {exc}") from None
    except UnicodeError:
        raise InvalidMessage("not a valid message: not UTF-8") from None
    except RecursionError:
        raise InvalidMessage("not a valid message: nested too deeply") from None
    except ValueError as exc:
        if not hasattr(exc, "errors"):
            raise
        raise InvalidMessage(f"not a valid message: {_first_error(exc)}") from None


def _first_error(exc: Any) -> str:
    """The first error of pydantic's `ValidationError`, without the input that it quotes."""
    first = exc.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{first['msg']} - at `$.{where}`" if where else str(first["msg"])


def _handler(cls: type, name: str, method: Any, resolve: Callable[[Any], Any]) -> Handler:
    signature = inspect.signature(method)
    parameters = list(signature.parameters.values())
    annotation = parameters[2].annotation if len(parameters) == 3 else inspect.Parameter.empty
    of_an_instance = not isinstance(inspect.getattr_static(cls, name), staticmethod | classmethod)
    if annotation is inspect.Parameter.empty or not of_an_instance:
        raise TypeError(
            f"{cls.__name__}.{name} must be a handler of the form "
            f"'async def {name}(self, websocket, message: SomeMessage)'"
        )
    kind, reply = resolve(annotation), resolve(signature.return_annotation)
    if isinstance(kind, type) and issubclass(kind, Message) and kind is not Message:
        config = kind.__struct_config__
        fields = msgspec.structs.fields(kind)
        own = next(((f.required, f.type) for f in fields if f.encode_name == "id"), None)
        decode = msgspec.json.Decoder(kind).decode
        use = _use_of_id(own, forbids=config.forbid_unknown_fields)
        return Handler(name, kind, str(config.tag), decode, *use, reply)
    if hasattr(kind, "model_validate_json"):
        forbids = kind.model_config.get("extra") == "forbid"
        use = _use_of_id(_pydantic_id(kind), forbids=forbids)
        decode = kind.model_validate_json
        if forbids and _pydantic_field(kind, "type") is None:
            decode = partial(_decode_untagged, decode)
        return Handler(name, kind, _pydantic_tag(kind), decode, *use, reply)
    raise TypeError(
        f"{cls.__name__}.{name} must take a subclass of Message or a pydantic model, got {kind!r}"
    )


def _decode_untagged(decode: Callable[[bytes], Any], data: str | bytes) -> Any:
    return decode(without("type", data))


def _pydantic_tag(model: Any) -> str:
    field = _pydantic_field(model, "type")
    if field is None:
        return _tag(model.__name__)
    choices = get_args(field.annotation) or (field.default,)
    return choices[0] if isinstance(choices[0], str) else _tag(model.__name__)


def _pydantic_id(model: Any) -> tuple[bool, Any] | None:
    field = _pydantic_field(model, "id")
    return None if field is None else (field.is_required(), field.annotation)


def _pydantic_field(model: Any, key: str) -> Any:
    """The field that a model reads from a key, if it has one."""
    for name, field in model.model_fields.items():
        alias = field.validation_alias or name
        if key in getattr(alias, "choices", (alias,)):
            return field
    return None


def _use_of_id(own: tuple[bool, Any] | None, *, forbids: bool) -> tuple[bool, bool]:
    """Whether a type of messages keeps "id" for itself, and whether it refuses one.

    Args:
        own: Of its field "id", if it has one: whether it is required, and its type.
        forbids: Whether it refuses unknown fields.
    """
    if own is None:
        return False, forbids
    required, kind = own
    return required or not is_for_ids(kind), False
