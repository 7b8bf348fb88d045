"""Any number of ranks and workers, any interruption: the same global batches, to the bit."""

from __future__ import annotations

import pytest
import torch

from pipeline.config import DataSettings
from pipeline.data.batch import Batch
from pipeline.data.index import index_folder
from pipeline.data.loader import Reading, make_loader
from pipeline.data.manifest import IndexProblem
from pipeline.data.slices import Division
from tests.data.shards import write_shards

GLOBAL_BATCH = 12
STEPS = 11  # more than one epoch


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    kinds = [("en", 128), ("zh", 128), ("en", 256), ("zh", 256)]
    write_shards(folder, [[kinds[(i * 7 + shard) % 4] for i in range(24)] for shard in range(5)], regions=6)
    index_folder(folder)
    return folder


def read(
    shards, tokenizer, *, world=1, workers=0, parts=1, largest=None, separate=False, start=0, steps=STEPS, **settings
) -> list[list[Batch]]:
    """For each step, the micro-batches of all ranks in the order in which they make up the global batch."""
    by_rank = []
    for rank in range(world):
        made = DataSettings(shards=[str(shards)], num_workers=workers, window_shards=2, **settings)
        with make_loader(
            Reading(
                made,
                tokenizer,
                (24, 48),
                seed=5,
                global_batch_size=GLOBAL_BATCH,
                rank=rank,
                division=Division(world, parts, largest, separate),
                start_step=start,
                with_regions=True,
            )
        ) as loader:
            by_rank.append([[next(loader) for _ in range(loader.upcoming().parts)] for _ in range(steps)])
    if separate:
        return [[by_rank[rank][step][part] for part in range(parts) for rank in range(world)] for step in range(steps)]
    return [[batch for rank in range(world) for batch in by_rank[rank][step]] for step in range(steps)]


def keys(steps: list[list[Batch]]) -> list[list[str]]:
    return [[key for batch in batches for key in batch.keys] for batches in steps]


