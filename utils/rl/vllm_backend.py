"""vLLM as a back end: in this process, or a server that sees the same files (docs/backends.md). For vLLM 0.31.

Before it generates it is given the policy: an adapter through a folder that vLLM loads, a whole policy weight by weight
(in this process) or through a folder (a server). A policy that does not train is given once.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from utils.errors import UserError
from utils.models.load import ADAPTER
from utils.ranks import size
from utils.rl.completions import Completion, Request, cut, seed_of
from utils.settings import GenerationSettings

if TYPE_CHECKING:
    from utils.models.load import Model

Answer = tuple[list[int], list[float] | None]
"""Tokens as vLLM gives them, and their log-probs where they were asked for."""
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks of adapters that vLLM makes room for."""
REQUESTS = 32
"""Prompts that are asked for at once; the server makes its own batches of them."""
TIMEOUT = 1800.0
"""Seconds that one request may take."""


class Engine(Protocol):
    """What generates: vLLM in this process, or far away."""

    def take(self, model: Model, bf16: bool) -> None:
        """From now on, generate with the weights that `model` has, in bf16 or in their own precision."""

    def answers(
        self, prompts: Sequence[Sequence[int]], settings: dict[str, Any], seeds: Sequence[int | None]
    ) -> list[list[Answer]]:
        """`settings["n"]` answers of each prompt; `settings` have the names that vLLM's sampling parameters have."""


class Vllm:
    """A back end (`utils.rl.backends`); `tokens_per_batch` has no say, vLLM makes its own batches.

    A sample follows from (seed, step, record, number of the sample) as far as vLLM's kernels repeat.
    """

    def __init__(self, generation: GenerationSettings) -> None:
        if size() > 1:
            raise UserError("backend vllm samples for one process; leave --num_processes out, or --backend native")
        server = generation.vllm_server
        self.engine: Engine = Server(server) if server else InProcess(generation.vllm_memory)
        self.given: Model | None = None

    def __call__(self, model: Model, request: Request) -> list[list[Completion]]:
        """See `utils.rl.sampling.sample`; UserError, too, for a model that vLLM is not given here."""
        request.check(model)
        greedy, samples = request.greedy, request.different
        settings = {
            "n": samples, "max_tokens": request.max_new_tokens, "temperature": 0.0 if greedy else request.temperature,
            "top_p": 1.0 if greedy else request.top_p, "top_k": 0, "repetition_penalty": 1.0,
            # only our stop tokens end a completion, whatever the model's generation_config.json says
            "stop_token_ids": list(request.stop_ids), "ignore_eos": True, "logprobs": None if greedy else 0,
        }  # fmt: skip
        uniforms, rows = request.uniforms, range(len(request.prompts))
        seeds = [None if greedy or uniforms is None else seed_of(uniforms[i : i + 1]) >> 1 for i in rows]
        device = next(model.parameters()).device.type
        bf16 = torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False):  # which is the learner's, not vLLM's
            self._give(model, bf16)
            found = self.engine.answers(request.prompts, settings, seeds)
        copies = request.group_size // samples
        return [[cut(ids, request.stop_ids, logp) for ids, logp in group] * copies for group in found]

    def _give(self, model: Model, bf16: bool) -> None:
        if getattr(model.config, "quantization_config", None) is not None:
            raise UserError("backend vllm: load_in_4bit and load_in_8bit are not supported; use --backend native")
        trains = any(parameter.requires_grad for parameter in model.parameters())
        if trains or self.given is not model:
            self.engine.take(model, bf16)
            self.given = model


class Folders:
    """A new folder for each state of the policy; the one before the last is removed."""

    def __init__(self) -> None:
        self.root = tempfile.TemporaryDirectory(prefix="policy-")
        self.number = 0

    def save(self, model: Model) -> Path:
        """The weights, or the adapter that trains, in Hugging Face's layout."""
        self.number += 1
        shutil.rmtree(Path(self.root.name) / str(self.number - 2), ignore_errors=True)
        folder = Path(self.root.name) / str(self.number)
        if hasattr(model, "peft_config"):
            model.save_pretrained(str(folder), selected_adapters=[ADAPTER], save_embedding_layers=False)
        else:
            model.save_pretrained(str(folder))
        return folder


