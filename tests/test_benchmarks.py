"""The benchmark's own parts: what decides without a server, and one short run of it all."""

import json
import shutil
import struct
import sys
import zlib
from pathlib import Path

import pytest

from benchmarks import environments, goals, growth, regimes, rounds, servers, tables
from benchmarks.environments import Unavailable
from benchmarks.load import Drive, GeneratorFailed, parse
from benchmarks.probes import MARK, TAIL, Checker, percentile, records, text_of
from benchmarks.results import Measurement, Results, Spread, spread
from benchmarks.servers import Server

WORDS = "the kettle is on "
SIZE = 40
PLAIN, COMPRESSED = 0x81, 0xC1


def record(connection: int, payload: bytes, *, first: int = PLAIN, arrived: int = 0) -> bytes:
    return struct.pack("=QIII", arrived, connection, first, len(payload)) + payload


def said(connection: int, number: int, *, due: int = 0, arrived: int = 0) -> bytes:
    text = f"Client #1000000 says: {text_of(number, due, SIZE, WORDS)}"
    return record(connection, text.encode(), arrived=arrived)


BEGIN = record(MARK, b"")


def check(data: bytes, **changes: object) -> dict[str, object]:
    options = {"size": SIZE, "reply": "Y", "groups": 1, "window": (0, 100)} | changes
    found = Checker(WORDS).check(data, **options)  # type: ignore[arg-type]
    return vars(found)


# Statistics


def test_a_spread_is_the_median_and_the_extremes() -> None:
    assert spread([3, 1, 2]) == Spread(2, 1, 3)
    assert spread([4, 1]) == Spread(2.5, 1, 4)
    assert spread([]) is None


def test_a_ratio_is_made_of_the_values_of_one_round() -> None:
    results = Results(
        measurements=[
            Measurement("ours", "one", 0, 100.0),
            Measurement("ours", "one", 1, 300.0),
            Measurement("ours", "one", 2, 900.0),
            Measurement("ws", "one", 1, 100.0),
            Measurement("ws", "one", 0, 100.0),
            Measurement("ws", "one", 2, None),
        ]
    )
    assert results.ratio("one", "ours", "ws") == Spread(2, 1, 3)
    assert results.ratio("one", "ours", "nchan") is None
    assert results.values("ws", "one") == Spread(100, 100, 100)


def test_percentiles_of_sorted_values() -> None:
    values = [float(n) for n in range(100)]
    assert (percentile(values, 0.5), percentile(values, 0.99)) == (50, 99)
    assert percentile([7.0], 0.99) == 7
    assert percentile([], 0.5) is None


def test_results_are_kept_as_json(tmp_path: Path) -> None:
    path = tmp_path / "made" / "results.json"
    results = Results({"form": "quick"}, {"ours": "1"}, {"nchan": "no"})
    results.measurements.append(Measurement("ours", "one", 0, 1.5, p99=2.0, problems=["x"]))
    results.save(path)
    assert Results.load(path) == results


# Goals and tables


def test_every_goal_is_about_a_regime_and_a_peer_that_there_are() -> None:
    assert {goal.regime for goal in goals.GOALS} <= regimes.BY_NAME.keys()
    assert {goal.peer for goal in goals.GOALS} <= servers.BY_NAME.keys() | {""}


@pytest.mark.parametrize(("value", "met"), [(149.0, False), (150.0, True), (200.0, True)])
def test_a_multiple_is_met_from_its_bound_on(value: float, met: bool) -> None:
    results = Results()
    results.measurements = [
        Measurement("ours", "one", 0, value),
        Measurement("fastapi", "one", 0, 100.0),
    ]
    found = {(v.goal.regime, v.goal.peer): v for v in goals.verdicts(results)}
    assert found["one", "fastapi"].met is met
    assert found["one", "ws"] == (found["one", "ws"].goal, None, None)


