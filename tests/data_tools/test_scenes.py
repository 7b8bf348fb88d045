"""Scenes: reproducible, truthful in both languages, and split so that composition is tested."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from data_tools.__main__ import main
from data_tools.scenes import command
from data_tools.scenes.attributes import (
    COLOURS,
    PATTERNS,
    SEEN_TRIPLES,
    SHAPES,
    SIZES,
    UNSEEN_TRIPLES,
    Look,
)
from data_tools.scenes.command import make_record
from data_tools.scenes.drawing import Drawing
from data_tools.scenes.language import NAMED_WEIGHTS, short_phrase
from data_tools.scenes.layout import make_scene
from data_tools.tokenizer import sample_texts, train
from pipeline.data.manifest import load_manifest

NUM_CHECKED = 200


@pytest.fixture(scope="module")
def records():
    return [make_record(0, "train", number) for number in range(NUM_CHECKED)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("scenes") / "data"
    assert main(["scenes", "--out", str(out), "--train-images", "24", "--test-images", "40", "--workers", "1"]) == 0
    return out


@pytest.fixture
def undrawn(monkeypatch):
    """Scenes without their pictures, which take most of the time: no word depends on what was drawn."""

    def boxes_alone(scene, *_, **__):
        return Drawing(jpeg=b"", boxes=((0.1, 0.1, 0.9, 0.9),) * len(scene.objects), mask=None)

    drawn = make_record(0, "train", 0).sample
    monkeypatch.setattr(command, "draw_scene", boxes_alone)
    again = make_record(0, "train", 0).sample
    assert [region.phrase for region in again.regions] == [region.phrase for region in drawn.regions]
    assert again.long_caption == drawn.long_caption


def attributes_of(phrase: str, language: str) -> tuple[str | None, ...]:
    """Read a short phrase back as size, colour, pattern and shape: an independent parser, by the words' spelling."""
    tables = ([size for size, _ in SIZES], [colour for colour, _ in COLOURS], PATTERNS, SHAPES)
    found, spoken = [], phrase.split() if language == "en" else phrase
    for terms in tables:
        words = [term.word(language) for term in terms if term.word(language) in spoken]
        assert len(words) <= 1, (phrase, words)
        found += words or [None]
    assert found[3] is not None, phrase
    return tuple(found)


def drawn(thing: dict[str, str], language: str) -> tuple[str, ...]:
    """The same four of an object as its record says."""
    tables = {"size": [t for t, _ in SIZES], "colour": [t for t, _ in COLOURS], "pattern": PATTERNS, "shape": SHAPES}
    return tuple(
        next(term.word(language) for term in terms if term.en == thing[name]) for name, terms in tables.items()
    )


def test_same_seed_same_bytes_whatever_the_number_of_workers(folder, tmp_path):
    arguments = ["scenes", "--out", str(tmp_path / "two"), "--train-images", "24", "--test-images", "40"]
    assert main([*arguments, "--workers", "2"]) == 0
    for name in sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()):
        assert (tmp_path / "two" / name).read_bytes() == (folder / name).read_bytes(), name
    assert make_record(1, "train", 0).image != make_record(0, "train", 0).image


def test_finished_data_is_left_alone_and_interrupted_data_is_completed(folder, capsys):
    arguments = ["scenes", "--out", str(folder), "--train-images", "24", "--test-images", "40", "--workers", "1"]
    lost, kept = folder / "train" / "train-000001.tar", folder / "train" / "train-000000.tar"
    before, untouched = lost.read_bytes(), kept.stat().st_mtime_ns
    assert main(arguments) == 0
    assert "nothing to do" in capsys.readouterr().out
    lost.unlink()
    (folder / "scenes.json").unlink()
    assert main(arguments) == 0
    assert lost.read_bytes() == before and kept.stat().st_mtime_ns == untouched
    assert main([*arguments, "--seed", "5"]) == 2
    assert "choose another --out" in capsys.readouterr().err


