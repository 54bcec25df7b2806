"""What a client may take, and how often one wanted more.

Every guard of the server has its line in `Limits`. The hub holds them, hands them to its
connections, and the server at the edge finds them in the application's lifespan state.
"""

from msgspec import Struct

__all__ = ["COUNTS", "LIMITS", "Counts", "Limits"]

#: Where a lifespan leaves them for the server, in its state.
LIMITS, COUNTS = "chatserver.limits", "chatserver.counts"


class Limits(Struct, frozen=True, kw_only=True):
    """What clients may take; where a number may be 0, that is no limit.

    The first group holds on every server, the second on `chatserver.server` only.

    Attributes:
        max_message_size: Bytes in one message from the client, inflated; beyond, close 1009.
        max_buffer: Bytes waiting to be sent, with 64 for each message besides its payload;
            beyond, the client is a slow consumer and is closed with 1013. A single message
            larger than that passes an empty buffer.
        max_unhandled: Messages received and not yet handled; at that number nothing more
            is read until one has been, and the client feels the back-pressure. That it has
            left is noticed only then, too.
        send_timeout: Seconds in which the client must take something off a full socket;
            beyond, it is a slow consumer too.
        close_timeout: Seconds for which a slow consumer, or a client that has left, may keep
            its socket open with data in it; then the socket is aborted.
        max_user_connections: Connections of one authenticated user in this process; the next
            is refused with 429. May be 0.

        max_connections: WebSockets of this server; the next is refused with 503. May be 0.
        max_address_connections: WebSockets from one address; the next is refused with 429.
            May be 0, and should where all clients come through one proxy.
        max_header_size: Bytes in a request's line and headers; beyond, 431.
        header_timeout: Seconds in which a request's headers must be complete; beyond, 408.
        message_timeout: Seconds in which a begun message must be complete; beyond, close 1008.
        max_fragments: Frames in one message; beyond, close 1008.
        max_message_rate: Messages a second from one client, pings included. One that sends more
            is read no further until the second is over; one that sends twice as many for
            some seconds on end is closed with 1008. May be 0.
        compression: Whether to agree on permessage-deflate with clients that offer it.
    """

    max_message_size: int = 64 * 1024
    max_buffer: int = 1024 * 1024
    max_unhandled: int = 32
    send_timeout: float = 20.0
    close_timeout: float = 3.0
    max_user_connections: int = 0
    max_channels: int = 128
    linger: float = 10.0
    handshake_timeout: float = 10.0
    max_cookie_size: int = 8192

    max_connections: int = 20_000
    max_address_connections: int = 0
    max_header_size: int = 64 * 1024
    header_timeout: float = 8.0
    message_timeout: float = 20.0
    max_fragments: int = 1024
    max_message_rate: int = 10_000
    compression: bool = False


class Counts(Struct, kw_only=True):
    """How often a client wanted more than its `Limits`, since the start.

    Attributes:
        slow_consumers: Connections closed because they read too slowly.
        refused: Handshakes answered with 429 or 503, for there were too many connections.
        bad_requests: Requests whose headers were too late (408) or too large (431).
        bad_messages: Connections closed for what they sent: 1002, 1003, 1007, 1008, 1009.
        floods: Connections closed because they sent too fast, of the above.
        unfinished: Connections closed because a message was not completed, of the above.
        dead_peers: Connections aborted because the client answered no ping.
    """

    slow_consumers: int = 0
    refused: int = 0
    bad_requests: int = 0
    bad_messages: int = 0
    floods: int = 0
    unfinished: int = 0
    dead_peers: int = 0
    unhandled: int = 0
    broker_unavailable: int = 0
    lost: int = 0
    late_handshakes: int = 0
