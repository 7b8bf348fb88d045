"""Which package of the project imports which, read from the code and drawn in layers: an arrow points to what is used.

tests/test_structure.py holds the code to the layers written here.
"""

from __future__ import annotations

import argparse
import ast
import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from benchmarks.reporting import Row, benchmark_parser, report
from pipeline.base.files import write_aside

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pipeline", "stages", "data_tools", "launch", "benchmarks")
# From the ground up. A module imports from its own group and from those of lower layers, never from above or beside.
# A longer name is looked at first: a package's command line may stand higher than the package.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("pipeline.base",),
    ("pipeline.config", "pipeline.model", "pipeline.objectives", "pipeline.drawing"),
    ("pipeline.data", "pipeline.checkpoint", "pipeline.tuning"),
    ("pipeline.tracking", "pipeline.preflight.hostfile"),
    ("pipeline.evaluation", "pipeline.export", "pipeline.training.optimizer", "pipeline.training.micro_batches"),
    ("pipeline.estimate", "pipeline.supervise", "pipeline.embed", "pipeline.doctor"),
    ("pipeline.training", "pipeline.report", "pipeline.explore", "data_tools"),
    ("pipeline.preflight",),
    ("stages", "launch", "benchmarks"),
)
BOX_WIDTH, BOX_HEIGHT, ROW_HEIGHT, FIGURE_WIDTH = 2.0, 0.62, 1.25, 12.0
NUM_TRIALS = 6000  # of boxes in other places
COLOURS = ("#e8eef7", "#f7efe2")


def project_modules(root: Path = ROOT) -> dict[str, Path]:
    """``{dotted name: file}`` of the project's product code."""
    found: dict[str, Path] = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path, modules: Iterable[str]) -> set[str]:
    """The project's modules that a file imports when it runs, also inside functions.

    ``from package import name`` counts as the module ``package.name`` where there is one.
    """
    known = set(modules)
    found: set[str] = set()
    for node in _statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & known) or {node.module}
    return found & known


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under ``if TYPE_CHECKING:``, which never run."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            yield node
            yield from _statements(node)


def import_graph(root: Path = ROOT) -> dict[str, set[str]]:
    """``{module: modules it imports}``, imports inside functions included."""
    modules = project_modules(root)
    return {name: imports_of(path, modules) - {name} for name, path in modules.items()}


def group_of(module: str) -> str | None:
    """The entry of :data:`LAYERS` that a module belongs to; the longest that fits."""
    names = [name for layer in LAYERS for name in layer if module == name or module.startswith(f"{name}.")]
    return max(names, key=len, default=None)


def layer_of(group: str) -> int:
    """The number of a group's layer, the ground being 0."""
    return next(number for number, layer in enumerate(LAYERS) if group in layer)


def group_edges(graph: dict[str, set[str]]) -> dict[tuple[str, str], int]:
    """``{(group, group it imports from): number of imports}``."""
    edges: dict[tuple[str, str], int] = {}
    for module, imported in graph.items():
        for other in imported:
            pair = (group_of(module) or module, group_of(other) or other)
            if pair[0] != pair[1]:
                edges[pair] = edges.get(pair, 0) + 1
    return edges


def draw(graph: dict[str, set[str]]) -> Figure:
    """Boxes in rows, the ground at the bottom. Arrows that only repeat a longer way are left out."""
    edges = group_edges(graph)
    present = {name for pair in edges for name in pair}
    rows = [[name for name in layer if name in present] for layer in LAYERS]
    rows = [row for row in rows if row]
    figure = Figure(figsize=(FIGURE_WIDTH, ROW_HEIGHT * len(rows) + 0.2), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, FIGURE_WIDTH)
    axes.set_ylim(0, ROW_HEIGHT * len(rows) + 0.2)
    axes.axis("off")
    arrows = sorted(_direct(set(edges)))
    places = _places(rows, arrows)
    for start, end in arrows:
        (x1, y1), (x2, y2) = places[start], places[end]
        axes.add_patch(
            FancyArrowPatch(
                (x1, y1 - BOX_HEIGHT / 2), (x2, y2 + BOX_HEIGHT / 2), arrowstyle="-|>", mutation_scale=11,
                color="#5a6b86", linewidth=1.1, shrinkA=0, shrinkB=1,
            )
        )  # fmt: skip
    sizes = {name: sum(group_of(module) == name for module in graph) for name in places}
    for name, (x, y) in places.items():
        corner = (x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2)
        colour = COLOURS[not name.startswith("pipeline")]
        box = FancyBboxPatch(
            corner, BOX_WIDTH, BOX_HEIGHT, boxstyle="round,pad=0,rounding_size=0.09", facecolor=colour,
            edgecolor="#5a6b86", zorder=3,
        )  # fmt: skip
        axes.add_patch(box)
        size = 10 if len(name) <= 26 else 8  # the longest name stays within its box
        axes.text(x, y + 0.09, name, ha="center", va="center", fontsize=size, zorder=4)
        axes.text(x, y - 0.16, f"{sizes[name]} modules", ha="center", va="center", fontsize=7.5, color="#555", zorder=4)
    return figure


