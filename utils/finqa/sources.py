"""Where the raw records of a task lie, the writing of generated ones, and the choice of splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.errors import UserError
from utils.files import read_text, write_text
from utils.finqa.checks import pages_in_two_splits
from utils.finqa.records import Record, check_ids, format_records
from utils.seeds import generator
from utils.settings import TaskSettings

SPLITS = {"train": ("train",), "val": ("dev", "val"), "test": ("test",)}
"""The project's name of each split, and the names its file may have."""


def data_folder(task: TaskSettings) -> Path:
    """The folder of the raw files: data_root, and for generated data its seed_<data_seed>."""
    root = Path(task.data_root)
    return root / f"seed_{task.data_seed}" if task.source == "generated" else root


def raw_files(task: TaskSettings) -> dict[str, Path]:
    """The raw file of each split (train, val, test).

    Raises:
        UserError: a file is missing, or dev.json and val.json both exist.
    """
    folder = data_folder(task)
    files = {}
    for split, names in SPLITS.items():
        found = [path for path in (folder / f"{name}.json" for name in names) if path.is_file()]
        if len(found) > 1:
            raise UserError(f"{folder}: both {found[0].name} and {found[1].name} are there, expected one of them")
        if not found:
            wanted = " or ".join(f"{name}.json" for name in names)
            remedy = (
                "run python 00_check_data.py, which writes it"
                if task.source == "generated"
                else "fetch it with bash download.sh, or name its folder with --data_root"
            )
            raise UserError(f"{folder}: {wanted} is missing (task {task.name}); {remedy}")
        files[split] = found[0]
    return files


def write_generated(task: TaskSettings) -> list[Path]:
    """Write the generated splits that are missing; returns the files written.

    Raises:
        UserError: a file that is there differs from what `task.data_seed` generates.
    """
    from utils.finqa.mini import generate

    written = []
    for name, records in generate(task.data_seed).items():
        path = data_folder(task) / f"{name}.json"
        text = format_records(records, str(path))
        if not path.exists():
            write_text(path, text)
            written.append(path)
        elif read_text(path) != text:
            raise UserError(
                f"{path}: differs from what data_seed {task.data_seed} generates; remove it to have it written again, "
                "or read it as it is with --source files --data_root FOLDER"
            )
    return written


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
