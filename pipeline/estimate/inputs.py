"""From settings to what is estimated: the model, the work of a micro-batch, how it is sharded, and what was assumed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from pipeline.base.border import one_line, read_object
from pipeline.config import SettingsError, Stage1Settings, Stage2Settings
from pipeline.config.paths import deepspeed_file
from pipeline.data.levels import Level
from pipeline.data.manifest import IndexProblem, load_manifests
from pipeline.data.plan.plan import Plan
from pipeline.data.tokenizer import load_tokenizer
from pipeline.estimate.memory import BFLOAT, FLOAT, Sharding, Work
from pipeline.estimate.pieces import Piece, model_without_data, trace_pieces
from pipeline.model import FamilyConfig, FGCLIP2Config, preset_config
from pipeline.model.start import StartError, find_model, read_config
from pipeline.training.optimizer import parameter_groups
from pipeline.tuning.lora import add_lora
from pipeline.tuning.parts import choose_trained, trained

GEMMA_VOCABULARY = 256_000  # of SigLIP 2's tokenizer
IMAGE_BYTES = 130_000  # assumption: a photograph of half a megapixel as JPEG, with its record
SAMPLES = 1_000_000  # assumption where there are no shards to count
ONLY_FGCLIP2 = "time and memory are estimated of model.family=fgclip2 alone; measure a step with --dry-run"
BOXED_SHARE = 1.0  # assumption: every image of stage 2 has regions


@dataclass(frozen=True)
class Data:
    """What the shards say, or what is assumed of them."""

    samples: int
    bytes_a_sample: float
    levels: dict[Level, float]  # share of the samples by patch budget and number of frames
    steps_an_epoch: int
    regions_an_image: float
    assumed: bool


def model_config(settings: Stage1Settings, notes: list[str]) -> FGCLIP2Config:
    """The configuration of the model that the settings would train; what had to be assumed goes into ``notes``.

    Raises:
        SettingsError: model.start_from holds no model, or the family is not FG-CLIP 2.
    """
    start = settings.model.start_from
    if settings.model.family != "fgclip2":
        raise SettingsError(f"model.family is {settings.model.family}; {ONLY_FGCLIP2}")
    if start:
        try:
            return _with_temporal(read_config(find_model(start), None)[0], settings)
        except StartError as error:
            notes.append(f"{error}; the preset {settings.model.preset} is taken")
    vocabulary = GEMMA_VOCABULARY
    try:
        vocabulary = load_tokenizer(settings.tokenizer.path).vocab_size
    except (ValueError, OSError):
        notes.append(
            f"tokenizer.path {settings.tokenizer.path} cannot be read; {GEMMA_VOCABULARY:,} ids are assumed, as "
            "SigLIP 2 has"
        )
    try:
        return _with_temporal(preset_config(settings.model.preset, vocabulary), settings)
    except ValueError as error:
        raise SettingsError(str(error)) from error


def _with_temporal(config: FGCLIP2Config, settings: Stage1Settings) -> FGCLIP2Config:
    """With the size of the temporal weights that the run would add."""
    frames = settings.data.clip_frames
    wanted = frames and settings.trains_regions and settings.model.region_frames == "transformer"
    if wanted and not config.temporal_layers:
        config.temporal_layers, config.temporal_frames = settings.model.temporal_layers, frames[-1]
    return config


def estimated_config(config: FamilyConfig) -> FGCLIP2Config:
    """The configuration of a model that can be estimated.

    Raises:
        SettingsError: it is of another family.
    """
    if not isinstance(config, FGCLIP2Config):
        raise SettingsError(f"the model is of type {config.model_type}; {ONLY_FGCLIP2}")
    return config


def read_data(settings: Stage1Settings, notes: list[str]) -> Data:
    """Counts of the shards, or assumptions where there are none yet."""
    batch = settings.train.global_batch_size
    try:
        budgets, frames = settings.data.patch_budgets, settings.data.clip_frames
        manifests = load_manifests(settings.data.shards, settings.data)
        plan = Plan(manifests, settings.data, settings.train.seed, batch)
        steps = plan.steps_per_epoch()
    except (IndexProblem, OSError) as error:
        every = [Level(budget, count) for budget in budgets for count in (frames or [1])]
        levels = {level: 1 / len(every) for level in every}
        notes.append(
            f"data.shards: {one_line(error)}; {SAMPLES:,} samples of {IMAGE_BYTES:,} bytes with as many "
            "images at each patch budget are assumed"
            + (f", all of them clips of {' or '.join(map(str, frames))} frames" if frames else "")
        )
        regions = float(settings.data.max_regions_per_image)
        size = float(IMAGE_BYTES * sum(level.frames * share for level, share in levels.items()))
        return Data(SAMPLES, size, levels, max(1, SAMPLES // batch), regions, True)
    counts = sum(manifest.counts.sum((0, 1)) for manifest in manifests)[: plan.levels.num_used]
    samples = int(sum(manifest.samples.sum() for manifest in manifests))
    size = float(sum(manifest.sizes.sum() for manifest in manifests))
    regions = float(sum(manifest.regions.sum() for manifest in manifests)) / max(samples, 1)
    every = plan.levels.all_used()
    shares = {level: float(n) / max(float(counts.sum()), 1.0) for level, n in zip(every, counts, strict=True)}
    most = min(regions, settings.data.max_regions_per_image)
    return Data(
        samples, size / max(samples, 1), {level: share for level, share in shares.items() if share}, steps, most, False
    )


def work_of(
    settings: Stage1Settings, config: FGCLIP2Config, images: float, patches: int, data: Data, frames: int = 1
) -> Work:
    """A micro-batch of a rank. Every region is assumed to have its own texts, and as many negatives as are read.

    Args:
        images: the frames of clips are counted. frames: of a clip; 1 for images.
    """
    text = config.text_config
    work = Work(images, patches, text.max_position_embeddings, text.longtext_len, frames=frames)
    if not isinstance(settings, Stage2Settings):
        return work
    regions = work.samples * data.regions_an_image
    texts = regions * (1 + settings.data.max_negatives + settings.data.long_phrase_probability)
    return replace(
        work,
        regions=regions,
        region_texts=texts,
        hard_rows=regions,
        boxed_images=images * BOXED_SHARE,
    )


def keeps_activations(settings: Stage1Settings, config: FGCLIP2Config) -> Callable[[str], bool]:
    """Whether the layer of a parameter keeps what its gradient needs.

    A layer with a low-rank addition is taken to keep as much as one that trains whole.
    """
    layers = {"vision": config.vision_config.num_hidden_layers, "text": config.text_config.num_hidden_layers}
    whole = {tower: "full" for tower in ("vision", "text") if getattr(settings.tune, tower) == "lora"}
    return trained(settings.tune.model_copy(update=whole), layers, settings.trains_regions)


def sharding_of(settings: Stage1Settings, config: FGCLIP2Config, ranks: int, stage: int, *, on_cpu: bool) -> Sharding:
    """How ZeRO ``stage`` divides the model over ``ranks``.

    Raises:
        SettingsError: train.deepspeed_config cannot be read.
    """
    model = model_without_data(config)
    whole = sum(parameter.numel() for parameter in model.parameters())
    with torch.device("meta"):
        add_lora(model, settings.tune)
    choose_trained(model, settings.tune, settings.trains_regions)
    groups = parameter_groups(model.named_parameters(), settings.optimizer)
    sizes = [sum(parameter.numel() for parameter in group["params"]) for group in groups]
    zero = read_zero(settings)
    return Sharding(
        stage=stage,
        ranks=ranks,
        total=sum(parameter.numel() for parameter in model.parameters()),
        trained=sum(sizes),
        largest_group=max(sizes),
        reduce_bucket=int(zero.get("reduce_bucket_size", 5e8)),
        prefetch_bucket=int(zero.get("stage3_prefetch_bucket_size", 5e7)),
        max_reuse=int(zero.get("stage3_max_reuse_distance", 1e9)),
        on_cpu=on_cpu,
        taught=whole if settings.teacher.weight else 0,
        weight_bytes=BFLOAT if settings.train.weights == "bf16" else FLOAT,
    )


def read_zero(settings: Stage1Settings) -> dict:
    """The ``zero_optimization`` of train.deepspeed_config.

    Raises:
        SettingsError: no such file, or it is no JSON object with that key.
    """
    path = deepspeed_file(settings.train)
    try:
        return dict(read_object(path)["zero_optimization"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"train.deepspeed_config {path} cannot be read ({type(error).__name__}: {error}); "
            "launch/ has zero1.json to zero3.json"
        ) from error


def pieces_of(settings: Stage1Settings, config: FGCLIP2Config, patches: int, *, products: bool = True) -> list[Piece]:
    """The model's pieces at a patch budget under the settings; see :func:`trace_pieces`."""
    return trace_pieces(
        config,
        patches,
        settings.train.precision,
        settings.trains_regions,
        keeps_activations(settings, config),
        products=products,
        weights=settings.train.weights,
    )
