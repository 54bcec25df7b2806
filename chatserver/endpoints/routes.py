"""The routes of an application that lead to endpoints, wherever they are mounted or included.

They are checked when the application starts: `check_routes`.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from starlette.convertors import Convertor
from starlette.routing import BaseRoute, Host, Mount, WebSocketRoute

from chatserver.endpoints.identification import identify
from chatserver.endpoints.internals import called_before, each_route
from chatserver.endpoints.params import PATH, Parameter, bound_integers

__all__ = ["EndpointRoute", "check_routes", "endpoint_routes"]


class EndpointRoute(NamedTuple):
    """A route to an endpoint.

    Attributes:
        endpoint: The class.
        path: The path in the application, with those of the mounts around it, and the prefixes of
            FastAPI's routers: "/rooms/{room}".
        convertors: The convertor of each path parameter, those of the mounts included.
        route: The route itself.
        mounts: What it is mounted in, the outermost first.
    """

    endpoint: Any
    path: str
    convertors: Mapping[str, Convertor[Any]]
    route: WebSocketRoute
    mounts: tuple[BaseRoute, ...] = ()


def endpoint_routes(routes: Iterable[BaseRoute]) -> Iterator[EndpointRoute]:
    """The routes to endpoints among these, and in what is mounted or included there."""
    for route in each_route(routes):
        if isinstance(route, Mount | Host):
            inner = endpoint_routes(route.routes)
            yield from (_within(route, each) for each in inner)
        elif isinstance(route, WebSocketRoute) and _is_endpoint(route.endpoint):
            yield EndpointRoute(route.endpoint, route.path_format, route.param_convertors, route)


def _is_endpoint(endpoint: object) -> bool:
    # Not by the class itself: its module needs this one.
    return isinstance(endpoint, type) and isinstance(getattr(endpoint, "parameters", None), dict)


def _within(mount: Mount | Host, found: EndpointRoute) -> EndpointRoute:
    # A mount's last parameter is what the routes in it match.
    path = mount.path_format.removesuffix("/{path}") if isinstance(mount, Mount) else ""
    around = {name: each for name, each in mount.param_convertors.items() if name != "path"}
    return found._replace(
        path=path + found.path,
        convertors={**around, **found.convertors},
        mounts=(mount, *found.mounts),
    )


def check_routes(routes: Iterable[BaseRoute]) -> None:
    """Check that each endpoint has what it needs in its route, and limit integers in paths.

    Raises:
        TypeError: A class is abstract, a `FromPath` is not in the route, or a dependency of
            FastAPI's route calls `identify`; the sentence names the class and the path.
    """
    for found in endpoint_routes(routes):
        _check_route(found)
        for each in (*found.mounts, found.route):
            bound_integers(each)


def _check_route(found: EndpointRoute) -> None:
    name = found.endpoint.__name__
    if lacking := ", ".join(map(repr, sorted(getattr(found.endpoint, "__abstractmethods__", ())))):
        raise TypeError(
            f"the route {found.path!r} leads to {name}, which is abstract; it lacks {lacking}"
        )
    if identify in called_before(found.route):
        raise TypeError(
            f"a dependency of the route {found.path!r} calls identify(), which needs {name}: "
            "make it an attribute of that class"
        )
    for where, parameter in _parameters(found.endpoint):
        if parameter.source == PATH and parameter.sent_as not in found.convertors:
            raise TypeError(
                f"{name}.{where} is FromPath, but the route {found.path!r} "
                f"has no {{{parameter.sent_as}}}"
            )


def _parameters(endpoint: Any) -> Iterator[tuple[str, Parameter]]:
    """The parameters of an endpoint and of its dependencies, each with its place."""
    yield from endpoint.parameters.items()
    for name, dependency in endpoint.dependencies.items():
        yield from ((f"{name}: {where}", found) for where, found in dependency.parameters)
