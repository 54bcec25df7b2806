"""The types of messages as Message Objects, each under a key of its own."""

from collections.abc import Collection, Iterable
from typing import Any, get_args, get_origin

from chatserver.asyncapi.docstrings import read_docstring
from chatserver.asyncapi.operations import BINARY, TEXT, MessageType
from chatserver.asyncapi.schemas import Schema, Schemas, free_name, valid_name
from chatserver.endpoints import ErrorMessage

__all__ = ["Messages"]

#: Key, title, summary and payload of a frame of which nothing more is known.
_PLAIN: dict[MessageType, tuple[str, str, str, Schema]] = {
    MessageType(str, TEXT): ("text", "Text", "A text.", {"type": "string"}),
    MessageType(bytes, BINARY): (
        "binary",
        "Binary",
        "Bytes.",
        {"type": "string", "format": "binary"},
    ),
    MessageType(Any, "application/json"): ("json", "JSON", "Any JSON value.", {}),
}

_ID = {
    "description": (
        "What a client calls its message: text of 1 to 64 characters, or an integer of 64 bits. "
        "The answer carries it back."
    ),
    "location": "$message.payload#/id",
}


class Messages:
    """The Message Objects of a document.

    Args:
        types: All types of messages, in the order of the document.
        schemas: Their schemas.
        correlated: The types of those that may have an id: messages of clients, and answers.
    """

    def __init__(
        self, types: Iterable[MessageType], schemas: Schemas, correlated: Collection[Any]
    ) -> None:
        self._schemas = schemas
        self._correlated = {*correlated, ErrorMessage} if correlated else set[Any]()
        #: What stands in `components.correlationIds`.
        self.correlation_ids = {"id": _ID} if correlated else {}
        self._keys: dict[MessageType, str] = {}
        #: By key: what stands in `components.messages`.
        self.components: dict[str, dict[str, Any]] = {}
        for each in types:
            if each not in self._keys:
                self._keys[each] = self._add(each)

    def key_of(self, message: MessageType) -> str:
        """The key of a type in `components.messages`."""
        return self._keys[message]

    def _add(self, message: MessageType) -> str:
        if message in _PLAIN:
            wanted, title, summary, payload = _PLAIN[message]
            made = {"title": title, "summary": summary, "payload": payload}
        else:
            wanted = self._schemas.name_of(message.type) or valid_name(_label(message.type))
            made = self._describe(message)
        made["contentType"] = message.content_type
        if self.components.get(wanted) != made:
            # One class may be sent with a field "type", and received without.
            wanted = free_name(wanted, self.components)
            self.components[wanted] = made
        return wanted

    def _describe(self, message: MessageType) -> dict[str, Any]:
        component = self._schemas.components.get(self._schemas.name_of(message.type) or "", {})
        tag = message.tag or component.get("properties", {}).get("type", {}).get("const")
        label = _label(message.type)
        said = read_docstring(component.get("description"))
        made = {"name": tag or label, "title": label, **said.fields()}
        made["payload"] = self._payload(message, component, tag)
        if message.type in self._correlated:
            made["correlationId"] = {"$ref": "#/components/correlationIds/id"}
        return made

    def _payload(self, message: MessageType, component: Schema, tag: str | None) -> Schema:
        """The schema of a type, with what else the server reads in its messages."""
        schema = self._schemas.of(message.type)
        # A pydantic model may leave "type" out; the server needs it.
        untyped = bool(tag) and "type" not in component.get("required", ())
        more: Schema = {"type": {"const": tag}} if untyped else {}
        required = list(more)
        if component.get("additionalProperties") is not False:
            added = {"type": "object", "properties": more, "required": required}
            return {"allOf": [schema, added]} if more else schema
        # A class that forbids other fields is written out: nothing beside it can allow one.
        if message.type in self._correlated:
            more["id"] = {"type": ["string", "integer"]}
        return {
            **component,
            "properties": {**more, **component.get("properties", {})},
            "required": [*required, *component.get("required", ())],
        }


def _label(kind: Any) -> str:
    """The name of a type as one would write it: "Said", "list[Said]"."""
    arguments = get_args(kind)
    origin = get_origin(kind) or kind
    name = getattr(origin, "__name__", None) or repr(origin)
    return f"{name}[{', '.join(map(_label, arguments))}]" if arguments else name
