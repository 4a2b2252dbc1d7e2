"""Checkpoints are whole or absent, and what they hold comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.invariants.tiny import letter_tokenizer, tiny_model
from utils.errors import UserError
from utils.rl.checkpoints import drop_old, last_checkpoint, load_state, save_checkpoint, step_number, steps_in


@pytest.fixture(scope="module")
def policy() -> tuple[Any, Any]:
    return tiny_model("llama"), letter_tokenizer()


def test_state_comes_back_and_the_generator_goes_on(tmp_path: Path, policy: tuple[Any, Any]) -> None:
    torch.manual_seed(5)
    save_checkpoint(tmp_path, 3, *policy, {"counts": {"a": 1}, "moment": torch.tensor([1.5])})
    expected = torch.rand(2)
    torch.manual_seed(9)
    state = load_state(tmp_path / "step_3")
    assert (state["step"], state["counts"]) == (3, {"a": 1}) and torch.equal(state["moment"], torch.tensor([1.5]))
    assert torch.equal(torch.rand(2), expected)


def test_only_the_newest_step_is_kept_by_number_not_by_name(tmp_path: Path, policy: tuple[Any, Any]) -> None:
    assert last_checkpoint(tmp_path) is None
    for step in (5, 20):
        save_checkpoint(tmp_path, step, *policy, {})
    assert last_checkpoint(tmp_path) == tmp_path / "step_20"
    assert not (tmp_path / "step_5").exists()


@pytest.mark.parametrize(("keep", "left"), [(1, [100]), (2, [20, 100]), (9, [5, 9, 20, 100]), (0, [5, 9, 20, 100])])
def test_the_newest_are_kept_as_many_as_asked(tmp_path: Path, keep: int, left: list[int]) -> None:
    for step in (100, 9, 20, 5):
        (tmp_path / f"step_{step}").mkdir()
    (tmp_path / "best").mkdir()
    drop_old(tmp_path, 100, keep)
    assert [step_number(path) for path in steps_in(tmp_path)] == left and (tmp_path / "best").is_dir()


def test_steps_of_a_part_that_was_cut_off_do_not_stay(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        (tmp_path / f"step_{step}").mkdir()
    drop_old(tmp_path, 20, keep=2)
    assert [path.name for path in steps_in(tmp_path)] == ["step_10", "step_20"]


def test_a_kill_while_writing_leaves_the_one_before(
    tmp_path: Path, policy: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 1, *policy, {})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for broken in ("torch.save", "utils.rl.checkpoints.write_text"):
        with monkeypatch.context() as patch:
            patch.setattr(broken, killed)
            with pytest.raises(KeyboardInterrupt):
                save_checkpoint(tmp_path, 2, *policy, {})
        found = last_checkpoint(tmp_path)
        assert found is not None and load_state(found)["step"] == 1


def test_a_marker_without_its_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "last_complete").write_text("step_7\n")
    with pytest.raises(UserError, match="names step_7"):
        last_checkpoint(tmp_path)
