"""The names of an endpoint's channels, made of its parameters.

    channels = ("lobby", "room:{room}", "repo:{owner}:{name}")

A parameter's text stands in the name as it is, so that `hub.publish(f"room:{room}")` reaches it.
With several parameters in a name, one could spell another's end: `{"owner": "a:b", "name": "c"}`
and `{"owner": "a", "name": "b:c"}` would both be "repo:a:b:c". So the text of each but the last
must not contain what separates it from the next; such a handshake is refused.
"""

from collections.abc import Iterable, Mapping
from string import Formatter
from typing import Any, NamedTuple

from chatserver.endpoints.params import Parameter
from chatserver.errors import InvalidHandshake

__all__ = ["Template", "compile_channels", "fill_in"]


class Field(NamedTuple):
    """A parameter's place in a template.

    Attributes:
        name: The parameter's name.
        label: How a refusal speaks of it.
        form: The place itself, as in "{room}" or "{number:04}".
        separator: The text up to the next parameter; empty after the last.
    """

    name: str
    label: str
    form: str
    separator: str


class Template(NamedTuple):
    """A channel's name as a class declares it, taken apart once.

    Attributes:
        text: As it was declared.
        fields: The parameters in it, in their order.
    """

    text: str
    fields: tuple[Field, ...]

    def fill_in(self, values: Mapping[str, Any]) -> str:
        """The name of the channel with these parameters.

        Raises:
            InvalidHandshake: One is None, its text contains its separator, or all is empty.
        """
        for field in self.fields:
            if values[field.name] is None:
                raise InvalidHandshake(f"{field.label} is required")
            if field.separator:
                text = field.form.format_map(values) + field.separator
                if text.find(field.separator) + len(field.separator) != len(text):
                    raise InvalidHandshake(f"{field.label} can't contain {field.separator!r}")
        name = self.text.format_map(values)
        if not name:
            raise InvalidHandshake("the name of a channel can't be empty")
        return name


def compile_channels(cls: Any) -> tuple[Template, ...]:
    """The templates of an endpoint class, whose placeholders are known to be parameters.

    Raises:
        TypeError: Nothing separates two parameters.
    """
    return tuple(_compile(cls, text, cls.parameters) for text in cls.channels)


def _compile(cls: type, text: str, parameters: Mapping[str, Parameter]) -> Template:
    # Each piece: the text before a placeholder, its name, and the placeholder as it is written.
    before, places = [""], []
    for literal, name, spec, conversion in Formatter().parse(text):
        before[-1] += literal
        if name is not None:
            form = f"{{{name}{f'!{conversion}' if conversion else ''}{f':{spec}' if spec else ''}}}"
            places.append((name, form))
            before.append("")
    # What stands before the first and behind the last separates nothing.
    separators = [*before[1:-1], ""]
    if not all(separators[:-1]):
        raise TypeError(f"{cls.__name__}.channels: {text!r} has parameters with nothing between")
    fields = (
        Field(name, parameters[name].label, form, separator)
        for (name, form), separator in zip(places, separators, strict=False)
    )
    return Template(text, tuple(fields))


def fill_in(templates: Iterable[Template], values: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the channels of one connection, each once.

    Raises:
        InvalidHandshake: As for `Template.fill_in`.
    """
    return tuple(dict.fromkeys(template.fill_in(values) for template in templates))
