"""The benchmark of brokers: what decides without an engine, and a short run of ours on each."""

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import environments
from benchmarks.brokers import report, room, talk
from benchmarks.brokers.participants import (
    BY_NAME,
    ENGINES,
    PARTICIPANTS,
    PUBLISHERS,
    of,
    regime,
)
from benchmarks.peers.brokers.talk import Drive, Ears, text_of
from benchmarks.process import Process
from benchmarks.regimes import SMOKE
from benchmarks.results import Measurement, Results
from benchmarks.tables import markdown


def test_every_participant_has_its_program_and_a_name_of_its_own() -> None:
    assert len(BY_NAME) == len(PARTICIPANTS)
    for participant in PARTICIPANTS:
        assert (environments.PEERS / "brokers" / f"{participant.module}.py").is_file()
        assert participant.engine in ENGINES


@pytest.mark.parametrize("engine", ENGINES)
def test_ours_comes_first_then_the_bare_client_then_the_peers(engine: str) -> None:
    ours, together, plain, *peers = of(engine)
    assert ours.is_ours
    assert not ours.is_peer
    assert together.together
    assert not together.is_peer
    assert plain.kind == "plain"
    assert peers
    assert all(peer.is_peer and not peer.is_ours for peer in peers)


# Goals and tables


def reached(**values: float) -> Results:
    """Results of one round, with 256 publishers; names with "_" for "-"."""
    most = regime(max(PUBLISHERS))
    return Results(
        measurements=[
            Measurement(name.replace("_", "-"), most, 0, value, p50=1.0, p99=2.0)
            for name, value in values.items()
        ]
    )


def test_throughput_is_compared_with_the_bare_client_and_the_fastest_peer() -> None:
    results = reached(redis=50.0, redis_pipelined=100.0, socketio=5.0, broadcaster_redis=25.0)
    bare, peer = report.verdicts(results)
    assert (bare.reached.median, bare.met) == (0.5, True)
    assert (peer.reached.median, peer.met) == (2.0, False)
    assert "broadcaster" in peer.beside


@pytest.mark.parametrize(("milliseconds", "met"), [(1.5, True), (1.6, False)])
def test_latency_is_compared_with_that_of_a_bare_publish(milliseconds: float, met: bool) -> None:
    results = Results(
        measurements=[
            Measurement("postgres", regime(1), 0, None, p50=milliseconds),
            Measurement("postgres-plain", regime(1), 0, None, p50=1.0),
        ]
    )
    (verdict,) = report.verdicts(results)
    assert (verdict.engine, verdict.met) == ("postgres", met)


def test_two_workers_are_compared_with_one_process() -> None:
    results = Results(
        measurements=[
            Measurement(room.name_of("valkey", 1), room.ROOM.name, 0, 2.0),
            Measurement(room.name_of("valkey", 2), room.ROOM.name, 0, 2.4),
        ]
    )
    (verdict,) = report.verdicts(results)
    assert verdict.reached.median == pytest.approx(1.2)
    assert not verdict.met
    shown = "\n".join(map(markdown, report.tables(results)))
    assert "1.20 | MISSED" in shown


def test_the_tables_name_what_each_promises_and_what_went_wrong() -> None:
    results = reached(redis=50.0)
    results.measurements[0].problems.append("3 more were sent than heard")
    results.skipped["litestar-brokers"] = "no network"
    shown = "\n".join(map(markdown, report.tables(results)))
    assert "history; what was missed is noticed." in shown
    assert "256 publishers: 3 more were sent than heard." in shown
    assert "| litestar-brokers | no network |" in shown
    assert "PostgreSQL" not in shown


# The two sides


def test_a_text_has_64_bytes_and_no_two_are_the_same() -> None:
    texts = {text_of(time.monotonic_ns(), number) for number in range(256)}
    assert {len(text.encode()) for text in texts} == {64}
    assert len(texts) == 256


@pytest.mark.anyio
@pytest.mark.parametrize("together", [False, True])
async def test_a_drive_keeps_so_many_publications_on_the_way(together: bool) -> None:
    calls: list[Sequence[str]] = []
    under_way = most = 0

    async def publish(*texts: str) -> None:
        nonlocal under_way, most
        calls.append(texts)
        under_way += len(texts)
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= len(texts)

    done = await Drive(publish, together=together).run(3, warmup=0.01, seconds=0.02)
    assert most == 3
    assert {len(texts) for texts in calls} == {3 if together else 1}
    assert done["sent"] == sum(map(len, calls))
    assert done["acknowledged"] <= done["sent"] - 3, "the first of each does not count"
    assert done["end"] - done["begin"] == 20_000_000


@pytest.mark.anyio
async def test_latencies_are_those_of_the_window_and_probes_do_not_count() -> None:
    ears = Ears()
    assert not ears.heard_any.is_set()
    ears(text_of(0))
    assert ears.heard_any.is_set()
    now = time.monotonic_ns()
    ears(text_of(now - 2_000_000_000))
    ears(text_of(now).encode())
    found = await ears.report(sent=2, begin=now, end=now + 1)
    assert found["received"] == 2
    assert found["p50"] == found["p99"] < 1000
    assert (await ears.report(sent=0, begin=0, end=1)) == {"received": 0, "p50": None, "p99": None}


# A short run, with an engine


@pytest.mark.live
@pytest.mark.parametrize("name", ["redis", "postgres", "postgres-batched"])
def test_a_short_run(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environments, "ours_python", lambda server: Path(sys.executable))
    participant = BY_NAME[name]
    with talk.engine(participant.engine, tmp_path) as engine:
        found = talk.measure(participant, engine, form=SMOKE, folder=tmp_path)
        assert engine.cpu() > 0
    assert [each.regime for each in found] == [regime(count) for count in PUBLISHERS]
    for each in found:
        assert each.problems == []
        assert each.detail["sent"] > 0
        assert each.detail["lost"] == 0


@pytest.mark.live
def test_what_can_not_be_measured_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "ours_python", lambda server: Path(sys.executable))
    nowhere = talk.Engine("redis://127.0.0.1:1", lambda: 0.0)
    found = talk.measure(BY_NAME["redis"], nowhere, form=SMOKE, folder=tmp_path)
    assert [each.value for each in found] == [None] * len(PUBLISHERS)
    assert "can't be reached" in found[0].problems[0]


@pytest.mark.live
def test_the_processor_time_of_all_descendants(tmp_path: Path) -> None:
    """Those in a session of their own, as PostgreSQL's are, and those that have ended."""
    busy = "import time\nwhile time.process_time() < 0.1: pass"
    program = (
        "import subprocess, sys; "
        f"subprocess.run([sys.executable, '-c', {busy!r}], start_new_session=True); "
        "print(flush=True); sys.stdin.read()"
    )
    with Process([sys.executable, "-c", program], log=tmp_path / "log", stdin=-1) as process:
        talk.Side(process).line()
        assert process.cpu_of_all() >= 0.1
