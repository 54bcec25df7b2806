"""From a URL to a broker: `broker_from_url("redis://127.0.0.1:6379/0")`.

    memory:                                         one process; the default
    redis://, rediss://, unix://                    Redis or Valkey; rediss is with TLS
    valkey://, valkeys://                           the same
    redis+sentinel://, rediss+sentinel://           found by Sentinel
    redis+cluster://, rediss+cluster://             a Cluster
    postgresql://, postgres://                      PostgreSQL

The module of an engine, and the packages that it needs, are imported when its URL is used. A
sentence of this module never holds a password.
"""

import importlib
import re
from collections.abc import Callable
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any, NamedTuple

from chatserver.brokers.base import Broker
from chatserver.brokers.memory import MemoryBroker
from chatserver.brokers.remote import RemoteBroker
from chatserver.rules import Rules

__all__ = ["MEMORY", "broker_from_url", "check_url", "remote_broker", "without_password"]

#: The URL of the broker of a single process.
MEMORY = "memory:"
EXAMPLES = "memory:, redis://127.0.0.1:6379/0 or postgresql://user@127.0.0.1/database"
ENCODE = "in a user or password write %40 for @, %2F for /, %3A for :, %3F for ? and %23 for #"
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?")
#: A host, or an IPv6 address in brackets, and perhaps a port.
HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+(?:%[\w.~-]+)?\]|[^\[\]:]*)(?::([0-9]{1,5}))?")


class _Engine(NamedTuple):
    """Where the broker of some schemes is, and what it needs."""

    module: str
    name: str
    extra: str
    packages: tuple[str, ...]


REDIS = _Engine("chatserver.brokers.redis", "RedisBroker", "redis", ("redis", "hiredis"))
POSTGRES = _Engine("chatserver.brokers.postgres", "PostgresBroker", "postgres", ("asyncpg",))
ENGINES = {
    **dict.fromkeys(("redis", "rediss", "unix", "valkey", "valkeys"), REDIS),
    **dict.fromkeys(("redis+sentinel", "rediss+sentinel"), REDIS),
    **dict.fromkeys(("redis+cluster", "rediss+cluster"), REDIS),
    **dict.fromkeys(("postgresql", "postgres"), POSTGRES),
}


def broker_from_url(
    url: str = MEMORY,
    *,
    history_size: int = 100,
    history_ttl: float = 300.0,
    history_memory: int = 64 * 1024 * 1024,
) -> Broker:
    """Make the broker that a URL names; it connects when the application starts.

    Args:
        url: One of the URLs above, with user and password where the engine asks for them.
        history_size: Publications kept per channel at most; 0 keeps none.
        history_ttl: Seconds for which a publication is kept at most.
        history_memory: The most bytes of all histories together, of the memory broker only.

    Raises:
        ValueError: The URL can't be used.
        ModuleNotFoundError: A package is missing; the sentence says what to install.
    """
    if url == MEMORY:
        return MemoryBroker(
            history_size=history_size, history_ttl=history_ttl, history_memory=history_memory
        )
    return remote_broker(url, rules=Rules(history_size=history_size, history_ttl=history_ttl))


def remote_broker(url: str, **options: Any) -> RemoteBroker:
    """The same for the URL of an engine only.

    Args:
        url: One of the URLs above, except that of the memory broker.
        options: See `RemoteBroker`.

    Raises:
        ValueError: The URL can't be used.
        ModuleNotFoundError: A package is missing; the sentence says what to install.
    """
    try:
        check_url(url)
    except ValueError as error:
        raise ValueError(f"expected {error}") from None
    if url == MEMORY:
        raise ValueError(f"expected an engine that processes share, got the broker {MEMORY}")
    scheme, _, rest = url.partition(":")
    engine = ENGINES[scheme.lower()]
    _check_installed(engine)
    make: Callable[..., RemoteBroker] = getattr(importlib.import_module(engine.module), engine.name)
    return make(f"{scheme.lower()}:{rest}", **options)


def _check_installed(engine: _Engine) -> None:
    missing = [name for name in engine.packages if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"{engine.name} needs {' and '.join(missing)}: "
            f"pip install 'starlette-chatserver[{engine.extra}]'",
            name=missing[0],
        )


def check_url(url: str) -> str:
    """The URL itself, if its form is that of a broker's.

    Raises:
        ValueError: It isn't; the sentence says what was expected.
    """
    if url == MEMORY:
        return url
    if why := _why_not(url):
        raise ValueError(f"the URL of a broker, as in {EXAMPLES} ({why})")
    return url


def _why_not(url: str) -> str:
    """What is wrong with a URL; nothing of a password, wherever it may stand."""
    if re.search(r"[\s\x00-\x1f\x7f]", url):
        return "it has a space or a line break in it"
    found = SCHEME.match(url)
    if found is None:
        return "it has no scheme" if url else "it is empty"
    scheme = found[1].lower()
    if scheme not in ENGINES:
        return _why_no_scheme(scheme)
    if found[2] is None:
        return f"after {scheme}: comes //"
    place = re.split("[?#]", url[found.end() :])[0]
    if scheme == "unix":
        return "" if "/" in place.rstrip("/") else "after unix:// comes the path of a socket"
    hosts = place.partition("/")[0].rpartition("@")[2]
    return "" if all(map(_is_host, hosts.split(","))) else f"a port is from 1 to 65535; {ENCODE}"


def _why_no_scheme(scheme: str) -> str:
    if scheme == "memory":
        return "after memory: comes nothing"
    close = get_close_matches(scheme, ["memory", *ENGINES], n=1)
    # A word that is like no scheme may be a password.
    return f"did you mean {close[0]}?" if close else f"schemes are memory, {', '.join(ENGINES)}"


def _is_host(text: str) -> bool:
    found = HOST.fullmatch(text)
    return found is not None and (found[1] is None or 0 < int(found[1]) < 65536)


def without_password(url: str) -> str:
    """A URL for a log or an error: without password and query, however malformed it is.

    >>> without_password("redis://ann:secret@127.0.0.1:6379/0?password=secret")
    'redis://ann:***@127.0.0.1:6379/0'
    """
    scheme, mark, rest = url.partition("://")
    if not mark:
        return url if url == MEMORY else "***"
    # Up to the last "@": an unencoded password may hold whatever ends it by the rules.
    user, at, place = rest.rpartition("@")
    name, colon, _ = user.partition(":")
    hidden = f"{name}:***@" if colon else "***@"
    return f"{scheme}://{hidden if at else ''}{re.split('[?#]', place)[0]}"
