"""The back end `vllm` against stand-ins for vLLM: the policy arrives, the answers are its own, errors are one line.

vLLM itself has not been run by these tests: they hold our side of its interface.
"""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.invariants.tiny import LETTERS, save_letter_model
from tests.stages.test_05_07_online import inputs, rows, settle, train  # noqa: F401 - a fixture
from tests.unit import fake_vllm
from utils.config import build
from utils.errors import UserError
from utils.models.load import load_model
from utils.rl.backends import make_backend
from utils.rl.completions import Completion, Request
from utils.rl.logprobs import completion_logprobs
from utils.rl.packing import lay_out
from utils.rl.sampling import sample
from utils.seeds import uniforms
from utils.settings import GenerationSettings, LoraSettings, ModelSettings

CPU, STEPS = torch.device("cpu"), 6
PROMPTS = [[1, 4 + i, 5, 4 + (i * 3) % len(LETTERS)][: 2 + i % 3] for i in range(8)]
RECORDS = [str(i) for i in range(8)]


@pytest.fixture
def calls() -> list[Any]:
    """What was asked of vLLM."""
    return []


@pytest.fixture(params=["in process", "server"])
def generation(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[Any]
) -> Iterator[GenerationSettings]:
    save_letter_model(tmp_path / "start", seed=1)
    if request.param == "in process":
        fake_vllm.install(monkeypatch, calls)
        yield GenerationSettings(backend="vllm")
    else:
        with fake_vllm.serving(str(tmp_path / "start"), calls) as url:
            yield GenerationSettings(backend="vllm", vllm_server=url)


def policy(folder: Path, lora: bool, trainable: bool = True) -> Any:
    torch.manual_seed(0)
    adapters = LoraSettings(use_lora=lora, r=4, target_modules=("q_proj", "v_proj"))
    model = load_model(ModelSettings(name=str(folder / "start"), precision="fp32"), adapters, checkpoint=None,
                       trainable=trainable, device=CPU)  # fmt: skip
    return model


