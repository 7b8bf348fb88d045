"""Anomaly scores of frames from prompts: the area under the ROC curve and the average precision over all frames.

As UCF-Crime and XD-Violence are measured: a score of a snippet is that of its frames, and the frames of all videos go
into one curve. A snippet's score is the share that abnormal prompts have of the softmax over all prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from pipeline.evaluation.anomaly_scores import (
    Groups,
    Prompts,
    areas,
    encode_prompts,
    frame_scores,
    prompts_of,
    read_prompts,
    snippet_frames,
)
from pipeline.evaluation.anomaly_videos import score_video
from pipeline.evaluation.clips import FrameChoice, Snippet, encode_snippets, frame_choice
from pipeline.evaluation.features import EncodeSettings
from pipeline.evaluation.formats.anomaly import read_anomaly, recognise_anomaly
from pipeline.evaluation.formats.clips import ClipFolder, ClipSample, read_clips
from pipeline.evaluation.formats.items import ClipRow, clip_row
from pipeline.evaluation.formats.scenes import scene_prompts
from pipeline.evaluation.measures import Facts, fact
from pipeline.evaluation.models.base import EvaluationModel
from pipeline.evaluation.options.anomaly import AnomalyOptions
from pipeline.evaluation.ranks import Ranks
from pipeline.evaluation.result_cache import ResultCache
from pipeline.evaluation.results import Accounting

VIDEO_SNIPPET, VIDEO_FRAMES = 16, 4  # frames of a video that one score is of, and that are looked at
WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Plan:
    """How snippets are cut and looked at. ``view`` is clip, frame or tracks."""

    view: str
    length: int
    step: int
    choice: FrameChoice

    @property
    def text_kind(self) -> str:
        return "short" if self.view == "clip" else "region"


@dataclass
class Scored:
    """One video's frames. ``groups``: what its scores are also shown under."""

    scores: np.ndarray
    labels: np.ndarray
    groups: dict[str, str] = field(default_factory=dict)


def run(model: EvaluationModel, options: AnomalyOptions, settings: EncodeSettings, ranks: Ranks) -> dict[str, Any]:
    """The task on shards of clips with labels, or on an annotation file and its videos."""
    path = options.one_data()
    form = recognise_anomaly(path) if options.format == "auto" else options.format
    if form == "shards":
        folder = read_clips(path)
        has_tracks = any(region.boxes for one in folder.clips for region in one.sample.regions)
        plan = _plan(model, options, "tracks" if has_tracks else "clip", model.most_frames or VIDEO_SNIPPET)
        scored, accounting = _score_shards(model, options, plan, folder, settings, ranks)
    else:
        plan = _plan(model, options, "clip", VIDEO_SNIPPET, VIDEO_FRAMES)
        scored, accounting = _score_videos(model, options, plan, form, settings, ranks)
    accounting.check(options.max_skipped_share)
    scores, facts = _scores(scored)
    return {
        "scores": scores,
        "facts": facts,
        "settings": {
            "data": str(path),
            "format": form,
            "view": plan.view,
            "snippet_frames": plan.length,
            "snippet_step": plan.step,
            "frames": "the middle one" if options.single_frame else plan.choice.most or "all",
            "frames_path": model.frames_path(),
            "text_path": model.text_path(plan.text_kind),
            "temperature": options.temperature,
            "prompts": str(options.prompts)
            if options.prompts
            else _own(options) or "the set's, else the project's own",
            "curve": "over the frames of all videos together (micro), by scikit-learn",
        },
        "accounting": [accounting.to_json()],
    }


def _plan(model: EvaluationModel, options: AnomalyOptions, view: str, length: int, most: int | None = None) -> Plan:
    """The options' own choices over what the set suggests. A single frame is a snippet of its own."""
    choice = frame_choice(model, options.frames, options.single_frame)
    choice = FrameChoice(choice.most or most, choice.single)
    given = options.snippet_frames
    length = given or (1 if options.single_frame else length)
    view = view if options.view == "auto" else options.view
    return Plan(view, length, options.snippet_step or length, choice)


