"""Brokers: they carry publications between processes, and keep history and presence.

- `base`: the contract, `Broker`, which is all that a hub knows.
- `memory`: the broker of one process.
- `remote`: the broker over an engine: connection, leases, last wills.
- `batches`, `reads`: what is asked within a turn of the event loop goes to the engine together.
- `engine`: what an engine's module implements, `Engine`.
- `redis`, `postgres`: the engines.
- `urls`: from a URL to a broker. `workers`: the memory broker is for one process.
"""

from chatserver.brokers.base import Broker, Control, Disconnect, Health, Unsubscribe
from chatserver.brokers.memory import MemoryBroker
from chatserver.brokers.urls import broker_from_url, remote_broker

__all__ = [
    "Broker",
    "Control",
    "Disconnect",
    "Health",
    "MemoryBroker",
    "Unsubscribe",
    "broker_from_url",
    "remote_broker",
]
