"""The learned ranker: what it learns, that it repeats, recall by hand, and what each context shows."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_records import changed
from utils.finqa import ranker as module
from utils.finqa.mini import generate
from utils.finqa.prompts import fit_prompts, page_units, render_prompt
from utils.finqa.ranker import Ranker, chosen_evidence, recall, train_ranker
from utils.finqa.records import Record, read_records
from utils.settings import TaskSettings
from utils.tasks.preparation import evidence_facts, evidence_line, gold_warning, make_rows, split_line

LEXICAL = Ranker({}, 0)


@pytest.fixture(scope="module")
def made() -> dict[str, list[Record]]:
    """finqa_mini of data seed 0."""
    return generate(0)


PAGE = changed(
    pre_text=["the weather was fine .", "interest expense was 12 .", "nothing happened ."],
    table=[["", "2008"], ["net revenue", "731"], ["goodwill", "55"]],
    post_text=["the board met ."],
    qa__question="what was the goodwill in 2008 ?",
    qa__gold_inds={"table_2": "the goodwill of 2008 is 55 ;", "text_0": "the weather was fine ."},
    qa__program="add(55, 12)",
    qa__exe_ans=67,
)


def words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def odd_pages(count: int) -> list[Record]:
    """Evidence is the sentence with a dollar sign, which lexical relevance does not look at."""
    return [
        replace(
            changed(
                id=f"p{i}",
                filename=f"p{i}",
                pre_text=["sales were 3 .", f"costs were $ {i} .", "sales were 4 .", "sales were 5 ."],
                table=[["", "2008"], ["sales", "1"]],
                post_text=[],
                qa__question="what were the sales ?",
            ),
            gold_inds={"text_1": ""},
        )
        for i in range(count)
    ]


def test_it_learns_what_lexical_relevance_cannot_know() -> None:
    pages = odd_pages(60)
    learned = train_ranker(pages[:55])
    assert learned.kind == "linear" and learned.records == 55
    assert {learned.ranked(record)[0] for record in pages[55:]} == {"text_1"}
    assert LEXICAL.ranked(pages[55])[-1] == "text_1"
    assert learned.weights["dollar"] > 0 and learned.weights["word_pairs"] == 0  # this page has no pair to share


def test_the_same_records_give_the_same_ranker_whatever_came_before(made: dict[str, list[Record]]) -> None:
    pages = made["dev"][:60]
    first, again = train_ranker(pages), train_ranker(list(pages))
    assert first == again and json.dumps(first.to_dict()) == json.dumps(again.to_dict())
    loaded = Ranker.from_dict(json.loads(json.dumps(first.to_dict())))
    assert [loaded.scores(record) for record in pages[::-1]] == [first.scores(record) for record in pages[::-1]]
    assert all(value == round(value, module.DIGITS) for value in first.weights.values())


def test_labels_of_other_splits_are_never_looked_at(made: dict[str, list[Record]]) -> None:
    """Ranking, full and retrieved context are the same when the page's own labels are others."""
    learned = train_ranker(made["dev"][:60])
    for record in made["test"][:5]:
        other = replace(record, gold_inds={"text_0": ""}, program=None, exe_ans=0.0, answer="")
        assert learned.scores(other) == learned.scores(record)
        for context in ("full", "retrieved"):
            assert chosen_evidence(other, context, learned, 3) == chosen_evidence(record, context, learned, 3)


def test_too_few_records_with_known_evidence_leave_it_lexical() -> None:
    few = train_ranker(odd_pages(module.MIN_RECORDS - 1))
    assert (few.kind, few.records, few.to_dict()["weights"]) == ("lexical", module.MIN_RECORDS - 1, {})
    assert few.scores(PAGE) == LEXICAL.scores(PAGE)
    unknown = [replace(record, gold_inds={}) for record in odd_pages(200)]
    assert train_ranker(unknown).kind == "lexical"
    header = [replace(record, gold_inds={"table_0": ""}) for record in odd_pages(60)]
    assert train_ranker(header).kind == "lexical"  # no unit is evidence: nothing to tell apart


def test_pages_at_hand_are_few_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGES_AT_HAND", 2)
    pages = odd_pages(5)
    ranker = Ranker({}, 0)
    assert [ranker.ranked(record) for record in pages + pages] == [LEXICAL.ranked(record) for record in pages + pages]
    assert len(ranker._pages) == 2


def test_recall_by_hand() -> None:
    """Lexical order of PAGE: table_2, table_1, text_1, then the sentences without a figure, in their order."""
    assert LEXICAL.ranked(PAGE) == ("table_2", "table_1", "text_1", "text_0", "text_2", "text_3")
    other = replace(PAGE, gold_inds={name: "" for name in ("table_0", "table_2", "text_1", "text_3")})
    unknown = replace(PAGE, gold_inds={})
    assert recall([PAGE, other, unknown], LEXICAL, (3, 5)) == {
        "records": 2,
        "at_3": 0.5,  # (1/2 + 2/4) / 2; the header is never found
        "units_at_3": 0.5,  # 3 of 6
        "at_5": 0.75,  # (2/2 + 2/4) / 2
        "units_at_5": 0.6667,  # 4 of 6
    }
    assert recall([unknown], LEXICAL) == {"records": 0}


