"""All that we use of uvicorn's internals, which may change with any upgrade.

When an upgrade removes or changes one of them, a test of its name fails.
"""

import sys
from importlib.util import find_spec
from types import FrameType
from typing import TYPE_CHECKING, Any

from uvicorn.config import STARTUP_FAILURE, Config
from uvicorn.lifespan.on import LifespanOn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import Server, ServerState
from uvicorn.supervisors.multiprocess import Multiprocess, Process

#: Whether httptools parses the requests; its protocol has more of what we need than that on h11.
HAS_HTTPTOOLS = find_spec("httptools") is not None

if HAS_HTTPTOOLS or TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

__all__ = [
    "HAS_HTTPTOOLS",
    "STARTUP_FAILURE",
    "Config",
    "H11Protocol",
    "HttpToolsProtocol",
    "Multiprocess",
    "Process",
    "RequestResponseCycle",
    "Server",
    "ServerState",
    "host_of_server",
    "is_full",
]


def is_full(protocol: Any) -> bool:
    """Whether its transport has told an HTTP protocol to pause writing."""
    flow = getattr(protocol, "flow", None)
    return flow is not None and bool(flow.write_paused)


def host_of_server() -> str | None:
    """The host on which the server that runs this lifespan listens; None if it is not known.

    A lifespan isn't told. But uvicorn, which knows, awaits the lifespan, so it is on the stack.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not LifespanOn.main.__code__:
        frame = frame.f_back
    if frame is None:
        return None
    config: Config = frame.f_locals["self"].config
    listens_elsewhere = config.uds is not None or config.fd is not None
    return None if listens_elsewhere else config.host
