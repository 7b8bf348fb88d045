"""The report page and the data card: what they count, show and mark, and that nothing in the data can break them."""

from __future__ import annotations

import re
import shutil
import tarfile
import tracemalloc
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import pytest

from data_tools.__main__ import main
from data_tools.execution.jobs import InProcess
from data_tools.execution.steps import run_step
from data_tools.negatives.rules import RuleGenerator
from data_tools.negatives.step import NegativesStep
from data_tools.report.choice import rank_of
from data_tools.report.marking import marked, marked_spans
from data_tools.report.page import page
from data_tools.report.statistics import Histogram, collect
from data_tools.shards import Record, write_shard
from pipeline.data.schema import Region, Sample
from tests.data_tools.step_samples import picture

VOID = {"meta", "image", "rect", "line", "br"}


class Checked(HTMLParser):
    """Collects tags and fails on one that is not closed in its order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict]] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    nasty = "A red mug <script>alert('x')</script> & \"more\""
    samples = {
        "en": Sample(
            "en", 32, 24, short_caption=nasty, long_caption="A red mug stands on a table.",
            regions=(
                Region((0.1, 0.1, 0.6, 0.9), "A red mug", "a red mug on a table", category="mug", score=0.87),
                Region((0.0, 0.0, 1.0, 1.0), nasty),
            ),
            source={"phrases": [{"text": "A red mug", "span": [0, 9], "from": "long_caption"}]},
        ),
        "zh": Sample("zh", 32, 24, "一只红色的猫", regions=(Region((0.2, 0.2, 0.5, 0.5), "一只红色的猫"),)),
        "bare": Sample("en", 32, 24, short_caption="nothing here"),
    }  # fmt: skip
    records = [Record(key, picture(n), "png", sample) for n, (key, sample) in enumerate(samples.items())]
    write_shard(folder / "in" / "s-000000.tar", records)
    run_step(NegativesStep(RuleGenerator()), folder / "in", folder / "out", executor=InProcess())
    return folder / "out"


def test_the_page_is_whole_self_contained_and_shows_both_languages(shards, tmp_path, capsys):
    out = tmp_path / "sub" / "report.html"
    assert main(["report", str(shards), "--out", str(out), "--samples", "5"]) == 0
    assert "3 images, 3 shown" in capsys.readouterr().out
    text = out.read_text(encoding="utf-8")
    checked = Checked()
    checked.feed(text)
    checked.close()
    assert checked.open == []
    assert "<script" not in text and "&lt;script&gt;" in text
    sources = [attrs[name] for _, attrs in checked.seen for name in ("src", "href") if name in attrs]
    assert len(sources) == 3 and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not re.search(r"url\(|@import|https?://", text)
    languages = {attrs["lang"] for tag, attrs in checked.seen if tag == "article"}
    assert languages == {"en", "zh"}
    assert "<u>A red mug</u> stands" in text  # the phrase found in the caption
    assert "0.87" in text and "a red mug on a table" in text
    assert re.search(r"<mark[^>]*>[^<]+</mark>只红色的猫", text) and re.search(r"A <mark[^>]*>\w+</mark> mug", text)
    assert "regions_with_all_negatives" in text
    assert [p.name for p in out.parent.iterdir()] == ["report.html"]


def test_boxes_are_drawn_where_they_are(shards):
    text = page(collect(shards, 5))
    assert '<rect x="3.2" y="2.4" width="16.0" height="19.2" fill="none"' in text  # (0.1, 0.1, 0.6, 0.9) of 32 × 24


def test_counts_are_those_of_the_records(shards):
    statistics = collect(shards, 2)
    assert (statistics.shards, statistics.samples) == (1, 3)
    assert statistics.languages == {"en": 2, "zh": 1}
    assert statistics.fields["regions"] == 3 and statistics.fields["negatives"] == 10 * statistics.attribute_regions
    assert statistics.categories == {"mug": 1}
    assert statistics.histograms["regions"].counts[:3] == [1, 1, 1]
    assert [step["step"] for step in statistics.made_by] == ["negatives"]
    assert statistics.made_by[0]["counts"]["regions_with_all_negatives"] == statistics.fields["regions with negatives"]
    assert len(statistics.chosen) == 2 and {chosen.sample.language for chosen in statistics.chosen} == {"en", "zh"}
    assert [chosen.key for chosen in collect(shards, 2).chosen] == [chosen.key for chosen in statistics.chosen]


def test_an_unreadable_image_and_a_bad_record_are_shown_as_such(tmp_path):
    good = Sample("en", 32, 24, short_caption="a red mug")
    write_shard(
        tmp_path / "s-000000.tar", [Record("a", b"no image", "png", good), Record("b", picture(1), "png", good)]
    )
    data = (tmp_path / "s-000000.tar").read_bytes()
    at = data.rindex(b'"language":"en"')
    (tmp_path / "s-000000.tar").write_bytes(data[:at] + b'"language":"x!"' + data[at + 15 :])
    statistics = collect(tmp_path, 4)
    assert statistics.faults == {"bad_field": 1}
    text = page(statistics)
    assert 'class="problem"' in text and "bad_field" in text
    assert "other tools made it" in text


def test_a_damaged_or_missing_shard_is_an_error(tmp_path, capsys):
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 2
    (tmp_path / "s-000000.tar").write_bytes(b"x" * 2000)
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 2
    assert "damaged" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "r.html"), "--samples", "-1"]) == 2


@pytest.mark.parametrize(
    ("phrase", "negative", "html"),
    [
        ("A red mug", "A blue mug", 'A <mark title="was: red">blue</mark> mug'),
        ("一只红色的猫", "两只红色的猫", '<mark title="was: 一">两</mark>只红色的猫'),
        ("A red mug", "A red mug", "A red mug"),
        ("A red mug", "A mug", "A <del>red </del>mug"),
        ("<b>", "<i>", '&lt;<mark title="was: b">i</mark>&gt;'),
        ('a "x"', 'a "y"', 'a &quot;<mark title="was: x">y</mark>&quot;'),
    ],
)
def test_changed_words_are_marked_and_escaped(phrase, negative, html):
    assert marked(phrase, negative) == html


def test_spans_that_overlap_or_lie_outside_do_no_harm():
    assert marked_spans("a red mug", [(0, 5), (2, 9), (4, 99), (3, 3)]) == "<u>a red</u><u> mug</u>"


def test_bins_take_their_lower_edge_and_the_last_is_open():
    histogram = Histogram("t", "u", (0, 1, 5))
    for value in (-1, 0, 0.5, 1, 4.9, 5, 1000):
        histogram.add(value)
    assert histogram.counts == [3, 2, 2]


def test_samples_with_more_to_see_come_first():
    ranks = [rank_of(0, "k", *what) for what in ((True, True), (True, False), (False, False))]
    assert ranks == sorted(ranks)
    assert rank_of(0, "k", True, True) != rank_of(1, "k", True, True)


def test_shards_that_stage_2_could_not_train_on_say_so_at_the_top(tmp_path):
    for name, regions in (("none", ()), ("plain", (Region((0.1, 0.1, 0.5, 0.5), "a mug"),))):
        write_shard(
            tmp_path / name / "s-000000.tar",
            [Record("a", picture(1), "png", Sample("de", 32, 24, "ein Becher", regions=regions))],
        )
    assert "No image has a region." in page(collect(tmp_path / "none"))
    text = page(collect(tmp_path / "plain"))
    assert "None of the 1 regions has a negative." in text and "data_tools negatives" in text
    assert text.index('role="alert"') < text.index("<main>")


def test_the_page_of_whole_shards_has_no_warning(shards):
    assert 'role="alert"' not in page(collect(shards))


def test_a_sparse_member_takes_no_memory_and_a_link_is_counted(tmp_path):
    write_shard(tmp_path / "s-000000.tar", [Record("a", picture(1), "png", Sample("en", 32, 24, "a red mug"))])
    whole = (tmp_path / "s-000000.tar").read_bytes().rstrip(b"\0")
    extra = b""
    for name, kind in (("b.json", tarfile.GNUTYPE_SPARSE), ("c.json", tarfile.SYMTYPE)):
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        header[483:495] = b"%011o\0" % ((8 << 30) - 1)  # the real size of a sparse file; nothing of it is stored
        header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * 32)
        extra += bytes(header)
    padded = whole + bytes(-len(whole) % 512)
    (tmp_path / "s-000000.tar").write_bytes(padded + extra + bytes(1024))
    tracemalloc.start()
    statistics = collect(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert statistics.samples == 1 and statistics.faults["unsafe_member"] == 2
    assert peak < 64 << 20


def test_a_damaged_report_is_counted_and_the_page_is_written(shards, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    for path in (copy / "reports").glob("*.json"):
        path.write_bytes(b'{"shard": [')
    assert "damaged_report" in page(collect(copy))


def test_many_samples_are_laid_out_on_pages_that_lead_to_each_other(shards, tmp_path, capsys):
    out = tmp_path / "报告 1.html"
    assert main(["report", str(shards), "--out", str(out), "--samples", "5", "--per-page", "2"]) == 0
    count = capsys.readouterr().out
    files = sorted(tmp_path.glob("报告*.html"))
    texts = {file.name: file.read_text(encoding="utf-8") for file in files}
    shown = sum(text.count("<article") for text in texts.values())
    assert f"{shown} shown on {len(files)} pages" in count and len(files) == -(-shown // 2) > 1
    assert "<h2>Histograms" in texts["报告 1.html"] and "<h2>Histograms" not in texts["报告 1-2.html"]
    assert f'href="{quote("报告 1-2.html")}"' in texts["报告 1.html"], "a link by its name"
    assert 'aria-current="page">2' in texts["报告 1-2.html"]
