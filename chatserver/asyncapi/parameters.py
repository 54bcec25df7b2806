"""The values of a handshake: parameters of the address, and the bindings for query and headers."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeAlias

import msgspec
from starlette.convertors import Convertor

from chatserver.asyncapi.schemas import Schema, inline_schema
from chatserver.endpoints import Endpoint
from chatserver.endpoints.arguments import Unmarked
from chatserver.endpoints.dependencies import Dependency
from chatserver.endpoints.params import COOKIE, HEADER, PATH, QUERY, REQUIRED, Parameter, Source
from chatserver.endpoints.recovery import SINCE

__all__ = ["address_parameters", "handshake_parameters", "websocket_binding"]

Convertors: TypeAlias = Mapping[str, Convertor[Any]]

#: What Starlette's convertors let pass; others any text.
_CONVERTED: dict[str, Schema] = {
    "IntegerConvertor": {"type": "integer", "minimum": 0},
    "FloatConvertor": {"type": "number", "minimum": 0},
    "UUIDConvertor": {"type": "string", "format": "uuid"},
    "PathConvertor": {"type": "string", "description": "May contain `/`."},
}
_KINDS = {
    "integer": "An integer.",
    "number": "A number.",
    "boolean": "`true` or `false`.",
    "uuid": "A UUID.",
    "date": "A date (RFC 3339).",
    "date-time": "A date and time (RFC 3339).",
}


def handshake_parameters(cls: type[Endpoint], convertors: Convertors) -> list[Parameter]:
    """The parameters of a class and of its dependencies, each once, and that for recovery.

    Args:
        cls: The class.
        convertors: The convertors of the route, which has some of the path.
    """
    found: dict[tuple[Source, str], Parameter] = {}
    asked = [*cls.parameters.values(), *_arguments(cls.dependencies.values(), convertors)]
    if cls.recover:
        asked.append(SINCE)
    for each in asked:
        known = found.setdefault((each.source, each.sent_as), each)
        if each.default is REQUIRED:
            found[each.source, each.sent_as] = known._replace(default=REQUIRED)
    return list(found.values())


def _arguments(found: Iterable[Any], convertors: Convertors) -> Iterator[Parameter]:
    for each in found:
        if isinstance(each, Dependency):
            yield from _arguments(each.arguments.values(), convertors)
        elif isinstance(each, Unmarked):
            in_path = each.query.name in convertors
            yield each.query._replace(source=PATH) if in_path else each.query
        elif isinstance(each, Parameter):
            yield each


def address_parameters(
    convertors: Convertors, parameters: Iterable[Parameter], descriptions: Mapping[str, str]
) -> dict[str, Any]:
    """The Parameter Objects of an address. Their values are texts; `x-schema` says which.

    Args:
        convertors: The convertor of each parameter in the address.
        parameters: The parameters of the class.
        descriptions: What its docstring says of them.
    """
    declared = {each.sent_as: each for each in parameters if each.source == PATH}
    found = {}
    for name, convertor in convertors.items():
        if name in declared:
            schema = _schema(declared[name], descriptions)
        else:
            schema = dict(_CONVERTED.get(type(convertor).__name__, {"type": "string"}))
        found[name] = _address_parameter(schema)
    return found


def _address_parameter(schema: Schema) -> Schema:
    kind = _KINDS.get(schema.get("format", "")) or _KINDS.get(str(schema.get("type")))
    parameter: Schema = {}
    if description := schema.pop("description", kind):
        parameter["description"] = description
    choices = [schema["const"]] if "const" in schema else schema.get("enum")
    if choices:
        parameter["enum"] = [str(each) for each in choices]
    if examples := schema.get("examples"):
        parameter["examples"] = [str(each) for each in examples]
    if schema != {"type": "string"}:
        parameter["x-schema"] = schema
    return parameter


def websocket_binding(
    parameters: Iterable[Parameter], descriptions: Mapping[str, str]
) -> dict[str, Any]:
    """The binding of a channel: how a handshake is made, with the schemas of query and headers."""
    by_source: dict[Source, dict[str, Parameter]] = {}
    for each in parameters:
        name = _header(each.sent_as) if each.source == HEADER else each.sent_as
        by_source.setdefault(each.source, {})[name] = each
    binding: dict[str, Any] = {"method": "GET"}
    if query := by_source.get(QUERY):
        binding["query"] = _object(query, descriptions)
    if headers := by_source.get(HEADER):
        binding["headers"] = _object(headers, descriptions)
    if cookies := by_source.get(COOKIE):
        _add_cookies(binding, _object(cookies, descriptions))
    return {**binding, "bindingVersion": "0.1.0"}


def _add_cookies(binding: dict[str, Any], cookies: Schema) -> None:
    """Describe cookies, which AsyncAPI has no place for, as the header that they come in."""
    headers = binding.setdefault("headers", {"type": "object", "properties": {}})
    names = ", ".join(f"`{name}`" for name in cookies["properties"])
    headers["properties"]["Cookie"] = {
        "type": "string",
        "description": f"Cookies that are read: {names}.",
        "x-cookies": cookies,
    }
    if "required" in cookies:
        headers.setdefault("required", []).append("Cookie")


def _header(name: str) -> str:
    return "-".join(word.capitalize() for word in name.split("-"))


def _object(parameters: Mapping[str, Parameter], descriptions: Mapping[str, str]) -> Schema:
    made: Schema = {
        "type": "object",
        "properties": {name: _schema(each, descriptions) for name, each in parameters.items()},
    }
    if required := [name for name, each in parameters.items() if each.default is REQUIRED]:
        made["required"] = required
    return made


def _schema(parameter: Parameter, descriptions: Mapping[str, str]) -> Schema:
    keywords = {}
    if parameter.default is not REQUIRED and parameter.default is not None:
        with suppress(TypeError):  # a value of a class of its own may have no JSON
            keywords["default"] = msgspec.to_builtins(parameter.default)
    schema = inline_schema(parameter.type, **keywords)
    if parameter.name in descriptions:
        schema.setdefault("description", descriptions[parameter.name])
    return schema
