"""The endpoint classes: the base to extend, and three that are ready."""

from chatserver.endpoints.application import hub_of, lifespan
from chatserver.endpoints.base import Endpoint
from chatserver.endpoints.broadcast import BroadcastEndpoint
from chatserver.endpoints.dependencies import Depends
from chatserver.endpoints.echo import EchoEndpoint
from chatserver.endpoints.identification import identify
from chatserver.endpoints.item import ItemEndpoint
from chatserver.endpoints.messages import Ack, ErrorMessage, Message, on_message
from chatserver.endpoints.params import FromCookie, FromHeader, FromPath, FromQuery

__all__ = [
    "Ack",
    "BroadcastEndpoint",
    "Depends",
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
    "identify",
    "lifespan",
    "on_message",
]