@pytest.mark.parametrize(("delivered", "p99", "met"), [(100.0, 24.0, True), (99.99, 26.0, False)])
def test_a_bound_of_its_own(delivered: float, p99: float, met: bool) -> None:
    results = Results(measurements=[Measurement("ours", "offered", 0, delivered, p99=p99)])
    found = [v.met for v in goals.verdicts(results) if v.goal.regime == "offered"]
    assert found == [met, met]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (0.123, "0.12"),
        (1.5, "1.50"),
        (12.34, "12.3"),
        (1234567, "1,234,567"),
    ],
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert tables.number(value) == text


def test_a_table_for_the_terminal_and_for_a_page() -> None:
    table = tables.Table("Title", ["name", "n"], [["a", "1"], ["long", "22"]], ["A note."])
    assert tables.plain(table).splitlines() == [
        "Title",
        "name   n",
        "────────",
        "a      1",
        "long  22",
        "A note.",
    ]
    assert tables.markdown(table).splitlines() == [
        "### Title",
        "",
        "| name | n |",
        "| --- | ---: |",
        "| a | 1 |",
        "| long | 22 |",
        "",
        "A note.",
    ]


def test_the_tables_tell_ratios_problems_and_who_was_left_out() -> None:
    results = Results(skipped={"nchan": "install it first"})
    results.measurements = [
        Measurement("ours", "one", 0, 300.0, p99=2.0, generator_cpu=0.5),
        Measurement("ws", "one", 0, 100.0, problems=["generator busy"]),
        Measurement("ws", "one", 1, None, problems=["generator busy", "gone"]),
    ]
    shown = "\n\n".join(map(tables.plain, tables.tables(results)))
    assert "node ws" in shown
    assert "3.00" in shown
    assert "50%" in shown
    assert "node ws: generator busy; gone." in shown
    assert "install it first" in shown


def test_the_tables_of_growth() -> None:
    results = Results(about={"form": "growth"})
    results.measurements = [
        Measurement("ours", f"clients-{n}", 0, 10.0 * n, detail={"kb_each": 9.5}) for n in (100, 10)
    ]
    clients, channels = growth.tables(results)
    assert [row[0] for row in clients.rows] == ["10", "100"]
    assert clients.rows[1][2:] == ["1,000", "–", "–", "9.50", "–"]
    assert channels.rows == []


# What the probes saw


def test_records_are_taken_apart_and_a_cut_one_left_out() -> None:
    data = record(1, b"ab", arrived=7) + record(2, b"")
    assert list(records(data)) == [(7, 1, PLAIN, b"ab"), (0, 2, PLAIN, b"")]
    assert list(records(data + record(3, b"abc")[:-1])) == list(records(data))


def test_whole_and_in_order() -> None:
    data = BEGIN + said(5, 0, due=10, arrived=2_000_010) + said(5, 1, due=20, arrived=1_000_020)
    found = check(data)
    assert found == {
        "messages": 2,
        "latencies": [1.0, 2.0],
        "missing": 0,
        "repeated": 0,
        "damaged": 0,
        "one_order": True,
    }


def test_latencies_are_those_of_the_window() -> None:
    data = BEGIN + said(5, 0, due=10, arrived=1_000_010) + said(5, 1, due=100, arrived=5_000_000)
    assert check(data)["latencies"] == [1.0]


def test_what_came_before_the_drive_does_not_count() -> None:
    assert check(said(5, 7) + BEGIN + said(5, 0))["messages"] == 1


def test_answers_to_the_publisher_and_the_protocol_do_not_count() -> None:
    answer = record(5, f"You wrote: {text_of(0, 0, SIZE, WORDS)}".encode())
    assert check(BEGIN + answer + record(5, b"2") + said(5, 0))["messages"] == 1


def test_missing_repeated_and_damaged() -> None:
    damaged = said(5, 4).replace(b"kettle", b"kettl3")
    found = check(BEGIN + said(5, 0) + said(5, 2) + said(5, 2) + damaged)
    assert (found["missing"], found["repeated"], found["damaged"]) == (1, 1, 1)


def test_probes_of_one_group_see_one_order_and_those_of_two_may_differ() -> None:
    data = BEGIN + said(4, 0) + said(4, 1) + said(5, 1) + said(5, 0)
    assert check(data)["one_order"] is False
    assert check(data, groups=2)["one_order"] is True


