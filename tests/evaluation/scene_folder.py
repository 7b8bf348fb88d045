"""A small test split of scenes, written once for all tests that read one."""

from __future__ import annotations

import json
from pathlib import Path

from data_tools.scenes.command import make_record, summary
from data_tools.scenes.fgovd import fgovd_rows, write_rows
from data_tools.shards import write_shard


def write_scenes(folder: Path, num_images: int = 40) -> Path:
    """``folder/test`` as data_tools scenes lays it out, without an index (evaluation needs none)."""
    records = [make_record(0, "test", number) for number in range(num_images)]
    half = num_images // 2
    for shard, part in enumerate((records[:half], records[half:])):
        write_shard(folder / "test" / f"test-{shard:06d}.tar", part)
    rows = fgovd_rows([(record.key, record.sample) for record in records], seed=0)
    write_rows(folder / "test" / "fgovd", rows)
    explained = summary({"train_images": 0, "test_images": num_images, "seed": 0}, rows)
    (folder / "scenes.json").write_text(json.dumps(explained, ensure_ascii=False), encoding="utf-8")
    return folder / "test"
