"""What holds for all tests: in CI nothing is skipped, and a real server is run both ways."""

import os
import signal
from collections.abc import Generator
from typing import Any, TypeVar

import pytest

from chatserver.testing import PROTOCOLS

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)
CI = os.environ.get("CI", "").lower() in ("1", "true")


# A shell's background job ignores Ctrl-C, and so would the servers that a test ends by it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _failed_if_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _failed_if_skipped((yield))


def _failed_if_skipped(report: Report) -> Report:
    if CI and report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"Nothing may be skipped in CI, but this was: {report.longrepr}"
    return report


#: What a module of tests has imported that runs a server, a process or a browser.
LIVE = ("live_server", "subprocess", "Visit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make quick` leaves out."""
    for item in items:
        module = getattr(item, "module", None)
        if any(hasattr(module, name) for name in LIVE):
            item.add_marker("live")


#: uvicorn's options: our own protocols, and those that it takes by itself.
EDGES: dict[str, dict[str, Any]] = {
    "ours": dict(PROTOCOLS),
    "stock": {"ws": "auto", "http": "auto", "ws_per_message_deflate": False},
}


@pytest.fixture
def anyio_backend() -> str:
    """What tests that are coroutines run on (`pytest.mark.anyio`)."""
    return "asyncio"


@pytest.fixture(scope="module", params=EDGES)
def edge(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options for `live_server`: whatever uses this holds on both kinds of server."""
    return EDGES[request.param]
