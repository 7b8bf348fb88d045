"""Which objects a clip has and where they are in each frame: a pure function of (seed, split, number)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from data_tools.scenes.attributes import BACKGROUNDS, SEEN_TRIPLES, UNSEEN_TRIPLES, Look
from data_tools.scenes.clips.motions import (
    APPEARING,
    COLLIDING,
    HIT,
    NORMAL_MOTIONS,
    TURNING,
    Motion,
    Place,
    Room,
    any_place,
    collision_paths,
    normal_path,
    turning_path,
    wandering,
)
from data_tools.scenes.layout import GAP_PIXELS, UNSEEN_PROBABILITY

CLIP_SPLITS = ("train", "test", "anomaly")
SIDE = 96  # pixels of a frame, a multiple of 16: 36 patches
CLIP_DIAMETERS = ((16, 19), (27, 32))  # pixels, of small and of large objects
NUM_FRAMES = 8  # of a clip
NUM_VIDEO_FRAMES = 48  # of a video of the anomaly set
SECONDS_PER_FRAME = 0.25
OBJECT_COUNT_WEIGHTS = (0.4, 0.45, 0.15)  # of clips with 1, 2, 3 objects
ALIKE_PROBABILITY = 0.3  # that two objects of a clip look alike and only move differently
ANOMALY_PROBABILITY = 0.35  # of clips
ANOMALY_VIDEOS = 0.5  # share of the videos in which something abnormal happens
LARGE_PROBABILITY = 0.4
EVENTS = (TURNING, COLLIDING, APPEARING)
PLACEMENT_TRIES = 60
SOLID = 0  # pattern: stripes of 8 pixels do not show on objects of 16
SEEN = tuple(triple for triple in SEEN_TRIPLES if triple[1] == SOLID)
UNSEEN = tuple(triple for triple in UNSEEN_TRIPLES if triple[1] == SOLID)


@dataclass(frozen=True)
class Mover:
    """One object: its look, diameter in pixels, rotation in degrees, its centre in each frame or None, and its motion.

    ``motion`` None: of a long video, where it does one thing after the other.
    """

    look: Look
    diameter: int
    rotation: float
    motion: Motion | None
    places: tuple[Place | None, ...]


@dataclass(frozen=True)
class Clip:
    """One clip's content. ``anomaly``: 0 or 1 a frame; ``event`` names what is abnormal, if anything is."""

    split: str
    number: int
    language: str
    background: int
    movers: tuple[Mover, ...]
    anomaly: tuple[int, ...]
    event: str | None

    @property
    def key(self) -> str:
        return f"{self.split}-clip-{self.number:07d}"

    @property
    def times(self) -> tuple[float, ...]:
        """Seconds from the beginning of each frame."""
        return tuple(SECONDS_PER_FRAME * frame for frame in range(len(self.anomaly)))


@dataclass(frozen=True)
class _Body:
    """What of an object is drawn before its path."""

    look: Look
    diameter: int
    rotation: float

    @property
    def room(self) -> Room:
        margin = self.diameter // 2 + 1 + GAP_PIXELS
        return margin, margin, SIDE - margin, SIDE - margin

    def moving(self, motion: Motion | None, places: list[Place | None]) -> Mover:
        return Mover(self.look, self.diameter, self.rotation, motion, tuple(places))


def clip_random(seed: int, split: str, number: int, purpose: int) -> np.random.Generator:
    """The random stream of one clip and purpose (0 layout, 1 texts, 2 drawing, 3 rows)."""
    return np.random.default_rng([seed, CLIP_SPLITS.index(split), number, purpose, NUM_FRAMES])


def make_clip(seed: int, split: str, number: int) -> Clip:
    """The clip of that number: even ones are English, odd ones Chinese. Of the split anomaly: a long video."""
    random = clip_random(seed, split, number, 0)
    language = "en" if number % 2 == 0 else "zh"
    background = int(random.integers(len(BACKGROUNDS)))
    is_video = split == "anomaly"
    share = ANOMALY_VIDEOS if is_video else ANOMALY_PROBABILITY
    event = EVENTS[random.integers(len(EVENTS))] if random.random() < share else None
    while True:  # a crowded draw is thrown away whole; two small objects fit always, so this ends
        count = 2 if is_video else 1 + int(random.choice(len(OBJECT_COUNT_WEIGHTS), p=OBJECT_COUNT_WEIGHTS))
        bodies = _bodies(random, split, max(count, 2 if event == COLLIDING else 1))
        drawn = _video(bodies, event, random) if is_video else _clip(bodies, event, random)
        if drawn is not None:
            movers, labels = drawn
            return Clip(split, number, language, background, tuple(movers), labels, event)


def _bodies(random: np.random.Generator, split: str, count: int) -> list[_Body]:
    """Objects that differ in at least two attributes, or are alike."""
    looks: list[Look] = []
    alike = count > 1 and random.random() < ALIKE_PROBABILITY
    while len(looks) < count:
        if len(looks) == 1 and alike:
            looks.append(looks[0])
            continue
        unseen = split == "test" and random.random() < UNSEEN_PROBABILITY
        triples = UNSEEN if unseen else SEEN
        colour, pattern, shape = triples[random.integers(len(triples))]
        look = Look(colour, pattern, shape, int(random.random() < LARGE_PROBABILITY))
        if all(look.num_differences(other) >= 2 for other in looks):
            looks.append(look)
    bodies = []
    for look in looks:
        low, high = CLIP_DIAMETERS[look.size]
        bodies.append(_Body(look, int(random.integers(low, high + 1)), float(random.uniform(-8, 8))))
    return bodies


