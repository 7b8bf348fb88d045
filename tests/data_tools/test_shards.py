"""Shards: plain WebDataset tars, whole or absent, equal bytes from equal samples."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time

import pytest
import webdataset
from PIL import Image

from data_tools.shards import Record, ShardError, ShardWriter, write_shard
from pipeline.base.files import partial_path
from pipeline.data.manifest import load_manifest
from pipeline.data.schema import Sample

SAMPLE = Sample("zh", 32, 32, short_caption="一个红色的圆形")


def jpeg(value: int = 0, size: tuple[int, int] = (32, 32)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (value % 256, 90, 90)).save(stream, "JPEG")
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
    [("a.b", "jpg", "'.'"), ("a/b", "jpg", "'/'"), ("", "jpg", "empty"), ("a", "gif", "jpg, jpeg, png, webp")],
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
