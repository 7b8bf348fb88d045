"""What an object does in a clip: its motions, their words in both languages, and the steps that they are made of.

The normal motions come in pairs of which one is the other played backwards: moving left and moving right; moving left
and stopping, waiting and moving right. What is drawn is as symmetric, so neither a single frame nor a mean over the
frames tells one of a pair from the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_tools.scenes.attributes import Term

Place = tuple[int, int]  # of an object's centre, pixels
Room = tuple[int, int, int, int]  # least x, least y, greatest x, greatest y of a centre

DIRECTIONS: dict[str, Place] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
DIRECTION_WORDS = {
    "left": Term("left", "左"),
    "right": Term("right", "右"),
    "up": Term("up", "上"),
    "down": Term("down", "下"),
}
COURSES = ("steady", "stopping", "starting")
STEADY, STOPPING, STARTING, STILL = (*COURSES, "still")
TURNING, COLLIDING, HIT, APPEARING = "turning", "colliding", "hit", "appearing"
ABNORMAL = (TURNING, COLLIDING, HIT, APPEARING)
# {} is the direction. In English after the object's words, in Chinese before them.
WORDS = {
    STEADY: Term("moving {}", "向{}移动的"),
    STOPPING: Term("that moves {} and stops", "先向{}移动再停下的"),
    STARTING: Term("that waits and moves {}", "先停着再向{}移动的"),
    STILL: Term("standing still", "静止不动的"),
    TURNING: Term("that suddenly turns", "突然转向的"),
    COLLIDING: Term("that collides", "发生碰撞的"),
    HIT: Term("that is knocked away", "被撞开的"),
    APPEARING: Term("that suddenly appears", "突然出现的"),
}
SPEEDS = (4, 8)  # pixels a frame, of every motion; a tenth of the picture at most
WANDERED_STEPS = 7  # of a move between two rests of a long video: as many as a clip's frames have between them
KNOCKED_STEPS = 3  # that an object moves when another has hit it
COLLISION_TRIES = 500
FEWEST_STEPS = 2  # of the moving and of the resting part of a course


@dataclass(frozen=True)
class Motion:
    """``course`` is a key of WORDS; ``direction`` one of DIRECTIONS, or None where the course has none."""

    course: str
    direction: str | None = None

    @property
    def is_abnormal(self) -> bool:
        return self.course in ABNORMAL

    @property
    def name(self) -> str:
        """As "stopping-left"."""
        return self.course if self.direction is None else f"{self.course}-{self.direction}"

    def words(self, language: str) -> str:
        direction = "" if self.direction is None else DIRECTION_WORDS[self.direction].word(language)
        return WORDS[self.course].word(language).format(direction)

    @property
    def reversed(self) -> Motion | None:
        """The motion that this one is when it is played backwards; None where that is none, or the same."""
        if self.direction is None:
            return None
        course = {STEADY: STEADY, STOPPING: STARTING, STARTING: STOPPING}[self.course]
        return Motion(course, OPPOSITE[self.direction])


NORMAL_MOTIONS = (*(Motion(course, direction) for course in COURSES for direction in DIRECTIONS), Motion(STILL))
ABNORMAL_MOTIONS = tuple(Motion(course) for course in ABNORMAL)
MOTIONS = NORMAL_MOTIONS + ABNORMAL_MOTIONS


def straight(start: Place, direction: str, speed: int, num_steps: int) -> list[Place]:
    """The places after each of the steps; ``start`` is not among them."""
    x, y = DIRECTIONS[direction]
    return [(start[0] + n * speed * x, start[1] + n * speed * y) for n in range(1, num_steps + 1)]


def is_inside(places: Sequence[Place], room: Room) -> bool:
    return all(room[0] <= x <= room[2] and room[1] <= y <= room[3] for x, y in places)


def any_place(room: Room, random: np.random.Generator) -> Place:
    return int(random.integers(room[0], room[2] + 1)), int(random.integers(room[1], room[3] + 1))


def any_speed(random: np.random.Generator) -> int:
    return int(random.integers(SPEEDS[0], SPEEDS[1] + 1))


def normal_path(motion: Motion, num_frames: int, room: Room, random: np.random.Generator) -> list[Place]:
    """Where an object with a normal motion is in each frame. ``num_frames`` at least 5.

    Of a pair of motions, each path of the one is as likely as that path backwards of the other.
    """
    num_steps = num_frames - 1
    if motion.direction is None:
        return [any_place(room, random)] * num_frames
    moving = num_steps
    if motion.course != STEADY:
        moving = int(random.integers(FEWEST_STEPS, num_steps - FEWEST_STEPS + 1))
    speed = any_speed(random)
    while True:  # a start whose path leaves the picture is drawn anew: uniform over the paths that stay inside
        start = any_place(room, random)
        path = straight(start, motion.direction, speed, moving)
        if is_inside(path, room):
            break
    rest = num_steps - moving
    return (
        [start] * (1 + (rest if motion.course == STARTING else 0))
        + path
        + ([path[-1]] * rest if motion.course == STOPPING else [])
    )


def turning_path(num_frames: int, room: Room, random: np.random.Generator) -> tuple[list[Place], list[int]]:
    """A path with one or two sharp turns, and the frames in which they happen (the last before the new direction)."""
    num_steps = num_frames - 1
    two = num_steps >= 3 * FEWEST_STEPS and random.random() < 0.5
    while True:
        if two:
            first = int(random.integers(FEWEST_STEPS, num_steps - 2 * FEWEST_STEPS + 1))
            turns = [first, int(random.integers(first + FEWEST_STEPS, num_steps - FEWEST_STEPS + 1))]
        else:
            turns = [int(random.integers(FEWEST_STEPS, num_steps - FEWEST_STEPS + 1))]
        speed = any_speed(random)
        direction = str(random.choice(list(DIRECTIONS)))
        path = [any_place(room, random)]
        for begin, end in zip([0, *turns], [*turns, num_steps], strict=True):
            path += straight(path[-1], direction, speed, end - begin)
            direction = _sideways(direction, random)
        if is_inside(path, room):
            return path, turns


def _sideways(direction: str, random: np.random.Generator) -> str:
    return str(random.choice(["up", "down"] if direction in ("left", "right") else ["left", "right"]))


@dataclass(frozen=True)
class Collision:
    """The paths of the one that moves and of the one that it hits, and the frame of the contact."""

    striker: list[Place]
    struck: list[Place]
    contact: int


def collision_paths(
    num_frames: int, rooms: tuple[Room, Room], distance: int, random: np.random.Generator
) -> Collision | None:
    """One object runs into another that stands still; it bounces back, and the other is knocked away a little.

    Args:
        rooms: of the two. distance: of their centres when they touch, pixels.
    Returns:
        None where no draw of many stays in the picture: two large objects hardly have the room.
    """
    num_steps = num_frames - 1
    for _ in range(COLLISION_TRIES):
        contact = int(random.integers(FEWEST_STEPS, num_steps - FEWEST_STEPS + 1))
        speed, direction = any_speed(random), str(random.choice(list(DIRECTIONS)))
        start = any_place(rooms[0], random)
        there = straight(start, direction, speed, contact)
        back = straight(there[-1], OPPOSITE[direction], speed, min(contact, num_steps - contact))
        x, y = DIRECTIONS[direction]
        place = (there[-1][0] + distance * x, there[-1][1] + distance * y)
        away = straight(place, direction, speed, min(KNOCKED_STEPS, num_steps - contact))
        if is_inside([start, *there], rooms[0]) and is_inside([place, *away], rooms[1]):
            striker, struck = [start, *there, *back], [place] * (contact + 1) + away
            rest = [path + [path[-1]] * (num_frames - len(path)) for path in (striker, struck)]
            return Collision(rest[0], rest[1], contact)
    return None


def wandering(
    start: Place, num_steps: int, room: Room, rest_steps: tuple[int, int], random: np.random.Generator
) -> list[Place]:
    """A normal path of any length after ``start``: it rests, moves straight, rests …; new directions after rests alone.

    Args:
        rest_steps: least and most of a rest. As long as a snippet, no snippet sees both ends of a rest.
    """
    place = start
    path: list[Place] = []
    while len(path) < num_steps:
        path += [place] * int(random.integers(rest_steps[0], rest_steps[1] + 1))
        speeds = range(SPEEDS[0], SPEEDS[1] + 1)
        ways = [straight(place, way, speed, WANDERED_STEPS) for way in DIRECTIONS for speed in speeds]
        ways = [way for way in ways if is_inside(way, room)]
        if ways:
            path += ways[random.integers(len(ways))]
            place = path[-1]
    return path[:num_steps]
