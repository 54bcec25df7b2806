"""Redis and Valkey, 6.2 and newer (a Cluster: 7.0), as the engine of a broker.

What is stored under which key, and what is announced, stands in `scripts`.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import msgspec

from chatserver.brokers.base import Control
from chatserver.brokers.engine import (
    UNREADABLE,
    Answers,
    Draft,
    Engine,
    Enter,
    Heard,
    Interrupted,
    Leave,
    Read,
    Receive,
    read_control,
    write_control,
)
from chatserver.brokers.redis.addresses import nodes_for
from chatserver.brokers.redis.connections import (
    Answer,
    Ear,
    News,
    Nodes,
    Pipe,
    answer_of,
    pack,
)
from chatserver.brokers.redis.rights import Command, check_rights, needed
from chatserver.brokers.redis.scripts import scripts
from chatserver.brokers.redis.stored import (
    announced,
    as_bytes,
    channel_and_client,
    decode_info,
    entry_of,
    history_of,
    member_of,
    position_of,
    present_in,
    publication_of,
)
from chatserver.brokers.remote import RemoteBroker
from chatserver.errors import BrokerUnavailable
from chatserver.publication import (
    ClientInfo,
    History,
    Joined,
    Left,
    Position,
)
from chatserver.rules import Rules

__all__ = ["RedisBroker", "RedisEngine"]

logger: logging.Logger = logging.getLogger("chatserver")

Question = TypeVar("Question")
Made = TypeVar("Made")

PREFIX = "chatserver"
#: Versions of Redis that are new enough, for one node and for a Cluster.
OLDEST, OLDEST_CLUSTER = (6, 2), (7, 0)
#: Milliseconds for which a client's last will is not published again.
WILL_TTL = 300_000
#: Bytes that one script appends and announces, about. All that it announces stands in the buffers
#: of the subscribers before any of it is written, and Redis ends who has too much there (its
#: `client-output-buffer-limit pubsub`, 32 MB by default).
MOST_APPENDED = 1024 * 1024
#: What the user at an address has to be allowed.
RULE = f"The user at {{}} needs ~{PREFIX}:* &{PREFIX}:* +@all -@admin -@dangerous +info."
#: A position in no stream.
NOWHERE = Position(0, "")
#: More than any offset, and than any number of publications.
LARGE = 2**62


class RedisBroker(RemoteBroker):
    """Carries publications through Redis or Valkey.

    What was acknowledged is in Redis's memory. Whether it survives a crash of Redis is a matter
    of its `appendfsync`: with `everysec` the last second may be lost, and a replica that takes
    over may lack what its master had not sent yet. Subscribers are told of either.

    Args:
        url: See `nodes_for`; `redis://localhost:6379/0` for example.
        rules: What is kept of every channel for which the hub has no rules.
        publish_timeout: Seconds until a question without an answer is `BrokerUnavailable`.
        lease: Seconds after which the clients of a killed process are gone.
        publish_only: See `RemoteBroker`.

    Raises:
        ValueError: The URL can't be used; the sentence does not hold its password.
    """

    def __init__(
        self,
        url: str,
        *,
        rules: Rules | None = None,
        publish_timeout: float = 5.0,
        lease: float = 30.0,
        publish_only: bool = False,
    ) -> None:
        super().__init__(
            RedisEngine(nodes_for(url)),
            rules=rules,
            publish_timeout=publish_timeout,
            lease=lease,
            publish_only=publish_only,
        )


class RedisEngine(Engine):
    """See `Engine`."""

    at_once: int = 8  # written one behind the other, on one connection

    def __init__(self, nodes: Nodes) -> None:
        self.address: str = nodes.address
        self._nodes = nodes
        self._scripts = scripts(sharded=nodes.sharded)
        self._channels: dict[bytes, str] = {}  # followed, by the name they are announced under
        # Position and id of what was announced last in each of them, now and before the connection
        # was lost.
        self._latest: dict[str, tuple[Position, bytes]] = {}
        self._before: dict[str, tuple[Position, bytes]] = {}
        # Of each node the process, and whether it keeps what the one before had; see `scripts`.
        self._servers: list[tuple[str, str]] = []
        self._leases = self._key("{leases}")
        self._controls = self._key("{control}", str(nodes.db))

    def _key(self, *parts: str) -> bytes:
        return as_bytes(":".join((PREFIX, *parts)))

    def _tag(self, channel: str) -> str:
        """A channel's name as the hash tag of its keys (Redis Cluster specification)."""
        if not channel:
            return "{%}"  # an empty tag is none
        for sign, code in (("%", "%25"), ("{", "%7B"), ("}", "%7D")):
            channel = channel.replace(sign, code)
        return f"{{{channel}}}"

    def _keys(self, channel: str, *names: str) -> list[bytes]:
        tag = self._tag(channel)
        return [self._key(tag, name) for name in names]

    def _news(self, channel: str) -> bytes:
        """The name under which a channel's news are announced; databases share their names."""
        return self._key(self._tag(channel), "news", str(self._nodes.db))

    def _members(self, process: str) -> bytes:
        return self._key(f"{{{process}}}", "entries")

    # Life

    async def connect(self) -> None:
        await self._nodes.connect()
        self._servers = []
        for pipe in self._nodes.pipes:
            await check_rights(pipe, self._needed(), RULE.format(self.address))
            info = _info(await pipe.ask_one("INFO"))
            self._check(info)
            self._servers.append(_server(info))
            loading = [pack("SCRIPT", "LOAD", script.text) for script in self._scripts.values()]
            for answer in await pipe.ask(loading):
                _raise(answer_of(answer))
        self._channels = {}
        self._before, self._latest = self._before | self._latest, {}
        await self._nodes.ears[self._nodes.place(self._controls)].subscribe([self._controls])

    def _needed(self) -> Sequence[Command]:
        channel = self._keys("channel", "top", "stream", "id:", "will:", "present")
        entries, shard = self._members("process"), "S" if self._nodes.sharded else ""
        news = self._news("channel")
        return needed(channel, news, self._leases, entries, self._controls, shard)

    def _check(self, info: Mapping[str, str]) -> None:
        version = info.get("redis_version", "0")
        oldest = OLDEST_CLUSTER if self._nodes.sharded else OLDEST
        if tuple(map(int, version.split(".")[:2])) < oldest:
            needed = ".".join(map(str, oldest))
            raise BrokerUnavailable(
                f"Redis {version} at {self.address} is too old: {needed} or newer is needed."
            )
        if info.get("role") == "slave":
            raise Interrupted("it is a read-only replica; name its master, or the Sentinels")
        if info.get("loading") == "1":
            raise Interrupted("it is loading its data")

    async def close(self) -> None:
        await self._nodes.close()

    async def ping(self) -> None:
        await asyncio.gather(
            *(pipe.ask_one("PING") for pipe in self._nodes.pipes),
            *(ear.ping() for ear in self._nodes.ears),
        )

    async def listen(self, receive: Receive) -> None:
        async def take(news: list[News]) -> None:
            await receive([heard for name, data in news for heard in self._heard(name, data)])

        async with asyncio.TaskGroup() as group:
            for ear in self._nodes.ears:
                group.create_task(ear.hand_on(take))

    def _heard(self, name: bytes, data: bytes) -> Iterator[Heard]:
        channel = self._channels.get(name)
        try:
            if name == self._controls:
                yield read_control(data)
            elif channel is not None and data[:2] in (b"+ ", b"- "):
                about = Joined if data[:1] == b"+" else Left
                yield about(channel, decode_info(data[2:]))
            elif channel is not None:
                for position, id, entry in announced(data):
                    if position.offset:
                        self._latest[channel] = position, id
                    yield publication_of(channel, position, entry)
        except UNREADABLE:
            logger.warning("Redis has announced what can't be read, in channel %.100r", channel)

    # Streams

    async def follow(self, channels: Mapping[str, Rules]) -> Answers[Position]:
        names = {self._news(channel): channel for channel in channels}
        self._channels.update(names)
        await asyncio.gather(*(ear.subscribe(some) for ear, some in self._by_ear(names)))
        answers = await self._evaluate(
            self._top(channel, rules, *self._before.get(channel, (NOWHERE, b"")))
            for channel, rules in channels.items()
        )
        tops = [_then(answer, position_of) for answer in answers]
        for channel, top in zip(channels, tops, strict=True):
            if isinstance(top, Position):
                self._before.pop(channel, None)
        return tops

    async def unfollow(self, channels: Collection[str]) -> None:
        names = [self._news(channel) for channel in channels]
        for name, channel in zip(names, channels, strict=True):
            self._channels.pop(name, None)
            self._latest.pop(channel, None)
            self._before.pop(channel, None)
        await asyncio.gather(*(ear.unsubscribe(some) for ear, some in self._by_ear(names)))

    def _by_ear(self, names: Iterable[bytes]) -> list[tuple[Ear, list[bytes]]]:
        ears = self._nodes.ears
        if not ears:
            raise Interrupted("it is not connected")
        by_node: dict[int, list[bytes]] = {}
        for name in names:
            by_node.setdefault(self._nodes.place(name), []).append(name)
        return [(ears[node], some) for node, some in by_node.items()]

    async def tops(self, known: Mapping[str, Position]) -> Answers[Position]:
        answers = await self._evaluate(
            self._top(channel, None, position, self._id_at(channel, position))
            for channel, position in known.items()
        )
        return [_then(answer, position_of) for answer in answers]

    def _top(self, channel: str, rules: Rules | None, known: Position, id: bytes) -> "Call":
        """Ask for a stream's top.

        Args:
            channel: The channel's name.
            rules: What is kept of it; None leaves that as it is.
            known: A position that the stream should reach.
            id: The identifier of the publication there; empty if that is not known.
        """
        keys = self._keys(channel, "top", "stream")
        about = as_bytes(known.epoch), known.offset, id
        return "tops", keys, (_new_epoch(), *_kept(rules), *about)

    def _id_at(self, channel: str, known: Position) -> bytes:
        """The id at a known position; empty if it is not what was announced last."""
        position, id = self._latest.get(channel, (NOWHERE, b""))
        return id if position == known else b""

    async def append(self, drafts: Sequence[Draft]) -> Answers[Position]:
        """What one channel gets is one call: of its script, most is the same for each draft."""
        entries = [*_each(lambda draft: entry_of(draft.data, draft.info, draft.skip), drafts)]
        groups = _of_size(drafts, entries)
        found = await self._evaluate(
            self._append(channel, [(drafts[number], entries[number]) for number in numbers])
            for channel, numbers in groups
        )
        answers: list[Answer] = entries
        for (_, numbers), answer in zip(groups, found, strict=True):
            is_list = isinstance(answer, list)  # else one error for all
            some = map(answer_of, answer) if is_list else [answer] * len(numbers)
            for number, each in zip(numbers, some, strict=True):
                answers[number] = _then(each, position_of)
        return answers

    def _append(self, channel: str, drafts: Sequence[tuple[Draft, Answer]]) -> "Call":
        *keys, id_key = self._keys(channel, "top", "stream", "id:")
        arguments: list[bytes | str | int] = []
        for draft, entry in drafts:
            id = as_bytes(draft.id)
            keys.append(id_key + id)
            arguments += id, entry, "1" if draft.keep else "0", int(draft.id_ttl * 1000)
        kept = _kept(drafts[-1][0].rules)
        return "append", keys, (*arguments, self._news(channel), _new_epoch(), *kept)

    async def read(self, reads: Sequence[Read]) -> Answers[History]:
        answers = await self._evaluate(_each(self._read, reads))
        return [
            _then(answer, lambda found, read=read: history_of(read, found))
            for read, answer in zip(reads, answers, strict=True)
        ]

    def _read(self, read: Read) -> "Call":
        command, start, end = ("XREVRANGE", "+", "-") if read.reverse else ("XRANGE", "-", "+")
        limit = LARGE if read.limit is None else min(max(read.limit, 0), LARGE)
        epoch = b""
        if read.since is not None:
            first = read.since.offset + (-1 if read.reverse else 1)
            limit = limit if read.since.epoch else 0  # no stream's epoch is empty
            start = f"{min(max(first, 0), LARGE)}-0"
            epoch = as_bytes(read.since.epoch)
        keys = self._keys(read.channel, "top", "stream")
        return "read", keys, (_new_epoch(), epoch, command, start, end, limit)

    async def tell(self, controls: Sequence[Control]) -> Answers[None]:
        pipe = self._pipes[self._nodes.place(self._controls)]
        publish = "SPUBLISH" if self._nodes.sharded else "PUBLISH"
        commands = [pack(publish, self._controls, write_control(each)) for each in controls]
        return [_then(answer_of(answer), _nothing) for answer in await pipe.ask(commands)]

    # Presence

    async def enter_and_leave(self, changes: Sequence[Enter | Leave]) -> Answers[None]:
        # An entry is noted in its process's set first, and struck out last, so that whoever
        # buries the process finds all of them.
        enters = [each for each in changes if isinstance(each, Enter)]
        noted = iter(
            await self._members_of(
                "SADD", ((each.process, each.channel, each.info.client) for each in enters)
            )
        )
        failed = [_failure(next(noted)) if isinstance(each, Enter) else None for each in changes]
        answers = await self._evaluate(
            error or call for error, call in zip(failed, _each(self._change, changes), strict=True)
        )
        await self._members_of(
            "SREM",
            (
                # Of a dead process it is struck out even if it was another process's by then.
                (each.process or answer.decode(), each.channel, each.client)
                for each, answer in zip(changes, answers, strict=True)
                if isinstance(each, Leave) and isinstance(answer, bytes)
            ),
        )
        return [_then(answer, _nothing) for answer in answers]

    async def _members_of(
        self, command: str, entries: Iterable[tuple[str, str, str]]
    ) -> list[Answer]:
        """Add or remove entries, each of process, channel and client."""
        keys = ((self._members(process), member_of(*entry)) for process, *entry in entries)
        return await self._commands((key, pack(command, key, member)) for key, member in keys)

    def _change(self, change: Enter | Leave) -> "Call":
        return self._enter(change) if isinstance(change, Enter) else self._leave(change)

    def _enter(self, enter: Enter) -> "Call":
        info = msgspec.json.encode(enter.info)
        will = b"" if enter.last_will is None else entry_of(enter.last_will, enter.info, "")
        value = b"%s %d %s%s" % (enter.process.encode(), len(info), info, will)
        announce = self._news(enter.channel) if enter.announce else b""
        keys = self._keys(enter.channel, "present")
        return "enter", keys, (as_bytes(enter.info.client), value, announce, b"+ " + info)

    def _leave(self, leave: Leave) -> "Call":
        keys = self._keys(leave.channel, "present", "top", "stream", f"will:{leave.client}")
        return (
            "leave",
            keys,
            (
                as_bytes(leave.client),
                leave.process,
                "1" if leave.rules.join_leave else "0",
                "1" if leave.dead else "0",
                self._news(leave.channel),
                _new_epoch(),
                *_kept(leave.rules),
                WILL_TTL,
            ),
        )

    async def present(self, channels: Sequence[str]) -> Answers[dict[str, ClientInfo]]:
        keys = [self._keys(channel, "present")[0] for channel in channels]
        answers = await self._commands((key, pack("HGETALL", key)) for key in keys)
        entries = [_then(answer, present_in) for answer in answers]
        processes = {
            process for found in entries if isinstance(found, dict) for process, _ in found.values()
        }
        alive = await self._alive(processes)
        return [
            {client: info for client, (process, info) in found.items() if process in alive}
            if isinstance(found, dict)
            else found
            for found in entries
        ]

    async def _alive(self, processes: Collection[str]) -> set[str]:
        if not processes:
            return set()
        found = await self._evaluate_one("alive", [self._leases], *processes)
        return {process.decode() for process in found}

    async def renew(self, process: str, ttl: float, *, new: bool) -> bool:
        milliseconds = int(ttl * 1000)
        is_new = "1" if new else "0"
        held = await self._evaluate_one("renew", [self._leases], process, milliseconds, is_new)
        return bool(held)

    async def expired(self, ttl: float) -> Sequence[str]:
        found = await self._evaluate_one("expired", [self._leases], int(ttl * 1000))
        return [process.decode() for process in found]

    async def entries(self, process: str, limit: int) -> Sequence[tuple[str, str]]:
        key = self._members(process)
        pipe = self._pipes[self._nodes.place(key)]
        entries: list[tuple[str, str]] = []
        foreign: list[bytes] = []
        for member in await pipe.ask_one("SRANDMEMBER", key, limit):
            try:
                entries.append(channel_and_client(member))
            except ValueError:
                foreign.append(member)
        if foreign:
            await pipe.ask_one("SREM", key, *foreign)
        return entries

    async def end(self, process: str) -> None:
        key = self._members(process)
        left = await self._pipes[self._nodes.place(key)].ask_one("SCARD", key)
        leases = self._pipes[self._nodes.place(self._leases)]
        if left:
            await leases.ask_one("ZADD", self._leases, "XX", 0, process)
        else:
            await leases.ask_one("ZREM", self._leases, process, f"!{process}")

    # Commands

    @property
    def _pipes(self) -> list[Pipe]:
        if not self._nodes.pipes:
            raise Interrupted("it is not connected")
        return self._nodes.pipes

    async def _evaluate(self, calls: Iterable["Call | BrokerUnavailable"]) -> list[Answer]:
        """Call scripts; their answers, and errors in place of some."""
        made = list(calls)
        asked = [call for call in made if not isinstance(call, BrokerUnavailable)]
        answers = iter(await self._commands(map(self._packed, asked)))
        return [each if isinstance(each, BrokerUnavailable) else next(answers) for each in made]

    def _packed(self, call: "Call") -> tuple[bytes, bytes]:
        """A call's key and command; scripts are told last in which process they run."""
        name, keys, arguments = call
        server = self._servers[self._nodes.place(keys[0])]
        sha = self._scripts[name].sha
        return keys[0], pack("EVALSHA", sha, len(keys), *keys, *arguments, *server)

    async def _evaluate_one(self, name: str, keys: list[bytes], *arguments: str | int) -> Answer:
        return _raise((await self._evaluate([(name, keys, arguments)]))[0])

    async def _commands(self, commands: Iterable[tuple[bytes, bytes]]) -> list[Answer]:
        """Send packed commands, each to the node that has its key; their answers."""
        pipes = self._pipes
        if len(pipes) == 1:
            return [answer_of(each) for each in await pipes[0].ask([each for _, each in commands])]
        by_node: dict[int, list[tuple[int, bytes]]] = {}
        count = 0
        for number, (key, command) in enumerate(commands):
            by_node.setdefault(self._nodes.place(key), []).append((number, command))
            count += 1
        answers: list[Answer] = [None] * count

        async def ask(node: int, some: list[tuple[int, bytes]]) -> None:
            found = await pipes[node].ask([command for _, command in some])
            for (number, _), answer in zip(some, found, strict=True):
                answers[number] = answer_of(answer)

        await asyncio.gather(*(ask(node, some) for node, some in by_node.items()))
        return answers


