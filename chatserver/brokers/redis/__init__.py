"""Redis and Valkey as the engine of a broker: a single node, Sentinel, or Cluster."""

from chatserver.brokers.redis.engine import RedisBroker, RedisEngine

__all__ = ["RedisBroker", "RedisEngine"]
