"""Images and strings in, named unit vectors out: what a user of a trained model calls.

    model = FGCLIP2.load("runs/stage2")
    model.encode_image(images).embeds @ model.encode_text(["a red cup", "一只红色的杯子"]).embeds.T
    model.encode_regions(image, [[40, 30, 200, 180]]).embeds

This file and those beside it import nothing of the project but each other, so that an exported folder can carry them
and transformers alone can run them. Letters: N images or texts, R boxes, h and w patches, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast, Siglip2Tokenizer
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from .embeddings import unit
from .folder import StartError, read_object, shown
from .layout import ImageLayout

if TYPE_CHECKING:
    from PIL.Image import Image

TextKind = Literal["short", "long", "region"]
MOST_BUDGETS, LARGEST_BUDGET = 64, 1 << 20  # patch budgets of a model, and patches of one
BOX_FORMATS = ("pixels", "normalised")
CHARACTERS_PER_ID = 32  # a text is cut to this many characters an id before it is split, so that a book costs no more


@dataclass(frozen=True)
class ImageFeatures:
    embeds: Tensor  # [N, D] float32, unit norm


@dataclass(frozen=True)
class TextFeatures:
    embeds: Tensor  # [N, D] float32, unit norm


@dataclass(frozen=True)
class RegionFeatures:
    embeds: Tensor  # [R, D] float32, unit norm
    boxes: Tensor  # [R, 4] float32, normalised xyxy


@dataclass(frozen=True)
class DenseMap:
    similarity: Tensor  # [N, h, w] float32: cosine of every patch with every phrase
    features: Tensor  # [h, w, D] float32, unit norm
    phrases: tuple[str, ...]


class Inference(PreTrainedModel):
    """The uses of a trained model; ``FGCLIP2`` adds the towers.

    Every result lies on the model's device, in float32 whatever the weights are in.
    """

    config: Any  # a configuration of one of the families

    def encode_vision(
        self,
        pixel_values: Tensor,
        pixel_attention_mask: Tensor | None,
        spatial_shapes: Tensor,
        layout: ImageLayout | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Patches [N, P, D] and image embeddings [N, D]; see ``FGCLIP2``, as for the next three."""
        raise NotImplementedError

    def dense_features(self, patches: Tensor, pixel_attention_mask: Tensor | None) -> Tensor:
        raise NotImplementedError

    def pool_regions(
        self, dense: Tensor, spatial_shapes: Tensor, boxes: Tensor, region_image: Tensor
    ) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def encode_ids(self, ids: Tensor, kind: TextKind) -> Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def encode_image(
        self, images: Image | Sequence[Image], *, batch_size: int = 32, max_num_patches: int | None = None
    ) -> ImageFeatures:
        """One embedding an image, taken as it is: turn it upright first if its EXIF data says so.

        ``max_num_patches`` None: the smallest of ``patch_budgets`` that holds each image's own patches.
        """
        images = as_list(images)
        parts: dict[int, Tensor] = {}
        budgets = [max_num_patches or self._patch_budget(image) for image in images]
        for budget in sorted(set(budgets)):
            numbers = [number for number, own in enumerate(budgets) if own == budget]
            for start in range(0, len(numbers), batch_size):
                some = numbers[start : start + batch_size]
                embeds = self.encode_vision(*self._pixels([images[number] for number in some], budget))[1]
                parts.update(zip(some, embeds, strict=True))
        in_order = [parts[number] for number in range(len(images))]
        return ImageFeatures(torch.stack(in_order) if in_order else self._nothing())

    @torch.no_grad()
    def encode_text(
        self, texts: str | Sequence[str], *, kind: TextKind = "short", batch_size: int = 256
    ) -> TextFeatures:
        """One embedding a text. ``kind``: "short" captions, "long" captions, or "region" phrases.

        Raises:
            ValueError: an empty text, something that is not a string, or an unknown kind.
        """
        ids = self.text_ids(texts, kind)
        parts = [self.encode_ids(some.to(self.device), kind) for some in ids.split(batch_size)] if len(ids) else []
        return TextFeatures(torch.cat(parts) if parts else self._nothing())

    @torch.no_grad()
    def encode_regions(
        self,
        image: Image,
        boxes: Sequence[Sequence[float]] | Tensor,
        *,
        box_format: str = "pixels",
        max_num_patches: int | None = None,
    ) -> RegionFeatures:
        """One embedding a box (x1, y1, x2, y2) of one image, in its pixels or, in the word "normalised", in 0 to 1.

        Raises:
            ValueError: a box without area, outside the image, not finite, or not of four numbers.
        """
        image = as_list(image)[0]
        checked = normalised_boxes(boxes, image.size, box_format).to(self.device)
        if not len(checked):
            return RegionFeatures(self._nothing(), checked)
        pixels, mask, grids = self._pixels([image], max_num_patches or self._patch_budget(image))
        dense = self.dense_features(self.encode_vision(pixels, mask, grids)[0], mask)
        which = torch.zeros(len(checked), dtype=torch.int64, device=self.device)
        embeds, valid = self.pool_regions(dense, grids, checked, which)
        if not valid.all():
            number = int((~valid).nonzero()[0])
            raise ValueError(
                f"boxes[{number}] is {checked[number].tolist()}; it has no area in float32: make it larger"
            )
        return RegionFeatures(embeds, checked)

    @torch.no_grad()
    def dense_map(
        self,
        image: Image,
        phrases: str | Sequence[str],
        *,
        kind: TextKind = "region",
        max_num_patches: int | None = None,
    ) -> DenseMap:
        """Cosine of every patch of one image with every phrase."""
        image = as_list(image)[0]
        phrases = (phrases,) if isinstance(phrases, str) else tuple(phrases)
        texts = self.encode_text(phrases, kind=kind).embeds
        pixels, mask, grids = self._pixels([image], max_num_patches or self._patch_budget(image))
        dense = self.dense_features(self.encode_vision(pixels, mask, grids)[0], mask)[0]
        height, width = grids[0].tolist()
        features = unit(dense[: height * width]).view(height, width, -1)
        return DenseMap(torch.einsum("hwd,nd->nhw", features, texts), features, phrases)

    # --- what those need -------------------------------------------------------------------------------------------

    def text_ids(self, texts: str | Sequence[str], kind: TextKind = "short") -> Tensor:
        """Ids [N, T] as the text tower was trained: lower-cased, an end token, padded on the right."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        for number, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"texts[{number}] is {text!r}; it must be a string with something in it")
        text_config = self.config.text_config
        length = text_config.longtext_len if kind == "long" else text_config.max_position_embeddings
        tokenizer = self.tokenizer
        padding = 0 if self.start_ids else tokenizer.pad_token_id or 0  # CLIP's takes no part
        ids = torch.full((len(texts), length), padding, dtype=torch.int64)
        for row, text in zip(ids, texts, strict=True):
            some = text[: length * CHARACTERS_PER_ID].lower()
            # "<eos>" in a caption is text, not an end: special tokens are split like other words
            found = tokenizer.encode(some, add_special_tokens=False, split_special_tokens=True)
            start = self.start_ids
            found = [*start, *found[: length - 1 - len(start)], tokenizer.eos_token_id]
            row[: len(found)] = torch.tensor(found)
        return ids

    @property
    def start_ids(self) -> list[int]:
        """The ids that begin every text."""
        return []

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer saved with the weights, read when first needed; or one that was assigned."""
        if "_tokenizer" not in self.__dict__:
            self.tokenizer = _load_tokenizer(self.name_or_path)
        return self.__dict__["_tokenizer"]

    @tokenizer.setter
    def tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        rows = self.config.text_config.vocab_size
        if len(tokenizer) != rows:
            raise ValueError(
                f"the tokenizer has {len(tokenizer)} ids but the model's token table has {rows} rows; "
                "use the tokenizer that the model was trained with"
            )
        self.__dict__["_tokenizer"] = tokenizer

    @property
    def patch_budgets(self) -> tuple[int, ...] | None:
        """Numbers of patches that an image may be resized to fill, ascending: as saved with the weights, or assigned.

        None: the folder is another maker's, or there is none, and nothing was assigned.
        """
        if "_patch_budgets" not in self.__dict__:
            saved = self._saved_for_images()
            budgets = saved.get("patch_budgets", saved.get("levels"))  # the name in folders written before
            self.__dict__["_patch_budgets"] = None if budgets is None else _checked_budgets(budgets)
        return self.__dict__["_patch_budgets"]

    @patch_budgets.setter
    def patch_budgets(self, budgets: Sequence[int]) -> None:
        self.__dict__["_patch_budgets"] = _checked_budgets(budgets)

    def _patch_budget(self, image: Image) -> int:
        """The smallest budget that holds the image's own patches; without budgets, what the image processor takes."""
        if self.patch_budgets is None:
            saved = self._saved_for_images().get("max_num_patches")
            return self.config.vision_config.num_patches if saved is None else _checked_budgets([saved])[0]
        side = self.config.vision_config.patch_size
        count = (image.width // side) * (image.height // side)
        return next((budget for budget in self.patch_budgets if budget >= count), self.patch_budgets[-1])

    def _saved_for_images(self) -> dict[str, Any]:
        file = Path(self.name_or_path or ".") / "preprocessor_config.json"
        return read_object(file) if file.is_file() else {}

    def _pixels(self, images: list[Image], max_num_patches: int) -> tuple[Tensor, Tensor, Tensor]:
        processor = Siglip2ImageProcessorPil(
            patch_size=self.config.vision_config.patch_size, max_num_patches=max_num_patches
        )
        done = processor([image.convert("RGB") for image in images], return_tensors="pt")
        return tuple(done[name].to(self.device) for name in processor.model_input_names)

    def _nothing(self) -> Tensor:
        return torch.zeros(0, self.config.text_config.projection_size, device=self.device)

    # --- the names by which the public checkpoints' own code is called ---------------------------------------------

    def get_image_features(self, pixel_values: Tensor, pixel_attention_mask: Tensor, spatial_shapes: Tensor) -> Tensor:
        """Image embeddings [N, D] of a SigLIP 2 processor's output."""
        return self.encode_vision(pixel_values, pixel_attention_mask, spatial_shapes)[1]

    def get_image_dense_feature(
        self, pixel_values: Tensor, pixel_attention_mask: Tensor, spatial_shapes: Tensor
    ) -> Tensor:
        """Patch features [N, P, D] in the joint space, not normalised."""
        patches, _ = self.encode_vision(pixel_values, pixel_attention_mask, spatial_shapes)
        return self.dense_features(patches, pixel_attention_mask)

    def get_text_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        walk_type: Literal["short", "long", "box"] = "short",
    ) -> Tensor:
        """Text embeddings [N, D]; ``walk_type`` is "short", "long" or "box".

        ``attention_mask`` comes along from tokenizers and is not used: the tower was trained without one.
        """
        return self.encode_ids(input_ids, "region" if walk_type == "box" else walk_type)


