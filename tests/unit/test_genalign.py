"""The genalign task: golden data, prompts, the classifier and its credits, distances, what sets are paid."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from utils.errors import UserError
from utils.files import write_jsonl
from utils.genalign.classifier import L2, features, golden_loss, train
from utils.genalign.prompts import STRATEGIES, choose_examples, make_rows, render, text_of
from utils.genalign.quality import balance, copies, distances, distinct, repeats, silhouette
from utils.genalign.records import PARTS, SHARES, Golden, divide, find_problems, read_golden, statistics, usable
from utils.genalign.texts import PER_LABEL, TOPICS, generate
from utils.rewards.genalign import PROFILES, GenAlignSpec, learn, load_spec, override
from utils.rewards.genalign_corpus import GOLDEN, GOOD, LABELS, cases, pay, run
from utils.seeds import generator
from utils.settings import TaskSettings
from utils.tasks import make_task
from utils.tasks.base import Rollout
from utils.tasks.genalign import GenAlignExample, GenAlignTask
from utils.tasks.raw import Choices, raw_data

STRICT = PROFILES["strict"]
SETTINGS = TaskSettings(name="genalign", kind="genalign", data_root="datasets/genalign", max_prompt_tokens=320)
TEXTS = [Golden(f"line-{i + 2}", row["text"], row["label"]) for i, row in enumerate(generate(0))]


def arrays(texts: list[Golden]) -> tuple[Any, np.ndarray[Any, np.dtype[np.int64]]]:
    labels = sorted(TOPICS)
    return features([one.text for one in texts]), np.array([labels.index(one.label) for one in texts])


# --- golden data -----------------------------------------------------------------------------------------------------


def test_made_up_texts_are_different_and_balanced() -> None:
    assert generate(0) == generate(0) != generate(1)
    texts = [row["text"] for row in generate(0)]
    assert len(set(texts)) == len(texts) == 4 * PER_LABEL
    assert Counter(row["label"] for row in generate(0)) == dict.fromkeys(TOPICS, PER_LABEL)


def test_parts_are_disjoint_and_of_each_label_about_their_share() -> None:
    parts = divide(TEXTS, SHARES, seed=3)
    assert list(parts) == list(PARTS) and {len(parts[part]) for part in PARTS} == {240, 300, 420}
    ids = [one.id for part in parts.values() for one in part]
    assert len(ids) == len(set(ids)) == len(TEXTS)
    for part, share in zip(PARTS, SHARES, strict=True):
        assert set(Counter(one.label for one in parts[part]).values()) == {round(share * PER_LABEL)}
    assert divide(TEXTS, SHARES, seed=3) == parts != divide(TEXTS, SHARES, seed=4)
    for shares in (SHARES, (0.4, 0.4, 0.1, 0.1), (0.45, 0.45, 0.05, 0.05)):
        least = divide([one for label in TOPICS for one in [t for t in TEXTS if t.label == label][:4]], shares, seed=0)
        assert all(len(part) == 4 for part in least.values())
    few = divide(TEXTS[:40], SHARES, seed=0)
    assert all({one.label for one in part} == set(TOPICS) for part in few.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text\na\n", "golden.csv:1: column 'label' is missing; expected a header with text and label"),
        ("", "golden.csv:1: column 'text' is missing"),
        ("text,label\n", "no line below the header"),
        ("text,label\nhello, world,sports\n", "golden.csv:2: expected 2 columns as in the header; a text with a comma"),
        ("text,label\nhello\n", "golden.csv:2: expected 2 columns"),
        ("text,label" + "x" * 140000 + "\na,b\n", "golden.csv:0: field larger than field limit"),
    ],
)
def test_damaged_golden_files_are_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "golden.csv").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_golden(tmp_path / "golden.csv")
    assert "\n" not in str(caught.value)


def test_what_stage_00_counts(tmp_path: Path) -> None:
    lines = ["text,label,source", '"tea, cold",drink,a', "tea  , drink ,b", "Tea,tool,c", ",drink,d", "saw,,e"]
    (tmp_path / "golden.csv").write_text("\n".join(lines) + "\n")
    records = read_golden(tmp_path / "golden.csv")
    assert records[0].text == "tea, cold" and records[1] == Golden("line-3", "tea", "drink")
    problems = [(row["index"], row["reason"], row["malformed"]) for row in find_problems(records, "golden.csv")]
    assert problems == [(2, "contradicts record 1", False), (3, "no text", True), (4, "no label", True)]
    assert [one.text for one in usable(records)] == ["tea, cold", "tea"]
    assert statistics(records)["labels"] == {"drink": 3, "tool": 1} and statistics(records)["malformed"] == 2
    with pytest.raises(UserError, match="the golden data have 1 label"):
        divide(usable(records), SHARES, 0)
    with pytest.raises(UserError, match="label 'drink' has 2 texts; expected 4"):
        divide([*usable(records), Golden("line-9", "saw", "tool")], SHARES, 0)


# --- prompts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_examples_are_different_and_repeatable(strategy: str) -> None:
    def chosen(seed: int) -> list[Golden]:
        return choose_examples(TEXTS[:100], "sports", 6, strategy, generator(seed, "test"))

    assert chosen(1) == chosen(1) != chosen(2)
    assert len({one.id for one in chosen(1)}) == 6
    assert len(choose_examples(TEXTS[:3], "sports", 6, strategy, generator(0, "test"))) == 3
    assert choose_examples(TEXTS[:3], "sports", 0, strategy, generator(0, "test")) == []


def test_balanced_shows_each_label_and_the_asked_one_last() -> None:
    for seed in range(5):
        labels = [one.label for one in choose_examples(TEXTS, "world", 4, "balanced", generator(seed, "test"))]
        assert set(labels) == set(TOPICS) and labels[-1] == "world"
    eight = [one.label for one in choose_examples(TEXTS, "world", 8, "balanced", generator(0, "test"))]
    assert set(Counter(eight).values()) == {2}


def test_diverse_takes_what_is_unlike() -> None:
    pool = [Golden(str(i), text, "a") for i, text in enumerate(["red car", "red car fast", "blue sky", "red car slow"])]
    for seed in range(6):
        texts = {one.text for one in choose_examples(pool, "a", 2, "diverse", generator(seed, "test"))}
        assert "blue sky" in texts


def test_prompts_hide_their_target() -> None:
    pool, labels = TEXTS[:60], sorted(TOPICS)
    rows = make_rows("train", 40, pool, labels, 4, "random", generator(0, "test"))
    assert Counter(row["label"] for row in rows) == dict.fromkeys(labels, 10)
    for row in rows:
        assert row["input_text"].endswith(f"label: {row['label']}\ntext:")
        assert row["target_text"].strip() not in row["input_text"]
        assert {one.label for one in pool if one.text == row["target_text"].strip()} == {row["label"]}
    assert set(Counter(row["target_text"] for row in rows).values()) <= {1, 2}  # each text of a label in turn
    assert render([], "sports") == "label: sports\ntext:"
    assert text_of(" a  b \nlabel: world") == "a b" and text_of("\n\n x") == "x" and text_of(" \n") == ""


# --- classifier ------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_log_probs() -> None:
    """A sure and right classifier has no loss, one that knows nothing log(labels): no softmax of a softmax."""
    sure = np.log(np.array([[1 - 2e-12, 1e-12, 1e-12], [1e-12, 1 - 2e-12, 1e-12]]))
    assert golden_loss(sure, np.array([0, 1])) == pytest.approx(0, abs=1e-9)
    assert golden_loss(np.full((4, 3), -math.log(3)), np.array([0, 1, 2, 0])) == pytest.approx(math.log(3))


def test_real_texts_teach_and_no_text_teaches_nothing() -> None:
    parts = divide(TEXTS, SHARES, 0)
    (x, y), (gold, right) = arrays(parts["pool"]), arrays(parts["test"])
    learned = train(x, y, 4)
    assert (learned.log_probs(gold).argmax(axis=1) == right).mean() > 0.95
    again = train(x, y, 4)
    assert (again.weights == learned.weights).all()
    empty = train(features(["", ""]), np.array([0, 1]), 4)
    assert golden_loss(empty.log_probs(gold), right) == pytest.approx(math.log(4))
    assert (empty.credits(gold, right) == 0).all()


def test_weights_are_where_the_gradient_vanishes() -> None:
    x, y = arrays(TEXTS[:80])
    learned = train(x, y, 4)
    probabilities = np.exp(learned.log_probs(x))
    probabilities[np.arange(len(y)), y] -= 1
    gradient = np.asarray(learned.x.T @ probabilities) + L2 * learned.weights
    assert np.abs(gradient).max() < 1e-4


def test_credit_is_what_leaving_a_text_out_costs() -> None:
    """Against training again without each of 40 texts, some of them with a wrong label."""
    (x, y), (gold, right) = arrays(TEXTS[:120]), arrays(TEXTS[400:600])
    y[:6] = (y[:6] + 1) % 4
    learned = train(x, y, 4)
    credit = learned.credits(gold, right)[:40]
    before = golden_loss(learned.log_probs(gold), right)
    exact = []
    for i in range(40):
        kept = np.arange(len(y)) != i
        exact.append(golden_loss(train(x[kept], y[kept], 4).log_probs(gold), right) - before)
    assert np.corrcoef(credit, exact)[0, 1] > 0.98
    assert np.allclose(credit, exact, atol=0.5 * np.abs(exact).max())
    assert (credit[:6] < 0).all() and credit[:6].max() < np.median(credit[6:])


# --- quality ---------------------------------------------------------------------------------------------------------


def test_distances_by_hand() -> None:
    """Three texts: two of one label share their one word, the third has another word and label."""
    x, y = features(["tea", "tea", "saw"]), np.array([0, 0, 1])
    inter, intra = distances(x, y)
    assert inter.tolist() == pytest.approx([1, 1, 1]) and intra.tolist() == pytest.approx([0, 0, 0], abs=1e-12)
    inter, intra = distances(features(["tea milk", "tea", "milk"]), np.array([0, 0, 0]))
    assert inter.tolist() == [0, 0, 0]  # there is no other label
    # the first lies between the others' words; the second is (1, 0), the rest of its label (1, 1) / sqrt(2) + (0, 1)
    rest = 1 / math.sqrt(2), 1 / math.sqrt(2) + 1
    far = 1 - rest[0] / math.hypot(*rest)
    assert intra.tolist() == pytest.approx([0, far, far], abs=1e-12)


def test_repeats_copies_and_diversity_by_hand() -> None:
    texts = ["the cat sat down", "the cat sat down", "a dog ran off", "the cat sat down"]
    assert repeats(texts, np.array([0, 0, 0, 1])).tolist() == [False, True, False, False]  # the first is none
    assert repeats(["the cat sat down", "down sat, the CAT"], np.array([0, 0])).tolist() == [False, True]
    assert copies("the young. team, won again", ["the young team won again"])
    assert copies("a b c d e f g h", ["a b c d e", "d e f g h"])  # put together
    assert not copies("the young team lost today", ["the young team won again"]) and not copies("", ["x"])
    assert distinct(["a b a b"], 1) == 0.5 and distinct(["a b a b"], 2) == 2 / 3 and distinct([""], 2) == 0
    assert balance(np.array([0, 1, 2, 3]), 4) == pytest.approx(1) and balance(np.array([1, 1]), 4) == 0
    x, y = features(["tea", "tea", "saw", "saw"]), np.array([0, 0, 1, 1])
    assert silhouette(x, y, "cosine") == silhouette(x, y, "euclidean") == 1 and silhouette(x, y * 0, "cosine") == 0


# --- reward ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", PROFILES.values(), ids=PROFILES)
def test_every_case_holds(spec: GenAlignSpec) -> None:
    results = run(spec)
    assert [result for result in results if not result["passed"]] == []
    assert (sum(result["name"].startswith("attack") for result in results) >= 5) == (spec is STRICT)


def test_the_formula_of_the_seed_pays_repetition_and_strict_does_not() -> None:
    """One sentence per label again and again: nothing within a label differs, so the distances alone like it."""
    (attack,) = [case for case in cases(STRICT) if case.name == "attack: one sentence per label"]
    assert all(one.total > 1 for one in pay(attack.texts, PROFILES["seed"]))
    assert sum(one.total for one in pay(attack.texts, STRICT)) < 0


def test_the_formula_and_the_limits_of_its_parts() -> None:
    """seed: w1 inter - w2 intra - w3 loss, the loss relative to that of knowing nothing; credit ends at 1."""
    spec = override(PROFILES["seed"], "inter=0.5,intra=0.25,golden=2")
    learned = learn(GOOD, GOLDEN, LABELS)
    inter, intra = distances(learned.x, learned.y)
    for index, paid in enumerate(pay(GOOD, spec)):
        by_hand = 0.5 * inter[index] - 0.25 * intra[index] + 2 * (1 - learned.loss / math.log(2))
        assert paid.total == pytest.approx(by_hand)
    strong = override(STRICT, "credit=1,golden=0")
    lopsided = [*GOOD[:4] * 30, replace(GOOD[4], text="tea milk juice water and more")]
    assert all(-1 <= one.components["credit"] <= 1 for one in pay(lopsided, strong))
    assert min(one.components["credit"] for one in pay(lopsided, strong)) == -1
    assert all(result["passed"] for result in run(strong))


def test_following_the_rewards_makes_sets_teach_more(task: GenAlignTask) -> None:
    """The smallest policy there is: how likely each text of a menu is, for each label. Some have another label, some
    are no words; REINFORCE on the rewards alone finds the good ones, and what a classifier learns of them rises."""
    rng = np.random.default_rng(0)
    pool = [one for _, one in task.golden["pool"]]
    menus = []
    for label in task.labels:
        right = [one.text for one in pool if one.label == label][:10]
        wrong = [one.text for one in pool if one.label != label][:10]
        menus.append(right + wrong + [f"qq{i} rr{i} ss{i} tt{i}" for i in range(10)])
    logits = np.zeros((4, 30))
    rates, losses = [], []
    for _ in range(40):
        likely = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        drawn = [(label, int(rng.choice(30, p=likely[label]))) for label in range(4) for _ in range(24)]
        texts = [Golden(str(i), menus[label][choice], task.labels[label]) for i, (label, choice) in enumerate(drawn)]
        answers = rollouts(task, texts, "train")
        paid = np.array([one.total for one in task.score(answers)])
        losses.append(task.evaluate(rollouts(task, texts, "test"), constant=False).figures["golden_loss"])
        rates.append(float(likely[:, :10].sum(axis=1).mean()))
        for (label, choice), reward in zip(drawn, paid - paid.mean(), strict=True):
            logits[label] += 0.2 * reward * ((np.arange(30) == choice) - likely[label])
    assert rates[0] == pytest.approx(1 / 3) and rates[-1] > 0.8
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2


def test_guards_without_weight_pay_no_heed() -> None:
    loose = override(STRICT, "copy=0,repetition=0,label=0")
    copied = [replace(one, shown=(one.text,)) for one in GOOD]
    assert sum(one.total for one in pay(copied, STRICT)) < 0 < sum(one.total for one in pay(copied, loose))


def test_equal_sets_are_paid_equally_whatever_came_before() -> None:
    first = pay(GOOD, STRICT)
    pay(GOOD[:2], STRICT)
    assert pay(GOOD, STRICT) == first
    assert first[0].components["golden"] > 0  # the first round is not 0 by construction
    backwards = pay(GOOD[::-1], STRICT)
    assert [one.total for one in backwards[::-1]] == pytest.approx([one.total for one in first], abs=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "sentiment"}, "kind is 'sentiment', this task is of kind 'genalign'"),
        ({"weights": {"goldn": 1}}, "unknown weight goldn; .*did you mean golden"),
        ({"weights": {"golden": 0, "credit": 0}}, "weights golden and credit are 0"),
        ({"profile": "w1"}, "must be one of strict, seed"),
        ({"hash": "0"}, "hash is not this content's"),
    ],
)
def test_mistakes_in_the_file_are_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "reward_spec.yaml"
    path.write_text(json.dumps({"version": 1, "kind": "genalign", "profile": "strict"} | change))
    with pytest.raises(UserError, match=message):
        load_spec(path)
    override(STRICT, "inter=0").save(path)
    assert load_spec(path).weights == {**STRICT.weights, "inter": 0.0}


# --- task ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def task(tmp_path: Path) -> GenAlignTask:
    """A task that has loaded its files."""
    data = raw_data("genalign")
    made = data.prepare({"golden": TEXTS}, SETTINGS, Choices((), "sentences", {}), lambda texts: [9] * len(texts))
    for name, rows in {**made.files, **{f"{split}.jsonl": rows for split, rows in made.rows.items()}}.items():
        write_jsonl(tmp_path / name, rows)
    found = make_task(SETTINGS, None)
    assert isinstance(found, GenAlignTask)
    found.load(tmp_path / "train.jsonl")
    return found


def rollouts(task: GenAlignTask, texts: list[Golden], part: str = "test") -> list[Rollout]:
    asked = [GenAlignExample(id=one.id, input_text="label: x\ntext:", label=one.label, part=part) for one in texts]
    return [Rollout(example, 0, f" {one.text}", False, 9) for example, one in zip(asked, texts, strict=True)]


def test_a_set_is_judged_by_the_golden_texts_it_teaches(task: GenAlignTask) -> None:
    pool = [Golden(name, one.text, one.label) for name, one in task.golden["pool"]]
    found = task.evaluate(rollouts(task, pool), constant=False)
    assert len(found.judged) == len(task.golden["test"]) == 420 and len(found.verdicts) == len(pool) == 240
    assert sum(one.correct for one in found.judged) > 0.95 * 420
    assert found.figures["label_fidelity"] > 99 and found.figures["balance"] == pytest.approx(1)
    assert found.figures["words"] == pytest.approx(sum(len(one.text.split()) for one in pool) / len(pool))
    assert found.figures["wrong_label_texts"] <= 2 and found.figures["copy_texts"] == 0
    wrong = [replace(one, label=task.labels[(task.labels.index(one.label) + 1) % 4]) for one in pool]
    swapped = task.evaluate(rollouts(task, wrong), constant=False)
    assert sum(one.correct for one in swapped.judged) < 0.05 * 420 and swapped.figures["label_fidelity"] < 1
    assert {one.failure for one in swapped.judged if not one.correct} <= {f"taken_for_{name}" for name in task.labels}
    assert [group["label"] for group in found.groups] == [one.label for _, one in task.golden["test"]]


def test_parts_of_the_golden_texts_are_kept_apart(task: GenAlignTask) -> None:
    """Training is scored on one part, validation on another; texts of two splits are not scored together."""
    pool = [Golden(name, one.text, one.label) for name, one in task.golden["pool"][:80]]
    losses = set()
    for part in ("train", "val", "test"):
        made = rollouts(task, pool, part)
        losses.add(task.figures(made, [task.judge(one.example, one.text) for one in made])["golden_loss"])
    assert len(losses) == 3
    with pytest.raises(ValueError, match="several splits"):
        task.score([*rollouts(task, pool[:1], "train"), *rollouts(task, pool[:1], "val")])
    parts = [{one.text for _, one in task.golden[part]} for part in PARTS]
    assert sum(map(len, parts)) == len(set.union(*parts))


def test_one_text_is_judged_for_its_label(task: GenAlignTask) -> None:
    asked = GenAlignExample(
        id="a", input_text="label: sports\ntext: the captain ran the relay in the rain\nlabel: sports\ntext:",
        label="sports", part="train",
    )  # fmt: skip
    assert asked.shown == ("the captain ran the relay in the rain",)
    assert task.judge(asked, " the coach won the cup\n").correct
    assert task.judge(asked, " the coach won the cup\nlabel: world").failure == "unfinished"
    for label in task.labels:  # words that nobody knows are of no label, the first one in order included
        assert task.judge(replace(asked, label=label), " qwlk zzrt pplm vvbn").failure == "wrong_label"
    cut = replace(rollouts(task, [Golden("a", "the coach won the cup", "sports")], "train")[0], truncated=True)
    assert task.score([cut])[0].reasons == ("unfinished",)
    assert task.judge(asked, " the envoy signed the treaty").failure == "wrong_label"
    assert task.judge(asked, " the captain ran the relay in the rain").failure == "copy"
    assert task.judge(asked, " goal").failure == "too_short" and task.parsed(" goal") is None
    assert task.majority([replace(asked, target_text=" a"), replace(asked, target_text=" a")]) == " a"


def test_more_texts_than_a_step_has_are_paid_set_by_set(task: GenAlignTask) -> None:
    """04 draws thousands: what they are paid must not depend on how many there are."""
    pool = [Golden(name, one.text, one.label) for name, one in task.golden["pool"]]
    many = rollouts(task, [*pool, *pool[:16], *pool[:100]], "train")
    assert task.score(many)[:256] == task.score(many[:256])


def test_records_of_another_stage_01_are_refused(task: GenAlignTask, tmp_path: Path) -> None:
    rows = (tmp_path / "golden_reward.jsonl").read_text().splitlines()
    (tmp_path / "golden_reward.jsonl").write_text("\n".join(rows[1:]) + "\n")
    with pytest.raises(UserError, match="golden_reward.jsonl: differs from that beside other records of this stage"):
        task.load(tmp_path / "val.jsonl")
    other = make_task(SETTINGS, None)
    (tmp_path / "golden_dev.jsonl").write_text('{"id": "a", "text": "b", "label": "art"}\n')
    with pytest.raises(UserError, match="golden_dev.jsonl: label 'art' is none of the pool's"):
        other.load(tmp_path / "val.jsonl")


def test_other_golden_texts_are_not_compared(task: GenAlignTask) -> None:
    asked = GenAlignExample(id="a", input_text="label: sports\ntext:", label="sports", part="test")
    before = task.gold(asked)
    task.golden["test"] = task.golden["test"][1:]
    assert task.gold(asked) != before and task.gold(asked)[0] == before[0]


def test_files_that_are_missing_or_damaged_are_one_line(task: GenAlignTask, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    rows = path.read_text().splitlines()
    path.write_text(json.dumps(json.loads(rows[0]) | {"label": "art"}) + "\n")
    with pytest.raises(UserError, match="asks for label 'art', which the pool has not"):
        make_task(SETTINGS, None).load(path)
    path.write_text(json.dumps(json.loads(rows[0]) | {"part": "dev"}) + "\n")
    with pytest.raises(UserError, match=":1, id 'train-0', key 'part': expected train or val or test"):
        make_task(SETTINGS, None).load(path)
    path.write_text("\n".join(rows) + "\n")
    (tmp_path / "golden_dev.jsonl").write_text('{"id": "a", "text": "b"}\n')
    with pytest.raises(UserError, match="golden_dev.jsonl:1, key 'label': expected text, got 'None'"):
        make_task(SETTINGS, None).load(path)
    (tmp_path / "golden_dev.jsonl").unlink()
    with pytest.raises(UserError, match="golden_dev.jsonl: not there; it belongs beside the records"):
        make_task(SETTINGS, None).load(path)


def test_stage_01_says_what_does_not_fit() -> None:
    data, choices = raw_data("genalign"), Choices((), "sentences", {})
    raw = {"golden": TEXTS}

    def count(texts: list[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    with pytest.raises(UserError, match="no prompt has at most 64 tokens, the shortest has 65"):
        data.prepare(raw, replace(SETTINGS, max_prompt_tokens=64), choices, lambda texts: [65] * len(texts))
    with pytest.raises(UserError, match="--table_format markdown: prompts of task genalign hold no page"):
        data.prepare(raw, SETTINGS, Choices((), "markdown", {}), count)
    with pytest.raises(UserError, match="--context gold"):
        data.prepare(raw, replace(SETTINGS, context="gold"), choices, count)
    few = Choices((0.5, 0.2, 0.3), "sentences", {"train": 8, "val": 4, "test": 4})
    divided = data.prepare(raw, SETTINGS, few, count)
    assert divided.facts["golden"] == {"pool": 300, "reward": 300, "dev": 240, "test": 360}
    assert [len(rows) for rows in divided.rows.values()] == [8, 4, 4]
