"""The FinQA task: examples by hand, the row schema read and written, rewards in the rollouts' order."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_records import RECORD, changed
from utils.errors import UserError
from utils.files import write_jsonl
from utils.finqa.examples import FinQAExample
from utils.finqa.failures import FAILURES, wrong_value
from utils.finqa.prompts import render_prompt
from utils.finqa.records import Record
from utils.finqa.splits import divide_pages, few
from utils.rewards.spec import PROFILES
from utils.settings import TaskSettings
from utils.tasks import make_task
from utils.tasks.base import Rollout
from utils.tasks.finqa import FinQATask, check_row, make_examples
from utils.tasks.sources import raw_files

RIGHT = '{"program": "subtract(5829, 5735), divide(#0, 5735)", "answer": "0.01639"}'
WRONG = '{"program": "subtract(5735, 5829), divide(#0, 5735)", "answer": "-0.01639"}'


def words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def example() -> FinQAExample:
    return make_examples([RECORD], 1000, words)[0][0]


def task() -> FinQATask:
    return FinQATask(PROFILES["strict"])


def test_an_example_by_hand() -> None:
    row = example().to_dict()
    assert list(row)[:5] == ["id", "input_text", "target_answer", "target_program", "question"]
    assert row["input_text"] == render_prompt(RECORD) and row["target_text"] == RIGHT
    assert row["target_answer"] == "0.01639" and row["page"] == RECORD.filename and row["exe_ans"] == 0.01639
    assert row["answer"] == "1.6%" and "1.6%" not in row["target_text"]
    check_row(row, "here")


def test_a_record_without_program_has_no_target_and_keeps_its_gold() -> None:
    bare = make_examples([changed(qa__program="", qa__exe_ans="yes")], 1000, words)[0][0]
    assert bare.target_text is None and bare.target_program is None and bare.target_answer == "yes"
    assert task().target(bare) is None and task().prompt(bare) == bare.input_text


def test_no_gold_leaks_into_a_prompt() -> None:
    text = example().input_text
    assert "0.01639" not in text and "1.6%" not in text and "subtract" not in text and "divide" not in text


def test_counts_of_shortened_and_dropped_by_hand() -> None:
    long = changed(id="long", pre_text=["no figure is in here ."] * 20)
    endless = changed(id="endless", qa__question="what " * 100)
    bare = changed(id="bare", qa__program="", qa__exe_ans=1)
    budget = words([render_prompt(RECORD)])[0]
    examples, counts = make_examples([RECORD, long, endless, bare], budget, words)
    assert [one.id for one in examples] == [RECORD.id, "long", "bare"]
    expected = {
        "examples": 3, "too_long_dropped": 1, "shortened": 1, "units_dropped": 19, "with_program": 2,
        "numbers_in_prompt": 2, "prompt_tokens_max": budget,
    }  # fmt: skip
    assert {key: counts[key] for key in expected} == expected


def test_a_lost_number_is_counted() -> None:
    hidden = changed(
        table=[["", "2008"], ["goodwill", "1"]], pre_text=["net revenue was 5829 .", "it was 5735 before ."]
    )
    assert make_examples([hidden], 1000, words)[1]["numbers_in_prompt"] == 1
    bare = words([render_prompt(hidden, set())])[0]
    assert make_examples([hidden], bare + 5, words)[1]["numbers_in_prompt"] == 0


def test_load_reads_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    bare = make_examples([changed(id="b", qa__program="", qa__exe_ans="no")], 1000, words)[0][0]
    write_jsonl(path, [example().to_dict(), bare.to_dict()])
    assert task().load(path) == [example(), bare]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_text": 3}, "key 'input_text': expected string, got 3"),
        ({"exe_ans": True}, "key 'exe_ans': expected number or string"),
        ({"exe_ans": "perhaps"}, "expected a number, yes or no, got 'perhaps'"),
        ({"table": [["a", 1]]}, "key 'table': expected array"),
        ({"table": "a"}, "key 'table': expected array"),
        ({"gold_inds": {"table_1": 1}}, "key 'gold_inds': expected object"),
        ({"target_program": 1.5}, "key 'target_program': expected string or null"),
        ({"id": RECORD.id}, "stands in line 1 too"),
    ],
)
def test_a_row_off_the_schema_is_named_by_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "val.jsonl"
    second = {**example().to_dict(), "id": "second", **change}
    write_jsonl(path, [example().to_dict(), second])
    with pytest.raises(UserError) as caught:
        task().load(path)
    assert f"{path}:2" in str(caught.value) and message in str(caught.value) and "\n" not in str(caught.value)


def test_missing_key_and_empty_file(tmp_path: Path) -> None:
    row = example().to_dict()
    del row["target_text"]
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match="x.jsonl:1, id .*key 'target_text' is missing"):
        task().load(tmp_path / "x.jsonl")
    (tmp_path / "y.jsonl").write_text("\n")
    with pytest.raises(UserError, match="y.jsonl: no examples"):
        task().load(tmp_path / "y.jsonl")


def test_rewards_stand_in_the_order_of_the_rollouts() -> None:
    texts = [RIGHT, "", WRONG, RIGHT]
    rollouts = [Rollout(example(), sample, text, False, 1) for sample, text in enumerate(texts)]
    assert [reward.total for reward in task().score(rollouts)] == [1.0, 0.0, 0.1, 1.0]
    assert task().score([]) == []


def test_a_verdict() -> None:
    verdict = task().judge(example(), RIGHT)
    assert verdict.correct and verdict.program_correct and verdict.exact_match and verdict.failure == ""
    assert task().judge(example(), WRONG).failure == "sign"


def test_a_run_continues_under_its_own_reward_only() -> None:
    task().load_state_dict(task().state_dict())
    with pytest.raises(UserError, match="not the one this run began with"):
        FinQATask(PROFILES["seed"]).load_state_dict(task().state_dict())


def test_make_task_takes_the_file_or_the_profile(tmp_path: Path) -> None:
    PROFILES["seed"].save(tmp_path / "reward_spec.yaml")
    settings = replace(TaskSettings(), reward_profile="seed")
    made = make_task(settings, tmp_path / "reward_spec.yaml")
    assert isinstance(made, FinQATask) and made.spec == PROFILES["seed"]
    default = make_task(TaskSettings(), None)
    assert isinstance(default, FinQATask) and default.spec == PROFILES["strict"]
    with pytest.raises(UserError, match="profile seed, but task.reward_profile is strict"):
        make_task(TaskSettings(), tmp_path / "reward_spec.yaml")


@pytest.mark.parametrize(
    ("program", "result", "gold", "gold_program", "failure"),
    [
        ("greater(2, 1)", "yes", 5.0, "add(2, 3)", "answer_kind"),
        ("add(2, 1)", 3.0, "no", "greater(1, 2)", "answer_kind"),
        ("subtract(1, 2)", -1.0, 1.0, "subtract(2, 1)", "sign"),
        ("divide(1, 4), multiply(#0, const_100)", 25.0, 0.25, "divide(1, 4)", "scale_100"),
        ("divide(1, 4)", 0.25, 25.0, None, "scale_100"),
        ("divide(1, 4)", 0.25, 0.2501, None, "rounding"),
        ("add(1, 999)", 1000.0, 3.0, "add(1, 2)", "ungrounded_number"),
        ("multiply(2, 4)", 8.0, 3.0, "add(1, 2)", "wrong_operation"),
        ("add(2, 4)", 6.0, 3.0, "add(1, 2)", "wrong_operand"),
        ("greater(2, 4)", "no", "yes", "greater(4, 2)", "wrong_operand"),
        ("add(2, 4)", 6.0, 3.0, None, "wrong_value"),
        ("subtract(2, 2)", 0.0, 3.0, None, "wrong_value"),
        ("add(2, 4)", 6.0, 0.0, None, "wrong_value"),
    ],
)
def test_failures_by_hand(
    program: str, result: float | str, gold: float | str, gold_program: str | None, failure: str
) -> None:
    assert wrong_value(program, result, gold, gold_program, "there are 1 , 2 and 4 of them") == failure
    assert failure in FAILURES


def pages(count: int, split: str) -> list[Record]:
    return [changed(id=f"{split}{i}-{q}", filename=f"{split}{i}") for i in range(count) for q in range(2)]


def test_pages_are_divided_whole_and_all_records_stay() -> None:
    splits = {"train": pages(14, "a"), "val": pages(3, "b"), "test": pages(3, "c")}
    divided = divide_pages(splits, (0.5, 0.25, 0.25), seed=3)
    assert {split: len(records) for split, records in divided.items()} == {"train": 20, "val": 10, "test": 10}
    owners = {record.filename: split for split, records in divided.items() for record in records}
    assert all(owners[record.filename] == split for split, records in divided.items() for record in records)
    assert len({record.id for records in divided.values() for record in records}) == 40
    assert divide_pages(splits, (0.5, 0.25, 0.25), seed=3) == divided
    assert divide_pages(splits, (0.5, 0.25, 0.25), seed=4) != divided
    with pytest.raises(UserError, match="leave none for val"):
        divide_pages(splits, (0.98, 0.01, 0.01), seed=0)


def test_a_few_records_keep_a_share_with_programs() -> None:
    with_program = [changed(id=f"p{i}") for i in range(6)]
    without = [changed(id=f"n{i}", qa__program="") for i in range(20)]
    mixed = without[:10] + with_program + without[10:]
    taken = few(mixed, 8)
    assert [record.id for record in taken] == ["n0", "n1", "n2", "n3", "p0", "p1", "p2", "p3"]
    assert len(few(with_program, 4)) == 4 and few(mixed, 100) == mixed
    assert sum(record.program is not None for record in few(without + with_program[:1], 8)) == 1


def test_raw_files_by_either_name(tmp_path: Path) -> None:
    settings = replace(TaskSettings(), source="files", data_root=str(tmp_path))
    for name in ("train", "val", "test"):
        (tmp_path / f"{name}.json").write_text("[]")
    assert raw_files(settings)["val"].name == "val.json"
    (tmp_path / "dev.json").write_text("[]")
    with pytest.raises(UserError, match="both dev.json and val.json"):
        raw_files(settings)
    (tmp_path / "train.json").unlink()
    with pytest.raises(UserError, match="train.json is missing .*download.sh"):
        raw_files(settings)
    with pytest.raises(UserError, match="seed_0: train.json is missing .*00_check_data.py"):
        raw_files(replace(settings, source="generated"))
