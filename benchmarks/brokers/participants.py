"""Who takes part: our brokers, the bare clients of the engines, and other projects."""

from dataclasses import dataclass

from benchmarks.servers import OURS, Server

__all__ = ["BY_NAME", "ENGINES", "PARTICIPANTS", "PUBLISHERS", "Participant", "of", "regime"]

#: Publishers at once.
PUBLISHERS = (1, 16, 256)
#: The engines, with what is asked of each.
ENGINES: dict[str, tuple[str, ...]] = {
    "valkey": (),
    # Each publication of Litestar's has a connection of its own.
    "postgres": ("max_connections = 400",),
}


@dataclass(frozen=True)
class Participant:
    """One way to publish through an engine.

    Attributes:
        name: Its name in the results.
        label: Its name for a reader.
        engine: A key of `ENGINES`.
        module: The program in `peers/brokers/`.
        kind: What the program is told besides the URL.
        environment: Where it is installed.
        together: Whether one call publishes for all publishers at once.
        promise: What it promises, besides that most subscribers get most messages.
    """

    name: str
    label: str
    engine: str
    module: str
    kind: str
    environment: Server
    promise: str
    together: bool = False

    @property
    def is_ours(self) -> bool:
        return self.module == "our_broker"

    @property
    def is_peer(self) -> bool:
        """Whether it is another project's, rather than an engine's own client."""
        return self.environment is not OURS


def _environment(name: str, label: str, *packages: str) -> Server:
    return Server(name, label, "python", "", (*packages, "hiredis", "uvloop"))


DJANGO = _environment("channels-redis", "Django Channels", "channels_redis")
LITESTAR = _environment("litestar-brokers", "Litestar", "litestar", "redis", "asyncpg")
# With redis 8 broadcaster 0.3.1 hears nothing.
BROADCASTER = _environment(
    "broadcaster-brokers", "broadcaster", "broadcaster[redis,postgres]", "redis<8"
)
SOCKETIO = _environment("socketio-redis", "python-socketio", "python-socketio", "redis")

OURS_PROMISE = "stored, with a position; one order; history; what was missed is noticed"
NOTHING = "nothing is kept, and nobody notices what is missed"

PARTICIPANTS = (
    Participant("redis", "chatserver (ours)", "valkey", "our_broker", "", OURS, OURS_PROMISE),
    Participant(
        name="redis-pipelined",
        label="redis-py, XADD and PUBLISH in a pipeline",
        engine="valkey",
        module="bare_redis",
        kind="pipelined",
        environment=OURS,
        promise="a stream of 100 entries, whose positions the subscribers don't get",
        together=True,
    ),
    Participant(
        *("redis-plain", "redis-py, PUBLISH alone", "valkey", "bare_redis", "plain", OURS, NOTHING)
    ),
    Participant(
        name="django-core",
        label="Django Channels, RedisChannelLayer",
        engine="valkey",
        module="django_layer",
        kind="core",
        environment=DJANGO,
        promise="a list for each subscriber; what exceeds 100 waiting messages is dropped",
    ),
    Participant(
        name="django-pubsub",
        label="Django Channels, RedisPubSubChannelLayer",
        engine="valkey",
        module="django_layer",
        kind="pubsub",
        environment=DJANGO,
        promise=NOTHING,
    ),
    Participant(
        name="litestar-streams",
        label="Litestar, Redis streams",
        engine="valkey",
        module="litestar_backend",
        kind="streams",
        environment=LITESTAR,
        promise="a stream of about 100 entries, read in turns",
    ),
    Participant(
        name="litestar-pubsub",
        label="Litestar, Redis pub/sub",
        engine="valkey",
        module="litestar_backend",
        kind="pubsub",
        environment=LITESTAR,
        promise=NOTHING,
    ),
    Participant(
        name="broadcaster-redis",
        label="broadcaster, Redis",
        engine="valkey",
        module="broadcaster_url",
        kind="redis",
        environment=BROADCASTER,
        promise=NOTHING,
    ),
    Participant(
        name="socketio",
        label="python-socketio, AsyncRedisManager",
        engine="valkey",
        module="socketio_manager",
        kind="",
        environment=SOCKETIO,
        promise=f"{NOTHING}; a publisher does not learn of an error",
    ),
    Participant("postgres", "chatserver (ours)", "postgres", "our_broker", "", OURS, OURS_PROMISE),
    Participant(
        name="postgres-batched",
        label="asyncpg, INSERT and NOTIFY in one statement",
        engine="postgres",
        module="bare_postgres",
        kind="batched",
        environment=OURS,
        promise="a row each, whose position the subscribers don't get",
        together=True,
    ),
    Participant(
        name="postgres-plain",
        label="asyncpg, NOTIFY alone",
        engine="postgres",
        module="bare_postgres",
        kind="plain",
        environment=OURS,
        promise=NOTHING,
    ),
    Participant(
        name="litestar-asyncpg",
        label="Litestar, asyncpg",
        engine="postgres",
        module="litestar_backend",
        kind="asyncpg",
        environment=LITESTAR,
        promise=NOTHING,
    ),
    Participant(
        name="broadcaster-postgres",
        label="broadcaster, PostgreSQL",
        engine="postgres",
        module="broadcaster_url",
        kind="postgres",
        environment=BROADCASTER,
        promise=NOTHING,
    ),
)
BY_NAME = {participant.name: participant for participant in PARTICIPANTS}


def of(engine: str) -> list[Participant]:
    """Those of an engine."""
    return [participant for participant in PARTICIPANTS if participant.engine == engine]


def regime(publishers: int) -> str:
    """The name of a number of publishers in the results."""
    return f"publishers-{publishers}"
