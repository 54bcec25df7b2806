"""Reads the declaration of an endpoint class, and finds mistakes in it.

A mistake is a `TypeError` when the class is created, not when the first client comes.
"""

import inspect
import re
import string
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from difflib import get_close_matches
from types import FunctionType
from typing import Any, TypeAlias, TypeVar

from chatserver.endpoints.arguments import Unmarked, check_attribute
from chatserver.endpoints.dependencies import Dependency, find_dependencies
from chatserver.endpoints.origin import check_origins
from chatserver.endpoints.params import Parameter, find_parameters, unaliased
from chatserver.endpoints.recovery import SINCE
from chatserver.publication import PLAIN

__all__ = ["check_class", "collect_dependencies", "collect_parameters", "resolver"]

T = TypeVar("T")
Resolve: TypeAlias = Callable[[Any], Any]

#: Hooks that a class may override and that we await, with the names of their arguments.
HOOKS = {
    "authenticate": ("websocket",),
    "on_connect": ("websocket",),
    "on_accept": ("websocket",),
    "on_receive": ("websocket", "data"),
    "on_invalid": ("websocket", "error"),
    "on_disconnect": ("websocket", "close_code"),
}
#: Class methods that a class may override and that we await.
CLASS_HOOKS = {"while_occupied": ("channel", "hub")}
#: Hooks whose result is used at once.
PLAIN_HOOKS = ("info", "last_will", "welcome")
#: What other libraries call these hooks.
ELSEWHERE = {"on_message": "on_receive", "on_open": "on_accept", "on_close": "on_disconnect"}
REJECT_AS = ("http", "close", "policy")
#: An annotation that asks for a parameter or a dependency.
ASKS = re.compile(r"^From(Path|Query|Header|Cookie)\b|\b(Depends|Security)\(")
#: Class attributes whose names are easily misspelt.
ATTRIBUTES = (
    *("encoding", "channels", "presence", "subprotocols", "allowed_origins", "reject_as"),
    *("linger", "history", "recover", "disconnect_timeout"),
)


def resolver(cls: type) -> Callable[[Any], Any]:
    """A function that resolves annotations that are strings.

    It knows the names of the class's module, and the local names around the class statement,
    because a class may be local to a function. An annotation that can't be resolved stays a
    string, unless it asks for a parameter or dependency; then it is an error.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__") != cls.__module__:
        frame = frame.f_back
    module = sys.modules.get(cls.__module__)  # a plugin's may not be there
    names = {**(vars(module) if module else frame.f_globals), **frame.f_locals}

    def resolve(annotation: Any) -> Any:
        if not isinstance(annotation, str):
            return annotation
        try:
            return eval(annotation, names)
        except Exception as exc:
            if ASKS.search(annotation):
                raise TypeError(f"{cls.__name__}: {annotation} can't be resolved: {exc}") from exc
            return annotation

    return resolve


def collect_parameters(
    cls: type, taken: Collection[str], resolve: Callable[[Any], Any]
) -> dict[str, Parameter]:
    """The parameters of a class and its bases, with the defaults that the class gives them.

    Raises:
        TypeError: A parameter has a name in `taken`.
    """
    found = _inherited(cls, "parameters", _own_parameters) | _own_parameters(cls, resolve)
    for name in found:
        if name in taken or name.startswith("_"):
            raise TypeError(f"{cls.__name__}.{name} can't be a parameter, the name is taken")
    return {
        name: parameter._replace(default=getattr(cls, name, parameter.default))
        for name, parameter in found.items()
    }


def _own_parameters(cls: type, resolve: Callable[[Any], Any]) -> dict[str, Parameter]:
    return find_parameters(cls, _annotations(cls, resolve))


def _inherited(cls: type, name: str, own: Callable[[Any, Resolve], dict[str, T]]) -> dict[str, T]:
    """What the bases of a class declare: an endpoint has its own and its bases' collected."""
    found: dict[str, T] = {}
    for base in reversed(cls.__mro__[1:-1]):
        inherited = vars(base).get(name)
        found |= own(base, resolver(base)) if inherited is None else inherited
    return found


def _annotations(cls: type, resolve: Callable[[Any], Any]) -> dict[str, Any]:
    """The annotations of a class, resolved. A mark in them that would say nothing is an error."""
    found = {
        name: unaliased(resolve(value)) for name, value in inspect.get_annotations(cls).items()
    }
    for name, annotation in found.items():
        check_attribute(f"{cls.__name__}.{name}", annotation, vars(cls).get(name))
    return found


