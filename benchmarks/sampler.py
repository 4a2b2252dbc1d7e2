"""How much faster is the project's sampler than transformers' `generate` with `num_return_sequences`?

Both draw the same number of tokens at temperature 1 from the same model: no token stops a completion, so that each has
exactly --completion tokens. `generate` runs with a dynamic and with a static cache; rows of all prompts at once.

    python -m benchmarks.sampler --model 5M --dtype fp32
    python -m benchmarks.sampler --model 60M --dtype bf16 --repeats 3 --json sampler.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch

from benchmarks import rollouts
from benchmarks.measure import Figures, alternate, command, compared, described, machine, row
from benchmarks.rollouts import Work, build, context, title
from utils.models.attention import attention_in_blocks
from utils.rl.sampling import sample


def run(flags: argparse.Namespace) -> Figures:
    """Measure and print."""
    rollouts.check(flags)
    work = Work.of(flags)
    own, other = build(flags.model, attention_in_blocks()), build(flags.model, "sdpa")
    uniforms = np.random.default_rng(1).random((flags.prompts, flags.group, flags.completion))
    rows = torch.tensor(work.prompts)

    def project() -> None:
        with context(flags):
            drawn = sample(
                own, work.prompts, group_size=flags.group, max_new_tokens=flags.completion, stop_ids=[-1],
                pad_id=rollouts.PAD, uniforms=uniforms,
            )  # fmt: skip
        assert all(len(completion.tokens) == flags.completion for group in drawn for completion in group)

    def generate(cache: str) -> None:
        with torch.inference_mode(), context(flags):
            drawn = other.generate(
                rows, attention_mask=torch.ones_like(rows), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                num_return_sequences=flags.group, max_new_tokens=flags.completion, min_new_tokens=flags.completion,
                cache_implementation=cache, disable_compile=True,
            )  # fmt: skip
        assert drawn.shape == (flags.prompts * flags.group, flags.prompt + flags.completion)

    ways = {"project": project, "generate, dynamic": lambda: generate("dynamic")}
    ways["generate, static"] = lambda: generate("static")
    figures = {**compared(alternate(ways, flags.repeats), "project"), "machine": machine("torch", "transformers")}
    print(described(figures["machine"]))
    print(row(title("sampler", flags, own), figures))
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    return command(__doc__ or "", argv, rollouts.add_flags, run)


if __name__ == "__main__":
    raise SystemExit(main())
