"""The names of an endpoint's channels, made from its parameters.

    channels = ("lobby", "room:{room}", "repo:{owner}:{name}")

The text of a parameter is put into the name unchanged, so that `hub.publish(f"room:{room}")`
reaches the channel. With several parameters two clients could get the same name for different
values: `{"owner": "a:b", "name": "c"}` and `{"owner": "a", "name": "b:c"}` would both be
"repo:a:b:c". So the text of each parameter but the last must not contain the text between it and
the next one; such a handshake is refused.
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
        label: What a refusal calls it.
        form: The placeholder itself, as in "{room}" or "{number:04}".
        separator: The text up to the next parameter; empty after the last.
    """

    name: str
    label: str
    form: str
    separator: str


class Template(NamedTuple):
    """A channel's name as a class declares it, parsed once.

    Attributes:
        text: The name as declared.
        fields: The parameters in it, in their order.
    """

    text: str
    fields: tuple[Field, ...]

    def fill_in(self, values: Mapping[str, Any]) -> str:
        """The name of the channel with these parameters.

        Raises:
            InvalidHandshake: A value is None or contains its separator, or the name is empty.
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
    """The templates of an endpoint class. Its placeholders were checked to be parameters.

    Raises:
        TypeError: There is no text between two parameters.
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
    # The text before the first placeholder and after the last separates nothing.
    separators = [*before[1:-1], ""]
    if not all(separators[:-1]):
        raise TypeError(f"{cls.__name__}.channels: {text!r} needs text between its parameters")
    fields = (
        Field(name, parameters[name].label, form, separator)
        for (name, form), separator in zip(places, separators, strict=False)
    )
    return Template(text, tuple(fields))


def fill_in(templates: Iterable[Template], values: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the channels of one connection, without duplicates.

    Raises:
        InvalidHandshake: As for `Template.fill_in`.
    """
    return tuple(dict.fromkeys(template.fill_in(values) for template in templates))
