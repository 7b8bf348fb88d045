"""The step that a dry run takes: the largest patch budget, and of its batches one with the most texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import Stage2Settings, load_settings
from pipeline.data.indexed import IndexedLoader, make_indexed_loader
from pipeline.data.loader import Reading
from pipeline.data.slices import Division
from pipeline.data.tokenizer import load_tokenizer
from tests.end_to_end.runs import Material


def loader(material: Material, **more) -> IndexedLoader:
    settings = load_settings(Stage2Settings, None, material.settings(Path("run"), "data.num_workers=0"))
    tokenizer = load_tokenizer(settings.tokenizer.path)
    return make_indexed_loader(Reading(settings.data, tokenizer, (24, 60), 0, 4, with_regions=True, **more))


def test_the_largest_step_has_the_highest_budget_and_the_most_regions_with_their_texts(material: Material):
    with loader(material) as source:
        chosen, steps = source.largest_step(), source.steps_per_epoch()
        sizes = {}
        for step in range(steps):
            batch = next(source)
            # the index counts regions and negatives; a batch holds each text once
            sizes[step] = (batch.pixel_attention_mask.shape[1], len(batch.boxes) + int(batch.hard_mask[:, 1:].sum()))
    largest = [step for step in range(steps) if sizes[step][0] == 80]
    assert chosen in largest and len(largest) > 1
    assert sizes[chosen] == max(sizes[step] for step in largest[:16])


def test_a_smaller_budget_in_larger_micro_batches_can_be_the_largest(material: Material):
    division = Division(largest={48: 4, 64: 4, 80: 1})
    with loader(material, division=division) as source:
        assert source.plan.shape_of(0, source.largest_step())[1].patch_budget == 64


def test_a_loader_begins_at_any_step_but_not_once_it_was_read(material: Material):
    with loader(material) as source, loader(material, start_step=3) as later:
        source.start_at(3)
        assert source.upcoming() == later.upcoming()
        assert next(source).keys == next(later).keys
        with pytest.raises(RuntimeError, match="cannot begin at step 5"):
            source.start_at(5)
