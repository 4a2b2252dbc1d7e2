"""Tables of a comparison: summary.csv, the table people read, and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.evaluation.comparison import Evaluation
from utils.files import read_text, write_text
from utils.tasks.words import words_of

Row = Mapping[str, Any]

COMPUTE = ("completions", "generated_tokens", "forward_tokens", "gradient_tokens", "compute_tokens")
CLOCK = "wall_seconds"
"""The one column that differs between equal runs; always the last."""


def summary_rows(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """One row per evaluation, in the order given, every number as its metrics.json states it.

    A rate `r` has the columns `r, r_low, r_high`. The compute columns count everything that led to the policy, from the
    base model on (empty where nothing was trained or no manifest tells).
    """
    best_of = sorted({name for one in evaluations for name in _pass_names(one.metrics)}, key=_samples)
    rows = []
    for one in evaluations:
        metrics = one.metrics
        row: dict[str, Any] = {"method": one.method, "seed": one.seed, "split": metrics["split"], "n": metrics["n"]}
        for name in (*one.words.rates, "mean_reward"):
            row |= _with_interval(metrics, name)
        for name in best_of:
            row |= _with_interval(metrics.get("pass_at_k") or {}, name)
        if best_of:
            row["pass_records"] = (metrics.get("pass_at_k") or {}).get("records", "")
        compute = metrics.get("compute") or {}
        row |= {name: compute.get(name, "") for name in COMPUTE}
        row["trained_stages"] = " ".join(compute.get("stages", ()))
        row["kind"] = metrics.get("kind", "finqa")
        row["policy"] = (metrics.get("policy") or {}).get("path", "")
        row[CLOCK] = "" if one.trained_seconds is None else one.trained_seconds
        rows.append(row)
    return rows


def write_table(path: Path, rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Write rows as CSV, header first (also when there is no row); floats keep all their digits."""
    buffer = io.StringIO()
    table = csv.DictWriter(buffer, fieldnames=list(columns), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(path, buffer.getvalue())


def read_table(path: Path) -> list[dict[str, str]]:
    """Read a CSV that `write_table` wrote; every value is text. UserError when it is missing."""
    return list(csv.DictReader(io.StringIO(read_text(path))))


def result_table(rows: Iterable[Row]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) for people, from `summary_rows` or summary.csv; no clock, so equal runs give equal text.

    A rate that was measured nowhere has no column.
    """
    rows = list(rows)
    words = words_of(rows[0])
    rates = {head: name for head, name in words.columns.items() if any(row.get(name, "") != "" for row in rows)}
    columns = ["method", "seed", "n", f"{words.accuracy} [95 %]", *rates]
    columns += ["mean reward", "completions", "gradient tokens"]
    lines = []
    for row in rows:
        line = [str(row["method"]), str(row["seed"]), str(row["n"]), interval(row, words.decides)]
        line += ["–" if row.get(name, "") == "" else percent(row[name]) for name in rates.values()]
        line += [f"{float(row['mean_reward']):.3f}", count(row["completions"]), count(row["gradient_tokens"])]
        lines.append(line)
    return columns, lines


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A Markdown table; the first `text_columns` are set left, the others right."""
    rule = [":--" if index < text_columns else "--:" for index in range(len(columns))]
    lines = (columns, rule, *rows)
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def capital(words: str) -> str:
    """The words as a sentence begins with them."""
    return words[:1].upper() + words[1:]


def percent(value: Any, digits: int = 1) -> str:
    """0.4321 -> `43.2`; the unit stands in the head of the column."""
    return f"{100 * float(value):.{digits}f}"


def count(value: Any) -> str:
    """12345 -> `12,345`; what nobody counted is a dash."""
    return "–" if value == "" else f"{int(value):,}"


def bullets(lines: Sequence[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"* {line}" for line in lines)


def points(value: float) -> str:
    """A difference of rates in percentage points, signed; minus zero is zero."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def interval(row: Row, name: str) -> str:
    """`43.2 [40.1, 46.3]` in percent; a dash where this rate was not measured."""
    if row.get(name, "") == "":
        return "–"
    return f"{percent(row[name])} [{percent(row[f'{name}_low'])}, {percent(row[f'{name}_high'])}]"


def p_value(value: float) -> str:
    """0.0312 -> `0.031`, 1e-9 -> `< 0.001`."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _with_interval(metrics: Mapping[str, Any], name: str) -> dict[str, Any]:
    low, high = metrics.get(f"{name}_ci95", ("", ""))
    return {name: metrics.get(name, ""), f"{name}_low": low, f"{name}_high": high}


def _pass_names(metrics: Mapping[str, Any]) -> list[str]:
    return [name for name in metrics.get("pass_at_k") or {} if name.startswith("pass@") and not name.endswith("_ci95")]


def _samples(name: str) -> int:
    return int(name.removeprefix("pass@"))
