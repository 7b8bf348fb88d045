"""What of a model trains, and what keeps it near its start: the settings ``tune`` and ``teacher``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.group import Group

# Of a tower: everything; its last layers and its final norm; nothing; or low-rank additions to its linear layers.
TowerMode = Literal["full", "last_n", "frozen", "lora"]
ATTENTION_AND_MLP = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


class TuneSettings(Group):
    """What trains. What does not holds no gradient and no optimizer state.

    A tower is ``vision_model`` or ``text_model`` without its head; the heads are those two (of FG-CLIP 1
    ``visual_projection`` and ``text_projection``), ``longtext_head`` and, in stage 2, ``boxtext_head`` and
    ``dense_feature_head`` (``roi_projection``).
    """

    vision: TowerMode = "full"
    text: TowerMode = "full"
    last_n: int = Field(2, ge=1)  # layers, of each tower whose choice is last_n
    heads: Literal["full", "frozen"] = "full"
    scales: Literal["full", "frozen"] = "full"  # temperatures and bias of the losses
    lora_rank: int = Field(8, ge=1, le=1024)
    lora_alpha: float = Field(16.0, gt=0)  # an addition is multiplied by alpha / rank
    # Names of linear layers, or ends of their names, as q_proj or layers.3.mlp.fc1
    lora_layers: list[str] = Field(default_factory=lambda: list(ATTENTION_AND_MLP))

    @field_validator("lora_layers")
    @classmethod
    def _some_layers(cls, layers: list[str]) -> list[str]:
        if not layers or not all(layers):
            raise ValueError(f"is {layers}; name the linear layers that get additions, as {list(ATTENTION_AND_MLP)}")
        return layers

    @model_validator(mode="after")
    def _something(self) -> TuneSettings:
        if (self.vision, self.text, self.heads, self.scales) == ("frozen",) * 4:
            raise ValueError("vision, text, heads and scales are all frozen, so nothing would train; free one")
        return self

    @property
    def has_lora(self) -> bool:
        """Whether a tower gets low-rank additions."""
        return "lora" in (self.vision, self.text)


class TeacherSettings(Group):
    """The model that training starts from, beside the one that trains (docs/objectives.md, L_teacher)."""

    weight: float = Field(0.0, ge=0)  # of the loss that keeps its similarities; 0: no teacher is loaded
