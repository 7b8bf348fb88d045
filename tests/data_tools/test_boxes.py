"""Boxes: what detectors of transformers say becomes regions, within the limits."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image

from data_tools.__main__ import main
from data_tools.boxes.choose import BoxLimits, choose_boxes
from data_tools.boxes.detectors import Detection, Detector
from data_tools.boxes.similarity import RegionTextFilter
from data_tools.boxes.step import BoxStep
from data_tools.execution.interface import Shard
from data_tools.execution.jobs import InProcess
from data_tools.execution.journal import Journal
from data_tools.execution.steps import Record, run_step
from data_tools.shards import write_shard
from pipeline.data.schema import Region, Sample, box_problem
from tests.data_tools.step_samples import contents, picture
from tests.data_tools.test_captions import samples_of
from tests.data_tools.tiny_models import save_grounding_dino, save_owlv2

pytest.importorskip("cv2", reason="the extra 'boxes' (OpenCV) is not installed")
IMAGES = [Image.new("RGB", (80, 40), (200, 0, 0)), Image.new("RGB", (40, 60), (0, 0, 200))]
PHRASES = [["a red bus", "two dogs. on the house", "一只白猫"], ["a blue car"]]


@pytest.fixture(scope="module")
def detectors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detectors")
    return {
        "owlv2": save_owlv2(folder / "owlv2"),
        "grounding_dino": save_grounding_dino(folder / "grounding-dino"),
        "mm_grounding_dino": save_grounding_dino(folder / "mm-grounding-dino", mm=True),
    }


def opened(path):
    detector = Detector(path)
    detector.open(0)
    return detector


@pytest.mark.parametrize("kind", ["owlv2", "grounding_dino", "mm_grounding_dino"])
def test_boxes_and_scores_are_the_librarys_own(detectors, kind):
    detector = opened(detectors[kind])
    text = "a red bus"
    for image in IMAGES:
        (ours,) = detector.detect([image], [[text]], 0.01)
        prompt = [[text]] if kind == "owlv2" else [text + " ."]
        inputs = detector._processor(
            images=[image], text=prompt, return_tensors="pt", **({"padding": "max_length"} if kind == "owlv2" else {})
        )
        with torch.no_grad():
            outputs = detector._model(**inputs)
        if kind != "owlv2":  # the library takes the best of all tokens; a phrase's score leaves out the marks around it
            outputs.logits[..., [0, 4, 5]] = -math.inf
        (theirs,) = detector._processor.post_process_grounded_object_detection(
            outputs, threshold=0.01, target_sizes=[(image.height, image.width)]
        )
        assert len(ours) == len(theirs["scores"]) > 0
        scale = torch.tensor([image.width, image.height] * 2)
        mine = sorted((d.score, *(torch.tensor(d.box) * scale).tolist()) for d in ours)
        other = sorted((float(s), *b.tolist()) for s, b in zip(theirs["scores"], theirs["boxes"], strict=True))
        torch.testing.assert_close(torch.tensor(mine), torch.tensor(other), rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("kind", ["owlv2", "grounding_dino", "mm_grounding_dino"])
def test_every_phrase_of_every_image_is_asked_for(detectors, kind):
    found = opened(detectors[kind]).detect(IMAGES, PHRASES, 0.0)
    assert [{d.phrase for d in some} for some in found] == [{0, 1, 2}, {0}]
    assert all(a.score >= b.score for some in found for a, b in zip(some, some[1:], strict=False))
    swapped = opened(detectors[kind]).detect(IMAGES[::-1], PHRASES[::-1], 0.0)
    assert [len(some) for some in swapped] == [len(some) for some in found[::-1]]


def test_more_phrases_than_a_prompt_holds_are_asked_in_rounds(detectors):
    detector = opened(detectors["grounding_dino"])
    phrases = [f"a {color} {thing}" for color in ("red", "blue", "white") for thing in ("bus", "car", "cat", "dog")] * 2
    rounds = detector._rounds([phrases, ["a bus"], []], prompted=True)
    assert len(rounds) > 1 and [n for r in rounds for n in r[0]] == list(range(24))
    assert rounds[0][1] == [0] and all(not r[2] for r in rounds)
    (some, one, none) = detector.detect([IMAGES[0]] * 3, [phrases, ["a bus"], []], 0.0)
    assert {d.phrase for d in some} == set(range(24)) and {d.phrase for d in one} == {0} and none == []


def detection(box, score=0.9, phrase=0):
    return Detection(phrase, box, score)


@pytest.mark.parametrize(
    ("box", "score", "reason"),
    [
        ((0.1, 0.1, 0.5, 0.5), 0.39, "boxes_low_score"),
        ((0.1, 0.1, 0.11, 0.5), 0.9, "boxes_without_area"),
        ((0.5, 0.1, 0.1, 0.5), 0.9, "boxes_without_area"),
        ((1.2, 0.1, 1.5, 0.5), 0.9, "boxes_without_area"),
        ((math.nan, 0.1, 0.5, 0.5), 0.9, "boxes_without_area"),
        ((0.1, 0.1, 0.125, 0.125), 0.9, "boxes_too_small"),
        ((-0.1, -0.1, 1.1, 1.1), 0.9, "boxes_too_large"),
        ((0.0, 0.1, 0.9, 0.12), 0.9, "boxes_bad_aspect"),
    ],
)
def test_boxes_beyond_a_limit_are_counted_by_its_name(box, score, reason):
    kept, left_out = choose_boxes([detection(box, score)], 400, 400, BoxLimits())
    assert kept == [] and left_out == {reason: 1}


def test_overlaps_and_numbers_are_limited():
    a, b = (0.1, 0.1, 0.5, 0.5), (0.11, 0.1, 0.5, 0.5)
    far = [(0.6, 0.05 + 0.2 * n, 0.8, 0.2 + 0.2 * n) for n in range(4)]
    kept, left_out = choose_boxes([detection(b, 0.7), detection(a, 0.8)], 400, 400, BoxLimits())
    assert [d.box for d in kept] == [a] and left_out == {"boxes_overlap_same_phrase": 1}
    kept, left_out = choose_boxes([detection(b, 0.9, phrase=1), detection(a, 0.8)], 400, 400, BoxLimits())
    assert [d.phrase for d in kept] == [1] and left_out == {"boxes_overlap_other_phrase": 1}
    kept, left_out = choose_boxes([detection(box, 0.5 + n / 10) for n, box in enumerate(far)], 400, 400, BoxLimits())
    assert [round(d.score, 1) for d in kept] == [0.8, 0.7, 0.6] and left_out == {"boxes_over_limit": 1}
    kept, _ = choose_boxes([detection((-0.2, 0.1, 0.5, 1.3))], 400, 400, BoxLimits())
    assert kept[0].box == (0.0, 0.1, 0.5, 1.0), "cut at the edges"


def test_limits_that_make_no_sense_are_refused():
    for wrong in ({"min_score": 1.5}, {"min_area": 0.9, "max_area": 0.5}, {"max_boxes_per_phrase": 0}):
        with pytest.raises(ValueError, match="min_score|no box|at least 1"):
            BoxLimits(**wrong)


@pytest.fixture
def shards(tmp_path):
    records = []
    for number in range(6):
        phrases = [{"text": "a red bus on the house", "short": "a red bus"}, {"text": "two dogs"}]
        source = {"phrases": phrases if number != 3 else []}
        regions = (Region((0.1, 0.1, 0.9, 0.9), "kept"),) if number == 4 else ()
        sample = Sample("en", 48, 32, "a bus", regions=regions, source=source)
        image = picture(number, (48, 32)) if number != 5 else b"broken"
        records.append(Record(f"k{number}", image, "png", sample))
    write_shard(tmp_path / "in" / "s-000000.tar", records)
    return tmp_path / "in"


@pytest.mark.parametrize("kind", ["owlv2", "mm_grounding_dino"])
def test_the_command_makes_valid_regions(detectors, shards, tmp_path, kind):
    command = [
        "boxes",
        str(shards),
        "--detector",
        str(detectors[kind]),
        "--workers",
        "0",
        "--min-score",
        "0.01",
        "--box-batch-size",
        "4",
    ]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    samples = samples_of(tmp_path / "out")
    assert sorted(samples) == ["k0", "k1", "k2", "k3", "k4"], "only the unreadable image is dropped"
    regions = [region for key in ("k0", "k1", "k2") for region in samples[key].regions]
    assert regions and all(box_problem(region.box) is None and region.score >= 0.01 for region in regions)
    assert {r.long_phrase for r in regions if r.phrase == "a red bus"} <= {"a red bus on the house"}
    assert samples["k3"].regions == () and samples["k4"].regions[0].phrase == "kept"
    assert samples["k0"].source["regions"]["by"] == "boxes/1"
    assert main([*command, "--out", str(tmp_path / "again")]) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "again")
    assert main([*command, "--out", str(tmp_path / "strict"), "--min-score", "0.999"]) == 0
    assert all(not s.regions for k, s in samples_of(tmp_path / "strict").items() if k != "k4")


class FixedFilter(RegionTextFilter):
    """Similarities by a rule, where the test is about what is done with them."""

    def open(self, worker):
        """Nothing to load."""

    def similarities(self, image, boxes, phrases):
        return [0.2 if phrase == "two dogs" else 0.1 for phrase in phrases]


def test_regions_unlike_their_phrase_are_left_out(detectors, shards, tmp_path):
    limits = BoxLimits(min_score=0.01, image_overlap=1.0)
    step = BoxStep(Detector(detectors["owlv2"]), limits, similarity=FixedFilter("x"))
    summary = run_step(step, shards, tmp_path / "out", executor=InProcess(), index=False)
    kept = {region.phrase for key, s in samples_of(tmp_path / "out").items() if key != "k4" for region in s.regions}
    assert kept == {"two dogs"} and summary.counts["boxes_low_similarity"] > 0


def test_similarities_are_those_of_a_checkpoint(tmp_path):
    from pipeline.export.folder import export_model
    from pipeline.model import FGCLIP2
    from tests.model.material import small_model, small_tokenizer

    tokenizer = small_tokenizer(tmp_path / "tokenizer")
    folder = export_model(small_model(2, text_vocab_size=tokenizer.vocab_size), tokenizer, tmp_path / "model", {})
    check = RegionTextFilter(folder)
    check.open(0)
    model = FGCLIP2.load(folder)
    boxes, phrases = [(0.1, 0.1, 0.9, 0.9), (0.5, 0.1, 0.9, 0.6)], ["a red bus", "一只白猫"]
    regions = model.encode_regions(IMAGES[0], boxes, box_format="normalised").embeds
    expected = (regions * model.encode_text(phrases, kind="region").embeds).sum(1).tolist()
    assert check.similarities(IMAGES[0], boxes, phrases) == pytest.approx(expected, abs=1e-6)


def test_a_step_without_phrases_loads_no_image(detectors, tmp_path):
    step = BoxStep(Detector(detectors["owlv2"]), BoxLimits())
    shard = Shard("s", Journal(tmp_path / "j", "x"), tmp_path)
    record = Record("k", b"not looked at", "png", Sample("zh", 10, 10, "一张图"))
    assert step.apply([record], shard) == [record] and shard.counts == {"samples_without_phrases": 1}
    with pytest.raises(ValueError, match=r"config\.json"):
        Detector(tmp_path)
