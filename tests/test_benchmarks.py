"""The benchmark's own parts: what decides without a server, and one short run of it all."""

import json
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import pytest

from benchmarks import brokers, environments, goals, guards, regimes, rounds, servers, tables
from benchmarks.attacks import rooms, target
from benchmarks.attacks.client import Frame, split
from benchmarks.attacks.kernel import Connection, connections
from benchmarks.attacks.target import Figures, worst
from benchmarks.environments import Unavailable
from benchmarks.load import Drive, GeneratorFailed, parse
from benchmarks.probes import MARK, TAIL, Checker, percentile, records, text_of
from benchmarks.results import Measurement, Results, Spread, spread
from benchmarks.servers import Server

Shown: TypeAlias = Callable[[Results], Sequence[tables.Table]]
WORDS = "the kettle is on "
SIZE = 60
PLAIN, COMPRESSED = 0x81, 0xC1


def record(connection: int, payload: bytes, *, first: int = PLAIN, arrived: int = 0) -> bytes:
    return struct.pack("=QIII", arrived, connection, first, len(payload)) + payload


def said(connection: int, number: int, *, due: int = 0, arrived: int = 0) -> bytes:
    text = f"Client #1000000 says: {text_of(number, 0, due, SIZE, WORDS)}"
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
    assert results.ratio(("ours", "one"), ("ws", "one")) == Spread(2, 1, 3)
    assert results.ratio(("ours", "one"), ("nchan", "one")) is None
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
    named = {name for goal in goals.GOALS for name in (goal.regime, goal.beside) if name}
    assert named <= regimes.BY_NAME.keys()
    assert {goal.peer for goal in goals.GOALS} <= servers.BY_NAME.keys() | {""}


@pytest.mark.parametrize(("value", "met"), [(299.0, False), (300.0, True), (400.0, True)])
def test_a_multiple_is_met_from_its_bound_on(value: float, met: bool) -> None:
    results = Results()
    results.measurements = [
        Measurement("ours", "one", 0, value),
        Measurement("fastapi", "one", 0, 100.0),
    ]
    found = {(v.goal.regime, v.goal.peer): v for v in goals.verdicts(results)}
    assert found["one", "fastapi"].met is met
    assert found["one", "bun"] == (found["one", "bun"].goal, None, None)


def test_a_goal_may_be_about_another_regime_of_ours() -> None:
    results = Results()
    results.measurements = [
        Measurement("ours", "deflate", 0, 95.0),
        Measurement("ours", "eight", 0, 100.0),
    ]
    (found,) = (v for v in goals.verdicts(results) if v.goal.beside == "eight")
    assert found.reached == Spread(0.95, 0.95, 0.95)
    assert found.met


@pytest.mark.parametrize(("delivered", "p99", "met"), [(100.0, 24.0, True), (99.99, 26.0, False)])
def test_bounds_of_its_own_and_beside_a_peers_latency(
    delivered: float, p99: float, met: bool
) -> None:
    results = Results()
    results.measurements = [
        Measurement("ours", "offered", 0, delivered, p99=p99),
        Measurement("bun", "offered", 0, 100.0, p99=25.0),
    ]
    found = [v.met for v in goals.verdicts(results) if v.goal.regime == "offered"]
    assert found == [met, None, met]


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
    answer = record(5, f"You wrote: {text_of(0, 0, 0, SIZE, WORDS)}".encode())
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
        payload = deflater.compress(text_of(number, 0, 0, SIZE, WORDS).encode())
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


def test_the_runner_needs_the_standard_library_only() -> None:
    """Its environment has neither our package nor what that needs."""
    command = [sys.executable, "-S", "-c", "import benchmarks.__main__"]
    subprocess.run(command, cwd=environments.REPOSITORY, check=True, timeout=30)


def test_every_server_has_its_program() -> None:
    for server in servers.SERVERS:
        name = server.program + (".py" if server.kind == "uvicorn" else "")
        assert not name or (environments.PEERS / name).is_file(), server.name
    for regime in regimes.REGIMES:
        assert not regime.program or (environments.PEERS / f"{regime.program}.py").is_file()


