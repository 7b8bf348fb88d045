"""The preflight inside a launcher's ranks: no ssh of its own, one report a host, the same table."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from typing import Any

import torch
import torch.distributed as dist

from pipeline.base.distributed import join_process_group
from pipeline.base.ranks import RankInfo
from pipeline.preflight.collective import measure
from pipeline.preflight.report import HostReport, make_report
from pipeline.preflight.verdict import MARK, HostRow, Limits, conclude, judge


def run_launched(info: RankInfo, arguments: argparse.Namespace, limits: Limits) -> int:
    """On every rank; rank 0 prints. The same exit status on all of them."""
    device = join_process_group(info, arguments.timeout_seconds)
    try:
        return check_ranks(info, arguments, limits, device)
    finally:
        dist.destroy_process_group()


def check_ranks(info: RankInfo, arguments: argparse.Namespace, limits: Limits, device: torch.device) -> int:
    """The checks, in a process group that was joined; collective."""
    bandwidth = measure(device, arguments.megabytes)
    if arguments.all_reduce_only:
        if info.is_main:
            print(MARK + json.dumps(dataclasses.asdict(bandwidth)), flush=True)
        return 0
    report = make_report(arguments.run_folder, arguments.shards) if info.is_local_main else None
    dist.barrier()
    now = time.time()  # all ranks pass the barrier at nearly one moment
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (os.uname().nodename, now, dataclasses.asdict(report) if report else None))
    status = [0]
    if info.is_main:
        rows = _rows(gathered)
        faults = judge(rows, limits)
        if not bandwidth.right:
            faults.append("all hosts: the all-reduce gave a wrong sum; test the memory")
        status = [conclude(rows, faults, bandwidth, arguments.json)]
    dist.broadcast_object_list(status, src=0)
    return status[0]


def _rows(gathered: list[tuple[str, float, dict[str, Any] | None]]) -> list[HostRow]:
    """One row a host, named with its ranks."""
    rows: dict[str, HostRow] = {}
    for rank, (host, clock, report) in enumerate(gathered):
        row = rows.setdefault(host, HostRow(host, "", 0, clock_offset_seconds=clock - gathered[0][1]))
        row.slots += 1
        row.label = f"{host} (ranks {rank - row.slots + 1} to {rank})" if row.slots > 1 else f"{host} (rank {rank})"
        if report is not None:
            row.report = HostReport(**report)
    return list(rows.values())
