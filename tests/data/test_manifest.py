"""Manifests: columns mapped into memory, pieces of shards, other patch budgets, and the format before."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.base.constants import LANGUAGES
from pipeline.data.columns import LARGEST_COUNT, size_codes
from pipeline.data.index import index_folder
from pipeline.data.levels import Levels
from pipeline.data.manifest import IndexProblem, load_manifest, read_index
from tests.data.shards import write_manifest_of_json, write_shards

BUDGETS = (128, 256, 576, 784, 1024)


@pytest.fixture
def folder(tmp_path):
    kinds = [("en", 128), ("zh", 128), ("en", 256), ("zh", 576)]
    write_shards(tmp_path / "分片", [[kinds[(i * 3 + shard) % 4] for i in range(20)] for shard in range(3)])
    return tmp_path / "分片"


def test_pieces_are_runs_of_samples_whose_counts_and_bytes_are_those_of_their_rows(folder):
    manifest, faults = index_folder(folder, piece_bytes=20_000)
    assert not faults and (np.diff(manifest.pieces.first) > 2).all()
    for shard, name in enumerate(manifest.shards):
        index = read_index(folder, name)
        pieces = range(manifest.pieces.first[shard], manifest.pieces.first[shard + 1])
        rows = [int(manifest.pieces.first_row[piece]) for piece in pieces] + [len(index)]
        assert rows[0] == 0
        for number, (piece, low, high) in enumerate(zip(pieces, rows[:-1], rows[1:], strict=True)):
            assert manifest.pieces.start[piece] == index.starts()[low]
            assert manifest.pieces.end[piece] == index.ends()[low:high].max()
            assert manifest.pieces.end[piece] - manifest.pieces.start[piece] < 20_000 + 15_000, (
                "about the size asked for"
            )
            assert {manifest.pieces.of_row(shard, row) for row in range(low, high)} == {number}
            part = manifest.pieces.counts[piece]
            for language in range(len(LANGUAGES)):
                assert part[language].sum() == (index.language[low:high] == language).sum()
        assert (manifest.pieces.counts[pieces.start : pieces.stop].sum(0) == index.counts(Levels(BUDGETS))).all()


def test_other_patch_budgets_are_counted_without_an_index(folder):
    index_folder(folder, piece_bytes=20_000)
    other, _ = index_folder(folder, patch_budgets=(16, 200, 400))
    index_folder(folder, piece_bytes=20_000)
    for path in folder.glob("*.parquet"):
        path.unlink()
    counted = load_manifest(folder, (16, 200, 400))
    assert counted.patch_budgets == (16, 200, 400)
    assert (counted.counts == other.counts).all() and len(counted.pieces.start) > len(other.pieces.start)
    assert (np.add.reduceat(counted.pieces.counts, counted.pieces.first[:-1], axis=0) == other.counts).all()
    sizes = next(folder.glob("*.sizes"))
    sizes.write_bytes(sizes.read_bytes()[:-1])
    with pytest.raises(IndexProblem, match="2 for each of 60 samples"):
        load_manifest(folder, (16, 200))


def test_a_manifest_of_the_format_before_is_read(folder):
    new, _ = index_folder(folder)
    write_manifest_of_json(folder)
    old = load_manifest(folder)
    assert (old.counts == new.counts).all() and old.digest == new.digest
    assert list(old.shards) == list(new.shards) and list(old.sha256) == list(new.sha256)
    assert (old.pieces.end == new.sizes).all() and (np.diff(old.pieces.first) == 1).all()
    assert (load_manifest(folder, (200,)).counts == load_manifest(folder, (200,)).pieces.counts).all()


def test_columns_that_are_not_the_manifests_own_are_named(folder):
    index_folder(folder)
    columns = next(folder.glob("*.columns"))
    data = bytearray(columns.read_bytes())
    data[len(data) // 2] ^= 1
    columns.write_bytes(data)
    with pytest.raises(IndexProblem, match="has sha256"):
        load_manifest(folder)
    columns.unlink()
    with pytest.raises(IndexProblem, match=r"has no manifest-.*columns; make it with"):
        load_manifest(folder)
    index_folder(folder)
    assert len(list(folder.glob("manifest-*"))) == 2


def test_a_remote_manifest_is_kept_in_the_cache_and_fetched_again_if_damaged(folder, tmp_path):
    index_folder(folder)
    remote = load_manifest(f"file://{folder}", cache_folder=tmp_path / "cache")
    assert (remote.counts == load_manifest(folder).counts).all()
    (kept,) = (tmp_path / "cache").glob("*.columns")
    next(folder.glob("*.columns")).unlink()
    assert load_manifest(f"file://{folder}", cache_folder=tmp_path / "cache").digest == remote.digest
    index_folder(folder)
    kept.write_bytes(b"")
    assert load_manifest(f"file://{folder}", cache_folder=tmp_path / "cache").digest == remote.digest


def test_a_size_keeps_its_language_and_stops_at_the_largest_count():
    codes = size_codes(np.array([640, 16_000]), np.array([480, 16_000]), np.array([1, 0]), np.array([0, 8]))
    assert codes.tolist() == [(1 << 14) | 1200, LARGEST_COUNT | (8 << 32)]
