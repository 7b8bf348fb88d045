"""Seeds fall together, differences are paired, what differs in the data is said, and the page holds it all."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics

import pytest
from mlflow.tracking import MlflowClient

from pipeline.data.index import index_folder
from pipeline.tracking.compare.__main__ import main
from pipeline.tracking.compare.content import compare_groups
from pipeline.tracking.compare.groups import difference, find_baseline, group_runs, statistic
from pipeline.tracking.compare.page import comparison_page
from pipeline.tracking.compare.selection import Selection, select_runs
from pipeline.tracking.compare.text import DATA_WARNING, as_csv
from tests.data.shards import write_shards
from tests.tracking.made_runs import make_run

HARD = {"甲": (0.50, 0.54, 0.58), "b": (0.40, 0.47, 0.45)}


@pytest.fixture
def seeds(tmp_path):
    """Two ways of training, three seeds each."""
    for name, scores in HARD.items():
        for seed, score in enumerate(scores):
            weight = 0.4 if name == "甲" else 0.0
            make_run(
                tmp_path / "runs" / f"{name}-seed{seed}", f"region_loss.cmr_weight={weight}", seed=seed,
                scores={"fgovd": {"hard": score, "by_language": {"zh": {"hard": score}}}},
            )  # fmt: skip
    return tmp_path / "runs"


def hard(run):
    return run.scores.get("fgovd/hard")


def test_seeds_fall_together_with_mean_and_standard_deviation(seeds):
    groups = group_runs(select_runs(Selection([str(seeds)]), []))
    assert {group.label for group in groups} == {"甲 (n=3)", "b (n=3)"}
    [first] = [group for group in groups if group.name == "甲"]
    found = statistic(first, hard)
    assert found.mean == pytest.approx(0.54) and found.deviation == pytest.approx(0.04) and found.count == 3
    assert len(group_runs(select_runs(Selection([str(seeds)]), []), apart=True)) == 6
    assert len(group_runs(select_runs(Selection([str(seeds)]), []), ignored=["region_loss."])) == 1


def test_differences_to_the_baseline_pair_equal_seeds(seeds):
    groups = group_runs(select_runs(Selection([str(seeds)]), []))
    baseline = find_baseline(groups, str(seeds / "b-seed1"))
    [other] = [group for group in groups if group is not baseline]
    pairs = [one - two for one, two in zip(HARD["甲"], HARD["b"], strict=True)]
    found = difference(other, baseline, hard)
    assert found.pairs == 3 and found.mean == pytest.approx(statistics.fmean(pairs))
    assert found.error == pytest.approx(statistics.stdev(pairs) / math.sqrt(3))
    for number, run in enumerate(other.runs):
        run.settings["train.seed"] = str(100 + number)
    apart = difference(other, baseline, hard)
    deviations = [statistics.stdev(HARD[name]) for name in HARD]
    assert apart.pairs == 0 and apart.error == pytest.approx(math.sqrt(sum(s**2 / 3 for s in deviations)))


def test_the_baseline_is_first_and_the_rest_is_sorted_by_a_score(seeds):
    make_run(seeds / "c", "region_loss.fgt_weight=0", scores={"fgovd": {"hard": 0.9}})
    groups = group_runs(select_runs(Selection([str(seeds)]), []))
    comparison = compare_groups(groups, baseline=find_baseline(groups, "b"))
    assert [group.name for group in comparison.groups] == ["b", "c", "甲"]
    assert [row.name for row in comparison.main_scores()] == ["fgovd/hard"] and comparison.scores[-1].best == 1
    assert [row.name for row in comparison.metrics] == ["loss/total"], "diagnostics are shown on request"
    asked = compare_groups(groups, metrics=["health/"])
    assert [row.name for row in asked.metrics] == ["health/norm_image_min"]
    rows = list(csv.DictReader(io.StringIO(as_csv(comparison))))
    assert {row["group"] for row in rows if row["name"] == "fgovd/hard"} == {"甲", "b", "c"}


def test_other_data_set_runs_apart_and_are_a_warning(tmp_path, capsys):
    for number in (1, 2):
        folder = write_shards(tmp_path / f"shards{number}", [[("en", 128), ("zh", 128)]] * number)
        index_folder(folder)
        make_run(tmp_path / f"run{number}", f"data.shards=[{folder}]")
    assert main([str(tmp_path / "run1"), str(tmp_path / "run2"), "--ignore", "data.shards"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(DATA_WARNING) and "data that differ" in shown
    make_run(tmp_path / "run3", f"data.shards=[{tmp_path / 'shards1'}]", seed=3)
    assert main([str(tmp_path / "run1"), str(tmp_path / "run3")]) == 0
    assert "warning" not in capsys.readouterr().out


def test_runs_are_found_by_experiment_parent_and_filter(tmp_path, empty_database, capsys):
    uri = f"sqlite:///{empty_database}"
    client = MlflowClient(uri)
    experiment = client.create_experiment("实验", artifact_location=(tmp_path / "artifacts").as_uri())
    parent = client.create_run(experiment, tags={"study": "ablation"}, run_name="ablation").info.run_id
    made = []
    for seed in (0, 1, 2):
        tags = {"mlflow.parentRunId": parent} if seed < 2 else {}
        run = client.create_run(experiment, tags=tags, run_name=f"r{seed}").info.run_id
        client.log_param(run, "train.seed", str(seed))
        client.log_metric(run, "loss/total", 1.0 + seed, step=1)
        client.log_metric(run, "health/norm_image_min", 1.0, step=1)
        made.append(run)
    assert [run.place for run in select_runs(Selection(uri=uri, experiment="实验"), [])] == made
    assert [run.place for run in select_runs(Selection(uri=uri, parent="ablation"), [])] == made[:2]
    assert [run.place for run in select_runs(Selection(uri=uri, parent=parent), [])] == made[:2]
    by_filter = select_runs(Selection(uri=uri, experiment="实验", filter="metrics.`loss/total` > 2.5"), [])
    assert [run.place for run in by_filter] == made[2:]
    assert set(by_filter[0].curves) == {"loss/total"}, "curves that nobody asked for are not fetched"
    assert "health/norm_image_min" in by_filter[0].known_metrics
    assert main(["--uri", uri, "--experiment", "实验", "--filter", "nonsense !"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_page_needs_no_network_and_shows_names_as_text(tmp_path):
    evil = "<img src=x onerror=alert(1)>\"'</script><script>alert(2)</script>"
    folder = make_run(tmp_path / "run", scores={evil: {"hard": 0.5}})
    [run] = select_runs(Selection([str(folder)]), [])
    run.name = evil
    run.settings["x"] = evil
    other = make_run(tmp_path / "另一个", "region_loss.fgt_weight=0", scores={"fgovd": {"hard": 0.5}})
    groups = group_runs([run, *select_runs(Selection([str(other)]), [])])
    page = comparison_page(compare_groups(groups))
    assert "<img src=x" not in page and "<script>alert" not in page and "另一个" in page
    assert page.count("<script>") == page.count("</script>") == 3, "Bokeh, the curves, the page's own"
    body = page[: page.index("<script>")]
    assert "://" not in body and "default-src 'none'" in body and "&lt;img src=x" in body
    assert body.index("<h2>Scores") < body.index("<h2>Curves") < body.index("<h2>Settings that differ")


@pytest.mark.parametrize(("runs", "metrics"), [(3, 5), pytest.param(12, 60, marks=pytest.mark.long)])
def test_a_page_of_many_long_runs_is_small_and_says_what_it_left_out(tmp_path, runs, metrics):
    folder = make_run(tmp_path / "run", losses={step: 1 / step for step in range(1, 1001)})
    [run] = select_runs(Selection([str(folder)]), [])
    steps = list(range(10_000))
    run.curves = {f"loss/{number}": (steps, [math.sin(step / 100) for step in steps]) for number in range(metrics)}
    run.known_metrics = frozenset(run.curves)
    page = comparison_page(compare_groups(group_runs([run] * runs, apart=True), everything=True), half_life=20)
    assert len(page.encode()) < 1.5e6 + 3.5e6 * runs * metrics / 720
    assert "cut to 200 points" in page and "half-life of 20 logged steps" in page


def test_the_table_is_kept_for_programs(seeds, tmp_path):
    out = tmp_path / "c.json"
    assert main([str(seeds), "--baseline", "b", "--json", str(out), "--csv", str(tmp_path / "c.csv")]) == 0
    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["scores"]["fgovd/hard"]["differences"]["甲"]["pairs"] == 3
    assert record["settings_that_differ"] == {"region_loss.cmr_weight": {"b": "0.0", "甲": "0.4"}}
