"""Presence as people read it: the clients in a channel, and the users behind them."""

from collections.abc import Iterable
from typing import Any

from msgspec import Struct

from chatserver.publication import ClientInfo

__all__ = ["Presence", "PresentUser"]


class PresentUser(Struct, frozen=True):
    """A user in a channel, with however many clients: the tabs and devices of one person.

    Attributes:
        user: The user's name; empty if unknown. Clients without a user are a user each.
        info: What `Endpoint.info` says of the client that came first.
        since: Unix time in seconds at which that one came.
        clients: The identifiers of the user's clients, in the order in which they came.
    """

    user: str
    info: Any
    since: float
    clients: tuple[str, ...]


class Presence(Struct, frozen=True):
    """Who is in a channel.

    Attributes:
        users: The users, in the order in which they came.
        clients: The clients, in the order in which they came.
    """

    users: tuple[PresentUser, ...]
    clients: tuple[ClientInfo, ...]

    @classmethod
    def of(cls, entries: Iterable[ClientInfo]) -> "Presence":
        """The presence made of a channel's entries."""
        clients = tuple(sorted(entries, key=lambda each: (each.since, each.client)))
        users: dict[str, list[ClientInfo]] = {}
        for client in clients:
            # The two kinds of key can't meet.
            users.setdefault(f"user {client.user}" if client.user else client.client, []).append(
                client
            )
        return cls(tuple(map(_user, users.values())), clients)


def _user(clients: list[ClientInfo]) -> PresentUser:
    first = clients[0]
    return PresentUser(first.user, first.info, first.since, tuple(each.client for each in clients))
