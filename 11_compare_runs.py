"""Stage 11: which method is better, and how sure is that?

Works from files alone: the metrics.json and breakdown.csv of stage 10, the manifests beside them and the training logs
they lead to. All evaluations must hold the same records. Methods are compared pair by pair with a paired bootstrap over
records (and seeds), exact McNemar and Holm's correction; the words of the report follow the intervals. Where stage 10
measured them, the published evaluator's figures stand beside ours, and accuracy is given by steps, operations, evidence
and kind of answer.

Reads:  metrics.json files, evaluation folders, run folders or globs of them (default: all of the newest run)
Writes: outputs/run_XXX/11_comparison/{summary.csv, differences.csv, groups.csv, report.md, plots/*.png,
        manifest.json}

    python 11_compare_runs.py
    python 11_compare_runs.py "outputs/run_*/10_evaluation*/metrics.json" --output_dir outputs/compare_001/11_comparison
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from utils.config import setting
from utils.files import write_text
from utils.settings import RunSettings
from utils.stage import Stage, main

if TYPE_CHECKING:
    from utils.evaluation.comparison import OverSeeds
    from utils.reporting.breakdowns import GroupRate
    from utils.reporting.curves import Curve
    from utils.reporting.tables import Row
    from utils.tasks.words import Words


@dataclass(frozen=True)
class Inputs:
    """What is compared."""

    evaluations: tuple[str, ...] = setting((), "metrics.json files, evaluation or run folders, globs", positional=True)


@dataclass(frozen=True)
class Config:
    """Settings of stage 11; --seed is that of the bootstrap."""

    run: RunSettings
    comparison: Inputs


def run(cfg: Config, stage: Stage) -> None:
    """Read, compare, write tables, pictures and words."""
    from utils.evaluation import comparison as compare
    from utils.reporting.breakdowns import GroupRate, group_rates
    from utils.reporting.curves import find_logs, read_curves
    from utils.reporting.report import Comparison, write_report
    from utils.reporting.tables import result_table, summary_rows, write_table

    folders = compare.find_evaluations(cfg.comparison.evaluations or [str(stage.run_dir)])
    for folder in folders:
        for name in ("metrics.json", "breakdown.csv"):
            stage.input(folder / name)
    evaluations = compare.load_evaluations(folders)
    rows = summary_rows(evaluations)
    pairs = compare.differences(evaluations, cfg.run.seed)
    accuracy = compare.over_seeds(evaluations, cfg.run.seed)
    groups = group_rates(evaluations, cfg.run.seed)
    curves = read_curves([(method, stage.input(log)) for method, log in find_logs(evaluations)])
    notes = compare.notes_on(evaluations)
    for note in notes:
        stage.warn(note)

    write_table(stage.path("summary.csv"), rows, list(rows[0]))
    write_table(
        stage.path("differences.csv"),
        [pair.row() for pair in pairs],
        [field.name for field in fields(compare.Difference)],
    )
    write_table(
        stage.path("groups.csv"), [group.row() for group in groups], [field.name for field in fields(GroupRate)]
    )
    pictures = draw(stage.path("plots"), evaluations[0].words, rows, accuracy, groups, curves)
    comparison = Comparison(evaluations, rows, pairs, accuracy, pictures, notes, cfg.run.seed, groups)
    write_text(stage.path("report.md"), write_report(comparison))
    stage.report({"evaluations": len(evaluations), "pairs": len(pairs)})
    stage.terminal.table("result", *result_table(rows))
    stage.terminal.say(f"report: {stage.path('report.md')}")


def draw(
    folder: Path,
    words: Words,
    rows: Sequence[Row],
    accuracy: Sequence[OverSeeds],
    groups: Sequence[GroupRate],
    curves: Sequence[Curve],
) -> list[str]:
    """Write the pictures that the data allow; their names."""
    from utils.reporting import plots

    plots.reward_vs_method(folder / "reward_vs_method.png", rows, accuracy)
    drawn = ["reward_vs_method.png"]
    if plots.efficiency_vs_quality(folder / "efficiency_vs_quality.png", rows, accuracy):
        drawn.append("efficiency_vs_quality.png")
    if plots.accuracy_by_group(folder / "accuracy_by_group.png", groups, words):
        drawn.append("accuracy_by_group.png")
    if len({row["seed"] for row in rows}) > 1:
        plots.score_vs_seed(folder / "score_vs_seed.png", rows)
        drawn.append("score_vs_seed.png")
    if curves:
        plots.training_curves(folder / "training_curves.png", curves)
        drawn.append("training_curves.png")
    return drawn


if __name__ == "__main__":
    raise SystemExit(main(Config, run, __doc__, __file__))
