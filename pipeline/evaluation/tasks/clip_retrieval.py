"""Text-clip retrieval: recall of a clip's caption among all captions, and of a caption's clip among all clips.

A clip's vector is the mean of its frames'. A tie counts against the model, as in retrieval of images.
"""

from __future__ import annotations

from typing import Any

import torch

from pipeline.evaluation.clips import encode_clips, frame_choice
from pipeline.evaluation.features import EncodeSettings, encode_texts
from pipeline.evaluation.formats.clips import ClipSample, read_clips
from pipeline.evaluation.formats.language import the_one_language
from pipeline.evaluation.models.base import EvaluationModel
from pipeline.evaluation.options.clip_retrieval import ClipRetrievalOptions
from pipeline.evaluation.ranks import Ranks
from pipeline.evaluation.results import Accounting
from pipeline.evaluation.tasks.retrieval import recall_facts, recalls


def run(
    model: EvaluationModel, options: ClipRetrievalOptions, settings: EncodeSettings, ranks: Ranks
) -> dict[str, Any]:
    """The task on a folder of shards with clips."""
    path = options.one_data()
    folder = read_clips(path)
    language = the_one_language(options.language, (one.sample.language for one in folder.clips), str(path))
    mine = [one for one in folder.clips if one.sample.language == language][: options.max_clips]
    kind = _kind(options, mine)
    accounting = Accounting("clips")
    for reason, place in folder.faults:
        accounting.skip(reason, place)
    chosen: list[ClipSample] = []
    for one in mine:
        if _caption(one, kind) is None:
            accounting.skip(f"no_{kind}_caption", one.clip.key)
        else:
            accounting.take()
            chosen.append(one)
    choice = frame_choice(model, options.frames, options.single_frame)
    items = [one.clip for one in chosen]
    features = encode_clips(model, items, choice=choice, settings=settings, ranks=ranks)
    keep = [number for number in range(len(items)) if number not in features.faults]
    for number, what in features.faults.items():
        accounting.retract(what, items[number].key, 1)
    accounting.check(options.max_skipped_share)
    prefix = model.short_prefix(language) if options.short_prefix is None else options.short_prefix
    prefix = prefix if kind == "short" else ""
    texts = [prefix + str(_caption(chosen[number], kind)) for number in keep]
    embeds, row_of = encode_texts(model, texts, kind, ranks)
    owner = torch.arange(len(keep))
    return {
        "scores": recalls(features.embeds[keep], embeds[[row_of[text] for text in texts]], owner),
        "facts": recall_facts(owner, len(keep)),
        "settings": {
            "data": str(path),
            "language": language,
            "text_kind": kind,
            "text_path": model.text_path(kind),
            "short_prefix": prefix,
            "frames": "the middle one" if options.single_frame else choice.most or "all",
            "frames_path": model.frames_path(),
            "num_clips": len(keep),
            "ties": "count against the model",
        },
        "accounting": [accounting.to_json()],
    }


def _kind(options: ClipRetrievalOptions, clips: list[ClipSample]) -> str:
    if options.text_kind != "auto":
        return options.text_kind
    return "long" if clips and clips[0].sample.long_caption is not None else "short"


def _caption(one: ClipSample, kind: str) -> str | None:
    return one.sample.long_caption if kind == "long" else one.sample.short_caption
