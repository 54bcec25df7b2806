"""The endpoint classes: the base to extend, and three that are ready."""

from chatserver.endpoints.application import hub_of, lifespan
from chatserver.endpoints.base import Endpoint
from chatserver.endpoints.broadcast import BroadcastEndpoint
from chatserver.endpoints.echo import EchoEndpoint
from chatserver.endpoints.item import ItemEndpoint
from chatserver.endpoints.messages import Ack, ErrorMessage, Message, on_message
from chatserver.endpoints.params import FromCookie, FromHeader, FromPath, FromQuery

__all__ = [
    "Ack",
    "BroadcastEndpoint",
    "EchoEndpoint",
    "Endpoint",
    "ErrorMessage",
    "FromCookie",
    "FromHeader",
    "FromPath",
    "FromQuery",
    "ItemEndpoint",
    "Message",
    "hub_of",
    "lifespan",
    "on_message",
]
