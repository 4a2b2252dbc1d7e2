"""Guards on series that must and must not set them off: by hand, drawn at random, and of a run that was healthy."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from utils.files import read_jsonl
from utils.keys import flags_of
from utils.rl import health
from utils.rl.health import DPO, FLAGS, ONLINE, SFT, dpo_guards, last_alarms, online_alarms

ROOT = Path(__file__).resolve().parents[2]
HEALTHY_RUN = ROOT / "tests" / "unit" / "healthy_run.jsonl"
"""Training rows of 06: 30 steps of 32 prompts x 8, llama-tiny on 2,894 records of FinQA, seed 0; the figures that are
guarded, as they were logged. Validation accuracy stayed at 8.5 %."""
STEADY = {
    "frac_reward_zero_std": 0.5, "reward_std": 0.4, "truncated": 0.01, "kl": 0.05, "clip_frac": 0.01, "entropy": 0.3,
    "parse_rate": 0.97, "completion_length": 40.0, "accuracy": 0.4, "reward_mean": 0.45,
}  # fmt: skip
Truth = Callable[[np.ndarray], np.ndarray]


def rows_of(length: int, **metrics: list[float]) -> list[dict[str, Any]]:
    """Training rows that are healthy but for the metrics given; a series that is too short goes on with its last."""
    rows = []
    for i in range(length):
        own = {name: values[min(i, len(values) - 1)] for name, values in metrics.items()}
        rows.append({"step": i + 1, "phase": "train", **STEADY, **own})
    return rows


def spoken(rows: list[dict[str, Any]], prompts: int = 32, samples: int = 8, method: str = "grpo") -> dict[str, int]:
    """Guard -> the step at which it is first set off."""
    first: dict[str, int] = {}
    for end in range(1, len(rows) + 1):
        for name in online_alarms(rows[:end], method, prompts, samples):
            first.setdefault(name, end)
    return first


CASES: list[tuple[str, dict[str, list[float]], int]] = [
    # against a limit: steps that are not made yet count as 0, one bad step of many is forgiven
    ("zero_variance", {"frac_reward_zero_std": [0.5, 1.0]}, 5),  # (0.5 + 4) / 5
    ("truncated", {"truncated": [1.0]}, 2),
    ("truncated", {"truncated": [0.3]}, 4),
    ("kl", {"kl": [0.0, 0.1, 6.0]}, 3),
    ("stands_still", {"kl": [0.0]}, 5),
    ("clip_frac", {"clip_frac": [0.1, 0.1, 0.4]}, 6),  # 0.1 + 4 x 0.4 = 1.7 in five steps
    ("entropy_low", {"entropy": [0.3] * 5 + [0.001]}, 10),
    # against the first five steps
    ("entropy_high", {"entropy": [0.3] * 5 + [0.9, 2.0]}, 10),  # steps 5 to 9 are too far apart
    ("longer", {"completion_length": [40.0, 41.0, 39.0, 40.0, 40.0] + [70.0]}, 10),
    ("shorter", {"completion_length": [40.0, 41.0, 39.0, 40.0, 40.0] + [20.0]}, 10),
    # against the best five steps; 4 standard errors of a share of 0.89 in 5 x 32 are 0.14
    ("parse_rate", {"parse_rate": [0.8] * 5 + [0.97] * 5 + [0.7]}, 13),
    ("reward_hacking", {"accuracy": [0.4] * 5 + [0.1], "reward_mean": [0.45] * 5 + [0.6]}, 9),
]


@pytest.mark.parametrize(("name", "metrics", "step"), CASES, ids=[f"{case[0]}-{case[2]}" for case in CASES])
def test_each_guard_speaks_when_it_must(name: str, metrics: dict[str, list[float]], step: int) -> None:
    assert spoken(rows_of(20, **metrics)) == {name: step}


@pytest.mark.parametrize(
    "metrics",
    [
        {"frac_reward_zero_std": [0.66, 0.9, 0.7, 0.79]},
        {"truncated": [0.9] + [0.02] * 19},
        {"truncated": [0.2]},
        {"kl": [0.0, 0.9]},
        {"clip_frac": [0.3]},
        {"entropy": [0.5] * 5 + [0.02]},
        {"parse_rate": [0.97] * 5 + [0.87]},
        {"parse_rate": [0.5] * 5 + [0.99]},
        {"completion_length": [40.0] * 5 + [58.0] * 10 + [28.0]},
        {"accuracy": [0.4] * 5 + [0.1], "reward_mean": [0.45] * 5 + [0.2]},  # worse, but not paid for it
        {"accuracy": [0.4] * 5 + [0.38], "reward_mean": [0.45] * 5 + [0.6]},
        {"accuracy": [0.3] * 5 + [0.6], "reward_mean": [0.35] * 5 + [0.65]},
    ],
)
def test_no_guard_speaks_when_none_must(metrics: dict[str, list[float]]) -> None:
    assert spoken(rows_of(20, **metrics)) == {}


def test_one_sample_per_prompt_is_no_group() -> None:
    alike = rows_of(6, frac_reward_zero_std=[1.0], reward_std=[0.0])
    assert spoken(alike, samples=1) == {"paid_alike": 5} and spoken(alike) == {"zero_variance": 5}
    assert spoken(rows_of(6, frac_reward_zero_std=[1.0]), samples=1) == {}


def drawn(seed: int, steps: int, prompts: int, samples: int, accuracy: Truth, parsed: Truth, extra: Truth) -> list[Any]:
    """Rows as chance makes them: answers to one prompt resemble each other, half a point for `extra` wrong answers."""
    rng = np.random.default_rng(seed)
    time = np.arange(steps) / 30

    def share(truth: np.ndarray, likeness: float) -> np.ndarray:
        of_prompt = rng.beta(truth[:, None] * likeness, (1 - truth[:, None]) * likeness, (steps, prompts))
        return rng.random((steps, prompts, samples)) < of_prompt[..., None]

    right, read, paid = share(accuracy(time), 0.6), share(parsed(time), 1.0), share(extra(time), 1.0)
    length = 40 * np.exp(rng.normal(0, 0.3, (steps, prompts, 1)) + rng.normal(0, 0.2, (steps, prompts, samples)))
    reward = right + 0.5 * (paid & ~right)
    columns = {
        "accuracy": right.mean((1, 2)), "parse_rate": read.mean((1, 2)), "reward_mean": reward.mean((1, 2)),
        "frac_reward_zero_std": (reward == reward[..., :1]).all(2).mean(1), "completion_length": length.mean((1, 2)),
    }  # fmt: skip
    return rows_of(steps, **{name: values.tolist() for name, values in columns.items()})


def flat(level: float) -> Truth:
    return lambda time: np.full_like(time, level)


def ramp(start: float, end: float) -> Truth:
    """From step 8 to step 24, then level."""
    return lambda time: start + (end - start) * np.clip((time - 0.25) / 0.55, 0, 1)


@pytest.mark.parametrize(("prompts", "samples"), [(4, 4), (8, 8), (32, 8), (64, 4)])
def test_noise_sets_nothing_off(prompts: int, samples: int) -> None:
    for seed in range(4):
        for parsed in (0.6, 0.95):
            still = drawn(seed, 50, prompts, samples, flat(0.4), flat(parsed), flat(0.1))
            better = drawn(seed, 50, prompts, samples, ramp(0.3, 0.5), ramp(parsed, 0.99), ramp(0.1, 0.4))
            for rows in (still, better):
                found = spoken(rows, prompts, samples).keys()
                # of 20 groups, 17 are now and then paid alike, which is worth saying
                assert found <= ({"zero_variance"} if prompts == 4 else set()), (seed, parsed)


@pytest.mark.parametrize(("prompts", "samples"), [(32, 8), (64, 4)])
def test_what_goes_wrong_is_seen_through_the_noise(prompts: int, samples: int) -> None:
    for seed in range(5):
        unlearned = drawn(seed, 40, prompts, samples, flat(0.4), ramp(0.98, 0.73), flat(0.1))
        assert 10 < spoken(unlearned, prompts, samples)["parse_rate"] <= 32
        hacked = drawn(seed, 40, prompts, samples, ramp(0.4, 0.1), flat(0.9), ramp(0.1, 0.9))
        assert 10 < spoken(hacked, prompts, samples)["reward_hacking"] <= 32


def test_a_healthy_run_gives_no_alarm() -> None:
    rows = read_jsonl(HEALTHY_RUN)
    assert len(rows) == 30 and max(row["frac_reward_zero_std"] for row in rows) > 0.65
    for method in FLAGS:
        assert spoken(rows, 32, 8, method) == {}


def test_a_row_read_back_from_the_log_is_the_row(tmp_path: Path) -> None:
    """So a run that goes on needs no other memory than its log."""
    rows = drawn(1, 40, 32, 8, ramp(0.4, 0.1), ramp(0.98, 0.73), ramp(0.1, 0.9))
    again = [json.loads(json.dumps(row)) for row in rows]
    assert online_alarms(again, "ppo", 32, 8) == online_alarms(rows, "ppo", 32, 8) != {}


def test_a_line_says_what_since_when_why_and_what_to_do() -> None:
    metrics = {"accuracy": [0.4] * 5 + [0.1], "reward_mean": [0.45] * 5 + [0.6], "truncated": [0.0, 0.75]}
    lines = online_alarms(rows_of(12, **metrics), "rloo", 64, 4)
    assert lines["reward_hacking"].startswith(
        "since step 8: accuracy is 0.1, down from 0.4, while reward_mean is 0.6, up from 0.45: "
        "the reward pays for something else than right answers; "
    )
    assert lines["truncated"].startswith("since step 8: truncated is 0.75, above 0.2: an answer that is cut off")


SCRIPTS = {"ppo": "05_train_ppo", "grpo": "06_train_grpo", "rloo": "07_train_rloo"}


@pytest.mark.parametrize(
    ("script", "guards", "words"),
    [(script, ONLINE, FLAGS[method]) for method, script in SCRIPTS.items()]
    + [("03_sft_train", SFT, {}), ("09_train_dpo", DPO, {})],
)
def test_every_remedy_is_a_flag(script: str, guards: dict[str, health.Guard], words: dict[str, str]) -> None:
    """A flag is this script's, or that of the script which the sentence names."""
    named = 0
    for name, guard in guards.items():
        for clause in re.split(r"[;,:]| or ", guard.advice.format(**words)):
            other = re.search(r"\d\d_\w+(?=\.py)", clause)
            known = flags_of(importlib.import_module(other.group() if other else script).Config)
            flags = re.findall(r"--(\w+)", clause)
            assert set(flags) <= set(known), f"{name}: {clause}"
            named += len(flags)
        assert "--" in guard.advice.format(**words) and "\n" not in guard.advice, name
    assert named >= len(guards)


