"""What `chatserver run` starts: a server that stops in order, and several processes of one."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest
from playwright.sync_api import expect

import chatserver
from tests.browser import Visit
from tests.engines import Valkey
from tests.raw import CLOSE, FIN, TEXT, Peer, frame

pytest_plugins = ["tests.browser", "tests.engines"]

ROOT = Path(chatserver.__file__).parent.parent
DEADLINE = 20.0  # seconds for whatever is waited for

#: Answers with its process, and fails to start while a file is there.
SERVED = """
import os
from contextlib import asynccontextmanager
from pathlib import Path
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from chatserver import EchoEndpoint, health_routes, lifespan

@asynccontextmanager
async def may_fail(app):
    if Path("broken").exists():
        raise RuntimeError("no engine here")
    yield

async def pid(request):
    return PlainTextResponse(str(os.getpid()))

app = Starlette(routes=[Route("/", pid)], lifespan=may_fail)
one = Starlette(
    routes=[Route("/", pid), WebSocketRoute("/ws", EchoEndpoint), *health_routes()],
    lifespan=lifespan,
)
"""

RUN = """
import socket, sys, time
from functools import partial
from pathlib import Path
from chatserver.server import edge
from chatserver.server.processes import InvitingServer, Workers
from chatserver.server.uvicorn_ import Config

if __name__ == "__mp_main__" and Path("slow").exists():  # a worker imports this as well
    Path("begun").touch()
    time.sleep(60)

if __name__ == "__main__":
    name, (workers, edge.ENDS_PER_SECOND, patience) = sys.argv[1], map(int, sys.argv[2:])
    listener = socket.create_server(("127.0.0.1", 0))
    config = Config(
        name,
        workers=workers,
        ws="chatserver.server:WebSocketProtocol",
        http="chatserver.server:HttpProtocol",
        timeout_graceful_shutdown=3,
        timeout_worker_healthcheck=patience,
    )
    ready = partial(print, "Open", listener.getsockname()[1], flush=True)
    if workers == 1:
        InvitingServer(config, ready).run([listener])
    else:
        supervisor = Workers(config, [listener], ready)
        supervisor.run()
        sys.exit(3 if supervisor.failed else 0)
