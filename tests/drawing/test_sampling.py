"""A curve that is cut down keeps its mean, its spikes and its ends."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.drawing.sampling import STEP, sample_curves


def test_a_short_curve_is_kept_point_by_point():
    found = sample_curves([{"loss": ([1, 5, 9], [3.0, 2.0, 1.0])}], ["loss"])
    assert found.axes[STEP].tolist() == [1, 5, 9] and found.middle["loss"].tolist() == [3, 2, 1]
    assert not found.is_reduced and found.low["loss"].tolist() == found.high["loss"].tolist() == [3, 2, 1]


def test_a_spike_of_one_step_stays_in_the_band():
    values = np.ones(10_000)
    values[4321] = 50
    found = sample_curves([{"loss": (range(10_000), values)}], ["loss"], points=100)
    assert found.is_reduced and len(found.axes[STEP]) == 100 and found.axes[STEP][-1] == 9999
    assert found.high["loss"].max() == 50 and found.low["loss"].min() == 1
    assert found.middle["loss"].mean() == pytest.approx(values.mean())


def test_several_runs_give_mean_and_deviation_and_their_samples():
    runs = [{"loss": ([1, 2], [v, v]), "speed/samples_seen": ([1, 2], [32.0, 64.0])} for v in (1.0, 2.0, 3.0)]
    found = sample_curves(runs, ["loss"])
    assert found.middle["loss"].tolist() == [2, 2] and found.high["loss"].tolist() == [3, 3]
    assert found.axes["samples"].tolist() == [32, 64] and np.isnan(found.axes["hours"]).all()


def test_values_that_are_not_finite_are_counted_not_drawn():
    found = sample_curves([{"loss": ([1, 2, 3], [1.0, float("nan"), float("inf")])}], ["loss"])
    assert found.not_finite == {"loss": 2} and np.isnan(found.middle["loss"][1:]).all()


def test_smoothing_is_an_average_with_the_stated_half_life():
    found = sample_curves([{"loss": ([0, 1], [0.0, 1.0])}], ["loss"], half_life=1)
    assert found.middle["loss"].tolist() == pytest.approx([0.0, 0.5 / 0.75])
    assert found.high["loss"].tolist() == [0.0, 1.0], "the band is of what was logged"
