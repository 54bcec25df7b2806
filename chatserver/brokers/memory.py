"""The broker of a single process: everything is in memory, and lost with the process."""

import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping

from chatserver.brokers.base import Broker, Control, Health
from chatserver.brokers.workers import check_one_process
from chatserver.publication import (
    ClientInfo,
    Delivery,
    History,
    Joined,
    Left,
    Payload,
    Position,
    Publication,
    payload_size,
)
from chatserver.rules import Rules

__all__ = ["MemoryBroker"]

#: Seconds for which a publish with the same id delivers nothing.
ID_TTL = 300.0
#: Bytes that a retained publication or a remembered id counts for besides its content.
OVERHEAD = 256
#: Before a client's identifier, as the id of its last will: a lone surrogate, so no publisher's id
#: is the same.
WILL = "\ud800"


class MemoryBroker(Broker):
    """Keeps streams and presence in this process's memory.

    Nothing here waits, so one lock makes each step atomic on every event loop and thread.
    A channel without history and subscribers is forgotten; if it comes back, it has a new
    epoch. There is no timer: expired data is dropped by the next call.

    The lease of an entry is that of its event loop: if the loop was closed with the client still
    in the channel, the hub lets the entry lapse.

    Args:
        history_size: Publications kept per channel at most; 0 keeps none.
        history_ttl: Seconds for which a publication is kept at most.
        history_memory: The most bytes of all histories and remembered ids together. Beyond,
            the history of the channel that had no publication for longest is dropped first. Ids
            take half of it at most; beyond, the oldest are forgotten before their five minutes.
        clock: Returns seconds that never go back.
    """

    def __init__(
        self,
        *,
        history_size: int = 100,
        history_ttl: float = 300.0,
        history_memory: int = 64 * 1024 * 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(Rules(history_size=history_size, history_ttl=history_ttl))
        self._memory = history_memory
        self._clock = clock
        self._since = time.time()
        self._lock = threading.Lock()
        self._streams: dict[str, _Stream] = {}
        self._subscribed: set[str] = set()
        # Channels with history, and when their newest publication came; the oldest first.
        self._ageing: OrderedDict[str, float] = OrderedDict()
        self._history_bytes = 0
        # (channel, id) of recent publications, with position and time; the oldest first.
        self._ids: OrderedDict[tuple[str, str], tuple[Position, float]] = OrderedDict()
        self._id_bytes = 0
        self._presence: dict[str, dict[str, tuple[ClientInfo, Payload | None]]] = {}

    @property
    def channels(self) -> int:
        """How many channels are remembered now."""
        with self._lock:
            self._forget(self._clock())
            return len(self._streams)

    @property
    def memory(self) -> int:
        """Bytes that histories and remembered ids count for now."""
        with self._lock:
            return self._history_bytes + self._id_bytes

    async def start(self) -> None:
        """See `Broker`; there is nothing to connect to.

        Raises:
            InvalidSetting: The server has several workers, and this process is one of them.
        """
        check_one_process()

    async def stop(self) -> None:
        """See `Broker`; there is nothing to give up."""

    @property
    def health(self) -> Health:
        """See `Broker`; it is up as long as the process lives."""
        return Health("up", self._since)

    async def publish(
        self,
        channel: str,
        data: Payload,
        *,
        id: str | None = None,
        info: ClientInfo | None = None,
        keep: bool = True,
        skip: str = "",
    ) -> Position:
        with self._lock:
            return self._publish(channel, data, id, info, keep=keep, skip=skip)

    async def subscribe(self, channel: str) -> Position:
        with self._lock:
            self._subscribed.add(channel)
            return self._stream(channel).position

    async def unsubscribe(self, channel: str) -> None:
        with self._lock:
            self._subscribed.discard(channel)
            self._forget(self._clock())
            if channel not in self._ageing:
                self._streams.pop(channel, None)

    async def tops(self, known: Mapping[str, Position]) -> Mapping[str, Position]:
        with self._lock:
            return {channel: self._stream(channel).position for channel in known}

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
            # A channel without history and subscribers is not remembered because it was read.
            stream = self._streams.get(channel) or _Stream()
            self._trim(channel, stream, now)
            kept = tuple(stream.read(since, reverse))
            return History(kept if limit is None else kept[: max(limit, 0)], stream.position)

    async def enter(
        self, channel: str, info: ClientInfo, *, last_will: Payload | None = None
    ) -> None:
        with self._lock:
            clients = self._presence.setdefault(channel, {})
            known = info.client in clients
            clients[info.client] = (info, last_will)
            if not known:
                self._announce(Joined(channel, info))

    async def leave(self, channel: str, client: str) -> None:
        with self._lock:
            self._remove(channel, client)

    async def lapse(self, channel: str, client: str) -> None:
        with self._lock:
            last_will = self._remove(channel, client)
            if last_will is not None:
                self._publish(channel, last_will, WILL + client, None)

    async def present(self, channel: str) -> dict[str, ClientInfo]:
        with self._lock:
            entries = self._presence.get(channel, {})
            return {client: info for client, (info, _) in entries.items()}

    async def tell(self, control: Control) -> None:
        self.control(control)

    def _publish(
        self,
        channel: str,
        data: Payload,
        id: str | None,
        info: ClientInfo | None,
        *,
        keep: bool = True,
        skip: str = "",
    ) -> Position:
        now = self._clock()
        self._forget(now)
        if id is not None and (channel, id) in self._ids:
            return self._ids[channel, id][0]
        if keep:
            stream = self._stream(channel)
            publication = stream.next(channel, data, info, skip)
            self._retain(channel, stream, publication, now)
        else:
            stream = self._streams.get(channel) or _Stream()
            publication = Publication(channel, data, 0, stream.epoch, info, skip)
        position = stream.position
        if id is not None:
            self._remember(channel, id, position, now)
        self._limit_memory()
        # Under the lock, so that publications reach the hub in the order of offsets.
        self.deliver(publication)
        return position

    def _stream(self, channel: str) -> "_Stream":
        stream = self._streams.get(channel)
        if stream is None:
            stream = self._streams[channel] = _Stream()
        return stream

    # Presence

    def _remove(self, channel: str, client: str) -> Payload | None:
        """Remove a client from a channel's presence; returns its last will."""
        clients = self._presence.get(channel, {})
        info, last_will = clients.pop(client, (None, None))
        if not clients:
            self._presence.pop(channel, None)
        if info is not None:
            self._announce(Left(channel, info))
        return last_will

    def _announce(self, delivery: Delivery) -> None:
        if self.rules(delivery.channel).join_leave:
            self.deliver(delivery)

    # What is kept, and for how long

    def _retain(
        self, channel: str, stream: "_Stream", publication: Publication, now: float
    ) -> None:
        rules = self.rules(channel)
        if rules.history_size <= 0 or rules.history_ttl <= 0:
            self._drop(channel, stream)
            return
        self._history_bytes += stream.retain(publication, now)
        self._trim(channel, stream, now)
        self._ageing[channel] = now
        self._ageing.move_to_end(channel)

    def _trim(self, channel: str, stream: "_Stream", now: float) -> None:
        rules = self.rules(channel)
        self._history_bytes -= stream.trim(rules.history_size, now - rules.history_ttl)

    def _drop(self, channel: str, stream: "_Stream") -> None:
        """Drop a channel's history, and the channel itself if it has no subscriber."""
        self._history_bytes -= stream.trim(0, 0.0)
        self._ageing.pop(channel, None)
        if channel not in self._subscribed:
            self._streams.pop(channel, None)

    def _remember(self, channel: str, id: str, position: Position, now: float) -> None:
        self._ids[channel, id] = position, now
        self._id_bytes += len(id) + OVERHEAD

    def _forget_oldest_id(self) -> None:
        (_, id), _ = self._ids.popitem(last=False)
        self._id_bytes -= len(id) + OVERHEAD

    def _limit_memory(self) -> None:
        while self._id_bytes > self._memory // 2:
            self._forget_oldest_id()
        while self._history_bytes + self._id_bytes > self._memory and self._ageing:
            channel = next(iter(self._ageing))
            stream = self._streams[channel]
            if len(self._ageing) > 1 or len(stream.retained) == 1:
                self._drop(channel, stream)
            else:
                self._history_bytes -= stream.trim(len(stream.retained) // 2, 0.0)

    def _forget(self, now: float) -> None:
        """Drop what is too old."""
        while self._ids and next(iter(self._ids.values()))[1] <= now - ID_TTL:
            self._forget_oldest_id()
        # If rules differ, a channel that is kept for longer may stand before others. Their old
        # publications are never read, but they count until they are dropped.
        while self._ageing:
            channel, newest = next(iter(self._ageing.items()))
            if newest > now - self.rules(channel).history_ttl:
                return
            self._drop(channel, self._streams[channel])


class _Stream:
    """One channel's publications: all are counted, the newest are retained."""

    __slots__ = ("epoch", "offset", "retained")

    def __init__(self) -> None:
        self.epoch = secrets.token_hex(4)
        self.offset = 0
        # Each with the time at which it was published, and the bytes that it counts for.
        self.retained: deque[tuple[float, Publication, int]] = deque()

    @property
    def position(self) -> Position:
        return Position(self.offset, self.epoch)

    def next(self, channel: str, data: Payload, info: ClientInfo | None, skip: str) -> Publication:
        self.offset += 1
        return Publication(channel, data, self.offset, self.epoch, info, skip)

    def retain(self, publication: Publication, now: float) -> int:
        """Keep a publication; returns the bytes that it counts for."""
        # Each has its channel's name, which may be longer than what it says.
        size = payload_size(publication.data) + payload_size(publication.channel) + OVERHEAD
        self.retained.append((now, publication, size))
        return size

    def trim(self, size: int, oldest: float) -> int:
        """Keep the last `size` publications, and of these the ones newer than `oldest`.

        Returns:
            The bytes that the dropped ones counted for.
        """
        retained, dropped = self.retained, 0
        while retained and (len(retained) > size or retained[0][0] <= oldest):
            dropped += retained.popleft()[2]
        return dropped

    def read(self, since: Position | None, reverse: bool) -> Iterator[Publication]:
        if since is not None and since.epoch != self.epoch:
            return
        for _, publication, _ in reversed(self.retained) if reverse else self.retained:
            if (
                since is None
                or (reverse and publication.offset < since.offset)
                or (not reverse and publication.offset > since.offset)
            ):
                yield publication
