"""The rules of the house, held by tests: how code may look, what imports what, what the scripts around it promise."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import make_status
from utils.keys import flags_of

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = {"venv", ".venv", "outputs", "datasets", ".git"}
SOURCES = sorted(
    path
    for path in ROOT.rglob("*.py")
    if not OUTSIDE & set(path.relative_to(ROOT).parts) and not path.relative_to(ROOT).parts[0].startswith(".")
)
STAGES = sorted(ROOT.glob("[01][0-9]_*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
DOMAIN = {"finqa", "genalign", "rewards", "sentiment", "synth", "tasks"}
MAY_IMPORT = {
    "plumbing": {"plumbing"},
    "domain": {"plumbing", "domain"},
    "models": {"plumbing", "domain", "models"},
    "rl": {"plumbing", "domain", "models", "rl"},
    "evaluation": {"plumbing", "domain", "models", "rl", "evaluation"},
    "reporting": {"plumbing", "domain", "evaluation", "reporting"},
}
"""The layers of utils and what each may use; modules that lie in utils itself are plumbing."""
HEAVY = {"torch", "transformers", "trl", "peft", "accelerate", "datasets", "matplotlib", "sklearn", "scipy"}
PACKAGES = {"sklearn": "scikit-learn", "yaml": "PyYAML"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(path: Path, *, inside_functions: bool) -> set[str]:
    """Modules that a file imports: dotted names; with or without the imports inside functions."""
    nodes = ast.walk(TREES[path]) if inside_functions else iter_top_level(TREES[path])
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
    return names


def iter_top_level(tree: ast.Module) -> list[ast.stmt]:
    """Statements that run at import; `if TYPE_CHECKING:` does not."""
    found: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, ast.If) and not ast.unparse(node.test).endswith("TYPE_CHECKING"):
            found += node.body + node.orelse
        found.append(node)
    return found


def layer_of(module: str) -> str | None:
    """The layer of `utils.x.y`; None for modules outside utils."""
    parts = module.split(".")
    if parts[0] != "utils" or len(parts) == 1:
        return None
    return "plumbing" if (ROOT / "utils" / f"{parts[1]}.py").exists() else "domain" if parts[1] in DOMAIN else parts[1]


def layer(path: Path) -> str | None:
    return layer_of(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_functions_are_short_and_errors_are_not_swallowed(path: Path) -> None:
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 80, f"{node.name} has {length} lines"
        if isinstance(node, ast.ExceptHandler):
            caught = "" if node.type is None else ast.unparse(node.type)
            reraises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            assert caught not in ("", "BaseException", "Exception") or reraises, f"line {node.lineno} swallows {caught}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_loose_ends(path: Path) -> None:
    marks = ["TO" + "DO", "FIX" + "ME", "HA" + "CK", "pytest.sk" + "ip(", "xf" + "ail"]
    text = path.read_text(encoding="utf-8")
    assert [mark for mark in marks if mark in text] == []
    assert path.stem not in {"common", "helpers", "misc"}


@pytest.mark.parametrize("path", [path for path in SOURCES if layer(path)], ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    for name in imported(path, inside_functions=True):
        assert not re.match(r"\d\d_|tools\b", name), f"imports {name}"
        below = layer_of(name)
        assert below is None or below in MAY_IMPORT[str(layer(path))], f"imports {name}"


@pytest.mark.parametrize("path", [path for path in SOURCES if layer(path) in ("plumbing", "domain")], ids=name_of)
def test_plumbing_and_domain_load_no_heavy_library(path: Path) -> None:
    heavy = {name.split(".")[0] for name in imported(path, inside_functions=False)} & HEAVY
    assert not heavy


def test_importing_the_scripts_loads_no_heavy_library() -> None:
    code = f"""
import importlib, sys
for name in {[path.stem for path in STAGES]}:
    importlib.import_module(name)
