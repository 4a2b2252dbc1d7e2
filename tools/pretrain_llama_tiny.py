"""Pre-train assets/llama-tiny, the embedded model: a 3-million-parameter Llama that can find and copy a cell.

Writes: the model folder (bf16 safetensors, config, tokenizer) and `training.json` beside it (command, seconds, curve).
    python tools/pretrain_llama_tiny.py --steps 3000 --out assets/llama-tiny
    python tools/pretrain_llama_tiny.py --measure          the figures of the shipped model, nothing is trained

The tokenizer is byte-level BPE with every digit its own token. It is trained on the corpus, on finqa_mini's wording
and, where `--reports DIR` names a folder with FinQA's train.json, on those pages, so that real reports stay short.
Learning rate, curriculum and loss on answers only follow what was seen to work; see docs/llama-tiny.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.tiny_corpus import INSTRUCTION, LEVELS, LOOKUPS, Level, Piece, document, table  # noqa: E402
from tools.tiny_formulas import formula_question  # noqa: E402
from utils.seeds import generator  # noqa: E402

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 2048
PAD, BOS, EOS = "<pad>", "<s>", "</s>"
IGNORED = -100
LEARNED = 0.85
MEASURED = Level((5, 5), (3, 3), phrasings=len(LOOKUPS), copies=0.0)
"""The tables of the published figure: 5 rows, 3 years."""


def build_tokenizer(reports: Path | None, seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE, one token per digit, VOCABULARY entries."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_texts(reports, seed), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=4096,
        padding_side="left",
    )


def _tokenizer_texts(reports: Path | None, seed: int) -> Iterator[str]:
    from utils.finqa.answers import write_answer
    from utils.finqa.mini import families
    from utils.finqa.prompts import TEMPLATE

    rng = generator(seed, "llama-tiny", "tokenizer")
    for _ in range(2000):
        yield "".join(text for text, _ in document(rng, LEVELS[-1]))
    for family in families():
        for phrasing in family.phrasings:
            yield from [TEMPLATE.format(evidence="", question=phrasing) + write_answer(family.program, 0.5)] * 20
    if reports is not None:
        for page in json.loads((reports / "train.json").read_text(encoding="utf-8")):
            yield " ".join(
                [
                    *page["pre_text"],
                    *(" ".join(row) for row in page["table"]),
                    *page["post_text"],
                    page["qa"]["question"],
                ]
            )


def build_model(tokenizer: PreTrainedTokenizerFast, layers: int) -> LlamaForCausalLM:
    """Hidden 192, 6 heads of 32, tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=layers,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            rms_norm_eps=1e-5,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def deepen(model: LlamaForCausalLM, layers: int) -> LlamaForCausalLM:
    """The same function with `layers` layers: copies of middle layers are put in, their output matrices zero."""
    import copy

    import torch

    while len(model.model.layers) < layers:
        place = 2 * (len(model.model.layers) - model.config.num_hidden_layers) + 1
        new = copy.deepcopy(model.model.layers[place])
        torch.nn.init.zeros_(new.self_attn.o_proj.weight)
        torch.nn.init.zeros_(new.mlp.down_proj.weight)
        model.model.layers.insert(place + 1, new)
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = number
    model.config.num_hidden_layers = len(model.model.layers)
    model.config.layer_types = None
    return model


def encode(tokenizer: PreTrainedTokenizerFast, pieces: list[Piece]) -> tuple[list[int], list[int]]:
    """Token ids and labels of a document: bos + pieces + eos, labels only on learned pieces (and eos after one)."""
    tokens = [tokenizer.bos_token_id]
    labels = [IGNORED]
    for text, learned in pieces:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        tokens += ids
        labels += ids if learned else [IGNORED] * len(ids)
    return [*tokens, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id]


