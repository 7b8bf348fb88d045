"""Clips in shards: records, indexes, plans and batches."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from data_tools.shard_check import check_shard
from pipeline.config import DataSettings, SettingsError, Stage2Settings, load_settings
from pipeline.data.clips import frame_numbers, sampled
from pipeline.data.images import decode_array
from pipeline.data.index import index_folder
from pipeline.data.loader import Reading, make_loader
from pipeline.data.manifest import IndexProblem, load_manifest
from pipeline.data.plan import Plan
from pipeline.data.plan.report import report
from pipeline.data.reader import iterate_shards
from pipeline.data.records import RecordFault, walk_records
from pipeline.data.schema import Sample, SampleError, parse_sample
from pipeline.data.shard_index import read_index
from pipeline.data.slices import Division
from tests.data.shards import clip_members, clip_record, image_bytes, record, sample_members, write_tar

BOX = [0.1, 0.1, 0.5, 0.5]


def parse(**fields) -> Sample:
    return parse_sample(json.dumps(clip_record(1, "zh") | fields).encode(), key="k", shard="s.tar")


def with_region(**fields) -> dict:
    return {"regions": [{"phrase": "红猫向左走", **fields}]}


def test_a_clip_is_read_as_it_was_written():
    sample = parse(anomaly=[0, 1, 1])
    assert (sample.num_frames, sample.frames, sample.anomaly) == (3, (0.0, 0.5, 1.0), (0, 1, 1))
    assert sample.regions[1].box is None and [box is None for box in sample.regions[1].boxes or ()] == [
        True,
        False,
        False,
    ]
    assert parse_sample(sample.to_bytes()) == sample
    with pytest.raises(ValueError, match="is of a clip"):
        _ = sample.regions[0].image_box


def test_a_region_that_is_nowhere_is_no_fault():
    assert parse(**with_region(boxes=[None, None, None])).regions[0].boxes == (None, None, None)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"frames": []}, "no_frames"),
        ({"frames": list(range(513))}, "too_many_frames"),
        ({"frames": [0, 1, 1]}, "frame_times"),
        ({"frames": [-0.5, 0, 1]}, "frame_times"),
        ({"frames": [0, 1, "2"]}, "frame_times"),
        ({"frames": 3}, "frame_times"),
        (with_region(boxes=[BOX, None]), "frame_boxes"),
        (with_region(box=BOX), "frame_boxes"),
        (with_region(box=BOX, boxes=[BOX, BOX, BOX]), "frame_boxes"),
        (with_region(), "frame_boxes"),
        (with_region(boxes=[BOX, None, [0.5, 0.1, 0.4, 0.2]]), "bad_box"),
        ({"frames": None, **with_region(boxes=[BOX])}, "frame_boxes"),
        ({"frames": None, **with_region()}, "bad_box"),
        ({"frames": None, "regions": [], "anomaly": [1]}, "bad_field"),
        ({"anomaly": [0, 1]}, "bad_field"),
        ({"anomaly": [0, 1, 2]}, "bad_field"),
    ],
)
def test_what_breaks_a_rule_of_clips_is_named(fields, kind):
    with pytest.raises(SampleError) as error:
        parse(**fields)
    assert error.value.kind == kind and "s.tar: sample k: " in str(error.value)


def test_times_that_are_not_finite_are_named():
    text = json.dumps(clip_record(1)).replace("[0.0, 0.5, 1.0]", "[0.0, 0.5, Infinity]")
    with pytest.raises(SampleError) as error:
        parse_sample(text.encode())
    assert error.value.kind == "frame_times"


def damaged(number: int) -> dict[str, list[tuple[str, bytes]]]:
    """Clips that each break one rule of their members, by the fault's kind."""
    whole = clip_members("x", number)
    other = [("x.002.jpg", image_bytes(5, (48, 64)))]
    return {
        "missing_frame": [member for member in whole if member[0] != "x.001.jpg"],
        "missing_frame ": whole[:2] + whole[3:],
        "no_frames": [("x.txt", b"-"), whole[-1], ("x.jpg", image_bytes(1))],
        "unequal_frames": whole[:2] + other + whole[3:],
        "no_frames ": [("x.txt", b"-"), whole[-1]],
    }


