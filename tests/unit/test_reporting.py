"""Comparison, tables, words and pictures: every number that is printed is computed again from its sources."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.fabricated import compute, make_evaluation, make_study
from utils.errors import UserError
from utils.evaluation.comparison import (
    Difference,
    differences,
    find_evaluations,
    load_evaluations,
    notes_on,
    over_seeds,
    verdict,
)
from utils.evaluation.statistics import holm, mcnemar_exact, paired_difference
from utils.files import read_json, write_json, write_jsonl
from utils.reporting import plots
from utils.reporting.curves import Curve, find_logs, read_curves
from utils.reporting.report import Comparison, headline, sentence, write_report
from utils.reporting.tables import markdown, read_table, result_table, summary_rows, write_table


def compare(folders: list[Path]) -> Comparison:
    """What stage 11 puts together, without pictures."""
    evaluations = load_evaluations(folders)
    rows, pairs = summary_rows(evaluations), differences(evaluations, 0)
    return Comparison(evaluations, rows, pairs, over_seeds(evaluations, 0), [], notes_on(evaluations), 0)


def verdicts_of(folder: Path) -> dict[str, int]:
    """id -> execution_correct, read by other code than the project's."""
    with (folder / "breakdown.csv").open(newline="") as file:
        return {row["id"]: int(row["execution_correct"]) for row in csv.DictReader(file)}


def table_after(report: str, heading: str) -> list[dict[str, str]]:
    """The first Markdown table of a section."""
    section = report.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if line.startswith("|")
    ]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_files_folders_runs_and_globs_name_the_same_evaluations(tmp_path: Path) -> None:
    folders = make_study(tmp_path, n=20)
    run = tmp_path / "run_000"
    assert find_evaluations([str(folder / "metrics.json") for folder in folders]) == folders
    assert set(find_evaluations([str(run)])) == set(folders)
    assert set(find_evaluations([str(tmp_path / "run_*" / "10_evaluation*" / "metrics.json")])) == set(folders)
    assert find_evaluations([str(folders[0]), str(folders[0] / "metrics.json")]) == folders[:1]
    with pytest.raises(UserError, match="no metrics.json there"):
        find_evaluations([str(tmp_path / "nothing")])


def test_every_number_of_summary_is_the_source_s(tmp_path: Path) -> None:
    folders = make_study(tmp_path, n=60, seeds=(0, 1))
    evaluations = load_evaluations(folders)
    rows = summary_rows(evaluations)
    write_table(tmp_path / "summary.csv", rows, list(rows[0]))
    back = read_table(tmp_path / "summary.csv")
    assert len(back) == len(folders) and list(back[0])[-1] == "wall_seconds"
    for row, evaluation in zip(back, evaluations, strict=True):
        source = read_json(evaluation.folder / "metrics.json")
        assert (row["method"], int(row["seed"]), int(row["n"])) == (source["method"], source["seed"], 60)
        for name in (
            "execution_accuracy",
            "program_accuracy",
            "exact_match",
            "format_valid",
            "program_valid",
            "mean_reward",
        ):
            assert float(row[name]) == source[name]
            assert [float(row[f"{name}_low"]), float(row[f"{name}_high"])] == source[f"{name}_ci95"]
        for name in ("completions", "gradient_tokens"):
            assert row[name] == str(source.get("compute", {}).get(name, ""))
    assert result_table(back) == result_table(rows)  # the driver may read the file instead


def test_the_clock_stays_out_of_the_printed_table(tmp_path: Path) -> None:
    folder = make_evaluation(tmp_path / "10_evaluation", "sft", [1, 0], compute=compute(0, 5))
    tables = []
    for seconds in (1.5, 99.0):
        write_json(folder / "manifest.json", {"schema": 1, "metrics": {"trained_seconds": seconds}})
        rows = summary_rows(load_evaluations([folder]))
        assert rows[0]["wall_seconds"] == seconds
        tables.append(result_table(rows))
    assert tables[0] == tables[1]