def test_half_english_half_chinese_and_every_phrase_says_what_is_drawn(records):
    assert [record.sample.language for record in records[:4]] == ["en", "zh", "en", "zh"]
    for record in records:
        sample = record.sample
        for region, thing in zip(sample.regions, sample.source["objects"], strict=True):
            right = drawn(thing, sample.language)
            named = attributes_of(region.phrase, sample.language)
            assert all(word in (None, true) for word, true in zip(named, right, strict=True))
            whole = {"en": " ".join(right), "zh": f"{right[0]}{right[1]}的{right[2]}{right[3]}"}[sample.language]
            assert whole in region.long_phrase and region.category == named[3]
        assert any("一" <= c <= "鿿" for c in sample.long_caption) == (sample.language == "zh")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_training_phrases_name_none_some_or_all_attributes_and_those_of_tests_all(records, language):
    def named(phrase):
        return sum(word is not None for word in attributes_of(phrase, language)[:3])

    samples = [record.sample for record in records if record.sample.language == language]
    counts = [named(region.phrase) for sample in samples for region in sample.regions]
    shares = [counts.count(number) / len(counts) for number in range(4)]
    assert shares == pytest.approx(NAMED_WEIGHTS, abs=0.1)
    captions = [sample.short_caption for sample in samples if len(sample.regions) == 1]
    assert {named(caption) for caption in captions} == {3}
    tests = [make_record(0, "test", number).sample for number in range(30)]
    phrases = [region.phrase for sample in tests if sample.language == language for region in sample.regions]
    assert {named(phrase) for phrase in phrases} == {3}


def test_boxes_hold_objects_of_the_named_colour(records):
    background_share = []
    for record in records:
        image = np.asarray(Image.open(io.BytesIO(record.image)).convert("RGB"), np.float32)
        for region, thing in zip(record.sample.regions, record.sample.source["objects"], strict=True):
            x1, y1, x2, y2 = region.box
            size = np.array([record.sample.width, record.sample.height] * 2)
            left, top, right, bottom = np.rint(np.array([x1, y1, x2, y2]) * size).astype(int)
            crop = image[top:bottom, left:right].reshape(-1, 3)
            colour = np.array(next(rgb for term, rgb in COLOURS if term.en == thing["colour"]), np.float32)
            share = (np.abs(crop - colour).max(1) < 45).mean()
            background_share.append(share)
            assert share > 0.1, (record.key, thing, share)
            large = max(right - left, bottom - top) >= 40
            assert large == (thing["size"] == "large")
    assert np.mean(background_share) > 0.3


def test_wrong_phrases_name_as_much_as_the_true_one_and_are_wrong_of_the_object(records):
    changes, changed_shapes = [], []
    for record in records:
        sample = record.sample
        for region, thing in zip(sample.regions, sample.source["objects"], strict=True):
            right, language = attributes_of(region.phrase, sample.language), sample.language
            everything = drawn(thing, language)
            most = {1: 5, 2: 10}.get(sum(word is not None for word in right), 10)  # a shape alone has five others
            assert len(set(region.negatives)) == len(region.negatives) and 5 <= len(region.negatives) <= most
            for negative in region.negatives:
                wrong = attributes_of(negative, language)
                assert [word is None for word in wrong] == [word is None for word in right]
                assert any(word not in (None, true) for word, true in zip(wrong, everything, strict=True))
                changes.append(sum(a != b for a, b in zip(right, wrong, strict=True)))
                changed_shapes.append(wrong[3] != right[3])
    assert set(changes) == {1, 2} and changes.count(1) >= 0.7 * len(changes)
    assert 0.3 < np.mean(changed_shapes) < 0.7


def test_held_out_combinations_are_in_no_training_image_and_no_training_text(records):
    held_out = {
        short_phrase(Look(colour, pattern, shape, size), language)
        for colour, pattern, shape in UNSEEN_TRIPLES
        for size in range(len(SIZES))
        for language in ("en", "zh")
    }
    text = "\n".join(t for record in records for t in sample_texts(record.sample))
    assert len(UNSEEN_TRIPLES) == 24 and not [phrase for phrase in held_out if phrase in text]
    seen_pairs = {(i, j, t[i], t[j]) for t in SEEN_TRIPLES for i in range(3) for j in range(i)}
    all_pairs = {(i, j, t[i], t[j]) for t in SEEN_TRIPLES + UNSEEN_TRIPLES for i in range(3) for j in range(i)}
    assert seen_pairs == all_pairs, "every pair of attributes must be trained"
    assert any(placed.look.unseen for n in range(50) for placed in make_scene(0, "test", n).objects)


def test_long_captions_tell_images_apart(undrawn):
    for parity in (0, 1):
        captions = [make_record(0, "test", n).sample.long_caption for n in range(parity, 400, 2)]
        assert len(set(captions)) >= 198


