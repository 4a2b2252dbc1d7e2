"""Stage 03 on the embedded model: it learns, stops by its rule, resumes to the same bytes, and serves its controls."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from utils.files import sha256
from utils.stage import main

STAGE = importlib.import_module("03_sft_train")
SMALL = ["--batch_size", "2", "--eval_records", "4", "--eval_steps", "2", "--save_steps", "2", "--logging_steps", "1"]


def stage(script: str, *flags: str) -> int:
    module = importlib.import_module(script)
    return main(module.Config, module.run, module.__doc__, f"{script}.py", argv=[*flags, "--device", "cpu", "--quiet"])


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with stages 00 to 02 done and 6 training records."""
    folder = tmp_path_factory.mktemp("sft") / "outputs" / "run_001"
    roots = ["--data_root", str(folder.parent / "data"), "--quick_test"]
    assert stage("00_check_data", *roots, "--output_dir", str(folder / "00_data_validation")) == 0
    assert stage("01_prepare_dataset", *roots, "--output_dir", str(folder / "01_preprocessing")) == 0
    assert stage("02_build_rewards", "--output_dir", str(folder / "02_rewards")) == 0
    lines = (folder / "01_preprocessing" / "train.jsonl").read_text().splitlines()
    with_program = [line for line in lines if json.loads(line)["target_text"]]
    (folder / "six.jsonl").write_text("\n".join(with_program[:6]) + "\n")
    return folder


def sft(run_folder: Path, name: str, *flags: str) -> Path:
    target = run_folder / name
    train = ["--train_jsonl", str(run_folder / "six.jsonl")]
    assert stage("03_sft_train", *SMALL, *train, "--output_dir", str(target), *flags) == 0
    return target


def first_id(run_folder: Path) -> str:
    """Of a training record."""
    return str(json.loads((run_folder / "six.jsonl").read_text().splitlines()[0])["id"])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> list[str]:
    return [name for name in before if not torch.equal(before[name].float(), after[name].float())]


