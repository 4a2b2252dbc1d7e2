"""Prompts: FinQA's sentences word for word, evidence chosen and never cut, the budget always kept."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_records import changed
from utils.finqa.prompts import (
    TEMPLATE,
    FittedPrompt,
    fit_prompts,
    page_units,
    render_prompt,
    table_head,
    table_markdown,
    table_sentences,
)
from utils.finqa.records import Record, read_records
from utils.finqa.retrieval import PageIndex, stem, terms

PAGE = changed(
    pre_text=["the weather was fine .", "interest expense of 2008 was 12 .", "nothing else happened here ."],
    table=[["( in millions )", "2008", "2007"], ["net revenue", "731", "702"], ["goodwill", "55", "54"]],
    post_text=["the board met twice ."],
    qa__question="what was the change in goodwill from 2007 to 2008 ?",
)


def words(text: str) -> int:
    return len(text.split())


def fit_prompt(
    record: Record, budget: int, count: Callable[[str], int], table_format: str = "sentences"
) -> FittedPrompt:
    """One record alone, with a counter of single texts."""
    return fit_prompts([record], budget, lambda texts: [count(text) for text in texts], table_format)[0]


def test_sentences_as_finqa_writes_them() -> None:
    table = [["", "2008", "2007"], ["net revenue", "731", "$ -32 ( 32 )"]]
    assert table_sentences(table) == ["the net revenue of 2008 is 731 ; the net revenue of 2007 is $ -32 ( 32 ) ;"]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ([["", "2008", "2007"], ["net  revenue\n", "731", ""]], ["the net revenue of 2008 is 731 ;"]),
        ([["", "2008"], ["", "731"]], ["the 2008 is 731 ;"]),
        ([["", ""], ["net revenue", "731"]], ["the net revenue is 731 ;"]),
        ([["", ""], ["", "731"]], ["the value is 731 ;"]),
        ([["", "2008"], ["operating expenses :", ""]], ["operating expenses : ;"]),
        ([["", "2008"], ["net revenue", "1", "2"]], ["the net revenue of 2008 is 1 ; the net revenue is 2 ;"]),
        ([["in millions"], ["revenue", "5", "6"]], ["the revenue is 5 ; the revenue is 6 ;"]),
        ([["", "2008"], []], [""]),
        ([["a", "b"]], []),
        ([], []),
    ],
)
def test_what_is_missing_in_a_table(table: list[list[str]], expected: list[str]) -> None:
    assert table_sentences(table) == expected


def test_markdown() -> None:
    table = [["", "2008"], ["a | b", "1"]]
    assert table_head(table, "markdown") == "|  | 2008 |\n| --- | --- |"
    assert table_markdown(table) == ["| a / b | 1 |"]
    prompt = render_prompt(changed(table=table, pre_text=[]), table_format="markdown")
    assert "\n|  | 2008 |\n| --- | --- |\n| a / b | 1 |\nquestion: " in prompt


def test_the_whole_prompt_word_for_word() -> None:
    assert render_prompt(PAGE) == (
        "answer the question about the report with a json program and answer .\n"
        "the weather was fine . interest expense of 2008 was 12 . nothing else happened here .\n"
        "( in millions ) the net revenue of 2008 is 731 ; the net revenue of 2007 is 702 ; "
        "the goodwill of 2008 is 55 ; the goodwill of 2007 is 54 ;\n"
        "the board met twice .\n"
        "question: what was the change in goodwill from 2007 to 2008 ?\n"
        "answer:"
    )


def test_chosen_evidence_and_names_as_in_gold_inds() -> None:
    assert [unit.name for unit in page_units(PAGE)] == ["text_0", "text_1", "text_2", "table_1", "table_2", "text_3"]
    prompt = render_prompt(PAGE, {"table_2", "text_1"})
    assert prompt.split("\n")[1:3] == [
        "interest expense of 2008 was 12 .",
        "( in millions ) the goodwill of 2008 is 55 ; the goodwill of 2007 is 54 ;",
    ]


def test_braces_and_line_breaks_in_data_do_no_harm() -> None:
    prompt = render_prompt(changed(pre_text=["a {question} {0} \n b"], qa__question="what is {evidence}\nof it ?"))
    assert "a {question} {0} b\n" in prompt and "question: what is {evidence} of it ?\nanswer:" in prompt


def test_a_table_of_one_row_is_not_lost() -> None:
    assert "\nliability ; 2005 $ 20963 ; 2006 $ 7327\n" in render_prompt(
        changed(table=[["liability", "2005 $ 20963", "2006 $ 7327"]])
    )


def test_a_page_that_fits_stays_whole() -> None:
    whole = words(render_prompt(PAGE))
    fitted = fit_prompt(PAGE, whole, words)
    assert (fitted.text, fitted.tokens, fitted.dropped) == (render_prompt(PAGE), whole, ())


def test_the_least_relevant_leave_first_and_the_order_stays() -> None:
    whole = words(render_prompt(PAGE))
    fitted = fit_prompt(PAGE, whole - 1, words)
    assert "table_2" in fitted.kept and "table_1" in fitted.kept and len(fitted.dropped) == 1
    assert fitted.dropped[0] in ("text_0", "text_2", "text_3")
    small = fit_prompt(PAGE, words(render_prompt(PAGE, {"table_2"})), words)
    assert small.kept == ("table_2",) and small.text == render_prompt(PAGE, {"table_2"})
    assert list(fitted.kept) == [unit.name for unit in page_units(PAGE) if unit.name in fitted.kept]


def test_a_unit_too_long_makes_room_for_the_next() -> None:
    record = changed(
        pre_text=["goodwill " * 30, "goodwill was 5 .", "we sell cars ."], table=[], qa__question="goodwill ?"
    )
    bare = words(render_prompt(record, set()))
    assert fit_prompt(record, bare + 4, words).kept == ("text_1",)
    assert fit_prompt(record, bare + 8, words).kept == ("text_1", "text_2")


def test_a_bos_is_counted_once_and_not_for_every_unit() -> None:
    record = changed(pre_text=["goodwill was 5 ."] * 20, table=[])
    budget = words(render_prompt(record, set())) + 40

    def with_bos(text: str) -> int:
        return 1 + words(text)

    assert fit_prompt(record, budget + 1, with_bos).kept == fit_prompt(record, budget, words).kept
    assert len(fit_prompt(record, budget, words).kept) == 10


def test_the_question_is_never_cut_even_beyond_the_budget() -> None:
    fitted = fit_prompt(PAGE, 5, words)
    assert fitted.tokens > 5 and fitted.kept == () and PAGE.question in fitted.text
    assert fitted.text.endswith("answer:") and fitted.text.startswith(TEMPLATE.split("\n")[0])


sentences = st.lists(st.text("ab 12.", max_size=30), max_size=5)


@settings(max_examples=60)
@given(sentences, sentences, st.integers(20, 90), st.sampled_from(["sentences", "markdown"]))
def test_the_budget_holds_with_tokens_that_join(pre: list[str], post: list[str], budget: int, style: str) -> None:
    """A counter that, like a BPE, counts joined texts other than their parts: equal characters in a row are one."""

    def count(text: str) -> int:
        return 1 + len(re.findall(r"(.)\1*", text, flags=re.S))

    record = changed(pre_text=pre, post_text=post, qa__question="a 1 ?")
    fitted = fit_prompt(record, budget + count(render_prompt(record, set(), style)), count, style)
    assert fitted.tokens == count(fitted.text) <= budget + count(render_prompt(record, set(), style))
    assert set(fitted.kept) | set(fitted.dropped) == {unit.name for unit in page_units(record, style)}
    assert fitted.text == render_prompt(record, set(fitted.kept), style)


def test_a_page_is_counted_once_for_all_its_questions() -> None:
    asked: list[str] = []

    def count(texts: list[str]) -> list[int]:
        asked.extend(texts)
        return [words(text) for text in texts]

    questions = [changed(id=str(i), qa__question=f"question {i} ?", pre_text=["one unit ."] * 50) for i in range(10)]
    together = fit_prompts(questions, 60, count)
    assert asked.count(" one unit .") == 50
    assert together == [fit_prompt(record, 60, words) for record in questions]


def test_terms_and_relevance_by_hand() -> None:
    assert [stem(word) for word in ("declined", "revenues", "increasing", "gas", "was")] == [
        "declin", "revenu", "increas", "gas", "was",
    ]  # fmt: skip
    assert terms("What was the 1,234 of net revenues?") == ["1234", "net", "revenu"]
    index = PageIndex(["net revenue was 3 .", "costs were 4 .", "a fine year ."], [False, False, False])
    scores = index.scores("which net revenues ?")
    assert scores[0] > scores[1] > scores[2] == 0.0
    assert scores[1] == 3.0  # a number, no word in common
    assert PageIndex(["net is 3 ;"], [True]).scores("x") == [4.0]


def known_evidence(finqa_folder: Path) -> list[Record]:
    found = [record for record in read_records(finqa_folder / "dev.json") if record.gold_inds]
    assert len(found) > 800
    return found


@pytest.mark.finqa
def test_gold_inds_are_our_sentences(finqa_folder: Path) -> None:
    """The text of FinQA's own gold_inds is our unit of that name, but for corner cells and their spacing."""
    same = total = 0
    for record in known_evidence(finqa_folder):
        units = {unit.name: unit.text for unit in page_units(record)}
        for name, text in record.gold_inds.items():
            if name != "table_0" and not (name.startswith("table") and record.table[0][0]):
                total += 1
                same += units.get(name) == " ".join(text.split())
    assert total > 500 and same / total > 0.98


@pytest.mark.finqa
def test_recall_of_the_lexical_choice(finqa_folder: Path) -> None:
    hits = total = 0
    for record in known_evidence(finqa_folder):
        units = page_units(record)
        scores = PageIndex([unit.text for unit in units], [unit.block == 1 for unit in units]).scores(record.question)
        best = sorted(range(len(units)), key=lambda i: (-scores[i], i))[:5]
        gold = {name for name in record.gold_inds if name != "table_0"}
        hits += len(gold & {units[i].name for i in best})
        total += len(gold)
    assert hits / total > 0.8
