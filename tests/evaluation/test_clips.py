"""Clips: frames encoded once and aggregated, retrieval and region phrases scored as by hand, each row accounted for."""

from __future__ import annotations

import io
import json

import pytest
import torch
from PIL import Image

from data_tools.shards import Record
from pipeline.data.schema import Region, Sample
from pipeline.evaluation import EvaluationError, evaluate
from pipeline.evaluation.clips import FrameChoice, encode_clips, frame_choice
from pipeline.evaluation.features import EncodeSettings
from pipeline.evaluation.formats.clips import read_clips
from pipeline.evaluation.formats.items import clip_row
from pipeline.evaluation.ranks import Ranks
from tests.evaluation.clip_folder import SIZE, clip, picture, write_clips
from tests.evaluation.fake import FakeModel

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)


class OrderedModel(FakeModel):
    """Of a region it keeps the last frame where it is there: a temporal transformer whose answer is known."""

    def __init__(self, most: int | None = None) -> None:
        super().__init__()
        self._most = most

    @property
    def most_frames(self):
        return self._most

    def aggregate_regions(self, per_frame, visible, boxes):
        last = (visible * torch.arange(1, visible.shape[1] + 1)).argmax(1)
        return per_frame[torch.arange(len(per_frame)), last], visible.any(1)


def region(boxes, phrase="a red thing", negatives=("a green thing", "a blue thing")):
    return Region(None, phrase, negatives=negatives, boxes=tuple(boxes))


def test_every_frame_is_encoded_once_and_regions_are_taken_where_they_are(tmp_path):
    folder = write_clips(tmp_path, [clip("one", ["rg", "gr", "br"]), clip("two", ["g", "g"])])
    items = read_clips(folder).items
    rows = [
        clip_row(0, [LEFT, LEFT, LEFT]),
        clip_row(0, [None, RIGHT, None]),
        clip_row(1, [LEFT, None]),
    ]
    model = OrderedModel()
    found = encode_clips(model, items, rows, choice=FrameChoice(), settings=EncodeSettings(), ranks=Ranks())
    assert model.images_encoded == 5 and found.region_valid.all() and not found.faults
    alone = [model.encode_images([model.prepare(image)]).embeds[0] for image in _images(["rg", "gr", "br", "g"])]
    expected = torch.nn.functional.normalize(torch.stack(alone[:3]).mean(0), dim=0)
    assert torch.allclose(found.embeds[0], expected, atol=1e-6)
    reds, greens, blues = (model.encode_images([model.prepare(image)]).embeds[0] for image in _images("rgb"))
    for vector, colour in zip(found.regions, (blues, reds, greens), strict=True):
        assert torch.cosine_similarity(vector, colour, dim=0) > 0.999
    mean = FakeModel()
    found = encode_clips(mean, items, rows[:1], choice=FrameChoice(), settings=EncodeSettings(), ranks=Ranks())
    of_all = torch.nn.functional.normalize(torch.stack([reds, greens, blues]).mean(0), dim=0)
    assert torch.cosine_similarity(found.regions[0], of_all, dim=0) > 0.999


def _images(colours):
    return [Image.open(io.BytesIO(picture(colour))) for colour in colours]


def test_clips_are_sampled_evenly_and_the_single_frame_is_the_middle_one():
    assert FrameChoice(4).numbers(8) == (1, 3, 5, 7) and FrameChoice(8).numbers(3) == (0, 1, 2)
    assert FrameChoice(single=True).numbers(8) == (4,)
    row = clip_row(0, [None, None, LEFT, LEFT, RIGHT, None])
    assert FrameChoice(3, single=True).of_row(row, (1, 3, 5)) == (3,)
    assert FrameChoice(3).of_row(row, (1, 3, 5)) == (1, 3, 5)
    with pytest.raises(EvaluationError, match="was trained with 4: give 4 or fewer"):
        frame_choice(OrderedModel(most=4), 8, False)
    assert frame_choice(OrderedModel(most=4), None, False) == FrameChoice(4)


def test_region_phrases_are_scored_in_both_languages_and_by_what_they_change(tmp_path):
    records = [
        clip("turns-red", ["g", "b", "r"], regions=(region([LEFT] * 3),)),
        clip("红", ["b", "g", "r"], "zh", (region([LEFT] * 3, "变红的东西", ("变绿的东西", "变蓝的东西")),)),
        clip("turns-blue", ["r", "r", "b"], regions=(region([LEFT] * 3),)),  # its phrase is wrong
        clip("absent", ["r", "r"], regions=(region([None, None]),)),
        clip("no-negatives", ["r", "r"], regions=(region([LEFT] * 2, negatives=()),)),
    ]
    folder = write_clips(tmp_path, records)
    result = evaluate(OrderedModel(), "clip-regions", folder, max_skipped_share=0.3)
    assert result["scores"]["shards"] == pytest.approx(2 / 3)
    assert result["scores"]["by_language"] == {"en": {"shards": 0.5}, "zh": {"shards": 1.0}}
    account = result["accounting"][0]
    assert account["skipped"] == {"absent_in_every_frame": 1} and account["evaluated"] == 3
    assert account["notes"]["regions_without_negatives"] == 1
    # the middle frames are blue, green and red: only the phrase that is wrong of the whole clip is right of its one
    middle = evaluate(OrderedModel(), "clip-regions", folder, max_skipped_share=0.3, single_frame=True)
    assert middle["scores"]["by_language"] == {"en": {"shards": 0.5}, "zh": {"shards": 0.0}}
    only = evaluate(OrderedModel(), "clip-regions", folder, language="zh", max_skipped_share=0.6)
    assert only["scores"]["shards"] == 1 and only["accounting"][0]["evaluated"] == 1


