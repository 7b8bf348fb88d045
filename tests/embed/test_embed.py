"""Embeddings are those of the model, whole after an interruption, alike on any number of processes."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.base.ranks import RankInfo
from pipeline.data.schema import Region
from pipeline.embed import embed as module
from pipeline.embed.__main__ import main
from pipeline.embed.embed import EmbedSettings, embed
from pipeline.embed.read import read_embeddings
from pipeline.embed.sources import parts_of
from pipeline.evaluation.models.load import load_model
from pipeline.evaluation.results import EvaluationError
from tests.data.shards import image_bytes, write_shards
from tests.evaluation.clip_folder import clip, write_clips
from tests.exported_model import exported_model

ALIKE = 0.9999  # cosine; transformers' processor and the project's own resize differ by rounding


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return exported_model(tmp_path_factory.mktemp("model") / "export")


@pytest.fixture(scope="module")
def model(model_folder):
    loaded = load_model(model_folder)
    loaded.module.patch_budgets = loaded.patch_budgets  # the export of a run holds them
    return loaded


@pytest.fixture
def photos(tmp_path):
    """Seven images with names in both languages, in two folders."""
    for number, name in enumerate(("cat.jpg", "猫.png", "红 杯子.jpg", "a/dog.jpg", "a/狗.webp", "a/b#1.jpg", "z.jpg")):
        path = tmp_path / "照片" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[name.rpartition(".")[2]]
        path.write_bytes(image_bytes(number, format=kind))
    return tmp_path / "照片"


def test_every_image_has_its_key_and_the_models_own_embedding(model, photos, tmp_path):
    done = embed(model, parts_of([photos], 3, False), tmp_path / "out")
    assert done.is_whole and (done.rows, done.parts, done.left_out) == (7, 3, {})
    found = read_embeddings(tmp_path / "out")
    keys = found.rows["key"].to_pylist()
    assert set(keys) == {"cat.jpg", "猫.png", "红 杯子.jpg", "a/dog.jpg", "a/狗.webp", "a/b#1.jpg", "z.jpg"}
    assert np.abs(np.linalg.norm(found.vectors, axis=1) - 1).max() < 1e-5
    with Image.open(photos / "猫.png") as image:
        own = model.module.encode_image([image.convert("RGB")]).embeds[0].numpy()
    assert found.vectors[keys.index("猫.png")] @ own > ALIKE
    assert found.item(keys.index("猫.png")).read() == (photos / "猫.png").read_bytes()


def test_any_number_of_processes_gives_the_same_rows_and_one_manifest(model, photos, tmp_path):
    parts = parts_of([photos], 2, False)
    alone = embed(model, parts, tmp_path / "one")
    first = embed(model, parts, tmp_path / "two", ranks=RankInfo(1, 2, 1, 2))
    assert not first.is_whole and not (tmp_path / "two" / "manifest.json").exists()
    assert embed(model, parts, tmp_path / "two", ranks=RankInfo(0, 2, 0, 2)).rows == alone.rows
    one, two = read_embeddings(tmp_path / "one"), read_embeddings(tmp_path / "two")
    assert one.rows.equals(two.rows) and np.array_equal(one.vectors, two.vectors)


def test_an_interrupted_run_goes_on_and_encodes_nothing_twice(model_folder, photos, tmp_path, monkeypatch, capsys):
    words = [str(model_folder), "--data", str(photos), "--out", str(tmp_path / "out"), "--rows-per-file", "2"]
    true_encode, calls = module.encode_clips, []

    def encode(*arguments, **options):
        calls.append(len(arguments[1]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return true_encode(*arguments, **options)

    monkeypatch.setattr(module, "encode_clips", encode)
    assert main(words) == 130
    assert "is kept, and the same command goes on" in capsys.readouterr().err
    assert main(words) == 0 and calls == [2, 2, 2, 2, 1]
    assert len(read_embeddings(tmp_path / "out")) == 7


def test_shards_give_images_with_captions_or_regions_with_phrases(model, tmp_path):
    folder = write_shards(tmp_path / "分片", [[("en", 128), ("zh", 128)], [("en", 128)]], regions=2)
    embed(model, parts_of([folder], 4096, False), tmp_path / "images", EmbedSettings(dtype="float16"))
    images = read_embeddings(tmp_path / "images")
    assert len(images) == 3 and any("猫" in text for text in images.rows["text"].to_pylist())
    embed(model, parts_of([folder], 4096, True), tmp_path / "regions")
    regions = read_embeddings(tmp_path / "regions")
    assert len(regions) == 6 and all(len(box) == 4 for box in regions.rows["box"].to_pylist())
    assert json.loads((tmp_path / "images" / "plan.json").read_text(encoding="utf-8"))["dtype"] == "float16"


def test_a_list_of_boxes_is_pooled_as_the_model_does_and_bad_lines_are_counted(model_folder, model, photos, capsys):
    lines = [
        {"image": "猫.png", "boxes": [[0.1, 0.1, 0.6, 0.9], [0, 0, 1, 1]]},
        {"image": "cat.jpg"},
        {"image": "cat.jpg", "boxes": [[0.5, 0.1, 0.2, 0.9]]},
        {"image": "没有.jpg"},
    ]
    path = photos / "list.jsonl"
    path.write_text(
        "\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\nnonsense\n", encoding="utf-8"
    )
    out = photos / "out"
    assert main([str(model_folder), "--data", str(path), "--out", str(out)]) == 1
    told = capsys.readouterr().err
    assert "1 for box_outside_image" in told and "1 for damaged_line" in told and "FileNotFound" in told
    found = read_embeddings(out)
    rows = found.rows.to_pylist()
    place = next(n for n, row in enumerate(rows) if row["box"] and row["box"][2] < 0.9)
    with Image.open(photos / "猫.png") as image:
        own = model.module.encode_regions(image.convert("RGB"), [[0.1, 0.1, 0.6, 0.9]], box_format="normalised")
    assert len(rows) == 3 and found.vectors[place] @ own.embeds[0].numpy() > ALIKE


def test_other_data_or_another_model_is_refused(model, photos, tmp_path):
    embed(model, parts_of([photos], 3, False), tmp_path / "out")
    with pytest.raises(EvaluationError, match="parts, names differ"):
        embed(model, parts_of([photos], 2, False), tmp_path / "out")
    with pytest.raises(EvaluationError, match="dtype differ"):
        embed(model, parts_of([photos], 3, False), tmp_path / "out", EmbedSettings(dtype="float16"))


@pytest.mark.parametrize(("data", "words"), [("nowhere", "is not there"), ("empty", "neither shards")])
def test_wrong_data_is_one_line(model_folder, tmp_path, capsys, data, words):
    (tmp_path / "empty").mkdir()
    assert main([str(model_folder), "--data", str(tmp_path / data), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_clips_are_rows_of_their_own_with_the_mean_of_their_frames(model, tmp_path):
    half, other = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
    regions = (Region(None, "红", boxes=(half, None, other)), Region(None, "nowhere", boxes=(None, None, None)))
    record = clip("片段", ["rg", "gb", "br"], "zh", regions)
    folder = write_clips(tmp_path / "clips", [record])
    assert embed(model, parts_of([folder], 10, False), tmp_path / "out").rows == 1
    found = read_embeddings(tmp_path / "out")
    assert found.rows["frames"].to_pylist() == [3] and found.text(0) == "a clip 片段"
    images = [model.prepare(Image.open(io.BytesIO(frame))) for frame in record.frames]
    with torch.no_grad():
        frames = model.encode_images(images).embeds
    assert found.vectors[0] @ model.aggregate_frames(frames[None])[0].numpy() > ALIKE
    assert found.item(0).read() == record.frames[1]
    done = embed(model, parts_of([folder], 10, True), tmp_path / "regions")
    assert done.rows == 1 and done.left_out == {"absent_in_every_frame": 1}
    assert read_embeddings(tmp_path / "regions").rows["box"].to_pylist() == [list(other)]
