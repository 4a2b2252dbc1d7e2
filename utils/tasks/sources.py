"""Where the raw records of a task lie, and the writing of generated ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.errors import UserError
from utils.files import read_text, write_text
from utils.settings import TaskSettings

SPLITS = {"train": ("train",), "val": ("dev", "val"), "test": ("test",)}
"""The project's name of each split, and the names its file may have."""


def data_folder(task: TaskSettings) -> Path:
    """The folder of the raw files: data_root, and for generated data its seed_<data_seed>."""
    root = Path(task.data_root)
    return root / f"seed_{task.data_seed}" if task.source == "generated" else root


def raw_files(
    task: TaskSettings, splits: Mapping[str, Sequence[str]] = SPLITS, suffix: str = ".json"
) -> dict[str, Path]:
    """The raw file of each split (train, val, test).

    Raises:
        UserError: a file is missing, or dev.json and val.json both exist.
    """
    folder = data_folder(task)
    files = {}
    for split, names in splits.items():
        found = [path for path in (folder / f"{name}{suffix}" for name in names) if path.is_file()]
        if len(found) > 1:
            raise UserError(f"{folder}: both {found[0].name} and {found[1].name} are there, expected one of them")
        if not found:
            wanted = " or ".join(f"{name}{suffix}" for name in names)
            fetch = "fetch it with bash download.sh, or " if task.kind == "finqa" else ""
            remedy = (
                "run python 00_check_data.py, which writes it"
                if task.source == "generated"
                else f"{fetch}name its folder with --data_root"
            )
            raise UserError(f"{folder}: {wanted} is missing (task {task.name}); {remedy}")
        files[split] = found[0]
    return files


def write_generated(task: TaskSettings, texts: Mapping[str, str]) -> list[Path]:
    """Write the generated files (name -> text) that are missing; returns the files written.

    Raises:
        UserError: a file that is there differs from what `task.data_seed` generates.
    """
    written = []
    for name, text in texts.items():
        path = data_folder(task) / name
        if not path.exists():
            write_text(path, text)
            written.append(path)
        elif read_text(path) != text:
            raise UserError(
                f"{path}: differs from what data_seed {task.data_seed} generates; remove it to have it written again, "
                "or read it as it is with --source files --data_root FOLDER"
            )
    return written
