"""Programs side by side: what waits for what, who computes with how many cores, who ends whom."""

from __future__ import annotations

import importlib
import time
from contextlib import closing
from pathlib import Path

import pytest

import utils.pipeline
from utils.driver import METHODS
from utils.jobs import Job, needs_of, side_by_side, threads_here, without_company
from utils.pipeline import Step

driver = importlib.import_module("12_driver")
PLAN = driver.plan_of(METHODS)
NEEDS = needs_of(PLAN)
DATA = {"00_data_validation", "01_preprocessing", "02_rewards"}


def test_what_a_stage_reads_is_finished_before() -> None:
    assert NEEDS["00_data_validation"] == set() and NEEDS["03_sft"] == DATA
    shared = DATA | {"03_sft"}
    assert NEEDS["06_grpo"] == NEEDS["10_evaluation_majority"] == shared
    assert NEEDS["09_dpo"] == {*shared, "08_preferences"} and NEEDS["08_preferences"] == {*shared, "04_candidates"}
    trained = {"05_ppo", "06_grpo", "07_rloo", "09_dpo"}
    assert NEEDS["03_sft_rejection"] == {*shared, *trained, "04_candidates"}
    assert NEEDS["10_evaluation_dpo"] == {*shared, "09_dpo"}
    assert NEEDS["11_comparison"] == shared | {step.folder for step in PLAN if step.folder.startswith("10_")}


def test_who_can_have_no_other_beside_it() -> None:
    jobs = {step.folder: Job(step, (), Path(), NEEDS[step.folder]) for step in PLAN}
    assert without_company(jobs) == {*DATA, "03_sft", "11_comparison"}
    assert without_company({name: Job(Step("12_driver", ""), (), Path()) for name in "ab"}) == set()


def test_threads_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.jobs.cores", lambda: 2)
    for given, expected in (("6", 6), ("8,2", 8), ("", 2), ("many", 2), ("0", 2)):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert threads_here() == expected


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`work.py SECONDS [CODE]`, which prints when it begins and ends and with how many threads it may compute."""
    source = (
        "import os, sys, time\n"
        "print('begins', time.monotonic(), os.environ['OMP_NUM_THREADS'], flush=True)\n"
        "time.sleep(float(sys.argv[1]))\n"
        "print('ends', time.monotonic(), flush=True)\n"
        "sys.exit(int((sys.argv[2:] or ['0'])[0]))\n"
    )
    (tmp_path / "work.py").write_text(source)
    monkeypatch.setattr(utils.pipeline, "ROOT", tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    return tmp_path


def job(folder: Path, name: str, *arguments: str, needs: str = "") -> Job:
    return Job(Step("work", ""), arguments, folder / name, frozenset(needs))


def times(log: Path) -> tuple[float, float, int]:
    """(begin, end, threads) of a program."""
    begins, ends = (line.split() for line in log.read_text().splitlines())
    return float(begins[1]), float(ends[1]), int(begins[2])


def test_two_at_a_time_each_with_its_share_of_the_cores(programs: Path) -> None:
    jobs = {
        "a": job(programs, "a", "0.1"),
        "b": job(programs, "b", "1.5", needs="a"),
        "c": job(programs, "c", "1.5", needs="a"),
        "d": job(programs, "d", "0.1", needs="a"),
        "e": job(programs, "e", "0.1", needs="abcd"),
    }
    assert [code for _, code in side_by_side(jobs, at_once=2)] == [0] * 5
    found = {name: times(programs / name) for name in jobs}
    assert {name: threads for name, (_, _, threads) in found.items()} == {"a": 6, "b": 3, "c": 3, "d": 3, "e": 6}
    assert max(found["b"][0], found["c"][0]) < min(found["b"][1], found["c"][1])
    assert found["a"][1] < found["b"][0] and found["d"][0] > min(found["b"][1], found["c"][1])
    assert found["e"][0] > max(end for name, (_, end, _) in found.items() if name != "e")


def test_one_that_fails_is_told_and_closing_ends_the_others(programs: Path) -> None:
    jobs = {"a": job(programs, "a", "0.1", "3"), "b": job(programs, "b", "300"), "c": job(programs, "c", "0")}
    begun = time.monotonic()
    with closing(side_by_side(jobs, at_once=2)) as ended:
        assert next(ended) == ("a", 3)
    assert time.monotonic() - begun < 60 and "ends" not in (programs / "b").read_text()
    assert not (programs / "c").exists()
