"""The settings of a run, group by group: frozen, typed, checked when they are made.

Durations are counted in optimizer steps unless the name says otherwise. Each group is read by the package of its name.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from pipeline.base.constants import MAX_FRAMES, PATCH_BUDGETS
from pipeline.base.languages import Language
from pipeline.config.augmentation import AugmentSettings
from pipeline.config.group import Group, one_or_several
from pipeline.config.model import ModelSettings
from pipeline.config.tuning import TeacherSettings, TuneSettings

MAX_SEED = 2**63 - 1  # what every random generator in use takes
MAX_SECONDS = 30 * 86400.0  # a month; the timers of sockets and locks overflow above some centuries
LEAST_RATE = 1e-12  # a float32 weight of 1e-5 does not move by less


class TokenizerSettings(Group):
    """``path`` is a folder with ``tokenizer.model`` (data_tools tokenizer) or a saved Gemma/SigLIP 2 tokenizer."""

    path: str = "tokenizer"


class DataSettings(Group):
    """Where the shards are and how an epoch is planned and read."""

    shards: list[str] = Field(default_factory=lambda: ["shards/train"])  # folders or fsspec URLs of indexed shards
    source_weights: list[float] | None = None  # one a folder; None: by number of samples
    language_weights: dict[Language, float] | None = None  # None: by number of samples
    patch_budgets: list[int] = Field(default_factory=lambda: list(PATCH_BUDGETS))  # patches an image fills, ascending
    # Frames at which clips are trained, ascending; a clip goes to the largest number that it has. Empty: images alone.
    clip_frames: list[int] = []
    one_budget_per_batch: bool = True  # False: a batch mixes budgets and pays for the highest
    keep_aspect_ratio: bool = True  # False: every image is stretched to the largest square of its budget
    window_shards: int = Field(16, ge=1)  # samples are shuffled within windows of this many shuffled shards
    keep_last_batch: bool = False  # a last, smaller batch of each group instead of dropping and counting the remainder
    last_batch_multiple: int = Field(8, ge=1)  # its size is a multiple of this
    num_workers: int | None = Field(None, ge=0)  # decoding processes a rank; None: the cores that it may use, less one
    prefetch_batches: int = Field(2, ge=1)  # a worker
    max_regions_per_image: int = Field(4, ge=1)
    max_negatives: int = Field(10, ge=1)
    long_phrase_probability: float = Field(0.5, ge=0, le=1)  # a region's text is its long phrase this often
    short_caption_prefix: dict[Language, str] = {"en": "a photo of "}
    max_image_megapixels: float = Field(100.0, gt=0, le=1e6)  # larger ones are refused before they are decoded
    max_fault_share: float = Field(0.01, ge=0, le=1)  # the run stops when more of the samples seen were replaced
    min_samples_before_fault_stop: int = Field(1000, ge=1)
    cache_folder: str | None = None  # for remote shards, on a disk of this machine
    cache_gigabytes: float | None = Field(None, gt=0, le=1e9)  # None: what the plan needs
    prefetch_gigabytes: float = Field(2.0, ge=0, le=1e9)  # a rank fetches this much ahead of training
    store_connections: int = Field(16, ge=1)  # requests a rank makes at one time
    augment: AugmentSettings = AugmentSettings()
    # Train from tars without an index (docs/data.md, Streaming). The others below are for this alone.
    streaming: bool = False
    streaming_shuffle_samples: int = Field(2000, ge=1)  # a worker's buffer
    streaming_epoch_samples: int = Field(1_000_000, ge=1)  # what train.epochs counts
    streaming_language: str = "en"  # of captions whose records name none
    streaming_caption: Literal["short", "long"] = "short"  # what a caption of .txt or another .json is
    store_patience_seconds: float = Field(300.0, gt=0, le=MAX_SECONDS)  # a store that is away for longer ends the run

    @field_validator("shards", mode="before")
    @classmethod
    def _one_folder(cls, shards: object) -> object:
        return one_or_several(shards)

    @model_validator(mode="after")
    def _streams_as_stored(self) -> DataSettings:
        if self.streaming and self.augment.is_on:
            raise ValueError(
                "data.streaming is true and data.augment is on; what is drawn of an image follows from its epoch, "
                "which a stream does not know: index the shards, or set the shares of data.augment to 0"
            )
        return self

    @model_validator(mode="after")
    def _streams_images(self) -> DataSettings:
        if self.streaming and self.clip_frames:
            raise ValueError(
                f"data.streaming is true and data.clip_frames {self.clip_frames}; a stream reads images alone: index "
                "the shards and set data.streaming=false"
            )
        return self

    @field_validator("clip_frames")
    @classmethod
    def _several_frames(cls, frames: list[int]) -> list[int]:
        if sorted(set(frames)) != frames or (frames and not 2 <= frames[0] <= frames[-1] <= MAX_FRAMES):
            raise ValueError(f"must be strictly ascending, from 2 to {MAX_FRAMES}, as [8] or [4, 8, 16]")
        return frames

    @field_validator("patch_budgets")
    @classmethod
    def _ascending(cls, budgets: list[int]) -> list[int]:
        if not budgets or sorted(set(budgets)) != budgets or budgets[0] < 1:
            raise ValueError("must be positive and strictly ascending, as [128, 256, 576, 784, 1024]")
        return budgets


class GlobalLossSettings(Group):
    """L_global over all pairs of all ranks."""

    kind: Literal["auto", "sigmoid", "softmax"] = "auto"  # auto: softmax for model.family=fgclip1, else sigmoid
    short_weight: float = Field(1.0, ge=0)
    long_weight: float = Field(1.0, ge=0)
    chunk_size: int = Field(2048, ge=1)  # texts whose logits exist at one time
    exchange: Literal["auto", "ring", "gather"] = "auto"  # ring: of the sigmoid alone


class RegionLossSettings(Group):
    """The four losses of stage 2. Defaults are the paper's; docs/objectives.md explains the public code's choices."""

    fgv_weight: float = Field(0.1, ge=0)
    fgt_weight: float = Field(0.5, ge=0)
    tic_weight: float = Field(0.1, ge=0)
    cmr_weight: float = Field(0.4, ge=0)
    hard_inbatch_weight: float = Field(0.0, ge=0)  # public code's extra term X (its effective weight there: 0.3)
    hard_inbatch_scope: Literal["all_ranks", "local_rank"] = "all_ranks"
    fgv_scope: Literal["all_ranks", "local_rank"] = "all_ranks"
    fgv_same_phrase_is_negative: bool = False  # True: as the public code
    cmr_similarity: Literal["cosine", "scaled_logit"] = "cosine"  # public code: scaled_logit
    cmr_margin_max: float | None = None  # public code: 10; also clamps at 0
    tic_scope: Literal["all_ranks", "local_rank"] = "all_ranks"
    tic_num_texts: int = Field(10, ge=1)
    tic_exclude_above: float = 0.95
    tic_exclusion: Literal["leave_out", "zero_similarity"] = "leave_out"  # public code: zero_similarity
    memory_bank_size: int = Field(0, ge=0)  # regions kept as further negatives of L_FGV; 0 switches the bank off
    memory_bank_start_step: int = Field(0, ge=0)


class LearningRates(Group):
    """Factors on the peak learning rate, by parameter group."""

    text: float = Field(1.0, ge=0)
    vision: float = Field(1.0, ge=0)
    new_heads: float = Field(1.0, ge=0)  # the heads for long texts and for regions, and what reads clips
    scales: float = Field(1.0, ge=0)
    adapters: float = Field(1.0, ge=0)  # the low-rank additions of tune.vision and tune.text

    @model_validator(mode="after")
    def _some(self) -> LearningRates:
        if not any((self.text, self.vision, self.new_heads, self.scales)):
            raise ValueError("all of text, vision, new_heads and scales are 0, so nothing would train; raise one")
        return self


class OptimizerSettings(Group):
    """AdamW with warm-up and cosine decay."""

    peak_learning_rate: float = Field(1e-6, ge=LEAST_RATE)
    final_learning_rate_share: float = Field(0.0, ge=0, le=1)  # of the peak, reached at the last step
    group_factors: LearningRates = LearningRates()
    weight_decay: float = Field(0.001, ge=0)  # none on biases, norms and scales
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.98, ge=0, lt=1)
    epsilon: float = Field(1e-6, gt=0)
    warmup_steps: int = Field(300, ge=0)
    gradient_clip_norm: float = Field(1.0, gt=0)
    layer_decay: float = Field(1.0, gt=0, le=1)  # the rate of each layer of a tower is this times that of the next


class TrainSettings(Group):
    """The loop."""

    run_folder: str = "runs/run"
    seed: int = Field(0, ge=0, le=MAX_SEED)
    global_batch_size: int = Field(256, ge=1)  # images an optimizer step, over all ranks
    # Images of a rank that pass through the model at one time: a number, {patch budget: number}, or "auto" (from the
    # device's memory). None: accumulation_steps says how many micro-batches a rank makes of its share.
    micro_batch_size: int | Literal["auto"] | dict[int, int] | None = None
    accumulation_steps: int = Field(1, ge=1)
    # cached: the losses of a step are those of its whole global batch, for one more forward; separate: each
    # micro-batch is a batch of its own, with as many fewer negatives
    accumulation: Literal["cached", "separate"] = "cached"
    epochs: float | None = Field(1.0, gt=0, le=1e6)
    max_steps: int | None = Field(None, ge=1)  # overrides epochs
    precision: Literal["fp32", "bf16"] = "bf16"
    # fp32: bf16 products by autocast over float32 weights; bf16: weights and activations too, beside a float32 copy of
    # the weights that ZeRO divides among the ranks. The losses are float32 in both.
    weights: Literal["fp32", "bf16"] = "fp32"
    tf32: bool = True  # on GPUs: products that stay float32 use ten bits of mantissa; never those of the losses
    deepspeed_config: str = "launch/zero2.json"
    log_every_steps: int = Field(10, ge=1)
    health_every_steps: int = Field(100, ge=1)
    checkpoint_every_steps: int | None = Field(1000, ge=1)
    checkpoint_every_minutes: float | None = Field(None, gt=0)
    keep_last_checkpoints: int = Field(2, ge=1)
    keep_every_steps: int | None = Field(None, ge=1)
    keep_best: str | None = None  # the checkpoint with the highest of this score is kept too, as fgovd/hard
    stop_after_worse: int | None = Field(None, ge=1)  # evaluations in a row that do not better keep_best end the run
    # any fsspec URL: whole checkpoints are copied there behind training, and a resume takes the newest of both places
    remote_folder: str | None = None
    resume: str = "auto"  # "auto": the newest whole checkpoint of run_folder; "never"; or a checkpoint's folder
    accept_changes: list[str] = []  # settings that a resume may change although it would refuse them
    max_skipped_steps_in_a_row: int = Field(10, ge=1)
    timeout_seconds: float = Field(600.0, gt=0, le=MAX_SECONDS)  # a rank silent for longer ends the run
    threads_per_rank: int | None = Field(None, ge=1)  # None: the machine's cores divided by its ranks

    @model_validator(mode="after")
    def _length(self) -> TrainSettings:
        if self.epochs is None and self.max_steps is None:
            raise ValueError("epochs and max_steps are both null; give one of them")
        return self

    @model_validator(mode="after")
    def _weights_fit_precision(self) -> TrainSettings:
        if self.weights == "bf16" and self.precision == "fp32":
            raise ValueError(
                "weights is bf16 and precision fp32; bf16 weights compute in bf16: set precision=bf16 or weights=fp32"
            )
        return self

    @model_validator(mode="after")
    def _micro_batches(self) -> TrainSettings:
        size = self.micro_batch_size
        sizes = size.values() if isinstance(size, dict) else [size] if isinstance(size, int) else []
        if any(number < 1 for number in sizes):
            raise ValueError(f"micro_batch_size is {size}; it must be at least 1 image")
        if size is not None and self.accumulation_steps > 1:
            raise ValueError(
                f"micro_batch_size is {size} and accumulation_steps {self.accumulation_steps}; the one follows from "
                "the other, so give one of them"
            )
        return self


class TrackingSettings(Group):
    """MLflow. The default store is sqlite in the run folder's parent."""

    enabled: bool = True
    uri: str | None = None
    experiment: str = "fine-grained-vlm"
    run_name: str | None = None
    description: str | None = None  # Markdown, above what the run says of itself
    tags: dict[str, str] = Field(default_factory=dict)
    continues: str | None = None  # a run folder that this run goes on from; None: the one of model.start_from
    group: str | None = None  # the name of a study: its runs (seeds, ablations) stand under one parent run
    metrics: Literal["usual", "all"] = "usual"  # what the store gets; metrics.jsonl has all of them
    system_metrics: bool = True  # processors, memory, network and devices of every host
    upload_model: bool = False  # copy the exported weights into the store; False: note where they are
    register_as: str | None = None  # the name of a registered model of which the export becomes a version
    register_alias: str = "newest"


