"""The regimes that are measured, and how long the two forms of the benchmark measure them."""

from dataclasses import dataclass
from typing import Any

__all__ = ["BY_NAME", "FULL", "QUICK", "REGIMES", "SMOKE", "Form", "Regime"]


@dataclass(frozen=True)
class Regime:
    """One way of using a server.

    `kind` is what the generator does: `drive` publishes, `herd` has all members publish at once,
    `echo` echoes; `idle` and `accept` are measured while the members connect.
    """

    name: str
    label: str
    kind: str
    unit: str = "deliveries/s"
    publishers: int = 1
    each: int = 1  # messages that each publisher has in flight
    rate: float = 0  # messages a second; 0: as many as `publishers` and `each` allow
    size: int = 64  # bytes of the delivered text
    clients: int = 1000
    groups: int = 1  # rooms, each client in one of them
    compression: bool = False
    crowded: bool = False  # left out for servers that take minutes for it
    one_order: bool = True  # does every client get all messages in one order?
    program: str = ""  # in `peers/`, instead of the server's own: for ours only
    path: str = ""

    @property
    def lower_is_better(self) -> bool:
        return self.kind in ("idle", "herd")


def _kib(name: str, label: str, **options: Any) -> Regime:
    return Regime(name, label, "drive", publishers=4, each=2, size=1024, **options)


REGIMES = (
    Regime("echo", "echo, 100 connections", "echo", "echoes/s", clients=100),
    Regime("accept", "connections accepted a second", "accept", "connections/s"),
    Regime("idle", "memory of an idle connection", "idle", "KB"),
    Regime("one", "one message in flight", "drive"),
    Regime("eight", "8 in flight, 4 publishers", "drive", publishers=4, each=2),
    _kib("eight-1k", "8 in flight, 4 publishers, 1 KiB"),
    Regime("publishers", "100 publishers, 100 in flight", "drive", publishers=100),
    Regime(
        *("thousand", "1,000 publishers, 1,000 in flight", "drive"), publishers=1000, crowded=True
    ),
    Regime(
        *("crowd", "10,000 clients, 4 in flight", "drive"),
        publishers=4,
        clients=10_000,
        crowded=True,
    ),
    Regime("offered", "1,000 messages a second offered", "drive", "% delivered", rate=1000),
    Regime(
        *("herd", "one echo while 2,000 others say one word each", "herd", "ms"),
        clients=2000,
        crowded=True,
    ),
    Regime(
        *("idle-deflate", "memory of an idle connection, compression negotiated", "idle", "KB"),
        compression=True,
    ),
    Regime(
        *("deflate", "8 in flight, 4 publishers, compression negotiated", "drive"),
        publishers=4,
        each=2,
        compression=True,
    ),
    _kib(
        "deflate-1k", "8 in flight, 4 publishers, 1 KiB, compression negotiated", compression=True
    ),
    Regime(
        *("rooms", "1,000 rooms of 4 clients, one publisher in each", "drive"),
        clients=4000,
        groups=1000,
        program="ours_rooms",
        path="/rooms/{room}/{id}",
    ),
    Regime(
        *("fifty", "1,000 clients in 50 rooms each, one publisher in each room", "drive"),
        publishers=50,
        one_order=False,  # promised for each room only
        program="ours_rooms",
        path="/fifty/{id}",
    ),
)
BY_NAME = {regime.name: regime for regime in REGIMES}


@dataclass(frozen=True)
class Form:
    """The size of a benchmark: how much is measured, and for how long."""

    name: str
    rounds: int
    seconds: float  # of measuring, for each regime
    warmup: float
    drain: float = 10  # at most, for what is in flight at the end
    patience: float = 10  # seconds without a message after which a drive counts as stalled
    herds: int = 5
    share: float = 1  # of the regimes' clients


QUICK = Form("quick", rounds=2, seconds=0.7, warmup=0.2, drain=2, patience=4, herds=3)
FULL = Form("full", rounds=5, seconds=2, warmup=0.5)
SMOKE = Form("smoke", rounds=1, seconds=0.1, warmup=0.02, herds=2, share=0.01)
