"""Pictures hold what they are given, in every script."""

from __future__ import annotations

import shutil
import warnings

import pytest
from PIL import Image

from pipeline.drawing.boxes import draw_regions
from pipeline.drawing.fonts import drawable, find_font


def test_a_picture_shows_each_box_in_its_place_and_its_phrases():
    image = Image.new("RGB", (100, 50), "black")
    picture = draw_regions(
        image, [(0.1, 0.2, 0.5, 0.8), (0.6, 0.1, 0.9, 0.9)], [[("a red cup", 0.9), ("a blue cup", 0.1)], "dog"],
        ["a red cup", None],
    )  # fmt: skip
    scale = 4
    assert picture.getpixel((int(0.5 * 100 * scale), int(0.5 * 50 * scale))) == (214, 39, 40)  # right edge of box 1
    assert picture.getpixel((int(0.9 * 100 * scale), int(0.5 * 50 * scale))) == (31, 119, 180)
    assert picture.getpixel((int(0.3 * 100 * scale), int(0.5 * 50 * scale))) == (0, 0, 0)
    plain = draw_regions(image, [(0.1, 0.2, 0.5, 0.8)], ["a red cup"])
    assert plain.tobytes() != draw_regions(image, [(0.1, 0.2, 0.5, 0.8)], ["a blue cup"]).tobytes()
    with pytest.raises(ValueError, match="give one a box"):
        draw_regions(image, [(0, 0, 1, 1)], [])


def test_chinese_is_written_where_a_font_has_it_and_warned_of_elsewhere(tmp_path, monkeypatch):
    text = "红色的杯子"
    if find_font(text) is not None:
        assert drawable(text)[0] == text
    monkeypatch.setattr("pipeline.drawing.fonts._installed", lambda: ())
    monkeypatch.delenv("PICTURE_FONT", raising=False)
    with pytest.warns(UserWarning, match="fonts-noto-cjk"):
        assert drawable(text + " ok")[0] == "□□□□□ ok"
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"no font")
    monkeypatch.setenv("PICTURE_FONT", str(broken))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert drawable("plain")[0] == "plain"
    shutil.rmtree(tmp_path)
