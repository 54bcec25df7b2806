"""The bytes of the WebSocket protocol, without I/O, event loop or threads.

frames      outgoing frames
parser      incoming frames
deflate     compression, once for all clients that get the same message
"""

from chatserver.wire.deflate import Inflater, deflate
from chatserver.wire.frames import PING, Frame, close_frame, encode, pong_frame
from chatserver.wire.parser import Close, Event, Parser, Ping, Pong

__all__ = [
    "PING",
    "Close",
    "Event",
    "Frame",
    "Inflater",
    "Parser",
    "Ping",
    "Pong",
    "close_frame",
    "deflate",
    "encode",
    "pong_frame",
]
