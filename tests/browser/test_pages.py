"""In a real browser: no error, nothing fetched from elsewhere, as wide as the window, usable by a keyboard alone."""

from __future__ import annotations

import json
import threading
import time

import pytest
import uvicorn

from pipeline.base.run_folder import RunFolder
from pipeline.embed.read import Embeddings
from pipeline.explore.app import make_app
from pipeline.report.page import run_page
from pipeline.tracking.compare.__main__ import main as compare
from tests.browser.chromium import WIDTHS, Watched
from tests.explore.test_answers import EVIL, explorer
from tests.report.test_report import run
from tests.tracking.made_runs import make_run

__all__ = ["explorer", "run"]  # fixtures

pytestmark = pytest.mark.browser


@pytest.fixture
def served(explorer):
    """The explorer's address."""
    server = uvicorn.Server(uvicorn.Config(make_app(explorer), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join(10)


def drawn(watched, axis):
    """Wait until every curve is drawn over ``axis``."""
    watched.page.wait_for_function(
        "(axis) => Bokeh.documents.length && Bokeh.documents.flatMap((d) => d.roots())"
        ".every((f) => f.below[0].axis_label === axis)",
        arg=axis,
    )


def test_the_comparison_is_sorted_filtered_and_drawn_over_samples(chromium, tmp_path):
    for name, weight in (("甲", 0.4), ("b<i>", 0.0), (EVIL, 0.2)):
        for seed in (0, 1):
            folder = tmp_path / "runs" / f"{name}-seed{seed}"
            make_run(folder, f"region_loss.cmr_weight={weight}", seed=seed, losses={1: 3.0, 2: 2.0 - weight, 9: 1.0},
                     scores={"fgovd": {"hard": 0.5 + weight / 4 + seed / 50}})  # fmt: skip
    page = tmp_path / "compare.html"
    assert compare([str(tmp_path / "runs"), "--baseline", "甲", "--html", str(page)]) == 0
    for width in WIDTHS:
        watched = Watched(chromium, page.as_uri(), width, page.as_uri())
        drawn(watched, "optimizer steps")
        assert EVIL in watched.page.inner_text("main") and "b<i>" in watched.page.inner_text("main")
        watched.check("compare")
        watched.page.select_option("#axis", "samples")
        drawn(watched, "samples")
        first = watched.page.locator("input[data-group]").first
        first.focus()
        watched.page.keyboard.press("Space")
        name = first.get_attribute("data-group")
        assert watched.page.evaluate(
            "(name) => Bokeh.documents.flatMap((d) => d.roots()).flatMap((f) => f.renderers)"
            ".filter((r) => r.tags[0] === name).every((r) => !r.visible)", name
        )  # fmt: skip
        watched.page.locator("section", has_text="Last values").locator("th button").nth(1).click()
        assert watched.page.locator("th[aria-sort=descending]").count() == 1
        watched.check("compare-samples")


def test_the_report_shows_events_and_pictures_and_names_with_html_as_text(chromium, run, tmp_path):
    page, folder = tmp_path / "report.html", run.rename(run.with_name(f"跑步 {EVIL}"))
    settings = folder / "settings.yaml"
    named = settings.read_text(encoding="utf-8").replace("shards/train", f"'数据 {EVIL}'")
    assert EVIL in named
    settings.write_text(named, encoding="utf-8")
    (folder / "scores.json").write_text(json.dumps({f"scenes {EVIL}": {"hard": 0.5}}), encoding="utf-8")
    page.write_text(run_page(RunFolder.at(folder)), encoding="utf-8")
    for width in WIDTHS:
        watched = Watched(chromium, page.as_uri(), width, page.as_uri())
        drawn(watched, "optimizer steps")
        shown = watched.page.inner_text("body")
        names = (f"跑步 {EVIL}", f"数据 {EVIL}", f"scenes {EVIL}", "silent <b>")
        assert [name for name in names if name not in shown] == []
        watched.check("report")


def test_the_explorer_answers_in_both_languages_by_mouse(chromium, served, monkeypatch):
    monkeypatch.setattr(Embeddings, "text", lambda self, row: f"标题 {EVIL}" if row == 1 else None)
    for width in WIDTHS:
        watched = Watched(chromium, served, width, served)
        page = watched.page
        for text in ("a red cat", "红色的猫"):
            page.fill("#text", text)
            page.click("#search button")
            page.wait_for_selector(".hits li")
            assert page.locator(".hits").count() == 2 and page.locator(".hits li").count() == 8
        shown = page.inner_text("#results")
        assert f"标题 {EVIL}" in shown and f"{EVIL}.jpg" in shown, "a caption and a key with HTML in them are text"
        page.locator(".hits button").first.click()
        watched.until("document.getElementById('image').naturalWidth > 0")
        frame = page.locator("#image").bounding_box()
        page.mouse.move(frame["x"] + 0.2 * frame["width"], frame["y"] + 0.2 * frame["height"])
        page.mouse.down()
        page.mouse.move(frame["x"] + 0.7 * frame["width"], frame["y"] + 0.8 * frame["height"], steps=4)
        page.mouse.up()
        assert abs(float(page.input_value("#x1")) - 20) < 2 and abs(float(page.input_value("#y2")) - 80) < 2
        page.fill("#phrases", "a red cat\n红色的猫\n<b>bold</b>")
        page.click("#score button")
        page.wait_for_selector("#scores table")
        assert "<b>bold</b>" in page.inner_text("#scores") and page.locator("#scores tbody tr").count() == 6
        page.fill("#phrase", "猫的尾巴")
        page.click("#heat button")
        page.wait_for_selector("#maps img")
        page.click("#like-box")
        watched.until("document.getElementById('status').textContent === ''")
        watched.check("explore")


def test_a_keyboard_alone_uses_the_explorer(chromium, served):
    watched = Watched(chromium, served, 1400, served)
    page = watched.page
    press = page.keyboard.press
    watched.until("document.getElementById('status').textContent.includes('images')")
    press("Tab")
    page.keyboard.type("a cat")
    press("Enter")
    page.wait_for_selector(".hits li")
    while page.evaluate("!document.activeElement.closest('.hits')"):
        press("Tab")
    press("Enter")
    watched.until("document.activeElement.id === 'canvas'")
    press("ArrowRight")
    before = [float(page.input_value(f"#{edge}")) for edge in ("x1", "y1", "x2", "y2")]
    press("Shift+ArrowDown")
    press("ArrowLeft")
    after = [float(page.input_value(f"#{edge}")) for edge in ("x1", "y1", "x2", "y2")]
    assert [round(a - b, 1) for a, b in zip(after, before, strict=True)] == [-2.0, 0.0, -2.0, 2.0]
    while page.evaluate("document.activeElement.id !== 'phrases'"):
        press("Tab")
    page.keyboard.type("a cat\na dog")
    press("Tab")
    press("Enter")
    page.wait_for_selector("#scores table")
    watched.check("keyboard")