@dataclass(frozen=True)
class _Event:
    """The objects that something abnormal happens to, during NUM_FRAMES, and when: ``first`` to ``last`` of the frames
    between which it is seen, and the frames that are labelled as abnormal."""

    movers: tuple[Mover, ...] = ()
    first: int = 0
    last: int = 0
    labelled: range = range(0)

    def labels(self, num_frames: int, begin: int = 0) -> tuple[int, ...]:
        """0 or 1 a frame, the event beginning at frame ``begin``."""
        return tuple(int(frame - begin in self.labelled) for frame in range(num_frames))

    def shifted(self, by: int) -> _Event:
        """The event ``by`` frames later or, below 0, earlier; before and after it the objects stay where they are."""
        frames = [min(max(frame - by, 0), NUM_FRAMES - 1) for frame in range(NUM_FRAMES)]
        movers = tuple(replace(one, places=tuple(one.places[frame] for frame in frames)) for one in self.movers)
        moved = range(self.labelled.start + by, self.labelled.stop + by)
        return _Event(movers, self.first + by, self.last + by, moved)


Drawn = tuple[list[Mover], tuple[int, ...]]


def _clip(bodies: list[_Body], event: str | None, random: np.random.Generator) -> Drawn | None:
    """The objects of a clip of NUM_FRAMES, in any order; None where they do not fit."""
    happening = _event(bodies, event, random)
    if happening is None:
        return None
    if happening.movers:  # as a snippet of a long video has it: anywhere in the clip, after a rest or before one
        happening = happening.shifted(int(random.integers(1 - happening.first, NUM_FRAMES - 1 - happening.last)))
    movers = list(happening.movers)
    for body in bodies[len(movers) :]:
        for _ in range(PLACEMENT_TRIES):
            motion = NORMAL_MOTIONS[random.integers(len(NORMAL_MOTIONS))]
            same = [other for other in movers if other.look == body.look and other.motion == motion]
            mover = body.moving(motion, [*normal_path(motion, NUM_FRAMES, body.room, random)])
            if not same and not any(_touch(mover, other) for other in movers):
                movers.append(mover)
                break
        else:
            return None
    order = random.permutation(len(movers))  # the abnormal one must not always be named first
    return [movers[i] for i in order], happening.labels(NUM_FRAMES)


def _event(bodies: list[_Body], event: str | None, random: np.random.Generator) -> _Event | None:
    """Something abnormal that happens to the first ones of ``bodies``; None where they have no room for it."""
    if event is None:
        return _Event()
    first = bodies[0]
    if event == TURNING:
        path, turns = turning_path(NUM_FRAMES, first.room, random)
        mover = first.moving(Motion(TURNING), [*path])
        return _Event((mover,), turns[0], turns[-1], range(turns[0] - 1, turns[-1] + 3))
    if event == APPEARING:
        begin = int(random.integers(1, NUM_FRAMES))
        place = any_place(first.room, random)
        mover = first.moving(Motion(APPEARING), [None] * begin + [place] * (NUM_FRAMES - begin))
        return _Event((mover,), begin, begin, range(begin, begin + 6))
    second = bodies[1]
    distance = (first.diameter + second.diameter) // 2 + 1
    paths = collision_paths(NUM_FRAMES, (first.room, second.room), distance, random)
    if paths is None:
        return None
    movers = (first.moving(Motion(COLLIDING), [*paths.striker]), second.moving(Motion(HIT), [*paths.struck]))
    return _Event(movers, paths.contact, paths.contact, range(paths.contact - 1, paths.contact + 5))


def _video(bodies: list[_Body], event: str | None, random: np.random.Generator) -> Drawn | None:
    """The objects of a long video: normal ways, with a clip's anomaly somewhere in the middle. None: they do not fit.

    Rests are as long as a clip and longer, so that any NUM_FRAMES frames in a row without the anomaly are a clip as the
    normal ones.
    """
    rests = (NUM_FRAMES, NUM_FRAMES + 4)
    begin = int(random.integers(NUM_FRAMES, NUM_VIDEO_FRAMES - 2 * NUM_FRAMES + 1))
    after = NUM_VIDEO_FRAMES - begin - NUM_FRAMES
    happening = _event(bodies, event, random)
    if happening is None:
        return None
    movers = []
    for body, actor in zip(bodies, happening.movers, strict=False):
        places, head, tail = actor.places, actor.places[0], actor.places[-1]
        assert tail is not None  # whatever happens, the object is there at its end
        earlier: list[Place | None] = [None] * begin
        if head is not None:  # a normal path backwards is a normal path
            earlier = [*reversed(wandering(head, begin, body.room, rests, random))]
        movers.append(body.moving(actor.motion, [*earlier, *places, *wandering(tail, after, body.room, rests, random)]))
    if len(movers) == 2 and _touch(movers[0], movers[1], skip=range(begin, begin + NUM_FRAMES)):
        return None
    for body in bodies[len(movers) :]:
        for _ in range(PLACEMENT_TRIES):
            start = any_place(body.room, random)
            path = [start, *wandering(start, NUM_VIDEO_FRAMES - 1, body.room, rests, random)]
            mover = body.moving(None, [*path])
            if not any(_touch(mover, other) for other in movers):
                movers.append(mover)
                break
        else:
            return None
    return movers, happening.labels(NUM_VIDEO_FRAMES, begin)


def _touch(one: Mover, other: Mover, skip: range | None = None) -> bool:
    """Whether two objects come closer than the gap in any frame but those of ``skip``."""
    least = (one.diameter + other.diameter) // 2 + GAP_PIXELS
    for frame, (a, b) in enumerate(zip(one.places, other.places, strict=True)):
        if a is not None and b is not None and not (skip and frame in skip):
            if max(abs(a[0] - b[0]), abs(a[1] - b[1])) < least:
                return True
    return False
