"""The command line: to serve, to publish, to print a token or a description of an application.

The exit status is one of `EXIT_STATUSES`, which `--help` shows. A mistake of the user is one
sentence on stderr, never a traceback.
"""

import argparse
import asyncio
import errno
import importlib.util
import os
import re
import socket
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatserver import __version__
from chatserver.brokers import Broker
from chatserver.brokers.urls import MEMORY
from chatserver.errors import BrokerUnavailable, InvalidSetting
from chatserver.settings import EXPOSED, Settings, is_loopback

if TYPE_CHECKING:
    import uvicorn

__all__ = ["main"]

PACKAGE = Path(__file__).resolve().parent
GRACE = 3  # seconds that handlers get on shutdown, after their clients were told to come back
READY = "chatserver.app:app"
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
NO_SECRET = (
    "A token needs a secret: set CHATSERVER_TOKEN_SECRET, here and for the server, to what "
    '`python -c "import secrets; print(secrets.token_urlsafe(32))"` prints.'
)
NO_BROKER = (
    "To publish from outside, the servers need a broker that processes share: set "
    "CHATSERVER_BROKER, here and for them, to redis://127.0.0.1:6379/0 or the like."
)
EXIT_STATUSES = (
    "Exit status: 0 done; 1 the address can't be listened on; 2 an argument or setting can't be "
    "used, or the broker not be reached; 3 the application failed to start; 130 ended by Ctrl-C."
)
EPILOG = (
    "Flags win over the environment, but other users of the machine can read them: set "
    "CHATSERVER_TOKEN_SECRET rather than giving --token-secret, and CHATSERVER_BROKER rather than "
    f"--broker where the URL holds a password. {EXIT_STATUSES}"
)


