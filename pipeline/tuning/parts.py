"""The parts of the model by their parameters' names, and which of them train.

A tower's depth runs from its embeddings (0) over its layers (1 … L) to its final norm and head (L + 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import nn

from pipeline.config import SettingsError, TuneSettings

# roi_projection of FG-CLIP 1, temporal of models of clips
NEW_HEADS = ("longtext_head.", "boxtext_head.", "dense_feature_head.", "roi_projection.", "temporal.")
# What only the region losses reach; stage 1 would give these parameters no gradient at all.
REGION_ONLY = (
    "boxtext_head.",
    "dense_feature_head.",
    "roi_projection.",
    "temporal.",
    "logit_scale_finegraind",
    "logit_scale_hardneg",
)
TOWERS = ("vision", "text")
HEADS = ("vision_model.head.", "text_model.head.", "visual_projection.", "text_projection.", *NEW_HEADS)
FINAL_NORMS = ("vision_model.post_layernorm.", "text_model.final_layer_norm.")
LORA = ".lora_"  # in the names that peft gives its additions
LAYERS = ".encoder.layers."


def part_of(name: str) -> str:
    """``vision`` or ``text`` (the towers without their heads), ``heads`` or ``scales``."""
    if name.startswith("logit_"):
        return "scales"
    if name.startswith(HEADS):
        return "heads"
    return "vision" if name.startswith("vision_model.") else "text"


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to a low-rank addition."""
    return LORA in name


def depth_of(name: str, layers: Mapping[str, int]) -> tuple[int, int]:
    """How deep a parameter lies, and the greatest depth of its tower; heads and scales lie at the greatest."""
    part = part_of(name)
    last = layers.get(part, max(layers.values())) + 1
    if part not in TOWERS or name.startswith(FINAL_NORMS):
        return last, last
    _, found, rest = name.partition(LAYERS)
    return (int(rest.partition(".")[0]) + 1 if found else 0), last


def num_layers(names: Iterable[str]) -> dict[str, int]:
    """``{"vision": L, "text": L}`` read off the names of a model's parameters."""
    found = dict.fromkeys(TOWERS, 0)
    for name in names:
        _, layer, rest = name.partition(LAYERS)
        if layer and part_of(name) in TOWERS:
            found[part_of(name)] = max(found[part_of(name)], int(rest.partition(".")[0]) + 1)
    return found


def trained(tune: TuneSettings, layers: Mapping[str, int], with_regions: bool) -> Callable[[str], bool]:
    """Whether a parameter of that name trains, in a model of so many layers a tower.

    Raises:
        SettingsError: ``tune.last_n`` is more than a tower has.
    """
    for tower in TOWERS:
        if getattr(tune, tower) == "last_n" and tune.last_n > layers[tower]:
            raise SettingsError(
                f"tune.last_n is {tune.last_n}, but the {tower} tower has {layers[tower]} layers; "
                f"give at most that, or tune.{tower}=full"
            )

    def is_trained(name: str) -> bool:
        if not with_regions and name.startswith(REGION_ONLY):
            return False
        part = part_of(name)
        mode = getattr(tune, part)
        if mode == "lora":
            return is_adapter(name)
        if mode == "last_n":
            depth, last = depth_of(name, layers)
            return depth >= last - tune.last_n
        return mode == "full"

    return is_trained


def choose_trained(model: nn.Module, tune: TuneSettings, with_regions: bool) -> None:
    """Let a model's parameters train or not, as the settings say; low-rank additions come before.

    Raises:
        SettingsError: as :func:`trained`, or nothing is left that trains.
    """
    named = dict(model.named_parameters())
    is_trained = trained(tune, num_layers(named), with_regions)
    for name, parameter in named.items():
        parameter.requires_grad_(is_trained(name))
    if not any(parameter.requires_grad for parameter in named.values()):
        raise SettingsError(f"tune is {tune.model_dump()}; with it nothing trains, so set one part to full")