def test_differences_are_those_of_the_breakdowns(tmp_path: Path) -> None:
    folders = make_study(tmp_path, n=200, seeds=(0, 1))
    pairs = differences(load_evaluations(folders), 0)
    assert len(pairs) == 7 * 6 // 2
    assert {pair.control for pair in pairs[:5]} == {"sft", "sft_more"}
    p_values = []
    for pair in pairs:
        a, b = [
            [list(verdicts_of(tmp_path / f"run_{seed:03d}" / f"10_evaluation_{name}").values()) for seed in (0, 1)]
            for name in (pair.method, pair.control)
        ]
        assert pair.difference == pytest.approx(np.mean(a) - np.mean(b))
        assert (pair.only_method_correct, pair.only_control_correct) == (
            int((np.array(a) > np.array(b)).sum()), int((np.array(b) > np.array(a)).sum()),
        )  # fmt: skip
        higher = sum(np.mean(own) > np.mean(other) for own, other in zip(a, b, strict=True))
        assert (pair.seeds, pair.seeds_higher) == ("0 1", higher)
        assert (pair.difference, pair.difference_low, pair.difference_high) == paired_difference(a, b, 0)
        p_values.append(mcnemar_exact(a, b))
    assert [pair.mcnemar_p for pair in pairs] == p_values
    assert [pair.holm_p for pair in pairs] == pytest.approx(holm(p_values))


def test_words_follow_the_interval_and_the_adjusted_test() -> None:
    assert verdict(0.01, 0.05, 0.01) == "higher"
    assert verdict(-0.05, -0.01, 0.01) == "lower"
    assert verdict(-0.01, 0.05, 0.001) == "no detectable difference"
    assert verdict(0.0, 0.05, 0.001) == "no detectable difference"
    assert verdict(0.01, 0.05, 0.2) == "unclear"


def difference(method: str, control: str, low: float, high: float, p: float) -> Difference:
    return Difference(method, control, "0", 1, 100, (low + high) / 2, low, high, 9, 4, p, p, verdict(low, high, p))


def test_sentences_say_no_more_than_is_known() -> None:
    assert sentence(difference("grpo", "sft", 0.02, 0.06, 0.0001)).startswith(
        "**grpo** is higher than **sft**: +4.0 points (95 % interval +2.0 to +6.0); alone right on 9 answers"
    )
    assert "after Holm < 0.001" in sentence(difference("grpo", "sft", 0.02, 0.06, 0.0001))
    assert sentence(difference("ppo", "grpo", -0.01, 0.02, 0.6)).startswith("No detectable difference between")
    assert "is unclear" in sentence(difference("ppo", "grpo", 0.001, 0.02, 0.3))
    assert "is lower than" in sentence(difference("dpo", "sft", -0.2, -0.1, 0.0))


def test_a_winner_is_named_only_when_it_beats_every_other(tmp_path: Path) -> None:
    clear = compare(make_study(tmp_path / "clear", n=600))
    assert headline(clear).startswith("**grpo** is best in these runs: ")
    half = [index % 2 == 0 for index in range(200)]
    folders = [make_evaluation(tmp_path / name, name, half) for name in ("sft", "grpo")]
    folders.append(make_evaluation(tmp_path / "ppo", "ppo", [index % 2 == 0 or index == 1 for index in range(200)]))
    text = headline(compare(folders))
    assert text.startswith("No single best method: **ppo** has the highest") and "no difference from sft, grpo" in text
    assert "no other trained method" in headline(compare(folders[:1]))
    many = compare(make_study(tmp_path / "many", n=300, seeds=(0, 1, 2, 3, 4)))
    assert headline(many).startswith("**grpo** is best: ") and "Of these runs" not in write_report(many)
    assert "Of these runs: so few seeds" in write_report(compare(folders))
    # five seeds of SFT say nothing of how far one of GRPO would come out elsewhere
    few = [folder for folder in make_study(tmp_path / "few", n=300, seeds=(0, 1, 2, 3, 4))
           if "grpo" not in folder.name or "run_000" in str(folder)]  # fmt: skip
    report = write_report(compare(few))
    assert headline(compare(few)).startswith("**grpo** is best in these runs: ")
    assert "Of these runs: so few seeds" in report and "One seed: the intervals say" in report


