"""Resolves the dependencies of one handshake, and closes what they have opened.

    opened: list[Opened] = []
    resolution = Resolution(websocket, overrides, opened)
    user = await resolution.value(dependency)
    ...
    for each in reversed(opened):
        await each.close(error)

`dependencies` says what there is to resolve, once for a class.
"""

import inspect
from collections.abc import Hashable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple

from starlette.requests import HTTPConnection

from chatserver.endpoints.dependencies import Dependency, name_of, overriding

__all__ = ["Opened", "Resolution"]


class Opened(NamedTuple):
    """What a dependency with `yield` has opened.

    Attributes:
        name: The dependency's name, for the log.
        manager: Closes it.
    """

    name: str
    manager: AbstractAsyncContextManager[Any]

    async def close(self, error: BaseException | None) -> None:
        """Run what follows the `yield`.

        Args:
            error: Raised at the `yield`; None for a normal end.

        Raises:
            Exception: The dependency has failed, or raised another exception for the error.
        """
        await self.manager.__aexit__(
            *(type(error), error, error.__traceback__) if error else (None, None, None)
        )


class Resolution:
    """The values of the dependencies of one handshake.

    Args:
        connection: The handshake.
        overrides: What is called in place of a dependency.
        opened: Gets what has to be closed, in order.
    """

    def __init__(
        self, connection: HTTPConnection, overrides: Mapping[Any, Any], opened: list[Opened]
    ) -> None:
        self._connection = connection
        self._overrides = overrides
        self._opened = opened
        self._values: dict[Hashable, Any] = {}

    async def value(self, dependency: Dependency, replaced: tuple[Any, ...] = ()) -> Any:
        """The value of a dependency.

        Args:
            dependency: The dependency.
            replaced: What the overrides around it replace: an override may depend on that.

        Raises:
            Exception: What the dependency raises, or reading its arguments.
        """
        call = dependency.call
        if call in self._overrides and call not in replaced:
            replaced = (*replaced, call)
            dependency = overriding(dependency, self._overrides[call])
        if dependency.key in self._values:
            return self._values[dependency.key]
        values = {}
        for name, argument in dependency.arguments.items():
            if isinstance(argument, Dependency):
                values[name] = await self.value(argument, replaced)
            else:
                values[name] = argument.read(self._connection)
        value = await self._made(dependency, values)
        if dependency.key is not None:
            self._values[dependency.key] = value
        return value

    async def _made(self, dependency: Dependency, values: dict[str, Any]) -> Any:
        made = dependency.make(**values)
        if not dependency.opens:
            value = await made
            # What a function without `async` returns may be a coroutine, of a decorator or lambda.
            return await value if inspect.iscoroutine(value) else value
        value = await made.__aenter__()
        self._opened.append(Opened(name_of(dependency.call), made))
        return value