def test_every_tensor_moves_and_the_loss_falls(run_folder: Path) -> None:
    target = sft(run_folder, "03_sft", "--max_steps", "8", "--patience", "0")
    start, end = weights(Path("assets/llama-tiny")), weights(target / "ckpt_sft" / "final")
    assert moved(start, end) == list(start)
    log = [json.loads(line) for line in (target / "logs" / "train.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in log if "loss" in row]
    assert len(losses) == 8 and sum(losses[-2:]) < 0.8 * sum(losses[:2])
    assert json.loads((target / "logs" / "training_log.json").read_text()) == log
    sample = json.loads((target / "valid_samples" / "step_4.json").read_text())[0]
    assert {"id", "text", "reward", "failure"} <= set(sample)
    assert sorted(path.name for path in (target / "ckpt_sft").iterdir()) == ["best", "final", "last_complete", "step_8"]
    manifest = json.loads((target / "manifest.json").read_text())
    assert manifest["status"] == "completed" and manifest["spent"]["gradient_tokens"] > 0
    assert manifest["inputs"]["assets/llama-tiny"].startswith("sampled:")


def test_learning_rate_zero_moves_nothing(run_folder: Path) -> None:
    """What the test above must catch."""
    target = sft(run_folder, "03_still", "--learning_rate", "0", "--max_steps", "4")
    assert moved(weights(Path("assets/llama-tiny")), weights(target / "ckpt_sft" / "final")) == []


def test_three_evaluations_without_a_rise_end_the_training(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts = importlib.import_module("utils.rl.rollouts")
    accuracies = iter([0.0, 0.0, 0.0, 0.0, 0.25, 0.5, 0.25, 0.5, 0.25, 0.75])

    def validate(*args: object) -> tuple[dict[str, float], list[dict[str, object]]]:
        return {"val_accuracy": next(accuracies), "val_parse_rate": 1.0}, []

    monkeypatch.setattr(rollouts, "validate", validate)
    target = sft(run_folder, "03_stopped", "--patience", "3", "--epochs", "50")
    metrics = json.loads((target / "manifest.json").read_text())["metrics"]
    assert metrics["stopped_by_rule"] and metrics["best_step"] == 12 and metrics["steps"] == 18
    assert metrics["best_val_accuracy"] == 0.5


def test_an_interrupted_run_continues_to_the_same_bytes(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--max_steps", "6", "--patience", "0")
    whole = sft(run_folder, "03_whole", *flags)
    supervised = importlib.import_module("utils.rl.supervised")
    evaluate = supervised.Supervised.evaluate

    def stop_at_six(self: object, step: int) -> bool:
        if step == 6:
            raise KeyboardInterrupt
        return bool(evaluate(self, step))

    monkeypatch.setattr(supervised.Supervised, "evaluate", stop_at_six)
    cut = run_folder / "03_cut"
    args = (*SMALL, "--train_jsonl", str(run_folder / "six.jsonl"), "--output_dir", str(cut), *flags)
    assert stage("03_sft_train", *args) == 130
    assert not (cut / "ckpt_sft" / "final").exists()
    monkeypatch.undo()
    assert stage("03_sft_train", *args, "--resume") == 0
    assert (cut / "logs" / "train.jsonl").read_bytes() == (whole / "logs" / "train.jsonl").read_bytes()
    for name in ("final", "best"):
        ours, theirs = (folder / "ckpt_sft" / name / "model.safetensors" for folder in (cut, whole))
        assert sha256(ours) == sha256(theirs)


def test_killed_after_a_validation_off_the_grid_it_logs_it_once(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--max_steps", "3", "--patience", "0")
    whole = sft(run_folder, "03_three", *flags)
    args = (*SMALL, "--train_jsonl", str(run_folder / "six.jsonl"), "--output_dir", str(run_folder / "03_three_cut"))
    with monkeypatch.context() as patch:
        patch.setattr("utils.rl.trainer_run.save_model", kill_at_final)
        assert stage("03_sft_train", *args, *flags) == 130
    assert stage("03_sft_train", *args, *flags, "--resume") == 0
    assert same_results(whole, run_folder / "03_three_cut")
    metrics = json.loads((run_folder / "03_three_cut" / "manifest.json").read_text())["metrics"]
    assert metrics["validations"] == 2 and metrics["steps"] == 3


def kill_at_final(model: Any, tokenizer: Any, folder: Path) -> None:
    if folder.name == "final":
        raise KeyboardInterrupt
    importlib.import_module("utils.models.load").save_model(model, tokenizer, folder)


def test_several_gpus_are_one_for_trl(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch sees two, TRL's trainers want DataParallel and refuse it."""
    from trl import SFTConfig

    begin = SFTConfig.__post_init__

    def with_two(self: SFTConfig) -> None:
        begin(self)
        self._n_gpu = 2

    monkeypatch.setattr(SFTConfig, "__post_init__", with_two)
    sft(run_folder, "03_two_gpus", "--max_steps", "1", "--skip_validation")


def test_killed_after_the_rule_said_stop_it_does_not_train_on(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule's last evaluation is in the last checkpoint; the final policy is not written yet."""
    trainer_run = importlib.import_module("utils.rl.trainer_run")
    save_model = trainer_run.save_model
    accuracies = {2: 0.5, 4: 0.25, 6: 0.25, 8: 0.0}

    def measured(self: Any) -> Any:
        return {"val_accuracy": accuracies[self.trainer.state.global_step], "val_parse_rate": 1.0}, []

    def killed_at_final(model: Any, tokenizer: Any, folder: Path) -> None:
        if folder.name == "final":
            raise KeyboardInterrupt
        save_model(model, tokenizer, folder)

    original = trainer_run.TrainerRun.evaluate

    def evaluate(self: Any, step: int) -> bool:
        self.validate = lambda: measured(self)
        return bool(original(self, step))

    monkeypatch.setattr(trainer_run.TrainerRun, "evaluate", evaluate)
    flags = ["--epochs", "50", "--patience", "2"]
    whole = sft(run_folder, "03_ruled", *flags)
    args = [*SMALL, "--train_jsonl", str(run_folder / "six.jsonl"), "--output_dir", str(run_folder / "03_ruled_cut")]
    with monkeypatch.context() as patch:
        patch.setattr(trainer_run, "save_model", killed_at_final)
        assert stage("03_sft_train", *args, *flags) == 130
    assert stage("03_sft_train", *args, *flags, "--resume") == 0
    assert same_results(whole, run_folder / "03_ruled_cut")
    metrics = json.loads((whole / "manifest.json").read_text())["metrics"]
    assert (metrics["steps"], metrics["best_step"], metrics["stopped_by_rule"]) == (6, 2, True)


def same_results(whole: Path, cut: Path) -> bool:
    """Whether two stages left the same policies, log and metrics."""
    names = ["ckpt_sft/final", "ckpt_sft/best", "logs/train.jsonl", "valid_samples"]
    found = [
        ([sha256(folder / name) for name in names], json.loads((folder / "manifest.json").read_text())["metrics"])
        for folder in (whole, cut)
    ]
    return found[0] == found[1]


def test_means_over_steps_on_both_sides_of_a_checkpoint_are_the_same_after_a_resume(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line every 3 steps, a checkpoint every 2: what was summed since the last line is in no checkpoint."""
    flags = ["--max_steps", "6", "--patience", "0", "--logging_steps", "3"]
    whole = sft(run_folder, "03_means", *flags)
    callback = importlib.import_module("utils.rl.trainer_run")._Callback
    args = [*SMALL, "--train_jsonl", str(run_folder / "six.jsonl"), "--output_dir", str(run_folder / "03_means_cut")]
    with monkeypatch.context() as patch:
        patch.setattr(callback, "on_step_begin", killed_in_step_3)
        assert stage("03_sft_train", *args, *flags) == 130
    assert stage("03_sft_train", *args, *flags, "--resume") == 0
    assert same_results(whole, run_folder / "03_means_cut")
    log = [json.loads(line) for line in (whole / "logs" / "train.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log if row["phase"] == "train"] == [2, 3, 4, 6]


def killed_in_step_3(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
    if state.global_step == 3:
        raise KeyboardInterrupt


def test_a_damaged_checkpoint_is_one_line(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--max_steps", "2", "--patience", "0"]
    target = sft(run_folder, "03_damaged", *flags)
    manifest = json.loads((target / "manifest.json").read_text())
    (target / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}))
    with (target / "ckpt_sft" / "step_2" / "optimizer.pt").open("r+b") as file:
        file.truncate(1000)
    args = [*SMALL, "--train_jsonl", str(run_folder / "six.jsonl"), "--output_dir", str(target), *flags]
    capsys.readouterr()
    assert stage("03_sft_train", *args, "--resume") == 2
    error = capsys.readouterr().err
    assert "last_complete names step_2, which is not as it was written" in error and error.count("\n") == 1
    assert "--overwrite" in error and stage("03_sft_train", *args, "--overwrite") == 0


def test_the_control_of_equal_compute_takes_the_steps_the_compute_buys(run_folder: Path) -> None:
    start = sft(run_folder, "03_start", "--max_steps", "2", "--patience", "0")
    spent = json.loads((start / "manifest.json").read_text())["spent"]
    manifests = []
    candidates = {"forward_tokens": 6 * spent["gradient_tokens"]}
    for name, budget, read in (
        ("04_sampled", candidates, ["03_start/ckpt_sft/best"]),
        ("06_made_up", {"gradient_tokens": spent["gradient_tokens"] // 2}, ["03_start/ckpt_sft/best"]),
        ("09_made_up", {"gradient_tokens": spent["gradient_tokens"]}, ["03_start/ckpt_sft/best", "04_sampled/scores"]),
    ):
        (run_folder / name).mkdir()
        manifests.append(str(run_folder / name / "manifest.json"))
        facts = {"schema": 1, "spent": budget, "stage": name, "status": "completed", "seconds": 1.0}
        facts["inputs"] = {str(run_folder / path): "" for path in read}
        facts["parents"] = [{"path": str(run_folder / path.split("/")[0])} for path in read]
        facts["metrics"] = {"validations": 1} if name == "09_made_up" else {}
        Path(manifests[-1]).write_text(json.dumps(facts))
    more = sft(run_folder, "03_sft_more", "--init_from", str(start), "--match_compute", *manifests)
    metrics = json.loads((more / "manifest.json").read_text())["metrics"]
    # that of 09, the dearest: 2 steps of its own and the cost of 4 in 04; what led to the start is not counted
    assert metrics["steps"] in (6, 7)
    # the start is measured, and not chosen once more
    assert (more / "valid_samples" / "step_0.json").exists() and metrics["best_step"] > 0
    # and as many checkpoints are chosen among as for the method
    assert metrics["validations"] == 1 and len(list((more / "valid_samples").iterdir())) == 2
    # a control that learns the candidates of 04 has paid for them, too
    cand = {"text": ' {"program": "add(1, 2)", "answer": "3"}', "correct": True, "parse_ok": True}
    row = {"id": first_id(run_folder), "prompt": "question: 1 + 2?\nanswer:", "cands": [cand]}
    (run_folder / "04_sampled" / "candidates.jsonl").write_text(json.dumps(row) + "\n")
    flags = ("--init_from", str(start), "--match_compute", *manifests, "--accepted", str(run_folder / "04_sampled"))
    rejection = sft(run_folder, "03_sft_rejection_matched", *flags)
    assert json.loads((rejection / "manifest.json").read_text())["metrics"]["steps"] in (2, 3)


def test_accepted_candidates_are_learned_too(run_folder: Path) -> None:
    candidates = run_folder / "04_accepted"
    candidates.mkdir()
    cand = {"text": ' {"program": "add(1, 2)", "answer": "3"}', "correct": True, "parse_ok": True}
    wrong = {**cand, "correct": False}
    name = first_id(run_folder)
    rows = [{"id": name, "prompt": "question: 1 + 2?\nanswer:", "cands": [cand, cand, wrong]}]
    (candidates / "candidates.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    found = STAGE.accepted_candidates(candidates / "candidates.jsonl", {"other", name})
    assert found == [(name, rows[0]["prompt"], cand["text"])]
    target = sft(run_folder, "03_sft_rejection", "--accepted", str(candidates), "--max_steps", "2")
    metrics = json.loads((target / "manifest.json").read_text())["metrics"]
    assert (metrics["records"], metrics["accepted"]) == (7, 1)


def test_candidates_of_other_records_and_none_that_is_correct(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    candidates = run_folder / "04_accepted"
    candidates.mkdir(exist_ok=True)

    def write(record: str, correct: bool) -> None:
        cand = {"text": "1", "correct": correct, "parse_ok": True}
        row = {"id": record, "prompt": "question: 1 + 2?\nanswer:", "cands": [cand]}
        (candidates / "candidates.jsonl").write_text(json.dumps(row) + "\n")

    write("of the test split", True)
    flags = ["--accepted", str(candidates), "--max_steps", "2"]
    with pytest.raises(AssertionError):
        sft(run_folder, "03_sft_leaking", *flags)
    line = "candidates.jsonl:1: record of the test split is none of the training records; give a stage 04 of"
    assert line in capsys.readouterr().err
    write(first_id(run_folder), False)
    target = sft(run_folder, "03_sft_nothing", *flags)
    assert "no candidate is correct" in json.loads((target / "manifest.json").read_text())["warnings"][0]


def test_the_order_goes_through_the_records_evenly_and_keeps_its_beginning() -> None:
    from utils.rl.supervised import order_of_records

    lengths = [10 * (i % 7) + i for i in range(20)]
    order = order_of_records(lengths, 10, 4, seed=3)
    counts = [order[:32].count(i) for i in range(20)]  # eight batches: one pass and a part of the next
    assert len(order) == 40 and set(counts) == {1, 2} and sum(counts) == 32
    batches = [[lengths[i] for i in order[start : start + 4]] for start in range(0, 32, 4)]
    assert sum(sorted(batches), []) == sorted(sum(batches, [])), "like lengths stand together"
    assert batches != sorted(batches), "the batches themselves stand in no order of length"
    assert order_of_records(lengths, 40, 4, seed=3)[:32] == order[:32]
    assert order_of_records(lengths, 10, 4, seed=4) != order


def test_prompt_is_masked_and_nothing_is_cut() -> None:
    from transformers import AutoTokenizer

    from utils.errors import UserError
    from utils.models.tokens import encode_prompt, encode_target
    from utils.rl.supervised import tokenise

    tokenizer = AutoTokenizer.from_pretrained("assets/llama-tiny")
    question, answer = "question: x\nanswer:", '{"program": "add(1, 2)", "answer": "3"}'
    row = tokenise(tokenizer, [("a", question, answer)], 64)[0]
    prompt, target = encode_prompt(tokenizer, question), encode_target(tokenizer, answer)
    assert row.input_ids == prompt + target and row.labels == [-100] * len(prompt) + target
    assert target[-1] == tokenizer.eos_token_id
    with pytest.raises(UserError, match="record a: prompt"):
        tokenise(tokenizer, [("a", "question", "answer")], 3)


def test_without_validation_the_last_checkpoint_is_the_best(run_folder: Path) -> None:
    target = sft(run_folder, "03_blind", "--skip_validation", "--max_steps", "2")
    assert not (target / "valid_samples").exists()
    assert moved(weights(target / "ckpt_sft" / "best"), weights(target / "ckpt_sft" / "final")) == []


def test_an_adapter_on_the_output_layer_is_refused(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--train_jsonl", str(run_folder / "six.jsonl"), "--use_lora", "--target_modules", "q_proj", "lm_head"]
    assert stage("03_sft_train", *SMALL, *flags, "--output_dir", str(run_folder / "03_head")) == 2
    error = capsys.readouterr().err
    assert "TRL trains no adapter on the output layer; leave lm_head out" in error and error.count("\n") == 1
