"""What the declaration of an endpoint class says, and what is wrong with it.

A mistake is a `TypeError` when the class is created, not when the first client comes.
"""

import inspect
import string
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from chatserver.endpoints.params import Parameter, find_parameters
from chatserver.publication import PLAIN

__all__ = ["check_channels", "check_encoding", "collect_parameters", "resolver"]


def resolver(cls: type, local: Mapping[str, Any]) -> Callable[[Any], Any]:
    """A function that turns an annotation that is a string into what it names, if it can.

    Args:
        cls: The class that is being created.
        local: The names where its statement stands: a class may be local to a function.
    """
    names = {**vars(sys.modules[cls.__module__]), **local}

    def resolve(annotation: Any) -> Any:
        if not isinstance(annotation, str):
            return annotation
        try:
            return eval(annotation, names)
        except NameError:
            return annotation

    return resolve


def collect_parameters(
    cls: type,
    inherited: Mapping[str, Parameter],
    taken: Collection[str],
    resolve: Callable[[Any], Any],
) -> dict[str, Parameter]:
    """A class's parameters and those of its bases, with the defaults that it gives them.

    Raises:
        TypeError: One has a name that is `taken`.
    """
    annotations = inspect.get_annotations(cls)
    own = find_parameters(cls, {name: resolve(value) for name, value in annotations.items()})
    for name in own:
        if name in taken:
            raise TypeError(f"{cls.__name__}.{name} can't be a parameter, the name is taken")
    return {
        name: parameter._replace(default=getattr(cls, name, parameter.default))
        for name, parameter in {**inherited, **own}.items()
    }


def check_encoding(cls: type, encoding: Any) -> None:
    """Check that Starlette's `encoding` is one there is."""
    if encoding not in PLAIN:
        raise TypeError(
            f"{cls.__name__}.encoding must be 'text', 'bytes', 'json' or None, got {encoding!r}"
        )


def check_channels(cls: type, channels: Sequence[str], parameters: Collection[str]) -> None:
    """Check that each placeholder in a channel's name is a parameter."""
    if isinstance(channels, str):
        raise TypeError(f"{cls.__name__}.channels must be a sequence of names, not a str")
    for channel in channels:
        for _, field, _, _ in string.Formatter().parse(channel):
            if field is not None and field not in parameters:
                known = ", ".join(parameters) or "none"
                raise TypeError(
                    f"{cls.__name__}.channels: {channel!r} names {field!r}, which is no parameter "
                    f"of {cls.__name__} (it has {known})"
                )