def test_fgovd_rows_differ_in_as_many_attributes_as_the_set_says(folder):
    samples = {}
    for path in sorted((folder / "test").glob("*.tar")):
        with tarfile.open(path) as shard:
            for member in shard:
                if member.name.endswith(".json"):
                    samples[member.name[:-5]] = json.loads(shard.extractfile(member).read())
    objects = sum(len(sample["regions"]) for sample in samples.values())
    for name, changes in {"hard": 1, "medium": 2, "easy": 3, "trivial": None}.items():
        lines = (folder / "test" / "fgovd" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) == objects
        for row in map(json.loads, lines):
            sample = samples[row["img_path"].removesuffix(".jpg")]
            right = attributes_of(row["pos_expression"][0], row["language"])
            true = {region["phrase"] for region in sample["regions"]}
            assert len(set(row["neg_expression"])) == 10 and not true & set(row["neg_expression"])
            x, y, w, h = row["bbox"]
            box = [x / row["width"], y / row["height"], (x + w) / row["width"], (y + h) / row["height"]]
            assert any(np.allclose(box, region["box"], atol=1e-3) for region in sample["regions"])
            for negative in row["neg_expression"]:
                wrong = attributes_of(negative, row["language"])
                differing = sum(a != b for a, b in zip(right, wrong, strict=True))
                if changes is None:
                    assert wrong[3] != right[3] and wrong[1] != right[1]
                else:
                    assert differing == changes and wrong[3] == right[3]
    rows = [json.loads(line) for line in lines]
    assert {row["combination"] for row in rows} == {"seen", "unseen"}
    assert {row["language"] for row in rows} == {"en", "zh"}


@pytest.mark.parametrize("attribute", ["shape", "colour"])
def test_masks_hold_the_class_inside_the_box_and_the_folder_is_indexed(folder, attribute):
    summary = json.loads((folder / "scenes.json").read_text(encoding="utf-8"))
    assert len(summary["classes"]["en"]) == len(summary["classes"]["zh"]) == len(SHAPES)
    assert int(load_manifest(folder / "train").samples.sum()) == 24
    record = make_record(0, "test", 0)
    mask = np.asarray(Image.open(io.BytesIO(record.extra_members["mask.png"])))
    assert mask.shape == (record.sample.height, record.sample.width)
    explained, language = summary["masks"][attribute], record.sample.language
    mask = np.array(explained["class_of_value"])[mask]
    for region in record.sample.regions:
        x1, y1, x2, y2 = np.rint(np.array(region.box) * ([mask.shape[1], mask.shape[0]] * 2)).astype(int)
        words = region.phrase.split() if language == "en" else region.phrase
        (number,) = (at for at, name in enumerate(explained["classes"][language], 1) if name in words)
        assert (mask[y1:y2, x1:x2] == number).any(0).all(), "the box is as narrow as the object"
        mask = mask.copy()
        mask[y1:y2, x1:x2] = 0
    assert not mask.any(), "nothing of an object lies outside its box"


def test_texts_fit_the_tiny_model_with_the_tokenizer_trained_on_them(records, undrawn):
    sentencepiece = pytest.importorskip("sentencepiece")
    texts = [text for record in records for text in sample_texts(record.sample)]
    pieces = sentencepiece.SentencePieceProcessor(model_proto=train(texts, 480))
    longest = {"short": 0, "long": 0}
    for number in range(1000):
        sample = make_record(1, "test" if number % 2 else "train", number).sample
        short = [sample.short_caption, *[t for r in sample.regions for t in (r.phrase, r.long_phrase, *r.negatives)]]
        longest["short"] = max(longest["short"], *(len(pieces.encode(text.lower())) for text in short))
        longest["long"] = max(longest["long"], len(pieces.encode(sample.long_caption.lower())))
    assert longest["short"] + 1 <= 24 - 4, "with the end token and stage 1's prefix"
    assert longest["long"] + 1 <= 60
    assert [len(pieces.encode(phrase)) for phrase in ("小的红色的条纹心形", "大的蓝色的波点三角形")] == [4, 4]


@pytest.mark.parametrize("wrong", [["--train-images", "1"], ["--seed", "-1"], ["--workers", "-2"]])
def test_wrong_numbers_end_with_one_line(tmp_path, capsys, wrong):
    assert main(["scenes", "--out", str(tmp_path / "o"), "--test-images", "4", "--train-images", "8", *wrong]) == 2
    assert capsys.readouterr().err.count("\n") == 1