class InProcess:
    """vLLM beside the learner on its GPU, with `memory` of the GPU's memory (share); it starts at the first policy."""

    def __init__(self, memory: float) -> None:
        self.memory = memory
        self.folders = Folders()
        self.llm: Any = None
        self.adapter: Any = None

    def take(self, model: Model, bf16: bool) -> None:
        """See `Engine`. A whole policy is copied into vLLM's own weights."""
        if self.llm is None:
            self.llm = self._start(model, bf16)
        if hasattr(model, "peft_config"):
            from vllm.lora.request import LoRARequest

            folder = self.folders.save(model)
            self.adapter = LoRARequest(f"policy-{self.folders.number}", self.folders.number, str(folder))
            return
        weights = [(name, parameter.detach()) for name, parameter in model.named_parameters()]

        def load(inner: Any) -> None:
            inner.load_weights(weights)

        self.llm.apply_model(load)
        self.llm.reset_prefix_cache()

    def answers(
        self, prompts: Sequence[Sequence[int]], settings: dict[str, Any], seeds: Sequence[int | None]
    ) -> list[list[Answer]]:
        """See `Engine`."""
        from vllm import SamplingParams

        parameters = [SamplingParams(**settings, seed=seed, detokenize=False) for seed in seeds]
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self.llm.generate(asked, parameters, use_tqdm=False, lora_request=self.adapter)
        return [[_answer(one) for one in output.outputs] for output in outputs]

    def _start(self, model: Model, bf16: bool) -> Any:
        # weights and functions are handed over by reference, which needs vLLM's engine in this very process
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm import LLM

        source, lora = model, {}
        if hasattr(model, "peft_config"):
            source = model.get_base_model()
            rank = model.peft_config[ADAPTER].r
            room = next((room for room in RANKS if room >= rank), None)
            if room is None:
                raise UserError(f"backend vllm: takes adapters of rank {RANKS[-1]} at most, lora.r is {rank}")
            lora = {"enable_lora": True, "max_loras": 1, "max_lora_rank": room}
        try:
            return LLM(
                model=source.name_or_path,
                skip_tokenizer_init=True,
                dtype="bfloat16" if bf16 or source.dtype == torch.bfloat16 else "float32",
                gpu_memory_utilization=self.memory,
                max_model_len=-1,  # as long as the memory allows
                logprobs_mode="processed_logprobs",
                seed=0,
                **lora,
            )
        except (RuntimeError, ValueError) as error:  # so it says that the GPU has too little free for its share
            said = str(error).strip().splitlines()[:1]
            raise UserError(f"vLLM does not start: {''.join(said)}; --vllm_memory is its share of the GPU") from error


def _answer(output: Any) -> Answer:
    """One of vLLM's outputs: `logprobs` holds, for each token, the chosen one's and perhaps others'."""
    ids = list(output.token_ids)
    if output.logprobs is None:
        return ids, None
    return ids, [found[token].logprob for token, found in zip(ids, output.logprobs, strict=True)]


class Server:
    """`vllm serve` at `url`. It reads adapters and weights from this machine's temporary folder, and must see it."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.folders = Folders()
        self.name, self.own = "", f"policy-{uuid.uuid4().hex[:8]}"

    def take(self, model: Model, bf16: bool) -> None:
        """See `Engine`. Needs VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 (adapters) or VLLM_SERVER_DEV_MODE=1 (whole ones)."""
        folder = str(self.folders.save(model))
        if hasattr(model, "peft_config"):
            # by a name of its own: vLLM finds the keys and values of prompts again by the adapter's name
            before, self.name = self.name, f"{self.own}-{self.folders.number}"
            if before:
                self._post("/v1/unload_lora_adapter", {"lora_name": before})
            self._post("/v1/load_lora_adapter", {"lora_name": self.name, "lora_path": folder})
            return
        self.name = self._ask("/v1/models")["data"][0]["id"]
        self._post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": folder}})
        self._post("/reset_prefix_cache", {})

    def answers(
        self, prompts: Sequence[Sequence[int]], settings: dict[str, Any], seeds: Sequence[int | None]
    ) -> list[list[Answer]]:
        """See `Engine`. One request per prompt, since a request has one seed."""

        def ask(prompt: Sequence[int], seed: int | None) -> list[Answer]:
            body = {**settings, "model": self.name, "prompt": list(prompt), "seed": seed, "return_token_ids": True}
            choices = sorted(self._post("/v1/completions", body)["choices"], key=lambda choice: int(choice["index"]))
            if len(choices) != settings["n"] or any(choice.get("token_ids") is None for choice in choices):
                raise UserError(f"vLLM at {self.url} answers without token ids; it must be version 0.31")
            logprobs = [choice.get("logprobs") for choice in choices]
            return [
                (choice["token_ids"], None if found is None else found["token_logprobs"])
                for choice, found in zip(choices, logprobs, strict=True)
            ]

        with ThreadPoolExecutor(REQUESTS) as pool:
            return list(pool.map(ask, prompts, seeds))

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return self._ask(path, json.dumps(body).encode())

    def _ask(self, path: str, data: bytes | None = None) -> Any:
        """What the server answers: JSON, or {} where it is none. UserError when it refuses or is not there."""
        asked = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(asked, timeout=TIMEOUT) as response:
                text = response.read().decode()
        except urllib.error.HTTPError as error:
            said = " ".join(error.read().decode(errors="replace").split())[:200]
            line = f"vLLM at {self.url} refuses {path} ({error.code}): {said}"
            raise UserError(f"{line}; docs/backends.md says how to start it") from error
        except (OSError, http.client.HTTPException) as error:
            line = f"vLLM at {self.url} does not answer: {str(error) or type(error).__name__}"
            raise UserError(f"{line}; docs/backends.md says how to start it") from error
        return json.loads(text) if text[:1] in ("{", "[") else {}
