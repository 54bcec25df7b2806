"""Which nodes of Redis a URL names."""

from typing import Any, NamedTuple
from urllib.parse import urlsplit

from redis import exceptions
from redis.asyncio.connection import ConnectionPool, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from chatserver.brokers.redis.connections import CONNECT_TIMEOUT, ClusterNodes, Nodes, OneNode

__all__ = ["nodes_for"]


def nodes_for(url: str) -> Nodes:
    """The nodes that a URL names.

        redis://user:password@host:6379/0       one node; rediss:// with TLS, unix:///path?db=0
        redis+sentinel://host:26379,host:26379/mymaster/0
        redis+cluster://host:7000,host:7001

    `valkey` may stand for `redis`. What follows a ? are options of redis-py.

    Raises:
        ValueError: It is none of these; the sentence does not hold the URL's password.
    """
    name, separator, rest = url.partition("://")
    scheme, _, kind = name.lower().replace("valkey", "redis").partition("+")
    makers = {"": _one_node, "sentinel": _sentinel, "cluster": _cluster}
    if not separator or scheme not in ("redis", "rediss", "unix") or kind not in makers:
        raise ValueError("expected redis://, rediss://, unix://, redis+sentinel:// or the like")
    before, _, query = rest.partition("?")
    user, at, place = before.rpartition("@")
    try:
        return makers[kind](_Url(f"{name}://{place}", scheme, f"{user}{at}", place, query))
    except WRONG_URL as error:
        # Some of these errors quote what they could not read, which may be the password.
        why = f": {error}" if isinstance(error, _WrongUrl) else ""
        raise ValueError(f"the address of Redis can't be read{why}") from None


class _WrongUrl(ValueError):
    """The message does not hold a password."""


WRONG_URL: tuple[type[Exception], ...] = (ValueError, TypeError, exceptions.RedisError)


class _Url(NamedTuple):
    address: str
    scheme: str
    user: str
    place: str
    query: str

    @property
    def is_tls(self) -> bool:
        return self.scheme == "rediss"

    def hosts(self, port: int) -> list[tuple[str, int]]:
        """Hosts and ports."""
        parts = [urlsplit(f"//{text}") for text in self.place.partition("/")[0].split(",")]
        if not all(part.hostname for part in parts):
            raise _WrongUrl("expected hosts and ports, separated by commas")
        return [(part.hostname or "", part.port or port) for part in parts]

    def options(self, place: str) -> dict[str, Any]:
        """The options of redis-py for a connection, with `place` in the URL."""
        options: dict[str, Any] = dict(
            parse_url(f"{self.scheme}://{self.user}{place}?{self.query}")
        )
        options.setdefault("socket_connect_timeout", CONNECT_TIMEOUT)
        options |= {
            "protocol": 2,
            "decode_responses": False,
            "socket_timeout": None,
            "health_check_interval": 0,
            "retry": Retry(NoBackoff(), 0),
        }
        if self.scheme != "unix":
            options["socket_keepalive"] = True
        try:
            pool: Any = ConnectionPool(**options)
            pool.make_connection()  # which looks at the options
        except TypeError:
            raise _WrongUrl("what stands after ? are no options of this kind of address") from None
        return options


def _one_node(url: _Url) -> Nodes:
    options = url.options(url.place)
    return OneNode(url.address, ConnectionPool(**options), int(options.get("db") or 0))


def _sentinel(url: _Url) -> Nodes:
    service, _, db = url.place.partition("/")[2].partition("/")
    if not service:
        raise _WrongUrl("expected the master's name, as in redis+sentinel://host:26379/mymaster")
    options = _without_place(url.options(f"host/{db}"))
    timeout = {"socket_connect_timeout": CONNECT_TIMEOUT, "socket_timeout": CONNECT_TIMEOUT}
    made: Any = Sentinel
    sentinel = made(url.hosts(26379), sentinel_kwargs=timeout)
    master = sentinel.master_for(service, ssl=url.is_tls, **options)
    return OneNode(url.address, master.connection_pool, int(options.get("db") or 0))


def _cluster(url: _Url) -> Nodes:
    hosts = url.hosts(6379)
    options = _without_place(url.options(f"{hosts[0][0]}:{hosts[0][1]}"))
    options.pop("db", None)
    return ClusterNodes(url.address, hosts, {**options, "ssl": url.is_tls})


def _without_place(options: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in options.items()
        if name not in ("host", "port", "connection_class")
    }
