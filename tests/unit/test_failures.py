"""Every reason of a miss, from a completion that has just this fault; and the published verdict beside ours."""

from __future__ import annotations

import pytest

from utils.finqa.answers import write_answer
from utils.finqa.examples import FinQAExample
from utils.finqa.failures import FAILURES, by_value
from utils.finqa.published import Official, official
from utils.rewards.scoring import judge
from utils.rewards.spec import PROFILES

PROMPT = "the revenue of 2018 is 5829 ; the revenue of 2017 is 5735 ;\nquestion: by how much did it rise ?\nanswer:"
GOLD = "subtract(5829, 5735), divide(#0, 5735)"  # 94 / 5735 = 0.01639


def example(exe_ans: float = 0.01639, program: str | None = GOLD) -> FinQAExample:
    return FinQAExample(
        id="one",
        input_text=PROMPT,
        target_answer=str(exe_ans),
        target_program=program,
        question="by how much did it rise ?",
        exe_ans=exe_ans,
    )


MISSES = {
    "format": "i do not know",
    "unparsable": write_answer("subtract(5829, 5735", 0.0),
    "not_executable": write_answer("divide(5829, const_0)", 0.0),
    "answer_kind": write_answer("greater(5829, 5735)", "yes"),
    "sign": write_answer("subtract(5735, 5829), divide(#0, 5735)", 0.0),
    "scale_100": write_answer(f"{GOLD}, multiply(#1, const_100)", 0.0),
    "rounding": write_answer("divide(94.5, 5735)", 0.0),
    "ungrounded_number": write_answer("subtract(6000, 5735), divide(#0, 5735)", 0.0),
    "wrong_operation": write_answer("subtract(5829, 5735)", 0.0),
    "wrong_operand": write_answer("subtract(5829, 2017), divide(#0, 5735)", 0.0),
}


@pytest.mark.parametrize(("reason", "text"), MISSES.items())
def test_every_miss_has_its_reason(reason: str, text: str) -> None:
    verdict = judge(text, example(), PROFILES["strict"])
    assert not verdict.correct and verdict.failure == reason
    assert official(example(), text, verdict) == Official(False, False)


def test_a_miss_without_a_gold_program_has_a_reason_and_none_is_left_out() -> None:
    verdict = judge(MISSES["wrong_operand"], example(program=None), PROFILES["strict"])
    assert verdict.failure == "wrong_value"
    assert {*MISSES, "wrong_value"} == set(FAILURES)
    assert judge(write_answer(GOLD, 0.01639), example(), PROFILES["strict"]).failure == ""


@pytest.mark.parametrize(
    ("result", "exe_ans", "reason"),
    [
        (1.63949, 0.01639, "scale_100"),  # both are rounded: 0.0163949 becomes 0.01639, 0.00049 from 100 x 0.01639
        (0.01639, 1.63949, "scale_100"),
        (94.0, 0.94, "scale_100"),
        (-94.0, -0.94, "scale_100"),
        (-94.0, 0.94, ""),  # scale and sign
        (1.6401, 0.01639, ""),  # 0.0011 away: no rounding does that
        (0.0004, 0.0, ""),
        (0.0, 0.0004, ""),
        (-7.0, 7.0, "sign"),
        (1.009, 1.0, "rounding"),
        (1.011, 1.0, ""),
        ("yes", 1.0, "answer_kind"),
        ("yes", "no", ""),
    ],
)
def test_values_alone_tell_kind_sign_scale_and_rounding(result: float | str, exe_ans: float | str, reason: str) -> None:
    assert by_value(result, exe_ans) == reason


@pytest.mark.parametrize(
    ("program", "exe_ans", "gold", "expected"),
    [
        (GOLD, 0.01639, GOLD, Official(True, True)),
        ("subtract(5,829, 5735)", 94.0, "subtract(5829, 5735)", Official(True, False)),  # float() reads 5,829
        (f"{GOLD[:-1]}", 94.0, GOLD, Official(True, False)),  # the last step is dropped
        ("add(5735, 5829)", 11564.0, "add(5829, 5735)", Official(True, True)),
        ("subtract(5829, 5735), divide(#7, 2)", 94.0, GOLD, Official(False, False)),  # invalid; 94 is what was left
        ("", 94.0, GOLD, Official(False, False)),  # valid there, with the result n/a
        (GOLD, 0.01639, None, Official(True, False)),
    ],
)
def test_the_published_evaluator_judges_the_same_completion(
    program: str, exe_ans: float, gold: str | None, expected: Official
) -> None:
    asked, text = example(exe_ans, gold), write_answer(program, exe_ans)
    verdict = judge(text, asked, PROFILES["strict"])
    assert official(asked, text, verdict) == expected
    assert expected.correct or not verdict.correct
