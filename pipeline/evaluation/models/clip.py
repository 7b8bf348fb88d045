"""CLIP folders of transformers, as evaluation models.

CLIP has one text path and one fixed image size. Long captions are cut to its 77 tokens, regions come from the
projected patch tokens, and where boxes or patches are asked for, the image is squeezed to a square instead of cropped;
the result files say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import transformers
from PIL import Image
from pydantic import Field, TypeAdapter
from torch import Tensor, nn

from pipeline.base.border import BorderError, one_line, validated
from pipeline.data.tokenizer import pretrained_tokenizer
from pipeline.evaluation.models.base import EncodedImages, EvaluationModel, Prepared
from pipeline.evaluation.results import EvaluationError
from pipeline.evaluation.scclip import Calibration, calibrated_patches
from pipeline.model.folder import StartError, check_depth, checked_tower, read_object, stored_shapes, weight_files
from pipeline.model.regions import pool_regions
from pipeline.model.start import LOAD_ERRORS

# Fields that only matter where weights are drawn at random.
UNREAD = frozenset({"initializer_range", "initializer_factor"})
# OpenAI's normalisation, for folders without preprocessor_config.json
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


Channel = Annotated[float, Field(strict=True, ge=0, le=1)]
Spread = Annotated[float, Field(strict=True, gt=1e-3, le=10)]


@dataclass(frozen=True)
class Preprocessing:
    """What is read of preprocessor_config.json; None: the model's own."""

    image_mean: tuple[Channel, Channel, Channel] | None = None
    image_std: tuple[Spread, Spread, Spread] | None = None


_PREPROCESSING: TypeAdapter[Preprocessing] = TypeAdapter(Preprocessing)


def _read_preprocessing(folder: Path) -> dict[str, Any]:
    file = folder / "preprocessor_config.json"
    return read_object(file) if file.is_file() else {}


def _checked_config(folder: Path, kind: type[transformers.PreTrainedConfig]) -> transformers.PreTrainedConfig:
    """The configuration of a folder with known fields alone, compared with the weights' headers before any is read.

    Raises:
        StartError: numbers out of range, or weights of other shapes.
    """
    values, file = read_object(folder / "config.json"), f"{folder}/config.json"
    towers = {}
    for name, tower in kind.sub_configs.items():
        known = frozenset(tower.__annotations__) - UNREAD
        towers[name] = checked_tower(values.get(name, {}), known, f"{file}: {name}")
    top = checked_tower(values, {"projection_dim"} & set(kind.__annotations__), file)
    config = kind(**towers, **top)
    shapes = stored_shapes(weight_files(folder))
    layers = {name: getattr(config, name).num_hidden_layers for name in towers}
    check_depth(layers, shapes, folder)
    if shapes is not None:
        with torch.device("meta"):
            model = getattr(transformers, kind.__name__.replace("Config", "Model"))(config)
        for name, weight in model.state_dict().items():
            if name in shapes and shapes[name] != tuple(weight.shape):
                rule = f"{name} is {list(shapes[name])}, config.json asks for {list(weight.shape)}"
                raise StartError(f"{folder} does not fit: {rule}")
    return config


