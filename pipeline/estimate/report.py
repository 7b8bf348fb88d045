"""The tables of an estimate."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.estimate.estimate import AtBudget, Estimate


def format_estimate(estimate: Estimate) -> str:
    """Lines for a terminal."""
    lines = [
        f"{estimate.stage} on {estimate.devices} x {estimate.device.name}, ZeRO {estimate.zero}",
        f"parameters: {estimate.parameters:,}, of which {estimate.trained:,} train",
        "",
        "memory of a device at its peak, GB",
        _table(_memory_rows(estimate)),
        f"usable: {_gigabytes(estimate.usable_memory)} GB of {estimate.device.memory_gigabytes:g}",
        "",
        "a step by patch budget",
        _table(_time_rows(estimate)),
        "",
        _table(_run_rows(estimate)),
    ]
    lines += [f"assumed: {note}" for note in estimate.notes]
    lines.append(
        f"assumed: products reach {estimate.device.matrix_use:.0%} of the matrix rate and pointwise work "
        f"{estimate.device.bandwidth_use:.0%} of the bandwidth; nothing overlaps ({estimate.device.source})"
    )
    lines.append(verdict(estimate))
    return "\n".join(lines)


def verdict(estimate: Estimate) -> str:
    """One line: whether it fits, and what else would."""
    if estimate.fits:
        return f"it fits, with ZeRO {estimate.zero}"
    worst = max(estimate.budgets, key=lambda at: at.memory[estimate.zero].total)
    largest = worst.largest_micro_batch
    other = [f"ZeRO {stage}: {images}" for stage, images in largest.items()]
    return (
        f"it does not fit: {worst.patches} patches need {_gigabytes(worst.memory[estimate.zero].total)} GB with ZeRO "
        f"{estimate.zero}; largest micro-batches there: {', '.join(other)}; set train.micro_batch_size or raise the "
        "number of devices, or set model.gradient_checkpointing=true"
    )


def _memory_rows(estimate: Estimate) -> list[Sequence[str]]:
    names = list(estimate.budgets[0].memory[1].parts())
    rows: list[Sequence[str]] = [("patches", "ZeRO", *names, "total", "highest at", "largest micro-batch")]
    for at in estimate.budgets:
        for stage, memory in at.memory.items():
            mark = " *" if stage == estimate.zero else ""
            parts = [_gigabytes(value) for value in memory.parts().values()]
            largest = str(at.largest_micro_batch[stage])
            rows.append((_size(at), f"{stage}{mark}", *parts, _gigabytes(memory.total), memory.moment, largest))
    return rows


def _time_rows(estimate: Estimate) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [
        ("patches", "share", "recomputed", "TFLOP", "products s", "pointwise s", "exchange s", "update s", "total s",
         "use", "decoding cores", "micro-batches")
    ]  # fmt: skip
    for at in estimate.budgets:
        parts = [f"{value:.3g}" for value in at.time.parts().values()]
        rows.append(
            (_size(at), f"{at.share:.0%}", "yes" if at.checkpointed else "no",
             f"{at.micro_batches * at.flops.total / 1e12:.3g}", *parts, f"{at.time.total:.3g}",
             f"{at.time.use:.0%}", f"{at.cores:.1f}",
             f"{at.micro_batches} of {at.micro_batch}")
        )  # fmt: skip
    return rows


def _size(at: AtBudget) -> str:
    return f"{at.patches}" + (f" x {at.frames} frames" if at.frames > 1 else "")


def _run_rows(estimate: Estimate) -> list[Sequence[str]]:
    hours = estimate.steps * estimate.seconds_a_step / 3600
    return [
        ("the run", f"{estimate.steps:,} steps of {estimate.seconds_a_step:.3g} s: {hours:,.1f} hours"),
        ("use of the devices", f"{estimate.use:.0%}"),
        ("to feed", f"{estimate.images_per_second:,.0f} images/s, {estimate.feed_bytes_per_second / 1e9:.3g} GB/s"),
        ("a host", f"{_gigabytes(estimate.host_memory)} GB of memory, {estimate.host_cores:.0f} cores"),
        (
            "a checkpoint",
            f"{_gigabytes(estimate.checkpoint_bytes)} GB: training waits {estimate.checkpoint_copy_seconds:.2g} s, "
            f"written behind it in {estimate.checkpoint_write_seconds:.2g} s",
        ),
        ("disk of the run", f"{_gigabytes(estimate.disk_bytes)} GB"),
    ]


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:.2f}" if value < 1e11 else f"{value / 1e9:,.0f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
