"""Tables in and out: every form that is asked for, every row accounted for, and the way back to the same records."""

from __future__ import annotations

import csv
import io
import json

import datasets
import pytest
from PIL import Image

from data_tools.__main__ import main
from pipeline.data.manifest import load_manifest
from tests.data_tools.step_samples import contents, picture
from tests.data_tools.test_captions import samples_of
from tests.data_tools.test_sources import dropped

ROWS = [
    {"file": "a.png", "text": "A red bus.", "lang": "en", "sku": 1},
    {"file": "b.png", "text": "一只白猫。", "lang": "ZH", "sku": 2},
    {"file": "c.png", "text": "Ein blauer Stuhl, grün.", "lang": "de", "sku": 3},
]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, name in enumerate("abcdef"):
        (folder / f"{name}.png").write_bytes(picture(number))
    return folder


def write_table(path, rows):
    """CSV, TSV, JSON lines or Parquet by the name's end."""
    if path.suffix in (".csv", ".tsv"):
        with open(path, "w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        datasets.Dataset.from_list(rows).to_parquet(path)
    return path


def build(table, out, *more):
    return main(["build", "table", "--table", str(table), "--out", str(out), "--workers", "0", *map(str, more)])


NAMED = ("--image", "file", "--short-caption", "text")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_every_kind_of_table_gives_the_same_records(images, tmp_path, suffix, streaming):
    table = write_table(tmp_path / f"pairs{suffix}", ROWS)
    more = ["--images", images, "--language-column", "lang", "--keep", "sku", *(["--streaming"] if streaming else [])]
    assert build(table, tmp_path / "out", *NAMED, *more) == 0
    samples = samples_of(tmp_path / "out")
    assert [sample.language for sample in samples.values()] == ["en", "zh", "de"]
    assert [sample.short_caption for sample in samples.values()] == [row["text"] for row in ROWS]
    assert samples["pairs-00000002"].source == {"dataset": "pairs", "row": 2, "sku": 3}
    assert load_manifest(tmp_path / "out").languages == ("en", "zh", "de")


def test_a_saved_data_set_with_the_image_feature_and_bytes(tmp_path):
    rows = {"image": [Image.new("RGB", (40, 30), color) for color in ("red", "blue")], "short_caption": ["a", "猫"]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    assert build(tmp_path / "saved", tmp_path / "out", "--language", "zh-hans") == 0
    samples = list(samples_of(tmp_path / "out").values())
    assert [(s.width, s.height, s.language) for s in samples] == [(40, 30, "zh-Hans")] * 2
    raw = [{"image": picture(n), "short_caption": f"picture {n}"} for n in range(3)]
    write_table(tmp_path / "bytes.parquet", raw)
    assert build(tmp_path / "bytes.parquet", tmp_path / "bytes", "--language", "en") == 0
    assert len(samples_of(tmp_path / "bytes")) == 3


def test_regions_come_as_lists_or_as_json_in_cells(images, tmp_path):
    row = {
        "file": "a.png",
        "text": "Two mugs.",
        "boxes": [[0, 0, 16, 12], [8, 6, 16, 12]],
        "phrases": ["a red mug", "ein blauer Becher"],
        "negatives": [["a green mug"], []],
        "kind": ["mug", ""],
    }
    more = [*NAMED, "--images", images, "--language", "en", "--boxes", "boxes", "--phrases", "phrases"]
    more += ["--negatives", "negatives", "--categories", "kind"]
    assert build(write_table(tmp_path / "t.jsonl", [row]), tmp_path / "a", *more) == 0
    cells = {name: json.dumps(value) if isinstance(value, list) else value for name, value in row.items()}
    assert build(write_table(tmp_path / "t.csv", [cells]), tmp_path / "b", *more) == 0
    (sample,) = samples_of(tmp_path / "a").values()
    assert samples_of(tmp_path / "b") == {"t-00000000": sample}
    first, second = sample.regions
    assert first.box == (0, 0, 0.5, 0.5) and first.negatives == ("a green mug",) and first.category == "mug"
    assert second.phrase == "ein blauer Becher" and second.category is None
    xywh = build(tmp_path / "t.jsonl", tmp_path / "c", *more, "--box-format", "xywh")
    assert xywh == 0 and samples_of(tmp_path / "c")["t-00000000"].regions[1].box == (0.25, 0.25, 0.75, 0.75)


def test_every_row_that_is_left_out_is_named_with_its_reason(images, tmp_path):
    (images / "cut.png").write_bytes(picture(1)[:60])
    (images / "page.jpg").write_text("<html>")
    (images / "print.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    (tmp_path / "secret.png").write_bytes(picture(2))
    bad = [
        ("gone.png", "x", "missing_image"),
        ("", "x", "missing_image"),
        ("cut.png", "x", "unreadable_image"),
        ("page.jpg", "x", "unreadable_image"),
        ("print.jpg", "x", "unsupported_format"),
        ("../secret.png", "x", "image_outside"),
        (str(tmp_path / "secret.png"), "x", "image_outside"),
        ("b.png", "", "no_caption"),
        ("b.png", "x" * 20_001, "long_text"),
    ]
    rows = [{"file": "a.png", "text": "A bus."}, *({"file": file, "text": text} for file, text, _ in bad)]
    table = write_table(tmp_path / "t.jsonl", rows)
    assert build(table, tmp_path / "out", *NAMED, "--images", images, "--language", "en") == 0
    assert list(samples_of(tmp_path / "out")) == ["t-00000000"]
    assert dropped(tmp_path / "out") == {f"t-{n:08d}": reason for n, (*_, reason) in enumerate(bad, 1)}


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "GIF"])
def test_other_formats_are_stored_as_png_their_first_frame(tmp_path, kind):
    stream = io.BytesIO()
    frames = [Image.new("RGB", (24, 16), color) for color in ("red", "blue")]
    frames[0].save(stream, kind, **({"save_all": True, "append_images": frames[1:]} if kind != "BMP" else {}))
    (tmp_path / "x.img").write_bytes(stream.getvalue())
    table = write_table(tmp_path / "t.csv", [{"image": "x.img", "short_caption": "red"}])
    assert build(table, tmp_path / "out", "--language", "en") == 0
    image, _ = next((r.image, r.extension) for r in records_of(tmp_path / "out"))
    with Image.open(io.BytesIO(image)) as opened:
        assert (
            opened.format == "PNG" and opened.size == (24, 16) and opened.convert("RGB").getpixel((3, 3)) == (255, 0, 0)
        )


def records_of(folder):
    from data_tools.execution.shards import TarShard

    return [record for path in sorted(folder.glob("*.tar")) for record in TarShard(path).records()]


def test_rows_of_one_image_stay_on_one_side_of_the_split(images, tmp_path):
    rows = [{"file": f"{'abcdef'[n % 6]}.png", "text": f"picture {n}"} for n in range(60)]
    table = write_table(tmp_path / "t.csv", rows)
    more = [*NAMED, "--images", images, "--language", "en", "--held-out", "0.4", "--samples-per-shard", "25"]
    assert build(table, tmp_path / "out", *more) == 0
    sides = [samples_of(tmp_path / "out" / side) for side in ("train", "held-out")]
    assert sum(map(len, sides)) == 60 and all(sides)
    pictures = [{int(s.short_caption.split()[1]) % 6 for s in side.values()} for side in sides]
    assert not pictures[0] & pictures[1]
    before = contents(tmp_path / "out")
    assert build(table, tmp_path / "out", *more) == 0 and contents(tmp_path / "out") == before


def test_what_was_exported_is_read_by_datasets_and_builds_the_same_records(images, tmp_path, capsys):
    rows = [{**row, "boxes": [[0, 0, 16, 12]], "phrases": [row["text"]], "negatives": [["否", "no"]]} for row in ROWS]
    table = write_table(tmp_path / "t.jsonl", rows)
    more = [*NAMED, "--images", images, "--language-column", "lang", "--keep", "sku", "--boxes", "boxes"]
    assert build(table, tmp_path / "first", *more, "--phrases", "phrases", "--negatives", "negatives") == 0
    assert main(["export", str(tmp_path / "first"), "--parquet", str(tmp_path / "parquet")]) == 0
    assert "3 samples in 1 files" in capsys.readouterr().out
    found = datasets.load_dataset("parquet", data_dir=str(tmp_path / "parquet"), cache_dir=str(tmp_path / "cache"))
    row = found["train"][1]
    assert row["image"].size == (32, 24) and row["short_caption"] == "一只白猫。" and row["language"] == "zh"
    assert build(tmp_path / "parquet", tmp_path / "again") == 0
    assert samples_of(tmp_path / "again") == samples_of(tmp_path / "first")
    assert [r.image for r in records_of(tmp_path / "again")] == [r.image for r in records_of(tmp_path / "first")]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--image", "fil", "--short-caption", "text"], "did you mean 'file'"),
        (["--short-caption", "text"], "Give --image COLUMN"),
        (["--image", "file"], "Give --short-caption"),
        (["--image", "file", "--short-caption", "sku"], "holds numbers"),
        ([*NAMED], "Give --language TAG"),
        ([*NAMED, "--language", "german"], "BCP-47"),
        ([*NAMED, "--language", "auto"], "needs the languages to tell apart"),
        ([*NAMED, "--language", "auto", "--among", "en", "tlh"], "cannot detect"),
        ([*NAMED, "--language", "en", "--boxes", "text"], "go together"),
        ([*NAMED, "--language", "en", "--held-out", "1"], "below 1"),
        ([*NAMED, "--language", "en", "--images", "nowhere"], "does not exist"),
    ],
)
def test_wrong_options_are_named_before_anything_is_made(images, tmp_path, capsys, more, words):
    table = write_table(images / "t.csv", [{**row, "lang": ""} for row in ROWS])
    assert build(table, tmp_path / "out", *more) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ") and error.count("\n") == 1
    assert not list((tmp_path / "out").glob("*.tar"))


