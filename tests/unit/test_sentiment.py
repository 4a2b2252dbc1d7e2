"""The sentiment task: what its reward pays, its made-up texts, its files, its verdicts."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.errors import UserError
from utils.rewards.cases import run_cases
from utils.rewards.sentiment import (
    COMPONENTS,
    FAILURES,
    PROFILES,
    SentimentSpec,
    load_spec,
    mood,
    override,
    read_continuation,
    score_text,
)
from utils.rewards.sentiment_corpus import cases
from utils.sentiment.records import find_problems, read_records, shared_problems, statistics
from utils.sentiment.texts import MOODS, SIZES, WITH_TEXT, WORDS, generate
from utils.settings import TaskSettings
from utils.tasks import make_task
from utils.tasks.base import Rollout
from utils.tasks.raw import Choices, raw_data
from utils.tasks.sentiment import SentimentExample, SentimentTask

STRICT, SEED = PROFILES["strict"], PROFILES["seed"]
SETTINGS = TaskSettings(name="sentiment", kind="sentiment", data_root="datasets/sentiment", max_prompt_tokens=64)
FILES = ("train", "dev", "test")


@pytest.mark.parametrize("spec", PROFILES.values(), ids=PROFILES)
def test_every_case_is_paid_as_worked_out_by_hand(spec: SentimentSpec) -> None:
    results = run_cases(cases(spec), lambda text: score_text(text, spec))
    assert [result for result in results if not result["passed"]] == []
    attacks = sum(result["expected"] is None for result in results)
    assert (attacks >= 20) == (spec is STRICT) and len(results) - attacks >= 14


def test_an_attack_that_is_paid_fails() -> None:
    """Without the gate the list of keywords would be worth a whole positive text."""
    listed = " good great wonderful excellent amazing happy best love ."
    assert score_text(listed, SEED).total == 1.0 and score_text(listed, STRICT).total < 0
    assert read_continuation(listed, STRICT).failure == "repetitive"


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        (" . ! ?", "empty"),
        (" very good indeed", "too_short"),
        (" good and the room was", "unfinished"),
        (" good the good the .", "repetitive"),
        (" good thank you thank you .", "repetitive"),
        (" great ksdjf sdkfj sdkf", "unfinished"),
        (" not very good at all .", "negative"),
        (" it isn\u2019t good at all .", "negative"),
        (" nothing good about it .", "negative"),
        (" good \u6211 \u6211 x y z 1 2 3 4 5 6 7 8 9 10 11 .", "too_long"),
        (" good" + " and so we went on to the town" * 3, "too_long"),
        (" it was good . it was good . it was good .", "repetitive"),
        (" long and the day was short .", "no_keyword"),
        (" good and the room was dirty .", "mixed"),
        (" good but the room was dirty and the waiter rude .", "negative"),
        (" good and the room was lovely .", ""),
    ],
)
def test_every_failure_has_its_text(text: str, failure: str) -> None:
    assert read_continuation(text, STRICT).failure == failure and (failure in FAILURES or not failure)
    assert (score_text(text, STRICT).total > 0) == (not failure)
    assert score_text(text, STRICT).reasons == ((failure,) if failure else ())


@given(st.one_of(st.text(), st.lists(st.sampled_from([*STRICT.positive, "and", ".", "not", "day"])).map(" ".join)))
def test_no_text_breaks_the_reward_and_only_positive_ones_are_paid(text: str) -> None:
    for spec in PROFILES.values():
        reward = score_text(text, spec)
        assert math.isfinite(reward.total) and set(reward.components) == set(COMPONENTS)
        assert -1.4 <= reward.total <= 1.5
    reading = read_continuation(text, STRICT)
    assert (score_text(text, STRICT).total > 0) == (not reading.failure)
    assert read_continuation(f" {text}\n", STRICT) == reading


def test_criteria_of_one_s_own_stand_in_the_file(tmp_path: Path) -> None:
    own = replace(STRICT, positive=("sunny",), negative=("rainy",), endings=("good bye .",), min_words=3)
    own.save(tmp_path / "reward_spec.yaml")
    back = load_spec(tmp_path / "reward_spec.yaml")
    assert back == own and back.hash == own.hash != STRICT.hash
    assert score_text(" sunny all day . good bye .", back).total == 1.2
    assert mood(" rainy all day .", back) == "negative" and mood(" rainy all day .", STRICT) == "neutral"
    assert override(STRICT, "ending=0, length=1").weights == {**STRICT.weights, "ending": 0.0, "length": 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "finqa"}, "kind is 'finqa', this task is of kind 'sentiment'"),
        ({"version": 2}, "version is 2, this scorer is version 1"),
        ({"profile": "strickt"}, "must be one of strict, seed; got 'strickt'; did you mean strict"),
        ({"postive": ["a"]}, "unknown key postive; expected .*did you mean positive"),
        ({"ending": 1}, "unknown key ending; .*goes below weights"),
        ({"weights": {"endin": 1}}, "unknown weight endin; .*did you mean ending"),
        ({"weights": {"ending": -1}}, "ending must be a finite number, 0 or more; got -1"),
        ({"weights": {"sentiment": 0}}, "weight sentiment is 0"),
        ({"weights": 3}, "weights must hold `name: number` lines, got 3"),
        ({"positive": ["two words"]}, "positive holds 'two words', expected single words in lower case"),
        ({"positive": [1]}, r"positive must be a list of texts with a word each, got \[1\]"),
        ({"positive": ["bad"]}, "bad is both positive and negative"),
        ({"min_words": 20}, "min_words 20 and max_words 16"),
        ({"max_words": 2.5}, "max_words must be a whole number, got 2.5"),
        ({"hash": "0"}, "hash is not this content's"),
        ({"weights": {"sentiment": 1e308, "ending": 1e308}}, "weights must have a finite sum"),
    ],
)
def test_mistakes_in_the_file_are_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "reward_spec.yaml"
    path.write_text(json.dumps({"version": 1, "kind": "sentiment", "profile": "strict"} | change))
    with pytest.raises(UserError, match=message) as caught:
        load_spec(path)
    assert "\n" not in str(caught.value) and "reward_spec.yaml" in str(caught.value)


def test_made_up_texts_are_what_they_should_be() -> None:
    """Equal for equal seeds, no prompt twice, moods in their shares, one subject of each kind unseen in training."""
    files = generate(0)
    assert generate(0) == files != generate(1)
    assert {name: len(records) for name, records in files.items()} == SIZES
    prompts = [record["prompt"] for records in files.values() for record in records]
    assert len(set(prompts)) == len(prompts)
    assert sum(bool(record["text"]) for record in files["train"]) == WITH_TEXT
    texts = [record["text"] for records in files.values() for record in records if record["text"]]
    moods = Counter(mood(f" {text}", STRICT) for text in texts)
    for name, share in MOODS.items():
        assert abs(moods[name] / len(texts) - share) < 4 * math.sqrt(share * (1 - share) / len(texts)), moods
    assert all(read_continuation(f" {text}", STRICT).well_formed for text in texts)
    seen = {record["subject"] for record in files["train"]}
    unseen = {record["subject"] for record in files["test"]} - seen
    assert len(unseen) == 5 and 0.2 < sum(record["subject"] in unseen for record in files["test"]) / 300 < 0.6
    assert set(WORDS["positive"]) <= set(STRICT.positive) and set(WORDS["negative"]) <= set(STRICT.negative)


def write(folder: Path, name: str, rows: list[Any]) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "expected a JSON list of objects, each with an id and a prompt"),
        ([3], "record 0: expected an object with id and prompt, got '3'"),
        ([{"id": "a"}], "record 0, key 'prompt': expected text, got 'None'"),
        ([{"id": "a", "prompt": "p", "text": 1}], "record 0, key 'text': expected text, got '1'"),
        ([{"id": "a", "prompt": "p\ud800"}], "record 0, key 'prompt': half a surrogate pair is not text"),
        ([{"id": "a", "prompt": "p"}, {"id": "a", "prompt": "q"}], "id 'a' occurs 2 times"),
    ],
)
def test_damaged_raw_files_are_one_line(rows: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_records(write(tmp_path, "train", rows))
    assert "\n" not in str(caught.value) and "train.json" in str(caught.value)


def test_what_stage_00_counts(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "prompt": "the soup was", "text": "good and plain .", "subject_kind": "food"},
        {"id": "b", "prompt": "The  soup was", "text": "bad and plain ."},
        {"id": "c", "prompt": " "},
    ]
    records = read_records(write(tmp_path, "train", rows))
    problems = find_problems(records, "train.json")
    assert [(row["id"], row["reason"], row["malformed"]) for row in problems] == [
        ("b", "repeats the prompt of record 0", False), ("c", "no prompt", True)
    ]  # fmt: skip
    facts = statistics(records)
    assert (facts["records"], facts["malformed"], facts["without_text"]) == (3, 1, 1)
    assert facts["moods"] == {"negative": 1, "positive": 1} and facts["subject_kinds"] == {"food": 1, "unknown": 2}
    (shared,) = shared_problems({"train": records[:1], "test": records[1:2]}, {"train": "t.json", "test": "e.json"})
    assert (shared["file"], shared["id"], shared["reason"]) == ("e.json", "b", "has the prompt of a record in t.json")


def prepared(raw: dict[str, list[dict[str, str]]], folder: Path, **choices: Any) -> Any:
    data = raw_data("sentiment")
    splits = {name.replace("dev", "val"): data.read(write(folder, name, rows)) for name, rows in raw.items()}
    chosen = Choices(**{"split_proportions": (), "table_format": "sentences", "most": {}} | choices)
    return data.prepare(splits, SETTINGS, chosen, lambda texts: [len(text.split()) for text in texts])


RAW = {name: [{"id": f"{name}{i}", "prompt": f"{name} {i} was"} for i in range(4)] for name in FILES}


def test_rows_say_which_subjects_training_has(tmp_path: Path) -> None:
    raw = {name: [{**row, "subject": "soup", "text": "good ."} for row in rows] for name, rows in RAW.items()}
    raw["test"][0]["subject"] = "bread"
    del raw["test"][1]["subject"]
    made = prepared(raw, tmp_path)
    assert [row["seen"] for row in made.rows["test"]] == ["not in training", "unknown", "in training", "in training"]
    assert made.rows["train"][0]["target_text"] == " good ." and made.counts["train"]["with_text"] == 4
    assert prepared(RAW, tmp_path).rows["train"][0]["target_text"] is None and made.warnings == []


def test_what_cannot_be_used_is_counted_and_refused(tmp_path: Path) -> None:
    raw = {**RAW, "train": [*RAW["train"], {"id": "x", "prompt": ""}, {"id": "y", "prompt": "so " * 65}]}
    made = prepared(raw, tmp_path)
    assert (
        len(made.rows["train"]) == 4 and "2 records left out (1 without a prompt, 1 with one longer" in made.warnings[0]
    )
    with pytest.raises(UserError, match="val: none of 1 records is usable"):
        prepared({**RAW, "dev": [{"id": "x", "prompt": ""}]}, tmp_path)
    with pytest.raises(UserError, match="--table_format markdown: prompts of task sentiment hold no page"):
        prepared(RAW, tmp_path, table_format="markdown")
    twice = {**RAW, "test": [*RAW["test"], {"id": "z", "prompt": "train 0 was"}]}
    with pytest.raises(UserError, match="record z of test has the prompt of a record in train; --split_proportions"):
        prepared(twice, tmp_path)
    divided = prepared(twice, tmp_path, split_proportions=(0.5, 0.25, 0.25)).rows
    prompts = [row["input_text"] for rows in divided.values() for row in rows]
    assert [len(rows) for rows in divided.values()] == [6, 3, 3] and len(set(prompts)) == 12
    longer = {**twice, "test": [*RAW["test"], {"id": "z", "prompt": "Train  0 was", "text": "good ."}]}
    made = prepared(longer, tmp_path, split_proportions=(0.5, 0.25, 0.25))
    assert made.warnings[0] == "1 records with the prompt of another left out"
    assert "z" in {row["id"] for rows in made.rows.values() for row in rows}  # it has a text
    same = {**RAW, "test": [{"id": "train0", "prompt": "new"}]}
    with pytest.raises(UserError, match="--split_proportions: id 'train0' occurs in 2 files"):
        prepared(same, tmp_path, split_proportions=(0.5, 0.25, 0.25))
    with pytest.raises(UserError, match="--split_proportions: 12 prompts leave none for val"):
        prepared(RAW, tmp_path, split_proportions=(0.98, 0.01, 0.01))


def example(name: str = "a", text: str | None = " good and plain .") -> SentimentExample:
    return SentimentExample(id=name, input_text="the soup was", target_text=text, subject_kind="food")


def test_the_task_by_hand(tmp_path: Path) -> None:
    task = make_task(SETTINGS, None)
    assert isinstance(task, SentimentTask) and task.spec is STRICT
    text = " good and the room was lovely . thank you ."
    (reward,) = task.score([Rollout(example(), 0, text, False, 9)])
    assert reward.total == 1.2 and reward.components["ending"] == 0.2
    verdict = task.judge(example(), text)
    assert verdict.correct and verdict.preferred_ending and not verdict.negative and verdict.result == "+1.00"
    assert task.groups(example()) == {"opening": "unknown", "subject_kind": "food", "seen": "unknown"}
    assert task.parsed(" good") is None and task.parsed(text) == text.strip()
    assert task.majority([example(), example("b", " x"), example("c", " x"), example("d", None)]) == " x"
    right = example("e", " good and the room was lovely .")
    assert task.majority([right, example("b", " x"), example("c", " x")]) == right.target_text
    other = SentimentTask(replace(STRICT, positive=("sunny",)))
    assert other.gold(right) != task.gold(right) == SentimentTask(override(STRICT, "ending=0")).gold(right)
    with pytest.raises(UserError, match="no training record has a text"):
        task.majority([example("d", None)])
    with pytest.raises(UserError, match="is not the one this run began with"):
        make_task(replace(SETTINGS, reward_profile="seed"), None).load_state_dict(task.state_dict())
    SEED.save(tmp_path / "reward_spec.yaml")
    with pytest.raises(UserError, match="profile seed, but task.reward_profile is strict"):
        make_task(SETTINGS, tmp_path / "reward_spec.yaml")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "a", "input_text": "p"}, ":1, id 'a': key 'target_text' is missing"),
        ({"id": "a", "input_text": 3, "target_text": None}, ":1, id 'a', key 'input_text': expected string, got 3"),
        ({"id": "a", "input_text": "p", "target_text": 3}, "key 'target_text': expected string or null, got 3"),
    ],
)
def test_rows_off_the_schema_are_one_line(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=message):
        make_task(SETTINGS, None).load(path)
