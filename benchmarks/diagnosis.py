"""The faults that the doctor names, put into small runs: what each changes beside healthy runs, and what is found.

Trains a tiny model on a few drawn scenes, once with each fault of tests/doctor/runs.py and with healthy seeds, asks the
doctor, and draws for each fault the curve that shows it. Runs that are there are not repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.reporting import Row, benchmark_parser, report
from pipeline.drawing.boxes import COLOURS
from pipeline.drawing.curves import Curves
from pipeline.drawing.save import save_picture

HEALTHY = "healthy"
WITH_BANK = f"{HEALTHY}-bank"  # the usual runs have none
BANK = ("region_loss.memory_bank_size=64", "region_loss.memory_bank_start_step=4")
NUM_COLUMNS = 3


@dataclass(frozen=True)
class Panel:
    """What to draw of a fault: metrics by their grouped names; ``share``: the first divided by the sum of all."""

    title: str
    metrics: tuple[str, ...]
    share: bool = False
    logarithmic: bool = False


REGIONS = ("data/count_regions_invalid", "data/count_regions_valid")
PANELS = {
    "bank": Panel("memory bank: pairs held", ("region/memory_bank_filled",)),
    "flat-scale": Panel("region scale", ("health/scale_finegrained",), logarithmic=True),
    "no-area": Panel("share of regions without area", REGIONS, share=True),
    "small-boxes": Panel("boxes under 1 % of the image, a step", ("data/count_regions_small",)),
    "no-gradient": Panel("gradient that boxtext_head has seen", ("health/gradient_seen_boxtext_head",)),
    "lost-rate": Panel("learning rate of the new heads", ("health/learning_rate_new_heads", "health/learning_rate")),
    "no-clipping": Panel("gradient norm before clipping", ("health/gradient_norm",), logarithmic=True),
    "orders-apart": Panel("L_FGT times its weight", ("loss/fgt",), logarithmic=True),
    "few-negatives": Panel("negatives of a region", ("health/negatives_fgv",)),
    "oscillation": Panel("loss", ("loss/total",)),
    "micro-steps": Panel("learning rate", ("health/learning_rate",)),
}


def main(argv: list[str] | None = None) -> int:
    parser = benchmark_parser("benchmarks.diagnosis", __doc__, "  … --out docs/images/diagnosis.png\n")
    parser.add_argument("--runs", type=Path, default=Path("runs/diagnosis"), help="folder of the runs")
    parser.add_argument("--out", type=Path, help="also draw the curves to this PNG")
    parser.add_argument("--seeds", type=int, default=3, help="healthy runs (default 3)")
    arguments = parser.parse_args(argv)
    from pipeline.doctor.checks import diagnose  # here and below, because torch takes seconds to import
    from pipeline.doctor.reading import read_evidence
    from tests.doctor.runs import FAULTS

    names = [*FAULTS, *(f"{HEALTHY}-{seed}" for seed in range(arguments.seeds)), WITH_BANK]
    train(arguments.runs.absolute(), names)
    evidence = {name: read_evidence(arguments.runs / name)[0] for name in names}
    rows = []
    for name in names:
        found = list(diagnose(evidence[name]))
        wanted = [FAULTS[name].finding] if name in FAULTS else []
        print(f"{name}: {', '.join(found) or 'nothing found'}", flush=True)
        rows.append(Row(name, float(found == wanted), "named, and nothing else", 1.0))
    report(rows, arguments.json)
    if arguments.out:
        weights = {name: one.settings.loss_weights() for name, one in evidence.items()}
        save_picture(draw({name: one.curves for name, one in evidence.items()}, weights), arguments.out)
        print(f"drawn: {arguments.out}")
    return 0 if all(row.value for row in rows) else 1


def train(folder: Path, names: list[str]) -> None:
    """The runs that are not there yet, one after another in this process."""
    from pipeline.base.distributed import join_process_group
    from pipeline.base.ranks import read_rank_info
    from pipeline.base.run_folder import RunFolder
    from tests.doctor.runs import run_with_fault
    from tests.end_to_end.runs import Material

    missing = [name for name in names if not RunFolder.at(folder / name).final.is_dir()]
    if not missing:
        return
    material = Material(folder / "material")
    material.make()
    join_process_group(read_rank_info(), timeout_seconds=600)
    for name in missing:
        beginning, _, seed = name.partition("-")
        healthy = BANK if name == WITH_BANK else (f"train.seed={seed}",)
        fault, settings = (None, healthy) if beginning == HEALTHY else (name, ())
        status = run_with_fault(material, folder / name, settings, fault)
        if status:
            raise SystemExit(status)


def draw(curves: Mapping[str, Curves], weights: Mapping[str, Mapping[str, float]]) -> Figure:
    """One panel a fault: its run in red, healthy ones in blue."""
    num_rows = -(-len(PANELS) // NUM_COLUMNS)
    figure = Figure(figsize=(4.2 * NUM_COLUMNS, 2.5 * num_rows), layout="constrained", dpi=110)
    panels = list(figure.subplots(num_rows, NUM_COLUMNS, squeeze=False).flat)
    usual = [name for name in curves if name.startswith(f"{HEALTHY}-") and name != WITH_BANK]
    for axes, (fault, panel) in zip(panels, PANELS.items(), strict=False):
        healthy = [WITH_BANK] if fault == "bank" else usual
        for name in (*healthy, fault):
            factor = weights[name]["region_loss.fgt_weight"] if panel.metrics == ("loss/fgt",) else 1.0
            steps, values = course(curves[name], panel)
            of_fault = name == fault
            axes.plot(
                steps,
                [factor * value for value in values],
                color=COLOURS[0] if of_fault else COLOURS[1],
                linewidth=1.6 if of_fault else 0.9,
                alpha=1.0 if of_fault else 0.7,
                marker="." if len(steps) < 8 else "",
                label=fault if of_fault else HEALTHY if name == healthy[0] else None,
            )
        axes.set_title(panel.title, fontsize=9)
        axes.set_yscale("log" if panel.logarithmic else "linear")
        axes.tick_params(labelsize=7)
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    for axes in panels[len(PANELS) :]:
        axes.set_visible(False)
    figure.supxlabel("optimizer step", fontsize=9)
    return figure


def course(curves: Curves, panel: Panel) -> tuple[list[int], list[float]]:
    """Steps and values to draw; of several metrics, their share or the first that there is."""
    if not panel.share:
        steps, values = next(curves[name] for name in panel.metrics if name in curves)
        return list(steps), list(values)
    columns = [dict(zip(*curves[name], strict=True)) for name in panel.metrics]
    steps = list(curves[panel.metrics[0]][0])
    return steps, [columns[0][step] / sum(column[step] for column in columns) for step in steps]


if __name__ == "__main__":
    raise SystemExit(main())