def collect_dependencies(
    cls: Any, taken: Collection[str], resolve: Callable[[Any], Any]
) -> dict[str, Dependency]:
    """The dependencies of a class and its bases. Its parameters are collected already.

    Raises:
        TypeError: A dependency has the name of a parameter, or one in `taken` other than "user".
    """
    inherited = _inherited(cls, "dependencies", _own_dependencies)
    own = _own_dependencies(cls, resolve)
    for name in inherited.keys() & vars(cls).keys() - own.keys():
        raise TypeError(
            f"{cls.__name__}.{name} = {vars(cls)[name]!r} would have no effect, because {name!r} "
            f"is an inherited dependency; write '{name} = Depends(...)'"
        )
    found = inherited | own
    for name in found:
        if name in cls.parameters:
            raise TypeError(f"{cls.__name__}.{name} is a parameter and a dependency")
        if (name in taken and name != "user") or name.startswith("_"):
            raise TypeError(f"{cls.__name__}.{name} can't be a dependency, the name is taken")
    return found


def _own_dependencies(cls: type, resolve: Callable[[Any], Any]) -> dict[str, Dependency]:
    return find_dependencies(cls, _annotations(cls, resolve), resolve)


def check_class(cls: Any, taken: Collection[str]) -> None:
    """Check an endpoint class's attributes, and that each of its methods can be called.

    Args:
        cls: The class.
        taken: The names of `Endpoint` itself.

    Raises:
        TypeError: Something is wrong; the sentence names it, and the likely intention if known.
    """
    if cls.encoding not in PLAIN:
        raise TypeError(
            f"{cls.__name__}.encoding must be 'text', 'bytes', 'json' or None, got {cls.encoding!r}"
        )
    for name in ("channels", "subprotocols"):
        _check_names(cls, name)
    if cls.reject_as not in REJECT_AS:
        raise TypeError(
            f"{cls.__name__}.reject_as must be 'http', 'close' or 'policy', got {cls.reject_as!r}"
        )
    if type(cls.history) is not int or cls.history < 0:
        raise TypeError(
            f"{cls.__name__}.history must be a number of publications, got {cls.history!r}"
        )
    _check_recover(cls)
    for name in ("linger", "disconnect_timeout"):
        _check_seconds(cls, name)
    check_origins(cls.allowed_origins or (), f"{cls.__name__}.allowed_origins")
    if cls.handlers and "on_receive" in vars(cls):
        raise TypeError(
            f"{cls.__name__}.on_receive would never be called, its messages go to "
            + ", ".join(sorted(handler.name for handler in cls.handlers.values()))
        )
    for channel in cls.channels:
        _check_channel(cls, channel)
    for hook, arguments in HOOKS.items():
        _check_hook(cls, hook, arguments)
    for hook, arguments in CLASS_HOOKS.items():
        _check_class_hook(cls, hook, arguments)
    for hook in PLAIN_HOOKS:
        if inspect.iscoroutinefunction(inspect.unwrap(getattr(cls, hook))):
            raise TypeError(f"{cls.__name__}.{hook} must be a plain 'def', it is not awaited")
    for handler in cls.handlers.values():
        _check_method(cls, handler.name)
        _check_async(cls, handler.name)
        if handler.name in taken and handler.name not in HOOKS:
            raise TypeError(f"{cls.__name__}.{handler.name} can't be a handler, the name is taken")
    for name in vars(cls).keys() - cls.parameters.keys():
        _check_name(cls, name, taken)


def _check_names(cls: Any, attribute: str) -> None:
    """Check the names of channels or subprotocols."""
    value, where = getattr(cls, attribute), f"{cls.__name__}.{attribute}"
    if isinstance(value, str | bytes) or not isinstance(value, Collection):
        kind = type(value).__name__
        raise TypeError(f"{where} must be a sequence of names, not a {kind}")
    for name in value:
        if not isinstance(name, str) or not name:
            raise TypeError(f"{where} must be names, which are texts and not empty; got {name!r}")


def _check_seconds(cls: Any, attribute: str) -> None:
    """Check a number of seconds; None is the application's, where that is the attribute's own."""
    value = getattr(cls, attribute)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and value >= 0) and not (value is None and attribute == "linger"):
        raise TypeError(f"{cls.__name__}.{attribute} must be seconds, got {value!r}")


def _check_recover(cls: Any) -> None:
    """Check that a class that recovers can tell positions, and be told them."""
    if type(cls.recover) is not bool:
        raise TypeError(f"{cls.__name__}.recover must be True or False, got {cls.recover!r}")
    if not cls.recover:
        return
    if cls.encoding != "json":
        raise TypeError(
            f"{cls.__name__}.recover needs {cls.__name__}.encoding = 'json', which can tell "
            f"positions; got {cls.encoding!r}"
        )
    asked = [*cls.parameters.items(), *_arguments(cls.dependencies)]
    for name, each in asked:
        if (each.source, each.sent_as) == (SINCE.source, SINCE.sent_as):
            raise TypeError(
                f"{cls.__name__}.{name} can't be the {SINCE.label}, which {cls.__name__}.recover "
                "reads; give it another name"
            )


