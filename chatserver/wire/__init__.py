"""The WebSocket protocol's bytes: a leaf without I/O, without an event loop and without threads.

frames      what goes out
parser      what comes in
deflate     compression, shared by all who get the same
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
