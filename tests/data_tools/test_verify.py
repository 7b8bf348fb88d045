"""verify: a sound folder passes, and each kind of fault is found, named and ends with status 1."""

from __future__ import annotations

import io
import json
import tarfile

import pytest

from data_tools.__main__ import main
from data_tools.shards import ShardWriter
from pipeline.data.index import index_folder
from pipeline.data.schema import Region, Sample
from tests.data_tools.test_shards import jpeg

GOOD = Sample(
    "zh", 32, 32, short_caption="猫", regions=(Region((0.1, 0.1, 0.5, 0.5), "红猫", negatives=("蓝猫", "绿猫")),)
)


def write(folder, first: int = 0, count: int = 4):
    with ShardWriter(folder, samples_per_shard=2) as writer:
        for i in range(first, first + count):
            writer.write(f"k{i}", jpeg(20 * i), "jpg", GOOD)
    return folder


def rewrite(folder, change, name: str = "shard-000000.tar") -> None:
    """Change a shard's members (a dict of name -> bytes) behind the writer's back, and index it anew."""
    with tarfile.open(folder / name) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    change(members)
    with tarfile.open(folder / name, "w") as tar:
        for member, data in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    index_folder(folder, force=True)


def verify(folder, *options: str) -> tuple[int, dict[str, int], list[dict]]:
    report = folder.parent / "faults.json"
    status = main(["verify", str(folder), "--json", str(report), "--workers", "0", *options])
    result = json.loads(report.read_text(encoding="utf-8"))
    return status, result["faults_by_kind"], result["faults"]


def test_a_sound_folder_passes(tmp_path, capsys):
    assert verify(write(tmp_path / "a"))[:2] == (0, {})
    assert "2 shards, 4 samples, 4 regions, 8 negatives: no faults" in capsys.readouterr().out


def edit_record(**changes):
    def change(members):
        record = json.loads(members["k0.json"]) | changes
        members["k0.json"] = json.dumps(record, ensure_ascii=False).encode()

    return change


def edit_region(**changes):
    return edit_record(regions=[{"box": [0.1, 0.1, 0.5, 0.5], "phrase": "红猫"} | changes])


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (edit_region(box=[0.6, 0.1, 0.5, 0.5]), "bad_box"),
        (edit_region(negatives=["蓝猫", "红猫 "]), "bad_negatives"),
        (edit_region(negatives=["蓝猫", "蓝猫"]), "bad_negatives"),
        (edit_record(language="french"), "bad_field"),
        (edit_record(width=99), "size_mismatch"),
        (lambda members: members.update({"k0.json": b"{"}), "bad_json"),
        (lambda members: members.update({"k0.json": b"\xff"}), "bad_utf8"),
        (lambda members: members.update({"k0.jpg": members["k0.jpg"][:150]}), "unreadable_image"),
        (lambda members: members.pop("k0.json"), "missing_member"),
        (lambda members: members.pop("k0.jpg"), "missing_member"),
    ],
)
def test_a_fault_of_a_sample_is_named_with_shard_and_key(tmp_path, change, kind):
    rewrite(write(tmp_path / "a"), change)
    status, kinds, faults = verify(tmp_path / "a")
    assert (status, kinds) == (1, {kind: 1})
    assert (faults[0]["shard"], faults[0]["key"]) == ("shard-000000.tar", "k0")


def test_changed_lost_unlisted_and_cut_shards_are_found(tmp_path):
    folder = write(tmp_path / "a", count=8)
    first, second, third, fourth = sorted(folder.glob("*.tar"))
    first.write_bytes(first.read_bytes().replace("红猫".encode(), "黄猫".encode(), 1))
    second.unlink()
    third.write_bytes(third.read_bytes()[:700])  # in the first image
    content = fourth.read_bytes().rstrip(b"\0")
    fourth.write_bytes(content + bytes(-len(content) % 512))  # after a member, where the end mark begins
    write(tmp_path / "b", first=20, count=1)
    (tmp_path / "b" / "shard-000000.tar").rename(folder / "shard-000009.tar")
    _, kinds, faults = verify(folder)
    assert kinds == {"checksum": 3, "damaged_shard": 2, "missing_shard": 1, "not_in_manifest": 1}
    assert {fault["shard"] for fault in faults if fault["kind"] == "damaged_shard"} == {third.name, fourth.name}


def test_images_and_keys_that_come_twice_are_found_across_shards(tmp_path):
    with ShardWriter(tmp_path / "a", samples_per_shard=2) as writer:
        for key, value in (("a", 0), ("b", 40), ("c", 0), ("a", 80)):
            writer.write(key, jpeg(value), "jpg", GOOD)
    status, kinds, faults = verify(tmp_path / "a")
    assert (status, kinds) == (1, {"duplicate_key": 1, "duplicate_image": 1})
    image = next(fault for fault in faults if fault["kind"] == "duplicate_image")
    assert image["key"] == "c" and "a of shard-000000.tar" in image["message"]
    assert verify(tmp_path / "a", "--allow-duplicates")[1] == {"duplicate_key": 1}


def test_test_images_among_the_training_images_are_found(tmp_path):
    for name, first, count in (("train", 0, 4), ("test", 3, 3), ("other", 9, 2)):
        write(tmp_path / name, first, count)
    assert verify(tmp_path / "train", "--against", str(tmp_path / "other"))[0] == 0
    status, kinds, faults = verify(tmp_path / "train", "--against", str(tmp_path / "other"), str(tmp_path / "test"))
    assert (status, kinds) == (1, {"leak": 1})
    assert (faults[0]["key"], faults[0]["shard"]) == ("k3", "shard-000001.tar")


def test_no_folder_and_no_shard_are_one_line_errors(tmp_path, capsys):
    for folder, words in ((tmp_path / "none", "does not exist"), (tmp_path, "holds no shard")):
        assert main(["verify", str(folder)]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
