"""The completion format: read, write, and every problem by name."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.finqa.answers import PROBLEMS, Answer, format_answer, parse_answer, read_answer, write_answer

PROGRAM = "subtract(5829, 5735), divide(#0, 5735)"
TARGET = '{"program": "subtract(5829, 5735), divide(#0, 5735)", "answer": "0.01639"}'


def test_the_one_target_format() -> None:
    assert write_answer(PROGRAM, 0.01639) == TARGET
    assert read_answer(TARGET) == Answer(PROGRAM, "0.01639", None)
    assert write_answer("table_sum(crédit, none)", "yes") == '{"program": "table_sum(crédit, none)", "answer": "yes"}'


@pytest.mark.parametrize(
    ("value", "text"),
    [(731.0, "731"), (0.01639, "0.01639"), (-0.5, "-0.5"), (1e-05, "0.00001"), (-0.0, "0"), (100, "100"), ("no", "no")]
    + [(36003776400000.0, "36003776400000"), (0.1, "0.1"), (1200.0, "1200")],
)
def test_numbers_are_short_and_read_back(value: float | str, text: str) -> None:
    assert format_answer(value) == text
    assert parse_answer(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [(" 94 ", 94.0), ("12%", 0.12), ("-.5", -0.5), ("0.016390", 0.01639), ("0.0163905", 0.01639), ("yes", "yes")]
    + [(text, None) for text in ("", "Yes", "$ 94", "1,234", "(12)", "1e5", "nan", "10 million", "94 %%")],
)
def test_typed_answers(text: str, value: float | str | None) -> None:
    assert parse_answer(text) == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "empty"),
        (" \n", "empty"),
        (" " * 5000 + "x" * 4001, "too_long"),
        ("the answer is 94", "not_json"),
        ("\ufeff" + TARGET, "not_json"),
        ("[" * 3000, "not_json"),
        (TARGET[:-1], "cut_json"),
        ("{'program': 1}", "cut_json"),
        (TARGET + " .", "trailing_text"),
        (TARGET + TARGET, "trailing_text"),
        ("94", "not_object"),
        ("[]", "not_object"),
        ('{"program": "a", "program": "b", "answer": "1"}', "repeated_key"),
        ('{"answer": "1"}', "missing_program"),
        ('{"program": "a"}', "missing_answer"),
        ('{"program": 1, "answer": "1"}', "program_not_text"),
        ('{"program": "a", "answer": 1}', "answer_not_text"),
        ('{"program": "a", "answer": "1", "why": "b"}', "unknown_key"),
        ('{"program": "a", "answer": "a lot"}', "answer_unreadable"),
    ],
)
def test_every_problem_has_a_name(text: str, problem: str) -> None:
    assert read_answer(text).problem == problem
    assert problem in PROBLEMS


def test_what_can_be_read_stays_beside_the_problem() -> None:
    assert read_answer(TARGET + " .") == Answer(PROGRAM, "0.01639", "trailing_text")
    assert read_answer('{"program": "a"}') == Answer("a", None, "missing_answer")


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=200), st.text(alphabet='{}[]":, \\u0aprogmnswe1', max_size=60)))
def test_total_on_any_text(text: str) -> None:
    answer = read_answer(text)
    assert answer.problem is None or answer.problem in PROBLEMS


@settings(max_examples=100, deadline=None)
@given(
    st.text(max_size=40), st.sampled_from(["1", "yes", "-0.5"]), st.lists(st.text(" \t\n\r", max_size=3), min_size=9)
)
def test_white_space_between_tokens_changes_nothing(program: str, answer: str, blanks: list[str]) -> None:
    tokens = ["{", '"program"', ":", json.dumps(program), ",", '"answer"', ":", json.dumps(answer), "}"]
    spaced = "".join(token + blank for token, blank in zip(tokens, blanks, strict=False))
    assert read_answer(spaced) == read_answer(blanks[0] + "".join(tokens)) == Answer(program, answer, None)
