"""download.sh: files at hand, from a server, models behind a licence; every failure is one line and leaves nothing."""

from __future__ import annotations

import hashlib
import http.server
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tools import download
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def record(name: str) -> dict[str, Any]:
    """A smallest FinQA record."""
    qa = {"question": "what is 1 + 2 ?", "answer": "3", "program": "add(1, 2)", "exe_ans": 3.0, "gold_inds": {}}
    return {"id": name, "filename": name, "pre_text": [], "post_text": [], "table": [["", "a"], ["b", "1"]], "qa": qa}


def write_splits(folder: Path, dev: str = "dev") -> Path:
    """Two training records, one of dev, one of test."""
    folder.mkdir(parents=True)
    for split, names in (("train", ["t0", "t1"]), (dev, ["d0"]), ("test", ["e0"])):
        (folder / f"{split}.json").write_text(json.dumps([record(name) for name in names]))
    return folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder as working directory, with one model file in it."""
    folder = tmp_path / "project"
    (folder / "configs/models").mkdir(parents=True)
    (folder / "configs/models/one.yaml").write_text("model:\n  name: owner/one\n")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server on this machine: (URL with {split}, the folder it serves)."""
    folder = write_splits(tmp_path / "served")
    handler = partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}/{{split}}.json", folder
        running.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def run(*argv: str) -> int:
    return download.main(list(argv))


def local_settings() -> dict[str, str]:
    lines = Path("configs/local.yaml").read_text().splitlines()
    return dict(line.split(": ") for line in lines if not line.startswith("#"))


