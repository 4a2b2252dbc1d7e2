"""Does sympy's `simplify` make two program formulas the same? Decided by hand where possible, by sympy where not.

FinQA's program accuracy compares `simplify(gold) == simplify(predicted)`. That is structural equality of two
heuristic results: not every pair of equal formulas passes, so only sympy itself can decide those. Four cheap proofs
leave it few pairs:

1. equal up to swapping the operands of + and *: sympy's constructors are symmetric, both sides are one expression
2. different values at some rational point: `simplify` preserves values, so the results differ. So it is taken, too,
   where the numbers of `own` are too long for us at every point and gold's are not: sympy, which multiplies numbers out
   as they come, would not end on them (`(1 + 2 ** -32) ** 2 ** 32` has 17 GB), and a model could write it
3. the same sums and products after flattening, nothing repeated in any of them: sympy's own evaluation only flattens
   and sorts then, so again both sides are one expression before `simplify` starts
4. `(a + b) / c` and `a / c + b / c` of three different symbols, and the same with - and *: `simplify` makes them one
   expression. It goes by the order of the three names, so tests/unit/test_official.py shows it for all six orders
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

MAX_NODES = 500
"""Formulas with more nodes (doubled references) are refused: sympy would not end on them."""
POINTS = 6
"""Rational points at which two formulas are compared."""
MAX_BITS = 4096
"""Longer numbers are not computed."""
TOO_LONG = "too long"

SIGNS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/", "exp": "**", "greater": ">"}


@dataclass(frozen=True)
class Formula:
    """A tree over symbols a0, a1, …: `op` is a key of SIGNS, or "" for the symbol of number `symbol`."""

    op: str = ""
    left: Formula | None = None
    right: Formula | None = None
    symbol: int = -1
    nodes: int = 1

    def parts(self) -> tuple[Formula, Formula]:
        """Return both operands of an operation."""
        assert self.left is not None and self.right is not None
        return self.left, self.right


def join(op: str, left: Formula, right: Formula) -> Formula:
    """Return the formula `left op right`. Errors: ValueError beyond MAX_NODES, KeyError for an unknown operation."""
    SIGNS[op]
    nodes = left.nodes + right.nodes + 1
    if nodes > MAX_NODES:
        raise ValueError(f"a formula of more than {MAX_NODES} nodes")
    return Formula(op, left, right, nodes=nodes)


def same_algebra(gold: Formula, own: Formula) -> bool:
    """Say whether simplify(gold) == simplify(own); False too when sympy refuses `own`."""
    if truth_inside(own):
        return False
    if commutative_form(gold) == commutative_form(own):
        return True
    if differ_somewhere(gold, own):
        return False
    for form in (flat_form, distributed_form):
        text = form(gold)
        if text is not None and text == form(own):
            return True
    return same_by_sympy(gold, own)


def truth_inside(formula: Formula) -> bool:
    """Say whether a comparison is an operand: sympy raises TypeError for arithmetic on truths."""
    return bool(formula.op) and any(part.op == "greater" or truth_inside(part) for part in formula.parts())


def infix(formula: Formula) -> str:
    """Write the formula as the published evaluator hands it to sympy: `( ( a0 - a1 ) / a1 )`."""
    if not formula.op:
        return f"a{formula.symbol}"
    left, right = formula.parts()
    return f"( {infix(left)} {SIGNS[formula.op]} {infix(right)} )"


def commutative_form(formula: Formula) -> str:
    """Write the formula with the operands of + and * in a fixed order."""
    if not formula.op:
        return f"a{formula.symbol}"
    left, right = map(commutative_form, formula.parts())
    if formula.op in ("add", "multiply") and right < left:
        left, right = right, left
    return f"({left}{SIGNS[formula.op]}{right})"


def differ_somewhere(first: Formula, second: Formula) -> bool:
    """Say whether a point proves that the formulas differ: unequal numbers, unequal truth, or a number and a truth.

    True, too, when the second is too long at all of them and the first at none.
    """
    values = [(value_at(first, point), value_at(second, point)) for point in range(POINTS)]
    if all(right == TOO_LONG and left != TOO_LONG for left, right in values):
        return True
    known = [pair for pair in values if None not in pair and TOO_LONG not in pair]
    return any(type(left) is not type(right) or left != right for left, right in known)


def coordinate(symbol: int, point: int) -> Fraction:
    """Return a symbol's value at a point: a scattered integer from 1 to 97, of mixed signs from the third point on."""
    scattered = ((symbol + 1) * 2654435761 + (point + 1) * 40503 * (symbol + 3)) >> 7
    sign = -1 if point >= 2 and scattered >> 9 & 1 else 1
    return Fraction(sign * (scattered % 97 + 1))


