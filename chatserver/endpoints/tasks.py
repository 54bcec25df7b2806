"""The tasks of one connection: started by its endpoint, cancelled with it."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVarTuple

import anyio

__all__ = ["ENDED", "TaskGroup", "run_apart"]

Ts = TypeVarTuple("Ts")

logger: logging.Logger = logging.getLogger("chatserver")

#: Seconds that a cancelled task may take to end.
CANCEL_TIMEOUT = 2.0


class TaskGroup:
    """Tasks that live as long as a connection.

    Like an anyio or asyncio task group without the `async with`: the endpoint ends it when
    the connection ends.

    Args:
        on_error: Called with the exception of a task that failed.
    """

    __slots__ = ("_ended", "_on_error", "_tasks")

    def __init__(self, on_error: Callable[[BaseException], None]) -> None:
        self._on_error = on_error
        # Made for the first task; most connections have none.
        self._tasks: set[asyncio.Task[Any]] | None = None
        self._ended = False

    def start_soon(
        self,
        func: Callable[[*Ts], Coroutine[Any, Any, Any]],
        *args: *Ts,
        name: str | None = None,
    ) -> None:
        """Run `func(*args)` as a task; when it fails, the connection closes with 1011.

        Raises:
            RuntimeError: The connection has ended.
        """
        if self._ended:
            raise RuntimeError("this connection has ended, it can start no more tasks")
        task = asyncio.get_running_loop().create_task(func(*args), name=name)
        if self._tasks is None:
            self._tasks = set()
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def close(self) -> None:
        """Refuse new tasks from now on."""
        self._ended = True

    async def end(self) -> None:
        """Cancel all tasks and wait until they are done, two seconds at most."""
        self.close()
        tasks = set(self._tasks or ())
        for task in tasks:
            task.cancel()
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=CANCEL_TIMEOUT)
            for task in pending:
                logger.error("A connection's task doesn't end when cancelled: %r", task)

    def _done(self, task: asyncio.Task[Any]) -> None:
        if self._tasks is not None:
            self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_error(error)


#: The task group of a connection that has ended: it is empty and refuses new tasks.
ENDED = TaskGroup(lambda _: None)
ENDED.close()


async def run_apart(coroutine: Coroutine[Any, Any, None], shield: anyio.CancelScope) -> None:
    """Run a coroutine to its end in a task of its own, which is cancelled once at most.

    The calling task may be cancelled again and again, by a server or by an anyio scope at each
    await. The first cancellation is passed on; this returns only when the coroutine has ended.

    Args:
        coroutine: What to run.
        shield: Not entered yet. While its `shield` is set, outer anyio scopes cancel nothing.

    Raises:
        asyncio.CancelledError: The calling task was cancelled, and so was the coroutine.
        Exception: What the coroutine raises.
    """
    task = asyncio.get_running_loop().create_task(coroutine)
    cancelled: asyncio.CancelledError | None = None
    with shield:
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError as exc:
                if cancelled is None:
                    task.cancel()
                cancelled, shield.shield = exc, True
    if cancelled is not None and task.cancelled():
        raise cancelled  # a cancel scope recognises its own exception
    task.result()
