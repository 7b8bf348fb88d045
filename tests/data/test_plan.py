"""Promises of the plan, on random data sets: nothing twice, nothing lost uncounted, any batch found at once."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest

from pipeline.base.constants import LANGUAGES
from pipeline.config import DataSettings
from pipeline.data.columns import whole_shards
from pipeline.data.manifest import IndexProblem, Manifest
from pipeline.data.plan import Plan
from pipeline.data.slices import Division

LEVELS = (128, 256, 576)


def manifest_of(counts: np.ndarray, patch_budgets=LEVELS) -> Manifest:
    """``counts`` is [shards, languages, budgets]."""
    samples, shards = counts.sum((1, 2)), len(counts)
    names = [f"part-{i:05d}.tar" for i in range(shards)]
    nothing = [""] * shards
    pieces = whole_shards(samples, counts)
    return Manifest("x", patch_budgets, names, samples, nothing, nothing, samples, samples, samples, counts, {}, pieces)


def random_manifest(draws: random.Random, shards: int) -> Manifest:
    # Groups that are often empty or tiny are where carrying over goes wrong.
    sizes = draws.choices([0, 0, 1, 2, 5, 17, 40], k=shards * 2 * len(LEVELS))
    return manifest_of(np.array(sizes, dtype=np.int32).reshape(shards, 2, len(LEVELS)))


def random_case(seed: int) -> tuple[list[Manifest], DataSettings, int]:
    draws = random.Random(seed)
    size = draws.choice([1, 4, 8, 16])
    most = 20 if size > 1 else 5  # batches of one sample are many with few shards, too
    manifests = [random_manifest(draws, draws.randint(2, most)) for _ in range(draws.randint(1, 3))]
    settings = DataSettings(
        patch_budgets=list(LEVELS),
        window_shards=draws.choice([1, 2, 5, 16]),
        one_budget_per_batch=draws.random() < 0.7,
        keep_last_batch=draws.random() < 0.4,
        last_batch_multiple=draws.choice([1, 2, 4]),
        source_weights=[draws.uniform(0.2, 1) for _ in manifests] if draws.random() < 0.4 else None,
        language_weights={"en": 0.7, "zh": 0.3} if draws.random() < 0.4 else None,
    )
    return manifests, settings, size


def entries(plan: Plan, epoch: int) -> list[tuple[str, int, int]]:
    found = []
    for number in range(plan.steps_per_epoch(epoch)):
        batch = plan.batch(epoch, number)
        found += [(batch.language, *pair) for pair in zip(batch.shards.tolist(), batch.ordinals.tolist(), strict=True)]
    return found


@pytest.mark.parametrize("seed", range(24))
def test_an_epoch_holds_every_sample_once_but_the_counted_remainder(seed):
    manifests, settings, size = random_case(seed)
    plan = Plan(manifests, settings, seed, size)
    by_language = np.concatenate([m.counts for m in manifests]).sum(2)
    for epoch in (0, 1, 7):
        found = entries(plan, epoch)
        assert len(set(found)) == len(found), "a sample is met twice"
        for language, shard, ordinal in found:
            assert 0 <= ordinal < by_language[shard, LANGUAGES.index(language)]
        groups = plan.group_counts(epoch)
        rests = [group.rest for group in groups]
        left = [rest % settings.last_batch_multiple if settings.keep_last_batch else rest for rest in rests]
        assert len(found) == sum(taken for _, _, taken, *_ in groups) - sum(left)
        if settings.source_weights is None and settings.language_weights is None:
            assert sum(taken for _, _, taken, *_ in groups) == by_language.sum()


@pytest.mark.parametrize("seed", range(10))
def test_a_batch_holds_one_language_and_one_level(seed):
    manifests, settings, size = random_case(seed)
    settings = settings.model_copy(update={"one_budget_per_batch": True})
    plan = Plan(manifests, settings, seed, size)
    counts = np.concatenate([m.counts for m in manifests])
    for number in range(plan.steps_per_epoch()):
        batch = plan.batch(0, number)
        ends = counts[batch.shards, LANGUAGES.index(batch.language)].cumsum(1)
        patch_budgets = (batch.ordinals[:, None] >= ends).sum(1)
        assert {LEVELS[patch_budget] for patch_budget in patch_budgets} == {batch.patch_budget}


def test_mixed_batches_take_the_highest_level_of_their_images():
    counts = np.zeros((4, 2, 3), dtype=np.int32)
    counts[:, 0] = [[3, 0, 0], [3, 0, 0], [3, 0, 1], [3, 2, 0]]
    plan = Plan([manifest_of(counts)], DataSettings(patch_budgets=list(LEVELS), one_budget_per_batch=False), 0, 15)
    assert plan.steps_per_epoch() == 1
    assert plan.batch(0, 0).patch_budget == 576


def test_batches_do_not_depend_on_what_was_asked_before():
    manifests, settings, size = random_case(3)
    forward = Plan(manifests, settings, 3, size)
    order = list(range(forward.steps_per_epoch(2)))
    expected = [forward.batch(2, n) for n in order]
    for n in reversed(order):
        alone = Plan(manifests, settings, 3, size).batch(2, n)
        assert np.array_equal(alone.shards, expected[n].shards)
        assert np.array_equal(alone.ordinals, expected[n].ordinals)


def test_the_order_is_pinned_so_that_a_new_release_resumes_old_runs():
    counts = np.full((6, 2, 3), 5, dtype=np.int32)
    plan = Plan([manifest_of(counts)], DataSettings(patch_budgets=list(LEVELS), window_shards=2), 11, 8)
    batch = plan.batch(1, 4)
    assert (batch.language, batch.patch_budget) == ("en", 576)
    found = list(zip(batch.shards.tolist(), batch.ordinals.tolist(), strict=True))
    assert found == [(2, 11), (2, 12), (2, 13), (1, 10), (1, 11), (1, 12), (1, 13), (1, 14)]


def test_epochs_and_seeds_differ_in_order():
    counts = np.full((30, 2, 3), 20, dtype=np.int32)
    settings = DataSettings(patch_budgets=list(LEVELS), window_shards=4)
    plan = Plan([manifest_of(counts)], settings, 0, 16)
    first, second = entries(plan, 0), entries(plan, 1)
    other_seed = entries(Plan([manifest_of(counts)], settings, 1, 16), 0)
    for one, other in ((first, second), (first, other_seed)):
        same = sum(a == b for a, b in zip(one, other, strict=False))
        assert same < len(one) * 0.05


def test_steps_are_located_over_all_epochs():
    for seed in range(6):
        manifests, settings, size = random_case(seed)
        plan = Plan(manifests, settings, seed, size)
        places = [(e, n) for e in range(4) for n in range(plan.steps_per_epoch(e))]
        steps = [*range(0, len(places), 7), len(places) - 1]
        assert [Plan(manifests, settings, seed, size).locate(step) for step in steps] == [places[s] for s in steps]


def test_weights_set_the_mix_and_no_sample_is_starved_over_epochs():
    counts = np.zeros((20, 2, 3), dtype=np.int32)
    counts[:, 0, 0], counts[:, 1, 1] = 30, 10
    settings = DataSettings(patch_budgets=list(LEVELS), language_weights={"en": 0.5, "zh": 0.5}, window_shards=4)
    plan = Plan([manifest_of(counts)], settings, 0, 1)
    met: dict[tuple, int] = {}
    for epoch in range(6):
        found = entries(plan, epoch)
        english = sum(language == "en" for language, *_ in found)
        assert abs(english / len(found) - 0.5) < 0.06
        for entry in found:
            met[entry] = met.get(entry, 0) + 1
    english = [met.get(("en", shard, ordinal), 0) for shard in range(20) for ordinal in range(30)]
    assert min(english) == max(english) == 2, "a third of the English samples an epoch, so each twice in six"


def test_source_weights_and_language_weights_hold_together():
    draws = np.random.default_rng(0)
    manifests = [manifest_of(draws.integers(1, 30, (40, 2, 3)).astype(np.int32)) for _ in range(2)]
    settings = DataSettings(patch_budgets=list(LEVELS), source_weights=[3, 1], language_weights={"en": 0.2, "zh": 0.8})
    plan = Plan(manifests, settings, 0, 4)
    found = entries(plan, 0)
    assert abs(sum(language == "zh" for language, *_ in found) / len(found) - 0.8) < 0.02
    assert abs(sum(plan.source_of(shard)[0] == 0 for _, shard, _ in found) / len(found) - 0.75) < 0.02


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"source_weights": [1.0, 2.0]}, "2 numbers for 1"),
        ({"source_weights": [0.0]}, "above 0"),
        ({"source_weights": [-1.0]}, "0 or more"),
        ({"language_weights": {"en": 1.0, "zh": 1.0}}, "no sample"),
    ],
)
def test_weights_that_cannot_hold_are_refused(weights, words):
    counts = np.zeros((3, 2, 3), dtype=np.int32)
    counts[:, 0] = 5
    with pytest.raises(IndexProblem, match=words):
        Plan([manifest_of(counts)], DataSettings(patch_budgets=list(LEVELS), **weights), 0, 2)


def test_too_few_samples_for_one_batch_say_so():
    with pytest.raises(IndexProblem, match="lower train.global_batch_size"):
        Plan([manifest_of(np.ones((2, 2, 3), dtype=np.int32))], DataSettings(patch_budgets=list(LEVELS)), 0, 64)


@pytest.mark.parametrize("seed", range(8))
def test_replacements_are_of_the_group_outside_the_batch_and_differ_by_slot(seed):
    draws = random.Random(seed)
    counts = np.array(draws.choices([5, 9, 20], k=8 * 6), dtype=np.int32).reshape(8, 2, 3)
    plan = Plan([manifest_of(counts)], DataSettings(patch_budgets=list(LEVELS), window_shards=4), seed, 4)
    for number in range(plan.steps_per_epoch()):
        batch = plan.batch(0, number)
        own = set(zip(batch.shards.tolist(), batch.ordinals.tolist(), strict=True))
        taken = [plan.replacement(batch, slot, attempt) for attempt in range(3) for slot in range(4)]
        assert not own & set(taken)
        assert len(set(taken[:4])) == 4, "two slots took one replacement"
        ends = counts[:, LANGUAGES.index(batch.language)].cumsum(1)
        for shard, ordinal in taken + [plan.replacement(batch, 0, attempt) for attempt in range(8, 30)]:
            assert LEVELS[(ordinal >= ends[shard]).sum()] == batch.patch_budget


@pytest.mark.parametrize("separate", [False, True])
def test_a_division_cuts_a_global_batch_without_gap_whatever_the_layout(separate):
    for size, world, parts in ((24, 1, 1), (24, 2, 1), (25, 3, 2), (5, 4, 3), (0, 2, 2)):
        division = Division(world, parts, separate=separate)
        ranks = [
            [range(size)[division.part(size, rank, part, parts)] for part in range(parts)] for rank in range(world)
        ]
        ordered = zip(*ranks, strict=True) if separate else ranks
        assert [n for row in ordered for share in row for n in share] == list(range(size))
        sizes = [sum(len(share) for share in rank) for rank in ranks]
        assert separate or max(sizes) == division.slice_size(size) and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("mixed", [False, True])
def test_the_shape_of_a_batch_is_known_without_its_entries(mixed):
    counts = np.array([[[5, 9], [0, 4]], [[3, 2], [7, 7]]], dtype=np.int32)
    settings = DataSettings(
        patch_budgets=[128, 256], one_budget_per_batch=not mixed, keep_last_batch=True, last_batch_multiple=1
    )
    plan = Plan([manifest_of(counts, (128, 256))], settings, 0, 4)
    for number in range(plan.steps_per_epoch()):
        batch = plan.batch(0, number)
        assert plan.shape_of(0, number) == (len(batch), (batch.patch_budget, 1))


def test_a_large_plan_is_fast_and_seeking_costs_the_same_everywhere():
    """A tenth of the simulation that benchmarks.loader runs in full, with room for a slow machine."""
    counts = np.random.default_rng(0).multinomial(10000, [0.1] * 10, size=16000).reshape(-1, 2, 5).astype(np.int32)
    start = time.process_time()
    plan = Plan([manifest_of(counts, (128, 256, 576, 784, 1024))], DataSettings(), 0, 4096)
    last = plan.steps_per_epoch() - 1
    plan.batch(0, last)
    assert time.process_time() - start < 3

    def seconds(number: int) -> float:
        begin = time.process_time()
        plan.batch(0, number)
        return time.process_time() - begin

    assert seconds(last // 2) < 0.2
    assert seconds(5) < 0.2
