"""Stage 10 on llama-tiny and a few records: files, controls, pass@k, resuming, and every refusal in one line."""

from __future__ import annotations

import csv
import importlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from utils import manifest
from utils.files import read_json, read_jsonl, write_json, write_jsonl
from utils.finqa.answers import write_answer
from utils.finqa.examples import FinQAExample
from utils.finqa.failures import FAILURES
from utils.rewards.scoring import judge, score_text
from utils.rewards.spec import load_spec
from utils.rl.rollouts import Sampler
from utils.stage import main

PROMPT = (
    "answer the question with a program .\nthe sales of 2019 is {} ; the sales of 2018 is {} ;\nquestion: {}\nanswer:"
)


def example(index: int, split: str) -> FinQAExample:
    a, b = 100 + 7 * index, 60 + index
    program, value = (f"subtract({a}, {b})", float(a - b)) if index % 3 else (f"greater({a}, {b})", "yes")
    return FinQAExample(
        id=f"{split}-{index}",
        input_text=PROMPT.format(a, b, "what is the change ?"),
        target_answer=str(value),
        target_program=program,
        question="what is the change ?",
        exe_ans=value,
        target_text=write_answer(program, value),
        page=f"{split}/page",
        table=(("", "2019", "2018"), ("sales", str(a), str(b))),
        gold_inds={"table_1": "the sales"} if index < 4 else {},
    )


def stage(*flags: str) -> int:
    script = importlib.import_module("10_evaluate")
    return main(script.Config, script.run, script.__doc__, script.__file__, argv=["--device", "cpu", "--quiet", *flags])


@pytest.fixture(scope="module", autouse=True)
def small_calls() -> Iterator[None]:
    """Ten records are three calls of the sampler."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.evaluation.policies.RECORDS_PER_CALL", 4)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Ten test records and six training records in a folder like stage 01's, and a reward specification."""
    folder = tmp_path_factory.mktemp("run_001") / "01_preprocessing"
    write_jsonl(folder / "test.jsonl", [example(index, "test").to_dict() for index in range(10)])
    write_jsonl(folder / "train.jsonl", [example(index, "train").to_dict() for index in range(6)])
    rewards = importlib.import_module("02_build_rewards")
    argv = ["--quiet", "--output_dir", str(folder.parent / "02_rewards")]
    assert main(rewards.Config, rewards.run, rewards.__doc__, rewards.__file__, argv=argv) == 0
    yield folder


def evaluate(data: Path, name: str, *flags: str) -> Path:
    target = data.parent / name
    common = ["--data_dir", str(data), "--max_new_tokens", "12", "--output_dir", str(target)]
    assert stage(*common, *flags) == 0
    return target


@pytest.fixture(scope="module")
def base(data: Path) -> Path:
    return evaluate(
        data, "10_evaluation_base", "--baseline", "base", "--pass_k", "1,2", "--pass_records", "4", "--seed", "3"
    )


def assert_equal_bytes(one: Path, other: Path) -> None:
    assert sorted(manifest.output_files(one)) == sorted(manifest.output_files(other))
    for name, path in manifest.output_files(one).items():
        assert path.read_bytes() == (other / name).read_bytes(), name