def test_a_method_that_is_higher_where_both_were_run_is_named(tmp_path: Path) -> None:
    """ppo has one lucky seed; on it grpo is higher still, and has two others that were not."""
    right = {("ppo", 0): 180, ("grpo", 0): 196, ("grpo", 1): 150, ("grpo", 2): 150}
    folders = [
        make_evaluation(tmp_path / f"{name}_{seed}", name, [index < count for index in range(200)], seed=seed)
        for (name, seed), count in right.items()
    ]
    text = headline(compare(folders))
    assert "**ppo** has the highest" in text and text.endswith("but grpo is higher on the seeds that both have.")


def test_other_prompts_are_no_secret(tmp_path: Path) -> None:
    verdicts = [index % 3 == 0 for index in range(90)]
    folders = [make_evaluation(tmp_path / name, name, verdicts) for name in ("sft", "grpo")]
    for folder, context in zip(folders, ("full", "gold"), strict=True):
        metrics = read_json(folder / "metrics.json")
        write_json(folder / "metrics.json", {**metrics, "data": {**metrics.get("data", {}), "context": context}})
    [note] = [one for one in compare(folders).notes if "prompts differ" in one]
    assert "full (sft and others), gold (grpo and others)" in note
    shared = {key: read_json(folders[0] / "metrics.json")[key] for key in ("method", "policy")}
    write_json(folders[1] / "metrics.json", {**read_json(folders[1] / "metrics.json"), **shared})
    with pytest.raises(UserError, match="both method 'sft' with seed 0 but of different prompts"):
        compare(folders)


def test_every_number_of_the_report_comes_from_the_files(tmp_path: Path) -> None:
    folders = make_study(tmp_path, n=300)
    report = write_report(compare(folders))
    right = {folder.name.removeprefix("10_evaluation_"): verdicts_of(folder) for folder in folders}

    for row in table_after(report, "Results"):
        source = read_json(tmp_path / "run_000" / f"10_evaluation_{row['method']}" / "metrics.json")
        low, high = source["execution_accuracy_ci95"]
        rate = 100 * sum(right[row["method"]].values()) / 300
        assert row["execution accuracy [95 %]"] == f"{rate:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        assert row["mean reward"] == f"{(rate + 0.05 * (100 - rate)) / 100:.3f}"
        assert row["program"] == f"{rate:.1f}" and row["valid format"] == "100.0"
        assert row["completions"].replace(",", "") == str(source.get("compute", {}).get("completions", "–"))

    pairs = table_after(report, "Every pair")
    assert len(pairs) == 21
    for row in pairs:
        a, b = (list(right[row[name]].values()) for name in ("method", "control"))
        mean, low, high = (100 * value for value in paired_difference(a, b, 0))
        shown = [float(value) for value in re.findall(r"[-+]?[\d.]+", row["difference in points [95 %]"])]
        assert shown == pytest.approx([mean, low, high], abs=0.0501)
        assert int(row["only method right"]) == sum(x > y for x, y in zip(a, b, strict=True))
        assert int(row["only control right"]) == sum(x < y for x, y in zip(a, b, strict=True))
        p = mcnemar_exact(a, b)
        assert row["exact p"] == ("< 0.001" if p < 0.001 else f"{p:.3f}")

    failures = {row["method"]: row for row in table_after(report, "Failures")}
    for method, verdicts in right.items():
        assert int(failures[method]["wrong_result"]) == 300 - sum(verdicts.values())

    for line in report.split("## What the intervals allow to say\n")[1].split("\n## ")[0].splitlines():
        if found := re.search(
            r"\*\*(\w+)\*\*.*?\*\*(\w+)\*\*: ([-+]?[\d.]+) points .* right on (\d+) answers, alone wrong on (\d+)", line
        ):
            method, control, points, alone_right, alone_wrong = found.groups()
            a, b = right[method], right[control]
            assert float(points) == pytest.approx(100 * (sum(a.values()) - sum(b.values())) / 300, abs=0.0501)
            assert int(alone_right) == sum(a[name] > b[name] for name in a)
            assert int(alone_wrong) == sum(a[name] < b[name] for name in a)


