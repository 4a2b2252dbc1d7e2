"""The program language: what parses, what executes, and every way in which strict differs from official."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.finqa.official import run_official
from utils.finqa.program import (
    MAX_CHARACTERS,
    MAX_STEPS,
    OPERATIONS,
    REASONS,
    ProgramError,
    Step,
    equal,
    execute,
    parse,
    read_cell,
    same_answer,
)

TABLE = (
    ("total", "2007", "2008"),
    ("net revenue", "5735", "$ 5,829"),
    ("expenses", "-5 ( 5 )", "( 13 )"),
    ("tax rate", "31.5%", "30%"),
    ("cash", "1", "2"),
    ("cash", "3", "5"),
    ("odd", "1_000", "nan"),
)


def reason(program: str) -> str:
    with pytest.raises(ProgramError) as caught:
        execute(program, TABLE)
    assert REASONS[caught.value.reason] in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize(
    ("program", "value"),
    [
        ("subtract(5829, 5735), divide(#0, 5735)", 0.01639),  # 94 / 5735 = 0.0163905…
        ("add(1, -2.5)", -1.5),
        ("multiply(.5, 12%)", 0.06),
        ("divide(1, 3)", 0.33333),
        ("divide(const_m1, 3), multiply(#0, 3)", -1.0),  # intermediate steps are not rounded
        ("exp(2, -1)", 0.5),
        ("greater(5829, 5735)", "yes"),
        ("greater(2, 2)", "no"),
        ("table_max(net revenue, none)", 5829.0),
        ("table_min(net revenue, none)", 5735.0),
        ("table_sum(tax rate, none)", 0.615),
        ("table_average(tax rate, none)", 0.3075),
        ("table_sum(cash, none)", 8.0),  # of two rows with one label the last counts
        ("table_sum(cash, 963202)", 8.0),  # the second argument is ignored, as some published programs need
        ("add(1, 1), multiply(#0, const_100)", 200.0),
        ("multiply(0, -1)", 0.0),
    ],
)
def test_strict_and_official_agree_on_plain_programs(program: str, value: float | str) -> None:
    result = execute(program, TABLE)
    assert result == value and str(result) == str(value)
    assert run_official(program, TABLE) == (0, value)
    assert ", ".join(map(str, parse(program))) == program


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("", "empty"),
        (f"add({'1' * MAX_CHARACTERS}, 1)", "too_long"),
        (", ".join(["add(1, 1)"] * (MAX_STEPS + 1)), "too_many_steps"),
        ("add(1, 1", "syntax"),
        ("add(1,1)", "syntax"),
        ("add( 1, 1)", "syntax"),
        ("add(1, 1, 1)", "syntax"),
        ("add(1, 1) add(1, 1)", "syntax"),
        ("add(1, 1), ", "syntax"),
        ("add(subtract(1, 1), 1)", "syntax"),
        ("minus(1, 1)", "unknown_operation"),
        ("ADD(1, 1)", "unknown_operation"),
        (" add(1, 1)", "unknown_operation"),
        ("add(one, 1)", "bad_argument"),
        ("add(const_, 1)", "bad_argument"),
        ("add(-, 1)", "bad_argument"),
        ("add(--1, 1)", "bad_argument"),
        ("add(1.2.3, 1)", "bad_argument"),
        ("add(%, 1)", "bad_argument"),
        ("add(\u0661, 1)", "bad_argument"),
        ("add(#0, 1)", "bad_reference"),
        ("add(1, 1), add(#1, 1)", "bad_reference"),
        ("add(1, 1), add(#, 1)", "bad_reference"),
        ("add(1, 1), add(#00000, 1)", "bad_reference"),
        ("table_sum(unknown, none)", "unknown_row"),
        ("table_sum(expenses, none)", "row_not_numeric"),
        ("divide(1, 0)", "division_by_zero"),
        ("exp(0, -1)", "division_by_zero"),
        ("exp(-1, .5)", "not_real"),
        ("exp(10, 19)", "too_large"),
        ("exp(10, 1000000)", "too_large"),
        ("multiply(1000000000, 1000000000), multiply(#0, 10)", "too_large"),
        ("add(9999999999999999999, 1)", "too_large"),
    ],
)
def test_every_refusal_has_a_name(program: str, expected: str) -> None:
    assert reason(program) == expected


@pytest.mark.parametrize(
    ("program", "official", "expected"),
    [
        ("add(1, 2), add(#0, 5", (0, 3.0), "syntax"),
        ("", (0, "n/a"), "empty"),
        ("add(", (0, "n/a"), "syntax"),
        ("add(1, 2), add(-#0, 0)", (0, 3.0), "bad_argument"),
        ("add(1, 2), add(0#0, 0)", (0, 3.0), "bad_argument"),
        ("add(1,000, 1)", (0, 1001.0), "bad_argument"),
        ("add(1_000, 1)", (0, 1001.0), "bad_argument"),
        ("add(1e3, 1)", (0, 1001.0), "bad_argument"),
        ("add(5., 1)", (0, 6.0), "bad_argument"),
        ("add(inf, 1)", (0, float("inf")), "bad_argument"),
        ("add(const_7.5, 1)", (0, 8.5), "bad_argument"),
        ("greater(2, 1), greater(1, 2), greater(#0, #1)", (0, "yes"), "not_last"),
        ("table_sum(total, none)", (0, 4015.0), "unknown_row"),
        ("table_sum(cash, none), table_max(#0, none)", (0, 5.0), "bad_reference"),
        ("table_sum(cash, whatever)", (0, 8.0), "bad_argument"),
        ("table_max(odd, none)", (0, 1000.0), "row_not_numeric"),
        (", ".join(["add(1, 1)"] * (MAX_STEPS + 1)), (0, 2.0), "too_many_steps"),
        ("exp(10, 19)", (0, 1e19), "too_large"),
    ],
)
def test_the_documented_differences(program: str, official: tuple[int, object], expected: str) -> None:
    assert run_official(program, TABLE) == official
    assert reason(program) == expected


def test_official_takes_nan_and_strict_does_not() -> None:
    invalid, value = run_official("add(nan, 1)", TABLE)
    assert invalid == 0 and value != value
    assert reason("add(nan, 1)") == "bad_argument"


def test_official_mode_of_execute() -> None:
    assert execute("add(1_000, 1)", TABLE, mode="official") == 1001.0
    with pytest.raises(ProgramError) as caught:
        execute("divide(1, 0)", TABLE, mode="official")
    assert caught.value.reason == "official_invalid"
    with pytest.raises(ValueError, match="expected strict or official"):
        execute("add(1, 1)", TABLE, mode="lax")


@pytest.mark.parametrize(
    ("cell", "value"),
    [("$ 1,234", 1234.0), ("-5 ( 5 )", -5.0), ("12%", 0.12), ("12 %", 0.12), ("5.5% ( 5.5 % )", 0.055)]
    + [(cell, None) for cell in ("( 12 )", "", "n/a", "1_000", "nan", "1e5", "2007-12", "1" * 20)],
)
def test_cells(cell: str, value: float | None) -> None:
    assert read_cell(cell) == value


def test_answers_are_compared_exactly_and_by_kind() -> None:
    assert same_answer(94.0, 94) and same_answer("yes", "yes") and same_answer(0.0, -0.0)
    assert not same_answer(94.0, 94.00001) and not same_answer("yes", "no")
    assert not same_answer(1.0, "yes") and not same_answer("94.0", 94.0)


def test_equality_follows_the_published_algebra() -> None:
    gold = "subtract(5829, 5735), divide(#0, 5735)"
    assert equal(gold, gold)
    assert equal("add(5829, 5735), subtract(5829, 5735), divide(#1, 5735)", gold)  # a dead step
    assert equal("add(2, 1)", "add(1, 2)") and not equal("greater(2, 1)", "greater(1, 2)")
    assert not equal("subtract(5829.0, 5735), divide(#0, 5735)", gold)  # arguments must occur literally
    assert not equal("subtract(5735, 5829), divide(#0, 5735)", gold)
    assert not equal("nonsense", gold)
    assert equal("add(1, 2), add(", "add(1, 2)", mode="official") and not equal("add(1, 2), add(", "add(1, 2)")
    with pytest.raises(ProgramError):
        equal(gold, "nonsense")


ARGUMENTS = st.sampled_from(
    ["1", "0", "-2", ".5", "3%", "1,000", "nan", "const_100", "const_m1", "const_1.5", "#0", "#1", "-#0", "#9", "none"]
    + ["net revenue", "total", "cash", "odd", "expenses", "", " 1", "1e400", "1(", "a|b", "x" * 40, "\u0661"]
)
STEPS = st.builds(
    lambda op, a, b: f"{op}({a}, {b})", st.sampled_from([*OPERATIONS, "minus", "ADD"]), ARGUMENTS, ARGUMENTS
)
PROGRAMS = st.one_of(st.text(max_size=60), st.lists(STEPS, max_size=6).map(", ".join))


@settings(max_examples=200, deadline=None)
@given(PROGRAMS)
def test_whatever_executes_in_strict_executes_in_official_to_the_same_value(program: str) -> None:
    try:
        value = execute(program, TABLE)
    except ProgramError as error:
        assert error.reason in REASONS
        run_official(program, TABLE)
    else:
        assert run_official(program, TABLE) == (0, value)
        assert equal(program, program)


def test_step_text() -> None:
    assert str(Step("add", ("1", "#0"))) == "add(1, #0)"


@pytest.mark.finqa
def test_every_gold_program_executes_to_its_answer(finqa_folder: Path) -> None:
    count = 0
    for name in ("train", "dev", "test"):
        for record in json.loads((finqa_folder / f"{name}.json").read_text(encoding="utf-8")):
            assert same_answer(execute(record["qa"]["program"], record["table"]), record["qa"]["exe_ans"]), record["id"]
            count += 1
    assert count > 1000
