"""The command line, as a person meets it: in processes of its own."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from starlette.applications import Starlette
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

import chatserver
from chatserver import cli
from chatserver.auth import Verifier
from chatserver.settings import Settings, is_loopback

SECRET = "correct-horse-battery-staple-0123456789"
DEADLINE = 20.0  # seconds for whatever a process is waited for
ROOT = Path(chatserver.__file__).parent.parent
COMMAND = (sys.executable, "-W", "error", "-m", "chatserver")


def environment(**settings: str) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if "CHATSERVER" not in name}
    own = {f"CHATSERVER_{name.upper()}": value for name, value in settings.items()}
    return plain | {"PYTHONPATH": str(ROOT)} | own


def python(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return python(*COMMAND[1:], *arguments, **settings)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


class Running(NamedTuple):
    process: subprocess.Popen[bytes]
    out: Path
    err: Path

    @property
    def url(self) -> str:
        return self.out.read_text().split()[1].rstrip("/")

    @property
    def ws(self) -> str:
        return self.url.replace("http", "ws", 1)

    def stop(self, sign: int = signal.SIGINT) -> int:
        self.process.send_signal(sign)
        return self.process.wait(DEADLINE)

    def printed(self) -> str:
        return self.out.read_text() + self.err.read_text()


@contextmanager
def serving(folder: Path, *arguments: str, **settings: str) -> Iterator[Running]:
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen(
            [*COMMAND, "run", "--port", "0", *arguments],
            env=environment(**settings),
            stdout=out,
            stderr=err,
        )
        server = Running(process, folder / "out", folder / "err")
        try:
            wait_for(lambda: " http" in server.out.read_text() or process.poll() is not None)
            yield server
        finally:
            if process.poll() is None:
                server.stop()


def get(url: str) -> tuple[int, str]:
    with urllib.request.urlopen(url, timeout=DEADLINE) as answer:
        return answer.status, answer.read().decode()


def page_or_nothing(url: str) -> str:
    """The page, or nothing from a server that is just being replaced."""
    try:
        return get(url)[1]
    except OSError:
        return ""


# --- without a server ----------------------------------------------------------------------------


def test_version() -> None:
    assert run("--version").stdout == f"chatserver {chatserver.__version__}\n"


def test_help_has_every_setting_with_default_unit_and_variable() -> None:
    shown = re.sub(r"\s+", " ", run("run", "--help").stdout)
    for row in Settings.describe():
        unit = f" {row.unit}" if row.unit else ""
        assert f"{row.flag}" in shown
        assert f"(default: {row.default}{unit}; {row.env})" in shown
    assert "set CHATSERVER_TOKEN_SECRET rather than giving --token-secret" in shown


EXITS = {"0": "done", "1": "listened on", "2": "setting", "3": "failed to start", "130": "Ctrl-C"}


@pytest.mark.parametrize("command", [(), ("run",), ("token",), ("asyncapi",)])
def test_help_has_every_exit_status(command: tuple[str, ...]) -> None:
    shown = re.sub(r"\s+", " ", run(*command, "--help").stdout)
    listed = dict(re.findall(r"(\d+) ([^;.]+)", shown.partition("Exit status: ")[2]))
    assert set(listed) == set(EXITS)
    assert all(words in listed[status] for status, words in EXITS.items())


def test_an_application_that_fails_to_start_is_exit_status_3() -> None:
    code = (
        "import sys, chatserver.app\n"
        "async def fail(self): raise RuntimeError('no engine here')\n"
        "chatserver.Hub.start = fail\n"
        "from chatserver.cli import main; sys.exit(main(['run', '--port', '0']))"
    )
    done = python("-c", code)
    assert done.returncode == 3
    assert "no engine here" in done.stderr
    assert "Application startup failed" in done.stderr


NO_ENGINE = """
import sys, types
import chatserver
from chatserver.cli import main
from chatserver.errors import BrokerUnavailable

class RedisBroker(chatserver.MemoryBroker):
    def __init__(self, url, *, rules):
        super().__init__()
    async def start(self):
        raise BrokerUnavailable("The broker at localhost:6379 can't be reached: refused.")