class CLIPEvaluation(EvaluationModel):
    """A transformers ``CLIPModel`` with its tokenizer."""

    kind = "clip"
    has_class_token = True
    module_class = "CLIPModel"
    default_mean, default_std = CLIP_MEAN, CLIP_STD
    image_size: int  # pixels, of the square that the tower takes

    def __init__(
        self, module: nn.Module, tokenizer: Any, *, name: str = "clip", preprocessing: Preprocessing | None = None
    ) -> None:
        self.module, self.tokenizer, self.name = module, tokenizer, name
        vision = self.module.config.vision_config
        self.image_size, self.patch_size = int(vision.image_size), int(vision.patch_size)
        chosen = preprocessing or Preprocessing()
        self.mean = torch.tensor(chosen.image_mean or self.default_mean).view(3, 1, 1)
        self.std = torch.tensor(chosen.image_std or self.default_std).view(3, 1, 1)

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> CLIPEvaluation:
        """Read such a folder.

        Raises:
            EvaluationError: weights are missing, or there is no tokenizer.
        """
        loader = getattr(transformers, cls.module_class)
        try:
            config = _checked_config(folder, loader.config_class)
            module, report = loader.from_pretrained(
                folder, config=config, output_loading_info=True, local_files_only=True, trust_remote_code=False
            )
        except (StartError, *LOAD_ERRORS) as error:
            raise EvaluationError(f"{folder} does not load ({one_line(error)}); download it again") from error
        if report["missing_keys"]:
            missing = sorted(report["missing_keys"])
            raise EvaluationError(f"{folder} lacks {len(missing)} weights (first: {missing[0]}); download it again")
        tokenizer = pretrained_tokenizer(transformers.AutoTokenizer, folder)
        try:
            preprocessing = validated(_PREPROCESSING, _read_preprocessing(folder), "preprocessor_config.json")
        except (BorderError, StartError) as error:
            raise EvaluationError(f"{folder}: {one_line(error)}") from error
        return cls(module.to(device=device, dtype=dtype), tokenizer, name=str(folder), preprocessing=preprocessing)

    def prepare(self, image: Image.Image, dense: bool = False) -> Prepared:
        size = self.image_size
        if dense:
            return self._prepared(image.resize((size, size), Image.Resampling.BICUBIC))
        scale = size / min(image.size)
        wide, high = max(size, int(image.width * scale)), max(size, int(image.height * scale))
        left, top = (wide - size) // 2, (high - size) // 2
        resized = image.resize((wide, high), Image.Resampling.BICUBIC)
        return self._prepared(resized.crop((left, top, left + size, top + size)))

    def prepare_window(self, image: Image.Image) -> Prepared:
        wide, high = (max(side // self.patch_size, 1) * self.patch_size for side in image.size)
        return self._prepared(image.resize((wide, high), Image.Resampling.BICUBIC))

    def _prepared(self, image: Image.Image) -> Prepared:
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255
        return Prepared((pixels - self.mean) / self.std, tuple(pixels.shape[1:]))

    def encode_images(self, prepared: Sequence[Prepared], dense: bool = False) -> EncodedImages:
        tower = self.module.vision_model
        pixels = self._pixels(prepared)
        output = tower(pixel_values=pixels, interpolate_pos_encoding=self._stretched(pixels))
        embeds = nn.functional.normalize(self.module.visual_projection(output.pooler_output).float(), dim=-1).cpu()
        if not dense:
            return EncodedImages(embeds)
        return self._features(embeds, output.last_hidden_state[:, 1:], pixels)

    def encode_dense(self, prepared: Sequence[Prepared], calibration: Calibration | None) -> EncodedImages:
        if calibration is None:
            return self.encode_images(prepared, dense=True)
        pixels = self._pixels(prepared)
        mask, shapes = self._grid(pixels)
        tower = self.module.vision_model
        hidden = tower.pre_layrnorm(tower.embeddings(pixels, interpolate_pos_encoding=self._stretched(pixels)))
        patches = calibrated_patches(
            list(tower.encoder.layers),
            hidden,
            lambda block, states: block(states, None),
            mask=mask.bool(),
            grids=shapes,
            has_class_token=self.has_class_token,
            settings=calibration,
        )
        return self._features(torch.zeros(len(pixels), 0), patches, pixels)

    def _pixels(self, prepared: Sequence[Prepared]) -> Tensor:
        dtype = next(self.module.parameters()).dtype
        return torch.stack([one.pixels for one in prepared]).to(device=self.device, dtype=dtype)

    def _stretched(self, pixels: Tensor) -> bool:
        return tuple(pixels.shape[-2:]) != (self.image_size, self.image_size)

    def _grid(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        grid = [side // self.patch_size for side in pixels.shape[-2:]]
        mask = torch.ones(len(pixels), grid[0] * grid[1], dtype=torch.int32, device=pixels.device)
        return mask, torch.tensor([grid] * len(pixels), device=pixels.device)

    def _features(self, embeds: Tensor, patches: Tensor, pixels: Tensor) -> EncodedImages:
        mask, shapes = self._grid(pixels)
        dense = self.module.visual_projection(self.module.vision_model.post_layernorm(patches)).float()
        return EncodedImages(embeds, dense, mask, shapes)

    def encode_texts(self, texts: Sequence[str], kind: str) -> Tensor:
        self.check_kind(kind)
        length = self.module.config.text_config.max_position_embeddings
        ids = self.tokenizer(
            list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).to(self.device)
        output = self.module.text_model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"])
        return nn.functional.normalize(self.module.text_projection(output.pooler_output).float(), dim=-1).cpu()

    def pool_regions(self, features: EncodedImages, boxes: Tensor, image_index: Tensor) -> tuple[Tensor, Tensor]:
        boxes, image_index = boxes.to(self.device), image_index.to(self.device)
        pooled, valid = pool_regions(*features.patches(), boxes, image_index)
        return nn.functional.normalize(pooled, dim=-1).cpu(), valid.cpu()

    def text_path(self, kind: str) -> str:
        length = self.module.config.text_config.max_position_embeddings
        return f"CLIP's only text path, cut to {length} tokens" if kind != "short" else kind

    def region_path(self) -> str:
        return "RoIAlign 1x1 over the projected patch tokens of the image squeezed to a square; CLIP has no dense head"

    def settings(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "preparation": "short side to size and centre crop; squeezed to a square for boxes and patches",
            "dtype": str(next(self.module.parameters()).dtype).removeprefix("torch."),
        }
