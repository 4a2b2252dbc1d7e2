"""The published evaluator's quirks, its program equality against sympy itself, and its command."""

from __future__ import annotations

import itertools
import json
import random
from fractions import Fraction
from pathlib import Path

import pytest

from utils.finqa import equality
from utils.finqa.equality import (
    MAX_NODES,
    TOO_LONG,
    Formula,
    differ_somewhere,
    distributed_form,
    flat_form,
    infix,
    join,
    same_algebra,
    value_at,
)
from utils.finqa.official import (
    equal_official,
    formula,
    main,
    number_symbols,
    run_official,
    step_texts,
    tokenise,
)
from utils.finqa.program import ProgramError, equal, execute

TABLE = (("total", "2007"), ("cash", "3"), ("cash", "5"), ("loss", "(12)"), ("gain", "-5 ( 5 )"), ("rate", "12%"))
GOLD = "subtract(a, b), divide(#0, b)"


def test_tokens_as_published() -> None:
    assert tokenise("add(1, 2), add(#0, x y)") == ["add(", "1", "2", ")", "add(", "#0", "x y", ")"]
    assert tokenise("add(1, 2") == ["add(", "1", "2"] and tokenise("") == []


@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        ("add(1, 2), divide(#0, 0)", (1, 3.0)),  # the value of an invalid program is the last one computed
        ("divide(2, 3), add($5, 1)", (1, 0.66667)),  # rounded where the evaluator stops by itself
        ("divide(2, 3), divide(#0, 0)", (1, 2 / 3)),  # not rounded where Python raises
        ("add(1, 2), add(#7, 1)", (1, 3.0)),
        ("add(1, const_x)", (1, "n/a")),
        ("add(5 %, 1)", (0, 1.05)),
        ("add(x%, 1)", (1, "n/a")),
        ("add(1, $5)", (1, "n/a")),
        ("exp(10, 400)", (1, "n/a")),
        ("greater(1, 2), add(#0, 1)", (1, "no")),
        ("greater(1, 2), add(#0, #0), greater(#1, #0)", (0, "yes")),  # words are joined and compared
        ("table_sum(loss, none)", (1, "n/a")),
        ("table_sum(gain, none)", (0, -5.0)),
        ("table_sum(rate, none)", (0, 0.12)),
        ("table_sum(total, none)", (0, 2007.0)),
        ("table_min(cash, none)", (0, 5.0)),
        ("table_average(Cash, none)", (1, "n/a")),
        ("add(1, 2), table_max(#0, none)", (1, 3.0)),  # no row was read before
        ("table_sum(cash, none), table_max(#9, none)", (1, 5.0)),
        ("add(multiply(1, 2), 2)", (1, "n/a")),
        ("add((1, 2)", (1, "n/a")),
        ("nonsense", (1, "n/a")),
        ("add, 1(, 2|3)", (0, "n/a")),  # the step's operation reads as `add|1`, which is none: nothing is computed
        ("add(1, 2), add(3, 4, 5)", (1, "n/a")),  # the structure is checked before anything is computed
    ],
)
def test_quirks(program: str, verdict: tuple[int, object]) -> None:
    assert run_official(program, TABLE) == verdict


def test_a_complex_power_is_invalid_and_returned() -> None:
    invalid, value = run_official("exp(-1, 0.5)", TABLE)
    assert invalid == 1 and isinstance(value, complex)


@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        (GOLD, True),
        ("subtract(a, b), divide(# 0, b)", True),
        ("divide(a, b), divide(b, b), subtract(#0, #1)", True),  # a/b - b/b: sympy makes both (a - b)/b
        ("subtract(a, b), divide(-#0, b)", False),
        ("subtract(a, b), divide(1#0, b)", False),
        ("subtract(a, b), divide(#1, b)", False),
        ("subtract(a, b), divide(#-1, b)", False),
        ("subtract(a, b), divide(#0, c)", False),
        ("subtract(a, b), divide(#0, a)", False),
        ("subtract(a, b), greater(#0, b)", False),
        ("subtract(a, b), divide(#0, b), add(#0", True),
        ("subtract(a, b), divide(#0, b), add((#0)", False),
        ("table_sum(a, none)", False),
        ("minus(a, b)", False),
        ("", False),
    ],
)
def test_program_equality(program: str, verdict: bool) -> None:
    assert equal_official(program, GOLD) is verdict