def test_report_names_controls_cost_method_and_limits(tmp_path: Path) -> None:
    report = write_report(compare(make_study(tmp_path, n=600)))
    for heading in (
        "Results",
        "What the intervals allow to say",
        "Cost",
        "Controls",
        "How this was measured",
        "Limits",
    ):
        assert f"## {heading}\n" in report
    costs = {row["method"]: row for row in table_after(report, "Cost")}
    assert list(costs) == ["sft", "sft_more", "rejection_sampling", "grpo"]
    assert costs["grpo"]["completions"] == "10,240" and costs["grpo"]["stages"] == "03_sft + 06_grpo"
    assert costs["grpo"]["computation"] == f"{400 * 10_240 + 3 * 2_400_000:,}"
    assert re.search(r"\*\*grpo\*\* over sft: \+[\d.]+ points for 8,596,000 forward tokens more", report)
    assert "Sampled completions of rejection_sampling, grpo: 10,240 to 10,240, equal to within 5 %." in report
    assert "One seed:" in report and "## Over seeds" not in report
    assert "seconds" not in report.replace("wall_seconds", "")


def test_labelled_evidence_makes_an_upper_bound(tmp_path: Path) -> None:
    def limits(context: str) -> str:
        facts = {"data": {"targets_sha256": "t", "context": context}}
        folders = [make_evaluation(tmp_path / context / name, name, [True] * 8, **facts) for name in ("sft", "grpo")]
        return write_report(compare(folders))

    assert "**Upper bounds, no results**: the prompts hold the evidence that the labels name" in limits("gold")
    assert "Upper bounds" not in limits("full")


def test_unequal_budgets_are_said(tmp_path: Path) -> None:
    folders = [
        make_evaluation(tmp_path / "a", "grpo", [1, 0, 1], compute=compute(1000, 1)),
        make_evaluation(tmp_path / "b", "rejection_sampling", [1, 0, 0], compute=compute(500, 1)),
    ]
    assert "500 to 1,000, **not equal**" in write_report(compare(folders))


def test_several_seeds_give_a_table_over_seeds(tmp_path: Path) -> None:
    folders = make_study(tmp_path, n=150, seeds=(0, 1, 2))
    report = write_report(compare(folders))
    rows = {row["method"]: row for row in table_after(report, "Over seeds")}
    rates = [
        100 * np.mean(list(verdicts_of(tmp_path / f"run_{seed:03d}" / "10_evaluation_grpo").values()))
        for seed in range(3)
    ]
    assert rows["grpo"]["mean [95 %]"].startswith(f"{np.mean(rates):.1f} [")
    assert rows["grpo"]["lowest"] == f"{min(rates):.1f}" and rows["grpo"]["highest"] == f"{max(rates):.1f}"
    assert rows["grpo"]["IQM"] == f"{np.mean(rates):.1f}"  # of three values none is a whole quarter


