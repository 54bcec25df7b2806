"""The command line of the benchmark: `python -m benchmarks --help`.

Exit status: 0 done, even if some servers could not be installed; 1 nothing could be measured; 2 a
flag can't be used; 130 Ctrl-C.
"""

import argparse
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import brokers, guards, regimes, rounds, servers
from benchmarks.brokers.participants import BY_NAME, PARTICIPANTS, Participant
from benchmarks.environments import REPOSITORY, Unavailable
from benchmarks.load import GeneratorFailed
from benchmarks.process import NotServing, cores
from benchmarks.progress import progress
from benchmarks.results import Results
from benchmarks.tables import markdown, plain, tables

__all__ = ["main"]

RESULTS = REPOSITORY / "benchmarks" / "results"
DOCS = REPOSITORY / "docs"
SPARE_FILES = 200  # descriptors that a server needs besides its clients'


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name (those of the process if None); return the status."""
    arguments = _parser().parse_args(argv)
    # So that child processes are ended, too; a shell's background job ignores Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        return int(arguments.command(arguments))
    except (Unavailable, GeneratorFailed, NotServing, OSError) as error:
        print(f"benchmarks: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="How fast are we beside others? benchmarks/README.md tells the method.",
    )
    commands = parser.add_subparsers(required=True, metavar="run | brokers | guards | table | plot")
    _add_run(commands.add_parser("run", help="measure all servers in all regimes"))

    _add_brokers(commands.add_parser("brokers", help="our brokers beside others, in five minutes"))
    _add_guards(commands.add_parser("guards", help="attacks on ours, and on FastAPI's tutorial"))

    table = commands.add_parser("table", help="print the tables of a run that was kept")
    table.set_defaults(command=_table)
    table.add_argument("file", type=Path)
    table.add_argument("--markdown", action="store_true")

    plot = commands.add_parser("plot", help="draw the plot of a run that was kept")
    plot.set_defaults(command=_plot)
    plot.add_argument("file", type=Path)
    plot.add_argument("--folder", type=Path, default=DOCS, help="default: docs/")
    return parser


def _add_run(run: argparse.ArgumentParser) -> None:
    run.set_defaults(command=_run)
    form = run.add_mutually_exclusive_group()
    form.add_argument(
        "--quick",
        dest="form",
        action="store_const",
        const=regimes.QUICK,
        default=regimes.QUICK,
        help="two rounds of what the goals are about, under five minutes (the default)",
    )
    form.add_argument(
        "--full",
        dest="form",
        action="store_const",
        const=regimes.FULL,
        help="five longer rounds of all servers in all regimes",
    )
    run.add_argument(
        "--only",
        type=_servers,
        default=[servers.OURS, *servers.PEERS],
        metavar="SERVER,…",
        help=f"of {', '.join(server.name for server in servers.PEERS)}, and ours for ratios",
    )
    run.add_argument(
        "--before",
        type=Path,
        metavar="FOLDER",
        help="another checkout of this repository, with its .venv: it is measured as well",
    )
    run.add_argument(
        "--regimes",
        type=_regimes,
        default=list(regimes.REGIMES),
        metavar="REGIME,…",
        help=f"of {', '.join(regimes.BY_NAME)}",
    )
    run.add_argument("--rounds", type=_positive, help="instead of the form's")
    run.add_argument("--seconds", type=float, help="of measuring in each regime")
    run.add_argument("--out", type=Path, help="default: benchmarks/results/<form>.json")


def _add_brokers(broker: argparse.ArgumentParser) -> None:
    broker.set_defaults(command=_brokers)
    broker.add_argument(
        "--only",
        type=_participants,
        default=PARTICIPANTS,
        metavar="NAME,…",
        help=f"of {', '.join(BY_NAME)}",
    )
    broker.add_argument("--rounds", type=_positive, default=brokers.FORM.rounds)
    broker.add_argument("--seconds", type=float, default=brokers.FORM.seconds, help="of measuring")
    broker.add_argument("--out", type=Path, default=RESULTS / "brokers.json")


def _add_guards(guard: argparse.ArgumentParser) -> None:
    guard.set_defaults(command=_guards)
    guard.add_argument(
        "--only",
        type=_attacked,
        default=guards.SERVERS,
        metavar="SERVER",
        help=f"one of {', '.join(server.name for server in guards.SERVERS)}",
    )
    guard.add_argument(
        "--rows",
        type=_rows,
        default=guards.GUARDS,
        metavar="ROW,…",
        help=f"of {', '.join(map(str, guards.BY_ROW))}",
    )
    guard.add_argument("--out", type=Path, default=RESULTS / "guards.json")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, but got {text!r}")
    return int(text)


def _servers(text: str) -> list[servers.Server]:
    there = [servers.OURS, *servers.PEERS]
    unknown = set(text.split(",")) - {server.name for server in there}
    if unknown:
        raise argparse.ArgumentTypeError(f"no such server: {', '.join(sorted(unknown))}")
    return [server for server in there if server.name in text.split(",")]


def _participants(text: str) -> list[Participant]:
    unknown = set(text.split(",")) - BY_NAME.keys()
    if unknown:
        raise argparse.ArgumentTypeError(f"no such participant: {', '.join(sorted(unknown))}")
    return [participant for participant in PARTICIPANTS if participant.name in text.split(",")]


def _attacked(text: str) -> list[servers.Server]:
    found = [server for server in guards.SERVERS if server.name == text]
    if not found:
        raise argparse.ArgumentTypeError(f"no such server: {text}")
    return found


def _rows(text: str) -> list[guards.Guard]:
    unknown = set(text.split(",")) - set(map(str, guards.BY_ROW))
    if unknown:
        raise argparse.ArgumentTypeError(f"no such row: {', '.join(sorted(unknown))}")
    return [guard for guard in guards.GUARDS if str(guard.row) in text.split(",")]


def _regimes(text: str) -> list[regimes.Regime]:
    unknown = set(text.split(",")) - regimes.BY_NAME.keys()
    if unknown:
        raise argparse.ArgumentTypeError(f"no such regime: {', '.join(sorted(unknown))}")
    return [regime for regime in regimes.REGIMES if regime.name in text.split(",")]


def _files() -> int:
    """Raise the number of files that a process may open, and return it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def _warn() -> None:
    if cores()[0] == cores()[1]:
        print("Only one core here: server and generator share it.", file=sys.stderr)


