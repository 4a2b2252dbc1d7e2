"""Which file a stage reads: the one its flag names, else the one of the `paths` settings, else this run's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from utils.settings import PathSettings
    from utils.stage import Stage


def records_file(stage: Stage, paths: PathSettings, name: str, given: str = "") -> Path:
    """The records called `name` (say train.jsonl): the file `given` by a flag, else --data_dir's, else stage 01's.

    The file is noted as an input of the stage. UserError when it is not there.
    """
    if given:
        path = stage.input(given)
    elif paths.data_dir:
        path = stage.input(Path(paths.data_dir) / name)
    else:
        path = stage.previous("01_prepare_dataset", name)
    for beside in sorted(path.parent.glob("golden_*.jsonl")):  # what genalign's classifiers are scored on
        stage.input(beside)
    return path


def warn_of_other_reward(stage: Stage, made: Path, spec: Path) -> None:
    """Warn where what lies in `made` (a policy, candidates) was made under another reward than `spec`."""
    from utils import manifest
    from utils.files import sha256

    folder = manifest.stage_above(made)
    inputs = manifest.read(folder)["inputs"] if folder else {}
    other = [name for name, digest in inputs.items() if Path(name).suffix == ".yaml" and digest != sha256(spec)]
    if other:
        stage.warn(
            f"{made} was made under another reward ({other[0]}) than {spec}; --reward_spec names one for this stage"
        )


def reward_spec_file(stage: Stage, paths: PathSettings) -> Path:
    """The reward: --reward_spec, else stage 02's of this run; noted as an input. UserError when it is not there."""
    if paths.reward_spec:
        return stage.input(paths.reward_spec)
    return stage.previous("02_build_rewards", "reward_spec.yaml")
