"""finqa_mini keeps what it promises: FinQA's frequencies, honest splits, answers that its programs give."""

import re
from collections import Counter

import pytest

from utils.finqa.mini import TRAIN_PROGRAMS, UNSEEN_EVERY, families, generate
from utils.finqa.program import execute
from utils.finqa.prompts import table_sentences

# shares in percent over 4,919 public FinQA programs (all of test, 878 of dev, 2,894 of train)
FINQA_OPERATIONS = {
    "divide": 45.6, "subtract": 28.6, "add": 15.6, "multiply": 7.1, "greater": 1.0,
    "table_average": 0.9, "table_sum": 0.4, "table_max": 0.4, "table_min": 0.2, "exp": 0.1,
}  # fmt: skip
FINQA_STEPS = {1: 57.3, 2: 33.5, 3: 5.9, 4: 1.6, 5: 1.7}


@pytest.fixture(scope="module")
def data():
    return generate(0)


def operations(program: str) -> list[str]:
    return re.findall(r"([a-z_]+)\(", program)


def test_sizes_and_programs(data):
    assert {split: len(records) for split, records in data.items()} == {"train": 2000, "dev": 300, "test": 2000}
    assert sum(r.program is not None for r in data["train"]) == TRAIN_PROGRAMS == 400
    assert all(r.program for split in ("dev", "test") for r in data[split])


def test_programs_give_the_answers(data):
    for split in data:
        for record in data[split]:
            if record.program:
                assert execute(record.program, record.table) == record.exe_ans


def test_frequencies_are_finqas_within_two_points():
    programs = [r.program for seed in range(3) for r in generate(seed)["test"]]
    steps = Counter(len(operations(p)) for p in programs)
    used = Counter(op for p in programs for op in operations(p))
    for count, share in FINQA_STEPS.items():
        assert 100 * steps[count] / len(programs) == pytest.approx(share, abs=2), count
    for name, share in FINQA_OPERATIONS.items():
        assert 100 * used[name] / sum(used.values()) == pytest.approx(share, abs=2), name


def test_no_company_stands_in_two_splits(data):
    companies = [{r.filename.split("/")[0] for r in data[split]} for split in data]
    assert not companies[0] & companies[1] and not companies[0] & companies[2] and not companies[1] & companies[2]
    ids = [r.id for split in data for r in data[split]]
    assert len(set(ids)) == len(ids)


def test_a_fifth_of_the_test_phrasings_is_unseen_in_training(data):
    patterns = {}
    for family in families():
        assert len(family.phrasings) >= 12
        assert len(set(family.phrasings)) == len(family.phrasings)
        for i, text in enumerate(family.phrasings):
            regex = re.sub(r"\\\{[a-dnxyz]\\\}", "(.+)", re.escape(text))
            patterns[family.name, i] = re.compile(regex)
    unseen = {key: p for key, p in patterns.items() if key[1] % UNSEEN_EVERY == UNSEEN_EVERY - 1}
    seen = {key: p for key, p in patterns.items() if key not in unseen}

    def is_new(question: str) -> bool:
        return any(p.fullmatch(question) for p in unseen.values()) and not any(
            p.fullmatch(question) for p in seen.values()
        )

    assert not any(is_new(r.question) for r in data["train"])
    assert sum(is_new(r.question) for r in data["test"]) / 2000 == pytest.approx(0.18, abs=0.04)


def test_every_number_of_the_program_stands_in_the_page_or_the_question(data):
    for record in data["test"]:
        shown = " ".join(
            [record.question, *record.pre_text, *record.post_text, *(c for row in record.table for c in row)]
        )
        for literal in re.findall(r"(?<![\w#.])\d+(?:\.\d+)?%?", re.sub(r"const_\w+", "", record.program)):
            assert literal in shown.split() or literal in record.question, (record.id, literal)


def test_evidence_names_the_rows_and_sentences_of_the_operands(data):
    for record in data["test"][:300]:
        texts = (*record.pre_text, *record.post_text)
        for name, text in record.gold_inds.items():
            kind, number = name.split("_")
            assert text == (table_sentences(record.table)[int(number) - 1] if kind == "table" else texts[int(number)])
        held = " ".join(record.gold_inds.values())
        literals = re.findall(r"(?<![\w#.])\d+(?:\.\d+)?(?=[,)])", record.program)
        assert all(literal in held.replace("$ ", "").split() for literal in literals), record


def test_same_seed_same_records_other_seed_other_records(data):
    assert generate(0) == data
    assert generate(1)["test"][:5] != data["test"][:5]
