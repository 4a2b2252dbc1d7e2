"""Sampling in packed groups: each prompt is computed once, then its samples are decoded side by side.

A row of the batch is a prompt. After the prefill its keys and values stand once in the cache; every decoding step feeds
one new token of each of the _G samples as a sequence of length _G, whose 4-D mask lets a sample see the prompt and its
own earlier tokens. Passes are those of `utils.models.decoding` where the model can have them. Models that take no
custom mask (`utils.rl.packing.unpackable`) get one row per sample instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicCache

from utils.models.decoding import Decoder, decoder_of
from utils.models.last_layer import reading_only
from utils.models.memory import WIDTH_MULTIPLE, round_up
from utils.rl.cache import buffer_columns, cached_dtype, growing, seen
from utils.rl.completions import Completion, Request, batches_by_length, cut
from utils.rl.finite import NonFiniteError
from utils.rl.memory import CDF_ELEMENTS, PREFILL_TOKENS
from utils.rl.packing import unpackable

if TYPE_CHECKING:
    from utils.models.load import Model

COMPACT_SHARE = 0.25
"""Finished prompts leave the batch when they are at least this share of it: the copy of the cache then pays."""
PREFILL_LOGITS = 2**27
"""Logits per pass: they are computed at every length of a part's prompts, for each of its rows."""


@torch.inference_mode()
def sample(model: Model, request: Request) -> list[list[Completion]]:
    """The completions of a request; its uniforms choose tokens by inverse CDF, so that no sample depends on its batch.

    Prompts are batched by length. Run it inside `utils.models.load.autocast` for bf16. Raises UserError for prompts
    beyond the model's positions and NonFiniteError (`row`: index of the prompt) for logits that are not finite.
    """
    request.check(model)
    results: list[list[Completion]] = [[] for _ in request.prompts]
    longest = max(map(len, request.prompts), default=0)
    shared = bool(request.prompts) and unpackable(model) is None
    decoder = decoder_of(model, longest + request.max_new_tokens) if shared else None
    lengths = prompt_tokens(model, request)
    for batch in batches_by_length(lengths, request.group_size, request.max_new_tokens, request.tokens_per_batch):
        try:
            completions = _run(model, request, batch, decoder)
        except NonFiniteError as error:
            raise NonFiniteError(str(error), row=batch[error.row or 0]) from error
        for i, group in zip(batch, completions, strict=True):
            results[i] = group
    return results


def prompt_tokens(model: Model, request: Request) -> list[int]:
    """Tokens that each prompt takes in the cache: its own, or those of a copy for every sample."""
    return [copies(model, request.group_size) * len(prompt) for prompt in request.prompts]


def copies(model: Model, samples: int) -> int:
    """How often a prompt of so many samples is computed: once, or where they cannot share it for each."""
    return 1 if unpackable(model) is None else samples


