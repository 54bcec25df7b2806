"""The hub: this process's connections by channel, and the fan-out to them."""

from chatserver.hub.hub import Hub, Statistics, Subscribed

__all__ = ["Hub", "Statistics", "Subscribed"]