class EvaluationSettings(Group):
    """Evaluation while training."""

    every_steps: int | None = Field(None, ge=1)
    tasks: list[str] = Field(default_factory=list)
    data: str | None = None  # the evaluation set's folder
    shards: list[str] = []  # held-out shards: the training losses on them, without an update, as validation/…
    validation_batches: int = Field(8, ge=1)  # of them, always the same
    pictures_every_steps: int | None = Field(None, ge=1)  # fixed images of ``data`` with boxes, scores and a map

    @field_validator("shards", "tasks", mode="before")
    @classmethod
    def _one_folder(cls, names: object) -> object:
        return one_or_several(names)


class Stage1Settings(Group):
    """Global alignment with short and long captions."""

    model: ModelSettings = ModelSettings()
    tune: TuneSettings = TuneSettings()
    teacher: TeacherSettings = TeacherSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    data: DataSettings = DataSettings()
    global_loss: GlobalLossSettings = GlobalLossSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    train: TrainSettings = TrainSettings()
    tracking: TrackingSettings = TrackingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @model_validator(mode="after")
    def _teacher_is_known(self) -> Stage1Settings:
        if self.teacher.weight and self.model.start_from is None:
            raise ValueError(
                f"teacher.weight is {self.teacher.weight:g} and model.start_from null; the teacher is the model that "
                "training starts from, so name one or set teacher.weight=0"
            )
        return self

    @model_validator(mode="after")
    def _best_is_known(self) -> Stage1Settings:
        if self.train.stop_after_worse and not self.train.keep_best:
            raise ValueError(
                f"train.stop_after_worse is {self.train.stop_after_worse} and train.keep_best null; name the score "
                "that decides, as train.keep_best=validation/loss"
            )
        return self

    @model_validator(mode="after")
    def _family_can(self) -> Stage1Settings:
        if self.global_loss_kind == "softmax" and self.global_loss.exchange == "ring":
            raise ValueError(
                "global_loss.exchange is ring and the loss a softmax, which needs the texts of all ranks at once; set "
                "global_loss.exchange=auto, or global_loss.kind=sigmoid"
            )
        if self.model.family == "fgclip1" and self.train.micro_batch_size == "auto":
            raise ValueError(
                "train.micro_batch_size is auto and model.family fgclip1, whose memory nothing estimates; give a number"
            )
        return self

    @model_validator(mode="after")
    def _some_loss(self) -> Stage1Settings:
        weights = self.loss_weights()
        if not any(weights.values()):
            raise ValueError(f"every loss weight is 0 ({', '.join(weights)}), so nothing would train; raise one")
        return self

    def loss_weights(self) -> dict[str, float]:
        """The weight of every loss of this stage, by the name of its setting."""
        return {f"global_loss.{name}": getattr(self.global_loss, name) for name in ("short_weight", "long_weight")}

    @property
    def global_loss_kind(self) -> Literal["sigmoid", "softmax"]:
        """Which form L_global has."""
        if self.global_loss.kind == "auto":
            return "softmax" if self.model.family == "fgclip1" else "sigmoid"
        return self.global_loss.kind

    @property
    def collective_seconds(self) -> float:
        """How long a collective may take: while one rank waits for a remote store, the others wait in one for it."""
        is_remote = any("://" in shards for shards in self.data.shards)
        return self.train.timeout_seconds + (self.data.store_patience_seconds if is_remote else 0.0)

    @property
    def trains_regions(self) -> bool:
        """Whether the stage reads boxes and trains what only the region losses reach."""
        return False

    @property
    def losses_of_negatives(self) -> dict[str, float]:
        """The weights, by their settings' names, of losses whose members are regions with negatives."""
        return {}


class Stage2Settings(Stage1Settings):
    """Stage 1's settings and the region losses."""

    region_loss: RegionLossSettings = RegionLossSettings()

    def loss_weights(self) -> dict[str, float]:
        names = ("fgv_weight", "fgt_weight", "tic_weight", "cmr_weight", "hard_inbatch_weight")
        return super().loss_weights() | {f"region_loss.{name}": getattr(self.region_loss, name) for name in names}

    @property
    def trains_regions(self) -> bool:
        return True

    @property
    def losses_of_negatives(self) -> dict[str, float]:
        names = ("fgt_weight", "cmr_weight", "tic_weight", "hard_inbatch_weight")
        return {f"region_loss.{name}": getattr(self.region_loss, name) for name in names}
