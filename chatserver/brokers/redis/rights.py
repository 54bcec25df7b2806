"""Whether the user of Redis may do all that the broker does: found out without doing it.

Redis checks rights when a command is queued in a transaction, so the transaction is given up then.
"""

from collections.abc import Sequence
from typing import TypeAlias

from chatserver.brokers.engine import Interrupted
from chatserver.brokers.redis.connections import Answer, Pipe, answer_of, pack, text_of
from chatserver.errors import BrokerUnavailable

__all__ = ["Command", "check_rights", "needed"]

#: A command's name and its arguments; what is bytes is a key, or a name.
Command: TypeAlias = tuple[bytes | str | int, ...]


def needed(
    channel: Sequence[bytes], news: bytes, leases: bytes, entries: bytes, control: bytes, s: str
) -> Sequence[Command]:
    """Every command that the scripts and the engine use, on each kind of key.

    Args:
        channel: A channel's keys: `top`, `stream`, `id:…`, `will:…` and `present`.
        news: The name under which its news are announced.
        leases: The key of the leases.
        entries: The key of a process's entries.
        control: The name under which control messages are announced.
        s: "S" if names belong to a shard of a Cluster, else "".
    """
    top, stream, id, will, present = channel
    return [
        *(("INFO",), ("TIME",), ("SCRIPT", "LOAD", "return 1"), ("EVALSHA", "0" * 40, 0)),
        *(("GET", key) for key in (top, id, will)),
        *(("SET", key, "", "PX", 1) for key in (top, id, will)),
        *(("XADD", stream, "MAXLEN", 1, "1-0", "i", ""), ("PEXPIRE", stream, 1)),
        *(("DEL", key) for key in (stream, id, will)),
        *(("XRANGE", stream, "-", "+"), ("XREVRANGE", stream, "+", "-")),
        *(("HSET", present, "c", ""), ("HDEL", present, "c"), ("HEXISTS", present, "c")),
        *(("HGET", present, "c"), ("HGETALL", present)),
        *(("SADD", entries, "e"), ("SREM", entries, "e"), ("SRANDMEMBER", entries, 1)),
        *(("SCARD", entries), ("ZADD", leases, 0, "p"), ("ZREM", leases, "p")),
        *(("ZSCORE", leases, "p"), ("ZRANGEBYSCORE", leases, "-inf", 0)),
        *((s + "PUBLISH", name, "") for name in (news, control)),
        *((s + "SUBSCRIBE", name) for name in (news, control)),
        (s + "UNSUBSCRIBE", news),
    ]


async def check_rights(pipe: Pipe, commands: Sequence[Command], rule: str) -> None:
    """Find out whether Redis lets its user carry out commands, which are not carried out.

    Args:
        pipe: The connection; nobody else uses it.
        commands: The commands.
        rule: What a user needs who lacks a right, in words.

    Raises:
        Interrupted: The connection is lost, or Redis can't serve now.
        BrokerUnavailable: Redis refuses one of them; the sentence says which.
    """
    (answer,) = await pipe.ask([pack("MULTI")])
    _check(("MULTI",), answer, rule)
    if answer != b"OK":  # then they would be carried out
        raise Interrupted(f"it answers {answer!r:.100} to MULTI")
    answers = await pipe.ask([*(pack(*command) for command in commands), pack("DISCARD")])
    for command, answer in zip(commands, answers, strict=False):
        _check(command, answer, rule)


def _check(command: Command, answer: Answer, rule: str) -> None:
    # A key of another node of a Cluster is no refusal: rights are looked at first.
    if isinstance(answer_of(answer), BrokerUnavailable):
        names = [each.decode() for each in command[1:] if isinstance(each, bytes)]
        why = f"Redis refuses {' '.join([str(command[0]), *names])}: {text_of(answer)}."
        raise BrokerUnavailable(f"{why} {rule}" if str(answer).startswith("NOPERM ") else why)
