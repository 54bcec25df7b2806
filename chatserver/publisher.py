"""Publish from programs that are no server: a Django view, a Celery task, a script.

with Publisher("redis://127.0.0.1:6379/0") as publisher:
    publisher.publish("chat", "The build is done.")
"""

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

from chatserver.brokers import remote_broker
from chatserver.brokers.remote import RemoteBroker
from chatserver.errors import BrokerUnavailable
from chatserver.publication import Position, check_name, payload

__all__ = ["Publisher"]

T = TypeVar("T")


class Publisher:
    """Publishes to the broker that servers use, whether one of them is running or not.

    It blocks until the broker has a publication. It may be used by several threads, be made before
    a process forks, and stay open as long as the process lives: it connects on first use, and
    again after a failure.

    Args:
        url: That of the servers' broker; see `broker_from_url`.
        timeout: Seconds after which a publication without an answer is an error.

    Raises:
        ValueError: The URL can't be used.
        ModuleNotFoundError: A package is missing; the sentence says what to install.
    """

    def __init__(self, url: str, *, timeout: float = 5.0) -> None:
        self._url = url
        self._timeout = timeout
        remote_broker(url)  # whether it can be used is said now
        self._lock = threading.Lock()
        self._outlet: _Outlet | None = None

    def publish(self, channel: str, data: Any, *, id: str | None = None) -> Position:
        """Publish to a channel, with what its servers keep of it.

        Args:
            channel: The channel's name, not empty.
            data: Text, bytes, or anything that can be encoded as JSON.
            id: Chosen by the publisher. A second publish with the same id within five minutes
                delivers nothing, and returns the position of the first; so a task that is run
                again publishes once.

        Returns:
            The publication's position. The broker has stored it.

        Raises:
            TypeError: The data can't be encoded as JSON, or the channel or id is not a string.
            ValueError: The channel's name or the id is empty, or text has lone surrogates.
            BrokerUnavailable: It is not certain that the broker has stored it; one sentence says
                why. Publish it again with the same id.
            RuntimeError: This thread runs an event loop, which it would block.
        """
        check_name("a channel's name", channel)
        if id is not None:
            check_name("an id", id)
        encoded = payload(data)
        if _runs_an_event_loop():
            raise RuntimeError(
                "Publisher.publish() would block this thread's event loop; "
                "use 'await asyncio.to_thread(publisher.publish, ...)' there"
            )
        outlet = self._open()
        try:
            return outlet.run(outlet.broker.publish(channel, encoded, id=id))
        except BrokerUnavailable:
            if outlet.broker.health.state == "down":
                self.close()  # a thread that connects again and again is of no use to a script
            raise

    def close(self) -> None:
        """Close the connection; the next `publish` opens it again."""
        with self._lock:
            outlet, self._outlet = self._outlet, None
        if outlet is not None and outlet.process == os.getpid():
            outlet.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> "_Outlet":
        with self._lock:
            # A thread of a process that has forked is not there in its child.
            if self._outlet is None or self._outlet.process != os.getpid():
                broker = remote_broker(self._url, publish_timeout=self._timeout, publish_only=True)
                self._outlet = _Outlet(broker)
            return self._outlet


class _Outlet:
    """A started broker, and the thread with its event loop.

    Raises:
        BrokerUnavailable: It can't be reached.
    """

    def __init__(self, broker: RemoteBroker) -> None:
        self.broker = broker
        self.process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="chatserver-publisher", daemon=True
        )
        self._thread.start()
        try:
            self.run(broker.start())
        except BaseException:
            self.close()
            raise

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end, in that thread."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C, for example
            future.cancel()
            raise

    def close(self) -> None:
        """Stop the broker and end the thread."""
        self.run(self.broker.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _runs_an_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
