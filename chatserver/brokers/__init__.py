"""Brokers: what carries publications between processes, and keeps history and presence."""

from chatserver.brokers.base import Broker
from chatserver.brokers.memory import MemoryBroker

__all__ = ["Broker", "MemoryBroker"]
