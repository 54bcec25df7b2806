"""Who is in a channel, and how they are written to."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from chatserver.connection import Connection, Format
from chatserver.publication import Position, Publication

__all__ = ["Group", "Member", "Plan", "Write", "make_plan"]

Write: TypeAlias = Callable[[bytes], None]


class Member:
    """A connection's place in a channel.

    Attributes:
        live: Whether every publication is simply written.
        held: What was published while the connection was still subscribing; None for nothing.
        present: Whether it was entered into the channel's presence.
    """

    __slots__ = ("_after", "held", "live", "present")

    def __init__(self) -> None:
        self.live = False
        self.held: list[Publication] | None = None
        self.present = False
        self._after: Position | None = None

    def go_live(self, after: Position) -> None:
        """Hold back no longer; what comes up to `after` the client has had already."""
        self._after = after
        self.held = None

    def admits(self, publication: Publication) -> bool:
        """Whether a publication is to be written, for a member that is not live yet."""
        if self._after is None:
            self.held = self.held or []
            self.held.append(publication)
        else:
            known = publication.epoch == self._after.epoch
            self.live = not (known and publication.offset <= self._after.offset)
        return self.live


class Group(NamedTuple):
    """Members of a channel who get the same bytes, and whose sockets take them."""

    format: Format
    connections: tuple[Connection, ...]
    writes: tuple[Write, ...]


class Plan(NamedTuple):
    """How a channel's members are written to, until one joins, leaves, or changes its pace.

    Attributes:
        groups: Those to whom the joined bytes can be handed.
        others: Those who are written to frame by frame: still subscribing, full, or on a
            server that is not ours.
        exclusive: Whether nobody among them is in another channel, too.
    """

    groups: tuple[Group, ...]
    others: tuple[Connection, ...]
    exclusive: bool


def make_plan(members: dict[Connection, Member]) -> Plan:
    """Sort a channel's members by how they can be written to."""
    others: list[Connection] = []
    groups: dict[Format, tuple[list[Connection], list[Write]]] = {}
    exclusive = True
    for connection, member in members.items():
        exclusive = exclusive and len(connection.channels) == 1
        write = connection.fast if member.live else None
        if write is None:
            others.append(connection)
        else:
            connections, writes = groups.setdefault(connection.format, ([], []))
            connections.append(connection)
            writes.append(write)
    made = (Group(key, tuple(who), tuple(how)) for key, (who, how) in groups.items())
    return Plan(tuple(made), tuple(others), exclusive)
