"""What is said about a scene: phrases, wrong phrases and captions, in English and in Chinese."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product

import numpy as np

from data_tools.scenes.attributes import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    NUM_VALUES,
    PLURALS,
    SHAPES,
    TERMS,
    Look,
)
from data_tools.scenes.layout import PlacedObject, Scene

NUM_NEGATIVES = 10
TRAIN_ONE_CHANGE = 8  # of a training region's ten negatives; the others change two words
NAMED_WEIGHTS = (0.35, 0.15, 0.1, 0.4)  # of training phrases that name 0, 1, 2 or all 3 attributes beside the shape

# [row][column] by thirds of the image
POSITIONS = {
    "en": (
        ("in the upper left", "at the top", "in the upper right"),
        ("on the left", "in the middle", "on the right"),
        ("in the lower left", "at the bottom", "in the lower right"),
    ),
    "zh": (("左上角", "上方", "右上角"), ("左侧", "中间", "右侧"), ("左下角", "下方", "右下角")),
}
RELATIONS = {
    "en": {"left": "left of", "right": "right of", "above": "above", "below": "below"},
    "zh": {"left": "左边", "right": "右边", "above": "上面", "below": "下面"},
}
NUMBERS = {"en": ("", "one", "two", "three", "four"), "zh": ("", "一个", "两个", "三个", "四个")}


def short_phrase(look: Look, language: str, named: Sequence[str] = ATTRIBUTES, plural: bool = False) -> str:
    """As "large red striped circle" or "大的红色的条纹圆形": the attributes ``named``, always in this order."""
    words = {name: TERMS[name][getattr(look, name)].word(language) for name in (*named, "shape")}
    if plural and language == "en":
        words["shape"] = PLURALS[look.shape]
    return _phrase(words, language)


def _phrase(words: Mapping[str, str], language: str) -> str:
    given = [name for name in ("size", "colour", "pattern", "shape") if name in words]
    if language == "en":
        return " ".join(words[name] for name in given)
    # The 的 after a colour is there for the tokenizer: without it 色 goes to either neighbour as easily.
    return "".join(words[name] + ("的" if name == "colour" else "") for name in given)


def region_templates(language: str, attribute: str = "shape") -> list[str]:
    """Prompts of a class, {} for its name: the shortest phrases that name the attribute, so that their mean says
    nothing else."""
    if attribute == "shape":
        return ["{}"]
    return [_phrase({attribute: "{}", "shape": term.word(language)}, language) for term in SHAPES]


def position_words(placed: PlacedObject, scene: Scene) -> str:
    row, column = 3 * placed.y // scene.height, 3 * placed.x // scene.width
    return POSITIONS[scene.language][row][column]


def relation_word(placed: PlacedObject, other: PlacedObject, language: str) -> str:
    """Where ``placed`` lies as seen from ``other``, along the axis on which they are further apart."""
    dx, dy = placed.x - other.x, placed.y - other.y
    if abs(dx) >= abs(dy):
        return RELATIONS[language]["left" if dx < 0 else "right"]
    return RELATIONS[language]["above" if dy < 0 else "below"]


def long_phrase(number: int, scene: Scene) -> str:
    """The short phrase, the object's position, and its relation to its nearest neighbour if there is one."""
    placed = scene.objects[number]
    others = [other for i, other in enumerate(scene.objects) if i != number and other.look != placed.look]
    phrase, position = short_phrase(placed.look, scene.language), position_words(placed, scene)
    nearest = min(others, key=lambda o: (o.x - placed.x) ** 2 + (o.y - placed.y) ** 2, default=None)
    if scene.language == "en":
        text = f"the {phrase} {position}"
        if nearest is not None:
            text += f", {relation_word(placed, nearest, 'en')} the {short_phrase(nearest.look, 'en')}"
        return text
    text = f"{position}的{phrase}"
    if nearest is not None:
        text += f"，在{short_phrase(nearest.look, 'zh')}的{relation_word(placed, nearest, 'zh')}"
    return text


def changed_looks(
    look: Look, num_changes: int, random: np.random.Generator, changing: Sequence[str] = ATTRIBUTES
) -> list[Look]:
    """Every look that differs from ``look`` in exactly that many of the attributes ``changing``; in random order."""
    changed = []
    for names in combinations(changing, num_changes):
        choices = [[v for v in range(NUM_VALUES[name]) if v != getattr(look, name)] for name in names]
        for values in product(*choices):
            changed.append(replace(look, **dict(zip(names, values, strict=True))))
    return [changed[i] for i in random.permutation(len(changed))]


