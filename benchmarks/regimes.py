"""What is measured: the regimes, and how long each of the two forms takes for them."""

from dataclasses import dataclass

__all__ = ["BY_NAME", "FULL", "QUICK", "REGIMES", "SMOKE", "TOO_SLOW", "Form", "Regime"]


@dataclass(frozen=True)
class Regime:
    """One way of using a server.

    `kind` is what the generator does: `drive` publishes, `echo` echoes, `idle` and `accept` are
    read off while the members connect.
    """

    name: str
    label: str
    kind: str
    unit: str = "deliveries/s"
    inflight: int = 1
    publishers: int = 1
    rate: float = 0
    size: int = 64  # bytes of the delivered text
    compression: bool = False
    full_only: bool = False

    @property
    def lower_is_better(self) -> bool:
        return self.kind == "idle"


REGIMES = (
    Regime("echo", "echo, 100 connections", "echo", "echoes/s"),
    Regime("accept", "connections accepted a second", "accept", "connections/s"),
    Regime("idle", "memory of an idle connection", "idle", "KB"),
    Regime("one", "one message in flight", "drive"),
    Regime("eight", "8 in flight", "drive", inflight=8),
    Regime("eight-1k", "8 in flight, 1 KiB", "drive", inflight=8, size=1024, full_only=True),
    Regime("publishers", "100 publishers", "drive", inflight=100, publishers=100),
    # The last of its sitting, as it leaves slow servers with work that is not done.
    Regime("offered", "1,000 messages a second offered", "drive", "% delivered", rate=1000),
    Regime(
        "idle-deflate",
        "memory of an idle connection, compression negotiated",
        "idle",
        "KB",
        compression=True,
    ),
    Regime("deflate", "8 in flight, compression negotiated", "drive", inflight=8, compression=True),
    Regime(
        *("deflate-1k", "8 in flight, 1 KiB, compression negotiated", "drive"),
        inflight=8,
        size=1024,
        compression=True,
        full_only=True,
    ),
)
BY_NAME = {regime.name: regime for regime in REGIMES}


@dataclass(frozen=True)
class Form:
    """How much of it, and for how long."""

    name: str
    rounds: int
    clients: int
    seconds: float  # of measuring, for each regime
    warmup: float
    drain: float = 20  # at most, for what is on its way at the end
    patience: float = 20  # until nothing at all is taken for a standstill
    echo_clients: int = 100


QUICK = Form("quick", rounds=2, clients=1000, seconds=0.7, warmup=0.2, drain=2, patience=4)
FULL = Form("full", rounds=5, clients=1000, seconds=3, warmup=0.7)
# The quick form has not the time that these take for a single message.
TOO_SLOW = {("django", "publishers"), ("django", "deflate"), ("socketio", "publishers")}
SMOKE = Form("smoke", rounds=1, clients=10, seconds=0.1, warmup=0.02, echo_clients=5)
