"""The routes that say whether a process lives, and whether it serves."""

import time
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from chatserver import Hub, MemoryBroker, health_routes, lifespan
from chatserver.app import create_app
from chatserver.brokers import Health
from chatserver.settings import Settings
from chatserver.testing import live_server
from tests.asgi import Edge


class Faulty(MemoryBroker):
    """A broker whose health the test says."""

    now = Health("down", 1234.5, "no answer from redis://ann:hunter2@localhost:6379")

    @property
    def health(self) -> Health:
        return self.now


def starlette() -> Starlette:
    return Starlette(routes=health_routes(), lifespan=lifespan)


def fastapi() -> FastAPI:
    app = FastAPI(lifespan=lifespan)
    app.router.routes.extend(health_routes())
    return app


def mounted() -> Starlette:
    return Starlette(routes=[Mount("/", routes=health_routes())], lifespan=lifespan)


def within() -> Starlette:
    """In an application without a hub, inside of one that has it."""
    return Starlette(routes=[Mount("/", Starlette(routes=health_routes()))], lifespan=lifespan)


def ready() -> Starlette:
    return create_app(Settings(token_secret="correct-horse-battery-staple-0123456789"))


@pytest.fixture(params=[starlette, fastapi, mounted, within, ready])
def app(request: pytest.FixtureRequest) -> Any:
    return request.param()


def test_a_server_that_lives_and_serves(app: Starlette) -> None:
    begun = time.time()
    app.state.hub = Hub()
    with TestClient(app) as client:
        alive, serves = client.get("/healthz"), client.get("/readyz")
    assert (alive.status_code, alive.json()) == (200, {"status": "ok"})
    broker = {"state": "up", "since": pytest.approx(begun, abs=5), "why": ""}
    assert (serves.status_code, serves.json()) == (200, {"status": "ready", "broker": broker})
    for answer in (alive, serves):
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-type"] == "application/json"


def test_a_broker_that_is_down(app: Starlette) -> None:
    app.state.hub = Hub(Faulty())
    with TestClient(app) as client:
        assert client.get("/healthz").status_code == 200
        serves = client.get("/readyz")
        assert client.head("/readyz").status_code == 503
    why = "no answer from redis://ann:[redacted]@localhost:6379"
    broker = {"state": "down", "since": 1234.5, "why": why}
    assert (serves.status_code, serves.json()) == (503, {"status": "unavailable", "broker": broker})


def test_a_server_that_stops(app: Starlette) -> None:
    app.state.hub = hub = Hub()
    with TestClient(app) as client:
        hub.admission.stopping = True
        serves = client.get("/readyz")
        assert (serves.status_code, serves.json()["status"]) == (503, "stopping")
        assert client.get("/healthz").status_code == 200
    with TestClient(app) as client:  # the same application, started again
        assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_only_to_be_read(app: Starlette, path: str) -> None:
    with TestClient(app) as client:
        head = client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["cache-control"] == "no-store"
        assert client.post(path).status_code == 405


def test_on_a_server(edge: Edge) -> None:
    with live_server(starlette(), **edge) as server:
        assert httpx2.get(f"{server.http}/healthz").json() == {"status": "ok"}
        assert httpx2.head(f"{server.http}/readyz").status_code == 200


def test_they_are_in_no_description() -> None:
    assert "/healthz" not in fastapi().openapi()["paths"]
