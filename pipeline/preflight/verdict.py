"""From the hosts' reports to a table and the faults, each with the line to fix."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.base.files import write_json
from pipeline.preflight.bandwidth import Bandwidth
from pipeline.preflight.report import HostReport

MARK = "preflight-report "  # before JSON on stdout, because a login script may print lines of its own
COLUMNS = ("ssh", "packages", "revision", "accelerators", "clock", "disk", "shards", "decoding")


@dataclass(frozen=True)
class Limits:
    """What a host must hold to."""

    clock_seconds: float = 5.0
    free_gigabytes: float = 20.0
    images_per_second: float = 0.0  # that the devices of a host will want


@dataclass
class HostRow:
    """One host of the table. ``label`` says where it comes from: a line of the hostfile, or the ranks there."""

    name: str
    label: str
    slots: int
    report: HostReport | None = None
    ssh_error: str | None = None
    clock_offset_seconds: float | None = None  # its clock minus ours; None where it was not measured
    clock_uncertainty_seconds: float = 0.0
    cells: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Answer:
    """A host that answered: its row, and the report in it."""

    row: HostRow
    report: HostReport


def judge(rows: Sequence[HostRow], limits: Limits) -> list[str]:
    """Fill each row's cells and faults; all faults, each beginning with the line it belongs to."""
    reference: Answer | None = None
    for row in rows:
        if row.report is None:
            row.cells = {"ssh": "FAIL"} | dict.fromkeys(COLUMNS[1:], "?")
            row.faults.append(row.ssh_error or "no report")
            continue
        answer = Answer(row, row.report)
        reference = reference or answer
        row.cells["ssh"] = "ok"
        for column, check in CHECKS.items():
            text, fault = check(answer, reference, limits)
            row.cells[column] = f"FAIL {text}" if fault else text
            if fault:
                row.faults.append(fault)
    return [f"{row.label}: {fault}" for row in rows for fault in row.faults]


def _packages(host: Answer, reference: Answer, limits: Limits) -> tuple[str, str | None]:
    ours, theirs = reference.report.versions, host.report.versions
    wrong = [
        f"{name} {theirs.get(name)}, not {version}" for name, version in ours.items() if theirs.get(name) != version
    ]
    if not wrong:
        return f"torch {theirs.get('torch')}", None
    return wrong[0], (
        f"{'; '.join(wrong)} as on {reference.row.name}; install the same versions into {host.report.python} there"
    )


def _revision(host: Answer, reference: Answer, limits: Limits) -> tuple[str, str | None]:
    ours, theirs = reference.report.revision, host.report.revision
    text = _short(theirs)
    if theirs == ours:
        return text, None
    return text, f"code revision {text}, {_short(ours)} on {reference.row.name}; check out the same commit there"


def _accelerators(host: Answer, reference: Answer, limits: Limits) -> tuple[str, str | None]:
    devices, expected = host.report.accelerators, reference.report.accelerators
    text = f"{len(devices)} x {devices[0]}" if devices else "cpu"
    if bool(devices) != bool(expected):
        return text, f"{len(devices)} accelerators, {len(expected)} on {reference.row.name}; use hosts of one kind"
    if devices and len(devices) < host.row.slots:
        return (
            text,
            f"slots={host.row.slots}, but {len(devices)} accelerators; write slots={len(devices)} or find the missing",
        )
    if devices and set(devices) != set(expected):
        return (
            text,
            f"{devices[0]}, {expected[0]} on {reference.row.name}; the slowest sets the pace, leave one kind out",
        )
    return text, None


def _clock(host: Answer, reference: Answer, limits: Limits) -> tuple[str, str | None]:
    if host.row.clock_offset_seconds is None:
        return "?", None
    text = f"{host.row.clock_offset_seconds:+.1f} s"
    if abs(host.row.clock_offset_seconds) <= limits.clock_seconds + host.row.clock_uncertainty_seconds:
        return text, None
    return (
        text,
        f"clock differs by {host.row.clock_offset_seconds:+.1f} s; switch on time synchronisation (chrony, ntp) there",
    )


def _disk(host: Answer, reference: Answer, limits: Limits) -> tuple[str, str | None]:
    free = host.report.free_gigabytes
    text = f"{free:.0f} GB"
    if free >= limits.free_gigabytes:
        return text, None
    return text, (
        f"{free:.1f} GB free for the run's folder, {limits.free_gigabytes:g} wanted; free some, choose another "
        f"--run-folder, or lower --min-free-gigabytes"
    )


def _shards(host: Answer, reference: Answer, limits: Limits) -> tuple[str, str | None]:
    report = host.report
    if not (report.shards or report.shard_errors):
        return "-", None
    if report.shard_errors:
        return "unreadable", "; ".join(report.shard_errors.values())
    for folder, digest in report.shards.items():
        if reference.report.shards.get(folder, digest) != digest:
            return "other data", f"{folder} holds other shards than on {reference.row.name}; copy the same to both"
    return f"{report.num_samples} samples", None


def _decoding(host: Answer, reference: Answer, limits: Limits) -> tuple[str, str | None]:
    rate = host.report.images_per_second
    if rate is None:
        return "-", None
    text = f"{rate:,.0f}/s"
    if rate >= limits.images_per_second:
        return text, None
    return text, (
        f"its cores decode {rate:,.0f} images/s of these shards, {limits.images_per_second:,.0f} are wanted; give the "
        "job more cores, or store smaller images"
    )


CHECKS: dict[str, Callable[[Answer, Answer, Limits], tuple[str, str | None]]] = {
    "packages": _packages,
    "revision": _revision,
    "accelerators": _accelerators,
    "clock": _clock,
    "disk": _disk,
    "shards": _shards,
    "decoding": _decoding,
}


def format_rows(rows: Sequence[HostRow]) -> str:
    """The table, one host a line."""
    lines = [["host", *COLUMNS], *([row.name, *(row.cells.get(column, "-") for column in COLUMNS)] for row in rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def format_bandwidth(result: Bandwidth) -> str:
    """One line of the all-reduce."""
    return (
        f"all-reduce of {result.megabytes:g} MB over {result.ranks} ranks: {'right' if result.right else 'WRONG SUM'}, "
        f"{result.seconds * 1e3:.1f} ms, {result.gigabytes_per_second:.2f} GB/s"
    )


def conclude(rows: list[HostRow], faults: list[str], bandwidth: Bandwidth | None, json_file: Path | None) -> int:
    """Print the table and the faults, write the JSON; the exit status."""
    print(format_rows(rows))
    if bandwidth is not None:
        print(format_bandwidth(bandwidth))
    print("\nto fix:" if faults else "\nall is well", *(f"\n  {fault}" for fault in faults), sep="")
    if json_file is not None:
        record = {
            "hosts": [dataclasses.asdict(row) for row in rows],
            "faults": faults,
            "all_reduce": dataclasses.asdict(bandwidth) if bandwidth else None,
        }
        write_json(json_file, record)
    return 1 if faults else 0


def _short(revision: str | None) -> str:
    if revision is None:
        return "none"
    commit, dash, dirty = revision.partition("-")
    return commit[:8] + dash + dirty