def test_pass_at_k_stands_in_summary_and_report(tmp_path: Path) -> None:
    measured = {"records": 2, "samples": 8, "temperature": 1.0, "pass@4": 0.5, "pass@4_ci95": [0.25, 0.75]}
    folders = [
        make_evaluation(tmp_path / "a", "grpo", [1, 0], pass_at_k=measured),
        make_evaluation(tmp_path / "b", "sft", [1, 0]),
    ]
    made = compare(folders)
    assert [row["pass@4"] for row in made.rows] == ["", 0.5]
    assert table_after(write_report(made), "Best of k") == [
        {"method": "grpo", "seed": "0", "records": "2", "pass@4": "50.0 [25.0, 75.0]"}
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 4}, "do not hold the same records"),
        ({"split": "val"}, "only evaluations of one split"),
        ({"data": {"targets_sha256": "other"}}, "other gold values"),
        ({"method": "sft"}, "both method 'sft' with seed 0"),
    ],
)
def test_what_cannot_be_paired_is_refused_in_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    n = change.pop("n", 3)
    facts = {"method": "grpo"} | change
    folders = [
        make_evaluation(tmp_path / "a", "sft", [1, 0, 1]),
        make_evaluation(tmp_path / "b", facts.pop("method"), [1] * n, **facts, policy={"path": "p", "sha256": "q"}),
    ]
    with pytest.raises(UserError, match=message) as caught:
        load_evaluations(folders)
    assert "\n" not in str(caught.value)


def test_metrics_that_disagree_with_their_breakdown_are_refused(tmp_path: Path) -> None:
    folder = make_evaluation(tmp_path / "a", "sft", [1, 0, 1], execution_accuracy=0.9)
    with pytest.raises(UserError, match=r"breakdown.csv has 2 of 3 right, metrics.json says 0.9"):
        load_evaluations([folder])
    write_json(folder / "metrics.json", {"method": "sft"})
    with pytest.raises(UserError, match="key 'seed' is missing"):
        load_evaluations([folder])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "first"}, "key 'seed': expected a whole number, got 'first'"),
        ({"mean_reward": None}, "key 'mean_reward': expected a number, got None"),
        ({"execution_accuracy_ci95": None}, r"key 'execution_accuracy_ci95\[0\]': expected a number, got None"),
        ({"exact_match_ci95": None}, r"key 'exact_match_ci95\[0\]': expected a number, got None"),
        ({"kind": ["finqa"]}, "key 'kind': expected finqa or sentiment or genalign"),
        ({"program_accuracy_ci95": [0.1, "x"]}, r"key 'program_accuracy_ci95\[1\]': expected a number, got 'x'"),
    ],
)
def test_figures_that_are_none_are_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = make_evaluation(tmp_path / "a", "sft", [1, 0, 1])
    write_json(folder / "metrics.json", read_json(folder / "metrics.json") | change)
    with pytest.raises(UserError, match=message) as caught:
        load_evaluations([folder])
    assert "\n" not in str(caught.value)


def test_a_second_copy_of_one_evaluation_is_left_out(tmp_path: Path) -> None:
    folders = [make_evaluation(tmp_path / name, "grpo", [1, 0]) for name in ("10_evaluation", "10_evaluation_grpo")]
    assert [one.folder for one in load_evaluations(folders)] == folders[:1]
    make_evaluation(folders[1], "grpo", [0, 1])  # with other answers, say of another length
    with pytest.raises(UserError, match="both method 'grpo' with seed 0 but of different records or answers"):
        load_evaluations(folders)
    make_evaluation(folders[1], "grpo", [1, 0, 1])  # of the same policy, say with and without --quick_test
    with pytest.raises(UserError, match="both method 'grpo' with seed 0 but of different records"):
        load_evaluations(folders)


def test_equal_policies_are_called_one(tmp_path: Path) -> None:
    start = {"policy": {"path": "outputs/sft", "sha256": "same"}}
    folders = [
        make_evaluation(tmp_path / "a", "sft", [1, 0, 0], **start),
        make_evaluation(tmp_path / "b", "grpo", [1, 0, 0], **start),
        make_evaluation(tmp_path / "c", "rloo", [1, 1, 0]),
        make_evaluation(tmp_path / "d", "majority", [0, 1, 0], policy={"path": "majority", "sha256": None}),
        make_evaluation(tmp_path / "e", "gold", [1, 1, 1], policy={"path": "gold", "sha256": None}),
    ]
    notes = notes_on(load_evaluations(folders))
    assert notes == ["grpo (seed 0): the very policy of sft"]


