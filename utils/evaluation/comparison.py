"""Several evaluations side by side: which files belong together, and what the paired data allow to say.

An evaluation is a folder with the `metrics.json` and `breakdown.csv` of 10_evaluate.py. Methods are compared pair by
pair on the same records and, where there are several runs, on the seeds they share.
"""

from __future__ import annotations

import glob
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils import manifest
from utils.errors import UserError
from utils.evaluation.metrics import Breakdown, read_breakdown
from utils.evaluation.statistics import discordant, holm, iqm, mcnemar_exact, paired_difference, rate_ci95
from utils.files import read_json
from utils.tasks.words import WORDS, Words, words_of

METHOD_ORDER = (
    "majority", "base", "sft", "sft_more", "rejection_sampling", "dpo", "ppo", "rloo", "grpo", "gold",
)  # fmt: skip
"""From control to method: in a pair the earlier one is the control. Unknown names come before `gold`, by name."""

NOT_PROMPTED = ("majority", "gold")
NOT_TRAINED = ("majority", "base", "gold")
MAIN_CONTROLS = ("sft", "sft_more")
ALPHA = 0.05
OLD_NAMES = {"execution_accuracy": "accuracy", "execution_accuracy_ci95": "accuracy_ci95"}
"""What groups of records stated before there were other tasks."""
REQUIRED = ("method", "seed", "split", "n", "mean_reward")