#: A script's name, its keys and its arguments.
Call: TypeAlias = tuple[str, list[bytes], tuple[bytes | str | int, ...]]


def _each(
    make: Callable[[Question], Made], questions: Sequence[Question]
) -> Iterator[Made | BrokerUnavailable]:
    """What is made of each question; what can't be encoded is an error of its own only."""
    for question in questions:
        try:
            yield make(question)
        except (TypeError, ValueError, OverflowError) as error:
            yield BrokerUnavailable(f"This can't be given to Redis: {error}.")


def _raise(answer: Answer) -> Answer:
    if isinstance(answer, Interrupted | BrokerUnavailable):
        raise answer
    return answer


def _then(answer: Answer, convert: Any) -> Any:
    return answer if isinstance(answer, Interrupted | BrokerUnavailable) else convert(answer)


def _failure(answer: Answer) -> BrokerUnavailable | None:
    """The error that an answer is, if it is one; raises `Interrupted`."""
    if isinstance(answer, Interrupted):
        raise answer
    return answer if isinstance(answer, BrokerUnavailable) else None


def _nothing(_: Answer) -> None:
    return None


def _new_epoch() -> str:
    """An epoch, in case that a stream begins."""
    return secrets.token_hex(4)


def _server(info: Mapping[str, str]) -> tuple[str, str]:
    """The process of Redis, and whether it keeps what the process before it had written.

    A replica that became the server has a second identifier of replication: the old server's.
    """
    keeps = info.get("aof_enabled") == "1" and not info.get("master_replid2", "").strip("0")
    return info.get("run_id", "")[:8] or "unknown", str(int(keeps))


def _kept(rules: Rules | None) -> tuple[int | str, int | str]:
    """Size and time of what is kept, as the scripts take them; of unknown rules nothing."""
    if rules is None:
        return "", ""
    return rules.history_size, int(rules.history_ttl * 1000)


def _info(text: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in text.decode("utf-8", "replace").splitlines())
    return {name: value for name, separator, value in lines if separator}


def _of_size(
    drafts: Sequence[Draft], entries: Sequence[bytes | BrokerUnavailable]
) -> list[tuple[str, list[int]]]:
    """Channels and the numbers of drafts, in order: what each script appends."""
    groups: list[tuple[str, list[int]]] = []
    latest: dict[str, tuple[list[int], int]] = {}
    for number, (draft, entry) in enumerate(zip(drafts, entries, strict=True)):
        if not isinstance(entry, bytes):
            continue
        numbers, size = latest.get(draft.channel, ([], MOST_APPENDED))
        if size + len(entry) > MOST_APPENDED:
            numbers, size = [], 0
            groups.append((draft.channel, numbers))
        numbers.append(number)
        latest[draft.channel] = numbers, size + len(entry)
    return groups
