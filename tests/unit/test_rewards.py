"""Rewards: pay worked out by hand, attacks that earn nothing, gold above every change of it, refused mistakes."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.errors import UserError
from utils.finqa.answers import PROBLEMS, format_answer, write_answer
from utils.finqa.examples import FinQAExample, FinQAJudgement
from utils.finqa.failures import FAILURES
from utils.finqa.program import parse
from utils.finqa.records import read_records
from utils.rewards import PROFILES, RewardSpec, judge, load_spec, score_text
from utils.rewards.cases import run_cases
from utils.rewards.corpus import attacks, case_example, cases, perturbations
from utils.rewards.scoring import matched_steps, read_completion, score_reading, within
from utils.rewards.spec import COMPONENTS, override, profile_of
from utils.tasks.base import Reward

EXAMPLE = case_example()
GOLD = str(EXAMPLE.target_text)
WRONG = write_answer("add(1, 1)", 2.0)
SPECS = list(PROFILES.values())
specs = pytest.mark.parametrize("spec", SPECS, ids=list(PROFILES))


def total(text: str, spec: RewardSpec, example: FinQAExample = EXAMPLE) -> float:
    return score_text(text, example, spec).total


@specs
def test_cases_pay_what_was_worked_out_by_hand(spec: RewardSpec) -> None:
    results = run_cases(cases(spec, EXAMPLE), lambda text: score_text(text, EXAMPLE, spec))
    assert [result for result in results if not result["passed"]] == []
    assert sum(result["expected"] is None for result in results) >= 100
    assert sum(result["expected"] is not None for result in results) >= 20


def test_the_shipped_weights_are_those_of_the_design() -> None:
    assert PROFILES["seed"].weights == {"exact": 1.0, "numeric": 0.8, "program": 0.3, "format": 0.2}
    assert PROFILES["strict"].weights == {"exact": 1.0, "numeric": 0.0, "program": 0.0, "format": 0.1}
    near = write_answer("divide(98.35, 5735)", 0.01715)
    assert [total(text, PROFILES["seed"]) for text in (GOLD, GOLD + ".", near, WRONG, "", "{}")] == pytest.approx(
        [1.0, 0.8, 0.8, 0.0, -0.2, -0.2]
    )
    assert [total(text, PROFILES["strict"]) for text in (GOLD, GOLD + ".", near, WRONG, "", "{}")] == pytest.approx(
        [1.0, 0.9, 0.1, 0.1, 0.0, 0.0]
    )


@specs
def test_attacks_earn_nothing_on_words_too(spec: RewardSpec) -> None:
    yes = dataclasses.replace(EXAMPLE, exe_ans="yes", target_answer="yes", target_program="greater(5829, 5735)")
    for example in (EXAMPLE, yes):
        for name, text in attacks(example):
            assert total(text, spec, example) <= 0, name


@specs
@pytest.mark.parametrize(
    "program",
    ["subtract(5829, 5735), divide(#0, 5735)", "table_average(tax rate, none)", "greater(5829, 5735)", "add(0, 0)"],
)
def test_gold_earns_at_least_what_every_change_of_it_earns(spec: RewardSpec, program: str) -> None:
    from utils.finqa.program import execute

    value = execute(program, EXAMPLE.table)
    example = dataclasses.replace(
        EXAMPLE, exe_ans=value, target_program=program, target_text=write_answer(program, value)
    )
    gold = total(str(example.target_text), spec, example)
    changed = list(perturbations(example))
    assert gold == 1.0 and len(changed) >= 20
    assert all(total(text, spec, example) <= gold for _, text in changed)
    if program.startswith("subtract"):
        assert sum(total(text, spec, example) < gold for _, text in changed) > len(changed) / 2


@specs
def test_a_record_without_program_is_paid_by_its_answer(spec: RewardSpec) -> None:
    example = dataclasses.replace(EXAMPLE, target_program=None, target_text=None)
    assert total(GOLD, spec, example) == 1.0
    assert score_text(write_answer("subtract(5829, 5735)", 94.0), example, spec).components["program"] == 0
    with pytest.raises(UserError, match="no gold|has none"):
        next(perturbations(example))


def test_gold_that_cannot_be_read_is_the_datas_fault() -> None:
    example = dataclasses.replace(EXAMPLE, target_program="nonsense")
    with pytest.raises(UserError, match="record case"):
        judge(GOLD, example, PROFILES["strict"])


@pytest.mark.parametrize(
    ("program", "share"),
    [
        ("subtract(5829, 5735), divide(#0, 5735)", 1.0),
        ("add(1, 1), subtract(5829, 5735), divide(#1, 5735)", 2 / 3),
        ("subtract(5829, 5735), subtract(5829, 5735)", 0.5),  # a step counts once
        ("subtract(5735, 5829), divide(#0, 5735)", 0.0),  # the second step divides something else
        ("add(1, 1)", 0.0),
    ],
)
def test_matched_steps(program: str, share: float) -> None:
    gold = parse("subtract(5829, 5735), divide(#0, 5735)")
    assert matched_steps(parse(program), gold) == pytest.approx(share)
    assert matched_steps(parse("add(2, 1)"), parse("add(1, 2)")) == 1.0
    assert matched_steps(gold, None) == 0.0


def test_within() -> None:
    assert within(105.0, 100.0, 0.05) and within(-95.0, -100.0, 0.05) and within("yes", "yes", 0.05)
    assert not within(105.1, 100.0, 0.05) and not within(100.0, -100.0, 0.05) and not within(1e-5, 0.0, 0.05)
    assert within(0.0, 0.0, 0.05) and not within("yes", 1.0, 0.05) and not within("yes", "no", 0.05)


def test_judgement_of_gold_and_of_a_near_miss() -> None:
    strict = PROFILES["strict"]
    assert judge(GOLD, EXAMPLE, strict) == FinQAJudgement(
        id="case", correct=True, program_correct=True, exact_match=True, numeric_1pct=True, program_valid=True,
        format_valid=True, failure="", reward=1.0, result="0.01639",
    )  # fmt: skip
    near = judge('{"program": "divide(94.5, 5735)", "answer": "0.01639"}', EXAMPLE, strict)
    assert (near.correct, near.exact_match, near.numeric_1pct) == (False, True, True)
    assert (near.failure, near.result, near.reward) == ("rounding", "0.01648", 0.1)
    other = judge(write_answer("divide(5829, 5735), subtract(#0, 1)", 0.01639), EXAMPLE, strict)
    assert other.correct and not other.program_correct


@pytest.mark.parametrize(
    ("text", "failure"),
    [("", "format"), (GOLD[:20], "format"), (write_answer("add(1", 1.0), "unparsable")]
    + [(write_answer("divide(1, 0)", 1.0), "not_executable"), (write_answer("greater(2, 1)", "yes"), "answer_kind")]
    + [(write_answer("subtract(5735, 5829), divide(#0, 5735)", -0.01639), "sign"), (GOLD + " .", "")],
)
def test_every_failure_has_a_name(text: str, failure: str) -> None:
    judgement = judge(text, EXAMPLE, PROFILES["strict"])
    assert judgement.failure == failure and (failure in FAILURES or judgement.correct)


def test_reasons_name_the_failure_and_the_format() -> None:
    text = '{"program": "divide(1, 0)", "answer": "none"} and more'
    assert score_text(text, EXAMPLE, SPECS[0]).reasons == ("not_executable:division_by_zero", "format:trailing_text")
    assert score_text("", EXAMPLE, SPECS[0]).reasons == ("format:empty",)
    assert score_text(GOLD, EXAMPLE, SPECS[0]).reasons == ()


def test_components_must_sum_to_the_total() -> None:
    with pytest.raises(ValueError, match="do not sum"):
        Reward(1.0, {"exact": 0.5})


PROGRAMS = st.sampled_from(
    [
        str(EXAMPLE.target_program),
        "subtract(5829, 5735)",
        "add(1, 1)",
        "divide(1, 0)",
        "add(1",
        "",
        "table_sum(tax rate, none)",
    ]
)
COMPLETIONS = st.one_of(
    st.text(max_size=80),
    st.builds(
        lambda program, answer, tail: json.dumps({"program": program, "answer": answer}) + tail,
        PROGRAMS,
        st.one_of(st.just("0.01639"), st.text(max_size=8)),
        st.sampled_from(["", " ", " more", "}"]),
    ),
)


@settings(max_examples=300, deadline=None)
@given(COMPLETIONS, COMPLETIONS)
def test_properties_on_any_completions(first: str, second: str) -> None:
    """Total, components that sum, explained, within the range, and a correct one never earns less than a wrong one."""
    for spec in SPECS:
        verdicts = [judge(text, EXAMPLE, spec) for text in (first, second)]
        for text, verdict in zip((first, second), verdicts, strict=True):
            reward = score_text(text, EXAMPLE, spec)
            assert set(reward.components) == set(COMPONENTS) and reward.total == verdict.reward
            assert reward.total == pytest.approx(sum(reward.components.values()))
            assert -spec.weights["format"] <= reward.total <= spec.weights["exact"]
            assert reward.reasons or reward.total == 1.0
            assert reward.total <= 0 or verdict.program_valid
            assert all(reason.split(":")[0] in {*FAILURES, "wrong_result"} for reason in reward.reasons)
            assert verdict.format_valid or any(reason.split(":")[-1] in PROBLEMS for reason in reward.reasons)
        if verdicts[0].correct and not verdicts[1].correct:
            assert verdicts[0].reward >= verdicts[1].reward


@settings(max_examples=100, deadline=None)
@given(PROGRAMS, st.lists(st.text(" \t\n\r", max_size=3), min_size=9, max_size=9))
def test_json_white_space_changes_no_reward(program: str, blanks: list[str]) -> None:
    tokens = ["{", '"program"', ":", json.dumps(program), ",", '"answer"', ":", '"0.01639"', "}"]
    spaced = "".join(token + blank for token, blank in zip(tokens, blanks, strict=True))
    for spec in SPECS:
        assert score_text(spaced, EXAMPLE, spec) == score_text("".join(tokens), EXAMPLE, spec)


@specs
def test_a_spec_survives_its_file(spec: RewardSpec, tmp_path: Path) -> None:
    spec.save(tmp_path / "spec.yaml")
    assert load_spec(tmp_path / "spec.yaml") == spec
    assert f"hash: {spec.hash}" in (tmp_path / "spec.yaml").read_text()
    changed = override(spec, "exact=2.0")
    assert changed.weights["exact"] == 2.0 and changed.hash != spec.hash
    assert override(spec, "") == spec


def test_weights_of_the_documented_command() -> None:
    spec = override(PROFILES["strict"], "exact=1.0, program=0.3,format=0.2")
    assert spec.weights == {"exact": 1.0, "numeric": 0.0, "program": 0.3, "format": 0.2}
    half = write_answer("subtract(5829, 5735)", 94.0)
    assert score_text(half, EXAMPLE, spec).components == pytest.approx(
        {"exact": 0.0, "numeric": 0.0, "program": 0.15, "format": 0.2}
    )


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("exakt=1.0", "unknown weight exakt.*did you mean exact"),
        ("exact", "expected name=number"),
        ("exact=one", "finite number"),
        ("exact=nan", "finite number"),
        ("exact=-1", "finite number"),
        ("exact=1,exact=1", "stands twice"),
        ("exact=0.15", "a wrong answer could earn"),
        ("exact=1.0,format=0.6", "a wrong answer could earn"),
        ("numeric=1.0,format=0", "a wrong answer could earn"),
    ],
)
def test_mistakes_in_weights_are_one_line(weights: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        override(PROFILES["strict"], weights)
    assert "\n" not in str(caught.value)


HEAD = "version: 1\nprofile: strict\n"
FILE_MISTAKES: dict[str, tuple[str, str]] = {
    "nothing in it": ("", "yaml: expected a mapping `section: {key: value}`, got nothing"),
    "a list": ("- profile: strict\n", "yaml: expected a mapping `section: {key: value}`, got list"),
    "broken YAML": ("version: 1\nprofile: strict\nweights: {exact: 1.0}}\n", "yaml:3: not valid YAML"),
    "no version": ("profile: strict\n", "yaml: version is None, this scorer is version 1; write the file again"),
    "a later version": ("version: 2\nprofile: strict\n", "yaml:1: version is 2, this scorer is version 1"),
    "a version in quotes": ("version: '1'\nprofile: strict\n", "yaml:1: version is '1'"),
    "a version that is true": ("version: true\nprofile: strict\n", "yaml:1: version is True"),
    "no profile": ("version: 1\n", "yaml: reward profile must be one of strict, seed; got None"),
    "a profile misspelt": ("version: 1\nprofile: strikt\n", "yaml:2: reward profile .*'strikt'; did you mean strict"),
    "a list of profiles": ("version: 1\nprofile: [strict]\n", r"yaml:2: reward profile .* got \['strict'\]"),
    "a profile twice": (HEAD + "profile: seed\n", r"yaml:3: `profile` stands twice \(first in line 2\)"),
    "a key misspelt": (HEAD + "tolerence: 0.1\n", "yaml:3: unknown key tolerence; .*; did you mean tolerance"),
    "weight for weights": (HEAD + "weight: {exact: 1}\n", "yaml:3: unknown key weight; .*; did you mean weights"),
    "a weight outside weights": (HEAD + "exact: 1.0\n", "yaml:3: unknown key exact; .*; it goes below weights"),
    "another name of profile": (HEAD + "reward_profile: seed\n", "yaml:3: unknown key reward_profile; .* profile"),
    "a weight misspelt": (HEAD + "weights:\n  formt: 1\n", "yaml:4: unknown weight formt; .*; did you mean format"),
    "a metric for a weight": (HEAD + "weights: {exact_match: 1}\n", "yaml:3: unknown weight exact_match; .* exact"),
    "a number for a name": (HEAD + "weights: {1: 1}\n", "yaml:3: unknown weight 1; expected exact, numeric"),
    "no weights at all": (HEAD + "weights:\n", "yaml:3: weights must hold `name: number` lines, got None"),
    "a list of weights": (HEAD + "weights: [1]\n", r"yaml:3: weights must hold `name: number` lines, got \[1\]"),
    "a word": (HEAD + "weights:\n  exact: one\n", "yaml:4: exact must be a finite number, 0 or more; got 'one'"),
    "a truth value": (HEAD + "weights: {exact: true}\n", "yaml:3: exact must be a finite number.* got True"),
    "nothing for a number": (HEAD + "weights:\n  exact:\n", "yaml:4: exact must be a finite number.* got None"),
    "a weight below 0": (HEAD + "weights: {exact: -1}\n", "yaml:3: exact must be a finite number.* got -1"),
    "an infinite weight": (HEAD + "weights: {exact: .inf}\n", "yaml:3: exact must be a finite number.* got inf"),
    "beyond a float": (HEAD + f"weights: {{exact: {'9' * 400}}}\n", "yaml:3: exact must be a finite number.* 9{60}$"),
    "a weight twice": (HEAD + "weights: {exact: 1, exact: 2}\n", "yaml:3: `weights.exact` stands twice"),
    "wrong above right": (HEAD + "weights:\n  exact: 0.15\n", "yaml:3: a wrong answer could earn 0.1 and a .* 0.05;"),
    "a percentage": (HEAD + "tolerance: 5%\n", "yaml:3: tolerance must be a finite number, 0 or more; got '5%'"),
    "a tolerance below 0": (HEAD + "tolerance: -0.1\n", "yaml:3: tolerance must be a finite number, 0 or more"),
    "a tolerance of all": (HEAD + "tolerance: 1\n", "yaml:3: tolerance is relative and must be below 1, got 1"),
    "another content's hash": (HEAD + "hash: abc\n", "yaml:3: hash is not this content's; delete the line"),
}


@pytest.mark.parametrize("name", FILE_MISTAKES)
def test_mistakes_in_the_file_are_one_line_with_its_place(name: str, tmp_path: Path) -> None:
    text, message = FILE_MISTAKES[name]
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_spec(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_missing_weights_are_those_of_the_profile(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("version: 1\nprofile: seed\nweights: {numeric: 0.5}\n")
    assert load_spec(tmp_path / "spec.yaml") == override(profile_of("seed", "here"), "numeric=0.5")


def test_a_spec_has_exactly_the_four_weights() -> None:
    with pytest.raises(ValueError, match="weights must be"):
        RewardSpec("strict", {"exact": 1.0})


NAMED_ATTACKS = {
    "": "empty", "asdf qwer zxcv": "garbage", "I do not know": "do_not_know", "(1,234)": "accounting_negative",
    "-$(5.3)": "dollar_negative", ".2": "point_two", "1.2e6": "scientific", "10 million": "ten_million", "nan": "nan",
    "{}": "empty_object",
}  # fmt: skip


def test_the_corpus_holds_what_policies_have_tried() -> None:
    found = {name: text for name, text in attacks(EXAMPLE)}
    assert len(found) == len(attacks(EXAMPLE)) >= 130
    for text, name in NAMED_ATTACKS.items():
        assert found[name] == text
    assert found["prompt_echo"] == EXAMPLE.input_text and EXAMPLE.question in found["question_echo"]
    assert found["gold_behind_words"] == f"Let me think. {GOLD}"
    assert {"many_numbers", "years", "huge_exponent_json", "nested_calls", "format_without_answer"} <= set(found)


def real_examples(folder: Path, split: str) -> Iterator[FinQAExample]:
    for record in read_records(folder / f"{split}.json"):
        target = write_answer(str(record.program), record.exe_ans)
        yield FinQAExample(
            id=record.id,
            input_text="",
            target_answer=format_answer(record.exe_ans),
            target_program=record.program,
            question="",
            exe_ans=record.exe_ans,
            target_text=target,
            table=record.table,
        )


@pytest.mark.finqa
@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_gold_is_on_top_on_every_real_record(split: str, finqa_folder: Path) -> None:
    """Under both profiles gold earns 1, and 20 changes of it, drawn by the record's id, earn no more."""
    for example in real_examples(finqa_folder, split):
        changed = [text for _, text in perturbations(example)]
        texts = random.Random(example.id).sample(changed, 20)
        readings = [read_completion(text, example) for text in (str(example.target_text), *texts)]
        for spec in SPECS:
            gold, *others = [score_reading(reading, example, spec) for reading in readings]
            assert gold.total == 1.0 and max(other.total for other in others) <= 1.0, example.id
            assert all(one.total == sum(one.components.values()) for one in (gold, *others)), example.id


@pytest.mark.finqa
@specs
def test_attacks_earn_nothing_on_real_records(spec: RewardSpec, finqa_folder: Path) -> None:
    for example in list(real_examples(finqa_folder, "test"))[::40]:
        assert [name for name, text in attacks(example) if total(text, spec, example) > 0] == []