def normalised_boxes(boxes: Sequence[Sequence[float]] | Tensor, size: tuple[int, int], box_format: str) -> Tensor:
    """Boxes [R, 4] as fractions of an image of ``size`` (width, height), checked one by one.

    Raises:
        ValueError: with the number of the box, its value and the rule.
    """
    if box_format not in BOX_FORMATS:
        raise ValueError(f"box_format is {box_format!r}; it must be one of {', '.join(BOX_FORMATS)}")
    table = torch.as_tensor(boxes, dtype=torch.float64).reshape(-1, 4) if len(boxes) else torch.zeros(0, 4).double()
    if len(table) != len(boxes):
        raise ValueError(f"boxes has shape {tuple(torch.as_tensor(boxes).shape)}; give a list of (x1, y1, x2, y2)")
    width, height = size if box_format == "pixels" else (1, 1)
    for number, (x1, y1, x2, y2) in enumerate(table.tolist()):
        if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
            raise ValueError(
                f"boxes[{number}] is ({x1:g}, {y1:g}, {x2:g}, {y2:g}) in {box_format}; 0 <= x1 < x2 <= {width} and "
                f"0 <= y1 < y2 <= {height} must hold: clip it to the image, or give the other box_format"
            )
        if box_format == "pixels" and max(x2, y2) <= 1:
            raise ValueError(
                f"boxes[{number}] is ({x1:g}, {y1:g}, {x2:g}, {y2:g}), less than one pixel; "
                'for fractions of the image write box_format="normalised"'
            )
    return (table / torch.tensor([width, height, width, height])).float()