@dataclass(frozen=True)
class Evaluation:
    """One evaluated policy on one split; `trained_seconds` is clock time, from the manifest where there is one."""

    folder: Path
    metrics: Mapping[str, Any]
    breakdown: Breakdown
    trained_seconds: float | None

    @property
    def method(self) -> str:
        return str(self.metrics["method"])

    @property
    def seed(self) -> int:
        return int(self.metrics["seed"])

    @property
    def words(self) -> Words:
        """Those of its kind of task."""
        return words_of(self.metrics)

    @property
    def accuracy(self) -> float:
        """The rate that decides."""
        return float(self.metrics[self.words.decides])

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval."""
        low, high = self.metrics[f"{self.words.decides}_ci95"]
        return low, high

    @property
    def context(self) -> str | None:
        """How 01 chose what the prompts show, where that is known."""
        return (self.metrics.get("data") or {}).get("context")

    def correct(self, ids: Collection[str] | None = None) -> NDArray[np.float64]:
        """Verdicts as 0/1 [n], records in order of their ids; of these `ids` alone, where given."""
        pairs = sorted(zip(self.breakdown.ids, self.breakdown.correct, strict=True))
        return np.array([verdict for name, verdict in pairs if ids is None or name in ids], dtype=np.float64)


@dataclass(frozen=True)
class Difference:
    """`method` minus `control` in accuracy (the rate that decides) on the same `n` records, over the seeds both have.

    `seeds_higher`: in how many of these seeds the method is above the control.
    """

    method: str
    control: str
    seeds: str
    seeds_higher: int
    n: int
    difference: float
    difference_low: float
    difference_high: float
    only_method_correct: int
    only_control_correct: int
    mcnemar_p: float
    holm_p: float
    verdict: str

    def row(self) -> dict[str, str | int | float]:
        """One line of differences.csv."""
        return asdict(self)


def find_evaluations(arguments: Sequence[str]) -> list[Path]:
    """Turn files, evaluation folders, run folders and globs into evaluation folders, each once, in the order given.

    Raises UserError for an argument that leads to no metrics.json.
    """
    folders: list[Path] = []
    for argument in arguments:
        matches = [Path(name) for name in sorted(glob.glob(argument))] or [Path(argument)]
        found = [folder for match in matches for folder in _evaluations_at(match)]
        if not found:
            raise UserError(
                f"{argument}: no metrics.json there; expected a metrics.json, an evaluation folder, a run folder or"
                " a glob of them; write one with 10_evaluate.py"
            )
        folders += [folder for folder in found if folder not in folders]
    return folders


def load_evaluations(folders: Sequence[Path]) -> list[Evaluation]:
    """Read the folders and order them by method and seed; UserError when they cannot be compared fairly.

    All must be of one split, hold the same record ids, and agree with their own breakdown. Of one method and seed there
    may be one evaluation; a second one of the very same policy and records is left out, any other is refused.
    """
    if not folders:
        raise UserError(
            "nothing to compare: name metrics.json files or evaluation folders, say outputs/run_001/10_evaluation_*"
        )
    kept: dict[tuple[str, int], Evaluation] = {}
    for folder in folders:
        evaluation = _read(folder)
        key = (evaluation.method, evaluation.seed)
        if key not in kept:
            kept[key] = evaluation
        elif (what := _what_differs(kept[key], evaluation)) is not None:
            raise UserError(
                f"{kept[key].folder} and {folder} are both method {key[0]!r} with seed {key[1]} but of different"
                f" {what}; give one of them another name with 10_evaluate.py --method NAME"
            )
    ordered = sorted(kept.values(), key=lambda one: (method_rank(one.method), one.seed))
    for other in ordered[1:]:
        _check_comparable(ordered[0], other)
    return ordered


def _what_differs(one: Evaluation, other: Evaluation) -> str | None:
    """In what two evaluations of one name are not the same."""
    if one.metrics.get("policy") != other.metrics.get("policy"):
        return "policies"
    if [one.metrics[name] for name in ("split", "n")] != [other.metrics[name] for name in ("split", "n")]:
        return "records"
    if one.context != other.context:
        return "prompts (--context in 01)"
    return None if _verdicts(one) == _verdicts(other) else "records or answers"


def _verdicts(one: Evaluation) -> dict[str, bool]:
    """Record by record, whether the answer is right."""
    return dict(zip(one.breakdown.ids, one.breakdown.correct, strict=True))


def method_rank(method: str) -> tuple[int, str]:
    """Where a method stands in every table and picture."""
    if method in METHOD_ORDER:
        return METHOD_ORDER.index(method), ""
    return METHOD_ORDER.index("gold") - 1, method


def by_method(evaluations: Sequence[Evaluation]) -> dict[str, dict[int, Evaluation]]:
    """Method -> seed -> evaluation, methods in order."""
    groups: dict[str, dict[int, Evaluation]] = {}
    for evaluation in evaluations:
        groups.setdefault(evaluation.method, {})[evaluation.seed] = evaluation
    return groups


def differences(evaluations: Sequence[Evaluation], seed: int) -> list[Difference]:
    """Every pair of methods that share a seed: difference, interval, exact test, Holm over all pairs, and the words.

    Pairs against `sft` and `sft_more` come first. The interval resamples records and seeds; both it (leaving out zero)
    and the adjusted test (below ALPHA) must agree before a difference is called one.
    """
    groups = by_method(evaluations)
    methods = list(groups)
    pairs = [(methods[j], methods[i]) for i in range(len(methods)) for j in range(i + 1, len(methods))]
    pairs.sort(
        key=lambda pair: (pair[1] not in MAIN_CONTROLS or pair[0] == "gold", method_rank(pair[1]), method_rank(pair[0]))
    )
    drafts = []
    for method, control in pairs:
        seeds = sorted(groups[method].keys() & groups[control].keys())
        if seeds:
            a = np.stack([groups[method][one].correct() for one in seeds])
            b = np.stack([groups[control][one].correct() for one in seeds])
            drafts.append((method, control, seeds, a, b, mcnemar_exact(a, b)))
    adjusted = holm([draft[-1] for draft in drafts])
    return [_difference(*draft, holm_p=p, seed=seed) for draft, p in zip(drafts, adjusted, strict=True)]


def notes_on(evaluations: Sequence[Evaluation]) -> list[str]:
    """What a reader must know: equal policies, pairs without a common seed, rewards of different specifications."""
    groups = by_method(evaluations)
    methods = list(groups)
    notes = [
        f"{methods[i]} and {methods[j]} share no seed, so they are not compared"
        for i in range(len(methods))
        for j in range(i + 1, len(methods))
        if not groups[methods[i]].keys() & groups[methods[j]].keys()
    ]
    specs = {one.metrics["reward_spec"]["sha256"] for one in evaluations if one.metrics.get("reward_spec")}
    notes += _same_policies(evaluations)
    contexts = {one.context: one.method for one in evaluations if one.context and one.method not in NOT_PROMPTED}
    if len(contexts) > 1:
        named = ", ".join(f"{context} ({method} and others)" for context, method in contexts.items())
        notes.append(f"the prompts differ (--context in 01): {named}; a difference may be theirs and not the method's")
    return notes + (
        ["mean rewards are of different reward specifications and not comparable"] if len(specs) > 1 else []
    )


def _same_policies(evaluations: Sequence[Evaluation]) -> list[str]:
    """Methods whose evaluated checkpoint is one and the same: nothing was learned."""
    groups: dict[tuple[int, str], list[str]] = {}
    for one in evaluations:
        if digest := (one.metrics.get("policy") or {}).get("sha256"):
            groups.setdefault((one.seed, digest), []).append(one.method)
    return [
        f"{', '.join(names[1:])} (seed {seed}): the very policy of {names[0]}"
        for (seed, _), names in groups.items()
        if len(names) > 1
    ]


def verdict(low: float, high: float, holm_p: float) -> str:
    """`no detectable difference` (zero is in the interval), `unclear` (the adjusted test fails), `higher`, `lower`."""
    if low <= 0.0 <= high:
        return "no detectable difference"
    if holm_p >= ALPHA:
        return "unclear"
    return "higher" if low > 0.0 else "lower"


@dataclass(frozen=True)
class OverSeeds:
    """Accuracy of one method over its runs; the interval resamples records and, with several runs, runs."""

    method: str
    seeds: tuple[int, ...]
    mean: float
    iqm: float
    low: float
    high: float
    smallest: float
    largest: float


def over_seeds(evaluations: Sequence[Evaluation], seed: int) -> list[OverSeeds]:
    """One line per method; for a single run the interval is the one its metrics.json states."""
    lines = []
    for method, runs in by_method(evaluations).items():
        rates = [one.accuracy for one in runs.values()]
        if len(runs) == 1:
            low, high = next(iter(runs.values())).interval
        else:
            low, high = interval_over_runs(np.stack([one.correct() for one in runs.values()]), seed)
        lines.append(
            OverSeeds(method, tuple(runs), float(np.mean(rates)), iqm(rates), low, high, min(rates), max(rates))
        )
    return lines


def interval_over_runs(correct: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """95 % interval of the mean of verdicts [runs, records]; records and runs are resampled."""
    if (correct == correct[0, 0]).all():  # always or never right: only the exact bound has a width
        return rate_ci95(correct[0], seed)
    return paired_difference(correct, np.zeros_like(correct), seed)[1:]


def _difference(
    method: str,
    control: str,
    seeds: Sequence[int],
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    mcnemar_p: float,
    *,
    holm_p: float,
    seed: int,
) -> Difference:
    mean, low, high = paired_difference(a, b, seed)
    only_method, only_control = discordant(a, b)
    names = " ".join(str(one) for one in seeds)
    words = verdict(low, high, holm_p)
    higher = int((a.mean(axis=1) > b.mean(axis=1)).sum())
    return Difference(
        method, control, names, higher, a.shape[1], mean, low, high, only_method, only_control, mcnemar_p, holm_p, words
    )


def _evaluations_at(path: Path) -> list[Path]:
    """The evaluation folder that `path` is or is the file of, or those of the run folder that it is."""
    if path.is_file():
        return [path.parent] if path.name == "metrics.json" else []
    if (path / "metrics.json").is_file():
        return [path]
    return [file.parent for file in sorted(path.glob("10_evaluation*/metrics.json"))]


def _read(folder: Path) -> Evaluation:
    metrics = read_json(folder / "metrics.json")
    where = folder / "metrics.json"
    if not isinstance(metrics, dict):
        raise UserError(
            f"{where}: expected a JSON object, got {type(metrics).__name__}; write it again with 10_evaluate.py"
        )
    kind = metrics.get("kind", "finqa")
    if not isinstance(kind, str) or kind not in WORDS:
        raise UserError(f"{where}, key 'kind': expected {' or '.join(WORDS)}, got {kind!r}")
    for row in (row for group in (metrics.get("groups") or {}).values() for row in group.values()):
        row |= {new: row.pop(old) for old, new in OLD_NAMES.items() if old in row}
    words = words_of(metrics)
    needed = (*REQUIRED, words.decides)
    missing = [key for key in needed if key not in metrics]
    if missing:
        raise UserError(f"{where}: key {missing[0]!r} is missing; write it again with 10_evaluate.py")
    _check_kinds(metrics, words, where)
    breakdown = read_breakdown(folder / "breakdown.csv", words)
    right, n = sum(breakdown.correct), len(breakdown.ids)
    if n != metrics["n"] or abs(right / n - metrics[words.decides]) > 1e-9:
        raise UserError(
            f"{folder}: breakdown.csv has {right} of {n} right, metrics.json says {metrics[words.decides]} of"
            f" {metrics['n']}; they are of different runs: write both again with 10_evaluate.py"
        )
    return Evaluation(folder, metrics, breakdown, _trained_seconds(folder))


def _check_kinds(metrics: Mapping[str, Any], words: Words, where: Path) -> None:
    """UserError for figures that are none."""
    numbers = {name: metrics[name] for name in ("mean_reward", *words.rates) if name in metrics}
    for name in (*(f"{rate}_ci95" for rate in numbers), *(key for key in metrics if key.endswith("_ci95"))):
        pair = metrics.get(name)
        low, high = pair if isinstance(pair, list) and len(pair) == 2 else (None, None)
        numbers |= {f"{name}[0]": low, f"{name}[1]": high}
    for kind, expected, values in (
        ((int, float), "a number", numbers),
        ((int,), "a whole number", {name: metrics[name] for name in ("seed", "n")}),
    ):
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, kind):
                raise UserError(
                    f"{where}, key {name!r}: expected {expected}, got {value!r}; write it again with 10_evaluate.py"
                )


def _trained_seconds(folder: Path) -> float | None:
    if not (folder / manifest.NAME).is_file():
        return None
    seconds = manifest.read(folder)["metrics"].get("trained_seconds")
    return None if seconds is None else float(seconds)


def _check_comparable(first: Evaluation, other: Evaluation) -> None:
    if first.words is not other.words:
        raise UserError(
            f"{first.folder} counts {first.words.decides}, {other.folder} {other.words.decides}: they are of different"
            " tasks and cannot be compared"
        )
    if first.metrics["split"] != other.metrics["split"]:
        raise UserError(
            f"{first.folder} is of split {first.metrics['split']!r}, {other.folder} of {other.metrics['split']!r};"
            " only evaluations of one split can be paired"
        )
    alone, other_alone = (
        set(first.breakdown.ids) - set(other.breakdown.ids),
        set(other.breakdown.ids) - set(first.breakdown.ids),
    )
    if alone or other_alone:
        raise UserError(
            f"{first.folder} and {other.folder} do not hold the same records: {len(alone)} ids only in the first,"
            f" {len(other_alone)} only in the second (say {min(alone | other_alone)!r}); evaluate both on one file"
        )
    targets = [(one.metrics.get("data") or {}).get("targets_sha256") for one in (first, other)]
    if targets[0] != targets[1]:
        raise UserError(
            f"{first.folder} and {other.folder} have the same ids but other gold values, or another judge (criteria of"
            " reward_spec.yaml): their data differ; evaluate both on one file by one judge"
        )
