"""Tokens: one way in, one way out, padding apart from the end, data never becomes a control token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from utils.errors import UserError
from utils.models.tokens import count_prompts, decode, encode_prompt, encode_target, load_tokenizer, stop_ids
from utils.settings import ModelSettings


def save_tokenizer(folder: Path, specials: list[str], **named: str) -> Path:
    """A byte-level BPE of single digits and few merges, with the given special tokens at ids 0, 1, ..."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    digits, bytes_ = pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(["the net revenue of 2008 is 731 ;"] * 3, trainer)
    PreTrainedTokenizerFast(tokenizer_object=inner, **named).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = save_tokenizer(
        tmp_path_factory.mktemp("tiny"), ["<pad>", "<s>", "</s>"], bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    return load_tokenizer(ModelSettings(name=str(folder)))


def test_prompt_and_target_have_one_bos_and_one_eos(tiny: Any) -> None:
    prompt, target = encode_prompt(tiny, "answer:"), encode_target(tiny, '{"program": "add(1, 2)"}')
    assert prompt[0] == tiny.bos_token_id == 1 and prompt.count(1) == 1 and 2 not in prompt
    assert target[-1] == tiny.eos_token_id == 2 and target.count(2) == 1 and 1 not in target
    assert encode_target(tiny, "") == [2]


def test_prompt_and_target_are_the_text(tiny: Any) -> None:
    text = "net  revenue , 5.0% ;\n caf\u00e9 \u201d"
    assert decode(tiny, encode_prompt(tiny, text)) == text == decode(tiny, encode_target(tiny, text))


def test_each_digit_is_a_token(tiny: Any) -> None:
    assert len(encode_target(tiny, "2008")) == 5


def test_control_tokens_in_data_are_text(tiny: Any) -> None:
    ids = encode_prompt(tiny, "the end </s> <s> <pad>")
    assert ids.count(1) == 1 and 2 not in ids and 0 not in ids
    assert decode(tiny, ids) == "the end </s> <s> <pad>"


def test_counts_are_lengths_over_chunks(tiny: Any) -> None:
    texts = ["a", "", "net revenue", "12"] * 3
    assert count_prompts(tiny, texts, chunk=5) == [len(encode_prompt(tiny, text)) for text in texts]


def test_stop_ids_know_the_ends_of_a_turn(tiny: Any, tmp_path: Path) -> None:
    assert stop_ids(tiny) == [2]
    folder = save_tokenizer(
        tmp_path, ["<|begin|>", "<|eot_id|>", "<|end_of_text|>"], bos_token="<|begin|>", eos_token="<|end_of_text|>"
    )
    chat = load_tokenizer(ModelSettings(name=str(folder)))
    assert stop_ids(chat) == [1, 2]
    assert chat.pad_token_id not in (1, 2)  # neither end may pad, although only one of them is eos


@pytest.mark.parametrize(
    ("specials", "named", "padding"),
    [
        (["<s>", "</s>", "<pad>"], {"eos_token": "</s>", "pad_token": "<pad>"}, "<pad>"),
        (["</s>", "<pad>"], {"eos_token": "</s>"}, "<pad>"),
        (["</s>", "<pad>"], {"eos_token": "</s>", "pad_token": "</s>"}, "<pad>"),
        (["<pad>", "<unk>"], {"eos_token": "<pad>"}, "<unk>"),
        (["<unk>", "</s>"], {"eos_token": "</s>", "unk_token": "<unk>"}, "<unk>"),
        (["</s>", "<|finetune_right_pad_id|>", "<pad>"], {"eos_token": "</s>"}, "<|finetune_right_pad_id|>"),
    ],
)
def test_padding_is_never_the_end(specials: list[str], named: dict[str, str], padding: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(ModelSettings(name=str(save_tokenizer(tmp_path, specials, **named))))
    assert tokenizer.pad_token == padding and tokenizer.pad_token_id != tokenizer.eos_token_id


def test_a_tokenizer_with_one_special_token_pads_with_what_no_text_contains(tmp_path: Path) -> None:
    """GPT-2's. Once saved, its padding is a special token: with an ordinary one that would vanish from answers."""
    folder = save_tokenizer(tmp_path, ["<|endoftext|>"], bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    tokenizer = load_tokenizer(ModelSettings(name=str(folder)))
    assert tokenizer.pad_token_id not in (0, None) and stop_ids(tokenizer) == [0]
    tokenizer.save_pretrained(str(tmp_path / "saved"))
    text = "".join(map(chr, range(32, 256)))
    for again in (tokenizer, load_tokenizer(ModelSettings(name=str(tmp_path / "saved")))):
        ids = encode_prompt(again, text)
        assert again.pad_token_id == tokenizer.pad_token_id not in ids and ids[0] == 0
        assert decode(again, ids) == text


def test_a_checkpoint_has_its_own_tokenizer(tmp_path: Path) -> None:
    base = save_tokenizer(tmp_path / "base", ["<s>", "</s>"], bos_token="<s>", eos_token="</s>")
    own = save_tokenizer(tmp_path / "own", ["</s>"], eos_token="</s>")
    settings = ModelSettings(name=str(base))
    assert load_tokenizer(settings, own).bos_token_id is None
    assert load_tokenizer(settings, tmp_path).bos_token_id == 0  # a folder without one: the base's


def test_what_cannot_be_loaded_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_tokenizer(ModelSettings(name="./nowhere"))
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        load_tokenizer(ModelSettings(name=str(tmp_path)))
    assert "\n" not in str(caught.value)
    endless = save_tokenizer(tmp_path / "endless", ["<s>"], bos_token="<s>")
    with pytest.raises(UserError, match="no end-of-text token"):
        load_tokenizer(ModelSettings(name=str(endless)))
