"""The servers that are measured, each written as its own documentation shows."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["BEFORE", "BY_NAME", "OURS", "PEERS", "SERVERS", "Server"]

UVICORN = "uvicorn[standard]"
SAYS = len("Client #1000000 says: ")


@dataclass(frozen=True)
class Server:
    """One server: what it needs, how it is started, and what its protocol adds to a text.

    The program is a file in `peers/`, except for ours, which is the package itself.
    """

    name: str
    label: str
    kind: str  # how it is started: ours, uvicorn, python, node, bun, nginx or c
    program: str
    packages: tuple[str, ...] = ()  # for pip, or for npm where the kind is node or bun
    mode: str = ""  # argument of a C program
    path: str = "/ws/{id}"
    prefix: int = 0  # bytes that the server puts before a text
    reply: str = ""  # first letter of an answer that only the publisher gets
    before: str = ""  # what the protocol puts around a text
    after: str = ""
    hello: str = ""  # what a client sends after the handshake
    greetings: int = 0  # messages that it gets before it is a member
    compression: bool = True  # can it compress?
    echo: bool = False  # does /ws echo?
    crowds: bool = False  # does it take part in regimes that only fast servers finish in time?
    checkout: Path | None = None  # where our code is, if not here


SERVERS = (
    Server(
        *("ours", "chatserver (ours)", "ours", ""), prefix=SAYS, reply="Y", echo=True, crowds=True
    ),
    Server(
        *("before", "chatserver before", "ours", ""), prefix=SAYS, reply="Y", echo=True, crowds=True
    ),
    Server(
        *("fastapi", "FastAPI tutorial", "uvicorn", "fastapi_tutorial", ("fastapi", UVICORN)),
        prefix=SAYS,
        reply="Y",
        echo=True,
        crowds=True,
    ),
    Server(
        *("bun", "Bun", "bun", "bun_server.js", ("bun",)),
        compression=False,
        echo=True,
        crowds=True,
    ),
    Server(
        *("socketify", "socketify", "python", "socketify_server.py", ("socketify",)),
        compression=False,
        echo=True,
        crowds=True,
    ),
    Server(
        *("broadcaster", "Starlette + broadcaster", "uvicorn", "starlette_broadcaster"),
        ("starlette", "broadcaster", UVICORN),
        echo=True,
    ),
    Server(
        *("litestar", "Litestar channels", "uvicorn", "litestar_channels", ("litestar", UVICORN)),
    ),
    Server(
        *("socketio", "python-socketio", "uvicorn", "socketio_room", ("python-socketio", UVICORN)),
        path="/socket.io/?EIO=4&transport=websocket",
        before='42["m","',
        after='"]',
        hello="40",
        greetings=2,
    ),
    Server(
        *("django", "Django Channels (memory)", "uvicorn", "django_channels"),
        ("channels", "django", UVICORN),
    ),
    Server(
        *("websockets", "websockets.broadcast()", "python", "websockets_broadcast.py"),
        ("websockets", "uvloop"),
        echo=True,
    ),
    Server("ws", "node ws", "node", "ws_server.js", ("ws",), echo=True, crowds=True),
    Server("nchan", "nginx + nchan", "nginx", "nchan.conf", compression=False, crowds=True),
    Server(
        *("c-single", "C, one send a message", "c", "limit.c"),
        mode="single",
        compression=False,
        echo=True,
        crowds=True,
    ),
    Server(
        *("c-batched", "C, batched: the limit", "c", "limit.c"),
        mode="batched",
        compression=False,
        echo=True,
        crowds=True,
    ),
)
BY_NAME = {server.name: server for server in SERVERS}
OURS, BEFORE = BY_NAME["ours"], BY_NAME["before"]
PEERS = tuple(server for server in SERVERS if server not in (OURS, BEFORE))
