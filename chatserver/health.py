"""Two routes that say whether a process lives, and whether it serves: for probes, not for people.

    app = Starlette(routes=[*health_routes(), ...], lifespan=lifespan)
    app.router.routes.extend(health_routes())           # FastAPI

`GET /healthz` is answered with 200 as long as the process answers at all: restart it otherwise.
`GET /readyz` is answered with 200 while it accepts clients and its broker works, with 503 while it
doesn't: send it no clients meanwhile, but don't restart it. Neither asks for a token.
"""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from chatserver.brokers import Health
from chatserver.endpoints.application import hub_in, note_outer
from chatserver.logs import redact

__all__ = ["health_routes"]

#: An answer counts for the moment only.
HEADERS = {"Cache-Control": "no-store"}


def health_routes() -> list[BaseRoute]:
    """The routes `/healthz` and `/readyz`, for the application that has the hub.

    The answer to `/readyz` is `{"status": …, "broker": {"state": …, "since": …, "why": …}}`.
    `status` is "ready", "unavailable" while the broker is down, or "stopping" after SIGTERM, while
    clients are told to come back. `state` is "up" or "down", `since` the Unix time in seconds at
    which that began, and `why` the reason, empty if it is up.
    """
    return [
        Route("/healthz", _healthz, name="healthz", include_in_schema=False),
        Route("/readyz", _readyz, name="readyz", include_in_schema=False),
    ]


async def _healthz(_: Request) -> Response:
    return JSONResponse({"status": "ok"}, headers=HEADERS)


async def _readyz(request: Request) -> Response:
    note_outer(request.scope)
    hub = hub_in(request.scope)
    health = hub.broker.health
    status = _status(health, stopping=hub.admission.stopping)
    broker = {"state": health.state, "since": health.since, "why": redact(health.why)}
    return JSONResponse(
        {"status": status, "broker": broker},
        status_code=200 if status == "ready" else 503,
        headers=HEADERS,
    )


def _status(health: Health, *, stopping: bool) -> str:
    if stopping:
        return "stopping"
    return "ready" if health.state == "up" else "unavailable"
