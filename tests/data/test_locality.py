"""The order of a global batch: the same samples, so placed that a node reads its own part of every shard."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.base.constants import LANGUAGES
from pipeline.config import DataSettings
from pipeline.data.columns import PieceTable
from pipeline.data.manifest import Manifest
from pipeline.data.plan import Plan
from pipeline.data.plan.locality import is_home, num_bins, order_of, place_of

BUDGETS = (128, 256)
PIECES = 8


def manifest_in_pieces(shards: int, samples: int, seed: int = 0) -> Manifest:
    """Shards of ``samples`` samples in PIECES pieces, of random languages and budgets."""
    draws = np.random.default_rng(seed)
    counts = draws.multinomial(samples // PIECES, [0.4, 0.2, 0.3, 0.1], size=shards * PIECES)
    counts = counts.reshape(-1, len(LANGUAGES), len(BUDGETS)).astype(np.int32)
    first = np.arange(shards + 1) * PIECES
    rows = np.tile(np.arange(PIECES) * (samples // PIECES), shards)
    table = PieceTable(first, rows, rows * 100, (rows + samples // PIECES) * 100, counts)
    whole = counts.reshape(shards, PIECES, len(LANGUAGES), len(BUDGETS)).sum(1)
    totals, nothing = whole.sum((1, 2)), [""] * shards
    names = [f"{n}.tar" for n in range(shards)]
    return Manifest("x", BUDGETS, names, totals * 100, nothing, nothing, totals, totals, totals, whole, {}, table)


@pytest.mark.parametrize("mixed", [False, True])
def test_the_piece_of_a_sample_is_the_one_whose_counts_hold_it(mixed):
    manifest = manifest_in_pieces(6, 160)
    settings = DataSettings(patch_budgets=list(BUDGETS), window_shards=2, one_budget_per_batch=not mixed)
    plan = Plan([manifest], settings, 3, 32)
    for number in range(plan.steps_per_epoch()):
        batch = plan.batch(0, number)
        language = LANGUAGES.index(batch.language)
        for shard, ordinal, piece in zip(batch.shards, batch.ordinals, batch.pieces, strict=True):
            counts = manifest.pieces.counts[shard * PIECES : (shard + 1) * PIECES, language]  # [pieces, budgets]
            # Ordinals run over budgets first, and within a budget over pieces.
            owners = [owner for budget in counts.T for owner, count in enumerate(budget) for _ in range(count)]
            assert owners[ordinal] == piece


def test_an_order_keeps_the_samples_and_every_size_has_bins():
    draws = np.random.default_rng(1)
    for size in (1, 2, 7, 12, 64, 97, 1000, 4096):
        shard, piece = draws.integers(0, 5, size), draws.integers(0, 3, size)
        order = order_of(place_of(shard, piece, np.full(size, 3)), shard, np.arange(size))
        assert sorted(order.tolist()) == list(range(size)) and size % num_bins(size) == 0
    assert num_bins(61_440) == 960


@pytest.mark.parametrize("nodes", [2, 5, 8])
def test_a_node_reads_its_own_share_of_the_pieces_in_every_group(nodes):
    size = 2560
    plan = Plan([manifest_in_pieces(60, 1600)], DataSettings(patch_budgets=list(BUDGETS)), 0, size)
    away = total = 0
    for number in range(plan.steps_per_epoch()):
        batch = plan.batch(0, number)
        for node in range(nodes):
            mine = slice(size * node // nodes, size * (node + 1) // nodes)
            home = is_home(batch.places[mine], size, [mine])
            away, total = away + int((~home).sum()), total + len(home)
    assert total == size * plan.steps_per_epoch()
    assert away / total < 0.12
    places = place_of(np.repeat(np.arange(60), PIECES), np.tile(np.arange(PIECES), 60), np.full(60 * PIECES, PIECES))
    slices = [slice(size * node // nodes, size * (node + 1) // nodes) for node in range(nodes)]
    homes = np.sum([is_home(places, size, [part]) for part in slices], axis=0)
    assert (homes >= 1).all() and homes.mean() < 1.3
