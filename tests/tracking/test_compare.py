"""A comparison shows what differs and nothing else; pictures hold what they are given."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from pipeline.config import Stage1Settings, Stage2Settings, dump_settings, load_settings
from pipeline.drawing.curves import draw_curves
from pipeline.tracking.compare.__main__ import main
from pipeline.tracking.compare.text import format_table
from pipeline.tracking.figures import draw_losses
from pipeline.tracking.scores import log_scores
from pipeline.tracking.start import start_tracking


@pytest.fixture(scope="module")
def runs(tmp_path_factory, empty_database):
    """Two finished runs in one store: (folder, MLflow id) each."""
    root = tmp_path_factory.mktemp("runs")
    shutil.copy(empty_database, root / "mlflow.db")
    made = []
    for name, kind, rate in (("stage1", Stage1Settings, "1e-3"), ("第二阶段", Stage2Settings, "5e-4")):
        settings = load_settings(kind, None, [f"optimizer.peak_learning_rate={rate}", "tracking.uri=null"])
        tracker = start_tracking(settings, root / name)
        (root / name / "settings.yaml").write_text(dump_settings(settings), encoding="utf-8")
        for step in range(1, 6):
            tracker.log(step, {"loss": 5 / step, "global_short": 1 / step})
        assert tracker.flush(300)
        tracker.end()
        log_scores(root / name, {"fgovd": {"hard": float(rate)}})
        made.append((root / name, tracker.run_id))
    return made


@pytest.mark.filterwarnings("ignore:no font on this machine")
@pytest.mark.parametrize("by", ["folder", "run id"])
def test_differing_settings_and_scores_stand_side_by_side_and_curves_are_drawn(runs, tmp_path, capsys, by):
    names = [str(folder) if by == "folder" else run_id for folder, run_id in runs]
    store = f"sqlite:///{runs[0][0].parent / 'mlflow.db'}"
    out, table = tmp_path / "curves.png", tmp_path / "table.json"
    assert main([*names, "--uri", store, "--out", str(out), "--json", str(table)]) == 0
    text = capsys.readouterr().out
    assert "optimizer.peak_learning_rate" in text and "optimizer.weight_decay" not in text
    record = json.loads(table.read_text(encoding="utf-8"))
    assert [group["name"] for group in record["groups"]] == ["stage1", "第二阶段"]
    differ = record["settings_that_differ"]
    assert differ["optimizer.peak_learning_rate"] == {"stage1": "0.001", "第二阶段": "0.0005"}
    assert differ["region_loss.fgt_weight"] == {"stage1": None, "第二阶段": "0.5"}
    scores = record["scores"]["fgovd/hard"]
    assert scores["unit"] == "fraction" and scores["values"]["第二阶段"]["mean"] == 0.0005
    assert record["last_values"]["loss/total"]["values"]["stage1"]["mean"] == 1.0
    assert [run["step"] for group in record["groups"] for run in group["runs"]] == [5, 5]
    assert text.index("scores") < text.index("last values") < text.index("settings that differ")
    with Image.open(out) as picture:
        assert picture.width > 400 and len(picture.convert("RGB").getcolors(10**7)) > 10


def test_what_is_no_run_is_one_line_with_a_remedy(runs, tmp_path, capsys):
    store = f"sqlite:///{runs[0][0].parent / 'mlflow.db'}"
    for wrong, words in (
        ([str(tmp_path)], "holds no settings.yaml"),
        (["nosuchrun", "--uri", store], "give a run's folder, or its id and --uri"),
        ([str(tmp_path / "gone")], "is not there"),
        ([str(runs[0][0]), "--metric", "loss/totle"], "do you mean loss/total?"),
        ([str(runs[0][0]), "--sort", "fgovd/hart"], "do you mean fgovd/hard?"),
        ([str(runs[0][0]), "--baseline", "stage"], "do you mean stage1?"),
        (["--experiment", "nowhere", "--uri", store], "--experiment is nowhere"),
        ([], "no run was named"),
    ):
        assert main(wrong) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1


def test_columns_line_up_with_wide_characters():
    lines = format_table(["甲乙", "run"], [("title", []), ("名", ["一", "x"]), ("name", ["1", "yy"])]).splitlines()
    columns = [sum(2 if ord(c) > 0x2E80 else 1 for c in line[: line.index(mark)]) for line, mark in
               ((lines[0], "run"), (lines[3], "x"), (lines[4], "yy"))]  # fmt: skip
    assert len(set(columns)) == 1


@pytest.mark.filterwarnings("ignore:no font on this machine")
def test_curves_hold_every_point_of_every_run(runs):
    figure = draw_losses(*(folder for folder, _ in runs))
    lines = figure.axes[0].get_lines()
    assert [list(line.get_xdata()) for line in lines] == [[1, 2, 3, 4, 5]] * 2
    assert figure.axes[0].get_title() == "loss/total"
    with pytest.raises(ValueError, match="none of"):
        draw_curves({"a": {}})
