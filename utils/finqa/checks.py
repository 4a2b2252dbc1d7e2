"""What is wrong with a record, and what a file of records holds: the ground of stage 00's report."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from utils.finqa.answers import format_answer
from utils.finqa.equality import MAX_NODES
from utils.finqa.program import MAX_MAGNITUDE, ProgramError, equal, execute, parse, same_answer
from utils.finqa.records import Record

PROBLEMS_SHOWN = 10
"""Problems that the summary quotes; all are in problems.jsonl."""


def defect(record: Record) -> str | None:
    """Why the record cannot be used, or None: no question, table or gold, or a program that does not give the gold."""
    if not record.question.strip():
        return "no question"
    if not any(cell.strip() for row in record.table for cell in row):
        return "no table"
    if isinstance(record.exe_ans, str) and record.exe_ans not in ("yes", "no"):
        return f"exe_ans is {record.exe_ans[:40]!r}, expected a number, yes or no"
    if not isinstance(record.exe_ans, str) and not _is_result(record.exe_ans):
        return f"exe_ans is {record.exe_ans!r}, expected at most 5 decimals and {MAX_MAGNITUDE:g}, as results have"
    if record.program is None:
        return None
    try:
        value = execute(record.program, record.table)
    except ProgramError as error:
        return f"program does not execute: {error}"
    if not same_answer(value, record.exe_ans):
        return f"program gives {format_answer(value)}, exe_ans is {format_answer(record.exe_ans)}"
    try:
        equal(record.program, record.program)
    except ProgramError:
        return f"program has no formula of at most {MAX_NODES} operations and arguments to compare others with"
    return None


def _is_result(value: float) -> bool:
    """Whether a program can give it: results are rounded to 5 decimals, and refused beyond MAX_MAGNITUDE."""
    return abs(value) <= MAX_MAGNITUDE and round(float(value), 5) == float(value)


def repeated(records: Sequence[Record]) -> list[tuple[int, int, bool]]:
    """Records that ask the same of the same page: (index, index of the first, whether their exe_ans agree)."""
    first: dict[object, int] = {}
    found = []
    for index, record in enumerate(records):
        key = (record.filename, " ".join(record.question.lower().split()), record.table, record.pre_text)
        start = first.setdefault(key, index)
        if start != index:
            found.append((index, start, same_answer(record.exe_ans, records[start].exe_ans)))
    return found


def find_problems(records: Sequence[Record], file: str) -> list[dict[str, Any]]:
    """Malformed records and repeated ones, as rows of problems.jsonl."""
    found = []
    for index, record in enumerate(records):
        if reason := defect(record):
            found.append({"file": file, "index": index, "id": record.id, "reason": reason, "malformed": True})
    for index, first, agree in repeated(records):
        verb = "repeats" if agree else "contradicts"
        reason = f"{verb} record {first}: same page and question{'' if agree else ', other exe_ans'}"
        found.append({"file": file, "index": index, "id": records[index].id, "reason": reason, "malformed": False})
    return sorted(found, key=lambda problem: problem["index"])


MISSING: dict[str, Callable[[Record], bool]] = {
    "question": lambda record: not record.question.strip(),
    "table": lambda record: not record.table,
    "pre_text and post_text": lambda record: not record.pre_text and not record.post_text,
    "program": lambda record: record.program is None,
    "answer": lambda record: not record.answer.strip(),
    "gold_inds": lambda record: not record.gold_inds,
    "table_ori": lambda record: not record.table_ori,
}
"""Fields that may be empty, each with its test; the last three are never needed."""


def statistics(records: Sequence[Record]) -> dict[str, Any]:
    """Counts of one split: malformed, pages, missing fields, answer types, operations, steps, words per page."""
    operations: Counter[str] = Counter()
    steps: Counter[int] = Counter()
    for record in records:
        if record.program is not None:
            try:
                parsed = parse(record.program)
            except ProgramError:
                continue  # `defect` reports it
            operations.update(step.op for step in parsed)
            steps[len(parsed)] += 1
    lengths = sorted(map(page_words, records))
    return {
        "records": len(records),
        "malformed": sum(defect(record) is not None for record in records),
        "pages": len({record.filename for record in records}),
        "missing": {name: sum(map(is_missing, records)) for name, is_missing in MISSING.items()},
        "answer_types": dict(sorted(Counter(answer_type(record) for record in records).items())),
        "operations": dict(operations.most_common()),
        "steps": {str(count): steps[count] for count in sorted(steps)},
        "page_words": {
            "min": lengths[0],
            "median": median(lengths),
            "p95": lengths[math.ceil(0.95 * len(lengths)) - 1],
            "max": lengths[-1],
        },
        "questions_per_page": round(len(records) / len({record.filename for record in records}), 2),
    }


def summary(counts: Mapping[str, Mapping[str, Any]], problems: Sequence[Mapping[str, Any]]) -> str:
    """The page that a person reads: `statistics` of each split, histograms, and the problems of all by kind."""
    lines = []
    for split, facts in counts.items():
        lines.append(f"{split}: {facts['records']} records on {facts['pages']} pages, {facts['malformed']} malformed")
        for title in ("missing", "answer_types", "page_words"):
            lines.append(f"  {title}: " + ", ".join(f"{name} {count:g}" for name, count in facts[title].items()))
        for title in ("operations", "steps"):
            lines += [f"  {title}:", *histogram(facts[title])]
        lines.append("")
    kinds = Counter(str(problem["reason"]).partition(" ")[0] for problem in problems if not problem["malformed"])
    others = "".join(f", {count} {kind}" for kind, count in sorted(kinds.items()))
    malformed = sum(problem["malformed"] for problem in problems)
    lines.append(f"{len(problems)} lines in problems.jsonl: {malformed} malformed{others}")
    lines += [f"  {problem['file']}, record {problem['index']}, id {problem['id']}: {problem['reason']}"
              for problem in problems[:PROBLEMS_SHOWN]]  # fmt: skip
    return "\n".join(lines) + "\n"


def histogram(counts: Mapping[str, int], width: int = 40) -> list[str]:
    """One line per name with its count, its share of all, and a bar of `width` for all."""
    total = sum(counts.values())
    return [
        f"    {name:14} {count:6d} {count / total:7.1%} {'#' * round(width * count / total)}".rstrip()
        for name, count in counts.items()
    ]


def answer_type(record: Record) -> str:
    """`yes/no`, `integer` or `decimal`: the kind of the gold."""
    if isinstance(record.exe_ans, str):
        return "yes/no"
    return "integer" if record.exe_ans == int(record.exe_ans) else "decimal"


def page_words(record: Record) -> int:
    """Words and figures of the page, table cells included."""
    texts = [*record.pre_text, *record.post_text, *(cell for row in record.table for cell in row)]
    return sum(len(text.split()) for text in texts)


def shared_page_problems(splits: Mapping[str, Sequence[Record]], files: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of problems.jsonl for pages that two splits share: the first record of the page in the later split."""
    rows = []
    for page, one, other in pages_in_two_splits(splits):
        index = next(i for i, record in enumerate(splits[other]) if record.filename == page)
        row = {"file": files[other], "index": index, "id": splits[other][index].id}
        rows.append({**row, "reason": f"shares page {page} with {files[one]}", "malformed": False})
    return rows


def pages_in_two_splits(splits: Mapping[str, Sequence[Record]]) -> list[tuple[str, str, str]]:
    """(page, split, other split) for every page that two splits share, in order."""
    owners: defaultdict[str, list[str]] = defaultdict(list)
    for split, records in splits.items():
        for page in dict.fromkeys(record.filename for record in records):
            owners[page].append(split)
    return [(page, names[0], names[1]) for page, names in owners.items() if len(names) > 1]
