"""Features of evidence, worked by hand on a page of six units."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tests.unit.test_records import changed
from utils.finqa.features import FEATURES, PageFeatures
from utils.finqa.records import Record

PAGE = changed(
    pre_text=["the weather was fine .", "interest expense of 2008 was 12 .", "nothing else happened here ."],
    table=[["( in millions )", "2008", "2007"], ["net revenue", "$ 731", "702"], ["total goodwill", "55%", ""]],
    post_text=["the board met twice ."],
)
IDF_1, IDF_2, IDF_0 = math.log(1 + 5.5 / 1.5), math.log(1 + 4.5 / 2.5), math.log(1 + 6.5 / 0.5)
"""Rarity of a term that 1, 2 or none of the 6 units has."""


def column(name: str, question: str = "what was it ?", page: Record = PAGE) -> list[float]:
    """A feature of text_0, text_1, text_2, table_1, table_2, text_3."""
    values = PageFeatures(page).matrix(question)[:, FEATURES.index(name)]
    return [round(float(value), 6) for value in values]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("row", [0, 0, 0, 1, 1, 0]),
        ("after_table", [0, 0, 0, 0, 0, 1]),
        ("number", [0, 1, 0, 1, 1, 0]),
        ("dollar", [0, 0, 0, 1, 0, 0]),
        ("percent", [0, 0, 0, 0, 1, 0]),
        ("year", [0, 1, 0, 1, 1, 0]),
        ("total_label", [0, 0, 0, 0, 1, 0]),
        ("position", [0, 0.5, 1, 0, 1, 0]),
        ("first", [1, 0, 0, 1, 0, 1]),
        ("last", [0, 0, 1, 0, 1, 1]),
        ("near_table", [0.333333, 0.5, 1, 0, 0, 1]),
        ("numbers", [0, 0.693147, 0, 1.098612, 0.693147, 0]),  # log of 1 + the amounts that are no years
        ("rows", [0, 0, 0, 1.098612, 1.098612, 0]),
    ],
)
def test_features_of_a_unit_alone(name: str, expected: list[float]) -> None:
    assert column(name) == expected


def test_what_a_question_shares_with_a_unit() -> None:
    """`interest expense` stands in text_1 alone, 2008 in it and both rows, 2007 and `net revenue` in table_1."""
    asked = "what was the interest expense in 2008 with 12 , and the net revenue of 2007 ?"
    found = column("coverage", asked)
    assert found == [0, 0.5, 0, 0.5, 0, 0]  # two of four equally rare words each; years are counted for themselves
    assert column("precision", asked)[1] == 1 and column("precision", asked)[3] == 1
    assert column("word_pairs", asked)[1] == round(math.log(1 + 3), 6)  # interest-expense, expense-2008, 2008-12
    assert column("years_shared", asked) == [0, 0.5, 0, 1, 0.5, 0]
    assert column("numbers_shared", asked) == [0, 1, 0, 0, 0, 0]
    best = column("bm25", asked)
    assert (
        1 == best[1] > best[3] > best[4] > best[0] == best[2] == best[5] == 0
    )  # a row is longer, so its hits count less
    assert column("bm25_rank", asked) == [0.25, 1, 0.2, 0.5, 0.333333, 0.166667]
    assert column("bm25_rank_in_kind", asked) == [0.5, 1, 0.333333, 1, 0.5, 0.25]
    assert column("next", asked) == [*best[1:], 0] and column("previous", asked) == [0, *best[:-1]]
    assert column("best_row", asked) == [best[3], best[3], best[3], 0, 0, best[3]]
    assert column("best_text", asked) == [0, 0, 0, 1, 1, 0]


def test_letters_meet_where_words_do_not() -> None:
    page = changed(pre_text=["the amortization was 5 .", "cars are fine ."], table=[], post_text=[])
    grams = column("grams", "what was amortized ?", page)
    assert grams[0] == 1 and grams[1] < 0.5
    assert column("coverage", "what was amortized ?", page) == [0, 0]


def test_labels_of_rows() -> None:
    """Question words: net, total, loss (nowhere on the page). Labels: net revenue; total goodwill."""
    asked = "total net loss ?"
    both = 2 * IDF_1 + IDF_0
    assert column("label_precision", asked) == [0, 0, 0, 0.5, 0.5, 0]
    assert column("label_recall", asked)[3] == round(IDF_1 / both, 6)
    assert column("label_whole", asked) == [0] * 6
    assert column("label_whole", "the net revenues ?") == [0, 0, 0, 1, 0, 0]
    assert column("label_rank", "the goodwill ?") == [0, 0, 0, 0.5, 1, 0]
    # table_1 is the best label (the first of two equals); it leaves `total` and `loss`
    assert column("label_rest", asked)[4] == round(IDF_1 / (IDF_1 + IDF_0), 6)
    assert column("label_likeness", asked) == [0, 0, 0, 1, 0, 0]


def test_what_the_best_unit_leaves_open() -> None:
    asked = "interest expense , weather and revenue ?"
    assert column("rest", asked)[0] == column("rest", asked)[3] == 0.5
    assert column("rest_rank", asked) == [1, 0, 0, 0.5, 0, 0]


def test_a_second_weight_for_rows_and_weights_by_what_is_asked() -> None:
    asked = "by what percent did net revenue decline ?"
    assert column("coverage in row", asked) == [0, 0, 0, column("coverage", asked)[3], 0, 0]
    assert column("row for percent", asked) == column("row for change", asked) == column("row", asked)
    assert column("row for average", asked) == [0] * 6
    assert column("percent for total", "the total ?") == column("percent")


def test_an_empty_page_and_a_question_without_words() -> None:
    empty = replace(PAGE, pre_text=(), table=(), post_text=())
    assert PageFeatures(empty).matrix("net revenue ?").shape == (0, len(FEATURES))
    assert len(FEATURES) == len(set(FEATURES)) == 95
    assert column("coverage", "") == column("bm25", "?") == [0] * 6
    markdown = PageFeatures(changed(table=[["a", "b"], []]), "markdown")  # a row without cells is a unit there
    assert markdown.matrix("net revenue ?").shape == (len(markdown.units), 95)
