"""Fast tests first; tests of the real FinQA files only where those lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FINQA = Path(os.environ.get("FINQA_DIR", ROOT / "datasets" / "finqa"))
"""Folder of the real {train,dev,test}.json: what download.sh fills, or $FINQA_DIR."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs the real files where there are none, and start with the tests that take seconds."""
    if not (FINQA / "train.json").is_file():
        left_out = [item for item in items if item.get_closest_marker("finqa")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture
def finqa_folder() -> Path:
    """Folder of the real FinQA files, for tests marked `finqa`."""
    return FINQA


@pytest.fixture(autouse=True)
def no_local_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see the shipped defaults, whatever download.sh has chosen on this machine."""
    monkeypatch.setattr("utils.config.LOCAL_FILE", "configs/local-absent-in-tests.yaml")
