"""Check every host before training, in a minute instead of a wasted hour.

With --hostfile: from the first host, by ssh. Under a launcher (torchrun, srun, deepspeed): every rank reports.
A table, then each fault with the line of the hostfile to fix. Exit status 0 only if all is well.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shutil
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import TypeAdapter

from pipeline.base.border import BorderError, validated
from pipeline.base.commands import command_parser, run_command
from pipeline.base.ranks import RankError, read_rank_info
from pipeline.preflight.bandwidth import Bandwidth
from pipeline.preflight.hostfile import SSH, SSH_FAILED, Host, HostfileError, read_hostfile, remote_command, run_remote
from pipeline.preflight.report import HostReport, make_report
from pipeline.preflight.verdict import MARK, HostRow, Limits, conclude, judge

_REPORT: TypeAdapter[HostReport] = TypeAdapter(HostReport)
_BANDWIDTH: TypeAdapter[Bandwidth] = TypeAdapter(Bandwidth)
CLOCK_SECONDS = 30.0  # for the answer to `date`
EXAMPLES = """examples:
  python -m pipeline.preflight --hostfile hostfile --shards shards/train --run-folder runs/stage1
  srun python -m pipeline.preflight --shards shards/train
  torchrun --nnodes 2 --nproc-per-node 8 … -m pipeline.preflight
"""


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    return run_command(lambda: _check(arguments), (HostfileError, RankError))


def _check(arguments: argparse.Namespace) -> int:
    if arguments.report:
        print(MARK + json.dumps(dataclasses.asdict(make_report(arguments.run_folder, arguments.shards))))
        return 0
    if arguments.hostfile is not None:
        return _from_hostfile(arguments)
    info = read_rank_info()
    if info.world_size > 1:
        from pipeline.preflight.launched import run_launched  # torch takes seconds to import

        return run_launched(info, arguments, _limits(arguments))
    row = HostRow(socket.gethostname(), "this host", 1, make_report(arguments.run_folder, arguments.shards))
    print("no --hostfile and no launcher: this host alone")
    return conclude([row], judge([row], _limits(arguments)), None, arguments.json)


def _from_hostfile(arguments: argparse.Namespace) -> int:
    hosts = read_hostfile(arguments.hostfile)
    print(f"asking {len(hosts)} host(s) of {arguments.hostfile}", flush=True)
    with ThreadPoolExecutor(min(64, len(hosts))) as pool:
        rows = list(pool.map(lambda host: _ask(host, arguments), hosts))
    faults = judge(rows, _limits(arguments))
    if shutil.which("pdsh") is None:
        faults.append("this host: pdsh, DeepSpeed's default launcher, is not installed; install it (Debian: pdsh)")
    bandwidth = None
    if all(row.report is not None for row in rows):
        bandwidth, fault = _all_reduce(hosts, rows, arguments)
        faults += [fault] if fault else []
    else:
        print("all-reduce left out until every host answers")
    return conclude(rows, faults, bandwidth, arguments.json)


def _ask(host: Host, arguments: argparse.Namespace) -> HostRow:
    """One host's report by ssh, then its clock."""
    row = HostRow(host.name, str(host), host.slots)
    options = ["-m", "pipeline.preflight", "--report", "--run-folder", arguments.run_folder]
    options += [part for folder in arguments.shards for part in ("--shards", folder)]
    command = remote_command(host, arguments.python, options, arguments.timeout_seconds)
    status, output, errors = run_remote(command, arguments.timeout_seconds)
    line = next((line for line in output.splitlines() if line.startswith(MARK)), None)
    if line is None:
        row.ssh_error = _explain(host, status, errors or output, arguments)
        return row
    try:
        row.report = validated(_REPORT, line.removeprefix(MARK), "its report does not fit")
    except BorderError as error:
        row.ssh_error = f"{error}; install the same version of the project there"
        return row
    row.clock_offset_seconds, row.clock_uncertainty_seconds = _compare_clocks(host)
    return row


def _compare_clocks(host: Host) -> tuple[float | None, float]:
    """(its clock minus ours, uncertainty) in seconds: asked in one short round trip, whose half is the uncertainty."""
    before = time.time()
    status, output, _ = run_remote([*SSH, host.name, "date +%s.%N"], CLOCK_SECONDS)
    after = time.time()
    stamp = re.search(r"^\d+\.\d+$", output, re.MULTILINE)
    if status or stamp is None:
        return None, 0.0
    return float(stamp.group()) - (before + after) / 2, (after - before) / 2