def test_table_steps_are_symbols_as_a_whole() -> None:
    gold = "table_sum(cash, none), divide(#0, 2)"
    assert equal_official(gold, gold)
    assert not equal_official("table_sum(cash, nothing), divide(#0, 2)", gold)
    assert not equal_official("table_max(cash, none), divide(#0, 2)", gold)


@pytest.mark.parametrize("gold", ["", "nonsense", "add(1, #0)", "add(multiply(1, 2), 2)"])
def test_a_gold_without_formula_is_refused(gold: str) -> None:
    with pytest.raises(ProgramError):
        equal_official("add(1, 2)", gold)


def test_doubling_ends() -> None:
    doubled = "add(a, b), " + ", ".join(f"add(#{i}, #{i})" for i in range(200))
    assert equal_official(doubled, "add(a, b)") is False
    with pytest.raises(ValueError, match=str(MAX_NODES)):
        formula(step_texts(tokenise(doubled)), number_symbols(step_texts(tokenise(doubled))))


def random_formula(rng: random.Random, operations: int, symbols: int) -> Formula:
    if not operations:
        return Formula(symbol=rng.randrange(symbols))
    left = rng.randrange(operations)
    op = rng.choice(["add", "subtract", "multiply", "divide"] * 4 + ["exp"])
    return join(op, random_formula(rng, left, symbols), random_formula(rng, operations - 1 - left, symbols))


def rewritten(rng: random.Random, whole: Formula) -> Formula:
    """The same value, written differently: commuted, regrouped, distributed."""
    if not whole.op:
        return whole
    left, right = whole.parts()
    if rng.random() < 0.4 and left.op and (whole.op, left.op) in REGROUPED:
        first, second = left.parts()
        outer, inner = REGROUPED[whole.op, left.op]
        return rewritten(rng, join(outer, first, join(inner, second, right)))
    if rng.random() < 0.3 and whole.op == "divide" and left.op in ("add", "subtract"):
        first, second = left.parts()
        return rewritten(rng, join(left.op, join("divide", first, right), join("divide", second, right)))
    left, right = rewritten(rng, left), rewritten(rng, right)
    return join(whole.op, right, left) if whole.op in ("add", "multiply") else join(whole.op, left, right)


REGROUPED = {
    ("add", "add"): ("add", "add"),
    ("multiply", "multiply"): ("multiply", "multiply"),
    ("subtract", "subtract"): ("subtract", "add"),
    ("divide", "divide"): ("divide", "multiply"),
}


def test_the_short_cuts_decide_as_sympy_does() -> None:
    """Random formulas against sympy itself; the short cuts must leave it few, or they would prove nothing."""
    from sympy import simplify

    rng = random.Random(5)
    equal_pairs = 0
    for _ in range(60):
        gold = random_formula(rng, rng.randrange(1, 4), rng.randrange(2, 5))
        own = rewritten(rng, gold) if rng.random() < 0.7 else random_formula(rng, rng.randrange(1, 4), 4)
        expected = simplify(infix(gold), evaluate=False) == simplify(infix(own), evaluate=False)
        assert same_algebra(gold, own) is bool(expected), (infix(gold), infix(own))
        equal_pairs += bool(expected)
    assert 20 < equal_pairs < 60