class CannotListen(Exception):
    """The address can't be listened on; the message is one sentence."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name (those of the process if None).

    Returns:
        The exit status. For 3, without workers, uvicorn raises SystemExit itself.
    """
    arguments = vars(_parser().parse_args(argv))
    command = arguments.pop("command")
    try:
        return int(command(**arguments))
    except (InvalidSetting, BrokerUnavailable, CannotListen) as error:
        print(f"chatserver: error: {error}", file=sys.stderr)
        return 1 if isinstance(error, CannotListen) else 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="chatserver",
        description="Real-time channels over WebSocket.",
        epilog=EXIT_STATUSES,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(
        title="commands", required=True, metavar="run | token | publish | asyncapi"
    )

    def add(
        command: Callable[..., int], help: str, description: str, epilog: str = EPILOG
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(
            command.__name__.removeprefix("_"),
            help=help,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
        )
        made.set_defaults(command=command)
        return made

    run = add(_run, "serve, until Ctrl-C", "Serve, until Ctrl-C.")
    _add_flags(run, [row.name for row in Settings.describe()])

    token = add(
        _token,
        "print a token",
        "Print a token. Without --item and --channel it opens every channel.",
    )
    token.add_argument("--sub", required=True, metavar="USER", help="the user that the token names")
    token.add_argument("--item", action="append", default=[], help="item it opens; may be repeated")
    token.add_argument(
        "--channel", action="append", default=[], help="channel it opens; may be repeated"
    )
    token.add_argument(
        "--ttl", default="1h", help="how long it lives: 30s, 5m, 1h, 7d (default: %(default)s)"
    )
    _add_flags(token, ("token_secret", "token_audience", "token_issuer", "token_claim"))

    publish = add(
        _publish,
        "publish to a channel through the servers' broker",
        "Publish to a channel, through the broker that the servers use. Prints the "
        "publication's position: its offset, and the epoch of the channel's stream.",
    )
    publish.add_argument("channel", metavar="CHANNEL", help="the channel's name")
    publish.add_argument(
        "text",
        metavar="TEXT",
        help="what to publish; - publishes each line of the standard input when it comes",
    )
    publish.add_argument("--json", action="store_true", help="TEXT is JSON, and so is each line")
    publish.add_argument(
        "--id", help="an id; if it was published in the last five minutes, it is not again"
    )
    _add_flags(publish, ("broker",))

    asyncapi = add(
        _asyncapi,
        "print the AsyncAPI document of an application",
        "Print the AsyncAPI document of an application's endpoints, as JSON.",
        EXIT_STATUSES,
    )
    asyncapi.add_argument(
        "application",
        nargs="?",
        default=READY,
        metavar="module:app",
        help="the application, found from the current directory (default: %(default)s)",
    )
    asyncapi.add_argument(
        "--factory", action="store_true", help="module:app is a function that makes it"
    )
    asyncapi.add_argument(
        "--server",
        metavar="URL",
        help="where clients reach it, as in wss://example.org (default: the document doesn't say)",
    )
    return parser


def _add_flags(parser: argparse.ArgumentParser, names: Collection[str]) -> None:
    """Add settings as flags. One that is not given is left out, so that the environment counts."""
    for row in Settings.describe():
        if row.name not in names:
            continue
        unit = f" {row.unit}" if row.unit else ""
        text = f"{row.help} (default: {row.default}{unit}; {row.env})".replace("%", "%%")
        action: Any = argparse.BooleanOptionalAction if row.is_switch else "store"
        shape: dict[str, Any] = {} if row.is_switch else {"metavar": _metavar(row.unit)}
        parser.add_argument(row.flag, action=action, default=argparse.SUPPRESS, help=text, **shape)


def _metavar(unit: str) -> str:
    return {"": "VALUE", "a second": "NUMBER"}.get(unit, unit.upper())


def _token(*, sub: str, item: list[str], channel: list[str], ttl: str, **overrides: Any) -> int:
    settings = Settings.from_env(**overrides)
    if settings.token_secret is None:
        raise InvalidSetting(NO_SECRET)
    from chatserver.auth import mint  # cryptography takes its time, and --help needs none of it

    try:
        token = mint(
            settings.token_secret,
            user=sub,
            ttl_seconds=_seconds(ttl),
            channels=[*(f"item:{name}" for name in item), *channel] or None,
            audience=settings.token_audience,
            issuer=settings.token_issuer,
            claim=settings.token_claim,
        )
    except ValueError as error:
        raise InvalidSetting(f"No token made: {error}.") from None
    print(token)
    return 0


def _seconds(duration: str) -> int:
    """The seconds in `30s`, `5m`, `1h` or `7d`.

    Raises:
        ValueError: It is none of these, or zero.
    """
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", duration)
    if not match or not int(match[1]):
        raise ValueError(f"expected --ttl as in 30s, 5m, 1h or 7d, but got {duration!r}")
    return int(match[1]) * SECONDS[match[2]]


def _publish(*, channel: str, text: str, json: bool, id: str | None, **overrides: Any) -> int:
    from chatserver.publisher import Publisher

    settings = Settings.from_env(**overrides)
    if settings.broker == MEMORY:
        raise InvalidSetting(NO_BROKER)
    if not channel or (text == "-" and id is not None):
        raise InvalidSetting("Expected a channel's name, and --id with a single TEXT only.")
    if text == "-" and sys.stdin is None:
        raise InvalidSetting("There is no standard input to publish.")
    lines: Iterable[str | bytes] = sys.stdin.buffer if text == "-" else (text,)
    try:
        with Publisher(settings.broker) as publisher:
            for number, line in enumerate(lines, start=1):
                position = publisher.publish(channel, _data(line, number, json=json), id=id)
                print(position.offset, position.epoch, flush=True)
    except (ModuleNotFoundError, ValueError) as error:
        raise InvalidSetting(f"Nothing more was published: {error}.") from None
    except BrokenPipeError:
        # Nobody reads the positions any more. Python would complain again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _data(line: str | bytes, number: int, *, json: bool) -> Any:
    """What a line says.

    Raises:
        InvalidSetting: It is not UTF-8, or not JSON.
    """
    import msgspec

    data = line.encode("utf-8", "surrogateescape") if isinstance(line, str) else line
    try:
        text = data.decode().removesuffix("\n").removesuffix("\r")
        if json:
            msgspec.json.decode(text)
            return msgspec.Raw(text.encode())
        return text
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError) as error:
        raise InvalidSetting(f"Line {number} can't be published: {error}.") from None


