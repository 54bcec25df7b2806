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
    """Import an application, from the current directory first.

    What the module prints meanwhile goes to stderr, because stdout is for the command's result.

    Args:
        target: The module and its attribute: "shop.main:app". What a middleware is wrapped around
            the application for is looked through.
        factory: Whether the attribute is a function that makes the application.

    Raises:
        InvalidSetting: It can't be imported or made, or is no application; one sentence says why.
    """
    module_name, colon, attribute = target.partition(":")
    if not (module_name and colon and attribute):
        raise InvalidSetting(f"expected an application as module:attribute, got {target!r}")
    with redirect_stdout(sys.stderr):
        found = _import(module_name)
        for name in attribute.split("."):
            if not hasattr(found, name):
                raise InvalidSetting(f"module {module_name!r} has no attribute {attribute!r}")
            found = getattr(found, name)
        if factory:
            found = _make(found, target)
    return _application(found, target)


def _import(name: str) -> Any:
    sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise InvalidSetting(
                f"there is no module {error.name!r}, neither here nor installed"
            ) from None
        raise InvalidSetting(f"module {name!r} can't be imported: {_reason(error)}") from None
    except (Exception, SystemExit) as error:
        raise InvalidSetting(f"module {name!r} can't be imported: {_reason(error)}") from None


def _make(factory: Any, target: str) -> Any:
    if not callable(factory):
        raise InvalidSetting(f"{target} is no function, but a {type(factory).__name__}")
    try:
        return factory()
    except InvalidSetting:
        raise
    except Exception as error:
        raise InvalidSetting(f"{target} makes no application: {_reason(error)}") from None


def _application(found: Any, target: str) -> Starlette:
    inner = found
    while not isinstance(inner, Starlette):
        if not hasattr(inner, "app"):
            hint = "; with --factory it is called" if callable(found) else ""
            raise InvalidSetting(
                f"{target} is a {type(found).__name__}, not an application of Starlette or "
                f"FastAPI{hint}"
            )
        inner = inner.app
    return inner


def _reason(error: BaseException) -> str:
    """What was raised, and where."""
    said = traceback.format_exception_only(error)[-1].strip()
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{said}{place}"
