"""Reproducible shuffles, and how much of each source and language an epoch takes.

The shuffles are argsorts of SplitMix64 hashes: the same on every machine and with every numpy, unlike the generators
of numpy, whose streams may change between releases. A resumed run must meet the order that it left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.data.manifest import IndexProblem

# SplitMix64's increment and multipliers (Steele, Lea, Flood, 2014).
GAMMA, MIX_A, MIX_B = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
MASK = (1 << 64) - 1
FITTING_ROUNDS, FITTED = 1000, 1e-9


def hash_of(*words: int) -> int:
    """One 64-bit number of any whole numbers, order included."""
    state = 0
    for word in words:
        state = _mix((state ^ (word & MASK)) + GAMMA & MASK)
    return state


def hashes(seed: int, count: int) -> np.ndarray:
    """``count`` 64-bit numbers [count] uint64 of one seed."""
    with np.errstate(over="ignore"):
        state = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GAMMA) + np.uint64(seed & MASK)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(MIX_A)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(MIX_B)
        return state ^ (state >> np.uint64(31))


def shuffled(seed: int, count: int) -> np.ndarray:
    """A permutation of ``range(count)`` [count] int64."""
    return np.argsort(hashes(seed, count), kind="stable")


def _mix(state: int) -> int:
    state = (state ^ (state >> 30)) * MIX_A & MASK
    state = (state ^ (state >> 27)) * MIX_B & MASK
    return state ^ (state >> 31)


def taken_shares(
    counts: np.ndarray,
    languages: Sequence[str],
    source_weights: list[float] | None,
    language_weights: Mapping[str, float] | None,
) -> np.ndarray:
    """The share of its samples that an epoch takes, [sources, languages] in 0…1.

    The most wanted cell is taken whole; the others are thinned until sources and languages stand to each other as
    their weights do. ``None`` leaves a side as it is. With both given, both are met as closely as the data allow.

    Args:
        counts: samples, [sources, languages].
        languages: their tags; those without a weight get none of the epoch.

    Raises:
        IndexProblem: weights that do not fit, or that leave nothing.
    """
    counts = counts.astype(np.float64)
    sources = _targets(source_weights, counts.sum(1), "data.source_weights", "folder in data.shards")
    wanted = None
    if language_weights is not None:
        there = [name for name, count in zip(languages, counts.sum(0), strict=True) if count]
        if strange := [name for name, weight in language_weights.items() if weight > 0 and name not in there]:
            raise IndexProblem(
                f"data.language_weights names {', '.join(strange)}, of which there is no sample; the shards hold "
                f"{', '.join(there)}"
            )
        wanted = [language_weights.get(name, 0.0) for name in languages]
    of_language = _targets(wanted, counts.sum(0), "data.language_weights", "language")
    table = counts.copy()
    for _ in range(FITTING_ROUNDS):  # iterative proportional fitting
        before = table.copy()
        for axis, target in ((1, sources), (0, of_language)):
            if target is not None:
                have = table.sum(axis)
                factor = np.divide(target * table.sum(), have, out=np.zeros_like(have), where=have > 0)
                table *= np.expand_dims(factor, axis)
        if np.abs(table - before).max() <= FITTED * max(table.max(), 1.0):
            break
    shares = np.divide(table, counts, out=np.zeros_like(table), where=counts > 0)
    if not shares.max() > 0:
        raise IndexProblem("the weights leave no sample; give a positive weight to a source and language that exist")
    return np.where(shares >= shares.max() * (1 - FITTED), 1.0, shares / shares.max())


def _targets(weights: list[float] | None, have: np.ndarray, setting: str, what: str) -> np.ndarray | None:
    if weights is None:
        return None
    if len(weights) != len(have):
        raise IndexProblem(f"{setting} has {len(weights)} numbers for {len(have)}; give one a {what}")
    if any(not 0 <= weight < float("inf") for weight in weights):
        raise IndexProblem(f"{setting} is {weights}; every weight must be a finite number, 0 or more")
    for number, weight in enumerate(weights):
        if weight > 0 and not have[number]:
            raise IndexProblem(f"{setting}: number {number + 1} has weight {weight:g} and no sample; make it 0")
    if not sum(weights) > 0:
        raise IndexProblem(f"{setting} is {weights}; at least one weight must be above 0")
    return np.array(weights, dtype=np.float64) / sum(weights)
