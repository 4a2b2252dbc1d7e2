"""Score saved completions under two rewards, and show where they differ.

Reads what the stages leave behind: candidates.jsonl (04), samples/predictions.jsonl and samples/pass_k.jsonl (10),
valid_samples/ and val_generations/ (03, 05-07), as files or folders. Records are looked up in the files of stage 01.
A reward is a reward_spec.yaml or a profile's name; with one --reward, the second is what the file recorded when it was
written, so that a change of the reward's code shows.

    python -m tools.replay_rewards outputs/run_001/04_candidates --reward strict --reward seed
    python -m tools.replay_rewards outputs/run_001/10_evaluation --reward outputs/run_001/02_rewards/reward_spec.yaml

Exit code: 0 when every completion is paid the same, 1 when some are not, 2 for bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import read_json, read_jsonl, write_jsonl
from utils.finqa.examples import FinQAExample
from utils.manifest import read, stage_above
from utils.rewards import PROFILES, RewardSpec, load_spec, score_text
from utils.rewards.spec import profile_of
from utils.tasks.base import Reward
from utils.tasks.finqa import FinQATask
from utils.terminal import Terminal

SPLITS = ("train", "val", "test")
PATTERNS = ("candidates.jsonl", "predictions.jsonl", "pass_k.jsonl", "step_*.json")
RECORDED = "recorded"
EQUAL = 1e-9


@dataclass(frozen=True)
class Saved:
    """One saved completion: where it stands, whose it is, and what it was paid when it was written."""

    where: str
    id: str
    sample: int
    text: str
    paid: float | None


def completion_files(paths: Sequence[Path]) -> list[Path]:
    """The files with completions among the paths and in the folders. UserError when a path has none."""
    files: list[Path] = []
    for path in paths:
        found = sorted({file for name in PATTERNS for file in path.rglob(name)}) if path.is_dir() else [path]
        if not found:
            raise UserError(f"{path}: no completions in this folder; expected one of {', '.join(PATTERNS)}")
        files += found
    return files


def read_completions(path: Path) -> Iterator[Saved]:
    """Yield the completions of one file. UserError for a row without `id` and `text`, `texts` or `cands`."""
    rows = read_jsonl(path) if path.suffix == ".jsonl" else read_json(path)
    folder = stage_above(path)
    kind = read(folder)["config"].get("task", {}).get("kind", "finqa") if folder else "finqa"
    if kind != "finqa":
        raise UserError(f"{path}: is of a task of kind {kind}; only FinQA's rewards can be replayed")
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: expected rows with id and text, as the stages write them; there is none")
    scores = path.with_name("scores.jsonl")
    beside = read_jsonl(scores) if path.name == "candidates.jsonl" and scores.is_file() else []
    for number, row in enumerate(rows):
        where = f"{path}, row {number}"
        texts = _texts(row)
        if texts is None or not isinstance(row.get("id"), str):
            raise UserError(f"{where}: expected id and text, texts or cands, got {str(row)[:60]}")
        paid = _paid(row, beside[number] if number < len(beside) else {}, where)
        if len(paid) not in (0, len(texts)):
            raise UserError(f"{where}: {len(texts)} completions and {len(paid)} scores; the two files do not match")
        for sample, text in enumerate(texts):
            yield Saved(where, row["id"], sample, text, paid[sample] if paid else None)


def _texts(row: Any) -> list[str] | None:
    if not isinstance(row, dict):
        return None
    if isinstance(row.get("cands"), list):
        texts = [cand.get("text") if isinstance(cand, dict) else None for cand in row["cands"]]
    else:
        texts = row.get("texts", [row.get("text")])
    return texts if isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts) else None


def _paid(row: dict[str, Any], scores: dict[str, Any], where: str) -> list[float]:
    """What the file says the completions of a row earned; empty when it does not say.

    UserError when recorded components do not sum to their total.
    """
    if scores.get("id") == row["id"]:
        recorded = [(score["total"], score.get("components")) for score in scores["scores"]]
    else:
        recorded = [(row["reward"], row.get("components"))] if "reward" in row else []
    for total, components in recorded:
        if components is not None and abs(total - sum(components.values())) > EQUAL:
            raise UserError(f"{where}: components {components} do not sum to the recorded reward {total:g}")
    return [float(total) for total, _ in recorded]


def read_examples(folder: Path) -> dict[str, FinQAExample]:
    """The records of stage 01 by id. UserError when the folder has none."""
    files = [folder / f"{split}.jsonl" for split in SPLITS if (folder / f"{split}.jsonl").is_file()]
    if not files:
        raise UserError(f"{folder}: no {', '.join(f'{split}.jsonl' for split in SPLITS)}; name stage 01's with --data")
    task = FinQATask(PROFILES["strict"])
    return {example.id: example for file in files for example in task.load(file)}


def reward_named(name: str) -> RewardSpec:
    """A profile's reward, or that of a reward_spec.yaml. UserError when it is neither."""
    return load_spec(Path(name)) if "/" in name or name.endswith((".yaml", ".yml")) else profile_of(name, "--reward")