def _checked_budgets(budgets: Any) -> tuple[int, ...]:
    """Raises StartError for what is no ascending list of numbers of patches."""
    is_list = isinstance(budgets, list | tuple) and 0 < len(budgets) <= MOST_BUDGETS
    found = tuple(one for one in budgets if isinstance(one, int) and 0 < one <= LARGEST_BUDGET) if is_list else ()
    if not is_list or len(found) != len(budgets) or sorted(set(found)) != list(found):
        raise StartError(
            f"patch_budgets is {shown(repr(budgets))}; it must be positive and ascending, as [128, 256, 576]"
        )
    return found


def as_list(images: Image | Sequence[Image]) -> list[Image]:
    """Images in a list. Raises ``ValueError`` for what is no PIL image."""
    in_list: list[Image] = list(images) if isinstance(images, Sequence) else [images]
    for number, image in enumerate(in_list):
        if not hasattr(image, "convert"):
            raise ValueError(f"images[{number}] is a {type(image).__name__}; it must be a PIL image")
    return in_list


def _load_tokenizer(folder: str | None) -> PreTrainedTokenizerBase:
    if not folder:
        raise ValueError("this model was not loaded from a folder with a tokenizer; assign model.tokenizer one")
    names = ("tokenizer.json", "tokenizer.model")
    if Path(folder).is_dir() and not any((Path(folder) / name).is_file() for name in names):
        raise ValueError(f"{folder} holds neither {names[0]} nor {names[1]}; copy the model's tokenizer files there")
    if Path(folder).is_dir() and not (Path(folder) / names[0]).is_file():
        return Siglip2Tokenizer.from_pretrained(folder)
    # Not AutoTokenizer: it would find the folder's own code for the model and ask on the terminal whether to run it.
    return PreTrainedTokenizerFast.from_pretrained(folder)
