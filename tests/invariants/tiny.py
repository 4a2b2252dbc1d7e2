"""Tiny random models and prompts of the tests of RL."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from utils.models.attention import attention_in_blocks
from utils.models.linear import use_wide_products
from utils.tasks.per_answer import PerAnswer

MODELS = ("llama", "gpt2", "llama-lora", "gpt2-lora")
VOCAB = 64


def tiny_model(kind: str, seed: int = 0, scale: float = 0.25) -> Any:
    """Two layers of width 32, weights large enough (`scale`) that attention is not uniform and logits differ.

    `-lora` adds an adapter whose B matrices are not zero; `mistral` has a sliding window of 4 tokens.
    """
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        MistralConfig,
        MistralForCausalLM,
    )

    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "initializer_range": scale, "tie_word_embeddings": True,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    name, _, adapter = kind.partition("-")
    model: Any
    if name == "llama":
        model = LlamaForCausalLM(LlamaConfig(**shape))
    elif name == "mistral":
        model = MistralForCausalLM(MistralConfig(**shape, sliding_window=4))
    else:
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=scale,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2, pad_token_id=0,
            )
        )  # fmt: skip
    model.set_attn_implementation(attention_in_blocks())  # as load_model does, and
    use_wide_products(model)
    return with_adapter(model, name) if adapter else model.eval()


def with_adapter(model: Any, name: str) -> Any:
    """A LoRA adapter `default` of rank 4 with random A and B."""
    from peft import LoraConfig, get_peft_model

    targets = ["c_attn"] if name == "gpt2" else ["q_proj", "v_proj"]
    config = LoraConfig(
        r=4, lora_alpha=8, lora_dropout=0.1, target_modules=targets,
        fan_in_fan_out=name == "gpt2", task_type="CAUSAL_LM",
    )  # fmt: skip
    adapted = get_peft_model(model, config)
    for parameter_name, parameter in adapted.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.1)
    return adapted.eval()


def tiny_prompts(count: int, seed: int = 0, longest: int = 20) -> list[list[int]]:
    """Prompts of random lengths and tokens (3 to 62: no special ones)."""
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCAB - 1, size=rng.integers(1, longest + 1)).tolist() for _ in range(count)]


def tiny_completions(prompts: list[list[int]], seed: int = 0, largest_group: int = 8) -> list[list[list[int]]]:
    """Groups of 1 to `largest_group` completions of 1 to 12 random tokens."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, largest_group + 1, size=len(prompts))
    return [[rng.integers(3, VOCAB - 1, size=rng.integers(1, 13)).tolist() for _ in range(size)] for size in sizes]


LETTERS = "abcdABCD.?"


def letter_tokenizer() -> Any:
    """One token per letter of LETTERS; <pad> 0, <s> 1, </s> 2, <unk> 3."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["<pad>", "<s>", "</s>", "<unk>", *LETTERS]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        padding_side="left",
    )  # fmt: skip


def save_letter_model(folder: Any, seed: int = 0) -> None:
    """A random one-layer Llama over LETTERS with its tokenizer, as a checkpoint folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    tokenizer = letter_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.1, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class LetterTask(PerAnswer):
    """Answer the last letter of the prompt in upper case: `dab?` asks for nothing, `dab` for `B`.

    The reward is 1 for the right first letter, 0 otherwise. Serves the Task protocol; files hold one prompt per row.
    """

    kind = "finqa"

    def load(self, path: Any) -> list[Any]:
        from utils.files import read_jsonl
        from utils.tasks.base import Example

        rows = read_jsonl(path)
        return [Example(id=row["id"], input_text=row["text"]) for row in rows]

    def prompt(self, example: Any) -> str:
        return str(example.input_text)

    def target(self, example: Any) -> str:
        return str(example.input_text[-1].upper())

    def score(self, rollouts: Any) -> list[Any]:
        from utils.tasks.base import Reward

        totals = [float(rollout.text[:1] == rollout.example.input_text[-1].upper()) for rollout in rollouts]
        return [Reward(total, {"exact": total}) for total in totals]

    def judge(self, example: Any, text: str) -> Any:
        from utils.finqa.examples import FinQAJudgement

        right = text[:1] == example.input_text[-1].upper()
        failure = "" if right else "wrong"
        return FinQAJudgement(
            id=example.id, correct=right, program_correct=right, exact_match=right, numeric_1pct=right,
            program_valid=right, format_valid=bool(text), failure=failure, reward=float(right), result=text,
        )  # fmt: skip

    def judge_constant(self, answer: Any) -> Any:
        return self.judge(answer.example, answer.text)

    def assess(self, answer: Any, judgement: Any) -> dict[str, bool]:
        return {}

    def groups(self, example: Any) -> dict[str, str]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        assert not state


def letter_prompts(count: int, seed: int) -> list[dict[str, str]]:
    """Rows of three or four letters a to d."""
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(list("abcd"), size=rng.integers(3, 5))) for _ in range(count)]
    return [{"id": f"{seed}-{i}", "text": text} for i, text in enumerate(texts)]


def letter_pairs(count: int, held_out: int) -> list[dict[str, str]]:
    """Rows of pairs.jsonl, each prompt once: the right letter and another. The last `held_out` pairs are held out."""
    rows = []
    for i, prompt in enumerate(dict.fromkeys(row["text"] for row in letter_prompts(4 * (count + held_out), seed=1))):
        right = prompt[-1].upper()
        wrong = [letter for letter in "ABCD" if letter != right][i % 3]
        split = "train" if i < count else "held_out"
        rows.append({"id": str(i), "prompt": prompt, "chosen": right, "rejected": wrong, "split": split})
    assert len(rows) >= count + held_out
    return rows[: count + held_out]


class VariedTask(LetterTask):
    """Pays every text 1 to 2, as its letters have it: no group is unanimous. Judges as the letter task does."""

    def score(self, rollouts: Any) -> list[Any]:
        from utils.tasks.base import Reward

        totals = [1 + sum(map(ord, rollout.text)) % 7 / 7 for rollout in rollouts]
        return [Reward(total, {"exact": total}) for total in totals]