def replay(
    saved: Sequence[Saved], examples: dict[str, FinQAExample], specs: Sequence[RewardSpec]
) -> list[dict[str, Any]]:
    """Pay every completion under both rewards: one row each. UserError for an unknown record or an unrecorded pay."""
    rows = []
    for one in saved:
        example = examples.get(one.id)
        if example is None:
            raise UserError(f"{one.where}: no record {one.id!r} in the data; name its 01_preprocessing with --data")
        rewards = [score_text(one.text, example, spec) for spec in specs]
        if len(specs) == 1:
            if one.paid is None:
                raise UserError(f"{one.where}: records no reward to compare with; name a second --reward")
            rewards.append(Reward(one.paid, {RECORDED: one.paid}))
        totals = [reward.total for reward in rewards]
        row = {"where": one.where, "id": one.id, "sample": one.sample, "totals": totals, "text": one.text}
        row["components"] = [dict(reward.components) for reward in rewards]
        rows.append({**row, "reasons": list(rewards[0].reasons), "differs": abs(totals[0] - totals[1]) > EQUAL})
    return rows


def turned_prompts(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Ids of which some two completions of one row are in another order under the second reward, or a tie in one."""
    groups: dict[tuple[str, str], list[list[float]]] = {}
    for row in rows:
        groups.setdefault((row["where"], row["id"]), []).append(row["totals"])
    return [name for (_, name), totals in groups.items() if _order(totals, 0) != _order(totals, 1)]


def _order(totals: Sequence[Sequence[float]], reward: int) -> list[int]:
    """For every pair of completions, which one is paid more: -1, 0, 1."""
    paid = [round(both[reward], 9) for both in totals]
    return [(a > b) - (a < b) for i, a in enumerate(paid) for b in paid[:i]]


def show(rows: Sequence[dict[str, Any]], names: Sequence[str], limit: int) -> None:
    """Print how many differ, by what, and the first ones."""
    terminal = Terminal()
    different = [row for row in rows if row["differs"]]
    means = [sum(row["totals"][i] for row in rows) / len(rows) for i in (0, 1)]
    terminal.say(f"{len(rows)} completions, mean {means[0]:.4f} under {names[0]}, {means[1]:.4f} under {names[1]}")
    terminal.say(f"{len(different)} are paid differently, {len(turned_prompts(rows))} prompts order theirs differently")
    causes: dict[tuple[str, str, str], list[float]] = {}
    for row in different:
        first, second = (
            " ".join(f"{name} {value:+.2f}" for name, value in components.items() if value) or "nothing"
            for components in row["components"]
        )
        cause = (row["reasons"][0] if row["reasons"] else "correct", first, second)
        causes.setdefault(cause, []).append(row["totals"][1] - row["totals"][0])
    lines = [
        [*cause, len(gaps), f"{sum(gaps) / len(gaps):+.3f}"]
        for cause, gaps in sorted(causes.items(), key=lambda item: -len(item[1]))
    ]
    if lines:
        columns = ["reason", *(f"paid under {name}" for name in names), "completions", "mean change"]
        terminal.table("where they differ", columns, lines)
    for row in different[:limit]:
        terminal.say(f"{row['where']}, id {row['id']}, sample {row['sample']}: {row['totals'][0]:+.3f} -> "
                     f"{row['totals'][1]:+.3f}  {row['text'][:100]!r}")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """The command; exit code 0 for no difference, 1 for some, 2 with one line for bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("completions", type=Path, nargs="+", help="files or folders with saved completions")
    parser.add_argument("--reward", action="append", required=True, help="reward_spec.yaml or profile; once or twice")
    parser.add_argument("--data", type=Path, help="folder of stage 01's files (default: 01_preprocessing of that run)")
    parser.add_argument("--limit", type=int, default=10, help="differing completions to print (default: 10)")
    parser.add_argument("--out", type=Path, help="write a line per differing completion to this JSONL file")
    arguments = parser.parse_args(argv)
    try:
        if len(arguments.reward) > 2:
            raise UserError(f"--reward: expected one or two, got {len(arguments.reward)}")
        files = completion_files(arguments.completions)
        folder = arguments.data or data_beside(files[0])
        specs = [reward_named(name) for name in arguments.reward]
        rows = replay([one for file in files for one in read_completions(file)], read_examples(folder), specs)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    show(rows, [*arguments.reward, RECORDED][:2], arguments.limit)
    if arguments.out:
        write_jsonl(arguments.out, (row for row in rows if row["differs"]))
    return int(any(row["differs"] for row in rows))


def data_beside(file: Path) -> Path:
    """The 01_preprocessing of the run that a file lies in. UserError when there is none above it."""
    for folder in file.absolute().parents:
        if (folder / "01_preprocessing").is_dir():
            return folder / "01_preprocessing"
    raise UserError(f"{file}: lies in no run with a 01_preprocessing folder; name the records' folder with --data")


if __name__ == "__main__":
    raise SystemExit(main())