def test_the_table_lists_every_guard_with_its_limit() -> None:
    doc = str(health.__doc__)
    online, after = doc.split("03 and 09")

    def listed(table: str) -> dict[str, float]:
        cells = [[cell.strip() for cell in line.split("|")] for line in table.splitlines() if line.count("|") == 2]
        return {name: float(limit) for name, _, limit in cells if name not in ("", "guard")}

    assert listed(online) == {name: guard.limit for name, guard in ONLINE.items()}
    assert listed(after) == {name: abs(guard.limit) for name, guard in DPO.items()}
    assert SFT.keys() <= DPO.keys() and all(DPO[name].limit == guard.limit for name, guard in SFT.items())


def validation(step: int, **changes: float) -> dict[str, Any]:
    figures = {
        "val_accuracy": 0.4, "val_reward": 0.45, "val_parse_rate": 0.97, "val_completion_length": 40.0,
        "val_truncated": 0.0, "kl": 0.2, "val_implicit_reward_chosen": -0.5,
    }  # fmt: skip
    return {"step": step, "phase": "validation", **figures, **changes}


def test_after_preference_training() -> None:
    start, best = validation(0), validation(20, val_accuracy=0.6, val_reward=0.62)
    assert last_alarms([], 300, DPO) == []
    assert last_alarms([start, best, validation(40)], 300, dpo_guards(0.1)) == []

    def line(records: int = 300, **changes: float) -> str:
        (only,) = last_alarms([start, best, validation(40, **changes)], records, dpo_guards(0.1))
        assert only.startswith("since step 40: ")
        return only

    assert "kl is 1.5, above 1: the policy has left its reference; raise --beta" in line(kl=1.5)
    # 12 nats, times beta
    assert "val_implicit_reward_chosen is -1.2, below -1" in line(val_implicit_reward_chosen=-1.2)
    assert "val_completion_length is 70, up from 40" in line(val_completion_length=70.0)
    assert "val_completion_length is 20, down from 40" in line(val_completion_length=20.0)
    assert "val_parse_rate is 0.8, down from 0.97" in line(val_parse_rate=0.8)
    assert "val_accuracy is 0.4, down from 0.6, while val_reward is 0.7, up from 0.62" in line(val_reward=0.7)
    worse = [validation(20, val_accuracy=0.25, val_reward=0.3), validation(40, val_accuracy=0.27)]
    said = "val_accuracy is 0.27 at best, 0.4 at the start: telling the pairs apart has cost right answers"
    (only,) = last_alarms([start, *worse], 300, dpo_guards(0.1))
    assert said in only
    assert last_alarms([start, *worse], 60, dpo_guards(0.1)) == []
    assert last_alarms([start, *worse, validation(60, val_accuracy=0.35)], 300, dpo_guards(0.1)) == []
    # 16 records differ by as much for nothing
    noisy = validation(40, val_parse_rate=0.8, val_reward=0.7)
    assert last_alarms([start, best, noisy], 16, dpo_guards(0.1)) == []


def test_after_supervised_training() -> None:
    """Early validations, of a model that does not know the format yet, are no alarm."""
    rows = [validation(5, val_parse_rate=0.0, val_truncated=1.0), validation(10)]
    assert last_alarms(rows, 300, SFT) == []
    cut = [*rows, validation(15, val_truncated=0.3, val_parse_rate=0.7)]
    lines = last_alarms(cut, 300, SFT)
    assert [line.split(" is ")[0] for line in lines] == [
        "since step 15: val_truncated",
        "since step 15: val_parse_rate",
    ]
