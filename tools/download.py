"""Puts the FinQA files into datasets/finqa and a model into the Hugging Face cache.

    bash download.sh                              FinQA + meta-llama/Llama-3.2-1B-Instruct
    bash download.sh --model ID                   FinQA + another model
    bash download.sh --data_only                  FinQA alone
    bash download.sh --from DIR [--strict]        files at hand: {train,dev|val,test}.json in DIR or DIR/dataset

Writes: datasets/finqa/{train,dev,test}.json and SOURCE.json (origin, records, sha256, warning; stage 00 takes it into
its manifest), configs/finqa.sha256 at the first download whose record counts are the official ones, and
configs/local.yaml (task, model file, data root), which makes plain stage commands use what was fetched.

FinQA: Chen et al. 2021, EMNLP, https://github.com/czyssrs/FinQA (MIT licence).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any, NoReturn

from utils.errors import UserError
from utils.files import read_text, read_yaml, sha256, write_json, write_text
from utils.finqa.records import read_records

OFFICIAL_RECORDS = {"train": 6251, "dev": 883, "test": 1147}
"""Records per split as published (Chen et al. 2021, table 2)."""
RAW_URL = "https://raw.githubusercontent.com/czyssrs/FinQA/main/dataset/{split}.json"
DEFAULT_MODEL = "meta-llama/Llama-3.2-1B-Instruct"
DATA_ROOT = Path("datasets/finqa")
PINS = Path("configs/finqa.sha256")
LOCAL = Path("configs/local.yaml")
EMBEDDED_MODEL_FILE = "configs/models/llama-tiny.yaml"
MODEL_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "LICENSE*"]
"""What transformers reads; leaves out the second copy of the weights that some repositories hold."""


def copy_split(folder: Path, split: str, target: Path) -> None:
    """Copy a split's file from `folder` or, as in a clone of the FinQA repository, from `folder/dataset`."""
    names = ("dev.json", "val.json") if split == "dev" else (f"{split}.json",)
    for candidate in (place / name for place in (folder, folder / "dataset") for name in names):
        if candidate.is_file():
            shutil.copyfile(candidate, target)
            return
    missing = " or ".join(names)
    raise UserError(f"--from {folder}: no {missing} there or in dataset/; expected train, dev (or val) and test")


def fetch_split(url: str, split: str, target: Path) -> None:
    """Download a split's file; `{split}` in the URL is replaced.

    Raises:
        UserError: no network, the server refused, or the connection broke; the target is then incomplete.
    """
    url = url.format(split=split)
    try:
        with urllib.request.urlopen(url, timeout=30) as response, target.open("wb") as file:
            shutil.copyfileobj(response, file)
            expected = response.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        raise UserError(f"{url}: the server answered {error.code} {error.reason}; or use --from DIR") from None
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        hint = "with files at hand: bash download.sh --from DIR"
        raise UserError(f"no network: {url} cannot be reached ({reason}); {hint}") from None
    size = target.stat().st_size
    if expected is not None and size != int(expected):
        raise UserError(f"{url}: the connection broke after {size} of {expected} bytes; run the command again")


def read_pins(path: Path) -> dict[str, str]:
    """{split: sha256} from a file in sha256sum's format; {} when nothing has been pinned yet."""
    if not path.is_file():
        return {}
    pins = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        words = line.split()
        if len(words) != 2:
            raise UserError(f"{path}:{number}: expected a sha256 and a file's name; delete the file to pin anew")
        pins[Path(words[1]).stem] = words[0]
    return pins


def describe(files: dict[str, Path], pins: dict[str, str], origin: str) -> dict[str, Any]:
    """What SOURCE.json says about {split: file}: records found and official, hashes, and at most one warning.

    Raises:
        UserError: a file that is no list of FinQA records.
    """
    described: dict[str, dict[str, Any]] = {}
    for split, path in files.items():
        described[f"{split}.json"] = {
            "records": len(read_records(path)),
            "official_records": OFFICIAL_RECORDS[split],
            "bytes": path.stat().st_size,
            "sha256": sha256(path),
            "official": sha256(path) == pins[split] if split in pins else None,
        }
    problems = [
        f"{name} {entry['records']} of {entry['official_records']} records (sha256 {entry['sha256'][:12]})"
        for name, entry in described.items()
        if entry["records"] != entry["official_records"] or entry["official"] is False
    ]
    if problems:
        warning = f"not the official FinQA files: {', '.join(problems)}"
    elif not pins:
        warning = "as many records as the official files, but no official hashes are pinned yet to compare with"
    else:
        warning = ""
    return {"origin": origin, "files": described, "warning": warning}


