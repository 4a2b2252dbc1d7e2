"""report.md of a comparison: the words follow the intervals.

Made from metrics, breakdowns and manifests alone: no number is typed here, each can be computed again from those files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from utils.evaluation.baselines import GOLD_CONTEXT
from utils.evaluation.comparison import ALPHA, METHOD_ORDER, NOT_TRAINED, Difference, Evaluation, OverSeeds
from utils.evaluation.statistics import DRAWS
from utils.reporting.breakdowns import GroupRate, by_group, by_judge, by_set
from utils.reporting.cost import cost
from utils.reporting.tables import (
    Row,
    bullets,
    capital,
    count,
    interval,
    markdown,
    p_value,
    percent,
    points,
    result_table,
)
from utils.tasks.words import Words

CONTROLS: dict[str, str] = {
    "base": "the model before any training of ours",
    "sft": "supervised fine-tuning until validation accuracy stopped rising: what a method must beat",
    "sft_more": "SFT continued for the computation that the RL method took: more of the same",
    "rejection_sampling": "SFT on sampled completions that turned out correct: the same samples, no RL",
}
FAILURES_SHOWN = 6
ENOUGH_SEEDS = 5
"""With fewer, resampling seeds says little about how another training would come out."""
CAPTIONS: dict[str, str] = {
    "reward_vs_method.png": "Accuracy and reward of each method with 95 % intervals",
    "efficiency_vs_quality.png": "Computation against accuracy",
    "accuracy_by_group.png": "Accuracy by kind of record",
    "score_vs_seed.png": "Accuracy of each seed",
    "training_curves.png": "Training curves",
}


@dataclass(frozen=True)
class Comparison:
    """Everything the report speaks about."""

    evaluations: Sequence[Evaluation]
    rows: Sequence[Row]
    differences: Sequence[Difference]
    accuracy: Sequence[OverSeeds]
    pictures: Sequence[str]
    notes: Sequence[str]
    seed: int
    groups: Sequence[GroupRate] = ()

    @property
    def words(self) -> Words:
        return self.evaluations[0].words

    @property
    def methods(self) -> list[str]:
        return [line.method for line in self.accuracy]

    @property
    def seeds(self) -> list[int]:
        return sorted({one.seed for one in self.evaluations})

    @property
    def shared_seeds(self) -> int:
        """Seeds that all trained methods have: what is said of all of them rests on no more."""
        trained = [one for one in self.evaluations if one.method not in NOT_TRAINED]
        own = [{one.seed for one in trained if one.method == name} for name in {one.method for one in trained}]
        return len(set.intersection(*own)) if own else len(self.seeds)


def write_report(comparison: Comparison) -> str:
    """The Markdown text of report.md."""
    first = comparison.evaluations[0].metrics
    seeds = ", ".join(str(seed) for seed in comparison.seeds)
    title = f"# {len(comparison.methods)} methods on {count(first['n'])} {first['split']} records"
    plural = "s" * (len(comparison.seeds) > 1)
    where = f"Task `{first.get('task', 'unknown')}`, split `{first['split']}`, seed{plural} {seeds}."
    columns, lines = result_table(comparison.rows)
    spoken = [sentence(one) for one in _spoken(comparison.differences)]
    sections = [
        f"{title}\n\n{where}\n\n{headline(comparison)}",
        f"## Results\n\nRates in %, 95 % intervals in brackets.\n\n{markdown(columns, lines)}",
        f"## What the intervals allow to say\n\n{_about(comparison)}{bullets(spoken)}",
        f"## Every pair\n\n{_pairs(comparison.differences)}",
        _over_seeds(comparison),
        by_judge(comparison.rows),
        by_set(comparison.evaluations),
        by_group(comparison.groups, comparison.words),
        _trials(comparison.evaluations),
        _best_of_k(comparison.rows),
        f"## Cost\n\n{cost(comparison.rows, comparison.differences)}",
        f"## Failures\n\n{_failures(comparison.evaluations)}",
        f"## Controls\n\n{bullets([f'**{name}**: {words}.' for name, words in _controls(comparison)])}",
        f"## Pictures\n\n{_pictures(comparison.pictures)}",
        f"## How this was measured\n\n{bullets(_measured(comparison))}",
        f"## Limits\n\n{bullets(_limits(comparison))}",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def headline(comparison: Comparison) -> str:
    """One sentence: the best trained method, if it is above every other trained one; else who cannot be told apart."""
    trained = [line for line in comparison.accuracy if line.method not in NOT_TRAINED]
    accuracy = comparison.words.accuracy
    if not trained:
        return "No trained method is among these evaluations."
    top = max(trained, key=lambda line: line.mean)
    stated = f"{percent(top.mean)} % [{percent(top.low)}, {percent(top.high)}]"
    others = [line.method for line in trained if line.method != top.method]
    if not others:
        return (
            f"**{top.method}** has {_an(accuracy)} {accuracy} of {stated}; no other trained method is here to compare."
        )
    verdicts = {name: _verdict_for(top.method, name, comparison.differences) for name in others}
    above = [name for name in others if verdicts[name] == "lower"]  # where they do not have the same seeds
    level = [name for name in others if verdicts[name] not in ("higher", "lower")]
    if not level and not above:
        here = "" if comparison.shared_seeds >= ENOUGH_SEEDS else " in these runs"
        return (
            f"**{top.method}** is best{here}: {stated}, higher than every other trained method ({', '.join(others)})."
        )
    below = [name for name in others if verdicts[name] == "higher"]
    said = [f"no difference from {', '.join(level)} is established"] if level else []
    said += [f"{', '.join(above)} is higher on the seeds that both have"] if above else []
    tail = f"; it is above {', '.join(below)}" if below else ""
    return (
        f"No single best method: **{top.method}** has the highest {accuracy}, {stated}, but {' and '.join(said)}{tail}."
    )


def _an(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _about(comparison: Comparison) -> str:
    if comparison.shared_seeds >= ENOUGH_SEEDS:
        return ""
    return "Of these runs: so few seeds do not show how far another training would come out elsewhere.\n\n"


def sentence(one: Difference) -> str:
    """One comparison in words that its interval and its adjusted test allow."""
    low, high = points(one.difference_low), points(one.difference_high)
    size = f"{points(one.difference)} points (95 % interval {low} to {high})"
    seeds = len(one.seeds.split())
    if seeds > 1:
        size += f", above it in {one.seeds_higher} of {seeds} seeds"
    detail = (
        f"alone right on {count(one.only_method_correct)} answers, alone wrong on {count(one.only_control_correct)};"
        f" {'exact sign-flip' if seeds > 1 else 'exact McNemar'} p {p_value(one.mcnemar_p)},"
        f" after Holm {p_value(one.holm_p)}"
    )
    if one.verdict in ("higher", "lower"):
        return f"**{one.method}** is {one.verdict} than **{one.control}**: {size}; {detail}."
    if one.verdict == "unclear":
        names = f"**{one.method}** against **{one.control}**"
        return f"{names} is unclear: {size}, but the test does not hold over all pairs; {detail}."
    return f"No detectable difference between **{one.method}** and **{one.control}**: {size}; {detail}."


def _spoken(differences: Sequence[Difference]) -> list[Difference]:
    """All pairs of trained methods, SFT and its controls among them."""
    trained = [one for one in differences if one.method not in NOT_TRAINED]
    return [one for one in trained if one.control not in NOT_TRAINED] or list(differences)


def _verdict_for(method: str, other: str, differences: Sequence[Difference]) -> str:
    """The verdict of `method` over `other`, whichever of the two stands as the control."""
    turned = {"higher": "lower", "lower": "higher"}
    for one in differences:
        if (one.method, one.control) == (method, other):
            return one.verdict
        if (one.control, one.method) == (method, other):
            return turned.get(one.verdict, one.verdict)
    return "not compared"


def _pairs(differences: Sequence[Difference]) -> str:
    columns = [
        "method",
        "control",
        "difference in points [95 %]",
        "seeds higher",
        "only method right",
        "only control right",
        "exact p",
        "Holm p",
        "verdict",
    ]
    rows = [
        [
            one.method,
            one.control,
            f"{points(one.difference)} [{points(one.difference_low)}, {points(one.difference_high)}]",
            f"{one.seeds_higher} of {len(one.seeds.split())}",
            count(one.only_method_correct),
            count(one.only_control_correct),
            p_value(one.mcnemar_p),
            p_value(one.holm_p),
            one.verdict,
        ]
        for one in differences
    ]
    return markdown(columns, rows, text_columns=2) if rows else "There is one method only."


def _over_seeds(comparison: Comparison) -> str:
    if len(comparison.seeds) < 2:
        return ""
    columns = ["method", "seeds", "mean [95 %]", "IQM", "lowest", "highest"]
    rows = [
        [
            line.method,
            " ".join(str(seed) for seed in line.seeds),
            f"{percent(line.mean)} [{percent(line.low)}, {percent(line.high)}]",
            percent(line.iqm),
            percent(line.smallest),
            percent(line.largest),
        ]
        for line in comparison.accuracy
    ]
    words = f"{capital(comparison.words.accuracy)} in %; the interval resamples records and seeds."
    return f"## Over seeds\n\n{words}\n\n{markdown(columns, rows, text_columns=2)}"


def _trials(evaluations: Sequence[Evaluation]) -> str:
    """Every learning rate that was tried, and which was taken."""
    rows = [
        [
            one.method,
            str(one.seed),
            f"{trial['learning_rate']:g}",
            percent(trial["best_val_accuracy"]),
            "yes" if trial["chosen"] else "",
        ]
        for one in evaluations
        for trial in one.metrics.get("trials", [])
    ]
    if not rows:
        return ""
    words = "Learning rates that were tried; the best on the validation records was taken, for the other seeds too."
    columns = ["method", "seed", "learning rate", "validation accuracy, %", "taken"]
    return f"## Trials\n\n{words}\n\n{markdown(columns, rows)}"


def _best_of_k(rows: Sequence[Row]) -> str:
    names = [name for name in rows[0] if name.startswith("pass@") and not name.endswith(("_low", "_high"))]
    measured = [row for row in rows if any(row[name] != "" for name in names)]
    if not measured:
        return ""
    lines = [
        [str(row["method"]), str(row["seed"]), str(row["pass_records"]), *(interval(row, name) for name in names)]
        for row in measured
    ]
    text = (
        "Chance in % that one or more of k samples at temperature 1 are right (unbiased, Chen et al. 2021): what"
        " choosing among k samples could reach if the choice were always right."
    )
    return f"## Best of k\n\n{text}\n\n{markdown(['method', 'seed', 'records', *names], lines, text_columns=2)}"


def _failures(evaluations: Sequence[Evaluation]) -> str:
    first: dict[str, Evaluation] = {}
    for one in evaluations:
        first.setdefault(one.method, one)
    counts: dict[str, Mapping[str, Any]] = {name: one.metrics.get("failures", {}) for name, one in first.items()}
    totals: dict[str, int] = {}
    for reasons in counts.values():
        for reason, number in reasons.items():
            totals[reason] = totals.get(reason, 0) + int(number)
    shown = sorted(totals, key=lambda reason: (-totals[reason], reason))[:FAILURES_SHOWN]
    if not shown:
        return "None."
    rows = []
    for name, reasons in counts.items():
        other = sum(int(number) for reason, number in reasons.items() if reason not in shown)
        rows.append([name, str(first[name].seed), *(count(reasons.get(reason, 0)) for reason in shown), count(other)])
    words = "Records per reason, lowest seed of each method; every record with its reason is in its breakdown.csv."
    return f"{words}\n\n{markdown(['method', 'seed', *shown, 'other'], rows, text_columns=2)}"


def _controls(comparison: Comparison) -> list[tuple[str, str]]:
    controls = {**CONTROLS, **comparison.words.controls}
    present = [(name, controls[name]) for name in METHOD_ORDER if name in controls and name in comparison.methods]
    missing = [name for name in METHOD_ORDER if name in controls and name not in comparison.methods]
    return present + ([("not in this comparison", ", ".join(missing))] if missing else [])


def _pictures(pictures: Sequence[str]) -> str:
    return "\n\n".join(f"![{CAPTIONS[name]}](plots/{name})" for name in pictures)


def _measured(comparison: Comparison) -> list[str]:
    specs = sorted(
        {
            str(one.metrics["reward_spec"]["sha256"])[:12]
            for one in comparison.evaluations
            if one.metrics.get("reward_spec")
        }
    )
    lines = [
        comparison.words.definition,
        f"Intervals: 95 % bootstrap percentile, {DRAWS:,} draws, seed {comparison.seed}; a rate of exactly 0 or 1 has"
        " the exact Clopper-Pearson bound instead.",
        "Differences: the same records answered by both, resampled as pairs (with several seeds: records and seeds"
        " together).",
        "Tests: exact McNemar on the records where the two disagree (with several seeds: the exact sign-flip test over"
        f" records), Holm-adjusted over all {len(comparison.differences)} pairs. A difference is called one only if its"
        f" interval leaves out zero and its adjusted p is below {ALPHA:g}.",
        "Clock time is in summary.csv alone (wall_seconds), so that equal runs give equal reports.",
    ]
    if specs:
        lines.append(f"Reward: specification {', '.join(specs)} (sha256).")
    return lines + [f"Note: {note}" for note in comparison.notes]


def _limits(comparison: Comparison) -> list[str]:
    n, runs = int(comparison.evaluations[0].metrics["n"]), max(1, comparison.shared_seeds)
    lines = [f"One test set of {count(n)} records: other records would move every rate within about its interval."]
    if any(one.metrics.get("data", {}).get("context") == "gold" for one in comparison.evaluations):
        lines.insert(0, f"**Upper bounds, no results**: {GOLD_CONTEXT}.")
    if runs == 1:
        lines.append(
            "One seed: the intervals say how sure this policy's accuracy is, not how another training would come out."
        )
    elif runs < ENOUGH_SEEDS:
        lines.append(f"{runs} seeds show a spread but hardly its size: where it is wide, the intervals are too narrow.")
    else:
        lines.append(f"{runs} seeds were trained; settings were not varied between them.")
    if tried := max(len(one.metrics.get("trials", ())) for one in comparison.evaluations):
        lines.append(
            f"Methods had the best of {tried} learning rates on validation, the controls that continue SFT only their"
            " own; their compute, and the cost above, are those of one trial."
        )
    return [*lines, comparison.words.caveat]