"""


class Running(NamedTuple):
    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def port(self) -> int:
        wait_for(lambda: "Open" in self.out)
        return int(self.out.split()[1])

    @property
    def out(self) -> str:
        return (self.folder / "out").read_text()

    @property
    def log(self) -> str:
        return (self.folder / "err").read_text()

    def pids(self, number: int) -> set[int]:
        """The processes that answer, once there are so many of them."""
        found: set[int] = set()

        def asked() -> bool:
            found.clear()
            for _ in range(20):
                answer = httpx2.get(f"http://127.0.0.1:{self.port}/", timeout=DEADLINE)
                found.add(int(answer.text))
            return len(found) == number

        wait_for(asked)
        return found

    def end(self, sign: int) -> int:
        self.process.send_signal(sign)
        return self.process.wait(DEADLINE)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # One that has ended and that nobody has waited for.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@contextmanager
def running(
    folder: Path,
    name: str,
    workers: int,
    *,
    rate: int = 1000,
    patience: int = 20,
    **environment: str,
) -> Iterator[Running]:
    """Run `RUN`: `rate` clients end in a second, a worker is given up after `patience` seconds."""
    (folder / "served.py").write_text(SERVED)
    (folder / "run.py").write_text(RUN)
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "run.py", name, *map(str, (workers, rate, patience))],
            cwd=folder,
            env={**os.environ, **environment, "PYTHONPATH": f"{ROOT}:{folder}"},
            stdout=out,
            stderr=err,
            start_new_session=True,  # so that a test may signal all of its processes
        )
        try:
            yield Running(process, folder)
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(DEADLINE)


# One process


def readiness(port: int) -> tuple[int, str]:
    answer = httpx2.get(f"http://127.0.0.1:{port}/readyz", timeout=DEADLINE)
    return answer.status_code, answer.json()["status"]


def test_it_is_not_ready_before_the_clients_are_told(tmp_path: Path) -> None:
    with running(tmp_path, "served:one", 1, rate=20) as server, ExitStack() as stack:
        peers = [stack.enter_context(Peer(server.port, "/ws")) for _ in range(30)]
        assert readiness(server.port) == (200, "ready")
        early = stack.enter_context(Peer(server.port))
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: readiness(server.port) == (503, "stopping"))
        early.send(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        early.read_head()
        assert early.status == 503
        assert "application/json" in early.head
        late = stack.enter_context(Peer(server.port, "/ws"))
        assert late.status == 503
        # The last ones are served until their turn has come.
        for peer in peers:
            peer.text("hi")
        served = [peer for peer in peers if peer.next()[0] == TEXT]
        assert len(served) > 10
        for peer in served:
            assert peer.close_code() == 1012
        for peer in peers:
            peer.drop()
        server.process.wait(DEADLINE)
    assert "Traceback" not in server.log


def test_a_server_with_few_clients_ends_at_once(tmp_path: Path) -> None:
    with running(tmp_path, "served:one", 1) as server, ExitStack() as stack:
        peers = [stack.enter_context(Peer(server.port, "/ws")) for _ in range(10)]
        begun = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        for peer in peers:
            assert peer.close_code() == 1012
            peer.send(frame(FIN | CLOSE, b"\x03\xf4"))
            assert peer.rest() == b""
            peer.drop()
        server.process.wait(DEADLINE)
        assert time.monotonic() - begun < 1


# Several processes


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_workers_serve_together_and_end_together(tmp_path: Path, sign: signal.Signals) -> None:
    with running(tmp_path, "served:app", 2) as server:
        pids = server.pids(2)
        assert server.end(sign) == 0
        assert all(map(is_gone, pids))
    assert server.out.count("Open") == 1
    assert "Traceback" not in server.log


def test_ctrl_c_reaches_all_of_them_at_once(tmp_path: Path) -> None:
    with running(tmp_path, "served:app", 2) as server:
        pids = server.pids(2)
        os.killpg(server.process.pid, signal.SIGINT)
        assert server.process.wait(DEADLINE) == 0
        assert all(map(is_gone, pids))
    assert "Traceback" not in server.log


def test_ctrl_c_while_they_start(tmp_path: Path) -> None:
    (tmp_path / "slow").touch()
    with running(tmp_path, "served:app", 2) as server:
        wait_for((tmp_path / "begun").exists)
        os.killpg(server.process.pid, signal.SIGINT)
        assert server.process.wait(DEADLINE) == 0
    assert server.out == ""
    assert "Traceback" not in server.log


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_a_worker_is_started_again(tmp_path: Path, sign: signal.Signals) -> None:
    with running(tmp_path, "served:app", 2, patience=1) as server:
        one, other = server.pids(2)
        os.kill(one, sign)
        wait_for(lambda: is_gone(one))
        assert other in server.pids(2)
        assert f"Worker process [{one}] has died; another one is started." in server.log
        assert server.end(signal.SIGTERM) == 0


def test_workers_that_cannot_start_end_it(tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    with running(tmp_path, "served:app", 2) as server:
        assert server.process.wait(DEADLINE) == 3
    assert "Open" not in server.out
    assert "no engine here" in server.log
    assert server.log.count("Application startup failed. Exiting.") <= 2


def test_a_worker_that_cannot_start_again_leaves_the_others(tmp_path: Path) -> None:
    with running(tmp_path, "served:app", 2) as server:
        one, other = server.pids(2)
        (tmp_path / "broken").touch()
        os.kill(one, signal.SIGKILL)
        wait_for(lambda: "no engine here" in server.log)
        assert server.pids(1) == {other}
        (tmp_path / "broken").unlink()
        assert other in server.pids(2)
        assert server.end(signal.SIGTERM) == 0


def test_no_worker_goes_on_without_its_supervisor(tmp_path: Path) -> None:
    with running(tmp_path, "served:app", 2) as server:
        pids = server.pids(2)
        server.end(signal.SIGKILL)
        wait_for(lambda: all(map(is_gone, pids)))
    assert "Traceback" not in server.log


def test_of_several_workers_with_the_memory_broker_each_refuses(tmp_path: Path) -> None:
    with running(tmp_path, "served:one", 2) as server:
        assert server.process.wait(DEADLINE) == 3
    assert "The memory broker is for one process, and clients of 2 workers" in server.log


# Several processes with a broker


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """The process takes no clients meanwhile; so briefly that it isn't taken for dead."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def workers_of(server: Running) -> list[int]:
    wait_for(lambda: "Open" in server.out)
    return [int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", server.log)]


def test_clients_of_two_workers_hear_each_other(tmp_path: Path, valkey: Valkey) -> None:
    with (
        running(tmp_path, "chatserver.app:app", 2, CHATSERVER_BROKER=valkey.url) as server,
        ExitStack() as stack,
    ):
        peers = []
        for pid in workers_of(server):
            with frozen(pid):
                peers.append(stack.enter_context(Peer(server.port, f"/ws/{pid}")))
        one, other = peers
        one.text("hi")
        assert one.message() == "You wrote: hi"
        assert other.message() == one.message()
        other.text("hello")
        assert other.message() == "You wrote: hello"
        assert one.message() == other.message()
        assert readiness(server.port) == (200, "ready")
        assert server.end(signal.SIGTERM) == 0
    assert "Traceback" not in server.log


def test_two_tabs_on_two_workers_chat(tmp_path: Path, valkey: Valkey, visit: Visit) -> None:
    with running(tmp_path, "chatserver.app:app", 2, CHATSERVER_BROKER=valkey.url) as server:
        chats = []
        for pid in workers_of(server):
            with frozen(pid):
                page = visit(f"http://127.0.0.1:{server.port}")
                page.get_by_role("tab", name="Chat").click()
                chat = page.locator("#panel-chat")
                expect(chat.locator(".pill")).to_have_text("Connected")
                chats.append(chat)
        for speaker, listener in (chats, chats[::-1]):
            speaker.locator("textarea").fill("Hello from the other worker")
            speaker.locator("textarea").press("Enter")
            heard = listener.locator(".message.other")
            expect(heard).to_contain_text("says: Hello from the other worker")


STOCK = ("-m", "uvicorn", "--port", "0")


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [(["--workers", "2"], {}), ([], {"WEB_CONCURRENCY": "2"})],
    ids=["--workers", "WEB_CONCURRENCY"],
)
def test_uvicorn_with_several_workers_is_refused(
    tmp_path: Path, arguments: list[str], environment: dict[str, str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", *STOCK, *arguments, "chatserver.app:app"],
        env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert "The memory broker is for one process, and clients of 2 workers" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Uvicorn running" in done.stderr


def test_uvicorn_with_one_worker_that_reloads_is_not_refused(tmp_path: Path) -> None:
    with (tmp_path / "err").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, *STOCK, "--reload", "chatserver.app:app"],
            cwd=tmp_path,
            env={**os.environ, "WEB_CONCURRENCY": "2", "PYTHONPATH": str(ROOT)},
            stderr=err,
        )
    try:
        wait_for(lambda: "Application startup" in (tmp_path / "err").read_text())
        assert "Application startup complete" in (tmp_path / "err").read_text()
    finally:
        process.terminate()
        process.wait(DEADLINE)