def test_files_at_hand_are_copied_with_one_warning(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_splits(tmp_path / "hand")
    assert run("--from", str(folder)) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert "train.json 2 of 6251 records" in warnings[0] and "dev.json 1 of 883" in warnings[0]
    source = json.loads(Path("datasets/finqa/SOURCE.json").read_text())
    entry = source["files"]["train.json"]
    assert (entry["records"], entry["official_records"], entry["official"]) == (2, 6251, None)
    assert Path("datasets/finqa/train.json").read_bytes() == (folder / "train.json").read_bytes()
    assert entry["sha256"] == hashlib.sha256((folder / "train.json").read_bytes()).hexdigest()
    assert source["warning"] in warnings[0]
    assert local_settings() == {
        "task": "finqa",
        "model": "configs/models/llama-tiny.yaml",
        "data_root": "datasets/finqa",
    }


def test_val_and_a_clone_with_dataset_folder_are_accepted(project: Path, tmp_path: Path) -> None:
    write_splits(tmp_path / "clone" / "dataset", dev="val")
    assert run("--from", str(tmp_path / "clone")) == 0
    assert json.loads(Path("datasets/finqa/dev.json").read_text())[0]["id"] == "d0"


def test_relative_folder_is_the_callers(project: Path, tmp_path: Path) -> None:
    write_splits(tmp_path / "hand")
    assert run("--caller", str(tmp_path), "--from", "hand") == 0


def test_strict_refuses_unofficial_files_and_leaves_nothing(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--from", str(write_splits(tmp_path / "hand")), "--strict") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not any(Path("datasets").iterdir()) and not Path("configs/local.yaml").exists()


def break_json(folder: Path) -> None:
    (folder / "test.json").write_text('[{"id": "e0"')


def drop_question(folder: Path) -> None:
    broken = record("e0")
    del broken["qa"]["question"]
    (folder / "test.json").write_text(json.dumps([broken]))


def remove_test(folder: Path) -> None:
    (folder / "test.json").unlink()


@pytest.mark.parametrize("damage", [break_json, drop_question, remove_test])
def test_a_bad_file_leaves_the_earlier_data(
    damage: Callable[[Path], None], project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_splits(tmp_path / "hand")
    assert run("--from", str(folder)) == 0
    before = {path.name: path.read_bytes() for path in Path("datasets/finqa").iterdir()}
    capsys.readouterr()
    (folder / "train.json").write_text(json.dumps([record("new")]))
    damage(folder)
    assert run("--from", str(folder)) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "test.json" in message
    assert {path.name: path.read_bytes() for path in Path("datasets/finqa").iterdir()} == before
    assert [path.name for path in Path("datasets").iterdir()] == ["finqa"]


def test_first_full_download_pins_the_hashes_and_later_ones_are_compared(
    project: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url, folder = server
    monkeypatch.setattr(download, "RAW_URL", url)
    monkeypatch.setattr(download, "OFFICIAL_RECORDS", {"train": 2, "dev": 1, "test": 1})
    assert run("--data_only") == 0
    assert "warning" not in capsys.readouterr().err
    pinned = Path("configs/finqa.sha256").read_text()
    digest = hashlib.sha256((folder / "test.json").read_bytes()).hexdigest()
    assert pinned.splitlines()[2] == f"{digest}  test.json"
    assert run("--from", str(folder), "--strict") == 0
    (folder / "test.json").write_text(json.dumps([record("other")]))
    assert run("--data_only", "--strict") == 2
    assert "test.json 1 of 1 records" in capsys.readouterr().err
    assert Path("configs/finqa.sha256").read_text() == pinned


def test_a_partial_download_pins_nothing(
    project: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "RAW_URL", server[0])
    assert run("--data_only") == 0
    assert not Path("configs/finqa.sha256").exists()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/{split}.json", "http://nowhere.invalid/{split}.json"])
def test_no_network_is_one_line(
    url: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(download, "RAW_URL", url)
    assert run("--data_only") == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "no network" in message and "--from DIR" in message
    assert not any(Path("datasets").iterdir())


def test_a_file_the_server_lacks_is_one_line(
    project: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(download, "RAW_URL", server[0])
    (server[1] / "test.json").unlink()
    assert run("--data_only") == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "404" in message
    assert not any(Path("datasets").iterdir())


def test_a_model_sets_its_file(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(download, "check_model_access", lambda model: None)
    monkeypatch.setattr(download, "fetch_model", fetched.append)
    assert run("--from", str(write_splits(tmp_path / "hand")), "--model", "owner/one") == 0
    assert fetched == ["owner/one"]
    assert local_settings()["model"] == "configs/models/one.yaml"


def test_a_model_without_a_file_says_so(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(download, "check_model_access", lambda model: None)
    monkeypatch.setattr(download, "fetch_model", lambda model: None)
    assert run("--from", str(write_splits(tmp_path / "hand")), "--model", "owner/two") == 0
    assert "no file in configs/models names owner/two" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "code", "token", "expected"),
    [
        (401, "GatedRepo", None, "no token is set"),
        (403, "GatedRepo", "hf_x", "this account has no access"),
        (404, "RepoNotFound", "hf_x", "unknown to the hub"),
    ],
)
def test_models_out_of_reach_are_one_line_before_anything_is_fetched(
    status: int,
    code: str,
    token: str | None,
    expected: str,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    raised = {"GatedRepo": errors.GatedRepoError, "RepoNotFound": errors.RepositoryNotFoundError}
    answer = SimpleNamespace(status_code=status, headers={}, request=None, url="", text="", json=dict)

    def refuse(model: str) -> None:
        raise raised[code](f"{status} Client Error.\nmore lines", response=answer)

    monkeypatch.setattr(huggingface_hub, "auth_check", refuse)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
    assert run("--model", "owner/one") == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and expected in message and "owner/one" in message
    assert not Path("datasets").exists() and not Path("configs/local.yaml").exists()


def test_an_unreachable_hub_is_one_line(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert run("--model", "owner/one") == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "no network" in message


@pytest.mark.parametrize("argv", [["--data_only", "--model", "a/b"], ["--no_such_flag"], ["--from"]])
def test_wrong_flags_are_one_line(argv: list[str], project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*argv) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_broken_connection_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cut(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"[1, 2")

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Cut) as running:
        threading.Thread(target=running.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{running.server_address[1]}/{{split}}.json"
        with pytest.raises(UserError, match="broke after 5 of 100 bytes"):
            download.fetch_split(url, "train", tmp_path / "train.json")


def test_the_shell_script_passes_flags_on() -> None:
    done = subprocess.run(["bash", "download.sh", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    for flag in ("--model", "--data_only", "--from", "--strict"):
        assert flag in done.stdout