def _own(options: AnomalyOptions) -> dict[str, list[str]] | None:
    return {"normal": list(options.normal), "abnormal": list(options.abnormal)} if options.normal else None


def _texts(options: AnomalyOptions, of_set: dict[str, dict[str, Groups]] | None) -> dict[str, dict[str, Groups]] | None:
    """Prompts by language, in the order in which they count: given ones, a file's, the set's."""
    if options.normal:
        return {"*": {"normal": [[text] for text in options.normal], "abnormal": [[text] for text in options.abnormal]}}
    return read_prompts(options.prompts) if options.prompts is not None else of_set


def _score_shards(
    model: EvaluationModel,
    options: AnomalyOptions,
    plan: Plan,
    folder: ClipFolder,
    settings: EncodeSettings,
    ranks: Ranks,
) -> tuple[list[Scored], Accounting]:
    accounting = Accounting("videos")
    for reason, place in folder.faults:
        accounting.skip(reason, place)
    chosen: list[ClipSample] = []
    for one in folder.clips:
        if options.language not in ("auto", one.sample.language):
            accounting.note("videos_of_other_languages", one.clip.key)
        elif one.clip.labels is None:
            accounting.skip("no_labels", one.clip.key)
        else:
            accounting.take()
            chosen.append(one)
    cut = [snippet_frames(len(one.clip.frames), plan.length, plan.step) for one in chosen]
    numbered = [(video, snippet) for video, snippets in enumerate(cut) for snippet in snippets]
    of_clip = [_picked(plan, snippet) for _, snippet in numbered]
    rows, owners = _rows(chosen, plan, numbered, of_clip)
    snippets = [Snippet(video, frames) for (video, _), frames in zip(numbered, of_clip, strict=True)]
    features = encode_snippets(
        model,
        [one.clip for one in chosen],
        snippets if plan.view == "clip" else [],
        rows,
        choice=FrameChoice(),  # the rows name their frames
        settings=settings,
        ranks=ranks,
        label="frames of videos",
    )
    texts = _texts(options, scene_prompts(options.one_data()))
    prompts: dict[str, Prompts] = {}
    for language in sorted({one.sample.language for one in chosen}):
        found = prompts_of(language, texts)
        prompts[language] = encode_prompts(model, found, plan.text_kind, options.temperature, ranks)
    of_snippet = [0.0] * len(numbered)  # where nothing is there, nothing is abnormal
    vectors = features.embeds if plan.view == "clip" else features.regions
    owners = list(range(len(numbered))) if plan.view == "clip" else owners
    for language, vectors_of in prompts.items():
        mine = [n for n, owner in enumerate(owners) if chosen[numbered[owner][0]].sample.language == language]
        for number, score in zip(mine, vectors_of.scores(vectors[mine]).tolist() if mine else [], strict=True):
            if plan.view == "clip" or features.region_valid[number]:
                of_snippet[owners[number]] = max(of_snippet[owners[number]], score)
    scored, start = [], 0
    for video, one in enumerate(chosen):
        snippets_of = cut[video]
        part, start = of_snippet[start : start + len(snippets_of)], start + len(snippets_of)
        if video in features.faults:
            accounting.retract(features.faults[video], one.clip.key, 1)
            continue
        count = len(one.clip.frames)
        labels = np.array(one.clip.labels)
        event = one.sample.source.get("event")
        groups = {"language": one.sample.language} | ({"event": event} if isinstance(event, str) else {})
        scored.append(Scored(frame_scores(part, snippets_of, count), labels, groups))
    return scored, accounting


def _picked(plan: Plan, snippet: range) -> tuple[int, ...]:
    """The frames of a snippet that are looked at."""
    return tuple(snippet[number] for number in plan.choice.numbers(len(snippet)))


