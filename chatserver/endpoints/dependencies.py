"""Dependencies as annotated class attributes, resolved before `authenticate` is called.

    async def session() -> AsyncIterator[Session]:
        async with pool.session() as session:
            yield session                                   # closed when the connection has ended

    class Room(Endpoint):
        db: Annotated[Session, Depends(session)]
        user: Annotated[User, Depends(current_user)]        # is `self.user`

They are analysed here, once, when the class is made; `resolution` calls them in each handshake.
Both are our own, because what dependencies ask for are values of the handshake, refused by source
and name like all others: `fast-depends` has one namespace for all arguments, an engine of its own
to check them, and takes its own marker only.
"""

import asyncio
import inspect
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, get_origin

import anyio.to_thread
from starlette.concurrency import run_in_threadpool

from chatserver.endpoints.arguments import Argument, Given, check_marks, make_argument, split
from chatserver.endpoints.params import Parameter, unaliased

__all__ = ["Dependency", "Depends", "find_dependencies", "name_of", "overriding"]

Resolve = Callable[[Any], Any]
_NOT_GIVEN: Any = inspect.Parameter.empty


@dataclass(frozen=True)
class Mark:
    """What `Depends` returns, with the attributes of FastAPI's."""

    dependency: Callable[..., Any] | None
    use_cache: bool


def Depends(dependency: Callable[..., Any] | None = None, *, use_cache: bool = True) -> Any:
    """Mark an attribute of an endpoint class, or a parameter of a dependency, as a dependency.

    Args:
        dependency: A function, class or other callable, async or not; with `yield`, what follows
            it runs at the connection's end. None takes the annotated class.
        use_cache: Whether all that depend on it in one handshake share its value.
    """
    return Mark(dependency, use_cache)


@dataclass(frozen=True, eq=False, slots=True)
class Dependency:
    """A dependency, analysed.

    Attributes:
        call: What is called.
        make: Calls it: returns an awaitable, or an async context manager if it `opens`.
        opens: Whether it has something to close, after its `yield`.
        arguments: What its parameters are given, by name.
        scopes: Those of the `Security` that leads here, and of those that lead there.
        key: What has the same key in a handshake has the same value; None for a value of its own.
    """

    call: Callable[..., Any]
    make: Callable[..., Any]
    opens: bool
    arguments: Mapping[str, "Argument | Dependency"]
    scopes: tuple[str, ...]
    key: Hashable

    @property
    def parameters(self) -> Iterator[tuple[str, Parameter]]:
        """The marked parameters that it and its dependencies ask for, each with its place."""
        for name, argument in self.arguments.items():
            if isinstance(argument, Dependency):
                yield from argument.parameters
            elif isinstance(argument, Parameter):
                yield f"{name_of(self.call)}({name})", argument

    @property
    def scoped(self) -> bool:
        """Whether its value may differ with its scopes."""
        return any(
            argument.scoped
            for argument in self.arguments.values()
            if isinstance(argument, Given | Dependency)
        )


#: Tasks that close what was opened after its handshake had ended.
_closing: "set[asyncio.Future[None]]" = set()


class _InThreads(AbstractAsyncContextManager[Any]):
    """A context manager without `async`, which runs in threads."""

    def __init__(self, manager: AbstractContextManager[Any]) -> None:
        self._manager = manager

    async def __aenter__(self) -> Any:
        entering = asyncio.ensure_future(run_in_threadpool(self._manager.__enter__))
        try:
            return await asyncio.shield(entering)
        except asyncio.CancelledError:
            # The thread goes on, and what it opens is closed when it has come to its `yield`.
            closing = asyncio.ensure_future(self._close_later(entering))
            _closing.add(closing)
            closing.add_done_callback(_closing.discard)
            raise

    async def _close_later(self, entering: "asyncio.Future[Any]") -> None:
        with suppress(Exception):  # nobody waits for this value any more
            await entering
            error = TimeoutError("the handshake has ended meanwhile")
            await self.__aexit__(type(error), error, None)

    async def __aexit__(self, *error: Any) -> bool | None:
        # With a thread of its own. All others may be waiting for what this one gives back.
        limiter = anyio.CapacityLimiter(1)
        return await anyio.to_thread.run_sync(self._manager.__exit__, *error, limiter=limiter)


def find_dependencies(
    cls: type, annotations: Mapping[str, Any], resolve: Resolve
) -> dict[str, Dependency]:
    """The dependencies among the attributes of a class: annotated, or as `name = Depends(…)`.

    Args:
        cls: The class.
        annotations: Its annotations, resolved.
        resolve: Resolves an annotation of the class's module that is a string.

    Raises:
        TypeError: One of them can't be called, or asks for what no handshake has.
    """
    found = {}
    for name in dict.fromkeys((*annotations, *vars(cls))):
        where = f"{cls.__name__}.{name}"
        annotation = annotations.get(name, _NOT_GIVEN)
        if mark := _mark_of(where, annotation, vars(cls).get(name)):
            found[name] = _marked(where, mark, annotation, _Analysis(resolve))
    return found


class _Analysis(NamedTuple):
    """Where an analysis stands.

    Attributes:
        resolve: As for `find_dependencies`.
        path: What has led here.
        scopes: Those of each `Security` on the path.
    """

    resolve: Resolve
    path: tuple[Callable[..., Any], ...] = ()
    scopes: tuple[str, ...] = ()


