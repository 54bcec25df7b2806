"""PostgreSQL as the engine of a broker: 14 and newer."""

from chatserver.brokers.postgres.engine import PostgresBroker, PostgresEngine

__all__ = ["PostgresBroker", "PostgresEngine"]
