"""metrics.json and breakdown.csv against counts worked by hand; lineage and baselines on fabricated runs."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from utils.errors import UserError
from utils.evaluation.baselines import gold_answers, majority_answers
from utils.evaluation.lineage import lineage, method_of, seed_of
from utils.evaluation.metrics import (
    read_breakdown,
    summarise,
    summarise_pass_k,
    targets_sha256,
    write_breakdown,
)
from utils.files import digest_of_files, read_json, write_json, write_text
from utils.finqa.answers import write_answer
from utils.finqa.examples import FinQAExample, FinQAJudgement
from utils.settings import TaskSettings
from utils.tasks import make_task
from utils.tasks.base import Rollout
from utils.tasks.words import FINQA

VERDICTS = ("correct", "program_correct", "exact_match", "numeric_1pct", "program_valid", "format_valid")


def judgement(name: str, correct: bool, failure: str = "", reward: float = 0.0, **others: Any) -> FinQAJudgement:
    """A verdict that is right or wrong in everything that `others` does not name."""
    facts: dict[str, Any] = dict.fromkeys(VERDICTS, correct) | {"result": "1"} | others
    return FinQAJudgement(id=name, failure=failure, reward=reward, **facts)


FOUR = [
    judgement("a", True, reward=1.0),
    judgement("b", True, reward=1.0, program_correct=False, exact_match=False),
    judgement("c", False, "wrong_result", 0.05, format_valid=True, program_valid=True, numeric_1pct=True),
    judgement("d", False, "format:cut_json", result=""),
]


def example(name: str, exe_ans: float | str, program: str | None = "add(1, 2)") -> FinQAExample:
    target = None if program is None else write_answer(program, exe_ans)
    return FinQAExample(
        id=name,
        input_text=f"question {name}",
        target_answer=str(exe_ans),
        target_program=program,
        question="q",
        exe_ans=exe_ans,
        target_text=target,
        table=(("", "2019"), ("x", "3")),
    )


def test_rates_are_the_counts_divided_by_n() -> None:
    metrics = summarise(FOUR, 0, FINQA)
    assert metrics["n"] == 4
    expected = {
        "execution_accuracy": 2 / 4,
        "program_accuracy": 1 / 4,
        "exact_match": 1 / 4,
        "numeric_1pct": 3 / 4,
        "program_valid": 3 / 4,
        "format_valid": 3 / 4,
        "mean_reward": 2.05 / 4,
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value), name
        low, high = metrics[f"{name}_ci95"]
        assert low <= value <= high and low < high, name
    assert metrics["failures"] == {"format:cut_json": 1, "wrong_result": 1}


def test_both_modes_and_the_percent_scale_are_rates_of_their_own() -> None:
    """Of four records one is off by a factor of 100, three are right for the published evaluator, two in program."""
    verdicts = [*FOUR[:3], judgement("d", False, "scale_100")]
    published = [(True, True), (True, True), (True, False), (False, False)]
    further = [
        {"official_correct": run, "official_program_correct": program, "percent_scale": one.failure == "scale_100"}
        for one, (run, program) in zip(verdicts, published, strict=True)
    ]
    metrics = summarise(verdicts, 0, FINQA, further)
    assert (metrics["percent_scale"], metrics["execution_accuracy"]) == (1 / 4, 2 / 4)
    assert (metrics["official_execution_accuracy"], metrics["official_program_accuracy"]) == (3 / 4, 2 / 4)
    assert metrics["official_execution_accuracy_ci95"][0] < 3 / 4 < metrics["official_execution_accuracy_ci95"][1]
    assert "official_execution_accuracy" not in summarise(verdicts, 0, FINQA)


def test_right_by_a_number_that_is_nowhere() -> None:
    """What is wrong does not count, with such a number or without."""
    verdicts = [
        judgement("a", True, ungrounded=True), judgement("b", True), judgement("c", False, "rounding", ungrounded=True)
    ]  # fmt: skip
    task = make_task(TaskSettings(), None)
    asked = FinQAExample(
        id="r", input_text="subtract 5735 from 5829 and divide: 1,200", target_answer="0.01639", target_program=None,
        question="q", exe_ans=0.01639,
    )  # fmt: skip
    answers = [Rollout(asked, 0, "", False, 0) for _ in verdicts]
    further = [task.assess(answer, one) for answer, one in zip(answers, verdicts, strict=True)]
    metrics = summarise(verdicts, 0, FINQA, further)
    assert (metrics["ungrounded_correct"], metrics["execution_accuracy"]) == (1 / 3, 2 / 3)
    programs = {
        "subtract(5829, 5735), divide(#0, 5735)": False, "add(0.01639, 0)": True, "divide(0.01639, const_1)": True,
        "divide(19.668, 1200)": True,
    }  # fmt: skip
    for program, guessed in programs.items():
        verdict = task.judge(asked, write_answer(program, 0.01639))
        assert verdict.correct and verdict.ungrounded == guessed, program


def test_further_columns_stand_behind_the_old_ones(tmp_path: Path) -> None:
    write_breakdown(
        tmp_path / "b.csv", FOUR, FINQA, [{"official_correct": i == 0, "evidence": "table"} for i in range(4)]
    )
    back = read_breakdown(tmp_path / "b.csv", FINQA)
    assert list(back.rows[0])[-2:] == ["official_correct", "evidence"] and list(back.rows[0])[0] == "id"
    assert [row["official_correct"] for row in back.rows] == ["1", "0", "0", "0"]
    assert back.correct == (True, True, False, False)


def test_equal_seeds_give_equal_metrics() -> None:
    assert summarise(FOUR, 5, FINQA) == summarise(FOUR, 5, FINQA)


def test_failures_come_most_frequent_first() -> None:
    many = [judgement(str(i), False, "late" if i < 2 else "early") for i in range(5)] + [judgement("x", True)]
    assert list(summarise(many, 0, FINQA)["failures"].items()) == [("early", 3), ("late", 2)]


@pytest.mark.parametrize("verdicts", [[], [FOUR[0], FOUR[0]]])
def test_no_record_and_a_repeated_record_are_refused(verdicts: list[FinQAJudgement]) -> None:
    with pytest.raises(UserError, match="no record|occurs 2 times"):
        summarise(verdicts, 0, FINQA)


def test_breakdown_has_the_documented_columns_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "breakdown.csv"
    write_breakdown(path, FOUR, FINQA)
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][:5] == ["id", "execution_correct", "program_correct", "format_valid", "failure"]
    assert set(rows[0][5:]) == {"exact_match", "numeric_1pct", "program_valid", "reward", "result", "ungrounded"}
    assert rows[3][:5] == ["c", "0", "0", "1", "wrong_result"]
    back = read_breakdown(path, FINQA)
    assert back.ids == ("a", "b", "c", "d")
    assert back.correct == (True, True, False, False)
    assert [float(row["reward"]) for row in back.rows] == [1.0, 1.0, 0.05, 0.0]


def test_ids_and_results_with_commas_and_quotes_survive(tmp_path: Path) -> None:
    name = 'A,B/"2019"/page_1.pdf'
    write_breakdown(tmp_path / "b.csv", [judgement(name, True, result="1,5")], FINQA)
    back = read_breakdown(tmp_path / "b.csv", FINQA)
    assert back.ids == (name,) and back.rows[0]["result"] == "1,5"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,execution_correct\na,1\n", "column 'program_correct' is missing"),
        ("id,execution_correct,program_correct,format_valid,failure\na,yes,0,0,\n", ":2: execution_correct is 'yes'"),
        ("id,execution_correct,program_correct,format_valid,failure\na,1,0,0,\na,1,0,0,\n", "'a' occurs 2 times"),
        ("id,execution_correct,program_correct,format_valid,failure\n", "no record"),
        ("", "column 'id' is missing"),
    ],
)
def test_damaged_breakdowns_are_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    write_text(tmp_path / "breakdown.csv", text)
    with pytest.raises(UserError, match=message) as caught:
        read_breakdown(tmp_path / "breakdown.csv", FINQA)
    assert "\n" not in str(caught.value) and "breakdown.csv" in str(caught.value)


def test_pass_k_is_the_mean_of_the_unbiased_estimates() -> None:
    """0, 1 and 4 of 4 samples right: pass@1 = (0 + 1/4 + 1) / 3, pass@2 = (0 + 1/2 + 1) / 3, pass@4 = 2/3."""
    verdicts = [[False] * 4, [True, False, False, False], [True] * 4]
    report = summarise_pass_k(verdicts, (1, 2, 4), seed=0)
    assert (report["records"], report["samples"]) == (3, 4)
    assert [report[f"pass@{k}"] for k in (1, 2, 4)] == pytest.approx([1.25 / 3, 1.5 / 3, 2 / 3])
    assert report["pass@2_ci95"][0] <= 0.5 <= report["pass@2_ci95"][1]


def test_targets_digest_ignores_order_and_sees_gold() -> None:
    task = make_task(TaskSettings(), None)
    one, two = example("a", 3.0), example("b", "yes")
    assert targets_sha256(task, [one, two]) == targets_sha256(task, [two, one])
    assert targets_sha256(task, [one, two]) != targets_sha256(task, [one, example("b", "no")])


def test_majority_is_judged_by_value_and_gold_is_always_right() -> None:
    task = make_task(TaskSettings(), None)
    train = [example("1", 3.02), example("2", "yes", None), example("3", "yes", None)]
    records = [example("a", 3.0), example("b", "yes"), example("c", 7.0)]
    assert [one.text for one in majority_answers(task, train, records)] == ['{"answer": "yes"}'] * 3
    verdicts = [task.judge_constant(one) for one in majority_answers(task, train, records)]
    assert [one.correct for one in verdicts] == [False, True, False]
    assert [one.failure for one in verdicts] == ["answer_kind", "", "answer_kind"]
    assert not any(one.program_valid or one.program_correct for one in verdicts)
    near, _, far = [
        task.judge_constant(one) for one in majority_answers(task, train[:2], records)
    ]  # as frequent: the first
    assert near.numeric_1pct and not near.correct
    assert (near.failure, near.result, far.failure) == ("rounding", "3.02", "wrong_value")
    gold = [task.judge(one.example, one.text) for one in gold_answers(task, records[:1])]
    assert all(one.correct and one.program_correct and one.format_valid for one in gold)
    with pytest.raises(UserError, match="record 2: no target to learn"):
        gold_answers(task, train)


def fake_stage(
    folder: Path, stage: str, spent: dict[str, int], parents: dict[Path, str], outputs: dict[str, str] | None = None
) -> Path:
    """A finished stage whose inputs are `name` inside each parent, with the digests that these note of it."""

    def noted(path: Path, name: str) -> str:
        wrote = read_json(path / "manifest.json")["outputs"].items()
        inside = {file.removeprefix(f"{name}/"): digest for file, digest in wrote if file.startswith(f"{name}/")}
        return digest_of_files(inside) if inside else "0"

    record = {
        "schema": 1, "stage": stage, "status": "completed", "seed": 7, "spent": spent, "seconds": 2.5,
        "inputs": {f"{path}/{name}": noted(path, name) for path, name in parents.items()}, "outputs": outputs or {},
        "parents": [{"path": str(path), "stage": "", "status": "completed"} for path in parents],
    }  # fmt: skip
    write_json(folder / "manifest.json", record)
    return folder


def test_lineage_counts_each_stage_once_and_no_budget_reader(tmp_path: Path) -> None:
    """Rejection sampling: SFT + candidates + its own SFT, but not GRPO, whose manifest 04 read to match its budget."""
    prepared = fake_stage(tmp_path / "01_preprocessing", "01_preprocessing", {}, {})
    sft = fake_stage(tmp_path / "03_sft", "03_sft", {"gradient_tokens": 100}, {prepared: "train.jsonl"})
    grpo = fake_stage(tmp_path / "06_grpo", "06_grpo", {"completions": 8, "gradient_tokens": 7}, {sft: "ckpt_sft/best"})
    spent = {"completions": 8, "generated_tokens": 50}
    candidates = fake_stage(
        tmp_path / "04_candidates", "04_candidates", spent, {sft: "ckpt_sft/best", grpo: "manifest.json"}
    )
    more = {candidates: "candidates.jsonl", sft: "ckpt_sft/best"}
    rejection = fake_stage(tmp_path / "03_sft_rejection", "03_sft", {"gradient_tokens": 30}, more)
    checkpoint = rejection / "ckpt_sft" / "best"
    found = lineage(checkpoint)
    assert found.compute() == {
        "stages": ["03_sft", "04_candidates", "03_sft_rejection"],
        "folders": [str(sft), str(candidates), str(rejection)],
        "completions": 8, "generated_tokens": 50, "gradient_tokens": 130, "forward_tokens": 0,
        "compute_tokens": 3 * 100 + 50 + 3 * 30,
    }  # fmt: skip
    assert found.seconds() == 7.5 and found.missing == ()
    assert method_of(checkpoint) == "rejection_sampling" and seed_of(checkpoint, otherwise=0) == 7
    assert method_of(grpo / "ckpt_grpo" / "best") == "grpo"


def test_a_run_from_elsewhere_is_not_taken_for_one_of_the_same_name(tmp_path: Path) -> None:
    """Both have a 03_sft at outputs/run_001; the one beside wrote the policy that 06 began with."""
    here, there = tmp_path / "run_001", tmp_path / "run_002"
    for run, tokens, digest in ((there, 100, "a"), (here, 7, "b")):
        files = {"ckpt_sft/best/model.safetensors": digest, "ckpt_sft/best/config.json": "c", "logs/train.jsonl": "d"}
        sft = fake_stage(run / "03_sft", "03_sft", {"gradient_tokens": tokens}, {}, files)
        fake_stage(run / "06_grpo", "06_grpo", {"completions": 8}, {sft: "ckpt_sft/best"})
        if run is there:  # brought from a machine where it was called run_001
            path = run / "06_grpo" / "manifest.json"
            write_text(path, path.read_text().replace("run_002", "run_001"))
    assert lineage(there / "06_grpo").compute()["gradient_tokens"] == 100
    assert lineage(here / "06_grpo").compute()["gradient_tokens"] == 7
    (there / "03_sft").rename(tmp_path / "gone")  # then there is no better guess
    assert lineage(there / "06_grpo").compute()["gradient_tokens"] == 7


def test_lineage_says_what_is_gone_and_follows_a_moved_run(tmp_path: Path) -> None:
    sft = fake_stage(tmp_path / "old" / "03_sft", "03_sft", {"gradient_tokens": 100}, {})
    fake_stage(tmp_path / "old" / "06_grpo", "06_grpo", {"completions": 8}, {sft: "ckpt_sft/best"})
    (tmp_path / "old").rename(tmp_path / "new")
    assert lineage(tmp_path / "new" / "06_grpo" / "ckpt_grpo").compute()["stages"] == ["03_sft", "06_grpo"]
    (tmp_path / "new" / "03_sft").rename(tmp_path / "elsewhere")
    assert lineage(tmp_path / "new" / "06_grpo").missing == (str(sft),)
    assert lineage(tmp_path).stages == () and method_of(tmp_path / "my_model") == "my_model"
