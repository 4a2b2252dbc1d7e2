"""Which file a stage reads: flag before folder before run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from utils.inputs import records_file, reward_spec_file
from utils.settings import PathSettings
from utils.stage import Stage


class FakeStage:
    """Hands back what it is asked for: a path for `input`, words for `previous`."""

    def input(self, path: str | Path) -> Path:
        return Path(path)

    def previous(self, script: str, *names: str) -> Path:
        return Path("this_run", script, *names)


@pytest.mark.parametrize(
    ("given", "paths", "expected"),
    [
        ("mine.jsonl", {"data_dir": "folder"}, "mine.jsonl"),
        ("", {"data_dir": "folder"}, "folder/val.jsonl"),
        ("", {}, "this_run/01_prepare_dataset/val.jsonl"),
    ],
)
def test_a_flag_comes_before_the_data_folder_and_that_before_the_run(
    given: str, paths: dict[str, Any], expected: str
) -> None:
    stage = cast(Stage, FakeStage())
    assert records_file(stage, PathSettings(**paths), "val.jsonl", given) == Path(expected)


def test_the_reward_is_the_named_one_or_the_run_s() -> None:
    stage = cast(Stage, FakeStage())
    assert reward_spec_file(stage, PathSettings(reward_spec="a.yaml")) == Path("a.yaml")
    assert reward_spec_file(stage, PathSettings()) == Path("this_run/02_build_rewards/reward_spec.yaml")
