"""Shards from folders of images, img2dataset's output and other people's tars: nothing lost without a name."""

from __future__ import annotations

import io
import json
import tarfile

import pytest
from PIL import Image

from data_tools.__main__ import main
from pipeline.data.index import load_manifest
from tests.data_tools.step_samples import contents, picture
from tests.data_tools.test_captions import samples_of
from tests.shared_data import shared

ENGLISH, AUTO = ["--language", "en"], ["--language", "auto", "--among", "en", "zh"]


def save(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def rotated():
    """A JPEG stored lying down that its EXIF data turns upright."""
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(stream, "JPEG", exif=exif)
    return stream.getvalue()


def dropped(out):
    found = {}
    for path in (out / "reports").glob("*.json"):
        found |= {drop["key"]: drop["reason"] for drop in json.loads(path.read_text())["dropped"]}
    return found


def test_a_folder_of_photographs_becomes_shards(tmp_path, capsys):
    images = tmp_path / "images"
    save(images / "bus.png", picture(1))
    save(images / "bus.txt", "A red  bus.\n")
    save(images / "2024.05" / "cat one.png", picture(2))
    save(images / "2024.05" / "cat one.txt", "一只白猫。")
    save(images / "2024_05" / "cat_one.png", picture(3))
    save(images / "2024_05" / "cat_one.txt", b"\xff\xfe broken")
    save(images / "upright.jpg", rotated())
    save(images / "cut.png", picture(4)[:50])
    save(images / "page.jpg", "<html>not found</html>")
    save(images / "old.bmp", _bmp())
    save(images / "notes.md", "no image")
    command = ["build", "folder", "--images", str(images), "--workers", "0", "--samples-per-shard", "3"]
    command += ["--language", "auto", "--among", "en", "zh"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    samples = samples_of(tmp_path / "out")
    assert samples["bus"].short_caption == "A red bus." and samples["bus"].language == "en"
    assert samples["2024_05_cat_one"].language == "zh" and samples["2024_05_cat_one"].short_caption == "一只白猫。"
    (other,) = [key for key in samples if key.startswith("2024_05_cat_one-")]
    assert samples[other].short_caption is None, "a caption that is not UTF-8 is absent, the image stays"
    assert (samples["upright"].width, samples["upright"].height) == (20, 40)
    assert samples["upright"].language == "und", "there is no text to tell a language by"
    assert dropped(tmp_path / "out") == {"cut": "unreadable_image", "page": "unreadable_image"}
    assert (samples["old"].width, samples["old"].height) == (8, 8), "a BMP is stored as PNG"
    assert len(samples) == 5 and "3 samples have no caption yet" in capsys.readouterr().out
    assert main([*command, "--out", str(tmp_path / "again")]) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "again")
    assert samples["bus"].source == {"dataset": "images", "file_name": "bus.png"}


def _bmp():
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "BMP")
    return stream.getvalue()


def test_an_image_added_later_is_noticed(tmp_path):
    for number in range(3):
        save(tmp_path / "images" / f"{number}.png", picture(number))
    command = [
        "build",
        "folder",
        "--images",
        str(tmp_path / "images"),
        "--out",
        str(tmp_path / "out"),
        "--workers",
        "0",
        "--language",
        "en",
    ]
    assert main(command) == 0
    save(tmp_path / "images" / "3.png", picture(3))
    assert main(command) == 0 and len(samples_of(tmp_path / "out")) == 4
    assert main([*command, "--caption-field", "long_caption"]) == 1, "other settings need another folder"
    assert main([*command, "--caption-field", "long_caption", "--overwrite"]) == 0


def test_folders_that_hold_nothing_are_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for source, option in (("folder", "--images"), ("webdataset", "--tars"), ("img2dataset", "--downloads")):
        for folder in ("empty", "missing"):
            command = ["build", source, option, str(tmp_path / folder), "--out", str(tmp_path / "out"), *ENGLISH]
            assert main(command) == 2
    save(tmp_path / "broken" / "a.png", b"x")
    command = ["build", "folder", "--images", str(tmp_path / "broken"), "--out", str(tmp_path / "o"), "--workers", "0"]
    assert main([*command, *ENGLISH]) == 2
    assert "no image could be used" in capsys.readouterr().err


