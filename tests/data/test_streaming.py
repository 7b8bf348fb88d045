"""Training from anybody's tars without an index: equal steps on all ranks, buckets, and faults with their names."""

from __future__ import annotations

import functools
import json
import random
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline.config import DataSettings
from pipeline.data.faults import DataFaultLimit
from pipeline.data.loader import Reading, make_loader
from pipeline.data.shard_index import IndexProblem
from pipeline.data.slices import Division
from pipeline.data.streaming import expand
from tests.data.damages import OF_MEMBERS, damaged
from tests.data.shards import SIZES, image_bytes, record, write_tar

LONG = "a long story about a red cat on a mat"


def foreign(folder, shards: int, samples: int = 10, start: int = 0):
    """Tars of .jpg with .txt, or with a .json of another form, or of this project's."""
    number = start
    for shard in range(shards):
        members = []
        for _ in range(samples):
            size = SIZES[128 if number % 3 else 256]
            key = f"图{number:05d}"
            members.append((f"{key}.jpg", image_bytes(number, size)))
            texts = {
                "txt": f"a cat {number}".encode(),
                "json": json.dumps({"caption": f"一只猫 {number}", "url": "x"}, ensure_ascii=False).encode(),
                "own": json.dumps(record(number, "zh", size)).encode(),
            }
            kind = ("txt", "json", "own")[number % 4 % 3]
            members.append((f"{key}.{'json' if kind == 'own' else kind}", texts[kind]))
            number += 1
        write_tar(folder / f"their-{shard:03d}.tar", members)
    return folder


def loader(shards, tokenizer, rank=0, world=1, workers=0, size=8, **settings):
    made = DataSettings(shards=shards, streaming=True, num_workers=workers, streaming_shuffle_samples=20, **settings)
    return make_loader(
        Reading(
            made,
            tokenizer,
            (16, 32),
            seed=3,
            global_batch_size=size,
            rank=rank,
            division=Division(world),
        )
    )


@pytest.mark.parametrize(("shards", "workers"), [(3, 0), (5, 1), (1, 0)])
def test_every_rank_has_as_many_steps_as_it_is_asked_for(tmp_path, tokenizer, shards, workers):
    foreign(tmp_path, shards)
    seen = []
    for rank in range(2):
        with loader([str(tmp_path)], tokenizer, rank, 2, workers) as found:
            batches = [next(found) for _ in range(20)]  # several rounds over all shards
            assert found.fault_counts() == {} and found.samples_seen() == 80
        assert all(len(batch) == 4 and len(set(batch.spatial_shapes.prod(1).tolist())) <= 2 for batch in batches)
        assert {batch.pixel_values.shape[1] for batch in batches} == {128, 256}
        assert {batch.language for batch in batches} == {"en", "zh"}
        seen.append({key for batch in batches for key in batch.keys})
    if shards > 1:
        assert not seen[0] & seen[1], "shards are split between ranks"
    else:
        assert seen[0] & seen[1], "one shard is read by both"


def test_captions_take_the_place_that_the_settings_say(tmp_path, tokenizer):
    write_tar(tmp_path / "a.tar", [(f"{n}.jpg", image_bytes(n)) if i == 0 else (f"{n}.txt", LONG.encode())
                                   for n in range(8) for i in range(2)])  # fmt: skip
    with loader([str(tmp_path)], tokenizer, streaming_caption="long", streaming_language="de") as found:
        batch = next(found)
    assert batch.language == "de" and batch.long_valid.all() and not batch.short_valid.any()
    assert (batch.long_ids == tokenizer([LONG], 32)).all()


def test_tars_are_read_over_http(tmp_path, tokenizer):
    foreign(tmp_path, 3)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = lambda *_: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/their-{{000..002}}.tar"
        with loader([url], tokenizer) as found:
            keys = {key for _ in range(8) for key in next(found).keys}
        assert len(keys) > 20
        pipe = f"pipe:cat {tmp_path}/their-000.tar"
        with loader([pipe], tokenizer, size=2) as found:
            assert next(found).keys
    finally:
        server.shutdown()


def test_broken_tars_and_samples_are_named_and_the_rest_is_read(tmp_path, tokenizer, caplog):
    foreign(tmp_path, 3)
    data = (tmp_path / "their-001.tar").read_bytes()
    (tmp_path / "their-001.tar").write_bytes(data[:512] + b"\xff" * 2000 + data[2512:])
    (tmp_path / "their-002.tar").write_bytes(b"")
    write_tar(tmp_path / "their-003.tar", [("1.txt", b"x"), ("2.jpg", b"\xff\xd8nothing"), ("2.txt", b"a cat"),
                                           ("3.jpg", image_bytes(3)), ("3.json", b"{"),
                                           ("4.jpg", image_bytes(4))])  # fmt: skip
    with loader([str(tmp_path)], tokenizer, size=2) as found:
        keys = {key for _ in range(12) for key in next(found).keys}
        kinds = set(found.fault_counts())
    assert len(keys) >= 8
    assert {"broken_image", "missing_member", "bad_json", "empty_caption"} <= kinds
    assert "their-002.tar" in caplog.text and "their-003.tar" in caplog.text


@pytest.mark.parametrize("kind", OF_MEMBERS)
def test_odd_members_of_a_tar_end_no_run_and_its_neighbours_are_read(tmp_path, tokenizer, kind, caplog):
    foreign(tmp_path, 3, samples=4)
    sound = (tmp_path / "their-001.tar").read_bytes()
    draws = random.Random(kind)
    for _ in range(3):
        (tmp_path / "their-001.tar").write_bytes(damaged(sound, kind, draws))
        with loader([str(tmp_path)], tokenizer, size=1, max_fault_share=1.0) as found:
            keys = {next(found).keys[0] for _ in range(40)}
        assert {f"图{number:05d}" for number in (0, 1, 2, 3, 8, 9, 10, 11)} <= keys


def test_shards_without_one_usable_sample_end_the_run(tmp_path, tokenizer):
    write_tar(tmp_path / "a.tar", [("1.txt", b"x")])
    with loader([str(tmp_path)], tokenizer) as found, pytest.raises(DataFaultLimit, match="not one usable sample"):
        next(found)
    with loader([f"{tmp_path}/a.tar"], tokenizer, workers=1) as found, pytest.raises(DataFaultLimit) as caught:
        next(found)
    assert "\n" not in str(caught.value)


def test_folders_files_and_braces_are_expanded_and_what_is_not_there_is_named(tmp_path):
    foreign(tmp_path, 3, samples=1)
    assert len(expand([str(tmp_path)])) == 3
    assert expand([f"{tmp_path}/their-{{000..001}}.tar"]) == [f"{tmp_path}/their-00{n}.tar" for n in (0, 1)]
    assert expand(["s3://bucket/x-{0..2}.tar"]) == [f"s3://bucket/x-{n}.tar" for n in range(3)]
    with pytest.raises(IndexProblem, match="does not exist"):
        expand([f"{tmp_path}/their-{{000..009}}.tar"])
    (tmp_path / "leer").mkdir()
    with pytest.raises(IndexProblem, match=r"holds no .tar"):
        expand([str(tmp_path / "leer")])
