"""The broker of a single process: everything in memory, gone with the process."""

import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator

from chatserver.brokers.base import Broker
from chatserver.publication import ClientInfo, History, Payload, Position, Publication

__all__ = ["MemoryBroker"]

#: Seconds for which a publish with the same id is answered without delivering again.
ID_TTL = 300.0


class MemoryBroker(Broker):
    """Keeps streams and presence in this process's memory.

    Nothing here waits, so one lock makes each step atomic on every event loop and thread.
    A channel with neither history nor subscribers is forgotten; should it come back, it
    has a new epoch. There is no timer: what is too old goes when anything else happens.

    Args:
        history_size: Publications kept per channel at most; 0 keeps none.
        history_ttl: Seconds for which a publication is kept at most.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        *,
        history_size: int = 100,
        history_ttl: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.history_size = history_size
        self.history_ttl = history_ttl
        self._clock = clock
        self._lock = threading.Lock()
        self._streams: dict[str, _Stream] = {}
        self._subscribed: set[str] = set()
        # Channels with history, the one longest without a publication first.
        self._ageing: OrderedDict[str, float] = OrderedDict()
        # (channel, id) of recent publications, oldest first, with their time.
        self._ids: OrderedDict[tuple[str, str], tuple[Position, float]] = OrderedDict()
        self._presence: dict[str, dict[str, ClientInfo]] = {}

    @property
    def channels(self) -> int:
        """How many channels are remembered now."""
        with self._lock:
            self._forget(self._clock())
            return len(self._streams)

    async def publish(
        self,
        channel: str,
        data: Payload,
        *,
        id: str | None = None,
        info: ClientInfo | None = None,
    ) -> Position:
        with self._lock:
            now = self._clock()
            self._forget(now)
            if id is not None and (channel, id) in self._ids:
                return self._ids[channel, id][0]
            stream = self._stream(channel)
            publication = stream.append(channel, data, info, now)
            self._retain(channel, stream, now)
            position = stream.position
            if id is not None:
                self._ids[channel, id] = position, now
            # Under the lock, so that publications reach the hub in the order of offsets.
            self.deliver(publication)
            return position

    async def subscribe(self, channel: str) -> None:
        with self._lock:
            self._subscribed.add(channel)
            self._stream(channel)

    async def unsubscribe(self, channel: str) -> None:
        with self._lock:
            self._subscribed.discard(channel)
            self._forget(self._clock())
            if channel not in self._ageing:
                self._streams.pop(channel, None)

    async def history(
        self,
        channel: str,
        *,
        since: Position | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> History:
        with self._lock:
            now = self._clock()
            self._forget(now)
            # A channel that nobody follows or fills isn't worth remembering for a question.
            stream = self._streams.get(channel) or _Stream()
            stream.trim(self.history_size, now - self.history_ttl)
            kept = tuple(stream.read(since, reverse))
            return History(kept if limit is None else kept[: max(limit, 0)], stream.position)

    async def enter(self, channel: str, info: ClientInfo) -> None:
        with self._lock:
            self._presence.setdefault(channel, {})[info.client] = info

    async def leave(self, channel: str, client: str) -> None:
        with self._lock:
            clients = self._presence.get(channel, {})
            clients.pop(client, None)
            if not clients:
                self._presence.pop(channel, None)

    async def present(self, channel: str) -> dict[str, ClientInfo]:
        with self._lock:
            return dict(self._presence.get(channel, {}))

    def _stream(self, channel: str) -> "_Stream":
        stream = self._streams.get(channel)
        if stream is None:
            stream = self._streams[channel] = _Stream()
        return stream

    def _retain(self, channel: str, stream: "_Stream", now: float) -> None:
        stream.trim(self.history_size, now - self.history_ttl)
        if stream.retained:
            self._ageing[channel] = now
            self._ageing.move_to_end(channel)
        elif channel not in self._subscribed:
            del self._streams[channel]

    def _forget(self, now: float) -> None:
        while self._ids and next(iter(self._ids.values()))[1] <= now - ID_TTL:
            self._ids.popitem(last=False)
        while self._ageing and next(iter(self._ageing.values())) <= now - self.history_ttl:
            channel, _ = self._ageing.popitem(last=False)
            if channel in self._subscribed:
                self._streams[channel].retained.clear()
            else:
                del self._streams[channel]


class _Stream:
    """One channel's publications: all are counted, the newest are retained."""

    __slots__ = ("epoch", "offset", "retained")

    def __init__(self) -> None:
        self.epoch = secrets.token_hex(4)
        self.offset = 0
        self.retained: deque[tuple[float, Publication]] = deque()

    @property
    def position(self) -> Position:
        return Position(self.offset, self.epoch)

    def append(
        self, channel: str, data: Payload, info: ClientInfo | None, now: float
    ) -> Publication:
        self.offset += 1
        publication = Publication(channel, data, self.offset, self.epoch, info)
        self.retained.append((now, publication))
        return publication

    def trim(self, size: int, oldest: float) -> None:
        """Keep the last `size`, and of these what is newer than `oldest`."""
        retained = self.retained
        while retained and (len(retained) > size or retained[0][0] <= oldest):
            retained.popleft()

    def read(self, since: Position | None, reverse: bool) -> Iterator[Publication]:
        if since is not None and since.epoch != self.epoch:
            return
        for _, publication in reversed(self.retained) if reverse else self.retained:
            if (
                since is None
                or (reverse and publication.offset < since.offset)
                or (not reverse and publication.offset > since.offset)
            ):
                yield publication