def _mark_of(where: str, annotation: Any, default: Any) -> Any:
    """The `Depends` or `Security`, ours or FastAPI's, of an attribute or a parameter, if any."""
    _, metadata = split(annotation)
    for mark in reversed((default, *metadata)):
        if inspect.isfunction(mark) and mark.__name__ in ("Depends", "Security"):
            raise TypeError(f"{where}: write {mark.__name__}(...), with parentheses")
        if isinstance(getattr(mark, "use_cache", None), bool) and hasattr(mark, "dependency"):
            return mark
    return None


def _marked(where: str, mark: Any, annotation: Any, analysis: _Analysis) -> Dependency:
    call = split(annotation)[0] if mark.dependency is None else mark.dependency
    if not callable(call) or call is _NOT_GIVEN:
        raise TypeError(f"{where}: a dependency must be callable, got {call!r}")
    if getattr(mark, "max_concurrency", None) is not None:
        raise TypeError(f"{where}: max_concurrency has no effect here, limit it in the dependency")
    try:
        hash(call)
    except TypeError:
        raise TypeError(f"{where}: a dependency must be hashable, got {call!r}") from None
    scopes = dict.fromkeys((*analysis.scopes, *(getattr(mark, "scopes", None) or ())))
    return _analyse(where, call, mark.use_cache, analysis._replace(scopes=tuple(scopes)))


def overriding(dependency: Dependency, override: Callable[..., Any]) -> Dependency:
    """What is resolved in place of a dependency; its own parameters may be others.

    Raises:
        TypeError: As for `find_dependencies`.
    """
    analysis = _Analysis(lambda annotation: annotation, scopes=dependency.scopes)
    where = f"the override of {name_of(dependency.call)}"
    return _analyse(where, override, dependency.key is not None, analysis)


def _analyse(
    where: str, call: Callable[..., Any], use_cache: bool, analysis: _Analysis
) -> Dependency:
    if call in analysis.path:
        circle = (*analysis.path[analysis.path.index(call) :], call)
        raise TypeError(f"{where} depends on itself: " + " → ".join(map(name_of, circle)))
    analysis = analysis._replace(path=(*analysis.path, call))
    arguments = {
        parameter.name: _argument(call, parameter, analysis)
        for parameter in _parameters(where, call)
    }
    make, opens = _maker(call)
    made = Dependency(call, make, opens, arguments, analysis.scopes, None)
    key = (call, analysis.scopes if made.scoped else ())
    return Dependency(call, make, opens, arguments, analysis.scopes, key) if use_cache else made


def _argument(
    call: Callable[..., Any], parameter: inspect.Parameter, analysis: _Analysis
) -> Argument | Dependency:
    where = f"{name_of(call)}({parameter.name})"
    if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
        raise TypeError(f"{where} is positional only, but is given by name")
    annotation = unaliased(_resolved(where, call, parameter.annotation, analysis.resolve))
    check_marks(where, annotation)
    if mark := _mark_of(where, annotation, parameter.default):
        return _marked(where, mark, annotation, analysis)
    return make_argument(where, parameter.name, annotation, parameter.default, analysis.scopes)


def _parameters(where: str, call: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a dependency, but for `*args`, `**kwargs`, and what a `partial` gives."""
    try:
        # Of `Repo[int]` it is that of `Repo`.
        parameters = inspect.signature(get_origin(call) or call).parameters.values()
    except (TypeError, ValueError):
        raise TypeError(f"{where}: {name_of(call)} does not say its parameters") from None
    given = call.keywords if isinstance(call, partial) else {}
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [each for each in parameters if each.kind not in variadic and each.name not in given]


def _resolved(where: str, call: Callable[..., Any], annotation: Any, resolve: Resolve) -> Any:
    """An annotation of a dependency; if it is a string, what that means in its module."""
    if not isinstance(annotation, str):
        return annotation
    function = _function(call)
    names = getattr(function, "__globals__", None) or vars(sys.modules[function.__module__])
    try:
        return eval(annotation, names)
    except Exception as error:
        # It may be local to the function that the class is local to.
        found = resolve(annotation)
        if isinstance(found, str):
            raise TypeError(f"{where}: {annotation} can't be resolved: {error}") from error
        return found


def _function(call: Any) -> Any:
    """The function behind a callable, which has its code and the names of its module."""
    while isinstance(call, partial):
        call = call.func
    call = get_origin(call) or call
    if inspect.isclass(call):
        return inspect.unwrap(call.__init__)
    return inspect.unwrap(call if inspect.isroutine(call) else type(call).__call__)


def _maker(call: Callable[..., Any]) -> tuple[Callable[..., Any], bool]:
    """What calls a dependency, and whether that opens a context: see `Dependency`."""
    function = _function(call)
    if inspect.isasyncgenfunction(function):
        return asynccontextmanager(call), True
    if inspect.isgeneratorfunction(function):
        manager = contextmanager(call)
        return lambda **values: _InThreads(manager(**values)), True
    if inspect.iscoroutinefunction(function):
        return call, False
    return lambda **values: run_in_threadpool(partial(call, **values)), False


def name_of(call: Any) -> str:
    """What errors call a dependency: its name, or its class's."""
    while isinstance(call, partial):
        call = call.func
    name: str = getattr(call, "__name__", None) or type(call).__name__
    return name
