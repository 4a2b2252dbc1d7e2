"""How much faster is the project's sampler than transformers' `generate` with `num_return_sequences`?

Both draw the same number of tokens at temperature 1 from the same model: no token stops a completion, so that each has
exactly --completion tokens. `generate` runs with a dynamic and with a static cache (compiled on a GPU), each with its
faster attention, on rows of all prompts at once. In bf16 the project samples as it trains, in autocast over fp32
weights; `generate` gets bf16 weights, with which it is faster (and its static cache does not work in autocast).

On a GPU with vLLM installed (`./setup.sh --cuda --extras vllm`) vLLM draws them, too: the project's own back end, in
this process, given the weights once, with the share --vllm_memory of the card.

    python -m benchmarks.sampler --model 5M --dtype fp32
    python -m benchmarks.sampler --model 60M --dtype bf16 --json benchmarks/results/sampler-60M-bf16.json
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks import rollouts
from benchmarks.measure import Figures, alternate, command, compared, quickest
from benchmarks.rollouts import Work, build, build_own, context, title, wanted
from benchmarks.updates import ATTENTIONS, OWN
from utils.rl.backends import Backend
from utils.rl.completions import Request
from utils.rl.sampling import sample
from utils.settings import GenerationSettings

FEW = 8
"""New tokens by which the attention of `generate` is chosen."""
VLLM = "vLLM"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Sizes; the share of the card."""
    rollouts.add_flags(parser)
    parser.add_argument("--vllm_memory", type=float, default=0.3, help="of the GPU's, for vLLM (default: 0.3)")


def run(flags: argparse.Namespace) -> Figures:
    """Measure."""
    rollouts.check(flags)
    work = Work.of(flags)
    own = build_own(flags).requires_grad_(False)
    other = build(flags, "sdpa").to(torch.bfloat16 if flags.dtype == "bf16" else torch.float32)
    ways: dict[str, Any] = {OWN: None, "generate, dynamic": "dynamic", "generate, static": "static"}
    if flags.device == "cuda" and importlib.util.find_spec("vllm"):
        ways[VLLM] = None
    calls: dict[str, Callable[[], None]] = {}
    chosen = {}
    for name, cache in wanted(flags, ways).items():
        if cache is None:
            calls[name] = partial(draw, vllm(own, flags) if name == VLLM else sample, own, work, flags)
            continue
        attend = {attention: partial(generate, other, attention, cache, work, flags, FEW) for attention in ATTENTIONS}
        chosen[name] = quickest(attend)
        calls[name] = partial(generate, other, chosen[name], cache, work, flags, flags.completion)
    figures = compared(alternate(calls, flags.repeats))
    notes = [f"fastest attention: {chosen}"]
    return {"title": title("sampler", flags, own), **figures, "chosen": chosen, "notes": notes}


def vllm(model: Any, flags: argparse.Namespace) -> Backend:
    """The back end of that name, which wants to find the model in a folder."""
    from utils.rl.vllm_backend import Vllm

    model.name_or_path = tempfile.mkdtemp()
    model.save_pretrained(model.name_or_path)
    return Vllm(GenerationSettings(backend="vllm", vllm_memory=flags.vllm_memory))


def draw(backend: Backend, model: Any, work: Work, flags: argparse.Namespace) -> None:
    """As every stage samples; no token stops a completion."""
    uniforms = np.random.default_rng(1).random((flags.prompts, flags.group, flags.completion))
    with context(flags):
        drawn = backend(model, Request(work.prompts, flags.group, flags.completion, [], rollouts.PAD, uniforms))
    assert all(len(completion.tokens) == flags.completion for group in drawn for completion in group)


def generate(
    model: Any, attention: str, cache: str | None, work: Work, flags: argparse.Namespace, new_tokens: int
) -> None:
    """transformers' own. Nothing ends a completion, so that it does not look for an end either."""
    model.set_attn_implementation(attention)
    model.generation_config.eos_token_id = None
    rows = torch.tensor(work.prompts, device=flags.device)
    with torch.inference_mode():
        drawn = model.generate(
            rows, attention_mask=torch.ones_like(rows), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            num_return_sequences=flags.group, max_new_tokens=new_tokens, cache_implementation=cache,
            disable_compile=flags.device == "cpu",
        )  # fmt: skip
    assert drawn.shape == (flags.prompts * flags.group, flags.prompt + new_tokens)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    return command("benchmarks.sampler", __doc__, argv, add_flags, run, ("torch", "transformers"))


if __name__ == "__main__":
    raise SystemExit(main())
