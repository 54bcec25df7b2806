"""Keeps secrets out of the log, at every level.

    install()                       # once per process, after logging was configured
    remember(token)                 # in a connection's task, as soon as a secret is known

Redacted in each record are
- texts given to `remember` in this task, and their percent-encoded and escaped forms;
- texts that look like a JSON Web Token;
- headers that carry credentials (`cookie: …`, as in websockets' debug log);
- passwords in URLs: `redis://user:…@host`;
- values whose name sounds secret: `token=…`, `%74oken=…`, `"session": "…"`.

Rules of this file:
- Every pattern takes linear time: it enters a run of characters at its start only (lookbehind)
  and doesn't go back (possessive), because clients choose what is logged.
- Redacting twice gives the same text, because a record may pass two filters.
- This package logs with one logger, `chatserver`: filters of a logger don't see the records of its
  children. `config` puts the filter on the handlers as well, which do.
"""

import logging
import re
from collections.abc import Mapping
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import replace
from typing import Any
from urllib.parse import quote, quote_plus, unquote_plus

from websockets.frames import Frame

__all__ = ["REDACTED", "QuietProbes", "RedactSecrets", "config", "install", "redact", "remember"]

REDACTED = "[redacted]"
BLAMES_CLIENT = "Invalid UTF-8 sequence received from client."  # uvicorn adds its own traceback
SHORTEST_SECRET = 4  # characters; hiding every "a" would make the log useless and hide nothing
ACCESS = "uvicorn.access"
PROBES = ("/healthz", "/readyz")
LOGGERS = (
    "uvicorn.error",
    ACCESS,
    "uvicorn.asgi",
    "websockets.server",
    "asyncio",  # prints tracebacks of tasks that nobody waited for
    "chatserver",
)

SECRET_NAME = re.compile(
    r"token|session|secret|passw|pwd|api[-_]?key|auth(?!or(?!i))|jwt|credential|cookie|bearer"
    r"|sec-websocket-protocol",
    re.IGNORECASE,
)
JWT = re.compile(r"(?<![\w-])[\w-]++(?:\.[\w-]*+)++")
HEADER = re.compile(
    r"\b((?:set-)?cookie2?|(?:proxy-)?authorization|sec-websocket-protocol)((?: header)?: *+)\S.*"
    r"|\b(invalid HTTP header (?:line|value))(: *+)\S.*",
    re.IGNORECASE,
)
# No "/": so that each of many "://" is the beginning of one short search.
URL_PASSWORD = re.compile(r"(?<=://)([^\s/:@]*+:)?[^\s/]*@")
QUERY_NAME = re.compile(r"(?<![\w%.+~-])(?P<name>[\w%.+~-]++)=")
QUERY_VALUE = re.compile(
    r"""(?P<quoted>(["'])[^"'\n]*+\2)(?=[\s,)}\]]|$)|(?P<value>[^&\s]*[^&\s"'),;:.>}])"""
)
KEY = re.compile(r"""(?<!\\)(\\{0,4}["'])(?P<name>[\w%.-]++)\1\s{0,4}[:,]\s{0,4}b?(?=["'\\\w-])""")
KEY_VALUE = re.compile(
    r"""(?P<quote>\\{0,4}["'])(?P<value>.*?)(?:(?<!\\)(?P=quote)|\Z)|(?P<bare>[\w.+-]++)""",
    re.DOTALL,
)

_remembered: ContextVar[frozenset[str]] = ContextVar("chatserver-secrets", default=frozenset())


def remember(*secrets: str) -> None:
    """Redact these texts in every record that is logged from now on in this task.

    This includes tasks started later, and lasts until this task ends: uvicorn logs the traceback
    of an endpoint long after the endpoint has ended. Texts under 4 characters are ignored.
    """
    forms = (
        form for secret in secrets if len(secret) >= SHORTEST_SECRET for form in _forms(secret)
    )
    if known := frozenset(forms):
        _remembered.set(_remembered.get() | known)


def _forms(secret: str) -> set[str]:
    """The text itself, percent-encoded in the usual ways, and escaped as in `repr` and JSON."""
    raw = secret.encode("utf-8", "surrogatepass")
    encoded = {quote(raw), quote(raw, safe=""), quote_plus(raw)}
    return {secret, repr(secret)[1:-1], repr(raw)[2:-1], *encoded, *map(str.lower, encoded)}


