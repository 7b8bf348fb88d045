"""The model's own modules stand on transformers alone, and none needs another that needs it."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pipeline.model
from pipeline.model import EXPORTED_MODULES

FOLDER = Path(pipeline.model.__file__).parent


def imports_of(file: Path) -> tuple[set[str], set[str]]:
    """Names of the modules of this folder, and of packages elsewhere, that a file imports anywhere in it."""
    own, others = set(), set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            own.add(node.module)
        elif isinstance(node, ast.ImportFrom):
            others.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            others.update(name.name.split(".")[0] for name in node.names)
    return own, others


def test_an_exported_module_imports_nothing_of_the_project_but_its_fellows():
    for name in EXPORTED_MODULES:
        own, others = imports_of(FOLDER / f"{name}.py")
        assert own <= set(EXPORTED_MODULES), name
        assert not others & {"pipeline", "data_tools", "stages", "benchmarks"}, name


def test_no_module_of_the_model_needs_another_that_needs_it():
    graph = {file.stem: imports_of(file)[0] for file in FOLDER.glob("*.py")}
    assert len(graph) > len(EXPORTED_MODULES)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle
