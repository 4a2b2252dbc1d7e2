"""Which prompts a step takes, by hand."""

from __future__ import annotations

import pytest

from utils.errors import UserError
from utils.rl.rollouts import examples_of_step
from utils.tasks.base import Example

RECORDS = [Example(str(i), "", "", None, "", 0.0) for i in range(10)]


def names(step: int, seed: int = 3) -> list[str]:
    return [example.id for example in examples_of_step(RECORDS, step, 3, seed)]


def test_each_pass_takes_every_record_at_most_once_in_an_order_of_its_own() -> None:
    """Ten records, three a step: a pass is three steps and leaves one out."""
    first, second = ([names(step) for step in steps] for steps in ((1, 2, 3), (4, 5, 6)))
    for steps in (first, second):
        assert len({name for step in steps for name in step}) == 9
    assert first != second and sum(first, []) != sorted(sum(first, []))


def test_the_order_follows_from_seed_and_step_alone() -> None:
    assert names(5) == names(5) and names(5) != names(5, seed=4)
    assert [names(step) for step in (3, 1)] == [names(step) for step in (1, 3)][::-1]


def test_too_few_records_are_one_line() -> None:
    with pytest.raises(UserError, match="only 10 training records for --prompts_per_step 11: lower it"):
        examples_of_step(RECORDS, 1, 11, 0)
