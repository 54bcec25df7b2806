"""How many workers a server has started, and the memory broker's refusal of more than one."""

from collections.abc import Callable
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest
from uvicorn.supervisors import multiprocess

from chatserver import MemoryBroker
from chatserver.brokers.workers import STARTERS, check_one_process
from chatserver.errors import InvalidSetting
from chatserver.settings import Settings

NUMBERED = {
    "uvicorn.supervisors.multiprocess": lambda n: SimpleNamespace(
        config=SimpleNamespace(workers=n)
    ),
    "gunicorn.arbiter": lambda n: SimpleNamespace(num_workers=n),
    "hypercorn.asyncio.run": lambda n: SimpleNamespace(workers=n),
    "granian.server.common": lambda n: SimpleNamespace(workers=n),
}


@pytest.fixture(params=STARTERS, ids=lambda starter: starter[0])
def start(request: pytest.FixtureRequest) -> Callable[[int], None]:
    """Calls the check as a worker of each server would, one of a number of workers."""
    module, name = request.param
    variable = STARTERS[request.param][0]

    def run(self: Any, config: Any) -> None:
        check_one_process()

    code = run.__code__.replace(co_qualname=name)
    worker = FunctionType(code, {**globals(), "__name__": module})

    def started(number: int) -> None:
        known = NUMBERED[module](number)
        worker(**{"self": None, "config": None, variable: known})

    return started


def test_one_of_several_workers_is_refused(start: Callable[[int], None]) -> None:
    with pytest.raises(InvalidSetting) as caught:
        start(2)
    assert str(caught.value) == (
        "The memory broker is for one process, and clients of 2 workers would not hear each "
        "other: set CHATSERVER_BROKER (--broker, `make run BROKER=`), as in redis://localhost or "
        "postgresql://localhost/chat, or give the Hub a broker_from_url; or run one worker."
    )


def test_the_only_worker_is_not_refused(start: Callable[[int], None]) -> None:
    start(1)


def test_uvicorn_has_what_we_look_for() -> None:
    assert multiprocess.Process.target.__code__.co_qualname == "Process.target"
    assert multiprocess.Process.target.__code__.co_varnames[0] == "self"
    assert ("uvicorn.supervisors.multiprocess", "Process.target") in STARTERS


@pytest.mark.anyio
async def test_this_process_is_not_refused() -> None:
    await MemoryBroker().start()


def test_settings_that_exclude_each_other() -> None:
    with pytest.raises(InvalidSetting, match="clients of 3 workers would not hear each other"):
        Settings(workers=3)
    with pytest.raises(InvalidSetting, match=r"^Expected one worker with --reload, but got 3:"):
        Settings(workers=3, reload=True, broker="redis://localhost")
    assert Settings(workers=3, broker="redis://localhost").workers == 3
    assert Settings(reload=True).workers == 1