print(*sorted(set(sys.modules) & {HEAVY!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("path", STAGES, ids=name_of)
def test_a_stage_is_its_own_page(path: Path) -> None:
    doc = ast.get_docstring(TREES[path]) or ""
    assert "Reads" in doc and "Writes" in doc and f"python {path.name}" in doc
    last = TREES[path].body[-1]
    assert isinstance(last, ast.If) and "__main__" in ast.unparse(last.test)


@pytest.mark.parametrize("path", [path for path in STAGES if path.stem != "12_driver"], ids=name_of)
def test_every_stage_takes_the_flags_that_all_share(path: Path) -> None:
    flags = flags_of(importlib.import_module(path.stem).Config)
    assert {"seed", "device", "output_dir", "overwrite", "resume", "if_needed", "quick_test", "dry_run"} <= set(flags)


def test_no_package_shadows_a_library() -> None:
    assert not (ROOT / "datasets" / "__init__.py").exists()
    assert not (ROOT / "datasets.py").exists()


def pinned(file: str) -> dict[str, str]:
    """{package: version} of a requirements file; every line must pin exactly one version."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in lines), lines
    return dict(line.split("==") for line in lines)


def test_requirements_are_pinned_to_what_is_tested() -> None:
    for package, version in (pinned("requirements.txt") | pinned("requirements-dev.txt")).items():
        assert importlib.metadata.version(package).split("+")[0] == version


def test_every_imported_library_is_required() -> None:
    listed = {name.lower().replace("-", "_") for name in pinned("requirements.txt") | pinned("requirements-vllm.txt")}
    ours = {path.name.removesuffix(".py") for path in ROOT.iterdir()}
    for path in SOURCES:
        if path.is_relative_to(ROOT / "tests"):
            continue
        for name in imported(path, inside_functions=True):
            top = name.split(".")[0]
            if top not in sys.stdlib_module_names and top not in ours - {"datasets"}:
                package = PACKAGES.get(top, top).lower().replace("-", "_")
                assert package in listed, f"{name_of(path)} imports {top}"


def test_every_feature_has_an_entry_and_every_named_test_exists() -> None:
    items = make_status.read_items(ROOT / make_status.IDS, ROOT / make_status.MAPPING)
    assert len(items) == len({item.id for item in items}) == 424
    assert make_status.problems(items, ROOT) == []
    assert (ROOT / make_status.PAGE).read_text(encoding="utf-8") == make_status.render(items), "run `make status`"


def test_status_notices_a_missing_test_and_a_missing_entry(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_a.py").write_text("def test_one() -> None: ...\n")
    ids, mapping = tmp_path / "ids.txt", tmp_path / "status.yaml"
    ids.write_text("F001\tgoal\tone\nF002\tgoal\ttwo\nF003\tgoal\tthree\nF004\tgoal\tfour\n")
    entries = ["tests/test_a.py::test_one[case]", "tests/test_a.py::test_two", "[tests/test_b.py::test_one]", "done"]
    mapping.write_text("".join(f"F00{number}: {entry}\n" for number, entry in enumerate(entries, start=1)))
    wrong = make_status.problems(make_status.read_items(ids, mapping), tmp_path)
    assert [line.split(":")[0] for line in wrong] == ["F002", "F003", "F004"]
    mapping.write_text("F001: planned\n")
    with pytest.raises(make_status.UserError, match="F002, F003, F004"):
        make_status.read_items(ids, mapping)


FAKE_PYTHON = """#!/usr/bin/env bash
# Stands in for Python: `-m venv` copies it, pip and imports only leave a line in calls.txt.
case "$*" in
    *version_info*) [[ -z ${FAKE_OLD:-} ]] ;;
    --version) echo "Python 3.${FAKE_OLD:-11}.0" ;;
    "-m venv venv") mkdir -p venv/bin && cp "$0" venv/bin/python ;;
    *importlib.metadata*) [[ -f venv/torch ]] && cat venv/torch ;;
    *torch.version.cuda*) [[ -f venv/torch ]] && echo cpu ;;
    *"-m pip"*)
        echo "$*" | sed 's/.* install //' >>calls.txt
        [[ -z ${FAKE_FAIL:-} || $* != *"$FAKE_FAIL"* ]] || exit 1
        [[ $* != *torch==* ]] || echo 2.13.0+cpu >venv/torch
        ;;
