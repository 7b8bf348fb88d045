"""Scores on scenes: the numbers of a plain loop, one pass over the images, any number of processes, and resuming."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from pipeline.base.ranks import RankError
from pipeline.evaluation import EvaluationError, evaluate
from pipeline.evaluation.features import EncodeSettings
from pipeline.evaluation.ranks import Ranks
from pipeline.evaluation.results import flat_scores
from pipeline.evaluation.run import evaluate_several
from tests.evaluation.fake import FakeModel, text_vector
from tests.ranks import run_ranks


def samples(folder):
    """Every sample of the tars by webdataset's own naming: (key, image, record)."""
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        for name, data in members.items():
            if name.endswith(".json"):
                key = name.removesuffix(".json")
                yield key, Image.open(io.BytesIO(members[f"{key}.jpg"])), json.loads(data)


def scene_scores(model, folder, **options):
    """Scores, settings and accounting in one dict."""
    result = evaluate(model, "scenes", folder, **options)
    return result["scores"] | {name: result[name] for name in ("settings", "accounting")}


def numbers(scores):
    return {
        name: value for name, value in flat_scores(scores).items() if not name.startswith(("accounting", "seconds"))
    }


def test_fg_sets_and_boxes_are_those_of_a_loop(scenes):
    model = FakeModel()
    scores = scene_scores(model, scenes)
    images = {
        key: (model.encode_images([model.prepare(image)], dense=True), record) for key, image, record in samples(scenes)
    }
    for name in ("hard", "medium", "easy", "trivial"):
        hits: dict[str, list[bool]] = {}
        for line in (scenes / "fgovd" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            features, _ = images[row["img_path"].removesuffix(".jpg")]
            x, y, w, h = row["bbox"]
            box = torch.tensor([[x, y, x + w, y + h]]) / torch.tensor([row["width"], row["height"]] * 2)
            region = model.pool_regions(features, box.clamp(0, 1), torch.tensor([0]))[0][0]
            found = [float(region @ text_vector(t, "region")) for t in row["pos_expression"] + row["neg_expression"]]
            for group in ("all", row["language"], row["combination"]):
                hits.setdefault(group, []).append(found[0] > max(found[1:]))
        share = {group: sum(values) / len(values) for group, values in hits.items()}
        assert scores[name] == pytest.approx(share["all"])
        assert scores["by_language"]["zh"][name] == pytest.approx(share["zh"])
        assert scores["unseen"][name] == pytest.approx(share["unseen"])
        assert scores["seen"][name] == pytest.approx(share["seen"])
    classes = json.loads((scenes.parent / "scenes.json").read_text(encoding="utf-8"))["classes"]
    right, count = 0, 0
    for features, record in images.values():
        texts = torch.stack([text_vector(name, "region") for name in classes[record["language"]]])
        for region in record["regions"]:
            vector = model.pool_regions(features, torch.tensor([region["box"]]), torch.tensor([0]))[0][0]
            right += classes[record["language"]][int((texts @ vector).argmax())] == region["category"]
            count += 1
    assert scores["boxes_top1"] == pytest.approx(right / count)


def test_retrieval_is_of_long_captions_each_language_apart(scenes):
    model = FakeModel()
    scores = scene_scores(model, scenes, parts=["retrieval"], retrieval_images=15)
    assert model.kinds_asked == {"long"}
    means = []
    for language in ("en", "zh"):
        mine = [(image, record) for _, image, record in samples(scenes) if record["language"] == language][:15]
        images = torch.cat([model.encode_images([model.prepare(image)]).embeds for image, _ in mine])
        texts = torch.stack([text_vector(record["long_caption"], "long") for _, record in mine])
        hits = (texts @ images.T).argmax(1) == torch.arange(15)
        assert scores["by_language"][language]["t2i_r1"] == pytest.approx(hits.double().mean().item())
        means.append(hits.double().mean().item())
    assert scores["t2i_r1"] == pytest.approx(sum(means) / 2)
    assert "first 15 images of a language" in scores["settings"]["retrieval"]


def test_all_rows_are_accounted_for_and_each_image_is_encoded_once(scenes):
    model = FakeModel()
    scores = scene_scores(model, scenes)
    assert model.images_encoded == 40
    rows = len((scenes / "fgovd" / "hard.jsonl").read_text(encoding="utf-8").splitlines())
    assert [account["rows"] for account in scores["accounting"]] == [rows] * 5 + [40]
    assert all(account["rows"] == account["evaluated"] for account in scores["accounting"])


def test_a_broken_image_costs_its_rows_and_is_named(scenes, tmp_path):
    folder = tmp_path / "test"
    shutil.copytree(scenes, folder)
    shutil.copy(scenes.parent / "scenes.json", tmp_path)
    path = folder / "test-000000.tar"
    with tarfile.open(path) as tar:
        first = next(member for member in tar if member.name.endswith(".jpg"))
    data = bytearray(path.read_bytes())
    data[first.offset_data : first.offset_data + 400] = bytes(400)
    path.write_bytes(data)
    with pytest.raises(EvaluationError, match="broken_image"):
        scene_scores(FakeModel(), folder)
    scores = scene_scores(FakeModel(), folder, max_skipped_share=0.2)
    for account in scores["accounting"]:
        assert account["skipped"]["broken_image"] >= 1
        assert account["evaluated"] + account["skipped"]["broken_image"] == account["rows"]
        assert first.name.removesuffix(".jpg") in account["examples"]["broken_image"][0]


OF = {"segmentation": {}, "detection": {"language": "en"}}


def scores_on_this_rank(folder: str, out: str) -> dict:
    model = FakeModel()
    scores = scene_scores(model, folder, ranks=Ranks.from_environment(), settings=EncodeSettings(chunk_size=8))
    found = {"numbers": numbers(scores), "encoded": model.images_encoded}
    for task in OF:
        found[task] = evaluate(FakeModel(), task, folder, ranks=Ranks.from_environment(), **OF[task])["scores"]
    maps = {"phrases": ("a red circle", "红色的圆"), "out": Path(out), "max_images": 3}
    found["maps"] = evaluate(FakeModel(), "dense-maps", folder, ranks=Ranks.from_environment(), **maps)["scores"]
    return found


def test_two_processes_share_the_work_and_agree_with_one(scenes, tmp_path):
    alone = numbers(scene_scores(FakeModel(), scenes))
    tasks = {task: evaluate(FakeModel(), task, scenes, **OF[task])["scores"] for task in OF}
    found = run_ranks(2, scores_on_this_rank, str(scenes), str(tmp_path))
    assert len(json.loads((tmp_path / "pictures.json").read_text(encoding="utf-8"))) == len(found[0]["maps"]) == 6
    assert sorted(part["encoded"] for part in found) == [16, 24]
    for part in found:
        assert part["numbers"] == pytest.approx(alone)
        for task, scores in tasks.items():
            assert flat_scores(part[task]) == pytest.approx(flat_scores(scores))


def test_rank_variables_that_make_no_group_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(RankError, match="rank 2 of 2"):
        Ranks.from_environment()


def test_srun_without_a_meeting_place_on_several_hosts_is_refused_by_name(monkeypatch):
    for name, value in (("SLURM_PROCID", "3"), ("SLURM_STEP_NUM_TASKS", "4"), ("SLURM_LOCALID", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "2(x2)")
    monkeypatch.setenv("SLURM_NODEID", "1")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(RankError, match="4 processes on several hosts, but MASTER_ADDR is not set"):
        Ranks.from_environment()


def test_an_interrupted_evaluation_goes_on_from_its_cache(scenes, tmp_path):
    settings = EncodeSettings(chunk_size=8, cache_folder=tmp_path / "cache")
    first = FakeModel()
    encode, limit = first.encode_images, 20

    def interrupted(prepared, dense=False):
        if first.images_encoded + len(prepared) > limit:
            raise KeyboardInterrupt
        return encode(prepared, dense)

    first.encode_images = interrupted
    with pytest.raises(KeyboardInterrupt):
        scene_scores(first, scenes, settings=settings)
    assert first.images_encoded == 16
    second = FakeModel()
    scores = scene_scores(second, scenes, settings=settings)
    assert second.images_encoded == 40 - 16
    assert numbers(scores) == pytest.approx(numbers(scene_scores(FakeModel(), scenes)))
    other = FakeModel()
    other.module.weight.data += 1  # other weights: nothing of the cache may be used
    scene_scores(other, scenes, settings=settings)
    assert other.images_encoded == 40


def test_training_mode_and_gradients_come_back_after_an_evaluation(scenes):
    model = FakeModel()
    model.module.train()
    scene_scores(model, scenes, parts=["boxes"])
    assert model.module.training and torch.is_grad_enabled()


def test_scene_tasks_share_one_pass_and_others_run_beside(scenes):
    model = FakeModel()
    results = evaluate_several(model, ["fgovd", "boxes", "segmentation"], scenes)
    assert list(results) == ["scenes", "segmentation"]
    assert model.images_encoded == 80


def test_shards_are_scored_task_by_task_too(scenes, tmp_path):
    for path in scenes.glob("*.tar"):
        shutil.copy(path, tmp_path)
    boxes = evaluate(FakeModel(), "boxes", tmp_path, language="zh")
    assert boxes["scores"]["boxes_top1"] == pytest.approx(
        scene_scores(FakeModel(), scenes)["by_language"]["zh"]["boxes_top1"]
    )
    long = evaluate(FakeModel(), "retrieval", tmp_path, language="zh", text_kind="long")
    whole = scene_scores(FakeModel(), scenes)["by_language"]["zh"]
    assert long["scores"]["t2i_r1"] == pytest.approx(whole["t2i_r1"])
    phrases = evaluate(FakeModel(), "fgovd", tmp_path, language="zh")
    assert 0 <= phrases["scores"]["shards"] <= 1 and phrases["accounting"][0]["evaluated"] > 0


def test_folders_that_hold_no_scenes_are_refused(tmp_path):
    with pytest.raises(EvaluationError, match="holds no shard"):
        scene_scores(FakeModel(), tmp_path)
    (tmp_path / "x.tar").write_bytes(b"garbage" * 200)
    with pytest.raises(EvaluationError, match="not a whole tar"):
        scene_scores(FakeModel(), tmp_path)
    with pytest.raises(EvaluationError, match="'detection'; it must be 'fgovd', 'retrieval' or 'boxes'"):
        scene_scores(FakeModel(), Path(tmp_path), parts=["detection"])