def test_a_server_is_asked_only_for_what_it_can() -> None:
    def asked(name: str, form: regimes.Form) -> list[str]:
        server = servers.BY_NAME[name]
        return [each.name for each in regimes.REGIMES if rounds.asked(server, each, form)]

    assert asked("ours", regimes.FULL) == list(regimes.BY_NAME)
    assert not any("deflate" in name for name in asked("nchan", regimes.FULL))
    assert "echo" not in asked("litestar", regimes.FULL)
    assert "rooms" not in asked("fastapi", regimes.FULL)
    assert asked("socketio", regimes.QUICK) == []
    assert asked("nchan", regimes.QUICK) == ["eight", "eight-1k"]


def test_a_server_that_cannot_be_installed_is_skipped_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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
    """Progress that shows nothing."""

    def begin(self, total: int) -> None: ...
    def tell(self, text: str) -> None: ...
    def step(self) -> None: ...


def test_the_answer_to_drive_has_the_fields_that_the_generator_prints() -> None:
    source = (environments.HERE / "load.c").read_text()
    for name in Drive.__dataclass_fields__:
        printed = {"begin": "from", "end": "to"}.get(name, name)
        assert f'\\"{printed}\\":' in source


# The guards


def test_every_guard_has_figures_of_its_own_and_a_goal() -> None:
    assert len(guards.BY_ROW) == len(guards.GUARDS) == len({each.name for each in guards.GUARDS})
    for guard in guards.GUARDS:
        names = [figure.name for figure in guard.figures]
        assert len(set(names)) == len(names)
        assert any(figure.goal for figure in guard.figures), guard.name
        for server in guards.SERVERS if guard.program else []:
            assert (environments.PEERS / f"{server.name}_{guard.program}.py").is_file()


@pytest.mark.parametrize(
    ("figure", "goal", "good", "bad"),
    [
        (guards.Figure("n", ""), "", [], []),
        (guards.Figure("n", "", "s", most=5), "≤ 5 s", [0, 5], [5.1, None]),
        (guards.Figure("n", "", most=0), "0", [0], [1, None]),
        (guards.Figure("n", "", least=2000), "≥ 2,000", [2000], [1999, None]),
        (guards.Figure("n", "", "yes", least=1), "yes", [1], [0, None]),
        (guards.Figure("n", "", among=(429, 503)), "429 or 503", [429, 503], [101, None]),
    ],
)
def test_goals_of_guards(
    figure: guards.Figure, goal: str, good: list[float], bad: list[float | None]
) -> None:
    assert figure.goal == goal
    assert [guards.met(figure, value) for value in good] == [True] * len(good)
    assert [guards.met(figure, value) for value in bad] == [False] * len(bad)
    assert goal or guards.met(figure, 1) is None


@pytest.mark.parametrize(
    ("figure", "value", "text"),
    [
        (guards.Figure("n", "", "s"), 3.214, "3.21 s"),
        (guards.Figure("n", "", "s", none="never"), None, "never"),
        (guards.Figure("n", ""), 2035456, "2,035,456"),
        (guards.Figure("code", ""), 1008, "1008"),
        (guards.Figure("n", "", "yes"), 1, "yes"),
        (guards.Figure("n", "", "yes"), 0, "no"),
    ],
)
def test_figures_as_text(figure: guards.Figure, value: float | None, text: str) -> None:
    assert figure.show(value) == text


def test_the_table_of_guards() -> None:
    results = Results(about={"form": "guards"})
    found: dict[str, Figures] = {
        "fastapi": {"exit": None, "told": 990},
        "ours": {"exit": 0.7, "told": 989},
    }
    for name, detail in found.items():
        results.measurements.append(Measurement(name, "sigterm", 0, None, detail=detail))
    results.measurements[-1].problems.append("odd")
    (table,) = guards.tables(results)
    assert table.rows[:3] == [
        ["24. SIGTERM with 1,000 clients, ten of which never read", "", "", "", ""],
        ["· exit after", "≤ 5 s", "never", "0.70 s", "met"],
        ["· readers told (of 990)", "≥ 990", "990", "989", "MISSED"],
    ]
    # What was not found can't be right.
    assert table.rows[3] == ["· tracebacks", "0", "–", "–", "MISSED"]
    assert table.notes == ["24, chatserver (ours): odd."]


