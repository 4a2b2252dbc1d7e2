"""Stage 02: write down how completions are paid, and show that the reward does what it says.

FinQA's reward executes the program a completion contains and compares its value with `exe_ans`
(utils/rewards/spec.py); the sentiment task's counts keywords (utils/rewards/sentiment.py). Both explain their two
profiles. The cases in utils/rewards/*cases.yaml have their pay worked out by hand, the attacks beside them must earn
nothing; the stage prints each with its components and fails when one differs. Look here first when a training run earns
zero rewards.

Reads:  nothing
Writes: outputs/run_XXX/02_rewards/reward_spec.yaml (this run's reward), reward_spec_{strict,seed}.yaml (both profiles
        as shipped), unit_tests/{test_cases,test_results}.json, manifest.json

    python 02_build_rewards.py
    python 02_build_rewards.py --reward_profile seed --weights "exact=1.0,program=0.3,format=0.2"
    python 02_build_rewards.py --task sentiment --weights "ending=0.5"
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from utils.config import setting
from utils.errors import UserError
from utils.files import write_json
from utils.rewards.kits import REWARDS, RewardKit
from utils.settings import RunSettings, TaskSettings
from utils.stage import Stage, main


@dataclass(frozen=True)
class Inputs:
    """Flags of this stage."""

    weights: str = setting("", "weights to change, e.g. exact=1.0,program=0.3,format=0.2")


@dataclass(frozen=True)
class Config:
    """Settings of stage 02."""

    run: RunSettings
    task: TaskSettings
    inputs: Inputs


def run(cfg: Config, stage: Stage) -> None:
    """Write the specification, score the cases, report."""
    kit = REWARDS[cfg.task.kind]
    spec = kit.override(kit.profile_of(cfg.task.reward_profile, "--reward_profile"), cfg.inputs.weights)
    spec.save(stage.path("reward_spec.yaml"))
    for name, shipped in kit.profiles.items():
        shipped.save(stage.path(f"reward_spec_{name}.yaml"))

    results = kit.run(spec)
    write_json(stage.path("unit_tests", "test_cases.json"), kit.written(spec))
    write_json(stage.path("unit_tests", "test_results.json"), results)
    failed = [result for result in results if not result["passed"]]
    show(stage, kit, spec.profile, results)
    stage.terminal.say(kit.range_line(spec))
    stage.report({"profile": spec.profile, "hash": spec.hash, "tests": len(results), "failed": len(failed)})
    if failed:
        first = failed[0]
        raise UserError(
            f"{len(failed)} of {len(results)} reward tests differ; first {first['name']!r}: expected "
            f"{first['expected'] or 'at most 0'}, got {first['components']}; see unit_tests/test_results.json"
        )


def show(stage: Stage, kit: RewardKit, profile: str, results: list[dict[str, Any]]) -> None:
    """Print the hand-computed tests, and the attacks that earned something, with their component scores."""
    attacks = [result for result in results if result["name"].startswith("attack: ")]
    shown = [result for result in results if result not in attacks or not result["passed"]]
    rows = [
        [result["name"], *(f"{result['components'][name]:+.2f}" for name in kit.components), f"{result['total']:+.2f}"]
        + ["ok" if result["passed"] else "DIFFERS", ", ".join(result["reasons"])]
        for result in shown
    ]
    stage.terminal.table(f"reward profile {profile}", ["test", *kit.components, "total", "", "reasons"], rows)
    held = sum(result["passed"] for result in attacks)
    stage.terminal.say(f"{held} of {len(attacks)} attacks earn at most 0 (each in unit_tests/test_results.json)")


if __name__ == "__main__":
    raise SystemExit(main(Config, run, __doc__, __file__))
