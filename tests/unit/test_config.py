"""Settings: precedence, sources, and one line for every mistake."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from utils import config
from utils.config import resolve, setting, to_dict
from utils.errors import UserError
from utils.flags import split_scoped
from utils.keys import Key, flags_of, keys_of
from utils.settings import (
    ALGORITHMS,
    SECTIONS,
    TASK_MAY_ALSO_SET,
    GenerationSettings,
    GRPOSettings,
    LoraSettings,
    ModelSettings,
    RLSettings,
    RolloutSettings,
    RunSettings,
    TaskSettings,
    TrainingSettings,
)

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Inputs:
    """Flags of this script."""

    policy_ckpt: str = setting("", "which policy")
    files: tuple[str, ...] = setting((), "which files", positional=True)
    shares: tuple[float, ...] = setting((), "three numbers", minimum=0.0)

    def __post_init__(self) -> None:
        if len(self.shares) not in (0, 3):
            raise ValueError(f"shares must be three numbers, got {len(self.shares)}")


@dataclass(frozen=True)
class GRPOConfig:
    run: RunSettings
    task: TaskSettings
    model: ModelSettings
    lora: LoraSettings
    algorithm: GRPOSettings
    rollout: RolloutSettings
    rl: RLSettings
    generation: GenerationSettings
    inputs: Inputs


@dataclass(frozen=True)
class TaskOnly:
    run: RunSettings
    task: TaskSettings


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project: settings files are looked up here."""
    files = {
        "models/llama-tiny": "model: {name: tiny}\nrl: {learning_rate: 3e-4}\ngeneration: {max_new_tokens: 64}\n",
        "algorithms/grpo": "method: grpo\nalgorithm: {kl_coef: 0.5, group_size: 4}\nrollout: {prompts_per_step: 7}\n",
        "tasks/finqa_mini": "task: {name: finqa_mini, data_root: here}\n",
        "tasks/finqa": "task: {name: finqa, source: files}\ngeneration: {max_new_tokens: 160}\n",
    }
    for name, text in files.items():
        path = tmp_path / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(config, "ROOT", tmp_path)
    monkeypatch.setattr(config, "LOCAL_FILE", "configs/local.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(*argv: str) -> config.Resolved[GRPOConfig]:
    return resolve(GRPOConfig, argv, doc="A script.", script="06_train_grpo.py")


def refusal(*argv: str) -> str:
    with pytest.raises(UserError) as caught:
        read(*argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_model(root: Path, text: str | bytes) -> list[str]:
    """Flags that choose a model file of this content."""
    path = root / "m.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return ["--config", "m.yaml"]


def test_precedence_and_sources(root: Path) -> None:
    (root / "configs/tasks/other.yaml").write_text("generation: {max_new_tokens: 99}\nalgorithm: {kl_coef: 0.7}\n")
    found = read("--task", "other", "--group_size", "16")
    settings = found.config
    assert (settings.generation.max_new_tokens, settings.algorithm.kl_coef, settings.algorithm.group_size) == (
        99,
        0.7,
        16,
    )
    assert (settings.rl.learning_rate, settings.rollout.prompts_per_step, settings.lora.r) == (3e-4, 7, 32)
    assert found.sources["generation.max_new_tokens"] == "configs/tasks/other.yaml"
    assert found.sources["algorithm.kl_coef"] == "configs/tasks/other.yaml"
    assert found.sources["algorithm.group_size"] == "flag"
    assert found.sources["rl.learning_rate"] == "configs/models/llama-tiny.yaml"
    assert found.sources["rollout.prompts_per_step"] == "configs/algorithms/grpo.yaml"
    assert found.sources["lora.r"] == "default"
    assert read("--task", "other", "--kl_coef", "0").config.algorithm.kl_coef == 0.0


def test_every_value_has_a_source_and_to_dict_is_plain(root: Path) -> None:
    found = read("--shares", "1", "2", "3")
    plain = to_dict(found.config)
    assert {f"{section}.{name}" for section, values in plain.items() for name in values} == set(found.sources)
    assert plain["inputs"]["shares"] == [1.0, 2.0, 3.0]
    assert plain["lora"]["target_modules"] == ["q_proj", "k_proj", "v_proj", "o_proj"]


def test_flag_spellings(root: Path) -> None:
    assert read("--resume").config.run.resume is True
    assert read("--resume", "true").config.run.resume is True
    assert read("--resume", "--no_resume").config.run.resume is False
    assert read("--resume=false").config.run.resume is False
    found = read("--overwrite", "a.json", "b.json").config
    assert found.run.overwrite and found.inputs.files == ("a.json", "b.json")
    assert read("--learning_rate=5e-7").config.rl.learning_rate == 5e-7
    assert read("--clip_range_high", "0.3").config.algorithm.clip_range_high == 0.3
    assert read("--clip_range_high", "none").config.algorithm.clip_range_high is None
    assert read("--target_modules", "a", "b").config.lora.target_modules == ("a", "b")


def test_a_no_flag_takes_no_value(root: Path) -> None:
    said = refusal("--no_resume=true")
    assert said == "--no_resume=true: --no_resume takes no value; write --no_resume, or --resume true"


def test_a_number_that_no_float_holds_is_one_line(root: Path) -> None:
    said = refusal(*with_model(root, f"model: {{name: x}}\nrl: {{learning_rate: {'9' * 400}}}\n"))
    assert "m.yaml:2: rl: learning_rate must be a finite number, got inf" in said


def test_flag_mistakes(root: Path) -> None:
    assert refusal("--sed", "3") == "unknown flag --sed; did you mean --seed?"
    assert refusal("--learning-rate", "3") == "unknown flag --learning-rate; did you mean --learning_rate?"
    assert refusal("--group", "3").startswith("unknown flag --group")  # no abbreviations
    assert "must be a whole number, got '2.5'" in refusal("--group_size", "2.5")
    assert "at least 2, got 1" in refusal("--group_size", "1")
    assert "at most 1, got 1.5" in refusal("--top_p", "1.5")
    assert "one of auto, cpu, cuda; got 'gpu'" in refusal("--device", "gpu")
    assert "a finite number" in refusal("--kl_coef", "1e999")
    assert "must be a number, got 'nan'" in refusal("--kl_coef", "nan")
    assert refusal("--shares", "1") == "inputs: shares must be three numbers, got 1"
    assert "--task: no such file: finqa_mni; did you mean finqa_mini?" in refusal("--task", "finqa_mni")
    assert "expected one argument" in refusal("--seed")


def test_the_algorithms_temperature_is_the_flag_and_must_be_one(root: Path) -> None:
    assert flags_of(GRPOConfig)["temperature"].section == "rollout"
    assert "temperature must be at most 1" in refusal("--temperature", "1.2")


def test_numbers_in_yaml(root: Path) -> None:
    assert read(*with_model(root, "rl: {learning_rate: 5e-7}")).config.rl.learning_rate == 5e-7
    assert read(*with_model(root, "rl: {learning_rate: 1}")).config.rl.learning_rate == 1.0
    assert "m.yaml:2: lora: r must be a whole number, got 2.5" in refusal(*with_model(root, "lora:\n  r: 2.5\n"))
    assert "got true" in refusal(*with_model(root, "lora: {r: true}"))
    assert "must be a number, got 'fast'" in refusal(*with_model(root, "rl: {learning_rate: fast}"))
    assert "must be true or false, got 'maybe'" in refusal(*with_model(root, "lora: {use_lora: maybe}"))
    assert "must be text (in quotes), got 7" in refusal(*with_model(root, "model: {name: 7}"))
    assert "must be a list, got 'q_proj'" in refusal(*with_model(root, "lora: {target_modules: q_proj}"))
    assert "got nothing" in refusal(*with_model(root, "lora:\n  r:\n"))
    assert "a finite number" in refusal(*with_model(root, "rl: {learning_rate: .inf}"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lora: {r: 1}\nlora: {r: 2}\n", "m.yaml:2: `lora` stands twice (first in line 1)"),
        ("lora:\n  r: 1\n  r: 2\n", "m.yaml:3: `lora.r` stands twice (first in line 2)"),
        ("lora:\n  rr: 1\n", "m.yaml:2: unknown key lora.rr; did you mean r?"),
        ("lora:\n  learning_rate: 1\n", "m.yaml:2: unknown key lora.learning_rate; it belongs to section training"),
        ("loras: {r: 1}\n", "m.yaml:1: unknown section loras; expected model"),
        ("task: {name: x}\n", "m.yaml:1: section task belongs in the task file (--task), this is a model file"),
        ("algorithm: {kl_coef: 1}\n", "section algorithm belongs in the algorithm file (--algo_config)"),
        ("lora: 3\n", "m.yaml:1: section lora must hold `key: value` lines, got 3"),
        ("- a\n", "m.yaml: expected a mapping `section: {key: value}`, got list"),
        ("", "m.yaml: expected a mapping `section: {key: value}`, got nothing"),
        ("lora: {r: 1\n", "m.yaml:2: not valid YAML"),
        ("lora: !!python/name:os.system x\n", "m.yaml:1: not valid YAML"),
        ("model: {name: 2020-13-45}\n", "m.yaml: not valid YAML"),
        (b"model: {name: \xff}\n", "m.yaml: byte 14 is not UTF-8 text"),
        ("? [a]\n: 1\n", "m.yaml:1: a key must be a plain name"),
        ("1: {a: b}\n", "m.yaml:1: unknown section 1"),
    ],
)
def test_yaml_mistakes_name_file_and_line(root: Path, text: str | bytes, expected: str) -> None:
    assert expected in refusal(*with_model(root, text))


def test_sections_that_the_script_does_not_use_are_checked_too(root: Path) -> None:
    assert "training: epochs must be at least 1, got 0" in refusal(*with_model(root, "training: {epochs: 0}"))
    assert read(*with_model(root, "training: {epochs: 2}\nmetadata: {anything: [1, 2]}")).config.lora.r == 32


def test_crlf_and_byte_order_mark_are_read(root: Path) -> None:
    assert read(*with_model(root, "\ufefflora:\r\n  r: 5\r\n")).config.lora.r == 5


def test_task_files_set_their_own_keys_and_the_listed_ones(root: Path) -> None:
    (root / "t.yaml").write_text("generation:\n  temperature: 0.5\n")
    expected = "t.yaml:2: generation.temperature belongs in the model file (--config), this is a task file"
    assert expected in refusal("--task", "t.yaml")


def test_algorithm_file_of_another_method(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.settings.ALGORITHMS", {"grpo": GRPOSettings, "ppo": GRPOSettings})
    (root / "a.yaml").write_text("method: ppo\n")
    expected = "a.yaml:1: is for ppo, but 06_train_grpo.py trains grpo; use configs/algorithms/grpo.yaml"
    assert refusal("--algo_config", "a.yaml") == expected
    (root / "a.yaml").write_text("method: gpro\n")
    assert "`method:` must be one of grpo, ppo; got 'gpro'; did you mean grpo?" in refusal("--algo_config", "a.yaml")
    (root / "a.yaml").write_text("algorithm: {kl_coef: 1}\n")
    assert "a.yaml: `method:` must be one of" in refusal("--algo_config", "a.yaml")


def test_local_file_chooses_task_model_and_data(root: Path) -> None:
    (root / "configs/models/big.yaml").write_text("model: {name: big}\n")
    (root / "configs/local.yaml").write_text("task: finqa\nmodel: configs/models/big.yaml\ndata_root: far/away\n")
    found = read()
    assert (found.config.task.name, found.config.model.name, found.config.task.data_root) == (
        "finqa",
        "big",
        "far/away",
    )
    assert found.reasons["task"] == found.sources["task.data_root"] == "configs/local.yaml"
    assert read("--data_root", "near").config.task.data_root == "near"
    other = read("--task", "finqa_mini", "--config", "llama-tiny")
    assert (other.config.task.data_root, other.config.model.name, other.reasons["task"]) == ("here", "tiny", "--task")
    (root / "configs/models/big.yaml").unlink()
    assert (
        refusal()
        == "configs/local.yaml, key 'model': no such file: configs/models/big.yaml; configs/models has llama-tiny"
    )
    (root / "configs/local.yaml").write_text("task: gone\ndata_root: far/away\n")
    assert "configs/local.yaml, key 'task': no such file: gone" in refusal()
    assert read("--task", "finqa").config.task.data_root != "far/away"
    (root / "configs/local.yaml").write_text("taks: finqa\n")
    assert "configs/local.yaml:1: unknown key taks" in refusal()


def test_defaults_without_local_file(root: Path) -> None:
    found = read()
    assert found.files == {
        "model": "configs/models/llama-tiny.yaml",
        "algorithm": "configs/algorithms/grpo.yaml",
        "task": "configs/tasks/finqa_mini.yaml",
    }
    assert set(found.reasons.values()) == {"the default"}
    (root / "configs/models/llama-tiny.yaml").unlink()
    assert "--config: no such file: configs/models/llama-tiny.yaml" in refusal()


def test_a_script_without_model_sections_has_no_config_flag(root: Path) -> None:
    with pytest.raises(UserError, match="unknown flag --config"):
        resolve(TaskOnly, ["--config", "llama-tiny"], doc="", script="00_check_data.py")


def test_two_sections_with_one_flag_are_a_bug() -> None:
    @dataclass(frozen=True)
    class Clash:
        training: TrainingSettings
        rl: RLSettings

    Clash.__annotations__ = {"training": TrainingSettings, "rl": RLSettings}
    with pytest.raises(TypeError, match="--learning_rate is both training.learning_rate and rl.learning_rate"):
        flags_of(Clash)


def test_help_names_every_flag_and_exits_at_once(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        read("--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0 and text.count("A script.") == 1
    assert [flag for flag in flags_of(GRPOConfig) if f"--{flag} " not in text and flag != "files"] == []


def test_help_shows_the_values_of_the_files_that_would_be_read(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*argv: str) -> str:
        with pytest.raises(SystemExit):
            read(*argv, "--help")
        return " ".join(capsys.readouterr().out.split())

    text = shown()
    assert "[0.0003 in llama-tiny.yaml]" in text and "[0.5 in grpo.yaml]" in text and "[64 in llama-tiny.yaml]" in text
    assert "[160 in finqa.yaml]" in shown("--task", "finqa") and "[7 in m.yaml]" in shown(
        *with_model(root, "model: {name: x}\ngeneration: {max_new_tokens: 7}\n")
    )
    assert "[100%/x in m.yaml]" in shown(*with_model(root, "model: {name: 100%/x}\n"))
    (root / "configs/models/llama-tiny.yaml").write_text("model: [\n")
    assert "longest completion in tokens [96]" in shown()  # help comes whatever is wrong with a file


def test_scoped_flags() -> None:
    argv = ["--seed", "3", "--sft.learning_rate", "1e-4", "--quick_test", "--grpo.kl_coef=0.1", "--x=1.5"]
    argv += ["--grpo.target_modules", "a", "b"]
    rest, scoped = split_scoped(argv, ["sft", "grpo"])
    assert rest == ["--seed", "3", "--quick_test", "--x=1.5"]
    assert scoped == {"sft": ["--learning_rate", "1e-4"], "grpo": ["--kl_coef=0.1", "--target_modules", "a", "b"]}
    with pytest.raises(UserError, match="--sfft.epochs: no stage is called sfft; known: sft, grpo; did you mean sft"):
        split_scoped(["--sfft.epochs", "1"], ["sft", "grpo"])


SCRIPTS = [path for path in sorted(REPOSITORY.glob("[01][0-9]_*.py")) if path.stem != "12_driver"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_flags_of_every_script_are_unambiguous(path: Path) -> None:
    assert "seed" in flags_of(importlib.import_module(path.stem).Config)


SHIPPED = sorted((REPOSITORY / "configs").glob("*/*.yaml"))


@pytest.mark.parametrize("path", [path for path in SHIPPED if path.parent.name != "accelerate"], ids=lambda p: p.stem)
def test_every_shipped_file_resolves(path: Path) -> None:
    flag = {"models": "--config", "tasks": "--task", "algorithms": "--algo_config"}[path.parent.name]
    trainers = importlib.import_module("12_driver").TRAINERS
    script = trainers[path.stem] if path.parent.name == "algorithms" else "06_train_grpo"
    config = GRPOConfig if script == "06_train_grpo" else importlib.import_module(script).Config
    found = resolve(config, [flag, str(path)], doc="", script=f"{script}.py")
    assert str(path) in found.sources.values() or path.parent.name == "models"


def test_every_setting_is_read_by_code() -> None:
    """A key that nothing reads is a promise that nothing keeps. Keys with one possible value need only their check."""
    files = [*REPOSITORY.glob("*.py"), *(REPOSITORY / "utils").rglob("*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in files if path.name != "settings.py")
    used = set(re.findall(r"[.](\w+)", code)) | set(re.findall(r"\"(\w+)\"", code))
    sections = [*SECTIONS.items(), *(("algorithm", method) for method in ALGORITHMS.values())]
    keys = [key for section, section_class in sections for key in keys_of(section, section_class).values()]
    assert [key.dotted for key in keys if key.name not in used and not _has_one_value(key)] == []
    assert set(TASK_MAY_ALSO_SET) <= {key.dotted for key in keys}


def _has_one_value(key: Key) -> bool:
    rules = key.field.metadata
    return len(rules["choices"]) == 1 or (rules["minimum"] is not None and rules["minimum"] == rules["maximum"])