def install_data(
    gather: Callable[[str, Path], object], root: Path, pins: Path, origin: str, *, download: bool, strict: bool
) -> dict[str, Any]:
    """Gather all splits beside `root`, check them, move them in and write SOURCE.json last.

    A failure leaves the files of an earlier call as they were. Hashes are pinned on the first download from the
    network that has the official record counts: nobody invents them.

    Returns:
        what SOURCE.json says; its `warning` is "" when the files are the pinned ones.

    Raises:
        UserError: unreadable files; with `strict`, files other than the official ones.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}.") as folder:
        files = {split: Path(folder) / f"{split}.json" for split in OFFICIAL_RECORDS}
        for split, path in files.items():
            gather(split, path)
        source = describe(files, read_pins(pins), origin)
        complete = all(entry["records"] == entry["official_records"] for entry in source["files"].values())
        if download and complete and not pins.is_file():
            write_text(pins, "".join(f"{entry['sha256']}  {name}\n" for name, entry in source["files"].items()))
            source = describe(files, read_pins(pins), origin)
            print(f"download: pinned the hashes of this first download in {pins}")
        if strict and source["warning"]:
            raise UserError(f"--strict: {source['warning']}; nothing was written")
        root.mkdir(exist_ok=True)
        (root / "SOURCE.json").unlink(missing_ok=True)
        for split, path in files.items():
            os.replace(path, root / f"{split}.json")
        write_json(root / "SOURCE.json", source)
    return source


def check_model_access(model: str) -> None:
    """Ask the hub whether this account may read the model, before anything is downloaded.

    Raises:
        UserError: unknown model, missing token, licence not accepted, no network.
    """
    from huggingface_hub import auth_check, errors, get_token

    page = f"https://huggingface.co/{model}"
    try:
        auth_check(model)
        return
    except errors.GatedRepoError:
        if get_token() is None:
            problem = f"is gated and no token is set: accept the licence at {page}, then put HF_TOKEN into .env"
        else:
            problem = f"is gated and this account has no access: accept the licence at {page}, then try again"
    except errors.RepositoryNotFoundError:
        problem = f"is unknown to the hub (or private, and HF_TOKEN is missing); expected an id such as {DEFAULT_MODEL}"
    except errors.HFValidationError:
        problem = f"is not a hub id; expected owner/name such as {DEFAULT_MODEL}"
    except (errors.OfflineModeIsEnabled, errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        problem = f"cannot be reached, no network ({one_line(error)}); --data_only and --from DIR need no model"
    raise UserError(f"model {model} {problem}")


def fetch_model(model: str) -> None:
    """Download a model into the Hugging Face cache, which continues what was interrupted.

    Raises:
        UserError: the connection broke or the disk is full.
    """
    from huggingface_hub import errors, snapshot_download

    try:
        snapshot_download(model, allow_patterns=MODEL_FILES)
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        raise UserError(f"model {model}: the download broke off ({one_line(error)}); run the command again") from None


def one_line(error: BaseException) -> str:
    """The first line of an exception's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def model_file(model: str, folder: Path = Path("configs/models")) -> str | None:
    """The YAML in configs/models whose `model.name` is this id, or None."""
    for path in sorted(folder.glob("*.yaml"), key=lambda path: (len(path.name), path.name)):
        section = read_yaml(path).data.get("model")
        if isinstance(section, dict) and section.get("name") == model:
            return path.as_posix()
    return None


def write_local(path: Path, config: str, data_root: Path) -> None:
    """Write configs/local.yaml: what plain stage commands use on this machine."""
    lines = ["# Written by download.sh; remove this file to return to llama-tiny on finqa_mini."]
    lines += ["task: finqa", f"model: {config}", f"data_root: {data_root.as_posix()}"]
    write_text(path, "\n".join(lines) + "\n")


class Parser(argparse.ArgumentParser):
    """Wrong flags are one line, too."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; bash download.sh --help lists the flags")


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the flags of download.sh."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="download.sh", description=__doc__, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("--model", help=f"hub id (default {DEFAULT_MODEL}; no model with --data_only or --from)")
    parser.add_argument("--data_only", action="store_true", help="no model: the stages then use llama-tiny")
    parser.add_argument("--from", dest="folder", metavar="DIR", help="copy files at hand, no network")
    parser.add_argument("--strict", action="store_true", help="refuse files that are not the official ones")
    parser.add_argument("--caller", default=".", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.data_only and args.model:
        parser.error("--data_only and --model exclude each other")
    return args


def download(args: argparse.Namespace) -> None:
    """Data, model, configs/local.yaml, in this order; access to the model is checked before anything is fetched."""
    model = args.model or (None if args.data_only or args.folder else DEFAULT_MODEL)
    if model:
        check_model_access(model)
    if args.folder:
        folder = Path(args.caller, args.folder)
        if not folder.is_dir():
            raise UserError(f"--from {args.folder}: no such folder; expected train.json, dev.json and test.json in it")
        gather, origin = partial(copy_split, folder), args.folder
    else:
        gather, origin = partial(fetch_split, RAW_URL), RAW_URL
    source = install_data(gather, DATA_ROOT, PINS, origin, download=not args.folder, strict=args.strict)
    if source["warning"]:
        say(f"warning: {source['warning']}")
    config = EMBEDDED_MODEL_FILE
    if model:
        fetch_model(model)
        config = model_file(model) or config
        if config == EMBEDDED_MODEL_FILE:
            say(f"warning: no file in configs/models names {model}: copy the nearest one and pass it with --config")
    write_local(LOCAL, config, DATA_ROOT)
    counts = ", ".join(f"{name} {entry['records']}" for name, entry in source["files"].items())
    print(f"download: {DATA_ROOT} holds {counts}; {LOCAL} makes the stages use it with {config}")
    print("download: next: venv/bin/python 00_check_data.py")


def say(line: str) -> None:
    """One line on stderr."""
    print("download:", " ".join(line.split()), file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on stderr."""
    try:
        download(arguments(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        say(str(error))
        return 2
    except OSError as error:  # a full disk, a missing right
        say(f"{error.filename or type(error).__name__}: {error.strerror or error}")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
