"""The section of report.md on what each method cost, from the base model to the policy."""

from __future__ import annotations

from collections.abc import Sequence

from utils.evaluation.comparison import NOT_TRAINED, Difference
from utils.reporting.tables import Row, bullets, count, markdown, points

BUDGET_TOLERANCE = 0.05
COSTS = {
    "completions": "completions",
    "generated_tokens": "generated tokens",
    "forward_tokens": "tokens read",
    "gradient_tokens": "tokens trained on",
    "compute_tokens": "computation",
}
"""Column of summary.csv -> its title."""


def cost(rows: Sequence[Row], differences: Sequence[Difference]) -> str:
    """The section's table, and what follows from it: gains over SFT beside their cost, and whether budgets agree."""
    trained = [row for row in rows if row["method"] not in NOT_TRAINED]
    if not trained:
        return "Nothing was trained."
    columns = ["method", "seed", *(words for words in COSTS.values()), "stages"]
    lines = []
    for row in trained:
        stages = row["trained_stages"] or "not known: its checkpoint lies in no stage with a manifest"
        counts = [count(row[name]) for name in COSTS]
        lines.append([str(row["method"]), str(row["seed"]), *counts, str(stages).replace(" 0", " + 0")])
    words = (
        "Everything from the base model to the policy. Computation is in forward tokens: a token read counts one, a"
        " token trained on three."
    )
    text = f"{words}\n\n{markdown(columns, lines, text_columns=2)}"
    remarks = [*_gains(trained, differences), *_budgets(trained)]
    return f"{text}\n\n{bullets(remarks)}" if remarks else text


def _gains(rows: Sequence[Row], differences: Sequence[Difference]) -> list[str]:
    """What each method gains over SFT and what it costs beyond SFT, means over the seeds both have."""
    lines = []
    for one in differences:
        seeds = one.seeds.split()
        own, base = (
            [
                row["compute_tokens"]
                for row in rows
                if row["method"] == name and str(row["seed"]) in seeds and row["compute_tokens"] != ""
            ]
            for name in (one.method, one.control)
        )
        if one.control == "sft" and one.method not in NOT_TRAINED and len(own) == len(base) == len(seeds):
            more = (sum(own) - sum(base)) / len(seeds)
            gain = f"{points(one.difference)} points" + (
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