@pytest.mark.parametrize("kind", list(damaged(0)))
def test_a_clip_whose_members_break_a_rule_is_named_by_index_and_verify(tmp_path, kind):
    write_tar(
        tmp_path / "p.tar", clip_members("a", 1) + damaged(2)[kind] + sample_members("z", image_bytes(9), record(9))
    )
    manifest, faults = index_folder(tmp_path)
    assert [(fault.kind, fault.key) for fault in faults] == [(kind.strip(), "x")]
    assert (int(manifest.samples.sum()), manifest.clips) == (2, 1)
    assert [(fault.kind, fault.key) for fault in check_shard(tmp_path / "p.tar").faults] == [(kind.strip(), "x")]


def test_readers_of_images_meet_clips_as_faults_and_others_may_ask_for_them(tmp_path):
    path = write_tar(tmp_path / "p.tar", clip_members("a", 1) + sample_members("z", image_bytes(9), record(9)))
    with pytest.raises(RecordFault, match="clip of 3 frames"):
        list(walk_records(path))
    met: list = []
    assert [key for key, *_ in iterate_shards(path, met.append)] == ["z"] and [fault.kind for fault in met] == ["clip"]
    found = list(walk_records(path, clips=True))
    assert [[member.name for member in one.frame_members()] for one, _ in found] == [
        ["a.000.jpg", "a.001.jpg", "a.002.jpg"],
        [],
    ]


def write_mixed(folder: Path) -> Path:
    """Two shards: clips of 3, 4 and 6 frames and images, in English and Chinese; some clips hold their record first."""
    for shard in range(2):
        members: list[tuple[str, bytes]] = []
        for n in range(24):
            number, language = 100 * shard + n, ("en", "zh")[n % 2]
            if n % 5 == 3:
                members += sample_members(f"k{number:04d}", image_bytes(number), record(number, language, regions=2))
            else:
                clip = clip_members(f"片{number:04d}" + "长" * 40 * (n == 4), number, language, (3, 4, 6)[n % 3])
                members += clip if n % 4 else [clip[-1], *clip[:-1]]
        write_tar(folder / f"p-{shard}.tar", members, tarfile.PAX_FORMAT)  # as webdataset writes long and Chinese names
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    folder = write_mixed(tmp_path_factory.mktemp("混合"))
    index_folder(folder, piece_bytes=10_000)
    return folder


def settings_for(folder: Path, **fields) -> DataSettings:
    values = {"shards": [str(folder)], "patch_budgets": [16, 128], "num_workers": 0, "clip_frames": [4]}
    return DataSettings(**values | fields)


def test_frames_are_taken_evenly():
    assert frame_numbers(8, 4) == [1, 3, 5, 7] and frame_numbers(7, 7) == list(range(7))
    assert frame_numbers(100, 3) == [16, 50, 83]
    sample = sampled(parse(anomaly=[0, 1, 0]), [0, 2])
    assert sample.frames == (0.0, 1.0) and sample.anomaly == (0, 0) and len(sample.regions[0].boxes or ()) == 2
    with pytest.raises(ValueError, match="ask for 1 to 3"):
        frame_numbers(3, 4)


@pytest.mark.parametrize("one_budget", [True, False])
@pytest.mark.parametrize("clip_frames", [[4], [3, 6], [2]])
def test_a_plan_has_groups_of_images_and_of_clips_and_counts_what_is_too_short(mixed, one_budget, clip_frames):
    settings = settings_for(mixed, clip_frames=clip_frames, one_budget_per_batch=one_budget, keep_last_batch=True)
    settings = settings.model_copy(update={"last_batch_multiple": 1})
    manifest = load_manifest(mixed, settings.patch_budgets, clip_frames=clip_frames)
    plan = Plan([manifest], settings, 0, 4)
    lengths = {
        (name, key): int(frames)
        for name in manifest.shards
        for rows in [read_index(mixed, name)]
        for key, frames in zip(rows.keys, rows.num_frames, strict=True)
    }
    rows = [read_index(mixed, name) for name in manifest.shards]
    met: dict[tuple[str, str], int] = {}
    for number in range(plan.steps_per_epoch()):
        batch = plan.batch(0, number)
        assert plan.shape_of(0, number) == (len(batch), (batch.patch_budget, batch.frames))
        for shard, ordinal in zip(batch.shards, batch.ordinals, strict=True):
            row = rows[shard].grouped_rows(plan.levels)[batch.language][ordinal]
            met[manifest.shards[shard], rows[shard].keys[row]] = batch.frames
    expected = {
        name: 1 if not n else max(frames for frames in clip_frames if frames <= n)
        for name, n in lengths.items()
        if not n or n >= clip_frames[0]
    }
    assert met == expected
    assert plan.too_short == len(lengths) - len(expected)
    assert any(f"{plan.too_short} clips are shorter" in line for line in report(plan, [manifest], 0)) == bool(
        plan.too_short
    )