def test_frames_are_taken_off_the_front() -> None:
    long = bytes(range(200))
    data = bytearray(b"\x81\x02hi\x89\x00\x82\x7e\x00\xc8" + long + b"\x88\x02\x03")
    assert split(data) == [Frame(1, b"hi"), Frame(9, b""), Frame(2, long)]
    assert data == b"\x88\x02\x03"
    data += b"\xf0"
    (closed,) = split(data)
    assert (closed.code, Frame(8, b"").code, len(data)) == (1008, 1005, 0)


def test_what_the_kernel_says_of_connections() -> None:
    table = "\n".join(
        [
            "sl local_address rem_address st tx_queue rx_queue tr tm->when retrnsmt uid timeout",
            # The listener; both ends of one connection; one that the server has let go; another's.
            "0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 7 1",
            "1: 0100007F:1F90 0100007F:0400 01 00000010:00000000 00:00000000 00000000 0 0 8 1",
            "2: 0100007F:0400 0100007F:1F90 01 00000000:00000020 00:00000000 00000000 0 0 9 1",
            "3: 0100007F:1F90 0100007F:0401 04 00000003:00000000 00:00000000 00000000 0 0 0 1",
            "4: 0100007F:0402 0100007F:0016 01 00000000:00000000 00:00000000 00000000 0 0 5 1",
        ]
    )
    assert connections(table, 8080) == {0x400: Connection(8, 0x30), 0x401: Connection(0, 3)}


def test_never_is_worse_than_any_time() -> None:
    assert worst([1.0, 3.0, 2.0]) == 3
    assert worst([1.0, None]) is None
    assert worst([]) is None


def test_lines_that_every_connection_leaves_do_not_count() -> None:
    log = (
        'INFO:     127.0.0.1:1 - "WebSocket /ws/1" [accepted]\n'
        "INFO:     connection open\n"
        "INFO:     127.0.0.1 - closed with 1007: not UTF-8\n"
        "ERROR:    Exception in ASGI application\n"
        "Traceback (most recent call last):\n"
        "INFO:     connection closed\n"
    )
    assert (target.unusual(log), target.tracebacks(log)) == (3, 1)


def test_poison_is_poison() -> None:
    """What may be taken as fine is whole text; all else is answered with a code for that."""
    for data, codes in rooms.POISON.values():
        assert codes is rooms.FINE or codes <= {1002, 1003, 1007, 1008, 1009}
        if codes is rooms.FINE:
            assert data[0] == 0x81


def test_some_attacks_on_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environments, "ours_python", lambda server: Path(sys.executable))
    chosen = [guards.BY_ROW[row] for row in (10, 13, 15, 18, 19)]
    results = guards.run([servers.OURS], chosen, Quiet(), lambda found: found.save(tmp_path / "g"))
    assert Results.load(tmp_path / "g") == results
    (table,) = guards.tables(results)
    assert table.notes == []
    # Memory is for the benchmark: here the process may be measured for coverage.
    assert [row for row in table.rows if "MISSED" in row and "memory" not in row[0]] == []


# All of it, where it can be compiled: CI has gcc, and no test may be skipped there.


@pytest.mark.parametrize("here", [True] if shutil.which("gcc") else [])
def test_a_short_run_of_ours(here: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environments, "HOME", tmp_path)
    monkeypatch.setattr(environments, "ours_python", lambda server: Path(sys.executable))
    saved: list[int] = []
    wanted = [
        regimes.BY_NAME[name] for name in ("echo", "accept", "idle", "eight", "offered", "herd")
    ]
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


# What is shown of the runs that are kept


@pytest.mark.parametrize(
    ("page", "kept", "shown"),
    [
        ("docs/performance.md", "full.json", lambda found: [tables.summary(found)]),
        ("docs/guards.md", "guards.json", guards.tables),
        ("docs/performance.md", "brokers.json", brokers.tables),
    ],
)
def test_pages_show_the_figures_that_are_kept(page: str, kept: str, shown: Shown) -> None:
    root = Path(__file__).parent.parent
    results = Results.load(root / "benchmarks" / "results" / kept)
    for table in shown(results):
        rows = tables.markdown(table).split("\n\n", 1)[1]
        assert rows in (root / page).read_text("utf-8")