def training_attributes(random: np.random.Generator) -> tuple[str, ...]:
    """Which attributes a training region's phrase names beside the shape: none, some or all, as people do."""
    number = int(random.choice(len(NAMED_WEIGHTS), p=NAMED_WEIGHTS))
    chosen = sorted(random.permutation(len(ATTRIBUTES))[:number].tolist())
    return tuple(ATTRIBUTES[i] for i in chosen)


def training_negatives(look: Look, named: Sequence[str], language: str, random: np.random.Generator) -> tuple[str, ...]:
    """At most ten phrases that are wrong of the object, each naming what the true one names, most with one word
    changed, the shape's as well as any other. None names a held-out combination: a phrase that training only ever
    calls wrong could never be found right."""
    names_combination = {"colour", "pattern"} <= set(named)  # the shape is always named
    chosen: list[Look] = []
    for num_changes, most in ((1, TRAIN_ONE_CHANGE), (2, NUM_NEGATIVES)):
        changed = changed_looks(look, num_changes, random, (*named, "shape"))
        allowed = [other for other in changed if not (names_combination and other.unseen)]
        chosen += allowed[: most - len(chosen)]
    return tuple(short_phrase(chosen[i], language, named) for i in random.permutation(len(chosen)))


def _groups(scene: Scene) -> list[list[PlacedObject]]:
    """Alike objects together, in the order of the first of each."""
    groups: dict[Look, list[PlacedObject]] = {}
    for placed in scene.objects:
        groups.setdefault(placed.look, []).append(placed)
    return list(groups.values())


def _counted(group: list[PlacedObject], language: str) -> str:
    """As "a large red striped circle", "two small blue dotted squares", "两个小的蓝色的波点方形"."""
    phrase = short_phrase(group[0].look, language, plural=len(group) > 1)
    if language == "zh":
        return NUMBERS["zh"][len(group)] + phrase
    return f"a {phrase}" if len(group) == 1 else f"{NUMBERS['en'][len(group)]} {phrase}"


def short_caption(scene: Scene) -> str:
    """The main objects: at most two groups, the large ones first."""
    main = sorted(_groups(scene), key=lambda group: -group[0].look.size)[:2]
    return (" and " if scene.language == "en" else "和").join(_counted(group, scene.language) for group in main)


def long_caption(scene: Scene, random: np.random.Generator) -> str:
    """The number of objects and the background, every object with its position, and a relation."""
    items = []
    for group in _groups(scene):
        positions = list(dict.fromkeys(position_words(placed, scene) for placed in group))
        counted = _counted(group, scene.language)
        if scene.language == "en":
            items.append(f"{counted} {_listed(positions, ', ', ' and ')}")
        else:
            items.append(f"{_listed(positions, '、', '和')}有{counted}")
    background, count = BACKGROUNDS[scene.background][0].word(scene.language), len(scene.objects)
    if scene.language == "en":
        things = "object" if count == 1 else "objects"
        text = f"{NUMBERS['en'][count]} {things} on a {background} background: {', '.join(items)}."
    else:
        text = f"{background}背景上有{NUMBERS['zh'][count]}物体：{'，'.join(items)}。"
    return text + _relation_sentence(scene, random)


def _listed(words: list[str], comma: str, last: str) -> str:
    return last.join([*([comma.join(words[:-1])] if len(words) > 1 else []), words[-1]])


def _relation_sentence(scene: Scene, random: np.random.Generator) -> str:
    """One relation between two objects whose colour and shape name them uniquely, or nothing."""
    names = [(placed.look.colour, placed.look.shape) for placed in scene.objects]
    unique = [placed for placed, name in zip(scene.objects, names, strict=True) if names.count(name) == 1]
    if len(unique) < 2:
        return ""
    one, other = (unique[i] for i in random.permutation(len(unique))[:2])
    language = scene.language
    relation = relation_word(one, other, language)
    first, second = (
        (" " if language == "en" else "的").join(
            (COLOURS[placed.look.colour][0].word(language), SHAPES[placed.look.shape].word(language))
        )
        for placed in (one, other)
    )
    if language == "en":
        return f" the {first} is {relation} the {second}."
    return f"{first}在{second}的{relation}。"