def redact(text: str) -> str:
    """The text without secrets; takes linear time."""
    for secret in sorted(_remembered.get(), key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    text = URL_PASSWORD.sub(lambda m: f"{m[1] or ''}{REDACTED}@", text)
    text = JWT.sub(_without_jwt, text)
    text = _without_values(text, KEY, KEY_VALUE)
    text = HEADER.sub(lambda m: f"{m[1] or m[3]}{m[2] or m[4]}{REDACTED}", text)
    return _without_values(text, QUERY_NAME, QUERY_VALUE)


def _without_jwt(match: re.Match[str]) -> str:
    head, mark, _ = match[0].partition("eyJ")  # {" in base64url, the beginning of every JWT
    return head + REDACTED if mark and "." not in head else match[0]


def _without_values(text: str, names: re.Pattern[str], values: re.Pattern[str]) -> str:
    """Cut out the values of secret names; search other values for further names."""
    kept, position = [], 0
    for match in names.finditer(text):
        if match.start() < position or not SECRET_NAME.search(unquote_plus(match["name"])):
            continue
        if value := values.match(text, match.end()):
            start, end = value.span(value.lastgroup or 0)
            kept += [text[position:start], REDACTED]
            position = end
    return "".join(kept) + text[position:]


class RedactSecrets(logging.Filter):
    """Redacts secrets in records; for a logger or, better, for a handler. It drops no record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record in place; returns True, because it is always to be logged."""
        if record.msg == BLAMES_CLIENT:
            record.exc_info = None
        _redact_message(record)
        if record.exc_info and not record.exc_text:
            # A formatter uses this text instead of formatting the exception itself.
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = redact(record.exc_text)
        if record.stack_info:
            record.stack_info = redact(record.stack_info)
        return True


def _redact_message(record: logging.LogRecord) -> None:
    if isinstance(record.args, Mapping):
        record.args = {name: _redact_value(value) for name, value in record.args.items()}
    elif record.args:
        record.args = tuple(_redact_value(value) for value in record.args)
    if record.name == ACCESS:
        return  # its formatter unpacks the arguments; nothing else is in the message
    try:
        message = record.getMessage()
    except Exception:
        # The arguments don't fit the message, and logging would print them unchanged. Without
        # their names we can't tell which of them are secret.
        message = f"{record.msg} (with arguments that do not fit)"
        record.msg, record.args = message, None
    if (clean := redact(message)) != message:
        # The name may be in the message and its value in an argument; only the result shows that.
        record.msg, record.args = clean, None
        record.__dict__.pop("color_message", None)


def _redact_value(value: object) -> object:
    """The value itself, with its type, unless its text holds a secret."""
    if isinstance(value, int | float):
        return value
    if isinstance(value, Frame):
        return _redact_frame(value)
    try:
        text = str(value)
    except Exception:  # as above: a value that can't be formatted must not be printed unchanged
        return f"<{type(value).__name__}>"
    return value if (clean := redact(text)) == text else clean


def _redact_frame(frame: Frame) -> Frame:
    """Redact a frame before it is shortened for the log: half a secret can't be recognised."""
    clean = redact(text := bytes(frame.data).decode("utf-8", "replace"))
    return frame if clean == text else replace(frame, data=clean.encode("utf-8", "replace"))


class QuietProbes(logging.Filter):
    """Drops uvicorn's lines about requests for health that were answered with 200."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is to be logged."""
        if not isinstance(record.args, tuple) or len(record.args) != 5:
            return True
        *_, path, _, status = record.args
        return status != 200 or not str(path).endswith(PROBES)


def install() -> None:
    """Put the filter on the loggers of the server and of this package; a repeat does nothing."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(present, RedactSecrets) for present in logger.filters):
            logger.addFilter(RedactSecrets())


def config(level: str) -> dict[str, Any]:
    """Uvicorn's logging configuration, with the filter on every handler, and with our logger.

    Requests for health that are answered with 200 are logged from the level debug on.

    Args:
        level: The level of the logger `chatserver`; uvicorn sets its own.
    """
    from uvicorn.config import LOG_LEVELS, LOGGING_CONFIG

    made = deepcopy(LOGGING_CONFIG)
    made["filters"] = {"secrets": {"()": f"{__name__}.{RedactSecrets.__name__}"}}
    for handler in made["handlers"].values():
        handler["filters"] = ["secrets"]
    if level not in ("debug", "trace"):
        made["filters"]["probes"] = {"()": f"{__name__}.{QuietProbes.__name__}"}
        made["handlers"]["access"]["filters"].append("probes")
    logger = {"handlers": ["default"], "level": LOG_LEVELS[level], "propagate": False}
    made["loggers"]["chatserver"] = logger
    return made
