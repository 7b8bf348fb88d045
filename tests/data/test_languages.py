"""Shards of any languages: indexed, planned one language a batch, read, and English and Chinese as they always were."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.config import DataSettings
from pipeline.data.cache import LocalFolder
from pipeline.data.index import index_folder
from pipeline.data.manifest import IndexProblem, load_manifest
from pipeline.data.plan import Plan
from pipeline.data.plan.report import untrained_languages
from pipeline.data.reader import ShardReader
from pipeline.data.schema import SampleError, parse_sample
from tests.data.shards import record, write_shards

BUDGETS = (128, 256)


@pytest.fixture
def folder(tmp_path):
    groups = [
        [("de", 128)] * 5 + [("zh", 256)] * 4,
        [("pt-BR", 128)] * 4 + [("de", 256)] * 4 + [("en", 128)] * 4,
        [("ja", 256)] * 2 + [("ar", 128)] * 2,
    ]
    write_shards(tmp_path, groups)
    index_folder(tmp_path, patch_budgets=BUDGETS)
    return tmp_path


def settings(folder, **more):
    return DataSettings(
        shards=[str(folder)], patch_budgets=list(BUDGETS), keep_last_batch=True, last_batch_multiple=1, **more
    )


def met(folder, data, size=2):
    """``(language of the batch, key, language of the record)`` of an epoch, in the plan's order."""
    manifest = load_manifest(folder, BUDGETS)
    plan = Plan([manifest], data, 0, size)
    reader = ShardReader(manifest, LocalFolder(str(folder)), manifest.levels)
    found = []
    for number in range(plan.steps_per_epoch()):
        batch = plan.batch(0, number)
        for shard, ordinal in zip(batch.shards, batch.ordinals, strict=True):
            raw = reader.read(int(shard), reader.row(int(shard), batch.language, int(ordinal)))
            found.append((batch.language, raw.key, raw.sample.language))
    reader.close()
    return found


def test_every_sample_is_met_once_in_a_batch_of_its_language(folder):
    manifest = load_manifest(folder)
    assert manifest.languages == ("en", "zh", "ar", "de", "ja", "pt-BR")
    assert manifest.counts.sum((0, 2)).tolist() == [4, 4, 2, 9, 2, 4]
    document = json.loads((folder / "manifest.json").read_text())
    assert document["languages"] == ["en", "zh", "ar", "de", "ja", "pt-BR"]
    assert set(document["counts"]) == {"de/128", "de/256", "zh/256", "pt-BR/128", "en/128", "ja/256", "ar/128"}
    found = met(folder, settings(folder))
    assert all(batch == own for batch, _, own in found)
    assert sorted(key for _, key, _ in found) == [f"k{number:05d}" for number in range(25)]


def test_counting_again_with_other_budgets_gives_the_same_languages(folder):
    again = load_manifest(folder, (128, 256, 1024))
    assert again.languages == ("en", "zh", "ar", "de", "ja", "pt-BR") and again.counts.sum((0, 2)).tolist() == [
        4,
        4,
        2,
        9,
        2,
        4,
    ]
    assert again.counts[..., 2].sum() == 0 and (again.counts.sum((1, 2)) == again.samples).all()


def test_weights_go_by_tag_and_name_a_language_that_is_not_there(folder):
    found = met(folder, settings(folder, language_weights={"de": 1.0, "pt-br": 1.0}))
    assert {language for language, *_ in found} == {"de", "pt-BR"}
    with pytest.raises(
        IndexProblem, match="names fr, of which there is no sample; the shards hold en, zh, ar, de, ja, pt-BR"
    ):
        met(folder, settings(folder, language_weights={"de": 1.0, "fr": 1.0}))


def test_a_third_language_moves_no_batch_of_english_and_chinese(tmp_path):
    groups = [[("en", 128)] * 6 + [("zh", 256)] * 6] * 3
    write_shards(tmp_path / "two", groups)
    write_shards(tmp_path / "three", [*groups[:1], [*groups[1], *[("de", 128)] * 6], *groups[2:]])
    plans = []
    for name in ("two", "three"):
        manifest, _ = index_folder(tmp_path / name, patch_budgets=BUDGETS)
        plans.append(Plan([manifest], settings(tmp_path / name, window_shards=3), 0, 4))
    found = []
    for plan in plans:
        batches = [plan.batch(0, number) for number in range(plan.steps_per_epoch())]
        streams = {(b.language, b.patch_budget, b.first): (b.shards, b.ordinals) for b in batches if b.language != "de"}
        found.append(streams)
    assert found[0].keys() == found[1].keys()
    for key, (shards, ordinals) in found[0].items():
        assert np.array_equal(shards, found[1][key][0]) and np.array_equal(ordinals, found[1][key][1])


def test_two_folders_with_other_languages_make_one_plan(tmp_path):
    write_shards(tmp_path / "a", [[("de", 128)] * 4])
    write_shards(tmp_path / "b", [[("fr", 128)] * 4 + [("zh", 128)] * 4], start=50)
    manifests = [index_folder(tmp_path / name, patch_budgets=BUDGETS)[0] for name in ("a", "b")]
    plan = Plan(manifests, settings(tmp_path), 0, 4)
    taken = {language: samples for language, _, samples, *_ in plan.group_counts() if samples}
    assert plan.languages == ("en", "zh", "de", "fr") and taken == {"de": 4, "fr": 4, "zh": 4}


def test_tags_are_stored_in_one_spelling_and_no_tag_is_refused():
    assert parse_sample(record(1) | {"language": "PT-br"}).language == "pt-BR"
    for language in ("english", "", "en_US", "中文", None, 5):
        with pytest.raises(SampleError, match="BCP-47") as caught:
            parse_sample(json.dumps(record(1) | {"language": language}).encode())
        assert caught.value.kind == "bad_field"


THIRTY = ("af ar bg bn ca cs da de el es et fa fi fr he hi hr hu id it ja ko lt lv nl pl pt-BR ro ru sv").split()


def test_thirty_languages_of_three_rows_are_named_where_they_fill_no_batch(tmp_path):
    write_shards(tmp_path / "few", [[(tag, 128)] * 3 for tag in THIRTY])
    write_shards(tmp_path / "许多", [[("en", 128)] * 9], start=1000)
    for name in ("few", "许多"):
        index_folder(tmp_path / name, patch_budgets=BUDGETS)
    manifests = [load_manifest(tmp_path / name, BUDGETS) for name in ("few", "许多")]
    data = DataSettings(patch_budgets=list(BUDGETS))
    (line,) = untrained_languages(Plan(manifests, data, 0, 8))
    assert "30 of 31 languages fill no batch of 8" in line and "af (3)" in line and "and 25 more" in line
    assert "train.global_batch_size" in line and "en (" not in line
    assert untrained_languages(Plan(manifests, data, 0, 3)) == []
    kept = data.model_copy(update={"keep_last_batch": True, "last_batch_multiple": 3})
    assert untrained_languages(Plan(manifests, kept, 0, 8)) == []
    with pytest.raises(IndexProblem, match="no batch of 8 can be filled.*with 3 samples.*keep_last_batch"):
        Plan(manifests[:1], data, 0, 8)
