"""Formula questions that teach llama-tiny which cells and operations a wording wants; none of finqa_mini's wordings."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from utils.finqa.mini import families

if TYPE_CHECKING:
    from numpy.random import Generator


@dataclass(frozen=True)
class Formula:
    """A program over the cells of items a, b, c in years y < z, and how it is asked for.

    `nouns` stand in NOUN_FRAMES and `clauses` in CLAUSE_FRAMES; the frames add the time: one year, a span of years, or
    nothing, where the words name their years themselves.
    """

    program: str
    weight: float
    time: str
    nouns: tuple[str, ...]
    clauses: tuple[str, ...] = ()


TIMES = {
    "year": ((" in {y}", " for {y}", " during {y}"), ("in {y} , ", "for {y} , ", "for the year {y} , ")),
    "span": (
        (" from {y} to {z}", " between {y} and {z}", " from {y} until {z}"),
        ("from {y} to {z} , ", "between {y} and {z} , ", "comparing {y} with {z} , "),
    ),
    "none": (("",), ("",)),
}
"""By kind of time, what stands behind a question and what stands before it."""

NOUN_FRAMES = (
    "what was {noun}{behind}?", "what is {noun}{behind}?", "{before}what was {noun}?", "{before}what is {noun}?",
    "compute {noun}{behind} .", "find {noun}{behind} .", "{before}give {noun} .", "how large was {noun}{behind}?",
    "{noun}{behind}?", "{before}how high was {noun}?", "please state {noun}{behind} .", "{before}show {noun} .",
)  # fmt: skip
CLAUSE_FRAMES = ("{clause}{behind}?", "{before}{clause}?")

FORMULAS = (
    Formula(
        "subtract({az}, {ay})", 3, "span",
        ("the difference in {a}", "the rise in {a}", "the amount of growth in {a}", "the dollar increase of {a}",
         "the absolute change of {a}", "the gain in {a}", "the movement of {a}", "the decline in {a}"),
        ("how much did {a} rise", "by what amount did {a} change", "how many dollars did {a} gain",
         "by how much did {a} go up", "how much has {a} grown"),
    ),
    Formula(
        "subtract({az}, {ay})", 1, "none",
        ("{a} of {z} less {a} of {y}", "{a} in {z} minus {a} in {y}", "how much higher {a} was in {z} than in {y}",
         "the difference between {a} in {z} and {a} in {y}", "the excess of {a} in {z} over {y}"),
    ),
    Formula(
        "subtract({ay}, {by})", 3, "year",
        ("the difference of {a} and {b}", "{a} minus {b}", "{a} less {b}", "the excess of {a} over {b}",
         "what remains of {a} after {b}", "the distance between {a} and {b}", "{a} net of {b}"),
        ("how much larger was {a} than {b}", "by what amount did {a} exceed {b}", "how far was {a} above {b}",
         "how many dollars more was {a} than {b}"),
    ),
    Formula(
        "divide({ay}, {by})", 6, "year",
        ("{a} as a percentage of {b}", "the percentage of {b} that is {a}", "the share of {a} in {b}",
         "the percent of {b} from {a}", "the portion of {b} from {a}", "the fraction of {b} in {a}",
         "the part of {b} that came from {a}", "the proportion of {b} in {a}", "{a} in percent of {b}"),
        ("which percent of {b} is {a}", "what share of {b} came from {a}", "how much of {b} was {a} , in percent",
         "what portion of {b} is made up by {a}", "{a} makes up what percentage of {b}",
         "{a} is related to what percent of {b}"),
    ),
    Formula(
        "divide({ay}, {by})", 2, "year",
        ("the ratio of {a} over {b}", "{a} divided by {b}", "the quotient of {a} by {b}", "{a} as a multiple of {b}",
         "the number of times {b} goes into {a}", "{a} per dollar of {b}"),
        ("how many times as large as {b} was {a}", "{a} is which multiple of {b}"),
    ),
    Formula(
        "divide({az}, {ay})", 2, "none",
        ("{a} of {z} over {a} of {y}", "the ratio of {a} , {z} to {y}", "{a} in {z} as a multiple of {y}",
         "{a} in {z} relative to {a} in {y}", "the factor from {a} of {y} to {a} of {z}",
         "the number of times {a} of {y} goes into {a} of {z}"),
    ),
    Formula(
        "divide({az}, {ay})", 1, "span",
        ("the factor of growth in {a}", "the multiple by which {a} grew"),
        ("by which factor did {a} grow",),
    ),
    Formula(
        "add({ay}, {by})", 2, "year",
        ("the total of {a} and {b}", "{a} and {b} combined", "the sum of {a} with {b}", "{a} plus {b}",
         "{a} together with {b}", "the combined {a} and {b}"),
        ("how much do {a} and {b} add up to", "how much were {a} and {b} in all"),
    ),
    Formula(
        "add({ay}, {az})", 2, "none",
        ("{a} in {y} and {z} combined", "the total {a} over {y} and {z}", "the sum of {a} for {y} and {z}",
         "{a} of {y} plus {a} of {z}", "{a} across the two years {y} and {z}", "the total of {a} , {y} and {z}"),
    ),
    Formula(
        "add({ay}, {by}), add(#0, {cy})", 1, "year",
        ("the total of {a} , {b} and {c}", "{a} , {b} and {c} combined", "the sum of {a} , {b} , {c}",
         "{a} plus {b} plus {c}"),
        ("how much do {a} , {b} and {c} add up to",),
    ),
    Formula(
        "subtract({ay}, {by}), subtract(#0, {cy})", 1, "year",
        ("{a} without {b} and {c}", "what remains of {a} after {b} and {c}", "{a} less {b} less {c}"),
    ),
    Formula(
        "subtract({az}, {ay}), divide(#0, {ay})", 6, "span",
        ("the percentage growth in {a}", "the percent increase of {a}", "the rate of growth of {a}",
         "the rate of change of {a}", "the relative increase in {a}", "the percentage rise in {a}",
         "the percentage decline in {a}", "the percent change of {a}", "the growth of {a} in percent",
         "the relative change of {a}"),
        ("by which percentage did {a} rise", "how many percent did {a} grow", "what percent did {a} change",
         "at which rate did {a} grow", "how fast did {a} grow , in percent"),
    ),
    Formula(
        "add({ay}, {az}), divide(#0, const_2)", 2, "none",
        ("the average {a} of {y} and {z}", "the mean of {a} for {y} and {z}", "the average of {a} , {y} and {z}",
         "{a} on average over {y} and {z}", "the average for the years {y} and {z} of {a}"),
    ),
    Formula(
        "add({ay}, {by}), divide(#0, const_2)", 1, "year",
        ("the average of {a} and {b}", "the mean of {a} with {b}", "{a} and {b} on average"),
    ),
    Formula(
        "add({ay}, {by}), add(#0, {cy}), divide(#1, const_3)", 1, "year",
        ("the average of {a} , {b} and {c}", "the mean of {a} , {b} , {c}", "{a} , {b} and {c} on average"),
    ),
    Formula("multiply({ay}, const_1000)", 1, "year", ("{a} in thousands", "{a} a thousand times")),
    Formula(
        "subtract({az}, {ay}), multiply(#0, const_1000)", 0.5, "span",
        ("the rise in {a} , in thousands ,", "a thousand times the gain in {a}"),
    ),
    Formula(
        "divide({ay}, {by}), multiply(#0, const_100)", 1, "year",
        ("{a} per hundred of {b}", "a hundred times the ratio of {a} over {b}"),
    ),
    Formula(
        "subtract({az}, {ay}), divide(#0, {ay}), multiply(#1, const_100)", 1, "span",
        ("the growth of {a} per hundred", "a hundred times the relative increase in {a}"),
    ),
    Formula(
        "divide({az}, {ay}), subtract(#0, const_1)", 0.5, "none",
        ("the ratio of {a} , {z} to {y} , minus one", "{a} of {z} over {a} of {y} , less 1"),
    ),
    Formula(
        "divide({az}, {bz}), divide({ay}, {by}), subtract(#0, #1)", 1, "span",
        ("the gain of {a} in percent of {b}", "the rise in the ratio of {a} over {b}",
         "the change in {a} as a percentage of {b}"),
    ),
    Formula(
        "subtract({az}, {ay}), divide(#0, {ay}), subtract({bz}, {by}), divide(#2, {by}), subtract(#1, #3)", 1, "span",
        ("the growth rate of {a} less the growth rate of {b}",
         "the distance between the percentage rise in {a} and in {b}"),
    ),
    Formula(
        "greater({ay}, {by})", 1, "year", (),
        ("is {a} greater than {b}", "was {a} larger than {b}", "did {a} go beyond {b}"),
    ),
    Formula("table_average({a}, none)", 0.5, "none", ("the average of the row {a}", "the middle of all {a}")),
    Formula("table_max({a}, none)", 0.5, "none", ("the top of the row {a}", "the highest of all {a}")),
    Formula("table_min({a}, none)", 0.5, "none", ("the bottom of the row {a}", "the lowest of all {a}")),
    Formula("table_sum({a}, none)", 0.5, "none", ("the total of the row {a}", "all of {a} in one")),
)  # fmt: skip
"""Formulas in wordings of their own. finqa_mini asks otherwise, and wants a program and an answer."""

FINQA_MINI = frozenset(phrasing for family in families() for phrasing in family.phrasings)
"""Wordings that are never drawn: a dozen of the 3,158 that could be."""


def pick(rng: Generator, options: tuple[str, ...] | list[str]) -> str:
    """One of the options, each equally likely."""
    return options[int(rng.integers(len(options)))]


def formula_question(rng: Generator, cells: dict[tuple[str, str], str]) -> tuple[str, str]:
    """A program over cells of up to three items and two years; now and then an amount stands in a sentence."""
    years = sorted({year for _, year in cells})
    rows = list(dict.fromkeys(item for item, _ in cells if (item, years[0]) in cells and (item, years[-1]) in cells))
    start = int(rng.integers(len(years) - 1))
    names = dict(zip("abc", [rows[i] for i in rng.permutation(len(rows))], strict=False)) | {
        "y": years[start],
        "z": years[int(rng.integers(start + 1, len(years)))],
    }
    outside = [(item, year) for item, year in cells if item not in rows]
    if outside and rng.random() < 0.15:
        names["b"], names["y"] = outside[int(rng.integers(len(outside)))]
        names["z"] = ""
    values = {i + y: cells[names[i], names[y]] for i in "abc" for y in "yz" if (names.get(i), names[y]) in cells}
    known = {**names, **values}
    usable = [formula for formula in FORMULAS if _slots(formula) <= {name for name, value in known.items() if value}]
    weights = np.cumsum([formula.weight for formula in usable])
    formula = usable[int(np.searchsorted(weights, rng.random() * weights[-1], side="right"))]
    question = wording_of(rng, formula).format(**known)
    return question, json.dumps({"formula": formula.program.format(**known)})


def wording_of(rng: Generator, formula: Formula) -> str:
    """One way of asking for a formula, with places for items and years."""
    while True:
        phrase = pick(rng, formula.nouns + formula.clauses)
        wording = pick(rng, NOUN_FRAMES if phrase in formula.nouns else CLAUSE_FRAMES)
        behind, before = (pick(rng, options) for options in TIMES[formula.time])
        for place, text in (("noun", phrase), ("clause", phrase), ("behind", behind), ("before", before)):
            wording = wording.replace(f"{{{place}}}", text)
        if wording not in FINQA_MINI:
            return wording


def _slots(formula: Formula) -> set[str]:
    """Names that any wording of the formula needs."""
    words = [
        formula.program,
        *formula.nouns,
        *formula.clauses,
        *(text for part in TIMES[formula.time] for text in part),
    ]
    return set(re.findall(r"{(\w+)}", " ".join(words)))