@pytest.fixture(scope="module")
def reference(shards, tokenizer):
    return read(shards, tokenizer)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_layouts_read_the_same_global_batches(shards, tokenizer, reference, world, workers):
    found = read(shards, tokenizer, world=world, workers=workers)
    assert keys(found) == keys(reference)
    for batches, (whole,) in zip(found, reference, strict=True):
        assert torch.equal(torch.cat([batch.pixel_values for batch in batches]), whole.pixel_values)
        assert torch.equal(torch.cat([batch.boxes for batch in batches]), whole.boxes)
        assert torch.equal(torch.cat([batch.long_ids for batch in batches]), whole.long_ids)
        texts = [batch.region_text_hash[batch.phrase_index] for batch in batches]
        assert torch.equal(torch.cat(texts), whole.region_text_hash[whole.phrase_index])


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize(("world", "parts"), [(2, 3), (3, 5), (5, 1), (3, 24), (24, 2)])
def test_any_number_of_ranks_and_micro_batches_reads_every_sample_once(
    shards, tokenizer, reference, world, parts, separate
):
    found = read(shards, tokenizer, world=world, parts=parts, workers=int(world < 3), separate=separate, steps=2)
    assert keys(found) == keys(reference)[:2]
    sizes = [len(batch) for batches in found for batch in batches]
    assert max(sizes) == -(-GLOBAL_BATCH // (world * parts)) and max(sizes) - min(sizes) <= 1


def test_the_number_of_micro_batches_follows_the_patch_budget(shards, tokenizer, reference):
    found = read(shards, tokenizer, world=2, largest={128: 6, 256: 5}, patch_budgets=[128, 256])
    assert keys(found) == keys(read(shards, tokenizer, patch_budgets=[128, 256]))
    for batches in found:
        parts = {128: [6, 6], 256: [3, 3, 3, 3]}[batches[0].pixel_values.shape[1]]
        assert [len(batch) for batch in batches] == parts
    assert len({len(batches) for batches in found}) == 2, "both patch budgets occur"


def test_an_empty_micro_batch_has_the_shapes_of_the_others(shards, tokenizer):
    (batches,) = read(shards, tokenizer, world=GLOBAL_BATCH + 1, steps=1)
    (empty,) = [batch for batch in batches if len(batch) == 0]
    first = max(batches, key=len)
    stand_in = empty.stand_in()
    for name, tensor in first.tensors().items():
        assert empty.tensors()[name].dtype == stand_in.tensors()[name].dtype == tensor.dtype, name
        assert empty.tensors()[name].shape[1:] == stand_in.tensors()[name].shape[1:] == tensor.shape[1:], name
    assert len(stand_in) == 1 and stand_in.pixel_attention_mask.sum() == 1 and len(stand_in.boxes) == 0


@pytest.mark.parametrize(("start", "world", "workers"), [(1, 3, 0), (4, 2, 2), (9, 4, 1), (10, 1, 2)])
def test_a_resume_with_other_numbers_goes_on_with_the_same_batches(shards, tokenizer, reference, start, world, workers):
    found = read(shards, tokenizer, world=world, workers=workers, start=start, steps=STEPS - start)
    assert keys(found) == keys(reference)[start:]
    ids = [batch.region_ids[batch.phrase_index] for batches in found for batch in batches]
    whole = [batch.region_ids[batch.phrase_index] for batches in reference[start:] for batch in batches]
    assert torch.equal(torch.cat(ids), torch.cat(whole)), "phrases are drawn anew after a resume"


def test_a_resume_draws_other_phrases_in_another_epoch(shards, tokenizer, reference):
    """Otherwise the long phrases of half the regions would never be read."""
    seen: dict[str, set[tuple[int, ...]]] = {}
    for batches in reference:
        for batch in batches:
            for image, key in enumerate(batch.keys):
                texts = batch.region_text_hash[batch.phrase_index[batch.region_image == image]]
                seen.setdefault(key, set()).add(tuple(texts.tolist()))
    assert sum(len(texts) > 1 for texts in seen.values()) > 10


def test_held_batches_keep_their_pixels(shards, tokenizer, reference):
    """Recycled memory must never change under a batch that is still in use."""
    found = read(shards, tokenizer, workers=2, prefetch_batches=1)  # all batches are held until here
    for (batch,), (whole,) in zip(found, reference, strict=True):
        assert torch.equal(batch.pixel_values, whole.pixel_values)


def test_kept_last_batches_need_not_divide(shards, tokenizer):
    settings = {"keep_last_batch": True, "last_batch_multiple": 2}
    one = read(shards, tokenizer, **settings)
    assert keys(one) == keys(read(shards, tokenizer, world=4, parts=2, **settings))
    assert any(len(batch) < GLOBAL_BATCH for (batch,) in one)


def test_missing_folders_and_missing_manifests_name_the_remedy(tmp_path, tokenizer):
    def load(folder):
        make_loader(
            Reading(
                DataSettings(shards=[str(folder)]),
                tokenizer,
                (24, 48),
                seed=0,
                global_batch_size=2,
            )
        )

    with pytest.raises(IndexProblem, match="does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(IndexProblem, match="holds no .tar"):
        load(tmp_path)
    write_shards(tmp_path, [[("en", 128)]])
    with pytest.raises(IndexProblem, match="python -m data_tools index"):
        load(tmp_path)


def test_losses_without_a_member_are_named_before_the_first_step(tmp_path, tokenizer):
    write_shards(tmp_path, [[("en", 128)] * 4], regions=1)
    for path in tmp_path.glob("*.tar"):
        path.write_bytes(path.read_bytes().replace(b'"negatives"', b'"negativex"'))
    index_folder(tmp_path)

    def load(**weights):
        return make_loader(Reading(
            DataSettings(shards=[str(tmp_path)]), tokenizer, (24, 48), seed=0, global_batch_size=2,
            with_regions=True, of_negatives=weights,
        ))  # fmt: skip

    with pytest.raises(IndexProblem, match=r"fgt_weight is 0\.5, but no region.*4 regions, 0 negatives.*--fgovd"):
        load(fgt_weight=0.5, tic_weight=0.0)
    load(fgt_weight=0.0).close()
