"""What feeding a cluster costs: a stretch of an epoch of 10^9 synthetic samples in a store with latency and bandwidth.

The plan, the order of batches, what each node needs of a step, and which pieces are its own are the real code's
(``pipeline.data.plan``, ``pipeline.data.share``); nothing is read, counts of shards and pieces are drawn. Only time is
modelled: a node's requests share its connections and its network, a step begins when every node has what it needs of
it, and a node fetches no further ahead than ``data.prefetch_gigabytes`` a rank.

Rows, for N nodes: ``amplification`` is bytes that all nodes fetch over bytes of the pieces touched, each counted once;
``cache`` is what ``data.cache_gigabytes: null`` allows on a node, and ``refetched`` how much of the bytes came twice
because it was removed too early; ``waiting`` is the share of the time in which ranks wait, after the first batch.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from benchmarks.reporting import Row, benchmark_parser, report
from pipeline.base.constants import PATCH_BUDGETS
from pipeline.config import DataSettings
from pipeline.data.columns import PIECE_BYTES, PieceTable
from pipeline.data.manifest import Manifest
from pipeline.data.plan import Plan, PlannedBatch
from pipeline.data.prefetch import bytes_of
from pipeline.data.share import NodeShare
from pipeline.data.slices import Division

LANGUAGE_SHARES = (0.7, 0.3)  # English and Chinese
BUDGET_SHARES = (0.06, 0.14, 0.3, 0.2, 0.3)
INDEX_BYTES_A_SAMPLE = 32  # of a row index; measured on COCO's shards, 30 to 35
SAMPLES_A_SHARD = 10_000
CHUNK = 100_000  # pieces drawn at one time


@dataclass
class Node:
    """One machine: its share of the plan, its cache, and when it has what."""

    share: NodeShare
    cache_limit: int
    cache: OrderedDict[tuple[int, int, int], int] = field(default_factory=OrderedDict)  # bytes by (shard, piece, row)
    indexes: set[int] = field(default_factory=set)
    held: int = 0
    fetched: float = 0.0
    refetched: float = 0.0
    requests: int = 0
    ready_at: float = 0.0  # seconds: the requests so far are answered
    ahead: deque[tuple[float, float]] = field(default_factory=deque)  # (when its step began, bytes) not yet used
    dropped: set[tuple[int, int, int]] = field(default_factory=set)


def main(argv: list[str] | None = None) -> int:
    parser = benchmark_parser("benchmarks.feed", __doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 20, 128], help="(default: 1 20 128)")
    parser.add_argument("--ranks", type=int, default=8, help="of a node (default: 8)")
    parser.add_argument("--samples", type=float, default=1e9, help="of the data set (default: 1e9)")
    parser.add_argument("--sample-kilobytes", type=float, default=130.0, help="mean size (default: 130)")
    parser.add_argument("--global-batch-size", type=int, default=61_440, help="(default: 61440)")
    parser.add_argument("--steps", type=int, default=300, help="of the epoch that are walked (default: 300)")
    parser.add_argument("--images-a-second", type=float, default=700.0, help="that a rank trains (default: 700)")
    parser.add_argument("--latency-milliseconds", type=float, default=30.0, help="of a request (default: 30)")
    parser.add_argument("--connection-megabytes", type=float, default=20.0, help="a second (default: 20)")
    parser.add_argument("--node-gigabytes", type=float, default=6.0, help="a second, its network (default: 6)")
    arguments = parser.parse_args(argv)
    started = time.perf_counter()
    manifest = synthetic_manifest(int(arguments.samples), arguments.sample_kilobytes * 1e3)
    settings = DataSettings(shards=["s3://synthetic"], cache_folder="none")
    plan = Plan([manifest], settings, 0, arguments.global_batch_size)
    plan.batch(0, plan.steps_per_epoch() - 1)
    rows = [Row("plan", time.perf_counter() - started, "s to draw the manifest and plan the epoch")]
    for nodes in arguments.nodes:
        rows += simulate(plan, manifest, settings, nodes, arguments)
    report(rows, arguments.json)
    return 0


def synthetic_manifest(samples: int, sample_bytes: float) -> Manifest:
    """Shards of 10,000 samples in pieces of about PIECE_BYTES, languages and budgets drawn sample by sample."""
    draws = np.random.default_rng(0)
    shares = np.outer(LANGUAGE_SHARES, BUDGET_SHARES).reshape(-1)
    shards = samples // SAMPLES_A_SHARD
    pieces = max(1, round(SAMPLES_A_SHARD * sample_bytes / PIECE_BYTES))
    each = SAMPLES_A_SHARD // pieces
    counts = np.empty((shards * pieces, len(shares)), dtype=np.uint16)
    for low in range(0, len(counts), CHUNK):
        counts[low : low + CHUNK] = draws.multinomial(each, shares, size=len(counts[low : low + CHUNK]))
    by_group = counts.reshape(-1, len(LANGUAGE_SHARES), len(BUDGET_SHARES))
    whole = by_group.reshape(shards, pieces, *by_group.shape[1:]).sum(1, dtype=np.int32)
    totals = whole.sum((1, 2), dtype=np.int64)
    rows = np.tile(np.arange(pieces) * each, shards)
    starts = (rows * sample_bytes).astype(np.int64)
    table = PieceTable(np.arange(shards + 1) * pieces, rows, starts, starts + int(each * sample_bytes), by_group)
    sizes = (totals * sample_bytes).astype(np.int64)
    nothing = [""] * shards
    return Manifest(
        "s3://synthetic", PATCH_BUDGETS, [f"{n}.tar" for n in range(shards)], sizes, nothing, nothing, totals, totals,
        totals, whole, {}, table, digest="synthetic",
    )  # fmt: skip


def simulate(
    plan: Plan, manifest: Manifest, settings: DataSettings, nodes: int, arguments: argparse.Namespace
) -> Iterator[Row]:
    """The rows of ``nodes`` nodes."""
    world = nodes * arguments.ranks
    machines = []
    for number in range(nodes):
        share = NodeShare(plan, [manifest], number * arguments.ranks, arguments.ranks, Division(world, 1))
        machines.append(Node(share, share.cache_bytes(settings.prefetch_gigabytes * 1e9)))
    step_seconds = arguments.global_batch_size / (world * arguments.images_a_second)
    touched: dict[tuple[int, int], int] = {}
    now = waited = 0.0
    steps = min(arguments.steps, plan.steps_per_epoch())
    for step in range(steps):
        batch = plan.batch(0, step)
        ready = max(_fetch(node, batch, manifest, settings, arguments, now, touched) for node in machines)
        if step:
            waited += max(0.0, ready - now)
        now = max(now, ready)
        for node in machines:
            node.ahead[-1] = (now, node.ahead[-1][1])  # its bytes count as ahead until the step begins
        now += step_seconds
    distinct, fetched = sum(touched.values()), sum(node.fetched for node in machines)
    name = f"{nodes} nodes"
    requests = sum(node.requests for node in machines)
    yield Row(f"{name}: amplification", fetched / distinct, "bytes fetched over bytes of the data", nodes)
    yield Row(f"{name}: cache", max(node.cache_limit for node in machines) / 1e9, "GB a node")
    yield Row(f"{name}: refetched", sum(node.refetched for node in machines) / fetched, "of the bytes")
    yield Row(f"{name}: requests", requests / steps / nodes, "a step and node")
    yield Row(f"{name}: requests", requests / now, "a second, all nodes")
    yield Row(f"{name}: traffic", fetched / now / nodes / 1e9, "GB/s a node")
    yield Row(f"{name}: waiting", waited / max(now, 1e-9), "of the time, after the first batch")


def _fetch(
    node: Node,
    batch: PlannedBatch,
    manifest: Manifest,
    settings: DataSettings,
    arguments: argparse.Namespace,
    now: float,
    touched: dict[tuple[int, int], int],
) -> float:
    """Seconds at which the node has all that it needs of a batch."""
    length, requests = 0.0, 0
    pieces = manifest.pieces
    for need in node.share.needs(batch, node.share.slices[0]):
        size = bytes_of(node.share, need)
        place = int(pieces.first[need.shard]) + need.piece
        touched[need.shard, need.piece] = int(pieces.end[place] - pieces.start[place])
        if need.shard not in node.indexes:
            node.indexes.add(need.shard)
            length, requests = length + INDEX_BYTES_A_SAMPLE * SAMPLES_A_SHARD, requests + 1
        whole = (need.shard, need.piece, -1)
        if whole in node.cache:
            node.cache.move_to_end(whole)
            continue
        names = [whole] if need.whole else [(need.shard, need.piece, ordinal) for ordinal in need.ordinals]
        for name in names:
            node.cache[name] = size // len(names)
            if need.whole and name in node.dropped:
                node.refetched += size
        node.held += size
        length, requests = length + size, requests + len(names)
    while node.held > node.cache_limit:
        name, size = node.cache.popitem(last=False)
        node.held -= size
        if name[2] < 0:
            node.dropped.add(name)
    node.fetched, node.requests = node.fetched + length, node.requests + requests
    connections = arguments.ranks * settings.store_connections
    rate = min(connections * arguments.connection_megabytes * 1e6, arguments.node_gigabytes * 1e9)
    # It may begin when what lies ahead of training leaves room.
    begin, limit = node.ready_at, settings.prefetch_gigabytes * 1e9 * arguments.ranks
    lying = sum((size for _, size in node.ahead), 0.0)
    while node.ahead and lying + length > limit:
        used_at, used_bytes = node.ahead.popleft()
        begin, lying = max(begin, used_at), lying - used_bytes
    node.ahead.append((now, length))
    latency = requests * arguments.latency_milliseconds / 1e3 / connections
    node.ready_at = begin + length / rate + latency
    return node.ready_at


if __name__ == "__main__":
    sys.exit(main())
