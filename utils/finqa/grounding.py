"""Are the numbers of a program on the page? A model that invents figures and a prompt that lost them show here."""

from __future__ import annotations

import re

from utils.finqa.program import Step

_NUMBER = re.compile(r"\d+(?:,\d{3})+(?:\.\d+)?|\d*\.\d+|\d+")


def numbers(text: str) -> set[float]:
    """Every number of a text by absolute value: `$ -1,234.5 ( 12% )` gives {1234.5, 12.0}."""
    return {float(found.replace(",", "")) for found in _NUMBER.findall(text)}


def ungrounded(steps: tuple[Step, ...], known: set[float]) -> list[str]:
    """The literal arguments whose absolute value is not among `known`; constants, references and row labels are none.

    A percent literal stands on the page as `12%` or as its number, so `12%` is looked up as 12.
    """
    missing = []
    for step in steps:
        for arg in () if step.op.startswith("table_") else step.args:
            if arg.startswith(("#", "const_")):
                continue
            found = numbers(arg)
            if not found or not found <= known:
                missing.append(arg)
    return missing
