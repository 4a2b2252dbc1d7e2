"""Chat style: the prompt is a user's turn in the model's own template, the target ends as its turns end.

The template and the end of a turn are settled once, on the tokenizer, when it is loaded; it is saved with every
checkpoint as it is then. So all stages, and whoever serves the checkpoint later, read the same ids on any day.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIXED_DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}\n"
"""Stands before a template that asks for today's date (Llama 3.1 and later), which would make prompts differ from day
to day. The date is the one that Llama 3's template itself takes where there is no clock."""

_ANSWER = "\u2042 answer \u2042"


def settle_template(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Fix the template's date and make the token that ends the model's turns the tokenizer's end of text.

    Raises:
        UserError: `source`, for the message, has no chat template or one that cannot render a question and an answer.
    """
    try:
        template = tokenizer.get_chat_template()
    except ValueError:
        raise UserError(
            f"tokenizer of {source!r} has no chat template, but model.prompt_style is chat; "
            "use prompt_style: plain, or a model that was trained to chat (-Instruct, -Chat)"
        ) from None
    if "strftime_now" in template and not template.startswith(FIXED_DATE):
        template = FIXED_DATE + template
    tokenizer.chat_template = template
    try:
        end = _end_of_turn(tokenizer)
    except Exception as error:  # a template is a program written by others: it may raise anything
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"chat template of {source!r}: {first_line[:200]}; use prompt_style: plain") from error
    if end is not None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)


def encode_turns(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text as a user's turn, up to where the model's turn begins; exactly one bos, if there is a bos.

    Without control tokens in the text these are the ids of `apply_chat_template`. Control tokens in the text are
    spelled out, as in plain style.
    """
    control = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    unsafe = [any(token in text for token in control) for text in texts]
    rows: dict[int, list[int]] = {}
    for kind in (False, True):  # the library's safe way costs several times more, so only where it is needed
        chosen = [i for i, found in enumerate(unsafe) if found is kind]
        if chosen:
            rows.update(zip(chosen, _apply(tokenizer, [texts[i] for i in chosen], kind), strict=True))
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return [rows[i] if rows[i][: len(bos)] == bos else bos + rows[i] for i in range(len(texts))]


def _apply(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], unsafe: bool) -> list[list[int]]:
    turns = [[{"role": "user", "content": text}] for text in texts]
    options: dict[str, Any] = {"verbose": False, "split_special_tokens": False}
    ids: list[list[int]] = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_dict=False, sanitize_control_tokens=unsafe, tokenizer_kwargs=options
    )
    return ids


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The first control token that the template writes after an answer; None where it writes none."""
    chat = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _ANSWER}]
    _, answered, tail = tokenizer.apply_chat_template(chat, tokenize=False).rpartition(_ANSWER)
    if not answered:
        raise ValueError("the answer does not stand in what it renders")
    control = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = tokenizer(tail, add_special_tokens=False, split_special_tokens=False)["input_ids"]
    return next((i for i in ids if i in control), None)
