"""Tasks: what is asked, what is right, what it pays."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from utils.settings import TaskSettings
    from utils.tasks.base import Task


def make_task(settings: TaskSettings, reward_spec: Path | None) -> Task:
    """The task of the settings, paying by a reward_spec.yaml, or by the settings' profile when that is None.

    Raises:
        UserError: the file is no reward spec, or holds another profile than `task.reward_profile`.
    """
    from utils.errors import UserError
    from utils.rewards.kits import REWARDS
    from utils.tasks.finqa import FinQATask
    from utils.tasks.genalign import GenAlignTask
    from utils.tasks.sentiment import SentimentTask

    kit = REWARDS[settings.kind]
    if reward_spec is None:
        spec = kit.profile_of(settings.reward_profile, "task.reward_profile")
    else:
        spec = kit.load(reward_spec)
    if spec.profile != settings.reward_profile:
        raise UserError(
            f"{reward_spec}: profile {spec.profile}, but task.reward_profile is {settings.reward_profile}; "
            "write it again with python 02_build_rewards.py, or give the file of that profile"
        )
    if settings.kind == "sentiment":
        return SentimentTask(spec)
    return GenAlignTask(spec) if settings.kind == "genalign" else FinQATask(spec)
