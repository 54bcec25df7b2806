"""A real server and a real browser for tests of the page.

Named as a plugin by the test modules that want it: `pytest_plugins = ["tests.browser"]`.
Without a Chromium those tests are skipped with a sentence; where `CI` is set they fail instead.
Another browser than the one on PATH is named by the environment variable `CHROMIUM`.

PYTEST_DONT_REWRITE: the modules import it before pytest sees that it is a plugin.
"""

import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module, resources
from pathlib import Path
from typing import Any, NoReturn, Protocol, TextIO

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, sync_playwright

from chatserver.testing import LiveServer

ROOT = Path(__file__).resolve().parent.parent
APP = "chatserver.app:app"
BELOW_CHAT = "tests.browser:below_chat"
START_WITHIN = 20.0  # seconds
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
QUIET = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WATCH = """
    window.seen = [];
    window.pwned = (what) => seen.push(`executed: ${what}`);
    addEventListener("securitypolicyviolation", (event) =>
        seen.push(`blocked: ${event.violatedDirective} ${event.blockedURI}`));
"""
# What a browser itself prints when a connection that a test breaks on purpose fails, and when the
# page asks over plain HTTP why: the message, and the address that it is about.
EXPECTED = re.compile(
    r"^(WebSocket connection to .* failed|Failed to load resource: net::ERR_"
    r"|Failed to load resource: .* status of (403|404|426) .*/(ws|ws/\d+|nowhere)$)"
)


async def below_chat(scope: Any, receive: Any, send: Any) -> None:
    """The application as behind a proxy that serves it below `/chat`."""
    app = import_module("chatserver.app").app
    await app({**scope, "root_path": "/chat"}, receive, send)


class Server:
    """A server process on a free port of this machine, or on the port it had before.

    Attributes:
        port: Where it listens; kept after its end, so that `start` brings it back there.
    """

    def __init__(self, app: str = APP, environment: Mapping[str, str] | None = None) -> None:
        self.app = app
        self.environment = {**os.environ, **(environment or {})}
        self.port = 0
        self.lines: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and return once it listens."""
        command = [sys.executable, "-m", "uvicorn", self.app, "--port", str(self.port)]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        ports: queue.Queue[int | None] = queue.Queue()
        self.reader = threading.Thread(target=self._read, args=(self.process.stdout, ports))
        self.reader.start()
        port = ports.get(timeout=START_WITHIN)
        if port is None:
            raise RuntimeError("the server did not start:\n" + "".join(self.lines))
        self.port = port

    def kill(self) -> None:
        """Kill it, so that it sends no close."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.reader.join()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join()

    def _read(self, output: TextIO, ports: queue.Queue[int | None]) -> None:
        with output:
            for line in output:
                self.lines.append(line)
                if found := re.search(r"running on http://127\.0\.0\.1:(\d+)", line):
                    ports.put(int(found[1]))
        ports.put(None)


@contextmanager
def running(app: str = APP, environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    server = Server(app, environment)
    try:
        server.start()
        yield server
    finally:
        server.stop()


class Wire:
    """Carries bytes between clients and a server on this machine, and can stop without a word.

    A frozen one closes nothing and loses nothing, as a network that is out of reach: connections
    are taken, and whatever is sent waits. A cut one ends its connections, and takes new ones.

    Attributes:
        server: Where new connections lead to.
    """

    def __init__(self, server: Server | LiveServer) -> None:
        self.server = server
        self._flows = threading.Event()
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.thaw()
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self) -> None:
        self._flows.clear()

    def thaw(self) -> None:
        self._flows.set()

    def cut(self) -> None:
        ends, self._ends = self._ends, []
        self._shut(*ends)

    def close(self) -> None:
        self._shut(self._listener, *self._ends)
        self.thaw()

    def _shut(self, *ends: socket.socket) -> None:
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # wakes whoever waits for it; close() does not
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self.server.port))
                self._ends += [client, server]
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                self._flows.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


def missing(sentence: str) -> NoReturn:
    """Skip the test, or fail it where nothing may be missing."""
    if os.environ.get("CI"):
        pytest.fail(sentence)
    pytest.skip(sentence)


def find_chromium() -> str | None:
    """The path of a Chromium: the one that `CHROMIUM` names, else the first on PATH."""
    names = (os.environ.get("CHROMIUM"), *NAMES)
    return next((path for name in names if name and (path := shutil.which(name))), None)


@contextmanager
def launched(executable: str) -> Iterator[Browser]:
    """A headless Chromium that asks nobody anything; root needs it without its sandbox."""
    sandbox = ("--no-sandbox",) if os.geteuid() == 0 else ()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=[*QUIET, *sandbox], headless=True
        )
        yield browser
        browser.close()


def axe_source() -> str:
    """The script of axe-core, out of the package that bundles it."""
    try:
        return (resources.files("axe_playwright_python") / "axe.min.js").read_text("utf-8")
    except ModuleNotFoundError:
        missing("axe-core is not installed: pip install axe-playwright-python")


class Visit(Protocol):
    """Opens a page as a visitor of its own, with its own storage; options as for a context."""

    def __call__(self, url: str, **options: Any) -> Page: ...


class Visitors:
    """Opens pages and notes whatever goes wrong on them.

    Attributes:
        complaints: Uncaught errors, console errors, dialogs, violations of the policy, and
            scripts that ran though they should not have.
    """

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.pages: list[Page] = []
        self.complaints: list[str] = []

    def __call__(self, url: str, **options: Any) -> Page:
        context = self.browser.new_context(**options)
        context.set_default_timeout(10_000)
        context.add_init_script(WATCH)
        page = context.new_page()
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        page.on("dialog", self._dialog)
        page.goto(url)
        self.pages.append(page)
        return page

    def leave(self) -> None:
        """Close every page, having asked it what it saw."""
        for page in self.pages:
            if not page.is_closed():
                self.complaints += page.evaluate("window.seen ?? []")  # none without scripts
            page.context.close()

    def _console(self, message: ConsoleMessage) -> None:
        said = f"{message.text} {message.location['url']}"
        if message.type in ("error", "warning") and not EXPECTED.match(said):
            self.complaints.append(f"console: {said}")

    def _dialog(self, dialog: Dialog) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()


# One browser per module, not per session: a running Playwright is a running event loop, which
# the asynchronous tests of other modules could not live with.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    executable = find_chromium()
    if executable is None:
        missing("no Chromium on PATH: install one (apt install chromium) or set CHROMIUM")
    with launched(executable) as browser:
        yield browser


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that the tests of a module share."""
    with running() as server:
        yield server


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server that a test may do with what it likes."""
    with running() as server:
        yield server


@pytest.fixture
def wire(server: Server) -> Iterator[Wire]:
    """A way to the shared server that a test may freeze."""
    wire = Wire(server)
    yield wire
    wire.close()


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Visit]:
    """Visitors; whatever went wrong on any of their pages fails the test."""
    visitors = Visitors(chromium)
    yield visitors
    visitors.leave()
    assert visitors.complaints == []
