"""Typed messages: a struct per type on the wire, a method per type in the endpoint.

    class SayHello(Message):                # {"type": "say_hello", "text": "hi"}
        text: str

    class Room(Endpoint):
        @on_message
        async def say(self, websocket, message: SayHello) -> Said | None: ...

The field "type" selects the handler. What a handler returns goes back to the sender. A pydantic
model can take the place of a `Message`; its type is the default of its field `type`, or else its
class's name in snake_case.
"""

import inspect
import re
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple, TypeVar, dataclass_transform, get_args

import msgspec
from msgspec import Struct
from starlette.websockets import WebSocket

from chatserver.errors import InvalidMessage

__all__ = [
    "ErrorMessage",
    "Handler",
    "Message",
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


class ErrorMessage(Message, frozen=True, tag="error"):
    """Sent by the server to a client whose message could not be used; the connection lives.

    Attributes:
        reason: What was expected and what came.
    """

    reason: str


class Handler(NamedTuple):
    """A method of an endpoint class, and the messages that it handles.

    Attributes:
        name: The method's name.
        type: The class of its messages.
        tag: The value of their field "type".
        decode: Decodes one from JSON.
        reply: What the method is annotated to return; used for documentation only.
    """

    name: str
    type: Any
    tag: str
    decode: Callable[[str | bytes], Any]
    reply: Any = Any


class _Tagged(Struct):
    type: str


_parse_tag = msgspec.json.Decoder(_Tagged).decode
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
        # A base that is an endpoint has collected its handlers; other bases are searched here.
        if getattr(method, "__on_message__", False) is True and (
            name not in by_method or name in vars(cls)
        ):
            by_method[name] = _handler(cls, name, method, resolve)
    return _by_tag(cls, by_method)


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


def parse(handlers: Mapping[str, Handler], data: str | bytes) -> tuple[Handler, Any]:
    """Find the handler of a message, and decode the message for it.

    Raises:
        InvalidMessage: It isn't JSON, has no known type, or doesn't fit its type.
    """
    tag = _decode(_parse_tag, data).type
    handler = handlers.get(tag)
    if handler is None:
        known = ", ".join(repr(name) for name in sorted(handlers))
        raise InvalidMessage(f"unknown message type {tag[:40]!r}; expected one of {known}")
    return handler, _decode(handler.decode, data)


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
    if annotation is inspect.Parameter.empty:
        raise TypeError(
            f"{cls.__name__}.{name} must be a handler of the form "
            f"'async def {name}(self, websocket, message: SomeMessage)'"
        )
    kind, reply = resolve(annotation), resolve(signature.return_annotation)
    if isinstance(kind, type) and issubclass(kind, Message) and kind is not Message:
        tag = kind.__struct_config__.tag
        return Handler(name, kind, str(tag), msgspec.json.Decoder(kind).decode, reply)
    if hasattr(kind, "model_validate_json"):
        return Handler(name, kind, _pydantic_tag(kind), kind.model_validate_json, reply)
    raise TypeError(
        f"{cls.__name__}.{name} must take a subclass of Message or a pydantic model, got {kind!r}"
    )


def _pydantic_tag(model: Any) -> str:
    field = model.model_fields.get("type")
    if field is None:
        return _tag(model.__name__)
    choices = get_args(field.annotation) or (field.default,)
    return choices[0] if isinstance(choices[0], str) else _tag(model.__name__)
