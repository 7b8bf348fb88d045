"""Which objects a scene has and where they stand: a pure function of (seed, split, number)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_tools.scenes.attributes import BACKGROUNDS, SEEN_TRIPLES, SIZES, UNSEEN_TRIPLES, Look

SPLITS = ("train", "test")
# (width, height, most objects, weight). Multiples of 16, so that a vision tower with 16-pixel patches can take each as
# it is; 36 to 80 patches, most of them at most 64 to keep training quick.
CANVASES = (
    (96, 96, 2, 0.08),
    (128, 96, 3, 0.22),
    (96, 128, 3, 0.22),
    (128, 112, 3, 0.06),
    (128, 128, 4, 0.22),
    (160, 96, 4, 0.07),
    (96, 160, 4, 0.07),
    (160, 128, 4, 0.03),
    (128, 160, 4, 0.03),
)
OBJECT_COUNT_WEIGHTS = (0.18, 0.42, 0.30, 0.10)  # of scenes with 1, 2, 3, 4 objects
DUPLICATE_PROBABILITY = 0.2  # that a scene of two or more objects holds alike ones, for captions with counts
UNSEEN_PROBABILITY = 0.3  # that a test object shows a held-out combination
LARGE_PROBABILITY = 0.5
GAP_PIXELS = 2  # between the boxes of two objects, and to the edge
PLACEMENT_TRIES = 40


@dataclass(frozen=True)
class PlacedObject:
    """One object: its look, diameter and centre in pixels, rotation in degrees."""

    look: Look
    diameter: int
    x: int
    y: int
    rotation: float


@dataclass(frozen=True)
class Scene:
    """One image's content. ``number`` counts within the split."""

    split: str
    number: int
    language: str
    width: int
    height: int
    background: int
    objects: tuple[PlacedObject, ...]

    @property
    def key(self) -> str:
        return f"{self.split}-{self.number:07d}"


def scene_random(seed: int, split: str, number: int, purpose: int) -> np.random.Generator:
    """The random stream of one image and purpose (0 layout, 1 texts, 2 drawing): equal whoever asks and whenever."""
    return np.random.default_rng([seed, SPLITS.index(split), number, purpose])


def make_scene(seed: int, split: str, number: int) -> Scene:
    """The scene of that number: even ones are English, odd ones Chinese."""
    random = scene_random(seed, split, number, 0)
    language = "en" if number % 2 == 0 else "zh"
    width, height, most, _ = CANVASES[random.choice(len(CANVASES), p=[canvas[3] for canvas in CANVASES])]
    count = min(most, 1 + int(random.choice(len(OBJECT_COUNT_WEIGHTS), p=OBJECT_COUNT_WEIGHTS)))
    background = int(random.integers(len(BACKGROUNDS)))
    while True:  # a crowded draw is thrown away whole; small objects fit every canvas, so this ends
        placed = _place(_draw_looks(random, split, count), width, height, random)
        if placed is not None:
            return Scene(split, number, language, width, height, background, placed)


def _draw_looks(random: np.random.Generator, split: str, count: int) -> list[Look]:
    """Looks of the objects. Two that are not alike differ in at least two attributes, so that a phrase with one
    attribute changed is never true of a neighbour."""
    looks: list[Look] = []
    num_alike = 1
    if count > 1 and random.random() < DUPLICATE_PROBABILITY:
        num_alike = int(random.integers(2, min(count, 3) + 1))
    while len(looks) < count:
        unseen = split == "test" and random.random() < UNSEEN_PROBABILITY
        triples = UNSEEN_TRIPLES if unseen else SEEN_TRIPLES
        colour, pattern, shape = triples[random.integers(len(triples))]
        large = random.random() < LARGE_PROBABILITY and not (num_alike > 1 and not looks)  # three large ones do not fit
        look = Look(colour, pattern, shape, int(large))
        if all(look.num_differences(other) >= 2 for other in looks):
            looks += [look] * (num_alike if not looks else 1)
    return looks


def _place(looks: list[Look], width: int, height: int, random: np.random.Generator) -> tuple[PlacedObject, ...] | None:
    """Objects that do not overlap, or None if they did not fit."""
    placed: list[PlacedObject] = []
    for look in sorted(looks, key=lambda look: -look.size):  # large ones first: they are hard to fit later
        low, high = SIZES[look.size][1]
        diameter = int(random.integers(low, high + 1))
        margin = diameter // 2 + GAP_PIXELS
        for _ in range(PLACEMENT_TRIES):
            x, y = (int(random.integers(margin, side - margin + 1)) for side in (width, height))
            if all(max(abs(x - o.x), abs(y - o.y)) >= (diameter + o.diameter) // 2 + GAP_PIXELS for o in placed):
                break
        else:
            return None
        placed.append(PlacedObject(look, diameter, x, y, float(random.uniform(-8, 8))))
    # In reading order by thirds of the height, which is the order captions name them in.
    placed.sort(key=lambda o: (3 * o.y // height, o.x))
    return tuple(placed)