Value = Fraction | bool | str | None


def value_at(formula: Formula, point: int) -> Value:
    """Return the exact value at a point; None where it is undefined or a truth is used as a number, or TOO_LONG."""
    if not formula.op:
        return coordinate(formula.symbol, point)
    left, right = (value_at(part, point) for part in formula.parts())
    if TOO_LONG in (left, right):
        return TOO_LONG
    if not isinstance(left, Fraction) or not isinstance(right, Fraction):
        return None
    if formula.op == "greater":
        return left > right
    if formula.op == "exp":
        return _power(left, right)
    if formula.op == "divide":
        return _bounded(left / right) if right else None
    if formula.op == "multiply":
        return _bounded(left * right)
    return _bounded(left + right if formula.op == "add" else left - right)


def _power(base: Fraction, exponent: Fraction) -> Value:
    """Integer powers of what is not 0; others have no one exact value, or are too long as their integer part is."""
    if not base:
        return None
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(base) != 1 and abs(exponent) * bits > MAX_BITS:
        return TOO_LONG
    return Fraction(base ** int(exponent)) if exponent.denominator == 1 else None


def _bounded(value: Fraction) -> Value:
    return value if value.numerator.bit_length() + value.denominator.bit_length() <= MAX_BITS else TOO_LONG


def flat_form(formula: Formula) -> str | None:
    """Write the formula with nested sums and products flattened and sorted; None when proof 3 does not apply.

    It does not when a sum has a term twice or a product a factor twice (sympy would collect them, and the order of
    collecting shows), nor for powers (sympy would combine them).
    """
    if formula.op == "greater":
        left, right = map(flat_form, formula.parts())
        return None if left is None or right is None else f"{left}>{right}"
    return _write_sum(_terms(formula))


_Factors = dict[str, int]
_Terms = dict[str, int] | None


def _terms(formula: Formula) -> _Terms:
    """Return the terms of a formula seen as a sum, each with its sign; None when one occurs twice."""
    if formula.op not in ("add", "subtract"):
        factors = _factors(formula)
        return None if factors is None else {_write_product(factors): 1}
    left, right = map(_terms, formula.parts())
    if left is None or right is None or left.keys() & right.keys():
        return None
    sign = 1 if formula.op == "add" else -1
    return {**left, **{term: sign * value for term, value in right.items()}}


def _factors(formula: Formula) -> _Factors | None:
    """Return the factors of a formula seen as a product, each with exponent 1 or -1; None when one occurs twice."""
    if not formula.op:
        return {f"a{formula.symbol}": 1}
    if formula.op in ("add", "subtract"):
        text = _write_sum(_terms(formula))
        return None if text is None else {text: 1}
    if formula.op not in ("multiply", "divide"):
        return None
    left, right = map(_factors, formula.parts())
    if left is None or right is None or left.keys() & right.keys():
        return None
    sign = 1 if formula.op == "multiply" else -1
    return {**left, **{factor: sign * value for factor, value in right.items()}}


def _write_sum(terms: _Terms) -> str | None:
    if terms is None:
        return None
    return "(" + "".join(f"{'+' if terms[term] > 0 else '-'}{term}" for term in sorted(terms)) + ")"


def _write_product(factors: _Factors) -> str:
    return "".join(f"{'*' if factors[factor] > 0 else '/'}{factor}" for factor in sorted(factors))


def distributed_form(formula: Formula) -> str | None:
    """Write `(a + b) / c`, of three different symbols, as `a / c + b / c`; any other formula as `flat_form` does."""
    if formula.op in ("multiply", "divide"):
        whole, by = formula.parts()
        if formula.op == "multiply" and not whole.op:
            whole, by = by, whole
        if whole.op in ("add", "subtract"):
            first, second = whole.parts()
            if not (first.op or second.op or by.op) and len({first.symbol, second.symbol, by.symbol}) == 3:
                formula = join(whole.op, join(formula.op, first, by), join(formula.op, second, by))
    return flat_form(formula)


SYMPY_ERRORS = (RecursionError, TypeError, ValueError)
"""What sympy raises on a formula that it cannot take: TypeError for a comparison with NaN, ValueError (SympifyError)
beyond 200 nested parentheses, RecursionError where the stack is full already. Such an answer is not equal to gold."""


def same_by_sympy(gold: Formula, own: Formula) -> bool:
    """Ask sympy, as the published evaluator does. Errors: whatever sympy raises on `gold`."""
    simplified = _simplify(infix(gold))
    try:
        return bool(simplified == _simplify(infix(own)))
    except SYMPY_ERRORS:
        return False


@lru_cache(maxsize=4096)
def _simplify(text: str) -> Any:
    from sympy import simplify

    return simplify(text, evaluate=False)
