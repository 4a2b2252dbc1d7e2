"""The fuzzer finds nothing today, and finds a reward, a parser and a program that are broken on purpose."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tools import fuzz
from tools.mutations import mutate_completion, mutate_program, mutate_text
from utils.finqa.examples import FinQAExample
from utils.finqa.program import ProgramError
from utils.rewards import PROFILES, judge
from utils.rewards.corpus import case_example

EXAMPLE = case_example()
STRICT = PROFILES["strict"]


@pytest.fixture(autouse=True)
def one_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cases start from the reward's own example and one that is answered by a word; finqa_mini takes a second."""
    words = FinQAExample(
        id="w",
        input_text="",
        target_answer="yes",
        target_program="greater(5829, 5735)",
        question="?",
        exe_ans="yes",
        table=EXAMPLE.table,
    )
    monkeypatch.setattr(fuzz, "load_examples", lambda data: [EXAMPLE, words])


def test_two_thousand_cases_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["--count", "2000", "--seed", "7"]) == 0
    out = capsys.readouterr().out
    assert "2000 cases in" in out
    assert all(name in out for name in ("correct", "format", "unparsable", "not_executable", "wrong_result"))


def test_a_case_is_the_same_each_time_and_alone() -> None:
    examples = [EXAMPLE]
    made = [fuzz.make_case(3, number, examples) for number in range(40)]
    assert made == [fuzz.make_case(3, number, examples) for number in range(40)]
    assert made[:20] != [fuzz.make_case(4, number, examples) for number in range(20)]
    assert len({text for _, _, text in made}) > 30


def test_changes_reach_everything() -> None:
    rng = random.Random(0)
    gold = str(EXAMPLE.target_program)
    programs = {mutate_program(rng, gold) for _ in range(300)}
    assert {"divide(#0, 5735)", f"{gold}, {gold}"} <= programs and len(programs) > 100
    assert any(program.startswith("subtract(5735, 5829)") for program in programs)
    assert {mutate_text(rng, "") for _ in range(400)} >= {"", "("}
    texts = [mutate_completion(rng, gold, "0.01639", EXAMPLE) for _ in range(300)]
    assert any("```json" in text for text in texts) and any("\n    " in text for text in texts)


BREAKS: list[tuple[str, Any, str]] = [
    ("utils.rewards.scoring.same_answer", lambda result, gold: True, "though the program gives"),
    ("utils.rewards.scoring._reasons", lambda reading: (), "without a reason"),
    ("utils.rewards.scoring.within", lambda value, gold, tolerance: True, "for nearness"),
    ("utils.rewards.scoring.matched_steps", lambda steps, gold: 1.0, "for steps of gold, of which it has none"),
    ("tools.fuzz.parse", lambda text: (), "is written back as ''"),
    ("tools.fuzz.equal", lambda program, gold: False, "does not equal itself"),
    ("tools.fuzz.run_official", lambda program, table: (1, "n/a"), "in the published evaluator"),
    ("utils.rewards.scoring.wrong_value", lambda *facts: "because", "unknown name 'because'"),
    ("utils.rewards.scoring.parse", lambda text: [][0], "raises IndexError"),
]


@pytest.mark.parametrize(("name", "broken", "message"), BREAKS, ids=[name for name, *_ in BREAKS])
def test_what_is_broken_is_found(
    name: str, broken: Any, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(name, broken)
    assert fuzz.main(["--count", "400"]) == 1
    first, again = capsys.readouterr().out.splitlines()
    assert first.startswith("case ") and message in first
    number = first.split(":")[0].removeprefix("case ")
    assert again == f"again: python -m tools.fuzz --seed 0 --only {number}"
    assert fuzz.main(["--only", number]) == 1 and capsys.readouterr().out.splitlines()[0] == first


def test_an_unknown_reason_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(program: str) -> None:
        error = ProgramError("syntax")
        error.reason = "mood"
        raise error

    monkeypatch.setattr(fuzz, "parse", refuse)
    with pytest.raises(fuzz.Broken, match="unknown reason 'mood'"):
        fuzz.check_program("add(1, 1)", EXAMPLE)


def test_a_verdict_beside_the_reward_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "judge", lambda text, example, spec: judge("", example, spec))
    with pytest.raises(fuzz.Broken, match="is judged"):
        fuzz.check_reward(str(EXAMPLE.target_text), EXAMPLE, STRICT)


def test_a_hang_is_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def hang(program: str, example: FinQAExample) -> None:
        while True:
            pass

    monkeypatch.setattr(fuzz, "check_program", hang)
    monkeypatch.setattr(fuzz, "SECONDS", 0.05)
    assert fuzz.main(["--count", "1"]) == 1
    assert "takes more than 0.05 s" in capsys.readouterr().out


def test_its_own_reading_of_a_completion() -> None:
    assert fuzz.own_reading('{"program": "add(1, 1)"} more') == "add(1, 1)"
    assert [fuzz.own_reading(text) for text in ("", "x", "[" * 9999, "[]", '{"program": 1}')] == [None] * 5
    assert fuzz.own_reading('{"program": "a", "program": "b"}') is None


def test_bad_data_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.undo()
    assert fuzz.main(["--data", "nowhere.json"]) == 2
    assert capsys.readouterr().err == "error: nowhere.json: no such file\n"
