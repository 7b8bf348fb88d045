"""What is said about a clip: phrases and captions that name motions, and phrases wrong in look or in motion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from data_tools.scenes.attributes import BACKGROUNDS, NUM_VALUES, SHAPES, TERMS, Look
from data_tools.scenes.clips.layout import SIDE, Clip, Mover
from data_tools.scenes.clips.motions import ABNORMAL_MOTIONS, MOTIONS, NORMAL_MOTIONS, Motion, Place
from data_tools.scenes.language import NUM_NEGATIVES, NUMBERS, POSITIONS, short_phrase
from pipeline.base.constants import LANGUAGES

LOOK_ATTRIBUTES = ("colour", "size", "shape")  # that differ between the objects of clips; all are solid
NAMED = ("colour", "size")  # that a phrase may name beside the shape
NAMED_PROBABILITY = 0.7  # of each of them, in a training phrase
MOTION_PROBABILITY = 0.85  # that a training phrase names the motion
MOTION_NEGATIVES = 6  # of the ten of a training phrase that names the motion: those that differ in it alone


def motion_phrase(look: Look, motion: Motion | None, language: str, named: Sequence[str] = NAMED) -> str:
    """As "the small red circle moving left" or "向左移动的小的红色的圆形"; without a motion the look alone."""
    what = short_phrase(look, language, named)
    if language == "en":
        return f"the {what}" if motion is None else f"the {what} {motion.words('en')}"
    return what if motion is None else f"{motion.words('zh')}{what}"


def wrong_motions(motion: Motion, random: np.random.Generator) -> list[Motion]:
    """All other motions in random order, but the one that is ``motion`` backwards first, where there is one."""
    mirror = motion.reversed
    others = [other for other in MOTIONS if other not in (motion, mirror)]
    return ([mirror] if mirror is not None else []) + [others[i] for i in random.permutation(len(others))]


def wrong_looks(look: Look, random: np.random.Generator, changing: Sequence[str] = LOOK_ATTRIBUTES) -> list[Look]:
    """Every look with one attribute changed, in random order."""
    changed = [
        replace(look, **{name: value})
        for name in changing
        for value in range(NUM_VALUES[name])
        if value != getattr(look, name)
    ]
    return [changed[i] for i in random.permutation(len(changed))]


def training_phrases(mover: Mover, language: str, random: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    """A training region's phrase and ten wrong ones. None of these names a held-out combination of colour and shape: a
    phrase that training only ever calls wrong could never be found right."""
    named = tuple(name for name in NAMED if random.random() < NAMED_PROBABILITY)
    # Without motion and colour there are not ten phrases that differ in one word.
    motion = mover.motion if random.random() < MOTION_PROBABILITY or "colour" not in named else None
    looks = [
        look for look in wrong_looks(mover.look, random, (*named, "shape")) if not ("colour" in named and look.unseen)
    ]
    wrong: list[str] = []
    if motion is not None:
        wrong = [motion_phrase(mover.look, one, language, named) for one in wrong_motions(motion, random)]
        wrong = wrong[:MOTION_NEGATIVES]
    wrong += [motion_phrase(look, motion, language, named) for look in looks]
    chosen = list(dict.fromkeys(wrong))[:NUM_NEGATIVES]
    phrase = motion_phrase(mover.look, motion, language, named)
    return phrase, tuple(chosen[i] for i in random.permutation(len(chosen)))


def short_clip_caption(clip: Clip) -> str:
    """Every object with its motion."""
    names = []
    for mover in clip.movers:
        phrase = motion_phrase(mover.look, mover.motion, clip.language)
        names.append(f"a {phrase.removeprefix('the ')}" if clip.language == "en" else f"一个{phrase}")
    return (" and " if clip.language == "en" else "和").join(names)


def long_clip_caption(clip: Clip) -> str:
    """The number of objects and the background, and of every object its motion, where it begins and where it ends."""
    items = []
    for mover in clip.movers:
        seen = [place for place in mover.places if place is not None]
        begin, end = (_position(place, clip.language) for place in (seen[0], seen[-1]))
        phrase = motion_phrase(mover.look, mover.motion, clip.language)
        if clip.language == "en":
            items.append(f"{phrase}, {begin}" + ("" if begin == end else f" at first, {end} at last"))
        else:
            items.append(f"{phrase}在{begin}" if begin == end else f"{phrase}先在{begin}，最后在{end}")
    background, count = BACKGROUNDS[clip.background][0].word(clip.language), len(clip.movers)
    if clip.language == "en":
        things = "object" if count == 1 else "objects"
        return f"{NUMBERS['en'][count]} {things} on a {background} background: {'; '.join(items)}."
    return f"{background}背景上有{NUMBERS['zh'][count]}物体：{'；'.join(items)}。"


def _position(place: Place, language: str) -> str:
    return POSITIONS[language][3 * place[1] // SIDE][3 * place[0] // SIDE]


def anomaly_prompts() -> dict[str, dict[str, list[list[str]]]]:
    """Prompts by language, then ``normal`` and ``abnormal``: a list a motion, whose texts differ in the shape."""
    return {
        language: {
            side: [
                [motion_phrase(Look(0, 0, shape, 0), motion, language, ()) for shape in range(len(SHAPES))]
                for motion in motions
            ]
            for side, motions in (("normal", NORMAL_MOTIONS), ("abnormal", ABNORMAL_MOTIONS))
        }
        for language in LANGUAGES
    }


def changed_attribute(look: Look, other: Look) -> str:
    """The one attribute in which two looks differ."""
    return next(name for name in TERMS if getattr(look, name) != getattr(other, name))
