"""Every mistake in a configuration: one line with the nearest right thing, exit code 2, and no folder left behind."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from utils.stage import main

FLAGS = {
    "03_sft_train": {
        "--epcohs 3": "unknown flag --epcohs; did you mean --epochs?",
        "--learning-rate 1e-4": "unknown flag --learning-rate; did you mean --learning_rate?",
        "--lr 1e-4": "unknown flag --lr; did you mean --learning_rate?",
        "--per_device_train_batch_size 4": "did you mean --batch_size?",
        "--epochs 2.5": "--epochs: epochs must be a whole number, got '2.5'",
        "--epochs": "--epochs: expected one argument",
        "--epochs 0": "--epochs: epochs must be at least 1, got 0",
        "--learning_rate fast": "--learning_rate: learning_rate must be a number, got 'fast'",
        "--learning_rate nan": "must be a number, got 'nan'",
        "--learning_rate inf": "must be a number, got 'inf'",
        "--dropout 1.5": "dropout must be at most 0.9, got 1.5",
        "--device gpu": "must be one of auto, cpu, cuda; got 'gpu'; did you mean cuda?",
        "--quick_test maybe": "unknown argument maybe",
        "--config llama-tny": "--config: no such file: llama-tny; did you mean llama-tiny?",
        "--config configs/models": "--config: no such file: configs/models",
        "--task finqa_min": "--task: no such file: finqa_min; did you mean finqa_mini?",
        "--report_to tensorbord": "got 'tensorbord'; did you mean tensorboard?",
        "--reward_profile stric": "must be one of strict, seed; got 'stric'; did you mean strict?",
        "--group_size 4": "unknown flag --group_size",
    },
    "06_train_grpo": {
        "--algo_config grop": "--algo_config: no such file: grop; did you mean grpo?",
        "--beta 0.1": "unknown flag --beta; did you mean --kl_coef?",
        "--num_generations 8": "did you mean --group_size?",
        "--temperature 0.7": "temperature must be at least 1, got 0.7",
        "--top_k 50": "top_k must be at most 0, got 50",
        "--group_size 1": "group_size must be at least 2, got 1",
        "--loss_type drgrpo": "must be one of grpo, dapo, dr_grpo; got 'drgrpo'; did you mean dr_grpo?",
        "--kl_coef -1": "kl_coef must be at least 0, got -1",
    },
    "10_evaluate": {
        "": "give one of --policy_ckpt PATH",
        "--baseline glod": "got 'glod'; did you mean gold?",
        "--baseline gold --policy_ckpt x": "give one of --policy_ckpt PATH",
        "--baseline gold": "not there yet; run first: python ",
    },
    "12_driver": {
        "--learning_rate 1e-4": "more than one stage knows it; write --sft.learning_rate or --grpo.learning_rate",
        "--sft.epcohs 3": "03_sft_train: unknown flag --epcohs; did you mean --epochs?",
        "--stf.epochs 3": "--stf.epochs: no stage is called stf",
        "--method grop": "must be one of ppo, grpo, rloo, dpo, all; got 'grop'; did you mean grpo?",
        "--from_stage 99": "--from_stage 99: no such stage; order: 00_data_validation",
        "--from_stage 10 --to_stage 3": "--from_stage 10 comes after --to_stage 3",
        "--from_stage 06": "--from_stage: there is no run in outputs to continue",
        "--from_stage 06 --run_id new": "there is no outputs/new to continue, and it would begin with 06_grpo",
        "--run_id ../elsewhere": "--run_id ../elsewhere: a plain name is expected",
        "--sft.init_from x": "--sft.init_from: is set by the driver",
        "--task nowhere": "--task: no such file: nowhere",
        "docter": "unknown argument docter",
        "doctor --tsk finqa": "unknown flag --tsk; did you mean --task?",
        "verify": "verify: expected one run folder",
        "verify nowhere": "nowhere: no such folder; expected a run",
        "rerun": "expected one run folder, as in: python 12_driver.py rerun outputs/run_001",
        "rerun nowhere": "nowhere: no such folder; expected a run",
        "export": "expected one run, stage or checkpoint",
        "export nowhere": "nowhere: no such folder; expected a stage folder, a ckpt_* folder or a checkpoint",
        "export outputs --form whole": "must be one of merged, adapter; got 'whole'",
    },
}
MODEL_FILES: dict[str, tuple[str | bytes, str]] = {
    "misspelt key": (
        "training:\n  epcohs: 3\n",
        "m.yaml:2: unknown key training.epcohs; did you mean epochs?",
    ),
    "another library's name": ("training: {lr: 1e-4}\n", "unknown key training.lr; did you mean learning_rate?"),
    "misspelt section": ("trainig: {epochs: 3}\n", "m.yaml:1: unknown section trainig"),
    "key of another section": ("lora: {epochs: 3}\n", "unknown key lora.epochs; it belongs to section training"),
    "section of another file": (
        "task: {name: x}\n",
        "section task belongs in the task file (--task), this is a model file",
    ),
    "the same key twice": ("training:\n  epochs: 3\n  epochs: 4\n", "m.yaml:3: `training.epochs` stands twice"),
    "a word for a number": ("training: {learning_rate: fast}\n", "learning_rate must be a number, got 'fast'"),
    "a fraction for a count": ("training: {epochs: 2.5}\n", "epochs must be a whole number, got 2.5"),
    "a word for a truth value": ("lora: {use_lora: perhaps}\n", "use_lora must be true or false, got 'perhaps'"),
    "a name for a list": ("lora: {target_modules: q_proj}\n", "target_modules must be a list, got 'q_proj'"),
    "a number for a name": ("model: {name: 7}\n", "name must be text (in quotes), got 7"),
    "nothing for a number": (
        "training:\n  epochs:\n",
        "m.yaml:2: training: epochs must be a whole number, got nothing",
    ),
    "a bad choice": ("model: {precision: fp16}\n", "must be one of fp32, bf16, auto; got 'fp16'; did you mean bf16?"),
    "out of range": ("generation: {top_p: 1.5}\n", "top_p must be at most 1, got 1.5"),
    "a section that is a number": ("training: 5\n", "section training must hold `key: value` lines, got 5"),
    "a list": ("- training\n", "m.yaml: expected a mapping `section: {key: value}`, got list"),
    "empty": ("", "m.yaml: expected a mapping `section: {key: value}`, got nothing"),
    "a tab": ("training:\n\tepochs: 3\n", "m.yaml:2: not valid YAML"),
    "an open bracket": ("training: {epochs: 3\n", "not valid YAML"),
    "not text": (b"training: {epochs: 3}\n\xff", "m.yaml: byte 22 is not UTF-8 text; save the file as UTF-8"),
}


def call(script: str, *argv: str) -> int:
    module = importlib.import_module(script)
    if script == "12_driver":
        return int(module.main(argv))
    return main(module.Config, module.run, module.__doc__, f"{script}.py", argv=argv)


def refused(script: str, argv: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(Path().rglob("*"))
    assert call(script, *argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and expected in error, error
    assert sorted(Path().rglob("*")) == before


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


CASES = [(script, flags, expected) for script, cases in FLAGS.items() for flags, expected in cases.items()]


@pytest.mark.parametrize(("script", "flags", "expected"), CASES, ids=[f"{case[0]} {case[1]}" for case in CASES])
def test_a_wrong_command(script: str, flags: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(script, flags.split(), expected, capsys)


@pytest.mark.parametrize(("content", "expected"), MODEL_FILES.values(), ids=MODEL_FILES)
def test_a_wrong_file(content: str | bytes, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("m.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused("03_sft_train", ["--config", "m.yaml"], expected, capsys)


def test_there_are_at_least_thirty() -> None:
    assert len(CASES) + len(MODEL_FILES) >= 30
