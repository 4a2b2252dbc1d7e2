"""report.md of a comparison: the words follow the intervals.

Made from metrics, breakdowns and manifests alone: no number is typed here, each can be computed again from those files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from utils.evaluation.comparison import ALPHA, MAIN_CONTROLS, NOT_TRAINED, Difference, Evaluation, OverSeeds
from utils.evaluation.statistics import DRAWS
from utils.reporting.tables import Row, count, markdown, p_value, percent, result_table

CONTROLS: dict[str, str] = {
    "majority": "always the most frequent training answer; its typed value is judged, as a constant needs no program",
    "base": "the model before any training of ours",
    "sft": "supervised fine-tuning until validation accuracy stopped rising: what a method must beat",
    "sft_more": "SFT continued for the computation that the RL method took: more of the same",
    "rejection_sampling": "SFT on sampled completions that turned out correct: the same samples, no RL",
    "gold": "the gold programs themselves: the upper bound of this judge",
}
FAILURES_SHOWN = 6
BUDGET_TOLERANCE = 0.05
CAPTIONS: dict[str, str] = {
    "reward_vs_method.png": "Accuracy and reward of each method with 95 % intervals",
    "efficiency_vs_quality.png": "Computation against accuracy",
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

    @property
    def methods(self) -> list[str]:
        return [line.method for line in self.accuracy]

    @property
    def seeds(self) -> list[int]:
        return sorted({one.seed for one in self.evaluations})


def write_report(comparison: Comparison) -> str:
    """The Markdown text of report.md."""
    first = comparison.evaluations[0].metrics
    seeds = ", ".join(str(seed) for seed in comparison.seeds)
    title = f"# {len(comparison.methods)} methods on {count(first['n'])} {first['split']} records"
    plural = "s" * (len(comparison.seeds) > 1)
    where = f"Task `{first.get('task', 'unknown')}`, split `{first['split']}`, seed{plural} {seeds}."
    columns, lines = result_table(comparison.rows)
    sections = [
        f"{title}\n\n{where}\n\n{headline(comparison)}",
        f"## Results\n\nRates in %, 95 % intervals in brackets.\n\n{markdown(columns, lines)}",
        f"## What the intervals allow to say\n\n{_bullets([sentence(one) for one in _spoken(comparison.differences)])}",
        f"## Every pair\n\n{_pairs(comparison.differences)}",
        _over_seeds(comparison),
        _best_of_k(comparison.rows),
        f"## Cost\n\n{_cost(comparison)}",
        f"## Failures\n\n{_failures(comparison.evaluations)}",
        f"## Controls\n\n{_bullets([f'**{name}**: {words}.' for name, words in _controls(comparison)])}",
        f"## Pictures\n\n{_pictures(comparison.pictures)}",
        f"## How this was measured\n\n{_bullets(_measured(comparison))}",
        f"## Limits\n\n{_bullets(_limits(comparison))}",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def headline(comparison: Comparison) -> str:
    """One sentence: the best trained method, if it is above every other trained one; else who cannot be told apart."""
    trained = [line for line in comparison.accuracy if line.method not in NOT_TRAINED]
    if not trained:
        return "No trained method is among these evaluations."
    top = max(trained, key=lambda line: line.mean)
    stated = f"{percent(top.mean)} % [{percent(top.low)}, {percent(top.high)}]"
    others = [line.method for line in trained if line.method != top.method]
    if not others:
        return f"**{top.method}** has an execution accuracy of {stated}; no other trained method is here to compare."
    level = [name for name in others if _verdict_for(top.method, name, comparison.differences) != "higher"]
    if not level:
        return f"**{top.method}** is best: {stated}, higher than every other trained method ({', '.join(others)})."
    below = [name for name in others if name not in level]
    tail = f"; it is above {', '.join(below)}" if below else ""
    return (
        f"No single best method: **{top.method}** has the highest execution accuracy, {stated},"
        f" but no difference from {', '.join(level)} is established{tail}."
    )


def sentence(one: Difference) -> str:
    """One comparison in words that its interval and its adjusted test allow."""
    low, high = _points(one.difference_low), _points(one.difference_high)
    size = f"{_points(one.difference)} points (95 % interval {low} to {high})"
    detail = (
        f"alone right on {count(one.only_method_correct)} answers, alone wrong on {count(one.only_control_correct)};"
        f" exact McNemar p {p_value(one.mcnemar_p)}, after Holm {p_value(one.holm_p)}"
    )
    if one.verdict in ("higher", "lower"):
        return f"**{one.method}** is {one.verdict} than **{one.control}**: {size}; {detail}."
    if one.verdict == "unclear":
        names = f"**{one.method}** against **{one.control}**"
        return f"{names} is unclear: {size}, but the test does not hold over all pairs; {detail}."
    return f"No detectable difference between **{one.method}** and **{one.control}**: {size}; {detail}."


def _spoken(differences: Sequence[Difference]) -> list[Difference]:
    """All pairs against the main controls, and all pairs of trained methods."""
    trained = [one for one in differences if one.method not in NOT_TRAINED]
    return [one for one in trained if one.control in MAIN_CONTROLS or one.control not in NOT_TRAINED] or list(
        differences
    )


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
        "only method right",
        "only control right",
        "McNemar p",
        "Holm p",
        "verdict",
    ]
    rows = [
        [
            one.method,
            one.control,
            f"{_points(one.difference)} [{_points(one.difference_low)}, {_points(one.difference_high)}]",
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
    words = "Execution accuracy in %; the interval resamples records and seeds."
    return f"## Over seeds\n\n{words}\n\n{markdown(columns, rows, text_columns=2)}"


def _best_of_k(rows: Sequence[Row]) -> str:
    names = [name for name in rows[0] if name.startswith("pass@") and not name.endswith(("_low", "_high"))]
    measured = [row for row in rows if any(row[name] != "" for name in names)]
    if not measured:
        return ""
    lines = [[str(row["method"]), str(row["seed"]), *(_interval(row, name) for name in names)] for row in measured]
    text = (
        "Chance in % that one or more of k samples at temperature 1 are right (unbiased, Chen et al. 2021): what"
        " choosing among k samples could reach if the choice were always right."
    )
    return f"## Best of k\n\n{text}\n\n{markdown(['method', 'seed', *names], lines, text_columns=2)}"


def _interval(row: Row, name: str) -> str:
    return (
        "–"
        if row[name] == ""
        else f"{percent(row[name])} [{percent(row[f'{name}_low'])}, {percent(row[f'{name}_high'])}]"
    )


def _cost(comparison: Comparison) -> str:
    rows = [row for row in comparison.rows if row["method"] not in NOT_TRAINED]
    if not rows:
        return "Nothing was trained."
    columns = ["method", "seed", *(words for words in COSTS.values()), "stages"]
    lines = []
    for row in rows:
        stages = row["trained_stages"] or "not known: its checkpoint lies in no stage with a manifest"
        counts = [count(row[name]) for name in COSTS]
        lines.append([str(row["method"]), str(row["seed"]), *counts, str(stages).replace(" 0", " + 0")])
    words = (
        "Everything from the base model to the policy. Computation is in forward tokens: a token read counts one, a"
        " token trained on three."
    )
    bullets = _bullets([*_gains(comparison), *_budgets(rows)])
    return f"{words}\n\n{markdown(columns, lines, text_columns=2)}" + (f"\n\n{bullets}" if bullets else "")


COSTS = {
    "completions": "completions",
    "generated_tokens": "generated tokens",
    "forward_tokens": "tokens read",
    "gradient_tokens": "tokens trained on",
    "compute_tokens": "computation",
}


def _gains(comparison: Comparison) -> list[str]:
    """What each method gains over SFT and what it costs beyond SFT, means over the seeds both have."""
    lines = []
    for one in comparison.differences:
        seeds = one.seeds.split()
        own, base = (
            [
                row["compute_tokens"]
                for row in comparison.rows
                if row["method"] == name and str(row["seed"]) in seeds and row["compute_tokens"] != ""
            ]
            for name in (one.method, one.control)
        )
        if one.control == "sft" and one.method not in NOT_TRAINED and len(own) == len(base) == len(seeds):
            more = (sum(own) - sum(base)) / len(seeds)
            gain = f"{_points(one.difference)} points" + (
                "" if one.verdict in ("higher", "lower") else f" ({one.verdict})"
            )
            lines.append(f"**{one.method}** over sft: {gain} for {count(more)} forward tokens more.")
    return lines


def _budgets(rows: Sequence[Row]) -> list[str]:
    """Whether the methods that sample drew equally many completions."""
    sampled = {
        (row["method"], row["seed"]): int(row["completions"]) for row in rows if row["completions"] not in ("", 0)
    }
    methods = list(dict.fromkeys(method for method, _ in sampled))
    if len(methods) < 2:
        return []
    low, high = min(sampled.values()), max(sampled.values())
    equal = high - low <= BUDGET_TOLERANCE * high
    words = "equal to within 5 %" if equal else "**not equal**: a difference between them may be one of budget"
    return [f"Sampled completions of {', '.join(methods)}: {count(low)} to {count(high)}, {words}."]


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
    present = [(name, words) for name, words in CONTROLS.items() if name in comparison.methods]
    missing = [name for name in CONTROLS if name not in comparison.methods]
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
        "Execution accuracy: share of records whose program, executed, gives the gold value; one greedy answer each.",
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
    n, runs = int(comparison.evaluations[0].metrics["n"]), len(comparison.seeds)
    lines = [f"One test set of {count(n)} records: other records would move every rate within about its interval."]
    if runs == 1:
        lines.append(
            "One seed: the intervals say how sure this policy's accuracy is, not how another training would come out."
        )
    elif runs < 5:
        lines.append(f"{runs} seeds show a spread but hardly its size: where it is wide, the intervals are too narrow.")
    else:
        lines.append(f"{runs} seeds were trained; settings were not varied between them.")
    lines.append(
        "The accuracy is that of the judge described above; another (typed answers, a tolerance) gives other numbers."
    )
    return lines


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)


def _points(value: float) -> str:
    """A difference of rates in percentage points, signed; minus zero is zero."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text
