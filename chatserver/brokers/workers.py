"""How many processes a server has started for this application.

A server with several workers starts each by a function of its own, in which the worker runs until
it ends. So that function is at the bottom of the stack, and knows the number. Nothing is kept
outside the process: a worker that replaces a crashed one, several servers of one shell and the
processes of a test runner are not mistaken for siblings, and neither is the child of --reload.
Where the number can't be found it is 1.
"""

import sys
from collections.abc import Callable
from operator import attrgetter
from types import FrameType
from typing import Any

from chatserver.errors import InvalidSetting

__all__ = ["check_one_process", "one_process_only"]

#: Module and name of the function, the local variable that knows the number, and where in it.
STARTERS: dict[tuple[str, str], tuple[str, Callable[[Any], int]]] = {
    ("uvicorn.supervisors.multiprocess", "Process.target"): ("self", attrgetter("config.workers")),
    ("gunicorn.arbiter", "Arbiter.spawn_worker"): ("self", attrgetter("num_workers")),
    ("hypercorn.asyncio.run", "asyncio_worker"): ("config", attrgetter("workers")),
    ("granian.server.common", "AbstractServer.startup"): ("self", attrgetter("workers")),
}


def check_one_process() -> None:
    """Refuse to serve from one of several workers.

    Raises:
        InvalidSetting: This process is one of several; the sentence says what to set.
    """
    if (number := _workers()) > 1:
        raise InvalidSetting(one_process_only(number))


def one_process_only(workers: int) -> str:
    """The sentence for a number of workers that can't share a memory broker."""
    return (
        f"The memory broker is for one process, and clients of {workers} workers would not hear "
        "each other: set CHATSERVER_BROKER (--broker, `make run BROKER=`), as in redis://localhost "
        "or postgresql://localhost/chat, or give the Hub a broker_from_url; or run one worker."
    )


def _workers() -> int:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        code = frame.f_code
        starter = STARTERS.get((frame.f_globals.get("__name__", ""), code.co_qualname))
        if starter is not None:
            variable, number = starter
            return number(frame.f_locals[variable])
        frame = frame.f_back
    return 1