def collate(rows: list[tuple[list[int], list[int]]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids and labels [_B, _T]; _T a multiple of 32, because ever-changing shapes make memory grow."""
    import torch

    width = -(-max(len(tokens) for tokens, _ in rows) // 32) * 32
    ids = torch.full((len(rows), width), pad)
    labels = torch.full((len(rows), width), IGNORED)
    for i, (tokens, targets) in enumerate(rows):
        ids[i, : len(tokens)] = torch.tensor(tokens)
        labels[i, : len(targets)] = torch.tensor(targets)
    return ids, labels


def loss_on_answers(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor, bf16: bool) -> torch.Tensor:
    """Cross-entropy of the learned tokens; logits are computed at their positions only. Padding is on the right."""
    import torch

    wanted = labels[:, 1:].flatten()
    places = (wanted != IGNORED).nonzero()[:, 0]
    extra = (0, -len(places) % 512)  # few different shapes, see collate
    targets = torch.nn.functional.pad(wanted[places], extra, value=IGNORED)
    places = torch.nn.functional.pad(places, extra)
    with torch.autocast("cuda" if ids.is_cuda else "cpu", torch.bfloat16, enabled=bf16):
        hidden = model.model(ids).last_hidden_state[:, :-1].flatten(0, 1)
        logits = model.lm_head(hidden[places])
    return torch.nn.functional.cross_entropy(logits.float(), targets, ignore_index=IGNORED)


class Corpus:
    """Batches of documents of the present level; four at a time are sorted by length, so that little is padded."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, batch_size: int, seed: int, level: int) -> None:
        self.tokenizer, self.batch_size = tokenizer, batch_size
        self.rng = generator(seed, "llama-tiny", "corpus")
        self.level = level
        self.waiting: list[list[tuple[list[int], list[int]]]] = []

    def batch(self) -> list[tuple[list[int], list[int]]]:
        """The next batch of (ids, labels)."""
        if not self.waiting:
            rows = [encode(self.tokenizer, document(self.rng, LEVELS[self.level])) for _ in range(4 * self.batch_size)]
            rows.sort(key=lambda row: len(row[0]))
            parts = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
            self.waiting = [parts[i] for i in self.rng.permutation(len(parts))]
        return self.waiting.pop()


def train(
    args: argparse.Namespace, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> list[dict[str, float]]:
    """AdamW; warm-up over 100 steps, constant, linear to 10 % over the last two fifths. Returns the curve.

    The next level begins when LEARNED of its look-ups on fresh tables are right.
    """
    import torch

    steps: int = args.steps

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / 100, 0.1 + 2.25 * max(0.0, 1 - step / steps))

    optimiser = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    corpus = Corpus(tokenizer, args.batch_size, args.seed, args.level)
    curve: list[dict[str, float]] = []
    start, recent = time.monotonic(), []
    for step in range(1, args.steps + 1):
        ids, labels = collate(corpus.batch(), tokenizer.pad_token_id)
        loss = loss_on_answers(model, ids.to(model.device), labels.to(model.device), args.bf16)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        recent.append(loss.item())
        if step % args.report_every == 0 or step == args.steps:
            level, seconds = LEVELS[corpus.level], time.monotonic() - start
            lookups = measure_lookups(model, tokenizer, 100, args.seed + step, level)
            mean = sum(recent) / len(recent)
            curve.append({"step": step, "level": corpus.level, "loss": mean, "lookups": lookups, "seconds": seconds})
            recent = []
            print(json.dumps(curve[-1]), flush=True)
            save(args.out, model, tokenizer, args, curve)
            corpus.level += lookups >= LEARNED and corpus.level + 1 < len(LEVELS)
    return curve


def save(
    out: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace, curve: Any
) -> None:
    """bf16 weights in Hugging Face layout, the tokenizer, and training.json."""
    import copy

    import torch

    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    record = {
        "command": "python " + " ".join(sys.argv),
        "parameters": sum(p.numel() for p in model.parameters()),
        "settings": {name: str(value) for name, value in vars(args).items()},
        "threads": torch.get_num_threads(),
        "device": str(model.device),
        "curve": curve,
    }
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def measure_lookups(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int, seed: int, level: Level = MEASURED
) -> float:
    """Share of `count` single-cell look-ups in tables of a level whose greedy answer is the cell, exactly."""
    rng = generator(seed, "llama-tiny", "lookups")
    prompts, answers = [], []
    for _ in range(count):
        page, cells = _page(rng, level)
        item, year = list(cells)[int(rng.integers(len(cells)))]
        question = LOOKUPS[int(rng.integers(level.phrasings))].format(a=item, y=year)
        prompts.append(f"{page}\nquestion: {question}\nanswer:")
        answers.append(cells[item, year])
    return _share_exact(model, tokenizer, prompts, answers, max_new_tokens=12)


def measure_formulas(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int, seed: int) -> float:
    """Share of `count` formula questions on tables of MEASURED whose greedy answer is the formula, exactly."""
    rng = generator(seed, "llama-tiny", "formulas")
    prompts, answers = [], []
    for _ in range(count):
        page, cells = _page(rng, MEASURED)
        question, answer = formula_question(rng, cells)
        prompts.append(f"{INSTRUCTION}{page}\nquestion: {question}\nanswer:")
        answers.append(answer)
    return _share_exact(model, tokenizer, prompts, answers, max_new_tokens=96)


def _page(rng: np.random.Generator, level: Level) -> tuple[str, dict[tuple[str, str], str]]:
    """A table as text, and its cells."""
    from utils.finqa.prompts import table_head, table_sentences

    rows, cells = table(rng, *level.size(rng))
    return " ".join([table_head(rows), *table_sentences(rows)]).strip(), cells


def _share_exact(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[str],
    answers: list[str],
    max_new_tokens: int,
) -> float:
    """Share of the prompts whose greedy continuation, up to the line's end, is the answer."""
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    texts = _greedy(model, tokenizer, prompts, max_new_tokens, [*newline, tokenizer.eos_token_id])
    return float(np.mean([text.strip() == answer for text, answer in zip(texts, answers, strict=True)]))


def _greedy(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[str],
    max_new_tokens: int,
    stop_ids: list[int],
) -> list[str]:
    """What the model writes after each prompt."""
    from utils.models.tokens import encode_prompt
    from utils.rl.completions import Request
    from utils.rl.sampling import sample

    training = model.training
    model.eval()
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    outputs = sample(model, Request(encoded, 1, max_new_tokens, stop_ids, tokenizer.pad_token_id, uniforms=None))
    model.train(training)
    return [tokenizer.decode(group[0].tokens, skip_special_tokens=True) for group in outputs]


def measure(folder: Path, seed: int) -> None:
    """Print the figures that design and docs name: look-ups, formulas, and accuracy on finqa_mini before any SFT."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from utils.finqa.answers import read_answer
    from utils.finqa.mini import generate
    from utils.finqa.program import ProgramError, execute, same_answer
    from utils.finqa.prompts import render_prompt

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).float().eval()
    print(f"{folder}: {sum(p.numel() for p in model.parameters()):,} parameters, vocabulary {len(tokenizer)}")
    print(f"look-ups, exact, 1,000 tables of 5 rows and 3 years: {measure_lookups(model, tokenizer, 1000, seed):.3f}")
    print(f"formulas, exact, 1,000 tables of 5 rows and 3 years: {measure_formulas(model, tokenizer, 1000, seed):.3f}")
    records = generate(seed)["test"]
    texts = _greedy(model, tokenizer, [render_prompt(record) for record in records], 96, [tokenizer.eos_token_id])
    correct = 0
    for record, text in zip(records, texts, strict=True):
        program = read_answer(text).program
        try:
            correct += program is not None and same_answer(execute(program, record.table), record.exe_ans)
        except ProgramError:
            continue
    print(f"finqa_mini, execution accuracy before SFT, {len(records)} test records: {correct / len(records):.3f}")


def main() -> int:
    """Train, or measure the shipped model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "llama-tiny", help="model folder")
    parser.add_argument("--measure", action="store_true", help="print the figures of the model in --out and stop")
    parser.add_argument("--start", type=Path, help="continue from this model folder instead of a fresh model")
    parser.add_argument("--reports", type=Path, help="folder with FinQA's train.json: its pages shape the vocabulary")
    parser.add_argument("--layers", type=int, default=6, help="layers; a model in --start that has fewer gets more")
    parser.add_argument("--level", type=int, default=0, choices=range(len(LEVELS)), help="first level")
    parser.add_argument("--steps", type=int, default=3000, help="optimiser steps")
    parser.add_argument("--batch_size", type=int, default=16, help="documents per step")
    parser.add_argument("--learning_rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and corpus")
    parser.add_argument("--report_every", type=int, default=250, help="steps between measurements and saves")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast")
    args = parser.parse_args()
    if args.measure:
        measure(args.out, args.seed)
        return 0
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.start) if args.start else build_tokenizer(args.reports, args.seed)
    model = (
        AutoModelForCausalLM.from_pretrained(args.start).float() if args.start else build_model(tokenizer, args.layers)
    )
    train(args, deepen(model, args.layers).to(args.device).train(), tokenizer)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
