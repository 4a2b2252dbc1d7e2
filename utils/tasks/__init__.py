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
    from utils.rewards.spec import load_spec, profile_of
    from utils.tasks.finqa import FinQATask

    kinds = {"finqa": FinQATask}
    spec = profile_of(settings.reward_profile, "task.reward_profile") if reward_spec is None else load_spec(reward_spec)
    if spec.profile != settings.reward_profile:
        raise UserError(
            f"{reward_spec}: profile {spec.profile}, but task.reward_profile is {settings.reward_profile}; "
            "write it again with python 02_build_rewards.py, or give the file of that profile"
        )
    return kinds[settings.kind](spec)