def _explain(host: Host, status: int, errors: str, arguments: argparse.Namespace) -> str:
    """Why there is no report, and what to do."""
    last = " ".join((errors.strip().splitlines() or ["no message"])[-1].split())[:200]
    if status == SSH_FAILED:
        return f"ssh {host.name} failed: {last}; `ssh {host.name} true` must work without a password"
    if status == 124:
        return f"no report within {arguments.timeout_seconds:g} s: {last}; look at the host, or raise --timeout-seconds"
    if status == 127 or "No such file" in last:
        return f"{last}; install the project there at the same paths ({os.getcwd()}, {arguments.python})"
    return f"the report ended with status {status}: {last}; run the same there by hand"


def _all_reduce(
    hosts: list[Host], rows: list[HostRow], arguments: argparse.Namespace
) -> tuple[Bandwidth | None, str | None]:
    """Run this module on all slots of all hosts by torchrun over ssh; the result of rank 0, or a fault."""
    report = rows[0].report
    master = (report.address if report else None) or hosts[0].name
    common = ["-m", "torch.distributed.run", "--nnodes", str(len(hosts)), "--master-addr", master]
    common += ["--master-port", str(arguments.port)]

    def start(number: int) -> tuple[int, str, str]:
        options = ["--node-rank", str(number), "--nproc-per-node", str(hosts[number].slots), "-m", "pipeline.preflight"]
        options += ["--megabytes", str(arguments.megabytes), "--timeout-seconds", str(arguments.timeout_seconds)]
        command = remote_command(
            hosts[number], arguments.python, [*common, *options, "--all-reduce-only"], arguments.timeout_seconds
        )
        return run_remote(command, arguments.timeout_seconds)

    with ThreadPoolExecutor(len(hosts)) as pool:
        results = list(pool.map(start, range(len(hosts))))
    lines = [line for _, output, _ in results for line in output.splitlines() if line.startswith(MARK)]
    if lines and not any(status for status, _, _ in results):
        try:
            bandwidth = validated(_BANDWIDTH, lines[0].removeprefix(MARK), "the result of the all-reduce does not fit")
        except BorderError as error:
            return None, f"all hosts: {error}; install the same version of the project on all"
        return bandwidth, None if bandwidth.right else "all hosts: the all-reduce gave a wrong sum; test the memory"
    number = next((n for n, (status, _, _) in enumerate(results) if status), 0)
    status, _, errors = results[number]
    reasons = [line for line in errors.splitlines() if "Error" in line and "ChildFailedError" not in line]
    last = " ".join((reasons or errors.strip().splitlines() or ["no message"])[-1].split())[:200]
    return None, (
        f"{hosts[number]}: the all-reduce ended with status {status}: {last}; open port {arguments.port} and all ports "
        f"above 1024 between the hosts, and name the network's device in GLOO_SOCKET_IFNAME/NCCL_SOCKET_IFNAME in "
        f".deepspeed_env"
    )


def _limits(arguments: argparse.Namespace) -> Limits:
    return Limits(arguments.max_clock_seconds, arguments.min_free_gigabytes, arguments.images_per_second)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m pipeline.preflight", __doc__, EXAMPLES)
    parser.add_argument("--hostfile", type=Path, help="DeepSpeed's hostfile: lines NAME slots=N")
    parser.add_argument("--shards", action="append", default=[], metavar="DIR", help="a folder of shards; repeatable")
    parser.add_argument("--run-folder", default="runs", metavar="DIR", help="where checkpoints will go (default: runs)")
    parser.add_argument("--min-free-gigabytes", type=float, default=20.0, metavar="GB", help="default: 20")
    parser.add_argument("--max-clock-seconds", type=float, default=5.0, metavar="S", help="default: 5")
    parser.add_argument(
        "--images-per-second", type=float, default=0.0, metavar="N",
        help="that a host's devices will want (`python -m pipeline.estimate` says); default: no limit",
    )  # fmt: skip
    parser.add_argument("--timeout-seconds", type=float, default=90.0, metavar="S", help="for a host (default: 90)")
    parser.add_argument("--megabytes", type=float, default=64.0, metavar="MB", help="of the all-reduce (default: 64)")
    parser.add_argument("--port", type=int, default=29511, help="of the all-reduce's master (default: 29511)")
    parser.add_argument("--python", default=sys.executable, help="the hosts' Python (default: this one's path)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything for programs, too")
    parser.add_argument("--report", action="store_true", help=argparse.SUPPRESS)  # what ssh runs on each host
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # DeepSpeed's launcher passes it; LOCAL_RANK rules
    parser.add_argument("--all-reduce-only", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
