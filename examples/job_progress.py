"""Progress of a job that runs in a thread: whoever follows it, however late, sees how far it is.

    uvicorn examples.job_progress:app

and in a second terminal:

    curl -X POST http://127.0.0.1:8000/jobs
    {"job":"5f2c9d"}
    python -m websockets ws://127.0.0.1:8000/jobs/5f2c9d
    < {"type":"progress","done":3,"of":10}

The thread has no event loop, so it publishes with `publish_from_thread`.
"""

import threading
import time
from uuid import uuid4

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute

from chatserver import Endpoint, FromPath, Hub, Message, lifespan

STEPS = 10


class Progress(Message):
    done: int
    of: int


class Job(Endpoint):
    job: FromPath[str]
    channels = ("job:{job}",)
    encoding = "json"
    history = 1  # who comes late begins with the newest
    sends = Progress


def work(job: str, hub: Hub) -> None:
    """Stands for work that takes time and is not asynchronous."""
    for done in range(1, STEPS + 1):
        time.sleep(0.2)
        hub.publish_from_thread(f"job:{job}", Progress(done=done, of=STEPS))


async def start(request: Request) -> JSONResponse:
    job = uuid4().hex[:6]
    threading.Thread(target=work, args=(job, request.app.state.hub), daemon=True).start()
    return JSONResponse({"job": job}, status_code=202)


app = Starlette(
    routes=[Route("/jobs", start, methods=["POST"]), WebSocketRoute("/jobs/{job}", Job)],
    lifespan=lifespan,
)
