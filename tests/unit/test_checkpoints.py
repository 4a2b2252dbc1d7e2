"""Checkpoints are whole or absent, and what they hold comes back."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.invariants.tiny import letter_tokenizer, tiny_model
from utils.errors import UserError
from utils.files import sha256
from utils.rl.checkpoints import (
    drop_old,
    last_checkpoint,
    load_state,
    new_checkpoint,
    resume_point,
    save_checkpoint,
    step_number,
    steps_in,
)


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


def test_equal_states_are_equal_bytes_also_when_one_was_read_from_a_file(
    tmp_path: Path, policy: tuple[Any, Any]
) -> None:
    """Strings and tuples that are one object in the first run are several in one that was resumed."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([{"params": [weight]}, {"params": [torch.nn.Parameter(torch.ones(2))]}])
    weight.sum().backward()
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "best": {"step": 3}, "warned": ["step"]}
    first = save_checkpoint(tmp_path / "a", 3, *policy, state)
    again = load_state(first)
    second = save_checkpoint(tmp_path / "b", again.pop("step"), *policy, again)
    assert sha256(first) == sha256(second)


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


def test_what_a_kill_left_beside_the_last_checkpoint_goes(tmp_path: Path) -> None:
    """Killed after the marker moved, before the older step went; and a newer one, whose marker was not reached."""
    for step in (1, 2):
        with new_checkpoint(tmp_path, step, keep=0) as new:
            (new / "a").write_text("a")
    (tmp_path / "step_3").mkdir()
    assert resume_point(tmp_path, keep=1) == tmp_path / "step_2"
    assert [path.name for path in steps_in(tmp_path)] == ["step_2"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The newest of two small step folders."""
    for step in (1, 2):
        with new_checkpoint(tmp_path, step) as new:
            (new / "weights").write_bytes(bytes(range(100)))
            (new / "tokenizer").mkdir()
            (new / "tokenizer" / "merges").write_text("a b")
    return tmp_path / "step_2"


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[50] ^= 1
    file.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit": (lambda step: flip(step / "weights"), "is not as it was written"),
    "cut short": (lambda step: (step / "weights").write_bytes(bytes(range(99))), "is not as it was written"),
    "emptied": (lambda step: (step / "tokenizer" / "merges").write_text(""), "is not as it was written"),
    "a file gone": (lambda step: (step / "tokenizer" / "merges").unlink(), "is not as it was written"),
    "all gone": (shutil.rmtree, "names step_2, which is not there"),
    "an empty marker": (lambda step: (step.parent / "last_complete").write_text(""), "names nothing"),
    "no digest": (lambda step: (step.parent / "last_complete").write_text("step_2\n"), "is not as it was written"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_refused_in_one_line(kind: str, checkpoint: Path) -> None:
    assert last_checkpoint(checkpoint.parent) == checkpoint
    damage, message = DAMAGE[kind]
    damage(checkpoint)
    with pytest.raises(UserError, match=message) as caught:
        last_checkpoint(checkpoint.parent)
    assert "start again with --overwrite" in str(caught.value) and "\n" not in str(caught.value)


def test_the_disk_has_all_of_a_step_before_its_name_and_its_name_before_the_marker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut leaves depends on the order in which things reach the disk."""
    done: list[str] = []

    def name_of(path: str) -> str:
        return re.sub(r"\.(step_\d|last_complete)\.\d+\.tmp", r"new \1", Path(path).relative_to(tmp_path).as_posix())

    def sync(handle: int) -> None:
        done.append(f"sync {name_of(os.readlink(f'/proc/self/fd/{handle}'))}")

    def rename(old: Path, new: Path) -> None:
        done.append(f"name {name_of(str(new))}")
        original(old, new)

    original = os.replace
    for file, call, stand_in in (("os", "fsync", sync), ("os", "rename", rename), ("os", "replace", rename)):
        monkeypatch.setattr(f"utils.files.{file}.{call}", stand_in)
    with new_checkpoint(tmp_path, 7) as new:
        (new / "weights").write_text("1")
        (new / "sub").mkdir()
        (new / "sub" / "file").write_text("2")
    contents = {f"sync new step_7{name}" for name in ("", "/weights", "/sub", "/sub/file")}
    assert set(done[:4]) == contents and done[3] == "sync new step_7"
    assert done[4:] == ["name step_7", "sync .", "sync new last_complete", "name last_complete", "sync ."]