def test_proofs_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(gold: Formula, own: Formula) -> bool:
        raise AssertionError(f"sympy was asked about {infix(gold)} and {infix(own)}")

    monkeypatch.setattr(equality, "same_by_sympy", refuse)
    a, b, c = (Formula(symbol=number) for number in range(3))
    assert same_algebra(join("add", a, b), join("add", b, a))
    assert same_algebra(join("add", join("add", a, b), c), join("add", a, join("add", c, b)))
    assert same_algebra(join("divide", join("divide", a, b), c), join("divide", a, join("multiply", c, b)))
    assert same_algebra(join("subtract", a, join("subtract", b, c)), join("add", join("subtract", a, b), c))
    assert not same_algebra(join("subtract", a, b), join("subtract", b, a))
    assert not same_algebra(join("greater", a, b), join("greater", b, a))
    assert not same_algebra(join("greater", a, b), join("subtract", a, b))
    assert not same_algebra(join("exp", a, b), join("multiply", a, b))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_distribution_is_one_expression_for_sympy(order: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every order of the three names, as proof 4 claims; then the proof decides them without sympy."""
    from sympy import simplify

    monkeypatch.setattr(equality, "same_by_sympy", lambda gold, own: False)
    a, b, c = (Formula(symbol=number) for number in order)
    for sign in ("add", "subtract"):
        for op in ("multiply", "divide"):
            spread = join(sign, join(op, a, c), join(op, b, c))
            wholes = [join(op, join(sign, a, b), c)] + ([join(op, c, join(sign, a, b))] if op == "multiply" else [])
            for whole in wholes:
                assert simplify(infix(whole), evaluate=False) == simplify(infix(spread), evaluate=False)
                assert same_algebra(whole, spread) and same_algebra(spread, whole)
    assert distributed_form(join("divide", join("add", a, b), b)) == flat_form(join("divide", join("add", a, b), b))


def test_points_prove_difference_only() -> None:
    a, b = Formula(symbol=0), Formula(symbol=1)
    zero = join("subtract", a, a)
    assert not differ_somewhere(join("divide", a, zero), b)  # undefined everywhere: nothing is proven
    assert flat_form(join("add", a, a)) is None and flat_form(join("divide", a, a)) is None
    assert flat_form(join("exp", a, b)) is None and flat_form(join("greater", join("exp", a, b), b)) is None
    assert (
        flat_form(join("multiply", join("add", a, a), b)) is None
        and flat_form(join("add", join("exp", a, b), b)) is None
    )


def test_values_at_a_point_are_exact_or_none() -> None:
    a, b = Formula(symbol=0), Formula(symbol=1)
    x, y = value_at(a, 0), value_at(b, 0)
    assert isinstance(x, Fraction) and isinstance(y, Fraction) and x != y
    assert value_at(join("divide", a, b), 0) == x / y and value_at(join("greater", a, b), 0) is (x > y)
    assert value_at(join("exp", a, b), 0) == x**y
    zero, half = join("subtract", a, a), join("divide", a, join("add", a, a))
    assert value_at(join("exp", zero, b), 0) is None and value_at(join("exp", b, half), 0) is None
    assert value_at(join("divide", b, zero), 0) is None and value_at(join("add", b, join("divide", b, zero)), 0) is None
    assert equality._bounded(Fraction(2**5000)) == TOO_LONG and equality._bounded(Fraction(3, 7)) == Fraction(3, 7)
    one = join("divide", a, a)
    two = join("add", one, one)
    many = join("exp", two, join("exp", two, join("exp", two, two)))  # 65536
    huge = join("exp", many, many)
    assert value_at(huge, 0) == TOO_LONG and value_at(join("multiply", zero, huge), 0) == TOO_LONG
    assert value_at(join("exp", two, join("add", many, half)), 0) == TOO_LONG
    assert value_at(join("exp", one, many), 0) == 1
    assert differ_somewhere(b, huge) and not differ_somewhere(huge, b) and not differ_somewhere(huge, huge)


def test_flat_forms_keep_signs_and_exponents() -> None:
    a, b = Formula(symbol=0), Formula(symbol=1)
    forms = [flat_form(join(op, a, b)) for op in ("add", "subtract", "multiply", "divide", "greater")]
    assert forms == ["(+*a0+*a1)", "(+*a0-*a1)", "(+*a0*a1)", "(+*a0/a1)", "(+*a0)>(+*a1)"]
    assert flat_form(join("subtract", a, join("subtract", b, join("divide", a, b)))) == "(+*a0+*a0/a1-*a1)"


def test_arithmetic_on_a_comparison_is_what_sympy_refuses() -> None:
    from sympy import simplify

    a, b = Formula(symbol=0), Formula(symbol=1)
    for op in ("add", "subtract", "multiply", "divide", "exp", "greater"):
        for own in (join(op, join("greater", a, b), b), join(op, b, join("greater", a, b))):
            with pytest.raises(TypeError):
                simplify(infix(own), evaluate=False)
            assert not same_algebra(join("subtract", a, b), own)
    with pytest.raises(ProgramError):
        equal_official("add(1, 2)", "greater(1, 2), add(#0, 1)")


def test_what_sympy_cannot_take_is_unequal(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = Formula(symbol=0), Formula(symbol=1)
    asked: list[str] = []

    def simplify(text: str) -> str:
        asked.append(text)
        if len(asked) == 2:
            raise TypeError("no")
        return text

    monkeypatch.setattr(equality, "_simplify", simplify)
    assert not equality.same_by_sympy(a, b) and asked == ["a0", "a1"]


def test_what_sympy_itself_cannot_take_is_unequal() -> None:
    a, b = Formula(symbol=0), Formula(symbol=1)
    nothing = join("subtract", a, a)
    undefined = join("greater", join("divide", nothing, nothing), b)
    deep = a
    for _ in range(220):
        deep = join("divide", deep, b)
    for own, error in ((undefined, TypeError), (deep, ValueError)):
        with pytest.raises(error):
            equality._simplify(equality.infix(own))
        assert not equality.same_by_sympy(a, own)


def write_data(folder: Path) -> Path:
    qa = {"program": "add(1, 2)", "exe_ans": 3.0}
    (folder / "data").mkdir()
    (folder / "data" / "x.json").write_text(json.dumps([{"id": "r", "table": [["", "1"]], "qa": qa}]))
    return folder / "data"


def test_the_command_writes_the_verdicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(tmp_path)
    rows = [{"id": "r", "program": "add(2, 1)", "note": "kept"}, {"id": "r", "program": "exp(-1, 0.5)"}]
    (tmp_path / "cases.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert main([str(tmp_path / "cases.jsonl"), "--data", str(data)]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {**rows[0], "invalid": 0, "result": 3.0, "exe_correct": True, "program_equal": True}
    assert second["invalid"] == 1 and second["exe_correct"] is False and isinstance(second["result"], str)


@pytest.mark.parametrize("line", ['{"id": "unknown", "program": "add(1, 2)"}', '{"id": "r"}', "{", "[]"])
def test_the_command_names_the_bad_line(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(tmp_path)
    (tmp_path / "cases.jsonl").write_text(line)
    assert main([str(tmp_path / "cases.jsonl"), "--data", str(data)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "cases.jsonl:1" in error and error.count("\n") == 1


def test_the_command_wants_files_and_whole_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = tmp_path / "cases.jsonl"
    assert main([str(cases), "--data", str(tmp_path)]) == 2
    assert "no records" in capsys.readouterr().err
    data = write_data(tmp_path)
    assert main([str(cases), "--data", str(data)]) == 2
    assert "cases.jsonl: no such file" in capsys.readouterr().err
    cases.write_text('{"id": "r", "program": "add(1, 2)"}')
    for record in ({"id": "r"}, {"id": "r", "table": [], "qa": {"program": "", "exe_ans": 3.0}}):
        (data / "x.json").write_text(json.dumps([record]))
        assert main([str(cases), "--data", str(data)]) == 2
        assert "record r has no usable" in capsys.readouterr().err


@pytest.mark.finqa
def test_every_published_verdict_is_reproduced(finqa_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All four fields of the recorded verdicts, where they lie beside the data."""
    path = finqa_folder / "evaluator_cases.jsonl"
    expected = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    if expected:
        assert main([str(path), "--data", str(finqa_folder)]) == 0
        assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == expected


@pytest.mark.finqa
def test_gold_scores_one_and_one(finqa_folder: Path) -> None:
    for name in ("train", "dev", "test"):
        for record in json.loads((finqa_folder / f"{name}.json").read_text(encoding="utf-8")):
            program = record["qa"]["program"]
            assert run_official(program, record["table"]) == (0, record["qa"]["exe_ans"]), record["id"]
            assert equal_official(program, program), record["id"]


def test_numbers_that_sympy_would_not_end_on_are_not_gold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of the right value, whose constants sympy would multiply out: (1 + 2^-32)^(2^32) has 17 GB."""
    monkeypatch.setattr(equality, "_simplify", lambda text: pytest.fail(f"sympy is asked for {text[:40]}"))
    gold = "subtract(5829, 5735), divide(#0, 5735)"
    own = (
        "divide(5829, 5829), add(#0, #0), exp(#1, #1), exp(#2, #2), exp(#3, #2), divide(#0, #4), add(#0, #5), "
        "exp(#6, #4), subtract(#7, #7), subtract(5829, 5735), divide(#9, 5735), add(#10, #8)"
    )
    assert execute(own, []) == execute(gold, [])
    assert not equal(own, gold)
