"""What stage 04 writes, read back and checked: a line per prompt in candidates.jsonl, its rewards in scores.jsonl."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import read_numbered_jsonl

TEXT, LIST, TRUTH = (str, "text"), (list, "a list"), (bool, "true or false")
OF_A_PROMPT = {"id": TEXT, "prompt": TEXT, "cands": LIST}
OF_A_CANDIDATE = {"text": TEXT, "correct": TRUTH, "parse_ok": TRUTH}


def read_candidates(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """(line, {"id", "prompt", "cands": [{"text", "correct", "parse_ok"}]}); UserError with file:line, key."""
    rows = []
    for line, row in read_numbered_jsonl(path):
        where = f"{path}:{line}"
        kept = {key: _value(row, key, *kind, where) for key, kind in OF_A_PROMPT.items()}
        kept["cands"] = [
            {key: _value(cand, key, *kind, f"{where}, candidate {i}") for key, kind in OF_A_CANDIDATE.items()}
            for i, cand in enumerate(kept["cands"], start=1)
        ]
        rows.append((line, kept))
    return rows


def read_scores(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """(line, {"id", "totals": [reward]}); UserError with file:line, key."""
    rows = []
    for line, row in read_numbered_jsonl(path):
        where = f"{path}:{line}"
        name, scores = _value(row, "id", *TEXT, where), _value(row, "scores", *LIST, where)
        totals = [_total(score, f"{where}, score {i}") for i, score in enumerate(scores, start=1)]
        rows.append((line, {"id": name, "totals": totals}))
    return rows


def _total(score: Any, where: str) -> float:
    total = score.get("total") if isinstance(score, Mapping) else None
    if isinstance(total, bool) or not isinstance(total, (int, float)) or not math.isfinite(total):
        raise UserError(f"{where}, key 'total': expected a number, got {str(total)[:60]!r}; run 04 again")
    return float(total)


def _value(row: Any, key: str, kind: type, words: str, where: str) -> Any:
    if not isinstance(row, Mapping) or not isinstance(row.get(key), kind):
        found = row.get(key) if isinstance(row, Mapping) else row
        raise UserError(f"{where}, key {key!r}: expected {words}, got {str(found)[:60]!r}; run 04 again")
    return row[key]
