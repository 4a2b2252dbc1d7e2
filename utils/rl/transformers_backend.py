"""transformers' `generate` as a back end: every prompt once per sample, for models that need what only it can do.

It draws from the same distribution as `utils.rl.sampling`, with torch's generator in the place of uniforms, and reports
the log-probs that it drew from: those of padded rows and a growing cache differ from the learner's by rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from utils.rl.completions import Completion, Request, batches_by_length, cut, seed_of
from utils.rl.finite import NonFiniteError

if TYPE_CHECKING:
    from utils.models.load import Model


@torch.no_grad()
def generate(model: Model, request: Request) -> list[list[Completion]]:
    """What `utils.rl.sampling.sample` gives, with the same errors.

    Uniforms seed torch's generator batch by batch, so that a batch follows from (seed, step, its records); a sample
    depends on its batch, and with it on `tokens_per_batch`. The global generator is left as it was.
    """
    request.check(model)
    results: list[list[Completion]] = [[] for _ in request.prompts]
    samples, settings = request.different, _settings(request)
    lengths = [samples * len(prompt) for prompt in request.prompts]
    device = next(model.parameters()).device
    for batch in batches_by_length(lengths, samples, request.max_new_tokens, request.tokens_per_batch):
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            if request.uniforms is not None:
                torch.manual_seed(seed_of(request.uniforms[batch]))
            try:
                rows = _run(model, [request.prompts[i] for i in batch], settings)
            except NonFiniteError as error:
                raise NonFiniteError(str(error), row=batch[(error.row or 0) // samples]) from error
        for place, i in enumerate(batch):
            group = [cut(ids, request.stop_ids, logp) for ids, logp in rows[place * samples : (place + 1) * samples]]
            results[i] = group * (request.group_size // samples)
    return results


def _settings(request: Request) -> GenerationConfig:
    """Every setting that a model's own generation_config.json could bring is named."""
    sampling = {} if request.greedy else {"temperature": request.temperature, "top_p": request.top_p, "top_k": 0}
    return GenerationConfig(
        do_sample=bool(sampling),
        num_beams=1,
        num_return_sequences=request.different,
        max_new_tokens=request.max_new_tokens,
        min_new_tokens=0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=list(request.stop_ids) or -1,
        pad_token_id=request.pad_id,
        **sampling,
    )


def _run(
    model: Model, prompts: Sequence[Sequence[int]], settings: GenerationConfig
) -> list[tuple[list[int], list[float]]]:
    """(tokens, their log-probs) of each sample, prompt by prompt, with padding after the stop token."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), settings.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, width - len(prompt) :] = 1
    device = next(model.parameters()).device
    watcher = _Chosen()
    tokens = model.generate(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        generation_config=settings,
        logits_processor=LogitsProcessorList([watcher]),
        synced_gpus=False,  # a policy in shares is whole while it samples; no process waits for another's tokens
    )
    logp = watcher.logprobs(tokens[:, width:])
    return list(zip(tokens[:, width:].tolist(), logp.tolist(), strict=True))


class _Chosen(LogitsProcessor):  # type: ignore[misc]
    """Keeps the log-prob, at temperature 1, of each token that was chosen: it is seen one step later.

    transformers calls it before its own warpers (temperature, top_p).
    """

    def __init__(self) -> None:
        self.found: list[torch.Tensor] = []
        self.last: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores` [rows, _V] as they are. NonFiniteError (`row`) where they are not finite."""
        bad = ~torch.isfinite(scores.max(dim=-1).values)
        if bool(bad.any()):
            step = len(self.found) + (self.last is not None) + 1
            raise NonFiniteError(f"logits are not finite at token {step} of a completion", row=int(bad.nonzero()[0]))
        self._take(input_ids[:, -1:])
        self.last = scores.float().log_softmax(dim=-1)
        return scores

    def logprobs(self, tokens: torch.Tensor) -> torch.Tensor:
        """[rows, _T] of the tokens [rows, _T] that came out; after a stop token they mean nothing."""
        self._take(tokens[:, -1:])
        return torch.cat(self.found, dim=1)

    def _take(self, chosen: torch.Tensor) -> None:
        if self.last is not None:
            self.found.append(self.last.gather(-1, chosen))