def test_methods_without_a_common_seed_are_noted_not_compared(tmp_path: Path) -> None:
    folders = [make_evaluation(tmp_path / "a", "sft", [1, 0]), make_evaluation(tmp_path / "b", "grpo", [1, 0], seed=1)]
    made = compare(folders)
    assert made.differences == [] and made.notes == ["sft and grpo share no seed, so they are not compared"]
    assert "Note: sft and grpo share no seed" in write_report(made)


def test_markdown_escapes_bars() -> None:
    assert markdown(["a", "b"], [["x|y", "1"]]) == "| a | b |\n| :-- | --: |\n| x\\|y | 1 |"


def test_curves_come_from_the_logs_of_the_trained_stages(tmp_path: Path) -> None:
    stage = tmp_path / "06_grpo"
    write_json(stage / "manifest.json", {"schema": 1})
    lines = [{"step": 1, "phase": "train", "reward_mean": 0.2, "kl": 0.0}, {"step": 1, "val_accuracy": 0.4}]
    write_jsonl(stage / "logs" / "train.jsonl", lines)
    spent = compute(8, 1) | {"folders": [f"gone/{stage.name}"]}
    folder = make_evaluation(tmp_path / "10_evaluation_grpo", "grpo", [1, 0], compute=spent)
    logs = find_logs(load_evaluations([folder]))
    assert logs == [("grpo", stage / "logs" / "train.jsonl")]
    assert read_curves(logs) == [
        Curve("grpo", "validation accuracy, RL", (1,), (0.4,)),
        Curve("grpo", "mean reward of the samples", (1,), (0.2,)),
        Curve("grpo", "KL to the start, nats per token", (1,), (0.0,)),
    ]


def test_pictures_are_written_and_equal_for_equal_numbers(tmp_path: Path) -> None:
    made = compare(make_study(tmp_path, n=80, seeds=(0, 1)))
    pictures = []
    for name in ("one", "two"):
        folder = tmp_path / name
        plots.reward_vs_method(folder / "a.png", made.rows, made.accuracy)
        assert plots.efficiency_vs_quality(folder / "b.png", made.rows, made.accuracy)
        plots.score_vs_seed(folder / "c.png", made.rows)
        spike = (-1.0,) * 150 + (0.0,) * 50 + (0.5, 0.5, 30.0)
        curves = [Curve("grpo", "kl", (1, 2), (0.1, 0.2)), Curve("grpo", "reward", tuple(range(203)), spike)]
        plots.training_curves(folder / "d.png", curves)
        pictures.append([(folder / f"{letter}.png").read_bytes() for letter in "abcd"])
    assert pictures[0] == pictures[1]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures[0])
    untrained = [line for line in made.accuracy if line.method in ("base", "gold")]
    assert not plots.efficiency_vs_quality(tmp_path / "none.png", made.rows, untrained)


def test_every_method_has_its_own_look() -> None:
    looks = [plots.style(name) for name in plots.STYLES]
    assert len(set(looks)) == len(looks)


def test_pairs_are_made_by_id_not_by_line(tmp_path: Path) -> None:
    """b is a with its lines turned round: the same answers, so no record on which they disagree."""
    a = make_evaluation(tmp_path / "a", "sft", [True, True, False, False])
    b = make_evaluation(tmp_path / "b", "grpo", [True, True, False, False])
    head, *lines = (b / "breakdown.csv").read_text().splitlines()
    (b / "breakdown.csv").write_text("\n".join([head, *reversed(lines)]) + "\n")
    (pair,) = differences(load_evaluations([a, b]), 0)
    assert (pair.only_method_correct, pair.only_control_correct, pair.mcnemar_p) == (0, 0, 1.0)
