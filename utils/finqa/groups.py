"""The groups of a FinQA record, by which accuracy is broken down.

They follow from gold: the program's steps and operations, where `gold_inds` says the evidence stands, what kind of
value is asked. A record without a gold program or without gold_inds is in a group that says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from utils.finqa.examples import FinQAExample
from utils.finqa.program import OPERATIONS
from utils.rewards.scoring import gold_steps

NO_PROGRAM, NO_EVIDENCE = "no gold program", "no gold_inds"

_ASKS_FOR_PERCENT = re.compile(r"%|\bpercent", re.IGNORECASE)


def groups_of(example: FinQAExample) -> dict[str, str]:
    """The group of a record in each of FinQA's groupings. UserError when its gold program cannot be read."""
    steps = gold_steps(example)
    used = [step.op for step in steps or ()]
    return {
        "steps": str(len(used)) if used else NO_PROGRAM,
        "first_operation": used[0] if used else NO_PROGRAM,
        "operations": " ".join(op for op in OPERATIONS if op in used) or NO_PROGRAM,
        "evidence": evidence_type(example.gold_inds),
        "answer_kind": answer_kind(example),
    }


def evidence_type(gold_inds: Mapping[str, str] | None) -> str:
    """`table`, `text` or `both`, from names such as table_1 and text_3."""
    kinds = {name.split("_")[0] for name in gold_inds or {}} & {"table", "text"}
    return "both" if len(kinds) == 2 else next(iter(kinds), NO_EVIDENCE)


def answer_kind(example: FinQAExample) -> str:
    """`yes/no`, `percent` or `number`.

    Gold values are fractions, so percents are known by how the data set writes the answer ("12.5%") or, where it
    leaves that out, by a question that asks for percent.
    """
    if isinstance(example.exe_ans, str):
        return "yes/no"
    return "percent" if _ASKS_FOR_PERCENT.search(example.answer or example.question) else "number"
