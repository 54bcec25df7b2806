"""Which module may know which.

A room is a module of the package, or a folder of them: `hub`, `endpoints`. Within a folder its
modules may import each other, in one direction like all others.
"""

import ast
import importlib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "chatserver"

# cli → app → configuration, endpoints → hub → connection, brokers → publication, errors
MAY_IMPORT = {
    "errors": set[str](),
    "limits": {"errors"},
    "wire": {"errors"},
    "publication": {"wire", "errors"},
    "rules": set[str](),
    "server": {"hub", "connection", "publication", "wire", "limits", "errors"},
    "logs": {"errors"},
    "cookies": {"errors"},
    "auth": {"cookies", "errors"},
    "settings": {"brokers", "limits", "rules", "errors"},
    "connection": {"publication", "wire", "limits", "errors"},
    "brokers": {"publication", "rules", "errors"},
    "hub": {"connection", "brokers", "publication", "limits", "rules", "errors"},
    "publisher": {"hub", "brokers", "publication", "errors"},
    "endpoints": {
        *("hub", "connection", "publication", "limits", "errors", "auth", "cookies", "logs"),
    },
    "asyncapi": {"endpoints", "publication", "errors"},
    "pages": set[str](),
    "tryit": {"asyncapi", "endpoints", "pages"},
    "health": {"brokers", "endpoints", "logs"},
    "loading": {"errors"},
    "testing": {"endpoints", "hub", "connection", "brokers", "publication", "limits", "errors"},
    "configuration": {"hub", "brokers", "auth", "settings", "errors"},
    "__init__": {
        *("endpoints", "hub", "connection", "brokers", "publication", "limits", "errors", "auth"),
        *("configuration", "health", "publisher", "settings", "tryit"),
    },
    "app": {
        *("__init__", "endpoints", "hub", "connection", "brokers", "publication", "limits"),
        *("errors", "auth", "logs", "settings", "configuration", "server", "asyncapi"),
        *("health", "pages", "tryit"),
    },
    "cli": {
        *(
            "__init__",
            "app",
            "asyncapi",
            "loading",
            "endpoints",
            "hub",
            "connection",
            "brokers",
            "publication",
            "publisher",
        ),
        *("limits", "errors", "auth", "logs", "settings", "configuration", "server"),
    },
    "__main__": {"cli"},
}

# These turn values and bytes into values and bytes; their callers do the input and output.
WITHOUT_IO = (
    "chatserver.centrifuge",
    "chatserver.wire",
    "chatserver.hub.subscription",
    "chatserver.hub.log",
)
IO = {
    *("anyio", "asyncio", "concurrent", "http", "io", "multiprocessing", "os", "select"),
    *("selectors", "socket", "socketserver", "ssl", "subprocess", "threading", "trio", "urllib"),
    *("fastapi", "httptools", "httpx", "httpx2", "jinja2", "starlette", "uvicorn", "uvloop"),
    *("wsproto", "websockets"),
}
# A function over bytes, though in a package that does I/O elsewhere; and a lock.
ALLOWED = {"websockets.speedups", "websockets.utils", "threading"}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in FILES.items()}


def imports(name: str) -> Iterator[str]:
    """What a module imports, be it at its head, in a function or for the type checker only.

    One of our own modules is named as itself, a name out of a package as that package.
    """
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(name, node)
            for alias in node.names:
                child = f"{base}.{alias.name}"
                yield child if child in TREES else base


def absolute(name: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    is_package = FILES[name].name == "__init__.py"
    parts = name.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, node.module] if node.module else parts)


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else "__init__"


def ours(name: str) -> set[str]:
    return {imported for imported in imports(name) if imported in TREES}


@pytest.mark.parametrize("name", TREES)
def test_imports_point_one_way(name: str) -> None:
    assert room(name) in MAY_IMPORT, f"say in MAY_IMPORT what {room(name)!r} may import"
    rooms = {room(imported) for imported in ours(name)} - {room(name)}
    assert rooms - MAY_IMPORT[room(name)] == set()


def test_the_direction_has_no_cycle() -> None:
    TopologicalSorter(MAY_IMPORT).prepare()


def test_no_module_imports_itself_by_a_detour() -> None:
    try:
        TopologicalSorter({name: ours(name) for name in TREES}).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(reversed(error.args[1])))


def test_endpoints_and_what_is_below_read_no_settings() -> None:
    readers = {room(name) for name in TREES if "chatserver.settings" in ours(name)}
    assert readers <= {"app", "cli", "configuration"}


def test_what_decides_does_no_input_or_output() -> None:
    pure = [name for name in TREES if f"{name}.".startswith(tuple(f"{n}." for n in WITHOUT_IO))]
    found = {
        name: bad
        for name in pure
        if (bad := {what.split(".")[0] for what in set(imports(name)) - ALLOWED} & IO)
    }
    assert found == {}


@pytest.mark.parametrize("name", TREES)
def test_every_module_says_what_it_is_for(name: str) -> None:
    docstring = ast.get_docstring(TREES[name])
    assert docstring
    assert len(docstring.splitlines()[0]) > 20


def in_order(exported: list[str]) -> list[str]:
    """CONSTANTS, then Classes, then functions, each by name: as ruff sorts them."""
    return sorted(exported, key=lambda name: (not name.isupper(), not name[0].isupper(), name))


@pytest.mark.parametrize("name", [name for name in TREES if not name.endswith("__main__")])
def test_what_a_module_offers_is_listed_and_real(name: str) -> None:
    module = importlib.import_module(name)
    exported: list[str] = module.__all__
    assert exported == in_order(exported)
    assert len(exported) == len(set(exported))
    assert [each for each in exported if not hasattr(module, each)] == []


def test_relative_and_absolute_imports_are_read_alike() -> None:
    def reading(name: str, source: str) -> str:
        node = ast.parse(source).body[0]
        assert isinstance(node, ast.ImportFrom)
        return absolute(name, node)

    assert reading("chatserver.app", "from .brokers import x") == "chatserver.brokers"
    assert reading("chatserver.brokers", "from .base import x") == "chatserver.brokers.base"
    assert reading("chatserver.endpoints.base", "from ..hub import x") == "chatserver.hub"
    assert reading("chatserver.endpoints.base", "from chatserver.hub import x") == "chatserver.hub"
