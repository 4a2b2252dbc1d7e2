"""Text to token ids and back: the only place, so that SFT, sampling, RL and evaluation read the same ids.

Plain style: a prompt is `bos + text`, a target `text + eos`. Chat style: see `utils.models.chat`; a tokenizer that
holds a chat template encodes in it, so that no caller needs to know the style. Text is data: a report that happens to
contain `<|end_of_text|>` is spelled out in ordinary tokens and never becomes the special token.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import UserError
from utils.models.chat import encode_turns, settle_template
from utils.models.hub import cannot_load, offline
from utils.settings import ModelSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAD_TOKENS = ("<|finetune_right_pad_id|>", "<|reserved_special_token_0|>", "<pad>", "[PAD]", "<unk>", "\u00ff")
"""Where a tokenizer names no padding, the first of these that it has and that does not end a text. The last one is how
byte-level vocabularies write the byte FF, which no UTF-8 text contains."""

ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|end_of_text|>", "<|endoftext|>")
"""Tokens by which models end a turn or a text; a policy made from one may still write each that it knows."""


def load_tokenizer(model: ModelSettings, checkpoint: Path | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer that was saved with the checkpoint, or else the base model's, settled for `model.prompt_style`.

    Its padding differs from its end of text, whatever the published tokenizer says. In chat style its end of text is
    the end of the model's turns; in plain style it has no chat template.

    Raises:
        UserError: no tokenizer there, hub not reachable, no end-of-text token, or chat style without a chat template.
    """
    from transformers import AutoTokenizer

    from utils.models.load import find_model

    own = checkpoint is not None and (checkpoint / "tokenizer_config.json").is_file()
    source = str(checkpoint) if own else find_model(model.name)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, local_files_only=offline(source))
    except (OSError, ValueError, ImportError) as error:
        raise cannot_load("tokenizer of", source, error) from error
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"tokenizer of {source!r} has no end-of-text token; expected a causal language model's tokenizer"
        )
    if model.prompt_style == "chat":
        settle_template(tokenizer, source)
    else:
        tokenizer.chat_template = None
    _set_padding(tokenizer)
    return tokenizer


def _set_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    ends = stop_ids(tokenizer)
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in ends:
        return
    known = [token for token in PAD_TOKENS if _id_of(tokenizer, token) not in (None, *ends)]
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


def encode_prompts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each prompt. Plain style: bos (where the tokenizer has one) + the text's ids."""
    if tokenizer.chat_template is not None:
        return encode_turns(tokenizer, texts)
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return [start + ids for ids in _ids(tokenizer, texts)]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """`encode_prompts` for one text."""
    return encode_prompts(tokenizer, [text])[0]


def encode_target(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The text's ids + eos, which in chat style is the end of the model's turn."""
    return _ids(tokenizer, [text])[0] + [tokenizer.eos_token_id]


def count_prompts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], chunk: int = 1000) -> list[int]:
    """The length of every prompt's ids, template included, tokenised `chunk` texts at a time."""
    return [
        len(ids)
        for first in range(0, len(texts), chunk)
        for ids in encode_prompts(tokenizer, texts[first : first + chunk])
    ]


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of a completion without special tokens, exactly as written (no tidying of spaces)."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a completion: eos and, where the vocabulary has them, the ends of a turn or text. Ascending."""
    ends = [_id_of(tokenizer, token) for token in ENDS]
    return sorted({tokenizer.eos_token_id, *(end for end in ends if end is not None)})