def change(model: Any, by: float) -> None:
    """What an update does: every weight that trains moves."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(by * torch.randn(parameter.shape, generator=generator))


def draw(call: Any, model: Any, numbers: Any, prompts: Any = PROMPTS, **options: Any) -> list[list[Completion]]:
    given = {"group_size": 3, "max_new_tokens": STEPS, "stop_ids": [2, 7], "pad_id": 0, **options}
    return call(model, Request(prompts, uniforms=numbers, **given))  # type: ignore[no-any-return]


@pytest.mark.parametrize("lora", [False, True])
def test_it_answers_with_the_policy_as_it_is(
    generation: GenerationSettings, calls: list[Any], tmp_path: Path, lora: bool
) -> None:
    backend, model = make_backend(generation), policy(tmp_path, lora)
    answers = []
    for by in (0.0, 0.5, 0.5):
        change(model, by)
        answers.append(draw(backend, model, None))
        assert answers[-1] == draw(sample, model, None)
    assert answers[0] != answers[1] != answers[2]
    assert {one.truncated for step in answers for group in step for one in group} == {True, False}
    if generation.vllm_server:
        asked = [path for path, _ in calls if path != "/v1/completions"]
        load, unload = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
        whole = ["/collective_rpc", "/reset_prefix_cache"] * 3
        assert asked == ([load, unload, load, unload, load] if lora else whole)
        folders = [body.get("lora_path") or body["kwargs"]["weights_path"] for path, body in calls if path in asked[:1]]
        assert len(set(folders)) == 3 and len(list(Path(folders[0]).parent.iterdir())) == 2  # older ones are removed
        return
    started = [call[1] for call in calls if call[0] == "LLM"]
    assert len(started) == 1 and started[0]["dtype"] == "float32" and started[0]["gpu_memory_utilization"] == 0.3
    assert started[0].get("max_lora_rank") == (8 if lora else None)
    if lora:
        assert [call[1] for call in calls if call[0] == "adapter"] == [1, 2, 3]
    else:
        assert [call[0] for call in calls[1:]] == ["apply_model", "reset_prefix_cache", "generate"] * 3


def test_samples_bring_their_log_probs_and_follow_from_their_own_numbers(
    generation: GenerationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, model = make_backend(generation), policy(tmp_path, lora=True)
    change(model, 0.5)
    groups = draw(backend, model, uniforms(0, 1, RECORDS, 3, STEPS))
    packed = lay_out(model, PROMPTS, [[one.tokens for one in group] for group in groups], 0)
    with torch.no_grad():
        expected, _ = completion_logprobs(model, packed)
    found = [value for group in groups for one in group for value in one.logprobs or []]
    torch.testing.assert_close(torch.tensor(found), expected, atol=1e-5, rtol=0)
    assert len({tuple(one.tokens) for group in groups for one in group}) > 12
    order = RECORDS[::-1]
    again = draw(backend, model, uniforms(0, 1, order, 3, STEPS), PROMPTS[::-1])
    assert [[one.tokens for one in group] for group in again[::-1]] == [[o.tokens for o in g] for g in groups]
    assert draw(backend, model, uniforms(0, 2, RECORDS, 3, STEPS)) != groups
    fake_vllm.install(monkeypatch, [])
    here = draw(make_backend(GenerationSettings(backend="vllm")), model, uniforms(0, 1, RECORDS, 3, STEPS))
    assert [[one.tokens for one in group] for group in here] == [
        [o.tokens for o in g] for g in groups
    ]  # in their order


def test_a_policy_that_does_not_train_is_given_once(
    generation: GenerationSettings, calls: list[Any], tmp_path: Path
) -> None:
    backend, model = make_backend(generation), policy(tmp_path, lora=False, trainable=False)
    assert draw(backend, model, None) == draw(backend, model, None)
    assert sum(call[0] in ("apply_model", "/collective_rpc") for call in calls) == 1


def test_online_training_with_a_server(
    tmp_path: Path, inputs: list[str], calls: list[Any]  # noqa: F811
) -> None:  # fmt: skip
    settle(tmp_path, lora=True)
    with fake_vllm.serving(str(tmp_path / "start"), calls) as url:
        assert train("grpo", tmp_path / "run", [*inputs, "--backend", "vllm", "--vllm_server", f"{url}/v1/"]) == 0
    for row in rows(tmp_path / "run"):
        assert row["importance_mean"] == pytest.approx(1, abs=1e-4) and row["ratio_mean"] == 1.0
    assert sum(path == "/v1/load_lora_adapter" for path, _ in calls) == 4 + 3  # steps and validations


def test_errors_are_one_line(
    tmp_path: Path, inputs: list[str], capsys: pytest.CaptureFixture[str]  # noqa: F811
) -> None:  # fmt: skip
    with fake_vllm.serving(str(tmp_path / "start"), [], refuses=True) as url:
        server = ["--backend", "vllm", "--vllm_server"]
        cases = [
            (["--backend", "vllm"], "the package vllm is not installed; ./setup.sh --extras vllm installs it"),
            (["--vllm_server", url], "vllm_server has no effect on backend native"),
            ([*server, "localhost:8000"], "must be an address like http://host:port, got 'localhost:8000'"),
            ([*server, "http://127.0.0.1:9"], "vLLM at http://127.0.0.1:9 does not answer"),
            ([*server, url], 'refuses /collective_rpc (404): {"detail": "Not Found"}; docs/backends.md says'),
        ]
        for number, (flags, message) in enumerate(cases):
            assert train("grpo", tmp_path / str(number), [*inputs, *flags]) == 2
            error = capsys.readouterr().err
            assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_what_it_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = build(GenerationSettings, "generation", {"backend": "vllm", "vllm_server": "http://127.0.0.1:9"})
    save_letter_model(tmp_path / "start")
    model = policy(tmp_path, lora=False)
    model.config.quantization_config = {"load_in_4bit": True}
    with pytest.raises(UserError, match="load_in_4bit and load_in_8bit are not supported"):
        draw(make_backend(settings), model, None)
    fake_vllm.install(monkeypatch, [])
    wide = policy(tmp_path, lora=True)
    wide.peft_config["default"].r = 600
    with pytest.raises(UserError, match="adapters of rank 512 at most, lora.r is 600"):
        draw(make_backend(GenerationSettings(backend="vllm")), wide, None)
    monkeypatch.setattr("utils.rl.vllm_backend.size", lambda: 2)
    with pytest.raises(UserError, match="samples for one process"):
        make_backend(settings)


def test_a_server_that_dies_while_it_answers_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_letter_model(tmp_path / "start")

    def cut(*arguments: Any, **named: Any) -> Any:
        raise http.client.IncompleteRead(b"")

    monkeypatch.setattr("urllib.request.urlopen", cut)
    backend = make_backend(GenerationSettings(backend="vllm", vllm_server="http://127.0.0.1:9"))
    with pytest.raises(UserError, match="vLLM at http://127.0.0.1:9 does not answer: IncompleteRead"):
        draw(backend, policy(tmp_path, lora=True), None)
