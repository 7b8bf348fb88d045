"""Damage of every kind: named, counted, replaced by rule on any layout, never a sample that is silently wrong."""

from __future__ import annotations

import io
import json
import logging
import random
import tarfile
import warnings
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from data_tools.verify import verify
from pipeline.config import DataSettings
from pipeline.data.index import IndexProblem, index_folder
from pipeline.data.loader import Reading, make_loader
from pipeline.data.micro_batches import DataFaultLimit
from pipeline.data.reader import ReadFault, iterate_shards, read_sample
from pipeline.data.records import Fault
from pipeline.data.slices import Division
from tests.data.damages import OF_MEMBERS, WRONG_RECORDS, blocks_of, damaged, joined, member
from tests.data.shards import image_bytes, record, sample_members, write_tar

SIZE = (32, 32)
LEVELS = [4, 16]
SETTINGS = {"patch_budgets": LEVELS, "num_workers": 0, "window_shards": 4, "max_fault_share": 1.0}


def encode(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG header that promises a size; nothing behind it."""
    file = bytearray(encode(Image.new("L", (1, 1)), "PNG"))
    file[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    import zlib

    file[29:33] = zlib.crc32(file[12:29]).to_bytes(4, "big")
    return bytes(file)


def text_of(**fields) -> bytes:
    return json.dumps(record(1, size=SIZE) | fields).encode()


def bad_samples() -> dict[str, tuple[str, bytes, bytes]]:
    """key -> (kind, image, JSON)."""
    good, frames = image_bytes(1, SIZE), [Image.new("RGB", SIZE, color) for color in ("red", "blue")]
    box = {"box": [0.5, 0.5, 1.4, 0.9], "phrase": "a cat"}
    return {
        "cut": ("broken_image", good[:100], text_of()),
        "noise": ("broken_image", b"\xff\xd8" + bytes(range(256)), text_of()),
        "nothing": ("broken_image", b"", text_of()),
        "zero": ("broken_image", png_of(0, 0), text_of()),
        "huge": ("too_many_pixels", png_of(20000, 10000), text_of(width=20000, height=10000)),
        "animated": ("animated_image", encode(frames[0], "WEBP", save_all=True, append_images=frames[1:]), text_of()),
        "other-size": ("size_mismatch", good, text_of(width=64)),
        "latin": ("bad_utf8", good, text_of(short_caption="x").replace(b'"x"', b'"caf\xe9"')),
        "half-character": ("bad_unicode", good, text_of(short_caption="x").replace(b'"x"', b'"\\ud83d"')),
        "half-negative": (
            "bad_unicode",
            good,
            text_of(regions=[{"box": [0, 0, 0.5, 0.5], "phrase": "猫", "negatives": ["y"]}]).replace(
                b'"y"', b'"\\udc00 dog"'
            ),
        ),
        "half-json": ("bad_json", good, text_of()[:-9]),
        "list": ("bad_field", good, b"[1, 2]"),
        "wrong-shape": ("bad_field", good, text_of(regions={"box": 1})),
        "outside": ("bad_box", good, text_of(regions=[box])),
        "no-area": ("bad_box", good, text_of(regions=[box | {"box": [0.5, 0.5, 0.5, 0.9]}])),
        "silent": ("empty_caption", good, text_of(short_caption="  ")),
        "long": ("long_text", good, text_of(long_caption="字" * 100_000)),
    }


def load(folder, tokenizer, *, rank=0, world=1, batch=8, **settings):
    return make_loader(
        Reading(
            DataSettings(shards=[str(folder)], **(SETTINGS | settings)),
            tokenizer,
            (16, 32),
            seed=2,
            global_batch_size=batch,
            rank=rank,
            division=Division(world),
        )
    )


def good_members(count: int, start: int = 0) -> list[tuple[str, bytes]]:
    members = []
    for n in range(start, start + count):
        members += sample_members(f"k{n:05d}", image_bytes(n, SIZE), record(n, size=SIZE, regions=1))
    return members


def test_every_fault_is_named_when_the_index_is_made(tmp_path):
    bad = bad_samples()
    members = good_members(3)
    for key, (_, image, text) in bad.items():
        members += sample_members(key, image, text)
    members += [("lonely.jpg", image_bytes(0, SIZE)), ("captioned.txt", b"a cat")]
    members += sample_members("k00000", image_bytes(0, SIZE), record(0, size=SIZE))  # its key is there already
    write_tar(tmp_path / "a.tar", members)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # damage is reported once, as a fault
        manifest, faults = index_folder(tmp_path)
    found = {fault.key: fault.kind for fault in faults}
    expected = {key: kind for key, (kind, _, _) in bad.items()}
    assert found == expected | {"lonely": "missing_member", "captioned": "missing_member", "k00000": "duplicate_key"}
    assert manifest.samples.sum() == 3
    assert manifest.faults == dict(Counter(fault.kind for fault in faults))
    listed = [json.loads(line) for line in (tmp_path / "index-faults.jsonl").read_text().splitlines()]
    assert {line["key"] for line in listed} == set(found)
    assert all(line["shard"] == "a.tar" for line in listed)


def test_tars_that_are_damaged_or_reach_outside_give_what_is_before_the_damage(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", good_members(4)).read_bytes()
    cuts = {
        "in-header": (whole[: len(whole) // 512 // 2 * 512 + 100], "truncated_shard"),
        "in-member": (whole[:3000], "truncated_shard"),
        "flipped": (whole[:4108] + bytes([whole[4108] ^ 1]) + whole[4109:], None),
        "empty": (b"", "empty_shard"),
        "garbage": (bytes(range(1, 256)) * 20, "damaged_header"),
    }
    (tmp_path / "whole.tar").unlink()
    for name, (data, _) in cuts.items():
        (tmp_path / f"{name}.tar").write_bytes(data)
    members = [("../../evil.jpg", b"x"), ("/root.json", b"{}"), *good_members(1, start=90)]
    with tarfile.open(write_tar(tmp_path / "outside.tar", members), "a") as tar:
        link = tarfile.TarInfo("k00091.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        hard = tarfile.TarInfo("k00092.jpg")
        hard.type, hard.linkname = tarfile.LNKTYPE, "k00090.jpg"
        tar.addfile(hard)
    _, faults = index_folder(tmp_path)
    kinds = {(fault.shard.removesuffix(".tar"), fault.kind) for fault in faults}
    assert {(name, kind) for name, (_, kind) in cuts.items() if kind} <= kinds
    assert Counter(fault.kind for fault in faults if fault.shard == "outside.tar")["unsafe_member"] == 4
    seen = [key for key, *_ in iterate_shards(tmp_path, on_fault=lambda fault: None)]
    assert "k00090" in seen
    assert not any("evil" in key or "passwd" in key for key in seen)
    with pytest.raises(ReadFault, match="empty_shard"):
        list(iterate_shards(tmp_path / "empty.tar"))


def test_another_webdataset_is_sent_to_the_converter(tmp_path):
    write_tar(tmp_path / "a.tar", [("1.jpg", image_bytes(1, SIZE)), ("1.txt", b"a cat")])
    with pytest.raises(IndexProblem, match="data_tools build webdataset"):
        index_folder(tmp_path)


def test_our_shards_are_what_webdataset_reads(tmp_path):
    import webdataset

    write_tar(tmp_path / "a.tar", good_members(5))
    theirs = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    ours = list(iterate_shards(tmp_path))
    assert [sample["__key__"] for sample in theirs] == [key for key, *_ in ours]
    assert [sample["jpg"] for sample in theirs] == [image for _, image, *_ in ours]


OF_BYTES = ("flip", "cut", "exchange", "block", "remove")


def damage(folder, draws: random.Random) -> str:
    """Flip, cut, exchange or remove something of one shard, or damage its members."""
    path = draws.choice(sorted(folder.glob("*.tar")))
    data = bytearray(path.read_bytes())
    kind = draws.choice([*OF_BYTES, *OF_MEMBERS])
    if not data or kind == "remove":
        path.unlink()
        return "remove"
    place = draws.randrange(len(data))
    if kind == "flip":
        data[place] ^= 1 << draws.randrange(8)
    elif kind == "cut":
        del data[place:]
    elif kind == "exchange":
        other = draws.randrange(len(data))
        data[place : place + 700], data[other : other + 700] = data[other : other + 700], data[place : place + 700]
    elif kind == "block":
        data[place : place + 512] = bytes(512)
    else:
        data = bytearray(damaged(bytes(data), kind, draws))
    path.write_bytes(data)
    return kind


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Sixteen shards of two tiny samples, indexed, and what each sample's pixels and captions must be."""
    folder = tmp_path_factory.mktemp("sound")
    for shard in range(16):
        write_tar(folder / f"p{shard:02d}.tar", good_members(2, start=2 * shard))
    index_folder(folder, patch_budgets=LEVELS)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return files


def restore(folder, files: dict[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def epoch_of(folder, tokenizer, **layout) -> tuple[dict[str, np.ndarray], list[list[str]], dict[str, int]]:
    pixels, keys = {}, []
    with load(folder, tokenizer, **layout) as loader:
        for _ in range(loader.steps_per_epoch()):
            batch = next(loader)
            keys.append(batch.keys)
            for place, key in enumerate(batch.keys):
                pixels[key] = (batch.pixel_values[place], batch.short_ids[place], batch.long_ids[place])
        return pixels, keys, loader.fault_counts()


def test_a_thousand_damages_train_through_and_no_sample_is_wrong(tmp_path, sound, tokenizer, caplog):
    """50 rounds of twenty damages each, made after indexing; every delivered sample equals its undamaged self."""
    logging.getLogger("pipeline.data").setLevel(logging.ERROR)
    restore(tmp_path / "d", sound)
    expected, _, counts = epoch_of(tmp_path / "d", tokenizer)
    assert counts == {}
    draws, kinds = random.Random(0), Counter()
    for _ in range(50):
        restore(tmp_path / "d", sound)
        kinds.update(damage(tmp_path / "d", draws) for _ in range(20))
        found, keys, counts = epoch_of(tmp_path / "d", tokenizer)
        assert all(len(batch) == 8 for batch in keys), "steps must stay equal"
        for key, tensors in found.items():
            if key in expected:
                assert all(bool((a == b).all()) for a, b in zip(tensors, expected[key], strict=True)), key
    logging.getLogger("pipeline.data").setLevel(logging.NOTSET)
    assert kinds.total() == 1000
    assert min(kinds.values()) > 40 and set(kinds) == {*OF_BYTES, *OF_MEMBERS}


def test_damage_before_indexing_is_indexed_and_trained_through(tmp_path, sound, tokenizer):
    draws = random.Random(1)
    for _ in range(20):
        restore(tmp_path / "d", sound)
        for path in (tmp_path / "d").glob("*.parquet"):
            path.unlink()
        for _ in range(4):
            damage(tmp_path / "d", draws)
        manifest, _ = index_folder(tmp_path / "d", patch_budgets=LEVELS)
        _, keys, _ = epoch_of(tmp_path / "d", tokenizer)
        assert sum(map(len, keys)) == manifest.samples.sum() // 8 * 8


NAMES = {  # damage -> the names that it may have
    "swapped": {"missing_member", "duplicate_key"},
    "repeated": {"missing_member", "duplicate_key", "duplicate_member"},
    "wrong_checksum": {"damaged_header", "missing_member"},  # of the sample that it cuts through
    "base_256_size": {"damaged_header", "truncated_shard", "missing_member"},
    "long_name": {"damaged_header", "truncated_shard", "unsafe_member", "missing_member", "duplicate_key",
                  "duplicate_member"},
    "pax": {"damaged_header", "truncated_shard", "unsafe_member", "missing_member"},
    "sparse": {"unsafe_member", "missing_member"},
    "wrong_record": {"bad_json", "bad_field", "bad_box", "empty_caption"},
}  # fmt: skip
HARMLESS = {"swapped", "repeated", "base_256_size"}  # members of one sample in another order; the true size


@pytest.mark.parametrize("kind", OF_MEMBERS)
def test_a_damage_of_members_is_named_by_index_walk_and_verify_and_the_rest_is_trained_on(
    tmp_path, sound, tokenizer, kind
):
    """Each damage in several forms, before the shard is indexed."""
    draws, named = random.Random(kind), 0
    for _ in range(8):
        restore(tmp_path / "d", {name: sound[name] for name in ("p00.tar", "p01.tar", "p02.tar")})
        for left in [*(tmp_path / "d").glob("*.parquet"), *(tmp_path / "d").glob("manifest*")]:
            left.unlink()
        path = tmp_path / "d" / "p01.tar"
        path.write_bytes(damaged(path.read_bytes(), kind, draws))
        manifest, faults = index_folder(tmp_path / "d", patch_budgets=LEVELS)
        found = {fault.kind for fault in faults}
        assert found <= NAMES[kind] and {fault.shard for fault in faults} <= {"p01.tar"}, faults
        assert found or kind in HARMLESS
        assert manifest.faults == dict(Counter(fault.kind for fault in faults)) and 4 <= manifest.samples.sum() <= 6
        walked: list[Fault] = []
        assert {"k00000", "k00001", "k00004", "k00005"} <= {
            key for key, *_ in iterate_shards(tmp_path / "d", walked.append)
        }
        _, verified = verify(tmp_path / "d", workers=0)
        assert bool(verified) == bool(found) and {fault.shard for fault in verified} <= {"p01.tar"}, (found, verified)
        _, keys, counts = epoch_of(tmp_path / "d", tokenizer, batch=1)
        assert len(keys) == manifest.samples.sum() and counts == {}
        named += bool(found)
    assert named >= 3


@pytest.mark.parametrize("content", WRONG_RECORDS)
def test_a_record_of_wrong_types_costs_its_own_sample_alone(tmp_path, content):
    blocks = blocks_of(write_tar(tmp_path / "a.tar", good_members(3)).read_bytes())
    blocks[3] = member("k00001.json", content)
    (tmp_path / "a.tar").write_bytes(joined(blocks))
    manifest, faults = index_folder(tmp_path)
    assert [fault.key for fault in faults] == ["k00001"] and manifest.samples.sum() == 2
    assert faults[0].kind in NAMES["wrong_record"] and "\n" not in str(faults[0])


def test_a_second_member_of_one_name_is_named_and_the_first_is_read(tmp_path):
    members = good_members(2)
    write_tar(tmp_path / "a.tar", [*members[:2], ("k00000.jpg", image_bytes(9, SIZE)), *members[2:]])
    manifest, faults = index_folder(tmp_path)
    assert [(fault.kind, fault.key) for fault in faults] == [("duplicate_member", "k00000.jpg")]
    assert manifest.samples.sum() == 2 and read_sample(tmp_path / "a.tar", "k00000")[0] == members[0][1]


def test_faults_are_counted_exactly_and_replaced_the_same_on_every_layout(tmp_path, sound, tokenizer, caplog):
    restore(tmp_path / "d", sound)
    path = tmp_path / "d" / "p06.tar"
    data = path.read_bytes()
    path.write_bytes(data.replace(record(13)["short_caption"].encode(), b"A" * len(record(13)["short_caption"])))
    with caplog.at_level(logging.WARNING):
        _, keys, counts = epoch_of(tmp_path / "d", tokenizer)
    assert counts == {"checksum": 1}
    assert "p06.tar: k00013: checksum" in caplog.text
    assert "k00013" not in sum(keys, [])
    for world in (2, 4):
        by_rank = [epoch_of(tmp_path / "d", tokenizer, rank=rank, world=world) for rank in range(world)]
        joined = [sum((ranks[1][step] for ranks in by_rank), []) for step in range(len(keys))]
        assert joined == keys
        assert sum((Counter(ranks[2]) for ranks in by_rank), Counter()) == {"checksum": 1}


def test_a_missing_shard_costs_its_samples_and_not_the_run(tmp_path, sound, tokenizer):
    restore(tmp_path / "d", sound)
    (tmp_path / "d" / "p05.tar").unlink()
    _, keys, counts = epoch_of(tmp_path / "d", tokenizer)
    assert set(counts) == {"missing_shard"}
    assert counts["missing_shard"] >= 2
    assert all(len(batch) == 8 for batch in keys)


def test_a_damaged_index_is_a_fault_of_its_shard(tmp_path, sound, tokenizer):
    restore(tmp_path / "d", sound)
    (tmp_path / "d" / "p05.index.parquet").write_bytes(b"PAR1 nothing PAR1")
    _, _, counts = epoch_of(tmp_path / "d", tokenizer)
    assert set(counts) == {"damaged_index"}


def test_a_run_stops_above_its_share_of_faults_and_says_why(tmp_path, sound, tokenizer):
    restore(tmp_path / "d", sound)
    for shard in range(8):
        (tmp_path / "d" / f"p{shard:02d}.tar").unlink()
    limits = {"max_fault_share": 0.2, "min_samples_before_fault_stop": 16}
    with load(tmp_path / "d", tokenizer, **limits) as loader, pytest.raises(DataFaultLimit, match="missing_shard"):
        for _ in range(4):
            next(loader)
    for path in (tmp_path / "d").glob("*.tar"):
        path.unlink()
    with load(tmp_path / "d", tokenizer) as loader, pytest.raises(DataFaultLimit, match="in a row"):
        next(loader)


def test_one_sample_is_read_by_key(tmp_path, sound):
    restore(tmp_path / "d", sound)
    image, sample = read_sample(tmp_path / "d" / "p03.tar", "k00006")
    assert image == image_bytes(6, SIZE)
    assert sample.short_caption == record(6)["short_caption"]
    with pytest.raises(IndexProblem, match="no sample 'k00099'"):
        read_sample(tmp_path / "d" / "p03.tar", "k00099")
