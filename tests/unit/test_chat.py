"""Chat style: the ids of the model's own template, on any day, with one bos, ending as the model's turns end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.invariants.chat import LLAMA3, TINYLLAMA, save_chat_tokenizer
from utils.errors import UserError
from utils.models.chat import FIXED_DATE
from utils.models.tokens import (
    count_prompts,
    decode,
    encode_prompt,
    encode_prompts,
    encode_target,
    load_tokenizer,
    stop_ids,
)
from utils.settings import ModelSettings

KINDS = ("llama3", "tinyllama")
PAGE = "net revenue of 2008 is 731 ;\nquestion: how much ?\nanswer:"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: save_chat_tokenizer(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


def load(folder: Path, style: str = "chat") -> Any:
    return load_tokenizer(ModelSettings(name=str(folder), prompt_style=style))


def spelled(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def test_a_prompt_is_the_users_turn_and_the_head_of_the_models(folders: dict[str, Path]) -> None:
    llama = load(folders["llama3"])
    assert spelled(llama, encode_prompt(llama, PAGE)) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        f"{PAGE}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    tiny = load(folders["tinyllama"])
    # the spaces are the sentence pieces' own, before every text between control tokens
    assert spelled(tiny, encode_prompt(tiny, PAGE)) == f"<s> <|user|>\n{PAGE}</s> \n<|assistant|>\n"


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_the_templates_own_with_one_bos(kind: str, folders: dict[str, Path]) -> None:
    """What a server computes that knows only the checkpoint's files; TinyLlama's template leaves the bos to others."""
    from transformers import AutoTokenizer

    load(folders[kind]).save_pretrained(str(folders[kind] / "saved"))
    server = AutoTokenizer.from_pretrained(str(folders[kind] / "saved"))
    ids = encode_prompt(load(folders[kind]), PAGE)
    turn = [{"role": "user", "content": PAGE}]
    expected = server.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
    assert ids == (expected if kind == "llama3" else [server.bos_token_id, *expected])
    assert ids.count(server.bos_token_id) == 1


def test_the_date_stands_still(folders: dict[str, Path], tmp_path: Path) -> None:
    assert "strftime_now" in LLAMA3 and "strftime_now" not in TINYLLAMA
    tokenizer = load(folders["llama3"])
    tokenizer.save_pretrained(str(tmp_path))
    again = load(tmp_path)
    assert again.chat_template == tokenizer.chat_template == FIXED_DATE + LLAMA3  # settled once
    # a template that asks without a way out is answered, too
    save_chat_tokenizer(tmp_path / "asks", "llama3", "{{ strftime_now('%Y') }} {{ messages[-1].content }}<|eot_id|>")
    asks = load(tmp_path / "asks")
    assert decode(asks, encode_prompt(asks, "hello")) == "26 Jul 2024 hello"


@pytest.mark.parametrize(("kind", "end"), [("llama3", "<|eot_id|>"), ("tinyllama", "</s>")])
def test_a_target_ends_as_the_models_turns_end(kind: str, end: str, folders: dict[str, Path]) -> None:
    """The tokenizer of kind llama3 names <|end_of_text|>, as some published ones do: the template knows better."""
    tokenizer = load(folders[kind])
    target = encode_target(tokenizer, '{"program": "add(1, 2)"}')
    assert tokenizer.convert_ids_to_tokens(target[-1]) == end and target[-1] in stop_ids(tokenizer)
    ends = {"llama3": ["<|end_of_text|>", "<|eot_id|>"], "tinyllama": ["</s>"]}[kind]
    assert stop_ids(tokenizer) == sorted(tokenizer.convert_tokens_to_ids(ends))
    assert tokenizer.pad_token_id not in stop_ids(tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_control_tokens_in_data_are_text(kind: str, folders: dict[str, Path]) -> None:
    tokenizer = load(folders[kind])
    control = [token for token in tokenizer.added_tokens_decoder.values() if token.special]
    page = "we paid " + " ".join(token.content for token in control) + " 12"
    counted = {i: encode_prompt(tokenizer, "x").count(i) for i in tokenizer.added_tokens_decoder}
    clean, unsafe = encode_prompts(tokenizer, ["x", page])
    assert {i: unsafe.count(i) for i in counted} == counted
    assert clean == encode_prompt(tokenizer, "x") and page in spelled(tokenizer, unsafe)


@pytest.mark.parametrize("kind", KINDS)
def test_counts_hold_the_template(kind: str, folders: dict[str, Path]) -> None:
    """So the budget of stage 01 is kept by what the model reads."""
    tokenizer, plain = load(folders[kind]), load(folders[kind], "plain")
    texts = ["", PAGE, "a </s> <|eot_id|>", "12"] * 2
    counts = count_prompts(tokenizer, texts, chunk=3)
    assert counts == [len(encode_prompt(tokenizer, text)) for text in texts]
    frame = counts[3] - count_prompts(plain, ["12"])[0]
    assert frame > 5 and counts[1] - count_prompts(plain, [PAGE])[0] == frame


@pytest.mark.parametrize("kind", KINDS)
def test_plain_style_knows_no_template(kind: str, folders: dict[str, Path]) -> None:
    tokenizer = load(folders[kind], "plain")
    assert tokenizer.chat_template is None
    ids = encode_prompt(tokenizer, PAGE)
    assert ids[0] == tokenizer.bos_token_id and decode(tokenizer, ids[1:]) == PAGE


def test_what_has_no_usable_template_is_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    load(folders["llama3"], "plain").save_pretrained(str(tmp_path / "plain"))
    save_chat_tokenizer(tmp_path / "mute", "llama3", "{{ messages[0].content }}")
    save_chat_tokenizer(tmp_path / "strict", "llama3", "{{ raise_exception('needs a system turn') }}")
    save_chat_tokenizer(tmp_path / "broken", "llama3", "{% for %}")
    for name, reason in {
        "plain": "no chat template", "mute": "the answer does not stand", "strict": "needs a system turn",
        "broken": "Expected an expression",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=reason) as caught:
            load(tmp_path / name)
        assert "prompt_style: plain" in str(caught.value) and "\n" not in str(caught.value)
