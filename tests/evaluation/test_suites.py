"""Suites: rows of papers and of one's own, what is missing, resuming, and the table's three forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from pipeline.evaluation import EvaluationError, evaluate
from pipeline.evaluation.command import main
from pipeline.evaluation.options.work import WorkOptions
from pipeline.evaluation.suites.specification import read_suite, suite_names
from tests.evaluation.fake import FakeModel, text_vector
from tests.ranks import run_ranks


class OtherModel(FakeModel):
    """Weights of its own, and words that name no colour."""

    def __init__(self):
        super().__init__()
        self.module.weight.data += 1

    def encode_texts(self, texts, kind):
        return super().encode_texts([text[::-1] for text in texts], kind)


@pytest.fixture()
def models(monkeypatch):
    made = {"one": FakeModel(), "two": OtherModel()}
    monkeypatch.setattr("pipeline.evaluation.suites.run.load_model", lambda path, **_: made[path])
    return made


@pytest.fixture()
def suite(tmp_path, scenes):
    """Two rows that are there, one whose file is missing, and one of a paper whose files are missing."""
    rows = [
        {"name": "场景", "task": "scenes", "data": str(scenes), "parts": ["fgovd"], "scores": ["hard", "trivial"]},
        {"name": "boxes | zh", "task": "boxes", "data": str(scenes), "language": "zh"},
        {"name": "gone", "task": "boxes", "data": "nowhere.json"},
        {"protocol": "fgclip2:coco-boxes"},
    ]
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump({"name": "A table", "rows": rows}, allow_unicode=True), encoding="utf-8")
    return path


def test_a_suite_is_one_table_with_differences_and_says_what_is_missing(suite, models, scenes, tmp_path, capsys):
    assert main(["suite", str(suite), "one", "two", "--out", str(tmp_path / "out")]) == 0
    table = json.loads((tmp_path / "out" / "table.json").read_text(encoding="utf-8"))
    values = {(line["row"], line["score"]): line["values"] for line in table["lines"]}
    alone = evaluate(FakeModel(), "scenes", scenes, parts=("fgovd",))["scores"]
    assert values["场景", "hard"]["one"] == alone["hard"]
    assert values["boxes | zh", "boxes_top1"]["one"] != values["boxes | zh", "boxes_top1"]["two"]
    notes = {line["row"]: line["note"] for line in table["lines"]}
    assert notes["gone"].endswith("nowhere.json is missing")
    assert "instances_val2017.json is missing; published at https://cocodataset.org" in notes["coco-boxes"]
    text = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    first, second = (100 * values["场景", "hard"][model] for model in ("one", "two"))
    assert f"| 场景 | hard | {first:.1f} | {second:.1f} ({second - first:+.1f}) |" in text
    assert "| coco-boxes | boxes_top1 | – | – | 74.9 |" in text and "boxes \\| zh" in text
    latex = (tmp_path / "out" / "table.tex").read_text(encoding="utf-8")
    assert r"boxes\_top1" in latex and r"\toprule" in latex and latex.count(r"\\") == len(table["lines"]) + 1
    assert text in capsys.readouterr().out


def test_a_suite_goes_on_where_it_was_interrupted(suite, models, tmp_path):
    command = ["suite", str(suite), "one", "two", "--out", str(tmp_path / "out")]
    encode = models["two"].encode_images

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    models["two"].encode_images = interrupted
    assert main(command) == 130
    encoded = models["one"].images_encoded
    models["two"].encode_images = encode
    assert main(command) == 0 and models["one"].images_encoded == encoded > 0
    with torch.no_grad():
        models["one"].module.weight += 5  # other weights: nothing that was kept is theirs
    assert main(command) == 0 and models["one"].images_encoded == 2 * encoded


def suite_on_this_rank(source: str, out: str) -> list:
    from pipeline.evaluation.suites import run

    run.load_model = lambda path, **_: FakeModel()
    lines, _ = run.run_suite(read_suite(source), ["one"], Path(out), WorkOptions())
    return [(line.row, line.score, line.values) for line in lines]


def test_processes_share_a_suite_and_agree_with_one(suite, models, tmp_path):
    assert main(["suite", str(suite), "one", "--out", str(tmp_path / "alone")]) == 0
    alone = json.loads((tmp_path / "alone" / "table.json").read_text(encoding="utf-8"))["lines"]
    for found in run_ranks(2, suite_on_this_rank, str(suite), str(tmp_path / "two")):
        assert [line[:2] for line in found] == [(line["row"], line["score"]) for line in alone]
        for (_, _, values), line in zip(found, alone, strict=True):
            assert values[0] == pytest.approx(line["values"]["one"])


def test_a_row_that_fails_is_named_and_the_others_go_on(suite, models, tmp_path, capsys):
    content = yaml.safe_load(suite.read_text(encoding="utf-8"))
    content["rows"][0] |= {"retrieval_images": 0}
    suite.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    assert main(["suite", str(suite), "one", "--out", str(tmp_path / "out")]) == 1
    table = json.loads((tmp_path / "out" / "table.json").read_text(encoding="utf-8"))
    assert "retrieval_images is 0; it must be" in table["lines"][0]["note"]
    assert table["lines"][1]["values"]["one"] is not None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("rows: []", "rows is []; list should have at least 1 item"),
        ("rows: [{task: boxes}]", "needs name and task"),
        ("rows: [{name: a, task: boxs, data: x}]", "did you mean boxes"),
        ("rows: [{protocol: fgclip2, images: x}]", "options are given to every row of fgclip2"),
        ("rows: [{protocol: 'fgclip2:no'}]", "fgclip2 has no row 'no'"),
        ("rows: [{protocol: 'fgclip2:coco'}, {protocol: 'fgclip2:coco'}]", "two rows are called 'coco'"),
        ("sets: []\nrows: [{}]", "sets is []; extra inputs are not permitted; a suite has name, root and rows"),
        ("rows: [", "is not YAML"),
    ],
)
def test_a_suite_that_is_not_one_is_one_line(content, message, models, tmp_path, capsys):
    (tmp_path / "s.yaml").write_text(content, encoding="utf-8")
    assert main(["suite", str(tmp_path / "s.yaml"), "one", "--out", str(tmp_path / "o")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", suite_names())
def test_the_projects_own_suites_are_whole(name, tmp_path):
    suite = read_suite(name, tmp_path)
    assert len(suite.rows) >= 6
    for row in suite.rows:
        assert row.missing and (row.where or name == "demo")
        assert row.options().one_data() if row.task != "fgovd" else len(row.options().data) == 4


def test_texts_are_compared_with_each_other_through_every_path(tmp_path):
    texts = ["a red cup", "a green cup", "一只红色的杯子"]
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    model = FakeModel()
    result = evaluate(model, "text-similarity", path, out=tmp_path / "out")
    assert model.kinds_asked == {"short", "long", "region"}
    for kind in ("short", "long", "region"):
        vectors = torch.stack([text_vector(text, kind) for text in texts])
        expected = vectors @ vectors.T
        assert torch.allclose(torch.tensor(result["scores"][kind]["matrix"]).float(), expected, atol=1e-6)
        others = [float(expected[i, j]) for i in range(3) for j in range(3) if i != j]
        assert result["scores"][kind]["mean_of_others"] == pytest.approx(sum(others) / 6, abs=1e-6)
        assert (tmp_path / "out" / f"texts-{kind}.png").stat().st_size > 1000
    path.write_text("alone\n", encoding="utf-8")
    with pytest.raises(EvaluationError, match="fewer than two texts"):
        evaluate(FakeModel(), "text-similarity", path)