def tar_of(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_other_peoples_tars_become_shards(tmp_path):
    tars = tmp_path / "tars"
    members = {
        "a/one.png": picture(1),
        "a/one.txt": b"A red bus.",
        "a/two.v1.png": picture(2),
        "a/two.json": b'{"caption": "two"}',
        "three.PNG": picture(3),
        "three.json": '{"text": "一只白猫在沙发上。", "url": "http://x/3"}'.encode(),
        "four.txt": b"no image",
        "five.png": b"broken",
        "five.txt": b"five",
        "three2.png": picture(4),
        "three2.json": b"{broken",
        "a_one.png": picture(5),
        "a_one.txt": b"a key that is another's",
    }
    tar_of(tars / "x" / "00000.tar", members)
    tar_of(tars / "y" / "00000.tar", {"k.png": picture(6), "k.txt": b"A house."})
    out = tmp_path / "out"
    assert main(["build", "webdataset", "--tars", str(tars), "--out", str(out), "--workers", "0", *AUTO]) == 0
    samples = samples_of(out)
    assert sorted(path.name for path in out.glob("*.tar")) == ["x_00000.tar", "y_00000.tar"]
    assert samples["x_-a_one"].short_caption == "A red bus." and samples["x_-three"].language == "zh"
    assert samples["x_-three"].source["url"] == "http://x/3" and samples["x_-three2"].short_caption is None
    # A name with two dots is WebDataset's "two" with the members "v1.png" and "json": a sample without an image.
    assert dropped(out) == {
        "x_-a_two": "incomplete_sample",
        "x_-four": "incomplete_sample",
        "x_-five": "unreadable_image",
        "x_-a_one": "duplicate_key",
    }
    save(tars / "z.tar", (tars / "x" / "00000.tar").read_bytes()[:3000])
    assert main(["build", "webdataset", "--tars", str(tars), "--out", str(out), "--workers", "0", *AUTO]) == 1
    assert not (out / "z.tar").exists(), "nothing of a damaged tar"


@pytest.mark.parametrize("form", ["files", "webdataset"])
def test_img2datasets_output_becomes_shards(tmp_path, form, capsys):
    root = tmp_path / "downloads"
    members = {}
    for number in range(3):
        meta = {
            "url": f"http://x/{number}",
            "caption": f"Caption {number} of a house.",
            "status": "success",
            "sha256": "ab",
            "exif": "{}",
        }
        members |= {f"{number:09d}.jpg": rotated(), f"{number:09d}.json": json.dumps(meta).encode()}
        members[f"{number:09d}.txt"] = meta["caption"].encode()
    members["000000009.json"] = b'{"status": "failed_to_download"}'
    if form == "files":
        for name, data in members.items():
            save(root / "00000" / name, data)
    else:
        tar_of(root / "00000.tar", members)
    save(root / "00000_stats.json", json.dumps({"count": 5, "successes": 3, "failed_to_download": 2}))
    command = ["build", "img2dataset", "--downloads", str(root), "--out", str(tmp_path / "out"), "--workers", "0"]
    assert main([*command, *ENGLISH, "--caption-field", "long_caption"]) == 0
    samples = samples_of(tmp_path / "out")
    assert len(samples) == 3 and set(dropped(tmp_path / "out").values()) == {"incomplete_sample"}
    assert {sample.long_caption for sample in samples.values()} == {f"Caption {n} of a house." for n in range(3)}
    assert {sample.source["url"] for sample in samples.values()} == {f"http://x/{n}" for n in range(3)}
    assert "count 5, successes 3, failed_to_download 2" in capsys.readouterr().out
    assert load_manifest(tmp_path / "out").samples.sum() == 3, "all have captions, so they are indexed at once"


def test_real_downloads_are_read(tmp_path):
    downloads = shared("data/finehard-mini/downloads")
    command = ["build", "img2dataset", "--downloads", str(downloads), "--out", str(tmp_path / "out"), "--workers", "0"]
    assert main([*command, *ENGLISH]) == 0
    assert len(samples_of(tmp_path / "out")) >= 20