def test_a_damaged_table_is_one_line(tmp_path, capsys):
    for name, data in (("a.parquet", b"PAR1 no"), ("b.jsonl", b"{\n[1"), ("c.csv", b""), ("d.txt", b"x")):
        (tmp_path / name).write_bytes(data)
        assert build(tmp_path / name, tmp_path / "out", "--language", "en") == 2, name
        error = capsys.readouterr().err
        assert error.splitlines()[-1].startswith("error: "), error


def test_languages_are_told_apart_among_those_named_and_unclear_ones_are_dropped(images, tmp_path):
    rows = [
        {"file": "a.png", "text": "A small red bus stands near the house."},
        {"file": "b.png", "text": "Ein kleiner roter Bus steht neben dem Haus."},
        {"file": "c.png", "text": "一辆红色的小巴士停在房子旁边。"},
        {"file": "d.png", "text": "12345"},
    ]
    table = write_table(tmp_path / "t.csv", rows)
    more = [*NAMED, "--images", images, "--language", "auto", "--among", "en", "de", "zh-Hans"]
    assert build(table, tmp_path / "out", *more) == 0
    assert [sample.language for sample in samples_of(tmp_path / "out").values()] == ["en", "de", "zh-Hans"]
    assert dropped(tmp_path / "out") == {"t-00000003": "language_unclear"}
