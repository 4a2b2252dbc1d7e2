"""A picture of preference pairs: by how much chosen answers are better, and by how much longer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from utils.reporting.plots import _figure, _save


class Pair(Protocol):
    """What the picture needs of a pair."""

    @property
    def margin(self) -> float: ...
    @property
    def longer(self) -> int: ...


def pair_plots(path: Path, pairs: Sequence[Pair]) -> None:
    """Histograms of the margin in reward (left) and of the difference in tokens (right)."""
    figure, axes = _figure(1, 2, (9.0, 3.2))
    longer = [pair.longer for pair in pairs]
    axes[0].hist([pair.margin for pair in pairs], bins=20, color="#0072B2")
    axes[0].set_xlabel("reward of the chosen minus the rejected answer")
    axes[0].set_ylabel("pairs")
    axes[1].hist(longer, bins=30, color="#E69F00")
    axes[1].axvline(sum(longer) / len(longer), color="#000000", linewidth=1.2)
    axes[1].set_xlabel("tokens by which the chosen answer is longer (line: mean)")
    _save(figure, path)
