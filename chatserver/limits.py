"""What a client may take, and counts of clients that went beyond.

Every guard of the server is one field of `Limits`. Its default, sentence, bounds and unit are there
and nowhere else; the settings with the same names are made from it. The hub has the limits and
passes them to its connections; the server finds them in the application's lifespan state.
"""

from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from typing import Any, TypeVar

from msgspec import Struct

from chatserver.errors import InvalidSetting

__all__ = [
    "TIME",
    "Check",
    "Counts",
    "Limits",
    "between",
    "setting",
    "true_or_false",
]


T = TypeVar("T")
Check = Callable[[Any], Any]
"""Returns the value to keep, or raises a ValueError that says what was expected."""


def setting(
    default: T,
    help: str,
    check: Check,
    *,
    unit: str = "",
    secret: bool = False,
    switch: bool = False,
) -> T:
    """Declare a field of `Limits` or `Settings`.

    Args:
        default: The value if none is given.
        help: What it means, in words for the command line and the README.
        check: Refuses a value out of bounds.
        unit: The unit of the value.
        secret: Whether its value is kept out of `repr` and of every sentence.
        switch: Whether its flag is `--name` or `--no-name`, without a value.
    """
    words = {"help": help, "check": check, "unit": unit, "secret": secret, "switch": switch}
    declared: T = field(default=default, repr=not secret, metadata=words)
    return declared


def between(low: float, high: float, kind: type = int) -> Check:
    """A check that a number is within its bounds, both of them allowed.

    Args:
        low: The lowest value.
        high: The highest value.
        kind: `int`, or `float`, which allows whole numbers, too.
    """
    kinds, words = ((int,), "a whole number") if kind is int else ((int, float), "a number")

    def check(value: Any) -> Any:
        # A bool is an int in Python; every comparison with nan is false.
        if type(value) not in kinds or not low <= value <= high:
            raise ValueError(f"{words} from {low} to {high}")
        return kind(value)

    return check


def true_or_false(value: Any) -> Any:
    """A check that allows no 0, 1 or "off" for a truth value."""
    if not isinstance(value, bool):
        raise ValueError("True or False")
    return value


SIZE, NUMBER = between(1, 2**30), between(0, 10**9)
SEVERAL, TIME = between(1, 10**6), between(0.001, 10**9, float)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What clients may take: each field below has its default, meaning, bounds and unit.

    The first group applies on every server, the second on `chatserver.server` only.

    Raises:
        InvalidSetting: A value is out of bounds; the sentence names the field.
    """

    max_message_size: int = setting(
        64 * 1024,
        "longest message taken from a client, inflated; a longer one closes with 1009",
        SIZE,
        unit="bytes",
    )
    # A single message larger than that passes if the buffer is empty.
    max_buffer: int = setting(
        1024 * 1024,
        "data that may wait to be sent to a client, 64 bytes more for each message; "
        "beyond, it is closed as slow, with 1013",
        SIZE,
        unit="bytes",
    )
    # While so many wait, we notice that the client has left only after one of them is handled.
    max_unhandled: int = setting(
        32,
        "messages of one client that may wait to be handled; at that number it is read no further",
        SEVERAL,
        unit="messages",
    )
    send_timeout: float = setting(
        20.0,
        "how long a client may take nothing of what waits for it before it is closed as slow",
        TIME,
        unit="seconds",
    )
    close_timeout: float = setting(
        3.0,
        "how long a closed connection may keep its socket before it is aborted",
        TIME,
        unit="seconds",
    )
    linger: float = setting(
        10.0,
        "how long messages that came before a client left may still be handled; "
        "0 cancels their handler at once",
        between(0, 10**9, float),
        unit="seconds",
    )
    handshake_timeout: float = setting(
        10.0,
        "how long authentication and the accept may take",
        TIME,
        unit="seconds",
    )
    max_channels: int = setting(128, "most channels of one connection", SEVERAL, unit="channels")
    max_cookie_size: int = setting(
        8 * 1024, "longest cookies of a request, together; beyond, 431", SIZE, unit="bytes"
    )
    max_user_connections: int = setting(
        0, "most WebSockets of one token's user; the next gets 429; 0 is no limit", NUMBER
    )

    max_connections: int = setting(
        20_000, "most WebSockets of this process; the next gets 503; 0 is no limit", NUMBER
    )
    max_address_connections: int = setting(
        0,
        "most WebSockets from one address; the next gets 429; "
        "0 is no limit, as it must be behind a proxy",
        NUMBER,
    )
    max_header_size: int = setting(
        64 * 1024, "longest line and headers of a request; beyond, 431", SIZE, unit="bytes"
    )
    header_timeout: float = setting(
        8.0, "how long a request's headers may take; then 408", TIME, unit="seconds"
    )
    message_timeout: float = setting(
        20.0, "how long a begun message may take; then it closes with 1008", TIME, unit="seconds"
    )
    max_fragments: int = setting(
        1024, "most frames in one message; beyond, it closes with 1008", SEVERAL, unit="frames"
    )
    # A client that sends more is not read further until the second is over.
    max_message_rate: int = setting(
        10_000,
        "most messages taken from one client, pings included; one that sends twice as many "
        "for some seconds is closed with 1008; 0 is no limit",
        NUMBER,
        unit="a second",
    )
    # In bytes of messages, inflated. Enough for a client to fill the buffers of the clients that
    # get its messages.
    max_byte_rate: int = setting(
        8 * 1024 * 1024,
        "most bytes taken from one client, beyond a burst of max_buffer; one that sends faster is "
        "read more slowly; 0 is no limit",
        between(0, 2**40),
        unit="a second",
    )
    compression: bool = setting(
        False, "whether to compress messages for clients that can: on or off", true_or_false
    )

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            try:
                kept = spec.metadata["check"](value)
            except ValueError as error:
                raise self.refusal(spec, str(error), value) from None
            object.__setattr__(self, spec.name, kept)

    @classmethod
    def refusal(cls, spec: "Field[Any]", expected: str, value: Any) -> InvalidSetting:
        """The exception for a field's value that can't be used."""
        return InvalidSetting(f"{spec.name}: expected {expected}, but got {value!r}.")


class Counts(Struct, kw_only=True):
    """How often clients went beyond their `Limits`, or lost something, since the start.

    Attributes:
        slow_consumers: Connections closed because they read too slowly.
        refused: Handshakes answered with 429 or 503 because there were too many connections.
        bad_requests: Requests whose headers were too late (408) or too large (431).
        late_handshakes: Connections refused or closed because the handshake took too long.
        bad_messages: Connections closed for what they sent: 1002, 1003, 1007, 1008, 1009.
        floods: Connections closed because they sent too fast; also in `bad_messages`.
        unfinished: Connections closed because a message was not completed; also in
            `bad_messages`.
        dead_peers: Connections aborted because the client answered no ping.
        unhandled: Messages received and not handled before `linger` was over.
        lost: Members of a channel that were told that they missed publications.
        broker_unavailable: Handshakes and connections ended because the broker was unavailable.
    """

    slow_consumers: int = 0
    refused: int = 0
    bad_requests: int = 0
    late_handshakes: int = 0
    bad_messages: int = 0
    floods: int = 0
    unfinished: int = 0
    dead_peers: int = 0
    unhandled: int = 0
    lost: int = 0
    broker_unavailable: int = 0