@pytest.mark.parametrize("extension", ["permessage-deflate", "x; server_no_context_takeover"])
def test_compressed_messages_over_two_drives(extension: str) -> None:
    fresh = "no_context_takeover" in extension
    deflater = zlib.compressobj(wbits=-15)

    def compressed(number: int) -> bytes:
        nonlocal deflater
        if fresh:
            deflater = zlib.compressobj(wbits=-15)
        payload = deflater.compress(text_of(number, 0, SIZE, WORDS).encode())
        payload += deflater.flush(zlib.Z_SYNC_FLUSH)
        return record(5, payload.removesuffix(TAIL), first=COMPRESSED)

    checker = Checker(WORDS, extension)
    for data in (compressed(9) + BEGIN + compressed(0) + compressed(1), BEGIN + compressed(0)):
        found = checker.check(data, size=SIZE, reply="", groups=1, window=(0, 1))
        assert found.problems() == []
        assert found.messages


# The generator's answers


def test_an_answer_is_one_object() -> None:
    assert parse(b'{"from": 1, "to": 2}') == {"begin": 1, "end": 2}
    for line in (b"", b"[]", b"Segmentation fault"):
        with pytest.raises(GeneratorFailed, match="expected a JSON object"):
            parse(line)


# Servers and what they need


def test_every_server_has_its_program() -> None:
    for server in (*servers.SERVERS, *servers.ROOMS):
        name = server.program + (".py" if server.kind == "uvicorn" else "")
        name = "ours_rooms.py" if server.program == "ours_rooms" else name
        assert not name or (environments.PEERS / name).is_file(), server.name


def test_a_server_is_asked_only_for_what_it_can() -> None:
    asked = {
        server.name: rounds.cells(server, regimes.REGIMES, regimes.FULL)
        for server in servers.SERVERS
    }
    assert asked["ours"] == list(regimes.REGIMES)
    assert not any(regime.compression for regime in asked["nchan"])
    assert not any(regime.kind == "echo" for regime in asked["litestar"])


def test_what_cannot_be_had_is_skipped_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_nginx(server: Server) -> None:
        if server.kind == "nginx":
            raise Unavailable("install it first")

    monkeypatch.setattr(environments, "prepare", no_nginx)
    monkeypatch.setattr(environments, "version", lambda server: "1.0")
    results = Results()
    there = rounds.prepare_all(servers.SERVERS, results, Quiet())
    assert len(there) == len(servers.SERVERS) - 1
    assert results.skipped == {"nchan": "install it first"}
    assert results.versions["ours"] == "1.0"


class Quiet:
    """Progress that nobody looks at."""

    def begin(self, total: int) -> None: ...
    def tell(self, text: str) -> None: ...
    def step(self) -> None: ...


def test_the_answer_to_drive_has_the_fields_that_the_generator_prints() -> None:
    source = (environments.HERE / "load.c").read_text()
    for name in Drive.__dataclass_fields__:
        printed = {"begin": "from", "end": "to"}.get(name, name)
        assert f'\\"{printed}\\":' in source


# All of it, where it can be compiled: CI has gcc, and no test may be skipped there.


@pytest.mark.parametrize("here", [True] if shutil.which("gcc") else [])
def test_a_short_run_of_ours(here: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environments, "HOME", tmp_path)
    monkeypatch.setattr(environments, "ours_python", lambda: Path(sys.executable))
    saved: list[int] = []
    wanted = [regimes.BY_NAME[name] for name in ("echo", "accept", "idle", "eight", "offered")]
    results = rounds.run(
        *([servers.OURS], wanted, regimes.SMOKE, Quiet()),
        lambda found: saved.append(len(found.measurements)),
    )
    assert saved == [len(wanted)]
    for regime in wanted:
        (measured,) = results.of("ours", regime.name)
        assert measured.value is not None, measured.problems
        if regime.kind != "idle":
            assert measured.value > 0
    (eight,) = results.of("ours", "eight")
    assert eight.detail["checked"] == 3 * eight.detail["messages"]
    assert eight.detail["one_order"]
    assert eight.p99 is not None
    assert json.loads(json.dumps(results.about))["form"] == "smoke"