def breakdown(folder: Path) -> list[dict[str, str]]:
    with (folder / "breakdown.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_files_have_what_the_readme_names(base: Path) -> None:
    metrics = read_json(base / "metrics.json")
    assert metrics["n"] == 10 and metrics["method"] == "base" and metrics["seed"] == 3 and metrics["split"] == "test"
    rates = ("execution_accuracy", "program_accuracy", "exact_match", "numeric_1pct", "program_valid", "format_valid")
    for name in (*rates, "mean_reward"):
        low, high = metrics[f"{name}_ci95"]
        assert low <= metrics[name] <= high
    assert set(metrics["policy"]) == {"path", "sha256"} and "untrained" not in metrics
    rows = breakdown(base)
    assert list(rows[0])[:5] == ["id", "execution_correct", "program_correct", "format_valid", "failure"]
    assert [row["id"] for row in rows] == [f"test-{index}" for index in range(10)]
    assert sum(int(row["execution_correct"]) for row in rows) == pytest.approx(10 * metrics["execution_accuracy"])
    assert sum(metrics["failures"].values()) == sum(row["failure"] != "" for row in rows)
    assert "seconds" not in json.dumps(metrics) and not (base / "unfinished").exists()
    assert read_json(base / "manifest.json")["inputs"]["assets/llama-tiny"].startswith("sampled:")


def test_accuracy_is_given_by_steps_operations_evidence_and_kind(base: Path, data: Path) -> None:
    """Indices 0, 3, 6, 9 ask greater (yes or no), the others subtract; the evidence of 0 to 3 is known."""
    metrics = read_json(base / "metrics.json")
    counts = {by: {name: row["n"] for name, row in groups.items()} for by, groups in metrics["groups"].items()}
    assert counts == {
        "steps": {"1": 10},
        "first_operation": {"subtract": 6, "greater": 4},
        "operations": {"subtract": 6, "greater": 4},
        "evidence": {"table": 4, "no gold_inds": 6},
        "answer_kind": {"number": 6, "yes/no": 4},
    }
    with (base / "breakdown_groups.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        found = metrics["groups"][row["by"]][row["group"]]
        assert [int(row["n"]), int(row["correct"])] == [found["n"], found["correct"]]
        assert [float(row["ci95_low"]), float(row["ci95_high"])] == found["accuracy_ci95"]
    lines = breakdown(base)
    assert [line["evidence"] for line in lines] == ["table"] * 4 + ["no gold_inds"] * 6
    assert all(line["failure"] in FAILURES for line in lines if line["execution_correct"] == "0")
    rates = [metrics[name] for name in ("official_execution_accuracy", "percent_scale")]
    failed = [sum(int(line["official_correct"]) for line in lines), sum(x["failure"] == "scale_100" for x in lines)]
    assert rates == [count / 10 for count in failed]


class Draws:
    """Counts the sampler's calls and notes the shape of their random numbers; the call after `limit` is Ctrl-C."""

    def __init__(self, patch: pytest.MonkeyPatch, limit: int = 100) -> None:
        self.calls = 0
        self.random: list[Any] = []
        draw = Sampler.draw

        def counted(sampler: Sampler, part: list[FinQAExample], samples: int, numbers: Any) -> Any:
            if self.calls == limit:
                raise KeyboardInterrupt
            self.calls += 1
            self.random.append(None if numbers is None else numbers.shape)
            return draw(sampler, part, samples, numbers)

        patch.setattr(Sampler, "draw", counted)


@pytest.mark.parametrize("done", [2, 3])
def test_an_interrupted_stage_goes_on_to_the_same_bytes(data: Path, base: Path, done: int) -> None:
    """Three calls for the greedy answers and one for pass@k; what was done is not done again."""
    flags = ["--baseline", "base", "--pass_k", "1,2", "--pass_records", "4", "--seed", "3", "--max_new_tokens", "12"]
    target = data.parent / f"10_evaluation_cut_{done}"
    flags += ["--data_dir", str(data), "--output_dir", str(target)]
    with pytest.MonkeyPatch.context() as patch:
        Draws(patch, done)
        assert stage(*flags) == 130
    assert read_json(target / "manifest.json")["status"] == "interrupted"
    assert not (target / "metrics.json").exists()
    kept = target / "unfinished" / "greedy.jsonl"
    assert len(kept.read_text().splitlines()) == 1 + done
    with kept.open("a") as file:  # what a kill in the middle of a write leaves
        file.write('[[["half an ans')
    with pytest.MonkeyPatch.context() as patch:
        draws = Draws(patch)
        assert stage(*flags, "--resume") == 0
        assert draws.random == [None] * (3 - done) + [(4, 2, 12)]  # the rest is greedy, pass@k is sampled
    assert_equal_bytes(target, base)


@pytest.mark.parametrize("changed", ["checkpoint", "records"])
def test_answers_of_another_checkpoint_or_other_records_are_not_used(data: Path, tmp_path: Path, changed: str) -> None:
    shutil.copytree("assets/llama-tiny", tmp_path / "policy")
    records = read_jsonl(data / "test.jsonl")[:6]
    write_jsonl(tmp_path / "some.jsonl", records)
    spec = str(data.parent / "02_rewards" / "reward_spec.yaml")
    flags = ["--policy_ckpt", str(tmp_path / "policy"), "--test_jsonl", str(tmp_path / "some.jsonl"), "--seed", "3"]
    flags += ["--reward_spec", spec, "--max_new_tokens", "12", "--output_dir", str(tmp_path / "10_evaluation")]
    with pytest.MonkeyPatch.context() as patch:
        Draws(patch, 1)
        assert stage(*flags) == 130
    if changed == "checkpoint":
        (tmp_path / "policy" / "note.txt").write_text("trained again")
    else:
        records[5]["input_text"] = records[5]["input_text"].replace("sales", "costs")
        write_jsonl(tmp_path / "some.jsonl", records)
    with pytest.MonkeyPatch.context() as patch:
        draws = Draws(patch)
        assert stage(*flags, "--if_needed") == 0
        assert draws.calls == 2
    warnings = read_json(tmp_path / "10_evaluation" / "manifest.json")["warnings"]
    name = {"checkpoint": "policy.checkpoint", "records": "answers.prompts"}[changed]
    assert len(warnings) == 1 and f"is not used, because {name} was" in warnings[0]


def test_answers_made_elsewhere_are_judged_like_our_own(base: Path, data: Path) -> None:
    file = data.parent / "elsewhere.jsonl"
    rows = read_jsonl(base / "samples" / "predictions.jsonl")
    kept = ("id", "text", "tokens", "truncated")
    write_jsonl(file, [{name: row[name] for name in kept} for row in reversed(rows)])
    other = evaluate(data, "10_evaluation_elsewhere", "--predictions", str(file), "--seed", "3")
    for name in ("breakdown.csv", "breakdown_groups.csv", "samples/predictions.jsonl"):
        assert (other / name).read_bytes() == (base / name).read_bytes(), name
    ours, theirs = read_json(base / "metrics.json"), read_json(other / "metrics.json")
    about = {"method", "policy", "note", "pass_at_k"}
    assert {key: ours[key] for key in ours.keys() - about} == {key: theirs[key] for key in theirs.keys() - about}
    assert theirs["method"] == "elsewhere" and len(theirs["policy"]["sha256"]) == 64
    assert read_json(other / "manifest.json")["spent"] == {}
    quick = evaluate(data, "10_evaluation_quick", "--predictions", str(file), "--quick_test", "--method", "theirs")
    assert read_json(quick / "metrics.json")["method"] == "theirs"


def test_records_without_gold_programs_are_judged_by_value_and_grouped_as_unknown(data: Path, tmp_path: Path) -> None:
    rows = [
        row | {"target_program": None, "target_text": None, "gold_inds": {}} for row in read_jsonl(data / "test.jsonl")
    ]
    write_jsonl(tmp_path / "bare.jsonl", rows)
    texts = [{"id": row["id"], "text": write_answer("subtract(107, 61)", 46.0)} for row in rows]
    write_jsonl(tmp_path / "answers.jsonl", texts)
    spec = str(data.parent / "02_rewards" / "reward_spec.yaml")
    flags = ("--test_jsonl", str(tmp_path / "bare.jsonl"), "--predictions", str(tmp_path / "answers.jsonl"))
    target = evaluate(data, "10_evaluation_bare", *flags, "--reward_spec", spec)
    metrics = read_json(target / "metrics.json")
    assert (metrics["execution_accuracy"], metrics["official_execution_accuracy"]) == (0.1, 0.1)  # test-1
    assert metrics["program_accuracy"] == metrics["official_program_accuracy"] == 0.0
    names = {by: list(groups) for by, groups in metrics["groups"].items()}
    assert names["steps"] == names["operations"] == ["no gold program"] and names["evidence"] == ["no gold_inds"]
    # 4 of 10 ask yes or no; 107 and 61 stand in the prompt of test-1 alone
    assert metrics["failures"] == {"ungrounded_number": 5, "answer_kind": 4}


def test_the_named_reward_is_the_one_that_pays(data: Path, tmp_path: Path) -> None:
    rewards = importlib.import_module("02_build_rewards")
    argv = ["--quiet", "--weights", "exact=2.0", "--output_dir", str(tmp_path / "02_rewards")]
    assert main(rewards.Config, rewards.run, rewards.__doc__, rewards.__file__, argv=argv) == 0
    spec = str(tmp_path / "02_rewards" / "reward_spec.yaml")
    metrics = read_json(
        evaluate(data, "10_evaluation_paid", "--baseline", "gold", "--reward_spec", spec) / "metrics.json"
    )
    assert metrics["mean_reward"] == 2.0 and metrics["reward_spec"]["path"].endswith("02_rewards/reward_spec.yaml")


def test_predictions_score_as_stage_02_scores_them(base: Path, data: Path) -> None:
    spec = load_spec(data.parent / "02_rewards" / "reward_spec.yaml")
    rows, records = read_jsonl(base / "samples" / "predictions.jsonl"), read_jsonl(data / "test.jsonl")
    assert len(rows) == 10
    for row, record, line in zip(rows, records, breakdown(base), strict=True):
        asked = FinQAExample.from_dict(record, "test")
        reward, verdict = score_text(row["text"], asked, spec), judge(row["text"], asked, spec)
        assert row["reward"] == reward.total == float(line["reward"])
        assert row["components"] == dict(reward.components)
        assert row["failure"] == verdict.failure == line["failure"]
        assert row["target_program"] == asked.target_program and row["tokens"] <= 12


def test_pass_at_k_counts_the_samples_on_disk(base: Path) -> None:
    found = read_json(base / "metrics.json")["pass_at_k"]
    assert (found["records"], found["samples"]) == (4, 2)
    rows = read_jsonl(base / "samples" / "pass_k.jsonl")
    assert [row["id"] for row in rows] == [f"test-{index}" for index in range(4)]
    assert all(len(row["texts"]) == len(row["correct"]) == 2 for row in rows)
    assert found["pass@2"] == sum(any(row["correct"]) for row in rows) / 4


def test_equal_seeds_give_equal_bytes_and_order_does_not_matter(base: Path, data: Path) -> None:
    flags = ("--baseline", "base", "--pass_k", "1,2", "--pass_records", "4", "--seed", "3")
    assert_equal_bytes(evaluate(data, "10_evaluation_again", *flags), base)
    shuffled = data.parent / "shuffled.jsonl"
    write_jsonl(shuffled, list(reversed(read_jsonl(data / "test.jsonl"))))
    spec = str(data.parent / "02_rewards" / "reward_spec.yaml")
    other = evaluate(data, "10_evaluation_shuffled", "--test_jsonl", str(shuffled), "--reward_spec", spec, *flags)
    texts = [
        {row["id"]: row["text"] for row in read_jsonl(folder / "samples" / "predictions.jsonl")}
        for folder in (base, other)
    ]
    assert texts[0] == texts[1]
    assert read_json(other / "metrics.json")["split"] == "shuffled"


def test_gold_is_right_everywhere_and_majority_where_it_is(data: Path) -> None:
    gold = read_json(evaluate(data, "10_evaluation_gold", "--baseline", "gold") / "metrics.json")
    assert gold["execution_accuracy"] == gold["program_accuracy"] == gold["format_valid"] == 1.0
    assert gold["official_execution_accuracy"] == gold["official_program_accuracy"] == 1.0
    assert gold["failures"] == {} and "upper bound" in gold["note"]
    majority = read_json(evaluate(data, "10_evaluation_majority", "--baseline", "majority") / "metrics.json")
    assert majority["execution_accuracy"] == majority["official_execution_accuracy"] == 4 / 10  # yes: 0, 3, 6, 9
    assert majority["failures"] == {"answer_kind": 6}
    assert majority["program_valid"] == 0.0 and "typed value" in majority["note"]


def test_a_checkpoint_is_named_by_its_stage_and_counted_by_its_manifests(data: Path) -> None:
    run, records = data.parent, ("01_preprocessing", "train.jsonl")
    made: dict[str, Any] = {"schema": 1, "status": "completed", "seed": 7, "seconds": 4.0, "inputs": {}, "parents": []}
    write_json(run / "03_sft" / "manifest.json", made | {"stage": "03_sft", "spent": {"gradient_tokens": 50}})
    parents = [{"path": str(run / "03_sft"), "stage": "03_sft", "status": "completed"}]
    inputs = {str(run / "03_sft" / "ckpt_sft" / "best"): "0", str(run.joinpath(*records)): "0"}
    spent = {"completions": 8, "generated_tokens": 90, "gradient_tokens": 10}
    entry = made | {"stage": "06_grpo", "spent": spent, "parents": parents, "inputs": inputs}
    write_json(run / "06_grpo" / "manifest.json", entry)
    best = run / "06_grpo" / "ckpt_grpo" / "best"
    best.mkdir(parents=True)
    for file in Path("assets/llama-tiny").iterdir():
        (best / file.name).write_bytes(file.read_bytes())
    target = evaluate(data, "10_evaluation_grpo", "--policy_ckpt", str(run / "06_grpo"))
    metrics = read_json(target / "metrics.json")
    assert metrics["method"] == "grpo" and metrics["seed"] == 7
    assert metrics["policy"]["path"].endswith("06_grpo/ckpt_grpo/best") and len(metrics["policy"]["sha256"]) == 64
    assert metrics["compute"]["stages"] == ["03_sft", "06_grpo"] and metrics["compute"]["gradient_tokens"] == 60
    assert read_json(target / "manifest.json")["metrics"]["trained_seconds"] == 8.0
    named = evaluate(data, "10_evaluation_named", "--policy_ckpt", str(best), "--method", "mine", "--quick_test")
    assert read_json(named / "metrics.json")["method"] == "mine"


def test_of_several_trials_the_best_on_validation_is_evaluated_and_all_are_listed(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = []
    for rate, accuracy in ((1e-4, 0.3), (2e-4, 0.4), (4e-4, 0.4)):
        folder = data.parent / f"06_grpo_learning_rate_{rate:g}"
        made: dict[str, Any] = {"schema": 1, "status": "completed", "stage": "06_grpo", "seed": 7, "seconds": 4.0}
        made |= {
            "inputs": {},
            "parents": [],
            "spent": {"gradient_tokens": 50},
            "config": {"rl": {"learning_rate": rate}},
        }
        write_json(folder / "manifest.json", made | {"metrics": {"best_val_accuracy": accuracy}})
        best = folder / "ckpt_grpo" / "best"
        best.mkdir(parents=True)
        for file in Path("assets/llama-tiny").iterdir():
            (best / file.name).write_bytes(file.read_bytes())
        trials.append(str(folder))
    metrics = read_json(evaluate(data, "10_evaluation_trials", "--policy_ckpt", *trials) / "metrics.json")
    assert metrics["method"] == "grpo" and "learning_rate_0.0002/" in metrics["policy"]["path"]
    assert [line["learning_rate"] for line in metrics["trials"]] == [1e-4, 2e-4, 4e-4]
    assert [line["chosen"] for line in metrics["trials"]] == [False, True, False]  # the first of equals
    assert metrics["compute"]["gradient_tokens"] == 50
    write_json(Path(trials[0]) / "manifest.json", made | {"metrics": {}})
    target = ["--data_dir", str(data), "--output_dir", str(data.parent / "10_evaluation_other")]
    assert stage("--policy_ckpt", *trials, *target) == 2
    assert "has no best_val_accuracy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give one of --policy_ckpt PATH"),
        (["--policy_ckpt", "x", "--baseline", "gold"], "give one of --policy_ckpt PATH"),
        (
            ["--baseline", "goldd"],
            "--baseline: baseline must be one of base, majority, gold; got 'goldd'; did you mean gold?",
        ),
        (["--policy_ckpt", "no/such"], "no/such: no such folder"),
        (["--baseline", "base", "--pass_records", "4", "--pass_k", "0,4"], "--pass_k must be whole numbers from 1"),
        (
            ["--baseline", "base", "--pass_records", "4", "--pass_samples", "2"],
            "--pass_samples 2 is less than the largest k",
        ),
        (["--baseline", "base", "--pass_k", "2"], "--pass_k and --pass_samples need --pass_records"),
        (["--baseline", "base", "--pass_samples", "2"], "--pass_k and --pass_samples need --pass_records"),
        (["--baseline", "gold", "--pass_records", "4"], "--pass_records needs a model to sample from"),
        (["--baseline", "gold", "--test_jsonl", "none.jsonl"], "none.jsonl: no such file"),
        (["--predictions", "none.jsonl"], "none.jsonl: no such file"),
        (["--predictions", "x", "--pass_records", "4"], "--pass_records needs a model to sample from"),
        (["--predictions", "README.md"], "README.md:1: not valid JSON"),
    ],
)
def test_mistakes_are_one_line(data: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    target = data.parent / "10_mistake"
    spec = str(data.parent / "02_rewards" / "reward_spec.yaml")
    assert (
        stage("--data_dir", str(data), "--reward_spec", spec, "--overwrite", "--output_dir", str(target), *flags) == 2
    )
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error


@pytest.mark.parametrize("rows", [[], [0, 1, 0]])
def test_no_record_and_a_repeated_record_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[int]
) -> None:
    write_jsonl(tmp_path / "test.jsonl", [example(index, "test").to_dict() for index in rows])
    spec = str(data.parent / "02_rewards" / "reward_spec.yaml")
    flags = ["--baseline", "gold", "--test_jsonl", str(tmp_path / "test.jsonl"), "--reward_spec", spec]
    assert stage(*flags, "--output_dir", str(tmp_path / "10_evaluation")) == 2
    error = capsys.readouterr().err
    assert "test.jsonl" in error and error.count("\n") == 1, error
    assert not (tmp_path / "10_evaluation" / "metrics.json").exists()