esac
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder with setup.sh, the requirements and a Python that installs nothing."""
    for path in [ROOT / "setup.sh", ROOT / "activate.sh", *ROOT.glob("requirements*.txt")]:
        shutil.copy(path, tmp_path)
    (tmp_path / "fake_python").write_text(FAKE_PYTHON)
    (tmp_path / "fake_python").chmod(0o755)
    return tmp_path


def setup(machine: Path, *argv: str, **environment: str) -> tuple[int, str, list[str]]:
    """Run setup.sh: exit code, stderr, and what pip was asked to install in this call."""
    calls = machine / "calls.txt"
    calls.unlink(missing_ok=True)
    variables = os.environ | {"PYTHON": str(machine / "fake_python")} | environment
    done = subprocess.run(["./setup.sh", *argv], cwd=machine, env=variables, capture_output=True, text=True)
    return done.returncode, done.stderr, calls.read_text().splitlines() if calls.exists() else []


def test_setup_installs_the_cpu_build_first_and_then_is_quick(machine: Path) -> None:
    code, _, installed = setup(machine, "--cpu")
    assert code == 0
    assert installed == ["-qq torch==2.13.0+cpu", "-qq -r requirements.txt"]
    assert setup(machine) == (0, "", [])


def test_setup_follows_changed_requirements_and_keeps_extras(machine: Path) -> None:
    setup(machine, "--cpu")
    assert setup(machine, "--extras", "dev")[2] == ["-qq -r requirements.txt -r requirements-dev.txt"]
    assert setup(machine)[2] == []
    with (machine / "requirements.txt").open("a") as file:
        file.write("attrs==25.4.0\n")
    assert setup(machine)[2] == ["-qq -r requirements.txt -r requirements-dev.txt"]


def test_setup_installs_vllm_last_since_it_wants_an_older_transformers(machine: Path) -> None:
    setup(machine, "--cpu")
    assert setup(machine, "--extras", "vllm")[2] == ["-qq -r requirements.txt", "-qq -r requirements-vllm.txt"]
    assert setup(machine)[2] == []
    ours, theirs = pinned("requirements.txt"), pinned("requirements-vllm.txt")
    assert set(ours) & set(theirs) == {"transformers"} and ours["transformers"] != theirs["transformers"]


def test_setup_restart_builds_again(machine: Path) -> None:
    setup(machine, "--cpu")
    (machine / "venv/mine").touch()
    assert setup(machine, "--cpu", "--restart")[2][0] == "-qq torch==2.13.0+cpu"
    assert not (machine / "venv/mine").exists()


def test_setup_continues_after_a_failed_installation(machine: Path) -> None:
    code, message, _ = setup(machine, "--cpu", FAKE_FAIL="-r requirements.txt")
    assert code == 2 and "continues where it stopped" in message
    assert setup(machine, "--cpu")[2] == ["-qq -r requirements.txt"]


def test_setup_takes_the_public_cpu_index_only_when_needed_and_never_cuda(machine: Path) -> None:
    code, message, installed = setup(machine, "--cpu", FAKE_FAIL="torch==")
    assert code == 2 and "--cuda" in message
    assert len(installed) == 2 and all(line.endswith("torch==2.13.0+cpu") for line in installed)


@pytest.mark.parametrize("argv", [["--cpu", "--cuda"], ["--extras"], ["--extras", "nothing"], ["--wrong"]])
def test_setup_refuses_wrong_flags_in_one_line(argv: list[str], machine: Path) -> None:
    code, message, _ = setup(machine, *argv)
    assert code == 2 and message.count("\n") == 1 and not (machine / "venv").exists()


def test_setup_refuses_an_old_python_in_one_line(machine: Path) -> None:
    code, message, _ = setup(machine, "--cpu", FAKE_OLD="8")
    assert code == 2 and message.count("\n") == 1 and "3.11 or newer" in message and "3.8.0" in message


def test_activate_enters_the_environment_or_says_what_to_do(machine: Path) -> None:
    def shell(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["bash", "-c", command], cwd=machine, capture_output=True, text=True)

    assert "run 'source activate.sh'" in shell("bash activate.sh").stderr
    assert "run ./setup.sh first" in shell("source activate.sh").stderr
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "venv"], cwd=machine, check=True)
    (machine / ".env").write_text("HF_HOME=/somewhere\n")
    done = shell("source activate.sh && which python && echo $PS1 $HF_HOME")
    assert done.stdout.splitlines()[0] == str(machine / "venv/bin/python")
    assert "(venv)" in done.stdout and "/somewhere" in done.stdout


def make(*argv: str) -> str:
    done = subprocess.run(["make", "--no-print-directory", *argv], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def test_make_lists_its_targets() -> None:
    listed = make()
    for target in ("setup", "demo", "test", "lint", "typecheck", "status", "clean", "tensorboard"):
        assert f"make {target} " in listed


def test_make_demo_runs_the_embedded_default_with_the_seeds() -> None:
    plan = " ".join(make("-n", "demo", "SEED=7", "DATA_SEED=11").replace("\\\n", " ").split())
    assert "./setup.sh" in plan
    assert "12_driver.py --method grpo --task finqa_mini --config configs/models/llama-tiny.yaml --seed 7" in plan
    assert "--data_seed 11" in plan


def test_make_trains_the_small_loop() -> None:
    """Smoke is a quick test with a bound on training, for its two minutes; quick and full have all records."""
    for target, method in (("train_smoke", "ppo"), ("train_quick", "ppo"), ("train_full", "ppo")):
        plan = " ".join(make("-n", target, "SEED=42").replace("\\\n", " ").split())
        assert "12_driver.py --task sentiment --config configs/models/llama-tiny.yaml --seed 42" in plan
        assert f"--method {method}" in plan
        assert ("--quick_test --max_minutes" in plan) == (target == "train_smoke")


def test_make_clean_removes_caches_and_nothing_else(tmp_path: Path) -> None:
    kept = [tmp_path / name for name in ("outputs/run_001/manifest.json", "venv/__pycache__/a.pyc", "datasets/a.json")]
    gone = [
        tmp_path / name for name in ("utils/__pycache__/a.pyc", ".pytest_cache/a", ".mypy_cache/a", ".ruff_cache/a")
    ]
    for path in kept + gone:
        path.parent.mkdir(parents=True)
        path.write_text("")
    subprocess.run(["make", "-f", str(ROOT / "Makefile"), "clean"], cwd=tmp_path, check=True, capture_output=True)
    assert all(path.is_file() for path in kept) and not any(path.parent.exists() for path in gone)


def test_ci_runs_the_readmes_checks() -> None:
    assert "make lint typecheck test" in (ROOT / ".ci/run").read_text()
    assert "make lint typecheck test" in (ROOT / "README.md").read_text()
    recipe = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    assert "ruff check ." in recipe and "ruff format --check ." in recipe
