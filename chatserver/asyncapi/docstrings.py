"""Docstrings as summary, description, and what the section "Attributes:" says of each name."""

import inspect
import re
from typing import NamedTuple

__all__ = ["Docstring", "docstring_of", "read_docstring"]

#: The section, up to the next line at the margin.
_ATTRIBUTES = re.compile(r"^Attributes:\n((?:[ \t].*\n|\n)*)", re.MULTILINE)
#: An attribute, with the indented lines that follow it.
_ATTRIBUTE = re.compile(r"^(\w+)(?: \([^)\n]*\))?:((?:.*)(?:\n(?:[ \t].*)?)*)", re.MULTILINE)


class Docstring(NamedTuple):
    """A docstring, taken apart.

    Attributes:
        summary: Its first paragraph, in one line.
        description: The paragraphs after it, without the section "Attributes:".
        attributes: What that section says, by name.
    """

    summary: str
    description: str
    attributes: dict[str, str]

    def fields(self) -> dict[str, str]:
        """The fields `summary` and `description` of an object; what is empty is left out."""
        found = {"summary": self.summary, "description": self.description}
        return {name: text for name, text in found.items() if text}


def read_docstring(text: str | None) -> Docstring:
    """Take a docstring apart."""
    cleaned = inspect.cleandoc(text or "") + "\n"
    attributes: dict[str, str] = {}
    for section in _ATTRIBUTES.findall(cleaned):
        for name, said in _ATTRIBUTE.findall(inspect.cleandoc("\n" + section)):
            attributes[name] = " ".join(said.split())
    summary, _, rest = _ATTRIBUTES.sub("", cleaned).strip().partition("\n\n")
    return Docstring(" ".join(summary.split()), rest.strip(), attributes)


def docstring_of(cls: type, root: type) -> Docstring:
    """The docstring of a class, else of its nearest base below `root`; attributes of them all."""
    bases = cls.__mro__[: cls.__mro__.index(root)]
    found = [read_docstring(vars(base).get("__doc__")) for base in bases]
    attributes: dict[str, str] = {}
    for each in reversed(found):
        attributes |= each.attributes
    first = next((each for each in found if each.summary), Docstring("", "", {}))
    return first._replace(attributes=attributes)