def _arguments(dependencies: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Parameter]]:
    """The values of the handshake that dependencies ask for, each with the way to it."""
    for name, each in dependencies.items():
        if isinstance(each, Dependency):
            yield from _arguments(each.arguments, f"{path}{name}.")
        elif isinstance(each, Parameter | Unmarked):
            yield f"{path}{name}", each.query if isinstance(each, Unmarked) else each


def _check_hook(cls: type, name: str, arguments: tuple[str, ...]) -> None:
    """Check that a hook can be awaited, and takes the arguments that it is called with."""
    _check_method(cls, name)
    function = inspect.getattr_static(cls, name)
    if not isinstance(function, FunctionType):
        return  # a callable of another kind can't be checked
    _check_async(cls, name)
    try:
        # A decorator's own: what it wraps may take others.
        inspect.signature(function, follow_wrapped=False).bind("self", *arguments)
    except TypeError:
        form = ", ".join(("self", *arguments))
        raise TypeError(f"{cls.__name__}.{name} must be 'async def {name}({form})'") from None


def _check_class_hook(cls: type, name: str, arguments: tuple[str, ...]) -> None:
    """Check that a hook is an `async` class method, and takes its arguments."""
    method = inspect.getattr_static(cls, name)
    form = f"'async def {name}({', '.join(('cls', *arguments))})'"
    if not isinstance(method, classmethod):
        raise TypeError(f"{cls.__name__}.{name} must be a @classmethod, {form}")
    function: Any = method.__func__
    written = inspect.unwrap(function)
    if getattr(written, "__name__", name) == name and not inspect.iscoroutinefunction(written):
        raise TypeError(f"{cls.__name__}.{name} must be 'async def', it is awaited")
    try:
        inspect.signature(function, follow_wrapped=False).bind("cls", *arguments)
    except TypeError:
        raise TypeError(f"{cls.__name__}.{name} must be {form}") from None


def _check_method(cls: type, name: str) -> None:
    """Check that a name is not given to something that we can't call."""
    if not callable(value := getattr(cls, name)):
        raise TypeError(f"{cls.__name__}.{name} must be a method, got {value!r}")


def _check_async(cls: type, name: str) -> None:
    """Check that a method that we await is `async`.

    A function of another name is what a decorator has made, and may well return an awaitable.

    Raises:
        TypeError: It is a function without `async`.
    """
    function = inspect.getattr_static(cls, name)
    if not isinstance(function, FunctionType):
        return
    written = inspect.unwrap(function)
    if written.__name__ == name and not inspect.iscoroutinefunction(written):
        raise TypeError(f"{cls.__name__}.{name} must be 'async def', it is awaited")


def _check_name(cls: type, name: str, taken: Collection[str]) -> None:
    """Check that a name is not a misspelling of one of ours."""
    value = vars(cls)[name]
    if name == "channel" and isinstance(value, str | tuple | list):
        raise TypeError(f"{cls.__name__}.channel: did you mean 'channels'?")
    if name in taken or getattr(value, "__on_message__", False) is True:
        return
    is_method = isinstance(value, FunctionType | classmethod)
    known = (*HOOKS, *CLASS_HOOKS, *PLAIN_HOOKS) if is_method else ATTRIBUTES
    meant = ELSEWHERE.get(name) if is_method else None
    close = get_close_matches(name.lower(), known, n=1, cutoff=0.85)
    if close and abs(len(close[0]) - len(name)) <= 1 and not name.startswith(close[0]):
        # Others, such as `on_connected` and `authenticated`, may be methods of their own.
        meant = close[0]
    if meant is not None:
        raise TypeError(f"{cls.__name__}.{name}: did you mean {meant!r}?")


def _check_channel(cls: Any, channel: str) -> None:
    """Check that each placeholder in a channel's name is a parameter."""
    try:
        parsed = tuple(string.Formatter().parse(channel))
    except ValueError as error:
        raise TypeError(f"{cls.__name__}.channels: {channel!r} is no name: {error}") from None
    for _, field, _, _ in parsed:
        if field is not None and field not in cls.parameters:
            known = ", ".join(cls.parameters) or "none"
            raise TypeError(
                f"{cls.__name__}.channels: {channel!r} names {field!r}, which is not a parameter "
                f"of {cls.__name__} (it has {known})"
            )