def _asyncapi(*, application: str, factory: bool, server: str | None) -> int:
    import msgspec

    from chatserver.asyncapi import describe
    from chatserver.loading import load_application

    app = load_application(application, factory=factory)
    try:
        document = describe(app, server=server)
    except (TypeError, ValueError) as error:
        raise InvalidSetting(f"{application} can't be described: {error}") from None
    # As bytes, because JSON is UTF-8 whatever the terminal's encoding is.
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(document)) + b"\n")
    return 0


def _run(**overrides: Any) -> int:
    from chatserver.configuration import make_broker
    from chatserver.server.http import missing_guards

    settings = Settings.from_env(**overrides)
    if not (settings.verifies_tokens or settings.open_to_network or is_loopback(settings.host)):
        raise InvalidSetting(EXPOSED.format(host=settings.host))
    # create_app reads the environment, in this process and in a child that reloads.
    os.environ.update(settings.to_env())
    if settings.broker != MEMORY:
        asyncio.run(_try(make_broker(settings)))
    with _listen(settings.host, settings.port) as listener:
        if missing := missing_guards():
            print(missing, flush=True)
        return _serve(settings, listener)


async def _try(broker: Broker) -> None:
    """Connect once before anything is started, so that a failure is one sentence."""
    await broker.start()
    await broker.stop()


def _serve(settings: Settings, listener: socket.socket) -> int:
    from uvicorn.supervisors import ChangeReload

    from chatserver.server.processes import InvitingServer, Workers
    from chatserver.server.uvicorn_ import STARTUP_FAILURE

    config = _uvicorn_config(settings)
    invite = partial(print, _invitation(settings, listener), flush=True)
    server = InvitingServer(config, invite)
    if settings.workers > 1:
        workers = Workers(config, [listener], invite)
        workers.run()
        return STARTUP_FAILURE if workers.failed else 0
    if settings.reload:
        ChangeReload(config, target=server.run, sockets=[listener]).run()
    else:
        server.run(sockets=[listener])
    return 0


def _uvicorn_config(settings: Settings) -> "uvicorn.Config":
    import uvicorn

    from chatserver import logs

    made = uvicorn.Config(
        "chatserver.app:create_app",
        factory=True,
        host=settings.host,
        port=settings.port,
        root_path=settings.root_path,
        ws="chatserver.server:WebSocketProtocol",
        http="chatserver.server:HttpProtocol",
        ws_max_size=settings.max_message_size,
        ws_ping_interval=settings.ping_interval,
        ws_ping_timeout=settings.ping_timeout,
        server_header=False,
        workers=settings.workers,
        timeout_graceful_shutdown=GRACE,
        log_level=settings.log_level,
        log_config=logs.config(settings.log_level),
        **_watched(settings) if settings.reload else {},
    )
    logs.install()
    return made


def _watched(settings: Settings) -> dict[str, Any]:
    """What restarts the server; templates and styles only if watchfiles is installed."""
    folders = (PACKAGE, PACKAGE / "templates", PACKAGE.parent / "templates", settings.templates)
    watched = [str(folder) for folder in folders if folder and folder.is_dir()]
    patterns = ["*.html", "*.css", "*.js"] if importlib.util.find_spec("watchfiles") else None
    return {"reload": True, "reload_dirs": watched, "reload_includes": patterns}


def _listen(host: str, port: int) -> socket.socket:
    """Bind before anything else is started, so that a failure is one sentence.

    Raises:
        CannotListen: The name is unknown, or the address is in use or not allowed.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # One socket. A name with both kinds of address gets IPv4, because browsers try both.
        family, *_, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        return _bound(family, address)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        other = " Choose another with --port, or make run PORT=." if _is_taken(error) else ""
        raise CannotListen(f"Can't listen on {host}, port {port}: {why}.{other}") from None


def _is_taken(error: Exception) -> bool:
    return getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES)


def _bound(family: int, address: Any) -> socket.socket:
    listener = socket.socket(family)
    try:
        # Lets a restart bind the port at once, while old connections still linger.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    listener.set_inheritable(True)
    return listener


def _invitation(settings: Settings, listener: socket.socket) -> str:
    """The last line of a start: the address to open, or the one for the proxy."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    port = listener.getsockname()[1]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    if settings.root_path:
        return f"Serving {address} for a proxy that shows it under {settings.root_path}/"
    return f"Open {address}"
