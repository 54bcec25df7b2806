"""The plot that the README shows, as PNG and SVG.

It has its own background, so that it is legible on a light and on a dark page. Our bar also has a
bold label, for readers that can't tell the colours apart.
"""

# mypy: disable-error-code="import-not-found, import-untyped"

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.regimes import BY_NAME as REGIMES
from benchmarks.results import Results
from benchmarks.servers import BY_NAME as SERVERS
from benchmarks.servers import OURS

__all__ = ["throughput"]

BLUE, GREY, PALE = "#0072B2", "#7F8C96", "#B9C2C9"
INK, PAPER, LINES = "#1B2733", "#FFFFFF", "#E3E8EC"
YARDSTICKS = ("c-single", "c-batched")  # what the machine allows; they can't be used as servers
UNITS = {
    "deliveries/s": "deliveries a second",
    "echoes/s": "echoes a second",
    "KB": "KB; less is better",
    "ms": "milliseconds; less is better",
}
SHOWN = ("one", "eight", "publishers", "thousand", "crowd", "deflate", "echo", "herd")
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": LINES,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "svg.fonttype": "none",
    "svg.hashsalt": "chatserver",  # so that the same data make the same file
}
mpl.use("Agg")


def throughput(results: Results, folder: Path) -> list[Path]:
    """Bars: a panel for each regime, a bar for each server."""
    names = [name for name in SHOWN if results.values(OURS.name, name)]
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            -(-len(names) // 2), 2, figsize=(12, 0.5 + 3.5 * -(-len(names) // 2)), squeeze=False
        )
        for axis, name in zip(axes.flat, names, strict=False):
            _bars(axis, results, name)
        for axis in axes.flat[len(names) :]:
            axis.remove()
        figure.suptitle(_title(results), x=0.01, ha="left", fontsize=12)
        figure.tight_layout(h_pad=2.2, w_pad=2.5, rect=(0, 0, 1, 0.985))
        return _save(figure, folder / "benchmark-throughput")


def _title(results: Results) -> str:
    about = results.about
    return (
        "1,000 clients if not said otherwise, 64-byte messages, one core for the server.\n"
        f"Median and range of {about['rounds']} rounds. The scales are logarithmic."
    )


def _bars(axis: Any, results: Results, regime: str) -> None:
    found = [(name, results.values(name, regime)) for name in SERVERS]
    rows = [(name, value) for name, value in found if value is not None and value.median > 0]
    rows.sort(key=lambda row: row[1].median, reverse=not REGIMES[regime].lower_is_better)
    medians = [value.median for _, value in rows]
    axis.barh(range(len(rows)), medians, color=[_colour(name) for name, _ in rows], height=0.72)
    for at, (_, value) in enumerate(rows):
        axis.plot([value.low, value.high], [at, at], color=INK, linewidth=1.4, alpha=0.65)
        text = _short(float(f"{value.median:.3g}"))
        axis.annotate(
            text, (value.high, at), xytext=(5, 0), textcoords="offset points", va="center", size=9
        )
    axis.set_yticks(range(len(rows)), [SERVERS[name].label for name, _ in rows])
    for tick, (name, _) in zip(axis.get_yticklabels(), rows, strict=True):
        tick.set_fontweight("bold" if name == OURS.name else "normal")
    _scale(axis, medians, linear=REGIMES[regime].kind == "idle")
    axis.invert_yaxis()
    axis.tick_params(axis="y", length=0)
    label = REGIMES[regime].label
    axis.set_title(f"{label[0].upper()}{label[1:]}", fontsize=11 if len(label) < 40 else 9)
    axis.set_xlabel(UNITS.get(REGIMES[regime].unit, REGIMES[regime].unit), fontsize=9, loc="left")


def _colour(server: str) -> str:
    return BLUE if server == OURS.name else PALE if server in YARDSTICKS else GREY


def _scale(axis: Any, values: Sequence[float], *, linear: bool) -> None:
    """Leave room for the numbers at the right; a logarithmic scale begins below the least value."""
    if linear:
        axis.set_xlim(0, max(values) * 1.15)
    else:
        axis.set_xscale("log")
        axis.set_xlim(10 ** (len(str(int(min(values)))) - 1) / 2, max(values) * 4)
    axis.xaxis.set_major_formatter(FuncFormatter(_short))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(axis="x", color=LINES)
    axis.set_axisbelow(True)


def _short(value: float, _: object = None) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _save(figure: Any, stem: Path) -> list[Path]:
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_suffix(".png"), stem.with_suffix(".svg")]
    figure.savefig(paths[0], dpi=110)
    figure.savefig(paths[1], metadata={"Date": None})
    plt.close(figure)
    return paths
