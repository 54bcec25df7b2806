"""Loads the application that a command names as `module:attribute`, as uvicorn does."""

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from starlette.applications import Starlette

from chatserver.errors import InvalidSetting

__all__ = ["load_application"]

#: How deep an application may be in middleware. An attribute `app` may lead back to its object.
MAX_DEPTH = 100


def load_application(target: str, *, factory: bool = False) -> Starlette:
    """Import an application; the current directory is searched first.

    What the module prints meanwhile goes to stderr, because stdout is for the command's result.

    Args:
        target: The module and its attribute: "shop.main:app". Where middleware is wrapped around
            the application, it is found inside.
        factory: Whether the attribute is a function that makes the application.

    Raises:
        InvalidSetting: It can't be imported or made, or is no application; one sentence says why.
    """
    module, colon, attribute = target.partition(":")
    if not (module and colon and attribute):
        raise InvalidSetting(f"expected an application as module:attribute, got {target!r}")
    with redirect_stdout(sys.stderr):
        found = _import(module)
        with _in_one_sentence(f"{target} has no application"):
            for name in attribute.split("."):
                if not hasattr(found, name):
                    raise InvalidSetting(f"module {module!r} has no attribute {attribute!r}")
                found = getattr(found, name)
            if not factory:
                hint = "; with --factory it is called" if callable(found) else ""
                return _application(found, f"{target} is", hint)
        return _made(found, target)


@contextmanager
def _in_one_sentence(what: str) -> Iterator[None]:
    """Say in one sentence what the user's own code raises."""
    try:
        yield
    except InvalidSetting:
        raise
    except (Exception, SystemExit) as error:
        raise InvalidSetting(f"{what}: {_reason(error)}") from None


def _import(name: str) -> Any:
    sys.path.insert(0, os.getcwd())
    with _in_one_sentence(f"module {name!r} can't be imported"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and f"{name}.".startswith(f"{error.name}."):
                raise InvalidSetting(
                    f"there is no module {error.name!r}, neither here nor installed"
                ) from None
            raise


def _made(factory: Any, target: str) -> Starlette:
    if not callable(factory):
        raise InvalidSetting(f"{target} is a {type(factory).__name__}, not a function")
    with _in_one_sentence(f"{target} makes no application"):
        made = factory()
        hint = ""
        if inspect.iscoroutine(made):
            made.close()  # so that Python doesn't warn of it, too
            hint = "; write it without 'async'"
        return _application(made, f"{target} made", hint)


def _application(found: Any, subject: str, hint: str) -> Starlette:
    """The application itself, or the one inside the middleware."""
    inner = found
    for _ in range(MAX_DEPTH):
        if isinstance(inner, Starlette):
            return inner
        inner = getattr(inner, "app", None)
    kind = type(found).__name__
    raise InvalidSetting(f"{subject} a {kind}, not an application of Starlette or FastAPI{hint}")


def _reason(error: BaseException) -> str:
    """What was raised, and where."""
    said = traceback.format_exception_only(error)[-1].strip()
    frames = traceback.extract_tb(error.__traceback__)
    return f"{said} ({frames[-1].filename}, line {frames[-1].lineno})"
