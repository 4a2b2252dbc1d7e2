"""Text to token ids and back: the only place, so that SFT, sampling, RL and evaluation read the same ids.

Plain style: a prompt is `bos + text`, a target `text + eos`. Text is data: a report that happens to contain
`<|end_of_text|>` is spelled out in ordinary tokens and never becomes the special token.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import UserError
from utils.settings import ModelSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAD_TOKENS = ("<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<unk>")
"""Where a tokenizer names no padding, the first of these that it has and that does not end a text."""

END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>")
"""Tokens by which chat models end a turn; a policy made from one may still write them."""


def load_tokenizer(model: ModelSettings, checkpoint: Path | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer that was saved with the checkpoint, or else the base model's.

    Its padding differs from its end of text, whatever the published tokenizer says.

    Raises:
        UserError: no tokenizer there, hub not reachable, or no end-of-text token.
    """
    from transformers import AutoTokenizer

    from utils.models.load import find_model

    own = checkpoint is not None and (checkpoint / "tokenizer_config.json").is_file()
    source = str(checkpoint) if own else find_model(model.name)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, ImportError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"tokenizer of {source!r} cannot be loaded: {first_line[:200]} "
            "(a hub model needs network access and, where it is gated, `hf auth login`; or give a local folder)"
        ) from error
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"tokenizer of {source!r} has no end-of-text token; expected a causal language model's tokenizer"
        )
    _set_padding(tokenizer)
    return tokenizer


def _set_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    known = [token for token in PAD_TOKENS if _id_of(tokenizer, token) not in (None, tokenizer.eos_token_id)]
    # A tokenizer with one special token alone: any other id serves, since padding is always masked.
    other = 0 if tokenizer.eos_token_id != 0 else 1
    tokenizer.pad_token = known[0] if known else tokenizer.convert_ids_to_tokens(other)


def _id_of(tokenizer: PreTrainedTokenizerBase, token: str) -> int | None:
    """The id of a token that the vocabulary holds; None otherwise (never the id of `unk`)."""
    found = tokenizer.convert_tokens_to_ids(token)
    return found if found is not None and tokenizer.convert_ids_to_tokens(found) == token else None


def _ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    encoded = tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """bos (where the tokenizer has one) + the text's ids."""
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return start + _ids(tokenizer, [text])[0]


def encode_target(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The text's ids + eos."""
    return _ids(tokenizer, [text])[0] + [tokenizer.eos_token_id]


def count_prompts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], chunk: int = 1000) -> list[int]:
    """`len(encode_prompt(...))` of every text, tokenised `chunk` texts at a time."""
    start = 0 if tokenizer.bos_token_id is None else 1
    return [
        start + len(ids)
        for first in range(0, len(texts), chunk)
        for ids in _ids(tokenizer, texts[first : first + chunk])
    ]


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of a completion without special tokens, exactly as written (no tidying of spaces)."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a completion: eos and, where the vocabulary has them, the ends of a turn. Ascending."""
    ends = [_id_of(tokenizer, token) for token in END_OF_TURN]
    return sorted({tokenizer.eos_token_id, *(end for end in ends if end is not None)})
