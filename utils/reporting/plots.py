"""Pictures of a comparison: one function per file, drawn from numbers that are also in a table.

Colours are those of Okabe and Ito (2008), told apart by every kind of colour vision; each method also has its own
marker. Names stand on an axis or in a legend beside the axes, so that no label covers a point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.evaluation.comparison import NOT_TRAINED, OverSeeds
from utils.reporting.breakdowns import GroupRate
from utils.reporting.curves import Curve
from utils.reporting.tables import Row
from utils.tasks.words import Words, words_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES: dict[str, tuple[str, str]] = {
    "majority": ("#999999", "x"),
    "base": ("#666666", "s"),
    "sft": ("#0072B2", "o"),
    "sft_more": ("#56B4E9", "s"),
    "rejection_sampling": ("#E69F00", "^"),
    "dpo": ("#000000", "D"),
    "ppo": ("#CC79A7", "v"),
    "rloo": ("#009E73", "P"),
    "grpo": ("#D55E00", "*"),
    "gold": ("#999999", "d"),
}
OTHER_STYLES = (("#000000", "<"), ("#F0E442", ">"), ("#0072B2", "X"), ("#D55E00", "p"))
DPI = 130
SPIKE = 10.0
"""A panel whose largest value is so many times its 99th percentile is drawn on a scale that keeps the others apart."""


def reward_vs_method(path: Path, rows: Sequence[Row], accuracy: Sequence[OverSeeds]) -> None:
    """Accuracy (left) and mean reward (right) per method, with 95 % intervals; seeds as small dots.

    Over several seeds the mean reward has no interval: the dots show its spread.
    """
    words = words_of(rows[0])
    figure, axes = _figure(1, 2, (10.0, 1.3 + 0.42 * len(accuracy)), sharey=True)
    places = {line.method: place for place, line in enumerate(reversed(accuracy))}
    for line in accuracy:
        own = [row for row in rows if row["method"] == line.method]
        _rate(axes[0], line.method, 100 * line.mean, places[line.method], (100 * line.low, 100 * line.high))
        axes[0].annotate(
            f"{100 * line.mean:.1f}",
            (100 * line.high, places[line.method]),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
        reward = sum(float(row["mean_reward"]) for row in own) / len(own)
        span = (
            (float(own[0]["mean_reward_low"]), float(own[0]["mean_reward_high"])) if len(own) == 1 else (reward, reward)
        )
        _rate(axes[1], line.method, reward, places[line.method], span)
        if len(own) > 1:
            _dots(axes[0], [100 * float(row[words.decides]) for row in own], places[line.method])
            _dots(axes[1], [float(row["mean_reward"]) for row in own], places[line.method])
    axes[0].set_yticks(list(places.values()), list(places))
    axes[0].set_ylim(-0.6, len(places) - 0.4)
    axes[0].set_xlim(left=0, right=max(100 * line.high for line in accuracy) * 1.12 + 1)
    axes[0].set_xlabel(f"{words.accuracy} in %, 95 % interval")
    axes[1].set_xlabel("mean reward, 95 % interval" if len(rows) == len(accuracy) else "mean reward")
    _save(figure, path)


def efficiency_vs_quality(path: Path, rows: Sequence[Row], accuracy: Sequence[OverSeeds]) -> bool:
    """Computation that led to each policy against its accuracy; False when no stage counted its tokens.

    One point per method: means over its seeds, with the 95 % interval. Methods that were not trained are lines, where
    they are near; the legend has their value.
    """
    spent = _mean_compute(rows)
    if not any(line.method in spent for line in accuracy):
        return False
    figure, (axis,) = _figure(1, 1, (8.4, 4.6))
    for line in accuracy:
        if line.method in NOT_TRAINED:
            dashes = {"majority": ":", "base": "-.", "gold": "--"}[line.method]
            label = f"{line.method} {100 * line.mean:.1f}"
            axis.axhline(100 * line.mean, color=style(line.method)[0], linestyle=dashes, label=label)
    for line in (line for line in accuracy if line.method in spent):
        colour, marker = style(line.method)
        axis.errorbar(
            [spent[line.method]], [100 * line.mean], color=colour, marker=marker, markersize=9, capsize=3,
            yerr=[[100 * (line.mean - line.low)], [100 * (line.high - line.mean)]], linestyle="none", label=line.method,
        )  # fmt: skip
    axis.set_xlabel("computation since the base model, million forward tokens")
    axis.set_ylabel(f"{words_of(rows[0]).accuracy} in %, 95 % interval")
    axis.set_xlim(left=0)
    there = [line for line in accuracy if line.method in spent]
    axis.set_ylim(*_around([100 * line.low for line in there], [100 * line.high for line in there]))
    _legend(axis)
    _save(figure, path)
    return True


def score_vs_seed(path: Path, rows: Sequence[Row]) -> None:
    """Accuracy of every trained method and seed, methods side by side within a seed (of all, if none is)."""
    rows = [row for row in rows if row["method"] not in NOT_TRAINED] or rows
    decides = words_of(rows[0]).decides
    seeds = sorted({int(row["seed"]) for row in rows})
    methods = list(dict.fromkeys(str(row["method"]) for row in rows))
    figure, (axis,) = _figure(1, 1, (2.6 + max(4.0, 0.26 * len(seeds) * len(methods)), 4.4))
    step = 0.8 / max(1, len(methods))
    for row in rows:
        method = str(row["method"])
        colour, marker = style(method)
        place = seeds.index(int(row["seed"])) + (methods.index(method) - (len(methods) - 1) / 2) * step
        rate, low, high = (100 * float(row[f"{decides}{end}"]) for end in ("", "_low", "_high"))
        axis.errorbar(
            [place],
            [rate],
            yerr=[[rate - low], [high - rate]],
            color=colour,
            marker=marker,
            capsize=2,
            linestyle="none",
            label=method,
        )
    axis.set_xticks(range(len(seeds)), [str(seed) for seed in seeds])
    axis.set_xlabel("seed")
    axis.set_ylabel(f"{words_of(rows[0]).accuracy} in %, 95 % interval")
    axis.set_ylim(*_around(*([100 * float(row[f"{decides}_{end}"]) for row in rows] for end in ("low", "high"))))
    for between in range(1, len(seeds)):
        axis.axvline(between - 0.5, color="#dddddd", linewidth=0.8)
    _legend(axis)
    _save(figure, path)


def accuracy_by_group(path: Path, rates: Sequence[GroupRate], words: Words) -> bool:
    """Accuracy by the task's groupings, a panel each; False when no such rate is there.

    A group has a line per method, with its 95 % interval; the number of its records stands below its name. `gold` and
    `majority`, which read no record, are left out.
    """
    methods = [name for name in dict.fromkeys(rate.method for rate in rates) if name not in ("gold", "majority")]
    panels = [[rate for rate in rates if rate.by == by and rate.method in methods] for by in words.pictured]
    panels = [panel for panel in panels if panel]
    if not panels:
        return False
    lines = max(len({rate.group for rate in panel}) for panel in panels) * (len(methods) + 1)
    figure, axes = _figure(1, len(panels), (3.4 * len(panels) + 1.8, 1.4 + max(1.6, 0.17 * lines)))
    right = max(100 * rate.high for panel in panels for rate in panel)
    for axis, panel in zip(axes, panels, strict=True):
        sizes = {rate.group: rate.n for rate in panel}
        for rate in panel:
            beside = (methods.index(rate.method) - (len(methods) - 1) / 2) * 0.8 / len(methods)
            place = -list(sizes).index(rate.group) - beside
            span = (100 * rate.low, 100 * rate.high)
            _rate(axis, rate.method, 100 * rate.accuracy, place, span, label=rate.method)
        axis.set_yticks([-place for place in range(len(sizes))], [f"{name}\n(n {n:,})" for name, n in sizes.items()])
        axis.set_ylim(0.5 - len(sizes), 0.5)
        axis.set_xlim(-0.03 * right, 1.03 * right)
        axis.set_title(words.groupings[panel[0].by], fontsize=10, loc="left")
        for between in range(1, len(sizes)):
            axis.axhline(0.5 - between, color="#dddddd", linewidth=0.8)
    figure.supxlabel(f"{words.accuracy} in %, 95 % interval", fontsize=10)
    _legend(axes[-1])
    _save(figure, path)
    return True


def training_curves(path: Path, curves: Sequence[Curve]) -> None:
    """One panel per metric over training steps, one line per method: the mean over seeds, in a band of their range.

    A line ends where the shortest of its seeds does.
    """
    panels = list(dict.fromkeys(curve.panel for curve in curves))
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = _figure(lines, columns, (4.6 * columns + 2.2, 3.0 * lines + 0.3))
    drawn: dict[str, Any] = {}
    for axis, panel in zip(axes, panels, strict=False):
        own = [curve for curve in curves if curve.panel == panel]
        for method in dict.fromkeys(curve.name for curve in own):
            steps, means, lows, highs = _over_seeds([curve for curve in own if curve.name == method])
            colour, marker = style(method)
            few = marker if len(steps) <= 12 else None
            (line,) = axis.plot(steps, means, color=colour, marker=few, markersize=5, linewidth=1.5)
            if lows != highs:
                axis.fill_between(steps, lows, highs, color=colour, alpha=0.15, linewidth=0)
            drawn.setdefault(method, line)
        everything = [value for curve in own for value in curve.values]
        usual = sorted(map(abs, everything))[len(everything) * 9 // 10]
        if max(everything) > SPIKE * sorted(everything)[len(everything) * 99 // 100] > 0 < usual:
            axis.set_yscale("symlog", linthresh=usual)
        axis.set_title(panel, fontsize=10, loc="left")
        axis.set_xlabel("step")
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    figure.legend(list(drawn.values()), list(drawn), loc="outside right upper", frameon=False, fontsize=9)
    _save(figure, path)


def style(method: str) -> tuple[str, str]:
    """(colour, marker) of a method, the same in every picture."""
    return STYLES.get(method) or OTHER_STYLES[sum(method.encode()) % len(OTHER_STYLES)]


def _mean_compute(rows: Sequence[Row]) -> dict[str, float]:
    """Trained method -> millions of forward tokens, the mean over the seeds whose stages counted any."""
    counts: dict[str, list[int]] = {}
    for row in rows:
        if row["method"] not in NOT_TRAINED and row["compute_tokens"] not in ("", 0):
            counts.setdefault(str(row["method"]), []).append(int(row["compute_tokens"]))
    return {method: sum(numbers) / len(numbers) / 1e6 for method, numbers in counts.items()}


def _over_seeds(curves: Sequence[Curve]) -> tuple[list[float], list[float], list[float], list[float]]:
    """(steps, mean, lowest, highest) over curves, value by value as far as all go; seeds may differ in their steps.

    A mean of those that went on alone would be of other seeds than the one before it.
    """
    steps = [sum(at) / len(at) for at in zip(*(curve.steps for curve in curves), strict=False)]
    values = list(zip(*(curve.values for curve in curves), strict=False))
    return steps, [sum(at) / len(at) for at in values], [min(at) for at in values], [max(at) for at in values]


def _around(lows: Sequence[float], highs: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis of percentages that holds these intervals and some room; 5 points at least."""
    room = max(2.5 - (max(highs) - min(lows)) / 2, 0.08 * (max(highs) - min(lows)), 0.5)
    return min(lows) - room, max(highs) + room


def _rate(
    axis: Axes, method: str, value: float, place: float, span: tuple[float, float], label: str | None = None
) -> None:
    colour, marker = style(method)
    error = [[max(0.0, value - span[0])], [max(0.0, span[1] - value)]]
    axis.errorbar(
        [value], [place], xerr=error, color=colour, marker=marker, markersize=6, capsize=3, linestyle="none",
        label=label,
    )  # fmt: skip


def _dots(axis: Axes, values: Sequence[float], place: int) -> None:
    axis.plot(values, [place - 0.28] * len(values), marker=".", color="#555555", markersize=4, linestyle="none")


def _legend(axis: Axes) -> None:
    """Each name once, to the right of the axes."""
    handles, names = axis.get_legend_handles_labels()
    unique: Mapping[str, Any] = dict(zip(names, handles, strict=True))
    axis.legend(
        list(unique.values()), list(unique), frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9
    )


def _figure(rows: int, columns: int, size: tuple[float, float], sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure on the file back end: no window system is touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, sharey=sharey, squeeze=False).flat)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, color="#eeeeee", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
