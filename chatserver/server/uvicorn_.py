"""All that is taken from the insides of uvicorn, in one place: it promises nothing of it.

When an upgrade of uvicorn takes something away or changes it, the test of that name says so.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl
from uvicorn.server import ServerState

#: Whether requests can be parsed by httptools, whose protocol shows more than that on h11.
HAS_HTTPTOOLS = find_spec("httptools") is not None

if HAS_HTTPTOOLS or TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

__all__ = [
    "HAS_HTTPTOOLS",
    "Config",
    "H11Protocol",
    "HttpToolsProtocol",
    "RequestResponseCycle",
    "ServerState",
    "get_local_addr",
    "get_remote_addr",
    "is_full",
    "is_ssl",
]


def is_full(protocol: Any) -> bool:
    """Whether its transport has told an HTTP protocol that it takes no more for now."""
    flow = getattr(protocol, "flow", None)
    return flow is not None and bool(flow.write_paused)
