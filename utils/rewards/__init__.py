"""Rewards computed by executing the program a policy wrote. Imports no torch."""

from utils.rewards.scoring import judge, score_text
from utils.rewards.spec import PROFILES, RewardSpec, load_spec

__all__ = ["PROFILES", "RewardSpec", "judge", "load_spec", "score_text"]
