"""Every recipe loads over its stage's settings, gives its command, and says why each number is what it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from pipeline.config import Stage1Settings, Stage2Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "stages" / "recipes").glob("*.yaml"))


def test_there_is_a_recipe_for_each_usual_case():
    assert [path.stem for path in RECIPES] == [
        "few_pairs", "new_language", "product_retrieval", "regions_with_negatives"
    ]  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_by_the_command_that_it_names(recipe: Path):
    text = recipe.read_text(encoding="utf-8")
    stage = re.search(rf"launch/(stage[12])\.sh --config stages/recipes/{recipe.name} (.*)", text)
    assert stage
    overrides = stage[2].replace("START", "某个/模型").split()
    kind = Stage2Settings if stage[1] == "stage2" else Stage1Settings
    settings = load_settings(kind, [ROOT / "stages" / f"{stage[1]}.yaml", recipe], overrides)
    assert settings.model.start_from == settings.tokenizer.path == "某个/模型"
    assert settings.train.stop_after_worse and settings.train.keep_best and settings.evaluation.shards
    plain = load_settings(kind, ROOT / "stages" / f"{stage[1]}.yaml")
    assert settings.train.run_folder != plain.train.run_folder and settings.tune != plain.tune


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_number_of_a_recipe_has_its_reason_beside_it(recipe: Path):
    lines = [line for line in recipe.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    for line in lines:
        value, _, reason = line.partition(" #")
        if re.search(r": [\[\d]", value) and "shards:" not in value:
            assert len(reason.split()) >= 3, line
    assert isinstance(yaml.safe_load("\n".join(lines)), dict)
