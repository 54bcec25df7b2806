"""JSON Schemas of types, in the dialect of AsyncAPI: a superset of draft 07.

msgspec and pydantic write that of 2020-12, with the `discriminator` of OpenAPI.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from math import isfinite
from typing import Any, TypeAlias

import msgspec

from chatserver.asyncapi.docstrings import read_docstring

__all__ = ["Schema", "Schemas", "free_name", "inline_schema", "is_model", "valid_name"]

Schema: TypeAlias = dict[str, Any]

REF = "#/components/schemas/{}"
#: Keywords whose values are no schemas.
_DATA = frozenset({"const", "default", "enum", "examples", "required"})
#: Keywords whose values are schemas by name.
_NAMED = frozenset({"properties", "patternProperties", "dependencies"})


def is_model(kind: Any) -> bool:
    """Whether a type is a pydantic model."""
    return hasattr(kind, "model_json_schema")


class Schemas:
    """The schemas of all types of a document; classes of one name get distinct names.

    Args:
        types: All types, in the order of the document.
        received: Those that clients send. A pydantic model that is only sent is described as
            pydantic writes it, with computed fields; any other as pydantic reads it.
    """

    def __init__(self, types: Iterable[Any], received: Collection[Any]) -> None:
        kinds = dict.fromkeys(types)
        models = {
            kind: "validation" if kind in received else "serialization"
            for kind in kinds
            if is_model(kind)
        }
        others = [kind for kind in kinds if not is_model(kind) and _can_be_described(kind)]
        schemas, found = msgspec.json.schema_components(
            others, schema_hook=_any, ref_template=REF.format("{name}")
        )
        self._by_type: dict[Any, Schema] = {
            kind: _draft_07(schema) for kind, schema in zip(others, schemas, strict=True)
        }
        #: By name: what stands in `components.schemas`.
        self.components: dict[str, Schema] = {
            name: _draft_07(schema) for name, schema in found.items()
        }
        if models:
            self._add_models(models)

    def _add_models(self, models: Mapping[Any, Any]) -> None:
        from pydantic.json_schema import GenerateJsonSchema, models_json_schema

        class Generate(GenerateJsonSchema):
            """Takes a field of a type that has no schema for any JSON, as `_any` does."""

            def handle_invalid_for_json_schema(self, *_: Any) -> Schema:
                return {}

        schemas, found = models_json_schema(
            list(models.items()), ref_template=REF.format("{model}"), schema_generator=Generate
        )
        # A struct may have the name of a model.
        names = {name: free_name(name, self.components) for name in found.get("$defs", {})}
        for name, schema in found.get("$defs", {}).items():
            self.components[names[name]] = _renamed(_draft_07(schema), names)
        for (kind, _), schema in schemas.items():
            self._by_type[kind] = _renamed(_draft_07(schema), names)

    def of(self, kind: Any) -> Schema:
        """The schema of a type: a reference for a class; `{}`, which is any JSON, if unknown."""
        return self._by_type.get(kind, {})

    def name_of(self, kind: Any) -> str | None:
        """The name of a class in `components.schemas`."""
        reference: str = self.of(kind).get("$ref", "")
        return reference.rpartition("/")[2] or None


def inline_schema(kind: Any, **keywords: Any) -> Schema:
    """The schema of a type without references: for handshake values, whose types have no cycles.

    Args:
        kind: The type.
        keywords: Keywords to add.
    """
    (schema,), found = msgspec.json.schema_components((kind,), ref_template="{name}")
    made: Schema = _draft_07({**_inlined(schema, found), **keywords})
    return made


def _inlined(value: Any, found: Mapping[str, Schema]) -> Any:
    if isinstance(value, list):
        return [_inlined(each, found) for each in value]
    if not isinstance(value, dict):
        return value
    referred = found.get(value.get("$ref", ""), {})
    rest = {key: _inlined(each, found) for key, each in value.items() if key != "$ref"}
    return {**referred, **rest}


def _can_be_described(kind: Any) -> bool:
    try:
        msgspec.json.schema_components((kind,), schema_hook=_any)
    except Exception:  # of many kinds, for types that msgspec can't describe
        return False
    return True


def _any(kind: type) -> Schema:
    """The schema of a type that msgspec doesn't know: any JSON. An empty one is an error to it."""
    return {"title": kind.__name__}


def valid_name(text: str) -> str:
    """A text as a key of AsyncAPI: "list[Said]" is "list_Said"."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("_")


def free_name(name: str, taken: Collection[str]) -> str:
    """A name that is not taken: the name itself, else with the lowest number from 2 on."""
    number = 2
    free = name
    while free in taken:
        free, number = f"{name}_{number}", number + 1
    return free


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return [_renamed(each, names) for each in value]
    if not isinstance(value, dict):
        return value
    renamed = {key: _renamed(each, names) for key, each in value.items()}
    if isinstance(reference := value.get("$ref"), str):
        before, _, name = reference.rpartition("/")
        renamed["$ref"] = f"{before}/{names.get(name, name)}"
    return renamed


def _draft_07(schema: Any) -> Any:
    """A schema of 2020-12 in draft 07; docstrings as Markdown, single values as constants."""
    if isinstance(schema, list):
        return [_draft_07(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _keyword(key, value) for key, value in schema.items() if key != "discriminator"}
    if "prefixItems" in made:
        if "items" in made:
            made["additionalItems"] = made.pop("items")
        made["items"] = made.pop("prefixItems")
    if isinstance(default := made.get("default"), float) and not isfinite(default):
        del made["default"]  # JSON has no such number
    if len(made.get("enum", ())) == 1:
        made["const"] = made.pop("enum")[0]
    if isinstance(made.get("description"), str):
        _describe(made)
    if "$ref" in made and len(made) > 1:
        # Draft 07 ignores what stands beside a reference.
        made = {"allOf": [{"$ref": made.pop("$ref")}], **made}
    return made


def _describe(schema: Schema) -> None:
    """Give each property the description that the docstring of the class has for it."""
    docstring = read_docstring(schema["description"])
    for name, said in docstring.attributes.items():
        if name in schema.get("properties", {}):
            schema["properties"][name].setdefault("description", said)
    schema["description"] = "\n\n".join(docstring.fields().values())


def _keyword(key: str, value: Any) -> Any:
    if key in _DATA:
        return value
    if key in _NAMED:
        return {name: _draft_07(each) for name, each in value.items()}
    return _draft_07(value)
