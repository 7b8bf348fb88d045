"""Models of transformers with tiny random weights, saved to disk for the tests that load them by path."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

CAPTION = "a small red bus stands near the old stone house while two people walk to it ."
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<image>"]


def save_captioner(folder: Path, caption: str | None = CAPTION) -> Path:
    """A LLaVA of one layer and a few thousand weights; trained, if asked, until it says ``caption`` of any image."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    words = sorted({*CAPTION.split(), *(caption or "").split(), "USER:", "ASSISTANT:"})
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *words])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, do_center_crop=True
        ),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="USER: {% for part in messages[0]['content'] %}{% if part['type'] == 'image' %}<image> "
        "{% else %}{{ part['text'] }} {% endif %}{% endfor %}ASSISTANT:",
    )
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**sizes, image_size=16, patch_size=8, projection_dim=32),
        text_config=LlamaConfig(
            **sizes,
            vocab_size=len(vocabulary),
            max_position_embeddings=512,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
        ),
        image_token_index=vocabulary["<image>"],
        image_seq_length=4,
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 3, 0
    if caption is not None:
        _teach(model, processor, caption)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _teach(model: LlavaForConditionalGeneration, processor: LlavaProcessor, caption: str) -> None:
    from PIL import Image

    inputs = processor(images=[Image.new("RGB", (16, 16))], text=["USER: <image> ASSISTANT:"], return_tensors="pt")
    answer = torch.tensor([processor.tokenizer.encode(caption) + [3]])
    start = inputs["input_ids"].shape[1]
    ids = torch.cat([inputs["input_ids"], answer], dim=1)
    labels = ids.clone()
    labels[:, :start] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        loss = model(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=inputs["pixel_values"], labels=labels
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


DETECTOR_WORDS = "a an red blue white small large bus car cat dog house with on the of two in".split()


def save_owlv2(folder: Path) -> Path:
    """An OWLv2 of one layer whose image is 64 pixels wide."""
    from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2Processor
    from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil

    torch.manual_seed(0)
    # The text tower takes the state at the highest id, so the end token comes last.
    vocabulary = {word: n for n, word in enumerate(["!", "<unk>", "<start>", *DETECTOR_WORDS, "<end>"])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[(name, vocabulary[name]) for name in ("<start>", "<end>")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="!", unk_token="<unk>", eos_token="<end>", model_max_length=16
    )
    processor = Owlv2Processor(Owlv2ImageProcessorPil(size={"height": 64, "width": 64}), tokenizer)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Owlv2Config(
        text_config={
            **sizes,
            "vocab_size": len(vocabulary),
            "pad_token_id": 0,
            "bos_token_id": 2,
            "eos_token_id": len(vocabulary) - 1,
        },
        vision_config={**sizes, "image_size": 64, "patch_size": 16},
        projection_dim=32,
    )
    _tamed(Owlv2ForObjectDetection(config)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_grounding_dino(folder: Path, mm: bool = False) -> Path:
    """A Grounding DINO (or MM Grounding DINO) of one layer a part and 12 queries."""
    from transformers import (
        BertConfig,
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoProcessor,
        MMGroundingDinoConfig,
        MMGroundingDinoForObjectDetection,
        SwinConfig,
    )
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    # The model knows the ids of start, end, full stop and question mark of BERT's vocabulary by heart.
    words = [f"[unused{n}]" for n in range(1030)]
    for number, word in {
        0: "[PAD]",
        100: "[UNK]",
        101: "[CLS]",
        102: "[SEP]",
        103: "[MASK]",
        1012: ".",
        1029: "?",
    }.items():
        words[number] = word
    words += DETECTOR_WORDS
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    processor = GroundingDinoProcessor(
        GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}), tokenizer
    )
    config_class, model_class = GroundingDinoConfig, GroundingDinoForObjectDetection
    if mm:
        config_class, model_class = MMGroundingDinoConfig, MMGroundingDinoForObjectDetection
    config = config_class(
        backbone_config=SwinConfig(
            image_size=64,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            window_size=4,
            out_features=["stage2", "stage3", "stage4"],
        ),
        text_config=BertConfig(
            vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        ),
        d_model=32,
        encoder_layers=1,
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_layers=2,
        decoder_ffn_dim=32,
        decoder_attention_heads=2,
        num_queries=12,
        max_text_len=64,
    )
    _tamed(model_class(config)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _tamed(model: torch.nn.Module) -> torch.nn.Module:
    """Heads start with such large weights that every score would be 1; smaller ones give scores and boxes to sort."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "head" in name or "bbox_embed" in name:
                weight.mul_(0.2)
    return model