def _fitting(chosen: list[regimes.Regime]) -> list[regimes.Regime]:
    """The regimes for whose clients a process may open enough files here."""
    files = _files()
    found = [regime for regime in chosen if regime.clients + SPARE_FILES <= files]
    for regime in chosen:
        if regime not in found:
            print(f"Left out: {regime.label}, as a process may open {files} files", file=sys.stderr)
    return found


def _run(arguments: argparse.Namespace) -> int:
    form: regimes.Form = arguments.form
    changes = {name: getattr(arguments, name) for name in ("rounds", "seconds")}
    form = replace(form, **{name: value for name, value in changes.items() if value})
    measured = list(arguments.only)
    if arguments.before:
        measured.insert(1, replace(servers.BEFORE, checkout=arguments.before.resolve()))
    out: Path = arguments.out or RESULTS / f"{form.name}.json"
    _warn()
    with progress() as shown:
        results = rounds.run(
            *(measured, _fitting(arguments.regimes), form, shown), lambda found: found.save(out)
        )
    print("\n\n".join(plain(table) for table in tables(results)))
    print(f"\nKept in {out}.")
    return 0 if results.measurements else 1


def _brokers(arguments: argparse.Namespace) -> int:
    _files()
    _warn()
    out: Path = arguments.out
    form = replace(brokers.FORM, rounds=arguments.rounds, seconds=arguments.seconds)
    with progress() as shown:
        results = brokers.run(arguments.only, form, shown, lambda found: found.save(out))
    print("\n\n".join(plain(table) for table in brokers.tables(results)))
    print(f"\nKept in {out}.")
    return 0 if results.measurements else 1


def _guards(arguments: argparse.Namespace) -> int:
    _files()
    _warn()
    out: Path = arguments.out
    with progress() as shown:
        results = guards.run(arguments.only, arguments.rows, shown, lambda found: found.save(out))
    print("\n\n".join(markdown(table) for table in guards.tables(results)))
    print(f"\nKept in {out}.")
    return 0 if any(measurement.detail for measurement in results.measurements) else 1


def _table(arguments: argparse.Namespace) -> int:
    results = Results.load(arguments.file)
    show = markdown if arguments.markdown else plain
    made = {guards.FORM.name: guards.tables, brokers.FORM.name: brokers.tables}
    print("\n\n".join(map(show, made.get(results.about["form"], tables)(results))))
    return 0


def _plot(arguments: argparse.Namespace) -> int:
    from benchmarks import plots  # importing matplotlib takes a while

    for path in plots.throughput(Results.load(arguments.file), arguments.folder):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
