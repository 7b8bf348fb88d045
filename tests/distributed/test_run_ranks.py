"""The helper itself: results by rank, tracebacks of failures, no process left behind after a hang."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist

from tests.ranks import RankFailure, run_ranks, subgroups


def _sum_of_ranks(offset: int) -> tuple[int, float, list[float]]:
    value = torch.tensor([float(dist.get_rank() + offset)])
    dist.all_reduce(value)
    sums = []
    for group in subgroups([1, 2]).values():
        part = torch.ones(1)
        if group is not None:
            dist.all_reduce(part, group=group)
        sums.append(part.item())
    return int(os.environ["RANK"]), value.item(), sums


def _fail_on_rank_one() -> None:
    if dist.get_rank() == 1:
        raise ValueError("rank one is unhappy")
    dist.barrier()


def _hang_on_rank_zero() -> int:
    if dist.get_rank() == 0:
        time.sleep(600)
    return os.getpid()


def test_every_rank_runs_and_results_come_back_in_order():
    assert run_ranks(3, _sum_of_ranks, 10) == [(0, 33.0, [1, 2]), (1, 33.0, [1, 2]), (2, 33.0, [1, 1])]


def test_a_failing_rank_ends_all_and_shows_its_traceback():
    start = time.monotonic()
    with pytest.raises(RankFailure, match="rank 1:(?s:.*)_fail_on_rank_one(?s:.*)rank one is unhappy"):
        run_ranks(2, _fail_on_rank_one)
    assert time.monotonic() - start < 30


def test_a_silent_rank_is_named_and_ended():
    with pytest.raises(RankFailure, match="rank 0: no result after 2 s"):
        run_ranks(2, _hang_on_rank_zero, timeout_seconds=2)
