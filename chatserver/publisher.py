"""Publish from programs that are no server: a Django view, a Celery task, a script.

with Publisher("redis://127.0.0.1:6379/0") as publisher:
    publisher.publish("chat", "The build is done.")
"""

import asyncio
import os
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar
from weakref import WeakSet

from chatserver.brokers import remote_broker
from chatserver.brokers.remote import RemoteBroker
from chatserver.errors import BrokerUnavailable
from chatserver.hub.fanout import running_loop
from chatserver.publication import Payload, Position, check_name, payload

__all__ = ["Publisher"]

T = TypeVar("T")


class Publisher:
    """Publishes to the broker that servers use, whether one of them is running or not.

    It blocks until the broker has a publication. It may be used by several threads, be made before
    a process forks, and stay open as long as the process lives: it connects on first use, and
    again after a failure. In an `atexit` function it publishes if it is connected by then; to
    connect, Python has no threads any more.

    Args:
        url: That of the servers' broker; see `broker_from_url`.
        timeout: Seconds that connecting may take, and that the answer to a publication may.

    Raises:
        ValueError: The URL can't be used.
        ModuleNotFoundError: A package is missing; the sentence says what to install.
    """

    def __init__(self, url: str, *, timeout: float = 5.0) -> None:
        self._url = url
        self._timeout = timeout
        remote_broker(url)  # whether it can be used is said now
        self._forget()
        _publishers.add(self)

    def _forget(self) -> None:
        """Begin anew: in a process that was forked, no other thread is there any more."""
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
        if running_loop() is not None:
            raise RuntimeError(
                "Publisher.publish() would block this thread's event loop; "
                "use 'await asyncio.to_thread(publisher.publish, ...)' there"
            )
        with self._open() as outlet:
            return outlet.publish(channel, encoded, id)

    def close(self) -> None:
        """Close the connection, once no thread publishes; the next `publish` opens it again."""
        with self._lock:
            outlet, self._outlet = self._outlet, None
            is_idle = outlet is not None and outlet.users == 0
        if outlet is not None and is_idle:
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

    @contextmanager
    def _open(self) -> Iterator["_Outlet"]:
        """The connection, for one use; it is closed after its last one, if it has failed."""
        with self._lock:
            if self._outlet is None or self._outlet.has_failed:
                options = {"publish_timeout": self._timeout, "publish_only": True}
                self._outlet = _Outlet(remote_broker(self._url, **options), self._timeout)
            outlet = self._outlet
            outlet.users += 1
        try:
            yield outlet
        finally:
            with self._lock:
                outlet.users -= 1
                # A thread that connects again and again is of no use to a script.
                if outlet.has_failed and self._outlet is outlet:
                    self._outlet = None
                is_done = outlet.users == 0 and self._outlet is not outlet
            if is_done:
                outlet.close()


_publishers: "WeakSet[Publisher]" = WeakSet()


def _begin_anew() -> None:
    for publisher in tuple(_publishers):
        publisher._forget()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_begin_anew)


class _Outlet:
    """A broker, and the thread with its event loop; it connects at once.

    Attributes:
        users: How many threads use it now.
    """

    def __init__(self, broker: RemoteBroker, timeout: float) -> None:
        self.users = 0
        self._broker = broker
        self._timeout = timeout
        self._is_lost = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="chatserver-publisher", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError as error:  # from Python 3.12 on, when the interpreter ends
            self._loop.close()
            raise BrokerUnavailable(f"The broker can't be reached: {error}.") from None
        self._starting: asyncio.Task[None] | None = None
        self._start = self._begin(self._start_broker())

    @property
    def has_failed(self) -> bool:
        """Whether it could not connect in time, or has lost its connection for that long."""
        return self._is_lost or (self._start.done() and self._start.exception() is not None)

    def publish(self, channel: str, data: Payload, id: str | None) -> Position:
        """Publish, and wait for the answer.

        Raises:
            BrokerUnavailable: It can't be reached, or there is no answer in time.
        """
        try:
            self._start.result(self._timeout)
        except TimeoutError:
            self._is_lost = True  # the next publish begins anew
            raise BrokerUnavailable(
                f"The broker did not answer within {self._timeout:g} s: {self._broker.health.why}"
            ) from None
        future = self._begin(self._broker.publish(channel, data, id=id))
        try:
            return future.result()
        except BrokerUnavailable:
            self._is_lost = self._broker.health.state == "down"
            raise
        except BaseException:  # Ctrl-C, for example
            future.cancel()
            raise

    def close(self) -> None:
        """Stop the broker and end the thread; nobody may use it any more."""
        self._begin(self._stop_broker()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start_broker(self) -> None:
        self._starting = asyncio.current_task()
        await self._broker.start()

    async def _stop_broker(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        await self._broker.stop()

    def _begin(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