def test_what_each_context_may_show() -> None:
    assert chosen_evidence(PAGE, "full", LEXICAL, 2) is None
    assert chosen_evidence(PAGE, "retrieved", LEXICAL, 2) == ("table_2", "table_1")
    assert chosen_evidence(PAGE, "retrieved", LEXICAL, 99) == LEXICAL.ranked(PAGE)
    assert chosen_evidence(PAGE, "gold", LEXICAL, 2) == ("text_0", "table_2")
    for gold in ({}, {"table_0": ""}, {"text_77": ""}):  # known to nobody, or not on the page
        assert chosen_evidence(replace(PAGE, gold_inds=gold), "gold", LEXICAL, 2) == ("table_2", "table_1")


def rows(context: str, budget: int = 1000, record: Record = PAGE, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    task = replace(TaskSettings(), context=context, max_prompt_tokens=budget, **more)
    made, counts = make_rows([record], task, LEXICAL, words)
    return made[0], counts


def test_prompts_show_the_evidence_in_the_order_of_the_page() -> None:
    row, counts = rows("retrieved", evidence_units=4)
    assert row["evidence"] == ["text_0", "text_1", "table_1", "table_2"]
    assert row["input_text"] == render_prompt(PAGE, set(row["evidence"]))
    assert (counts["shortened"], counts["units_dropped"], counts["gold_unknown"]) == (0, 0, 0)
    row, counts = rows("gold")
    assert row["evidence"] == ["text_0", "table_2"] and row["input_text"] == render_prompt(PAGE, {"text_0", "table_2"})
    assert (counts["numbers_in_prompt"], counts["numbers_on_page"]) == (0, 1)  # 12 stands in text_1 alone
    row, counts = rows("full")
    assert row["input_text"] == render_prompt(PAGE) and len(row["evidence"]) == 6
    assert counts["numbers_in_prompt"] == 1
    assert rows("gold", record=replace(PAGE, gold_inds={}))[1]["gold_unknown"] == 1


def test_the_budget_is_kept_within_the_chosen_evidence() -> None:
    whole = words([rows("retrieved", evidence_units=4)[0]["input_text"]])[0]
    row, counts = rows("retrieved", budget=whole - 1, evidence_units=4)
    assert "table_2" in row["evidence"] and len(row["evidence"]) == 3 and words([row["input_text"]])[0] < whole
    assert counts["shortened"] == 1 and counts["units_dropped"] == 1
    gold = words([rows("gold")[0]["input_text"]])[0]
    assert rows("gold", budget=gold - 1)[0]["evidence"] == ["table_2"]


def test_the_ranker_says_what_leaves_a_long_page_first() -> None:
    learned = train_ranker(odd_pages(60))
    page = odd_pages(61)[60]
    room = words([render_prompt(page, {"text_1"})])[0]
    assert fit_prompts([page], room, words, relevance=learned.scores)[0].kept == ("text_1",)
    assert fit_prompts([page], room, words)[0].kept != ("text_1",)


def test_markdown_pages_are_ranked_by_their_own_units() -> None:
    pages = [replace(record, table=(*record.table, ())) for record in odd_pages(60)]
    learned = train_ranker(pages, "markdown")
    assert len(learned.scores(pages[0])) == len(page_units(pages[0], "markdown")) == 6


def test_what_is_said() -> None:
    task = replace(TaskSettings(), context="gold")
    facts = evidence_facts(task, LEXICAL, [PAGE])
    assert facts["context"] == "gold" and facts["ranker"] == "lexical"
    assert "recall on 1 val records at 3 50.0%, at 5 100.0%" in evidence_line(facts)
    assert "no val record names its evidence" in evidence_line(evidence_facts(task, LEXICAL, []))
    counts = rows("gold")[1] | {"malformed_dropped": 0}
    assert "numbers of the program in the prompt: 0 (0.0% of programs; on the whole page 100.0%)" in split_line(
        "val", counts
    )
    warning = gold_warning({"train": {"gold_unknown": 7}, "val": {"gold_unknown": 0}})
    assert "LABELS" in warning and "upper bound" in warning and warning.endswith("train 7, val 0")


@pytest.mark.finqa
def test_recall_on_the_published_dev_records(finqa_folder: Path) -> None:
    """FinQA's own BERT retriever: 89.66 % at 3, 93.63 % at 5, as published."""
    train, dev = (read_records(finqa_folder / f"{split}.json") for split in ("train", "dev"))
    start = time.process_time()
    learned = train_ranker(train)
    assert time.process_time() - start < 60
    found, lexical = recall(dev, learned), recall(dev, LEXICAL)
    assert found["records"] > 800 and found["at_5"] >= 0.85 and found["units_at_5"] >= 0.85
    assert found["at_3"] > lexical["at_3"] + 0.03 and found["at_5"] > lexical["at_5"] + 0.02
    leaked = replace(dev[0], gold_inds={})
    assert learned.scores(leaked) == learned.scores(dev[0]) and not re.search("nan|inf", str(learned.scores(dev[0])))