def test_the_same_counts_come_from_sizes_and_from_rows(mixed):
    for clip_frames in ([4], [3, 6]):
        manifest = load_manifest(mixed, (16, 128), clip_frames=clip_frames)
        for number, name in enumerate(manifest.shards):
            assert (
                read_index(mixed, name).counts(manifest.levels, manifest.languages) == manifest.counts[number]
            ).all()


def test_clips_without_numbers_of_frames_are_refused_and_images_alone_are_as_before(mixed, tmp_path):
    with pytest.raises(IndexProblem, match=r"holds 38 clips.*data.clip_frames=\[8\]"):
        load_manifest(mixed, (16, 128), clip_frames=[])
    write_tar(tmp_path / "p.tar", sample_members("z", image_bytes(9), record(9)))
    manifest, _ = index_folder(tmp_path)
    assert (
        manifest.counts.shape[2] == len(manifest.patch_budgets)
        and "clips" not in (tmp_path / "manifest.json").read_text()
    )


@pytest.mark.parametrize("frames", ["[1]", "[8, 4]", "[600]"])
def test_numbers_of_frames_that_cannot_be_are_refused(frames):
    with pytest.raises(SettingsError, match="clip_frames"):
        load_settings(Stage2Settings, [], [f"data.clip_frames={frames}"])
    with pytest.raises(SettingsError, match="a stream reads images alone"):
        load_settings(Stage2Settings, [], ["data.clip_frames=[8]", "data.streaming=true"])


def batches_of(folder: Path, tokenizer, rank: int = 0, division: Division | None = None, steps: int = 8, **fields):
    reading = Reading(
        settings_for(folder, **fields), tokenizer, (16, 32), 0, 4, rank, division or Division(), with_regions=True
    )
    with make_loader(reading) as loader:
        count = sum(loader.plan.shape_of(0, n)[0] > 0 for n in range(min(steps, loader.steps_per_epoch())))
        found = []
        while len({unit.step for unit, _ in found} | {loader.upcoming().step}) <= count:
            found.append((loader.upcoming(), next(loader)))
        return found


