"""What `chatserver run` starts: a server, or several processes of it.

    InvitingServer(config, ready).run([listener])
    Workers(config, [listener], ready).run()

Each process takes clients from the same listening socket. The supervisor starts a worker again that
has died, and ends when its workers can't start at all.
"""

import gc
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Pipe
from typing import cast

from chatserver.server.edge import edge_of
from chatserver.server.uvicorn_ import Config, Multiprocess, Process, Server
from chatserver.server.websocket import WebSocketProtocol

__all__ = ["InvitingServer", "Workers"]

logger: logging.Logger = logging.getLogger("uvicorn.error")


class InvitingServer(Server):
    """A server that says when it serves, and that it stops before it does.

    Args:
        config: uvicorn's.
        ready: Called when it serves; the last step of a start.
    """

    def __init__(self, config: Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal comes."""
        _make_room()
        super().run(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, as uvicorn does, and say so."""
        await super().startup(sockets)
        if self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell the clients to come back, and only then stop to listen.

        uvicorn closes the listening socket first. So nobody could be told meanwhile that the server
        stops: by `/readyz`, and by a 503 for a handshake.
        """
        edge = edge_of(self.config, self.server_state, self.lifespan.state)
        edge.stop()
        for connection in list(self.server_state.connections):
            if isinstance(connection, WebSocketProtocol) and connection.has_asked:
                connection.shutdown()
        await edge.ended.wait()
        await super().shutdown(sockets)


class Worker(Process):
    """One of several processes of a server.

    Args:
        config: uvicorn's.
        sockets: The listening sockets.

    Attributes:
        serves: Whether it has begun to serve.
    """

    def __init__(self, config: Config, sockets: list[socket.socket]) -> None:
        self.serves: bool = False
        self._told, self._tell = Pipe(duplex=False)
        super().__init__(config, sockets)
        # Ctrl-C reaches all processes at once. To one that is not up yet it would be an exception
        # out of an import; its supervisor ends it.
        with _without_ctrl_c():
            self.start()

    def target(self, sockets: list[socket.socket] | None = None) -> None:
        """What the process runs."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # until uvicorn handles it
        _let_through_ctrl_c()
        threading.Thread(target=_end_with_the_parent, daemon=True).start()
        self._server = InvitingServer(self.config, self._say_that_it_serves)
        super().target(sockets)

    def _say_that_it_serves(self) -> None:
        self._tell.send_bytes(b"")

    def lives(self) -> bool:
        """Whether it answers; one that has not begun to serve may take its time."""
        self.serves = self.serves or self._told.poll()
        if self.serves:
            return self.is_alive(self.config.timeout_worker_healthcheck)
        return self.process.is_alive()


class Workers(Multiprocess):
    """Starts the processes of a server, and each of them again that has died.

    Args:
        config: uvicorn's, with the number of workers.
        sockets: The listening sockets.
        ready: Called once, when all workers serve.

    Attributes:
        failed: Whether a worker could not start, so that none was started again.
    """

    def __init__(
        self, config: Config, sockets: list[socket.socket], ready: Callable[[], None]
    ) -> None:
        super().__init__(config, sockets)
        self.failed: bool = False
        self._ready: Callable[[], None] | None = ready

    @property
    def _workers(self) -> list[Worker]:
        return cast("list[Worker]", self.processes)

    def init_processes(self) -> None:
        """Start the workers."""
        for _ in range(self.processes_num):
            self.processes.append(Worker(self.config, self.sockets))

    def keep_subprocess_alive(self) -> None:
        """Replace workers that have died or answer no more; called twice a second."""
        if self.should_exit.is_set():
            return
        for place, worker in enumerate(self._workers):
            if not worker.lives():
                self._replace(place, worker)
        if self._ready is not None and all(worker.serves for worker in self._workers):
            self._ready()
            self._ready = None

    def _replace(self, place: int, worker: Worker) -> None:
        worker.kill()
        worker.process.join()
        if self._ready is not None and worker.exitcode is not None and worker.exitcode > 0:
            # It would fail again. Once all have served it may be a passing fault, of the broker's
            # engine perhaps, and the other workers are of use.
            self.failed = True
            self.should_exit.set()
            return
        logger.warning("Worker process [%s] has died; another one is started.", worker.pid)
        self.processes[place] = Worker(self.config, self.sockets)

    def handle_hup(self) -> None:
        """The terminal was closed: end, as a server without workers does."""
        self.handle_term()

    def handle_ttin(self) -> None:
        """The number of workers is that of the settings."""

    def handle_ttou(self) -> None:
        """The number of workers is that of the settings."""


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Hold it back, for processes that are started meanwhile as well."""
    if sys.platform != "win32":
        # Started later, multiprocessing's own process would let it through again.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        _let_through_ctrl_c()


def _let_through_ctrl_c() -> None:
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _end_with_the_parent() -> None:
    """End when the supervisor was killed, so that no worker goes on without one."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is started by its supervisor"
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _make_room() -> None:
    """Allow as many connections as the machine does, and avoid long garbage collections."""
    # A connection is about a hundred objects that stay. By default the garbage collector would
    # search all of them again and again while clients connect.
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    try:
        import resource
    except ImportError:  # pragma: no cover - not on Windows
        return
    with suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
