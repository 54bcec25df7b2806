"""Brokers: they carry publications between processes, and keep history and presence."""

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