def test_a_batch_holds_the_frames_of_its_clips_one_beside_the_other(mixed, tokenizer):
    kinds = set()
    samples = {found.key: sample for path in mixed.glob("*.tar") for found, sample in walk_records(path, clips=True)}
    for _, batch in batches_of(mixed, tokenizer, steps=100):
        frames, size = batch.num_frames, len(batch)
        kinds.add((batch.language, frames))
        assert len(batch.pixel_values) == len(batch.spatial_shapes) == size * frames
        assert len(batch.boxes) == len(batch.region_image) == frames * len(batch.phrase_index)
        regions = batch.boxes.view(-1, frames, 4)
        owner = batch.region_image.view(-1, frames)
        assert (owner // frames == owner[:, :1] // frames).all() and (owner % frames == torch.arange(frames)).all()
        row = 0
        for place, key in enumerate(batch.keys):
            sample = samples[key]
            chosen = frame_numbers(sample.num_frames, frames) if sample.frames else [0]
            for region in sample.regions:
                boxes = [region.boxes[n] if region.boxes else region.box for n in chosen]
                expected = torch.tensor([box or (0, 0, 0, 0) for box in boxes], dtype=torch.float32)
                torch.testing.assert_close(regions[row], expected)
                assert owner[row, 0] == place * frames
                row += 1
        assert batch.facts.counts[2] == row
    assert kinds == {(language, frames) for language in ("en", "zh") for frames in (1, 4)}


def test_pixels_of_a_clip_are_those_of_its_frames_in_their_order(mixed, tokenizer):
    clips = {found.key: path for path in mixed.glob("*.tar") for found, _ in walk_records(path, clips=True)}
    batch = next(batch for _, batch in batches_of(mixed, tokenizer) if batch.num_frames == 4)
    for place, key in enumerate(batch.keys):
        found, sample = next(pair for pair in walk_records(clips[key], clips=True) if pair[0].key == key)
        data = found.shard.read_bytes()
        members = found.frame_members()
        for frame, number in enumerate(frame_numbers(sample.num_frames, 4)):
            member = members[number]
            array = decode_array(data[member.offset : member.offset + member.size])
            rows, columns = batch.spatial_shapes[place * 4 + frame].tolist()
            assert (rows * 16, columns * 16) == array.shape[:2]
            patches = (
                torch.from_numpy(array.copy())
                .view(rows, 16, columns, 48)
                .permute(0, 2, 1, 3)
                .reshape(rows * columns, 768)
            )
            assert torch.equal(batch.pixel_values[place * 4 + frame, : rows * columns], patches)


def test_micro_batches_and_ranks_divide_clips_and_never_their_frames(mixed, tokenizer):
    whole = {unit.step: batch for unit, batch in batches_of(mixed, tokenizer)}
    parts: dict[int, list] = {}
    for rank in range(2):
        for unit, batch in batches_of(mixed, tokenizer, rank, Division(2, largest={16: 4, 128: 4})):
            assert len(batch.pixel_values) == len(batch) * batch.num_frames <= 4
            parts.setdefault(unit.step, []).append(batch)
    assert parts.keys() == whole.keys()
    for step, batch in whole.items():
        assert len(parts[step]) == (4 if batch.num_frames == 4 else 2)
        assert [key for part in parts[step] for key in part.keys] == batch.keys
        assert torch.equal(torch.cat([part.pixel_values for part in parts[step]]), batch.pixel_values)


def test_a_fault_in_one_frame_is_a_fault_of_the_clip(mixed, tmp_path, tokenizer):
    """The frame decodes no more, though its header is sound and its checksum is that of the index."""
    members = [member for n in range(8) for member in clip_members(f"k{n}", n, frames=4)]
    whole = dict(members)
    whole["k3.002.jpg"] = whole["k3.002.jpg"][:-100]
    write_tar(tmp_path / "p.tar", list(whole.items()))
    index_folder(tmp_path)
    found = batches_of(tmp_path, tokenizer, steps=2)
    keys = [key for _, batch in found for key in batch.keys]
    assert "k3" not in keys and len(keys) == 8
    replaced: dict[str, int] = {}
    for _, batch in found:
        for kind, count in batch.replaced.items():
            replaced[kind] = replaced.get(kind, 0) + count
    assert replaced == {"broken_image": 1}


def test_all_frames_of_a_clip_are_seen_through_one_view(mixed, tokenizer):
    augment = {"crop_share": 1.0, "crop_least_area": 0.5, "flip_share": 1.0}
    plain = {key: batch for _, batch in batches_of(mixed, tokenizer) for key in batch.keys}
    seen = 0
    for _, batch in batches_of(mixed, tokenizer, augment=augment):
        if batch.num_frames == 1:
            continue
        shapes = batch.spatial_shapes.view(len(batch), 4, 2)
        assert (shapes == shapes[:, :1]).all()
        before = plain[batch.keys[0]]
        start = before.keys.index(batch.keys[0])
        own = batch.boxes[batch.region_image // 4 == 0].view(-1, 4, 4)
        old = before.boxes[before.region_image // 4 == start].view(-1, 4, 4)
        assert ((own == 0).all(2) == (old == 0).all(2)).all(), "where it is not there, no view makes it appear"
        for region in own:
            there = region[(region != 0).any(1)]
            torch.testing.assert_close(there, there[:1].expand_as(there))  # it did not move in the clip
        seen += 1
    assert seen


def test_a_resumed_loader_meets_the_batches_that_follow(mixed, tokenizer):
    whole = batches_of(mixed, tokenizer, steps=6)
    reading = Reading(settings_for(mixed), tokenizer, (16, 32), 0, 4, start_step=3, with_regions=True)
    with make_loader(reading) as loader:
        for unit, batch in whole[3:]:
            assert loader.upcoming() == unit
            again = next(loader)
            assert again.keys == batch.keys and np.array_equal(again.pixel_values, batch.pixel_values)
