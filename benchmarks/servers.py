"""The servers that are measured, each by the idiom that its own documentation shows."""

from dataclasses import dataclass

__all__ = ["BY_NAME", "OURS", "ROOMS", "SERVERS", "Server"]

UVICORN = "uvicorn[standard]"
SAYS = len("Client #1000000 says: ")


@dataclass(frozen=True)
class Server:
    """One server: what it needs, how it is started, and what it says on the wire.

    The program is a file in `peers/`, but for ours, which is the package itself.
    """

    name: str
    label: str
    kind: str  # how it is started: ours, uvicorn, python, node, nginx or c
    program: str
    packages: tuple[str, ...] = ()  # for pip, or for npm where the kind is node
    mode: str = ""  # argument of a C program
    path: str = "/ws/{id}"
    prefix: int = 0  # bytes that the server puts before a text
    reply: str = ""  # first letter of an answer that only the publisher gets
    before: str = ""  # what the protocol has around a text
    after: str = ""
    hello: str = ""  # what a client says after the handshake
    greetings: int = 0  # messages that it gets before it is a member
    compression: bool = True  # can it compress?
    echo: bool = False  # does /ws echo?


SERVERS = (
    Server("ours", "chatserver (ours)", "ours", "", prefix=SAYS, reply="Y", echo=True),
    Server(
        *("fastapi", "FastAPI tutorial", "uvicorn", "fastapi_tutorial", ("fastapi", UVICORN)),
        prefix=SAYS,
        reply="Y",
        echo=True,
    ),
    Server(
        *("broadcaster", "Starlette + broadcaster", "uvicorn", "starlette_broadcaster"),
        ("starlette", "broadcaster", UVICORN),
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
    Server("ws", "node ws", "node", "ws_server.js", ("ws",), echo=True),
    Server("nchan", "nginx + nchan", "nginx", "nchan.conf", compression=False),
    Server(
        *("c-single", "C, one send a message", "c", "limit.c"),
        mode="single",
        compression=False,
        echo=True,
    ),
    Server(
        *("c-batched", "C, batched: the limit", "c", "limit.c"),
        mode="batched",
        compression=False,
        echo=True,
    ),
)
BY_NAME = {server.name: server for server in SERVERS}
OURS = BY_NAME["ours"]

# For the growth over channels: both with rooms.
ROOMS = (
    Server("ours", OURS.label, "ours", "ours_rooms", path="/rooms/{room}/{id}", prefix=SAYS),
    Server(
        *("fastapi", "FastAPI tutorial, with rooms", "uvicorn", "fastapi_rooms"),
        ("fastapi", UVICORN),
        path="/rooms/{room}/{id}",
        prefix=SAYS,
    ),
)
