"""Shards: plain WebDataset tars, whole or absent, equal bytes from equal samples."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import time

import pytest
import webdataset
from PIL import Image

from data_tools.shard_size import ShardSize
from data_tools.shards import Record, ShardError, ShardWriter, write_shard
from pipeline.base.files import partial_path
from pipeline.data.index import index_folder
from pipeline.data.manifest import load_manifest
from pipeline.data.reader import read_sample
from pipeline.data.records import walk_records
from pipeline.data.schema import Sample

SAMPLE = Sample("zh", 32, 32, short_caption="一个红色的圆形")


def jpeg(value: int = 0, size: tuple[int, int] = (32, 32)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (value % 256, 90, 90)).save(stream, "JPEG")
    return stream.getvalue()


def webp() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (32, 32), (9, 90, 90)).save(stream, "WEBP")
    return stream.getvalue()


def test_webdataset_itself_reads_what_is_written_and_chinese_survives(tmp_path):
    image = jpeg()
    with ShardWriter(tmp_path, samples_per_shard=2) as writer:
        for i in range(5):
            writer.write(f"k{i}", image, "jpg", SAMPLE, {"mask.png": b"mask"})
    shards = sorted(str(path) for path in tmp_path.glob("*.tar"))
    read = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [sample["__key__"] for sample in read] == [f"k{i}" for i in range(5)]
    assert read[0]["jpg"] == image and read[0]["mask.png"] == b"mask"
    assert json.loads(read[4]["json"])["short_caption"] == "一个红色的圆形"
    assert list(load_manifest(tmp_path).samples) == [2, 2, 1]


def test_equal_samples_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_shard(tmp_path / name / "s-000000.tar", [Record("k", jpeg(), "jpg", SAMPLE)])
        time.sleep(1.1 if name == "a" else 0)  # a tar's times are whole seconds
    assert (tmp_path / "a" / "s-000000.tar").read_bytes() == (tmp_path / "b" / "s-000000.tar").read_bytes()


@pytest.mark.parametrize(
    ("key", "extension", "words"),
    [
        ("a.b", "jpg", "'.'"),
        ("a/b", "jpg", "'/'"),
        ("", "jpg", "empty"),
        ("图\n片", "jpg", "control characters"),
        ("图\udcff", "jpg", "be UTF-8"),
        ("a", "gif", "jpg, jpeg, png, webp"),
    ],
)
def test_a_key_or_extension_that_webdataset_would_misread_is_refused(tmp_path, key, extension, words):
    with pytest.raises(ShardError, match=words.replace(".", r"\.")), ShardWriter(tmp_path) as writer:
        writer.write(key, jpeg(), extension, SAMPLE)
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_mid_shard_keeps_whole_shards_and_leaves_no_partial_one(tmp_path):
    def stop_after_three():
        with ShardWriter(tmp_path, samples_per_shard=2, index=False) as writer:
            for i in range(3):
                writer.write(f"k{i}", jpeg(), "jpg", SAMPLE)
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        stop_after_three()
    assert [path.name for path in tmp_path.iterdir()] == ["shard-000000.tar"]


def test_a_killed_writers_file_is_no_shard_and_is_cleared_by_the_next(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    host = partial_path("x").name.removeprefix(".x.").partition("-")[0]
    left = tmp_path / f".s-000000.tar.{host}-{process.pid}.partial"
    left.write_bytes(b"half")
    assert list(tmp_path.glob("*.tar")) == []
    write_shard(tmp_path / "s-000000.tar", [Record("k", jpeg(), "jpg", SAMPLE)])
    assert [path.name for path in tmp_path.iterdir()] == ["s-000000.tar"]


def test_a_repeated_key_is_refused_and_no_record_makes_no_file(tmp_path):
    with pytest.raises(ShardError, match="in this shard already"):
        write_shard(tmp_path / "s.tar", [Record("k", jpeg(), "jpg", SAMPLE)] * 2)
    assert write_shard(tmp_path / "s.tar", []) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_further_member_takes_the_name_of_none_that_is_there(tmp_path):
    for name in ("jpg", "json", "__key__"):
        with pytest.raises(ShardError, match=f"further member '{name}'"):
            write_shard(tmp_path / "s.tar", [Record("k", jpeg(), "jpg", SAMPLE, {name: b"x"})])
    assert list(tmp_path.iterdir()) == []


def test_members_have_no_owner_a_fixed_mode_and_no_time(tmp_path):
    record = Record("很长的名字" * 30, jpeg(), "png", SAMPLE, {"_note": b"kept", "mask.png": b"mask"})
    write_shard(tmp_path / "s.tar", [record])
    with tarfile.open(tmp_path / "s.tar") as tar:
        members = tar.getmembers()
    assert [member.name.partition(".")[2] for member in members] == ["_note", "json", "mask.png", "png"]
    facts = {(m.uid, m.gid, m.uname, m.gname, m.mode, m.mtime, m.type) for m in members}
    assert facts == {(0, 0, "", "", 0o644, 0, tarfile.REGTYPE)}
    for found, sample in walk_records(tmp_path / "s.tar"):
        assert found.key == record.key and sample == SAMPLE and found.read("png") == record.image


def test_shards_of_version_0_1_are_indexed_and_read_as_before(tmp_path):
    """They were of GNU's format with the image before its record; a folder may hold both kinds."""
    old = tmp_path / "a-000000.tar"
    with tarfile.open(old, "w", format=tarfile.GNU_FORMAT) as tar:
        for extension, data in (("webp", webp()), ("json", SAMPLE.to_bytes())):
            member = tarfile.TarInfo(f"旧的.{extension}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    write_shard(tmp_path / "b-000000.tar", [Record("新的", webp(), "webp", SAMPLE)])
    manifest, faults = index_folder(tmp_path)
    assert faults == [] and list(manifest.samples) == [1, 1]
    for name, key in (("a", "旧的"), ("b", "新的")):
        assert read_sample(tmp_path / f"{name}-000000.tar", key) == (webp(), SAMPLE)


def test_a_writer_finishes_a_shard_by_bytes_as_well_as_by_samples(tmp_path):
    with ShardWriter(tmp_path, samples_per_shard=4, gigabytes_per_shard=1.5 * len(jpeg()) / 1e9, index=False) as writer:
        for i in range(5):
            writer.write(f"k{i}", jpeg(), "jpg", SAMPLE)
    assert [sum(1 for _ in walk_records(path)) for path in sorted(tmp_path.glob("*.tar"))] == [2, 2, 1]


@pytest.mark.parametrize(
    ("size", "sizes", "counts"),
    [
        (ShardSize(3), [10] * 7, [3, 3, 1]),
        (ShardSize(3, 25e-9), [10] * 7, [2, 2, 2, 1]),
        (ShardSize(3, 25e-9), [30, 1, 1, 30, 30], [1, 2, 1, 1]),
        (ShardSize(), [10] * 2500, [1000, 1000, 500]),
        (ShardSize(), [10] * 32_000, [2000] * 16),
        (ShardSize(), [10] * 400_000, [10_000] * 40),
        (ShardSize(), [200_000] * 160_000, [5000] * 32),
        (ShardSize(), [], []),
    ],
)
def test_sources_are_cut_by_samples_and_by_bytes(size, sizes, counts):
    cuts = size.cut(sizes)
    assert [cut.stop - cut.start for cut in cuts] == counts
    assert [n for cut in cuts for n in range(cut.start, cut.stop)] == list(range(len(sizes)))
    if len(set(sizes)) == 1:
        assert size.most_samples(len(sizes), sizes[0]) == max(counts)


@pytest.mark.parametrize(
    ("limits", "words"), [((0, 1.0), "at least 1"), ((1, 0.0), "above 0"), ((1, float("nan")), "nan")]
)
def test_a_shard_that_could_hold_nothing_is_refused(limits, words):
    with pytest.raises(ValueError, match=words):
        ShardSize(*limits)
