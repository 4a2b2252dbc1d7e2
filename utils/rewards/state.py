"""What of a reward survives a resume: its hash, so that a run continues under the reward it began with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from utils.errors import UserError


class Spec(Protocol):
    """What every kind's specification has."""

    @property
    def profile(self) -> str: ...
    @property
    def hash(self) -> str: ...


def reward_state(spec: Spec) -> dict[str, Any]:
    """What a checkpoint keeps."""
    return {"reward_hash": spec.hash}


def check_reward_state(spec: Spec, state: Mapping[str, Any]) -> None:
    """UserError when the state was saved under another reward."""
    if state.get("reward_hash") != spec.hash:
        raise UserError(
            f"the reward ({spec.profile}, hash {spec.hash[:12]}) is not the one this run began with "
            f"(hash {str(state.get('reward_hash'))[:12]}); give back the old reward_spec.yaml, or use --overwrite"
        )