def _places(rows: list[list[str]], arrows: list[tuple[str, str]]) -> dict[str, tuple[float, float]]:
    """Where each box stands in its row, found by trying: no arrow behind a box if possible, then short arrows."""
    draws = random.Random(0)
    slots = [BOX_WIDTH / 2 + 0.1 + number * (FIGURE_WIDTH - BOX_WIDTH - 0.2) / 12 for number in range(13)]
    heights = {name: 0.7 + ROW_HEIGHT * number for number, row in enumerate(rows) for name in row}
    x = {name: slots[12 * (n + 1) // (len(row) + 1)] for row in rows for n, name in enumerate(row)}

    def cost() -> float:
        total = 0.0
        for start, end in arrows:
            total += abs(x[start] - x[end])
            for name, height in heights.items():
                if heights[end] < height < heights[start]:
                    share = (heights[start] - height) / (heights[start] - heights[end])
                    distance = abs(x[start] + share * (x[end] - x[start]) - x[name])
                    total += 40 * max(0.0, 1.25 - distance / (BOX_WIDTH / 2))
        for row in rows:
            ordered = sorted(x[name] for name in row)
            total += sum(200 for one, two in zip(ordered, ordered[1:], strict=False) if two - one < BOX_WIDTH + 0.15)
        return total

    best = cost()
    for _ in range(NUM_TRIALS):
        name = draws.choice(sorted(x))
        before, x[name] = x[name], draws.choice(slots)
        tried = cost()
        if tried <= best:
            best = tried
        else:
            x[name] = before
    return {name: (x[name], height) for name, height in heights.items()}


def _direct(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Edges without those that a way over other groups makes plain."""
    reach: dict[str, set[str]] = {}
    for name in sorted({start for start, _ in edges}, key=layer_of):
        reach[name] = {end for start, end in edges if start == name}
        reach[name] |= {far for end in list(reach[name]) for far in reach.get(end, ())}
    return {
        (start, end)
        for start, end in edges
        if not any(end in reach.get(between, ()) for s, between in edges if s == start and between != end)
    }


def main(argv: list[str] | None = None) -> int:
    example = "  python -m benchmarks.imports --out docs/images/structure.svg"
    parser = benchmark_parser("benchmarks.imports", __doc__ or "", example)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, metavar="FILE", help="also draw the packages (.svg or .png)")
    arguments = parser.parse_args(argv)
    if arguments.out and arguments.out.suffix not in (".svg", ".png"):
        parser.error(f"--out is {arguments.out}; give a name that ends in .svg or .png")
    graph = import_graph()
    homeless = sorted(name for name in graph if group_of(name) is None and name != "pipeline")
    if homeless:
        print(f"error: {', '.join(homeless)} stand in no layer; add them to LAYERS of this file", file=sys.stderr)
        return 2
    rows = [Row(f"{start} → {end}", count, "imports") for (start, end), count in sorted(group_edges(graph).items())]
    report(rows, arguments.json)
    if arguments.out:
        with write_aside(arguments.out) as partial:
            draw(graph).savefig(partial, format=arguments.out.suffix[1:], metadata=_no_date(arguments.out))
        print(f"figure: {arguments.out}")
    return 0


def _no_date(path: Path) -> dict[str, None]:
    """The same code gives the same file."""
    return {"Date": None} if path.suffix == ".svg" else {}


if __name__ == "__main__":
    sys.exit(main())