def test_rows_of_a_file_are_scored_and_each_bad_one_is_named(tmp_path):
    folder = write_clips(tmp_path, [clip("one", ["g", "r"]), clip("two", ["r", "g"], "zh")])
    good = {"clip": "one", "boxes": [None, [0, 0, 24, 32]], "width": SIZE[0], "height": SIZE[1],
            "pos_expression": ["red"], "neg_expression": ["green", "blue"], "neg_attribute": ["motion", "colour"],
            "language": "en", "motion": "stopping-left"}  # fmt: skip
    whole = [[0, 0, *SIZE], [0, 0, *SIZE]]
    rows = [
        good,
        good
        | {"clip": "two", "boxes": whole, "pos_expression": ["绿"], "neg_expression": ["红", "蓝"], "language": "zh"},
        good | {"clip": "gone"},
        good | {"boxes": [None]},
        good | {"boxes": [None, None]},
        good | {"boxes": [None, "0 0 1 1"]},
        good | {"boxes": [None, [90, 90, 5, 5]]},
        good | {"neg_expression": []},
        good | {"pos_expression": [" "]},
        {"clip": "one"},
    ]
    (folder / "phrases").mkdir()
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) + "{broken\n"
    (folder / "phrases" / "motion.jsonl").write_text(text, encoding="utf-8")
    result = evaluate(OrderedModel(), "clip-regions", folder, max_skipped_share=1)
    assert result["scores"]["motion"] == 1 and result["scores"]["by_attribute"]["motion"]["motion"] == 1
    assert result["scores"]["by_motion"] == {"stopping-left": {"motion": 1.0}}
    assert result["accounting"][0]["skipped"] == {
        "missing_clip": 1,
        "frame_boxes": 1,
        "absent_in_every_frame": 1,
        "bad_box": 1,
        "box_outside_image": 1,
        "no_negatives": 1,
        "empty_phrase": 1,
        "missing_field": 1,
        "not_json": 1,
    }
    with pytest.raises(EvaluationError, match="9 of 11"):
        evaluate(OrderedModel(), "clip-regions", folder)


def test_text_clip_retrieval_is_that_of_the_mean_of_the_frames(tmp_path):
    clips = {"red": ["r", "r"], "green": ["g", "g", "g"], "blue": ["b", "b"], "grey": ["r", "g"]}
    records = [clip(key, colours, short_caption=f"a {key} clip") for key, colours in clips.items()]
    zh = [clip(f"zh-{key}", clips[key], "zh", long_caption=f"{word}色的片段") for key, word in
          (("red", "红"), ("green", "绿"))]  # fmt: skip
    folder = write_clips(tmp_path, [*records[:3], *zh])
    result = evaluate(FakeModel(), "clip-retrieval", folder, language="en")
    assert result["scores"]["i2t_r1"] == result["scores"]["t2i_r1"] == 1 and result["settings"]["num_clips"] == 3
    chinese = evaluate(FakeModel(), "clip-retrieval", folder, language="zh")
    assert chinese["scores"]["t2i_r1"] == 1 and chinese["settings"]["text_kind"] == "long"
    with pytest.raises(EvaluationError, match="en and zh; say which with --language"):
        evaluate(FakeModel(), "clip-retrieval", folder)
    assert evaluate(FakeModel(), "clip-retrieval", folder, language="en", single_frame=True)["scores"]["t2i_r1"] == 1


def test_a_damaged_frame_an_image_and_a_gap_are_skipped_by_name(tmp_path):
    broken = clip("broken", ["r", "g"])
    broken = Record(broken.key, b"", "png", broken.sample, frames=(broken.frames[0], b"not a picture"))
    image = Record("image", picture("r"), "png", Sample("en", *SIZE, "an image"))
    folder = write_clips(tmp_path, [clip("red", ["r", "r"]), clip("green", ["g", "g"]), broken, image])
    result = evaluate(FakeModel(), "clip-retrieval", folder, max_skipped_share=0.6)
    assert result["accounting"][0]["skipped"] == {"not_a_clip": 1, "broken_image": 1}
    assert result["settings"]["num_clips"] == 2
    only_images = write_clips(tmp_path / "images", [image])
    with pytest.raises(EvaluationError, match="holds no clip"):
        evaluate(FakeModel(), "clip-retrieval", only_images)
