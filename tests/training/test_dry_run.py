"""--dry-run: one step, checkpoint, evaluation batch and log line, a table beside the estimate, and nothing is left."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch

from pipeline.base.ranks import read_rank_info
from pipeline.base.run_folder import RunFolder
from pipeline.checkpoint.folder import list_checkpoints
from pipeline.config import Stage1Settings, Stage2Settings, load_settings
from pipeline.training.cli import main
from pipeline.training.dry_run import dry_run_in_group
from tests.end_to_end.runs import ROOT, Material, StageRun
from tests.ranks import run_ranks
from tests.training.small_runs import case, run_cases

ROW = re.compile(r"^(?P<name>\S.*?)  +(?P<values>[\d.e+-]+.*)$", re.MULTILINE)


def table_of(text: str) -> dict[str, list[str]]:
    """The rows of the table: measured, estimated, ratio."""
    begin = text.index("measured  ")
    return {row["name"].strip(): row["values"].split() for row in ROW.finditer(text[begin:])}


def check_table(text: str) -> dict[str, list[str]]:
    """The rows, of which what can be counted must be as it was foretold."""
    rows = table_of(text)
    for name in ("weights, GB", "optimizer, GB", "checkpoint, GB"):
        measured, estimated, _ = map(float, rows[name])
        assert measured == pytest.approx(estimated, rel=0.03), name
    assert float(rows["peak of a device, GB"][0]) > float(rows["weights, GB"][0]) + float(rows["optimizer, GB"][0])
    both = ("forward to backward, s", "update, s", "step, s", "images/s", "to feed, MB/s", "training waits for it, s",
            "it is written in, s")  # fmt: skip
    assert all(len(rows[name]) == 3 and float(rows[name][1]) > 0 for name in both)
    for name in ("first step, s", "it is read back in, s", "a batch of the validation loss, s",
                 "a batch of a task's images and texts, s"):  # fmt: skip
        assert float(rows[name][0]) > 0
    assert "8 images of 80 patches" in text  # the largest patch budget
    return rows


def evaluation(material: Material) -> tuple[str, ...]:
    return ("evaluation.every_steps=100", "evaluation.tasks=[fgovd]", f"evaluation.data={material.test}",
            f"evaluation.shards=[{material.test}]")  # fmt: skip


def test_a_dry_run_as_a_user_starts_it_shows_measured_beside_estimated_and_leaves_nothing(
    material: Material, tmp_path: Path
):
    """Stage 1 under ZeRO 3."""
    chosen = (*evaluation(material), "train.deepspeed_config=launch/zero3.json")
    settings = material.settings(tmp_path / "运行", *chosen)
    running = StageRun("stage1", ["--dry-run", *settings], 2, tmp_path / "log")
    status, text = running.wait(), running.text()
    assert status == 0, text[-4000:]
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    check_table(text)
    assert "step 1/" in text and "global_short=" in text  # the line of the log


def run_dry(overrides: list[str]) -> tuple[int, str]:
    """On every rank: the dry run of stage 2, its status and what it said."""
    torch.set_num_threads(1)
    settings, said = load_settings(Stage2Settings, None, overrides), io.StringIO()
    with contextlib.redirect_stdout(said):
        status = dry_run_in_group(settings, read_rank_info(), torch.device("cpu"))
    return status, said.getvalue()


@pytest.mark.long
def test_the_dry_run_of_a_run_that_goes_on_reads_its_checkpoint_and_touches_nothing(material: Material, tmp_path: Path):
    """Stage 2 in two micro-batches a rank."""
    run = tmp_path / "run"
    begun = case(material, run, "train.max_steps=3")
    assert run_ranks(1, run_cases, [begun], timeout_seconds=240) == [[0]]
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    left = RunFolder.at(run).dry_run  # of one that was killed
    (left / "checkpoints").mkdir(parents=True)
    overrides = [*begun.overrides, *evaluation(material), "train.micro_batch_size=2", "train.max_steps=9"]
    (status, text), other = run_ranks(2, run_dry, overrides, timeout_seconds=240)
    assert status == 0 and other == (0, "")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert not left.exists()
    assert f"goes on from {list_checkpoints(run)[-1]}" in text and "from here on the schedule" in text
    check_table(text)
    assert "2 micro-batch(es) a rank" in text and " 0 regions" not in text and "step 4/9" in text


@pytest.mark.parametrize(
    ("override", "told"),
    [("train.global_batch_size=4000", "4000"), ("data.shards=[没有]", "没有"), ("train.resume=无", "无")],
)
def test_a_wrong_setting_is_one_line_and_nothing_is_left(
    material: Material, tmp_path: Path, capsys, override: str, told: str
):
    words = ["--dry-run", *material.settings(tmp_path / "run", override)]
    assert main(Stage1Settings, ROOT / "stages" / "stage1.yaml", "", words) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and told in errors[0]
    assert list(tmp_path.iterdir()) == []