def choose(
    logits: torch.Tensor, uniforms: torch.Tensor | None, temperature: float = 1.0, top_p: float = 1.0
) -> torch.Tensor:
    """Token ids [M] from logits [M, _V]: the largest where `uniforms` is None, else by inverse CDF of uniforms [M].

    Probabilities are the fp32 softmax that the log-probs use; their running sum is float64. A row whose logits are not
    finite gets -1. `top_p` keeps the smallest set of likeliest tokens that holds that mass (Holtzman et al. 2020,
    arXiv:1904.09751), ties in order of token id.
    """
    if uniforms is None:
        best = logits.max(dim=-1)
        return torch.where(torch.isfinite(best.values), best.indices, -1)
    rows = max(1, CDF_ELEMENTS // logits.shape[-1])
    chunks = zip(torch.split(logits, rows), torch.split(uniforms, rows), strict=True)
    return torch.cat([_inverse_cdf(part, u, temperature, top_p) for part, u in chunks])


def _inverse_cdf(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    logits = logits.float()
    probs = torch.softmax(logits if temperature == 1.0 else logits / temperature, dim=-1)
    if top_p < 1.0:
        ordered, order = probs.sort(dim=-1, descending=True, stable=True)
        mass_before = ordered.double().cumsum(dim=-1) - ordered
        mass_before[..., 0] = -1.0  # the likeliest token stays, also with top_p 0
        probs = torch.zeros_like(probs).scatter(-1, order, ordered.masked_fill(mass_before >= top_p, 0.0))
    cdf = probs.cumsum(dim=-1, dtype=torch.float64)
    total = cdf[:, -1]
    # below the total even where the product rounds up to it, so that no token of probability 0 is ever drawn
    target = torch.minimum(uniforms.to(total) * total, torch.nextafter(total, torch.zeros_like(total)))
    index = torch.searchsorted(cdf, target[:, None], right=True).squeeze(-1)
    return torch.where(torch.isfinite(total), index, -1)


def _run(model: Model, request: Request, batch: list[int], decoder: Decoder | None) -> list[list[Completion]]:
    """Completions of the prompts with these indices, which are decoded together."""
    device = next(model.parameters()).device
    prompts, uniforms = [request.prompts[i] for i in batch], None
    if request.uniforms is not None and not request.greedy:
        uniforms = torch.from_numpy(np.ascontiguousarray(request.uniforms[batch])).to(device)
    shared = unpackable(model) is None
    if not shared:
        prompts = [prompt for prompt in prompts for _ in range(request.group_size)]
        uniforms = None if uniforms is None else uniforms.reshape(-1, 1, uniforms.shape[-1])
    tokens = _Rows(model, request, prompts, uniforms, decoder).decode()
    groups_of_ids = tokens.reshape(-1, request.group_size, tokens.shape[-1]).tolist()
    return [[cut(ids, request.stop_ids) for ids in group] for group in groups_of_ids]


class _Rows:
    """The rows of a batch while they are decoded: cache, mask, which samples are still going."""

    def __init__(
        self,
        model: Model,
        request: Request,
        prompts: list[Sequence[int]],
        uniforms: torch.Tensor | None,
        decoder: Decoder | None,
    ) -> None:
        """`uniforms` [rows, groups, max_new_tokens]."""
        self.model, self.request, self.uniforms, self.decoder = model, request, uniforms, decoder
        self.shared = shared = unpackable(model) is None
        self.groups = request.group_size if shared else 1
        device = next(model.parameters()).device
        longest = max(len(prompt) for prompt in prompts)
        self.width = round_up(longest, WIDTH_MULTIPLE) if shared else longest  # few widths need few kernels
        # shared prompts begin at column 0: a causal pass then needs no mask. The others end together
        starts = [0 if shared else self.width - len(prompt) for prompt in prompts]
        ids = torch.full((len(prompts), self.width), request.pad_id)
        for row, (prompt, start) in enumerate(zip(prompts, starts, strict=True)):
            ids[row, start : start + len(prompt)] = torch.tensor(list(prompt))
        self.ids = ids.to(device)
        self.lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        first = torch.tensor(starts, device=device)[:, None]
        columns = torch.arange(self.width, device=device)
        self.valid = (columns >= first) & (columns < first + self.lengths[:, None])
        self.row = torch.arange(len(prompts), device=device)
        self.stops = torch.tensor(request.stop_ids, device=device)
        self.done = torch.zeros(len(prompts), self.groups, dtype=torch.bool, device=device)
        self.cache, self.mask = self._cache_and_mask(device)

    def decode(self) -> torch.Tensor:
        """Tokens [rows, groups, max_new_tokens], padding after the last one decoded."""
        request = self.request
        shape = (len(self.row), self.groups, request.max_new_tokens)
        tokens = torch.full(shape, request.pad_id, device=self.ids.device)
        logits = self._prefill().expand(-1, self.groups, -1)
        for t in range(request.max_new_tokens):
            numbers = None if self.uniforms is None else self.uniforms[..., t].flatten()
            chosen = choose(logits.flatten(0, 1), numbers, request.temperature, request.top_p).view_as(self.done)
            self._stop_unless_finite(chosen, t)
            chosen = chosen.masked_fill(self.done, request.pad_id)
            tokens[self.row, :, t] = chosen
            if request.stop_ids:
                self.done |= torch.isin(chosen, self.stops)
            finished = self.done.all(dim=1)
            gone = int(finished.sum())
            if t + 1 == request.max_new_tokens or gone == len(finished):
                break
            if gone and gone >= COMPACT_SHARE * len(finished):
                chosen = self._without(finished, chosen)
            logits = self._step(chosen, t)
        return tokens

    def _cache_and_mask(self, device: torch.device) -> tuple[Cache, torch.Tensor]:
        """With shared prompts: a growing cache and the mask [rows, 1, groups, columns] that is added to the scores."""
        config, steps = self.model.config, self.request.max_new_tokens
        if not self.shared:
            return DynamicCache(config=config), self.valid
        columns = buffer_columns(self.width + steps * self.groups, self.width, self.groups)
        dtype = cached_dtype(self.model.dtype, device.type)
        mask = torch.full((len(self.row), 1, self.groups, columns), torch.finfo(dtype).min, dtype=dtype, device=device)
        mask[..., : self.width].masked_fill_(self.valid[:, None, None], 0.0)
        return growing(config.num_hidden_layers, len(self.row), self.width, self.groups, columns), mask

    def _prefill(self) -> torch.Tensor:
        """Logits [rows, 1, _V] after each prompt."""
        if not self.shared:
            end = torch.tensor([self.width - 1], device=self.ids.device)
            return self._forward_at(self.ids, (self.valid.cumsum(1) - 1).clamp(min=0), self.valid, end)
        lengths = self.lengths.tolist()
        layers, logits = self.cache.layers, []
        tokens = PREFILL_TOKENS if self.ids.device.type == "cpu" else self.ids.numel()
        for rows in _parts(lengths, tokens, PREFILL_LOGITS // self.model.config.vocab_size):
            for layer in layers:
                layer.part = rows
            ends = self.lengths[rows] - 1
            ids = self.ids[rows, : round_up(max(lengths[rows]), WIDTH_MULTIPLE)]
            if self.decoder is not None:
                logits.append(self.decoder.prompts(ids, self.cache, ends))
                continue
            read, place = ends.unique(return_inverse=True)
            columns = torch.arange(ids.shape[1], device=ids.device).clamp(max=max(lengths[rows]) - 1)
            found = self._forward_at(ids, columns.expand_as(ids), None, read)
            logits.append(found[torch.arange(len(place), device=ids.device), place, None])
        for layer in layers:
            layer.part, layer.length = None, self.width
        return torch.cat(logits)

    def _step(self, chosen: torch.Tensor, t: int) -> torch.Tensor:
        """Logits [rows, groups, _V] after the tokens `chosen` [rows, groups] of decoding step t (from 0)."""
        positions = self.lengths + t
        if self.shared:
            start = self.width + t * self.groups
            end = start + self.groups
            self.mask[..., start:end].diagonal(dim1=-2, dim2=-1).zero_()
            mask = self.mask[..., : seen(self.cache, end)]
            if self.decoder is not None:
                return self.decoder.step(chosen, positions, self.cache, mask)
        else:
            mask = self.mask = torch.cat([self.mask, torch.ones_like(chosen, dtype=torch.bool)], dim=-1)
        return self._forward(chosen, positions[:, None].expand_as(chosen), mask)

    def _forward(
        self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None, keep: int | torch.Tensor = 0
    ) -> torch.Tensor:
        logits: torch.Tensor = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=keep,
        ).logits
        return logits

    def _forward_at(
        self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None, columns: torch.Tensor
    ) -> torch.Tensor:
        """Logits [rows, len(columns), _V] at these columns of a prefill."""
        with reading_only(self.model, columns) as only:
            return self._forward(ids, positions, mask, 0 if only else columns)

    def _without(self, finished: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Drops the rows whose samples have all stopped; `chosen` without them."""
        going = ~finished
        self.cache.batch_select_indices(going)
        self.row, self.lengths, self.done, self.mask = (
            self.row[going], self.lengths[going], self.done[going], self.mask[going]
        )  # fmt: skip
        if self.uniforms is not None:
            self.uniforms = self.uniforms[going]
        return chosen[going]

    def _stop_unless_finite(self, chosen: torch.Tensor, t: int) -> None:
        if int(chosen.min()) >= 0:
            return
        bad = (chosen < 0) & ~self.done
        if bool(bad.any()):
            row = int(self.row[bad.any(dim=1).nonzero()[0, 0]])
            row = row if self.shared else row // self.request.group_size
            raise NonFiniteError(f"logits are not finite at token {t + 1} of a completion", row=row)


def _parts(lengths: list[int], tokens: int, places: int) -> Iterator[slice]:
    """Consecutive rows, cut so that their longest prompt, times their number, stays within `tokens`, and the number of
    different lengths, times theirs, within `places` (one row always goes)."""
    start = 0
    for end in range(1, len(lengths) + 1):
        longer = lengths[start : end + 1]
        beyond = max(longer) * len(longer) > tokens or len(set(longer)) * len(longer) > places
        if end == len(lengths) or beyond:
            yield slice(start, end)
            start = end
