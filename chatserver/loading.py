"""Loads the application that a command names as `module:attribute`, as uvicorn does."""

import importlib
import os
import sys
import traceback
from contextlib import redirect_stdout
from typing import Any

from starlette.applications import Starlette

from chatserver.errors import InvalidSetting

__all__ = ["load_application"]


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
        for name in attribute.split("."):
            if not hasattr(found, name):
                raise InvalidSetting(f"module {module!r} has no attribute {attribute!r}")
            found = getattr(found, name)
        if factory:
            return _made(found, target)
    hint = "; with --factory it is called" if callable(found) else ""
    return _application(found, f"{target} is", hint)


def _import(name: str) -> Any:
    sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{name}.".startswith(f"{missing}."):
            sentence = f"there is no module {missing!r}, neither here nor installed"
        else:
            sentence = f"module {name!r} can't be imported: {_reason(error)}"
        raise InvalidSetting(sentence) from None


def _made(factory: Any, target: str) -> Starlette:
    if not callable(factory):
        raise InvalidSetting(f"{target} is a {type(factory).__name__}, not a function")
    try:
        made = factory()
    except InvalidSetting:
        raise
    except Exception as error:
        raise InvalidSetting(f"{target} makes no application: {_reason(error)}") from None
    return _application(made, f"{target} made", "")


def _application(found: Any, subject: str, hint: str) -> Starlette:
    inner = found
    while not isinstance(inner, Starlette):
        inner = getattr(inner, "app", None)
        if inner is None:
            kind = type(found).__name__
            raise InvalidSetting(
                f"{subject} a {kind}, not an application of Starlette or FastAPI{hint}"
            )
    return inner


def _reason(error: BaseException) -> str:
    """What was raised, and where."""
    said = traceback.format_exception_only(error)[-1].strip()
    frames = traceback.extract_tb(error.__traceback__)
    return f"{said} ({frames[-1].filename}, line {frames[-1].lineno})"
