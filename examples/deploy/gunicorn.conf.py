"""gunicorn with our protocols: `gunicorn -c gunicorn.conf.py rooms:app`.

It needs `pip install gunicorn uvicorn-worker`.
"""

from typing import Any

bind = "127.0.0.1:8000"
worker_class = "uvicorn_worker.UvicornWorker"
# More than one need CHATSERVER_BROKER: without it each would have half of the clients.
workers = 1


def on_starting(server: Any) -> None:
    """Tell uvicorn's worker what `chatserver run` tells uvicorn."""
    server.worker_class.CONFIG_KWARGS.update(
        ws="chatserver.server:WebSocketProtocol",
        http="chatserver.server:HttpProtocol",
        timeout_graceful_shutdown=3,
    )