module = types.ModuleType("chatserver.brokers.redis")
module.RedisBroker = RedisBroker
sys.modules[module.__name__] = module
sys.exit(main(["run", "--port", "0", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("arguments", [(), ("--workers", "2"), ("--reload",)])
def test_a_broker_that_cannot_be_reached_is_one_sentence(arguments: tuple[str, ...]) -> None:
    done = python("-c", NO_ENGINE, *arguments, broker="redis://:hunter2@localhost:6379")
    sentence = "The broker at localhost:6379 can't be reached: refused."
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"chatserver: error: {sentence}\n"


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_another_server_does_not_open_the_application_to_the_network(host: str) -> None:
    command = ("-W", "error", "-m", "uvicorn", "chatserver.app:app", "--port", "0", "--host", host)
    done = python(*command)
    assert done.returncode == 3
    assert f"Refusing to listen on {host} without verifying tokens" in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_of_tokens_is_imported_before_there_is_one() -> None:
    code = (
        "import sys, chatserver.app; chatserver.app.create_app()\n"
        "assert not {'jwt', 'cryptography'} & set(sys.modules)\n"
        "assert chatserver.Verifier and 'jwt' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True, timeout=DEADLINE)


def test_help_imports_no_server() -> None:
    code = (
        "import sys; from chatserver.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'uvicorn', 'chatserver.app', 'chatserver.asyncapi'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True, timeout=DEADLINE)


def test_asyncapi_of_the_ready_application() -> None:
    done = run("asyncapi", token_secret=SECRET)
    document = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert document["info"]["title"] == "chatserver"
    assert "servers" not in document
    assert done.stdout.startswith('{\n  "asyncapi": "3.1.0",\n')


def test_asyncapi_of_another_application(tmp_path: Path) -> None:
    source = "print('noise')\nfrom examples.typed_room import app\ndef create(): return app\n"
    (tmp_path / "shop.py").write_text(source)
    arguments = ("asyncapi", "shop:create", "--factory", "--server", "wss://example.org/café")
    done = subprocess.run(
        [*COMMAND, *arguments],
        cwd=tmp_path,
        env=environment() | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=DEADLINE,
        check=True,
    )
    document = json.loads(done.stdout)
    assert document["servers"]["server"]["pathname"] == "/café"
    assert list(document["channels"]) == ["Room"]
    assert done.stderr == b"noise\n"


NOT_DESCRIBED = [
    (("nowhere:app",), "there is no module 'nowhere', neither here nor installed"),
    (("chatserver.app:nothing",), "module 'chatserver.app' has no attribute 'nothing'"),
    (
        ("chatserver.app:app", "--server", "example.org"),
        "chatserver.app:app can't be described: expected the URL of a server as in "
        "wss://example.org, got 'example.org'",
    ),
    (
        ("tests.test_cli:untitled", "--factory"),
        "tests.test_cli:untitled can't be described: "
        "app.state.asyncapi_info: Expected `object`, got `array`",
    ),
]


def untitled() -> Starlette:
    app = Starlette()
    app.state.asyncapi_info = ["title"]
    return app


@pytest.mark.parametrize(("arguments", "sentence"), NOT_DESCRIBED)
def test_asyncapi_of_no_application(
    arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["asyncapi", *arguments]) == 2
    assert capsys.readouterr() == ("", f"chatserver: error: {sentence}\n")


ALONE = {"token_secret": SECRET}
BOTH = ALONE | {"token_jwks_url": "https://id.example"}
LIFETIMES = (
    "0s",
    "1",
    "h",
    "1w",
    "-1h",
    "1.5h",
    "",
    "1h ",
    "\N{ARABIC-INDIC DIGIT THREE}h",
    "999999999d",
)


@pytest.mark.parametrize(
    ("command", "settings", "sentence"),
    [
        ("run --port x", {}, "CHATSERVER_PORT (--port): expected a whole number, but got 'x'"),
        ("run", {"port": "70000"}, "CHATSERVER_PORT (--port): expected a whole number from 0"),
        (
            "run",
            {"prot": "1"},
            "No setting is called CHATSERVER_PROT; did you mean CHATSERVER_PORT",
        ),
        (
            "run --host 0.0.0.0",
            {},
            "Refusing to listen on 0.0.0.0 without verifying tokens: set CH",
        ),
        ("run --host ::", {}, "Refusing to listen on :: without"),
        ("run --host example.org", {}, "Refusing to listen on example.org without"),
        ("run --host 127.0.0.1.example.org", {}, "Refusing to listen on 127.0.0.1.example.org"),
        ("run --host :: --no-open-to-network", {"open_to_network": "1"}, "Refusing to listen"),
        (
            "run",
            {"token_secret": "hunter2"},
            "CHATSERVER_TOKEN_SECRET (--token-secret): expected at",
        ),
        ("run", {"token_public_key": "-----BEGIN hunter2"}, "Expected a public key as PEM text"),
        ("run", BOTH, "Expected one way to verify tokens, but got 2"),
        ("run --workers 2", {}, "The memory broker is for one process, and clients of 2 workers"),
        (
            "run --workers 0",
            {},
            "CHATSERVER_WORKERS (--workers): expected a whole number from 1",
        ),
        (
            "run --workers 2 --reload",
            {"broker": "redis://:hunter2@localhost"},
            "Expected one worker with --reload, but got 2: leave out --reload, or set --workers 1",
        ),
        (
            "run",
            {"broker": "reddis://:hunter2@localhost"},
            "CHATSERVER_BROKER (--broker): expected the URL of a broker, as in memory:, redis://",
        ),
        ("token --sub ann", {}, "A token needs a secret: set CHATSERVER_TOKEN_SECRET"),
        ("token --sub=", ALONE, "No token made: expected a user"),
    ],
)
def test_a_setting_that_cannot_be_used_is_one_sentence(
    command: str, settings: dict[str, str], sentence: str
) -> None:
    refused_with(sentence, *command.split(), **settings)


@pytest.mark.parametrize("ttl", LIFETIMES)
def test_bad_lifetime(ttl: str) -> None:
    refused_with("No token made: expected", "token", "--sub=ann", f"--ttl={ttl}", **ALONE)


def refused_with(sentence: str, *arguments: str, **settings: str) -> None:
    settings = settings if "token" in arguments else {"port": "0"} | settings
    done = run(*arguments, **settings)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"chatserver: error: {sentence}")
    assert last.endswith((".", "?"))
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize("arguments", [[], ["walk"], ["run", "--prot", "1"], ["token"]])
def test_wrong_usage(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "chatserver" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "128.0.0.1", "localhost.example.org", "127.1", ""]
)
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("ttl", "seconds"), [("30s", 30), ("5m", 300), ("1h", 3600), ("7d", 604800)]
)
def test_lifetimes(ttl: str, seconds: int) -> None:
    assert cli._seconds(ttl) == seconds


@pytest.mark.anyio
async def test_token() -> None:
    wanted = ["--sub", "ann", "--item", "foo", "--item", "bar", "--channel", "chat", "--ttl", "5m"]
    done = run("token", *wanted, token_secret=SECRET, token_issuer="us", token_audience="chat")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    verifier = Verifier(secret=SECRET, issuer="us", audience="chat")
    identity = await verifier.verify(done.stdout.strip())
    assert identity.user == "ann"
    assert identity.channels == frozenset({"item:foo", "item:bar", "chat"})
    assert identity.expires == pytest.approx(time.time() + 300, abs=30)


@pytest.mark.anyio
async def test_token_of_no_channel_opens_every_one() -> None:
    done = run("token", "--sub", "ann", "--token-secret", SECRET)
    assert (await Verifier(secret=SECRET).verify(done.stdout.strip())).channels is None


def test_the_flag_wins_over_the_environment() -> None:
    done = run("token", "--sub", "ann", "--token-secret", SECRET, token_secret="short")
    assert done.returncode == 0


# --- with a server -------------------------------------------------------------------------------


def test_run_says_where_and_in_which_mode_and_stops_quietly(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        lines = server.out.read_text().splitlines()
        assert re.fullmatch(r"Open http://127\.0\.0\.1:[1-9]\d*/", lines[0])
        with urllib.request.urlopen(server.url, timeout=DEADLINE) as answer:
            assert answer.status == 200
            assert "server" not in answer.headers
        with connect(f"{server.ws}/ws") as client:
            client.send("hi")
            assert client.recv(DEADLINE) == "Message text was: hi"
            begun = time.monotonic()
            assert server.stop() == 130
            assert time.monotonic() - begun < 5
    assert "Traceback" not in server.printed()
    assert re.search(
        r"^WARNING: +Open mode: any", server.err.read_text(), re.MULTILINE
    )  # our logger


def test_sigterm_stops_it_too(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert get(server.url)[0] == 200
        assert server.stop(signal.SIGTERM) == -signal.SIGTERM
    assert "Traceback" not in server.printed()


def test_ipv6_and_root_path(tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with serving(tmp_path, "--host", "::1", "--root-path", "/chat/") as server:
        said = r"^Serving http://\[::1\]:\d+/ for a proxy that shows it under /chat/$"
        assert re.search(said, server.out.read_text(), re.MULTILINE)
        assert "/chat/static/" in get(f"{server.url}/")[1]


def test_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run("run", "--port", port)
    assert done.returncode == 1
    expected = (
        f"chatserver: error: Can't listen on 127.0.0.1, port {port}: Address already in use. "
        "Choose another with --port, or make run PORT=.\n"
    )
    assert (done.stderr, done.stdout) == (expected, "")


def test_unknown_host_is_one_sentence() -> None:
    done = run("run", "--host", "nowhere.invalid", "--open-to-network")
    assert done.returncode == 1
    assert done.stderr.startswith("chatserver: error: Can't listen on nowhere.invalid, port 8000: ")


def test_open_to_network_is_explicit(tmp_path: Path) -> None:
    with serving(tmp_path, "--host", "0.0.0.0", "--open-to-network") as server:
        assert server.url.startswith("http://127.0.0.1:")  # an address that a browser can open
        assert get(server.url)[0] == 200


def test_tokens_are_verified_by_the_settings_of_the_flags(tmp_path: Path) -> None:
    """The application reads the environment, so that flags must have reached it."""
    with serving(tmp_path, "--token-secret", SECRET, "--host", "0.0.0.0") as server:
        assert "Open mode" not in server.out.read_text()
        token = run("token", "--sub", "ann", "--item", "foo", token_secret=SECRET).stdout.strip()
        path = f"{server.ws}/items/foo/ws"
        with connect(f"{path}?token={token}") as client:
            client.send("hi")
            assert str(client.recv(DEADLINE)).endswith(token)
        for bad in (f"{path}?token=x", f"{server.ws}/items/bar/ws?token={token}"):
            with pytest.raises(InvalidStatus):
                connect(bad)


def test_messages_are_bounded(tmp_path: Path) -> None:
    with (
        serving(tmp_path, "--max-message-size", "10") as server,
        connect(f"{server.ws}/ws", compression="deflate") as client,
    ):
        assert client.protocol.extensions == []
        client.send("x" * 11)
        with pytest.raises(ConnectionClosedError):
            client.recv(DEADLINE)
        assert client.close_code == 1009
        assert client.close_reason == "message exceeds the limit of 10 bytes"  # not read


def test_no_secret_in_the_log_at_the_most_verbose_level(tmp_path: Path) -> None:
    """Row 22: every place where a token may stand, with a value of no known shape."""
    secret = "0paque-s3same"
    with serving(tmp_path, "--log-level", "trace") as server:
        item = f"{server.ws}/items/foo/ws"
        ways: list[tuple[str, dict[str, str], list[Subprotocol] | None]] = [
            (f"{item}?token={secret}", {}, None),
            (f"{item}?%74oken={secret}&q=1", {}, None),
            (item, {"Cookie": f"theme=dark; session={secret}"}, None),
            (item, {"Authorization": f"Bearer {secret}"}, None),
            (item, {}, [Subprotocol("bearer"), Subprotocol(secret)]),
            (f"{server.ws}/nothing/here?token={secret}", {}, None),
        ]
        for url, headers, subprotocols in ways:
            try:
                with connect(url, additional_headers=headers, subprotocols=subprotocols) as client:
                    client.send("x" * 60)
                    client.recv(DEADLINE)
            except InvalidStatus:
                pass
        get(f"{server.url}/?token={secret}")
        server.stop()
    printed = server.printed()
    assert secret not in printed
    assert "s3same" not in printed
    assert printed.count("[redacted]") >= len(ways)
    assert '"GET /?token=[redacted] HTTP/1.1" 200' in printed
    assert "Traceback" not in printed
    assert "Logging error" not in printed


def test_reload_keeps_settings_and_watches_templates(tmp_path: Path) -> None:
    pytest.importorskip("watchfiles")
    pages = tmp_path / "pages"
    pages.mkdir()
    flags = ("--reload", "--templates", str(pages), "--token-secret", SECRET)
    with serving(tmp_path, *flags) as server:
        assert get(server.url)[0] == 200  # answered once the child is up
        with pytest.raises(InvalidStatus):
            connect(f"{server.ws}/items/foo/ws?token=x")

        def noticed() -> bool:  # the watcher may begin later than the child that it watches for
            (pages / "index.html").write_text("<p>mine</p>")
            return "Reloading" in server.err.read_text()

        wait_for(noticed)
        wait_for(lambda: page_or_nothing(server.url) == "<p>mine</p>")
        assert server.stop() in (0, 130)
    assert "Traceback" not in server.printed()