def _rows(
    videos: Sequence[ClipSample], plan: Plan, numbered: list[tuple[int, range]], picked: list[tuple[int, ...]]
) -> tuple[list[ClipRow], list[int]]:
    """A row for each snippet and each box track in it, and the snippet of each row."""
    rows: list[ClipRow] = []
    owners: list[int] = []
    for number, ((video, _), frames) in enumerate(zip(numbered, picked, strict=True)):
        if plan.view == "frame":
            rows.append(clip_row(video, [WHOLE] * len(videos[video].clip.frames), frames=frames))
            owners.append(number)
        for region in videos[video].sample.regions if plan.view == "tracks" else ():
            boxes = region.boxes or ()
            if any(boxes[frame] is not None for frame in frames):
                rows.append(clip_row(video, boxes, frames=frames))
                owners.append(number)
    return rows, owners


def _score_videos(
    model: EvaluationModel, options: AnomalyOptions, plan: Plan, form: str, settings: EncodeSettings, ranks: Ranks
) -> tuple[list[Scored], Accounting]:
    found = read_anomaly(options.one_data(), form, options.videos)
    language = "en" if options.language == "auto" else options.language
    texts = prompts_of(language, _texts(options, None))
    prompts = encode_prompts(model, texts, plan.text_kind, options.temperature, ranks)
    looked_at = [plan.choice.most, plan.choice.single]
    depends_on = [plan.view, plan.length, plan.step, *looked_at, texts, options.temperature]
    cache = ResultCache(settings.cache_folder, model, depends_on)
    mine = []
    for number in ranks.share(len(found.videos)):
        video = found.videos[number]
        status = video.path.stat()
        key = [video.key, status.st_size, status.st_mtime_ns]
        make = partial(score_video, model, video.path, plan, prompts, settings)
        mine.append((number, cache.get(key, make)))
    results = dict(one for share in ranks.gather(mine) for one in share)
    scored = []
    for number, video in enumerate(found.videos):
        result = results[number]
        if result.get("fault"):
            found.accounting.retract(result["fault"], f"{video.key}: {result['told']}", 1)
            continue
        beyond = any(last > result["num_frames"] for _, last in video.events)
        found.accounting.note("event_beyond_the_video", video.key, int(beyond))
        cut = snippet_frames(result["num_frames"], plan.length, plan.step)
        labels = np.array(video.labels(result["num_frames"]))
        scored.append(Scored(frame_scores(result["scores"], cut, result["num_frames"]), labels))
    return scored, found.accounting


def _scores(scored: list[Scored]) -> tuple[dict[str, Any], Facts]:
    """Areas over all frames, over those of videos with an anomaly, and by group: of events with all normal videos."""
    scores: dict[str, Any] = {}
    facts: Facts = {}

    def enter(prefix: str, into: dict[str, Any], some: list[Scored]) -> None:
        labels = [one.labels for one in some]
        if not labels or len(set(np.concatenate(labels).tolist())) < 2 and prefix:
            return
        found = areas([one.scores for one in some], labels)
        share = float(np.concatenate(labels).mean())
        count = sum(len(one.labels) for one in some)
        for name, value in found.items():
            into[name] = value
            facts[f"{prefix}{name}"] = fact(count, 0.5 if name == "auc" else share, "mean")

    enter("", scores, scored)
    with_event = [one for one in scored if one.labels.any()]
    enter("anomalous_videos/", scores.setdefault("anomalous_videos", {}), with_event)
    normal = [one for one in scored if not one.labels.any()]
    for group in ("language", "event"):
        for value in sorted({one.groups[group] for one in scored if group in one.groups}):
            some = [one for one in scored if one.groups.get(group) == value] + (normal if group == "event" else [])
            enter(f"by_{group}/{value}/", scores.setdefault(f"by_{group}", {}).setdefault(value, {}), some)
    return scores, facts
