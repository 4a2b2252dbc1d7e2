"""What stands in for vLLM 0.31 in tests: a package `vllm`, and a server with its HTTP interface.

Names, parameters and answers are those of vLLM's own source. Behind them generates `utils.rl.sampling`, on a model of
its own that is only changed as vLLM's would be, so that its answers show whether the weights were given over.
"""

from __future__ import annotations

import importlib.machinery
import json
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch


class Engine:
    """A model that answers token by token; `adapters` by name."""

    def __init__(self, source: str) -> None:
        from transformers import AutoModelForCausalLM

        self.source = source
        self.model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
        self.adapters: dict[str, Any] = {}
        self.names: set[str] = set()

    def load_weights(self, weights: Any) -> None:
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in weights:
                own[name].copy_(value)

    def load_adapter(self, name: str, folder: str) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(self.source, dtype=torch.float32)
        base.load_state_dict(self.model.state_dict())
        self.adapters[name] = PeftModel.from_pretrained(base, folder).eval()

    def answer(self, prompt: list[int], request: dict[str, Any], adapter: str = "") -> list[tuple[list[int], Any]]:
        """(tokens, log-probs) of each of n answers; sample k has seed + k, as vLLM's have."""
        from utils.rl.completions import Request
        from utils.rl.logprobs import completion_logprobs
        from utils.rl.packing import lay_out
        from utils.rl.sampling import sample

        assert request["ignore_eos"] and request["top_k"] == 0 and request["repetition_penalty"] == 1.0
        greedy = request["temperature"] == 0.0
        assert not greedy or (request["n"] == 1 and request["seed"] is None), "n must be 1 when using greedy sampling"
        model = self.adapters[adapter] if adapter else self.model
        numbers = None
        if not greedy:
            streams = [np.random.default_rng(request["seed"] + k) for k in range(request["n"])]
            numbers = np.stack([stream.random(request["max_tokens"]) for stream in streams])[None]
        [group] = sample(
            model, Request([prompt], request["n"], request["max_tokens"], request["stop_token_ids"], 0, numbers,
                           request["temperature"], request["top_p"])
        )  # fmt: skip
        answers = [one.tokens for one in group]
        if request["logprobs"] is None:
            return [(tokens, None) for tokens in answers]
        packed = lay_out(model, [prompt], [answers], 0)
        with torch.no_grad():
            logp = completion_logprobs(model, packed)[0]
        return [(tokens, logp[packed.sample == k].tolist()) for k, tokens in enumerate(answers)]


def install(monkeypatch: pytest.MonkeyPatch, calls: list[Any]) -> None:
    """Put a package `vllm` where imports find it; `calls` gets what is asked of it."""
    package, lora, request = (types.ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request"))
    package.__spec__ = importlib.machinery.ModuleSpec("vllm", None)

    class LLM:
        def __init__(self, model: str, **settings: Any) -> None:
            calls.append(("LLM", settings))
            self.engine = Engine(model)

        def apply_model(self, function: Any) -> list[Any]:
            calls.append(("apply_model",))
            return [function(self.engine)]

        def reset_prefix_cache(self) -> bool:
            calls.append(("reset_prefix_cache",))
            return True

        def generate(self, prompts: Any, settings: Any, *, use_tqdm: bool, lora_request: Any) -> list[Any]:
            calls.append(("generate", len(prompts)))
            if lora_request is not None:
                calls.append(("adapter", lora_request.lora_int_id, lora_request.lora_path))
                self.engine.load_adapter(lora_request.lora_name, lora_request.lora_path)
            name = "" if lora_request is None else lora_request.lora_name
            found = [
                self.engine.answer(prompt["prompt_token_ids"], one, name)
                for prompt, one in zip(prompts, settings, strict=True)
            ]
            return [SimpleNamespace(outputs=[output(*answer) for answer in group]) for group in found]

    def output(tokens: list[int], logp: list[float] | None) -> Any:
        others = 1 + max(tokens)  # a likelier token may stand beside the chosen one
        shown = None if logp is None else [
            {others: SimpleNamespace(logprob=-0.1), token: SimpleNamespace(logprob=value)}
            for token, value in zip(tokens, logp, strict=True)
        ]  # fmt: skip
        return SimpleNamespace(token_ids=tuple(tokens), logprobs=shown)

    def lora_request(lora_name: str, lora_int_id: int, lora_path: str) -> Any:
        return SimpleNamespace(lora_name=lora_name, lora_int_id=lora_int_id, lora_path=lora_path)

    vars(package).update(LLM=LLM, SamplingParams=lambda **settings: settings)
    vars(request).update(LoRARequest=lora_request)
    for module in (package, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)


@contextmanager
def serving(source: str, calls: list[Any], *, refuses: bool = False) -> Iterator[str]:
    """A server of the model in `source`, as `vllm serve` with both variables of docs/backends.md; its address."""
    engine, lock = Engine(source), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply({"object": "list", "data": [{"id": "served", "object": "model"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:  # one model for all threads
                calls.append((self.path, body))
                if refuses:
                    self.reply({"detail": "Not Found"}, 404)
                elif self.path == "/v1/load_lora_adapter":
                    # the prefix cache knows adapters by their names: another one must not have the same
                    assert body["lora_name"] not in engine.names and not engine.adapters
                    engine.names.add(body["lora_name"])
                    engine.load_adapter(body["lora_name"], body["lora_path"])
                    self.reply(f"Success: LoRA adapter '{body['lora_name']}' added successfully.")
                elif self.path == "/v1/unload_lora_adapter":
                    del engine.adapters[body["lora_name"]]
                    self.reply(f"Success: LoRA adapter '{body['lora_name']}' removed successfully.")
                elif self.path == "/collective_rpc":
                    assert body["method"] == "reload_weights"
                    weights = Engine(body["kwargs"]["weights_path"]).model.named_parameters()
                    engine.load_weights(weights)
                    self.reply({"results": [None]})
                elif self.path == "/reset_prefix_cache":
                    self.reply({"success": True})
                else:
                    assert self.path == "/v1/completions" and body["return_token_ids"]
                    found = engine.answer(body["prompt"], body, "" if body["model"] == "served" else body["model"])
                    choices = [
                        {"index": k, "text": "", "token_ids": tokens, "finish_reason": "length",
                         "logprobs": None if logp is None else {"token_logprobs": logp}}
                        for k, (tokens, logp) in enumerate(found)
                    ]  # fmt: skip
                    self.reply({"object": "text_completion", "choices": choices[::-1]})

        def reply(self, content: Any, status: int = 200) -> None:
            text = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *arguments: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
