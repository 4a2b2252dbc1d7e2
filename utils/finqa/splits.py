"""The choice of splits and of a few records for a quick test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from utils.errors import UserError
from utils.finqa.checks import pages_in_two_splits
from utils.finqa.records import Record, check_ids
from utils.seeds import generator

SPLITS = ("train", "val", "test")


def disjoint_splits(
    splits: Mapping[str, Sequence[Record]], proportions: Sequence[float], seed: int
) -> Mapping[str, Sequence[Record]]:
    """The splits as they are, or divided anew by `proportions`; ids are unique and no page lies in two of them.

    Raises:
        UserError: two records share an id, a page lies in two splits, or a share is too small for one page.
    """
    check_ids([record for part in splits.values() for record in part], "the splits together")
    if proportions:
        return divide_pages(splits, proportions, seed)
    for page, one, other in pages_in_two_splits(splits):
        raise UserError(
            f"page {page} lies in {one} and in {other}, expected every page in one split; "
            "--split_proportions 0.8 0.1 0.1 divides the pages anew"
        )
    return splits


def divide_pages(
    splits: Mapping[str, Sequence[Record]], proportions: Sequence[float], seed: int
) -> dict[str, list[Record]]:
    """Pool all splits and give each page, whole, to train, val or test.

    Pages are shuffled by `seed` and dealt by their number, so the shares of records are met only roughly. Records keep
    their order. UserError when a share is too small for one page.
    """
    records = [record for part in splits.values() for record in part]
    pages = sorted({record.filename for record in records})
    order = [pages[i] for i in generator(seed, "divide_pages").permutation(len(pages))]
    first, second = round(len(order) * proportions[0]), round(len(order) * (proportions[0] + proportions[1]))
    parts = dict(zip(SPLITS, (order[:first], order[first:second], order[second:]), strict=True))
    for split, part in parts.items():
        if not part:
            raise UserError(f"--split_proportions: {len(pages)} pages leave none for {split}; give it a larger share")
    owner = {page: split for split, part in parts.items() for page in part}
    return {split: [record for record in records if owner[record.filename] == split] for split in parts}


def few(records: Sequence[Record], count: int) -> list[Record]:
    """The first `count` records in file order, at least half of them with a program where the file has so many."""
    with_program = [i for i, record in enumerate(records) if record.program is not None]
    without = [i for i, record in enumerate(records) if record.program is None]
    taken = with_program[: max(count // 2, count - len(without))]
    taken += without[: count - len(taken)]
    return [records[i] for i in sorted(taken)]
