"""The code keeps its order: one home for each small thing, no circles, no arrow up, --help of every command."""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.imports import LAYERS, ROOT, group_of, import_graph, layer_of, project_modules

RUN_FOLDER_NAMES = ("settings.yaml", "versions.json", "metrics.jsonl", "tracking.json", "checkpoints", "failures")
# What parses JSON or YAML by itself: the border, the model's own that exported folders carry, files of this project's
# packages, and the walks that only look where an item of a file of gigabytes ends.
PARSERS = {
    "pipeline/base/border.py": {"from_json", "SafeLoader"},
    "pipeline/model/folder.py": {"loads"},
    "pipeline/evaluation/protocols/rows.py": {"safe_load"},
    "pipeline/estimate/devices.py": {"safe_load"},
    "data_tools/phrases/interface.py": {"safe_load"},
    "data_tools/negatives/lexicon.py": {"safe_load"},
    "data_tools/sources/finehard_index.py": {"JSONDecoder"},
    "data_tools/sources/finehard_items.py": {"JSONDecoder"},
}
IMPORT_AT_ONCE = ("benchmarks.", "launch.demo.pictures")  # torch, before arguments are read: nobody waits for these
MODULES = project_modules()


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return import_graph()


def test_the_ground_floor_imports_nothing_of_the_project(graph):
    used = {(name, other) for name, others in graph.items() if group_of(name) == "pipeline.base" for other in others}
    assert {pair for pair in used if group_of(pair[1]) != "pipeline.base"} == set()


def test_every_module_has_its_layer_and_no_import_points_up_or_sideways(graph):
    assert [name for name in graph if group_of(name) is None and name != "pipeline"] == []
    assert [name for layer in LAYERS for name in layer if not any(group_of(module) == name for module in graph)] == []
    wrong = [
        f"{name} imports {other}"
        for name, others in sorted(graph.items())
        for other in sorted(others)
        if group_of(name) != group_of(other) and layer_of(group_of(other)) >= layer_of(group_of(name))
    ]
    assert wrong == [], f"the layers, from the ground up, are {LAYERS}"


def test_no_modules_import_each_other_in_a_circle(graph):
    """A package's __init__ and its own modules count as one another's readers only where they name each other."""
    done, path, circles = set(), [], []

    def visit(name: str) -> None:
        if name in path:
            circles.append(" → ".join([*path[path.index(name) :], name]))
        elif name not in done:
            path.append(name)
            for other in sorted(graph.get(name, ())):
                visit(other)
            path.pop()
            done.add(name)

    for name in sorted(graph):
        visit(name)
    assert circles == []


def test_files_are_renamed_only_on_the_ground_floor():
    assert [where for where, node in _outside_base() if _renames(node)] == []


def test_the_names_in_a_run_folder_stand_in_one_place():
    found = [
        f"{where}: {node.value}"
        for where, node in _outside_base()
        if isinstance(node, ast.Constant) and node.value in RUN_FOLDER_NAMES
    ]
    assert found == []


def test_no_code_asks_an_object_whether_it_has_region_losses():
    """Whether a stage trains regions is a property of its settings; the settings' own package reads it from a file."""
    found = []
    for where, node in _outside_base():
        if where.startswith("pipeline/config/"):
            continue
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("hasattr", "getattr"):
            found += [where for argument in node.args if _is_text(argument, "region_loss")]
        if isinstance(node, ast.Compare) and _is_text(node.left, "region_loss"):
            found.append(where)
    assert found == []


def test_json_and_yaml_from_outside_are_parsed_at_the_border_alone():
    found: dict[str, set[str]] = {}
    for module, where, node in _nodes():
        if module.startswith("benchmarks.") or not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name | ast.Attribute) and (name := _parser(ast.unparse(node.func))) is not None:
            found.setdefault(where.partition(":")[0], set()).add(name)
    assert found == PARSERS, "read files and answers with pipeline.base.border: bounded, typed, named in one line"


def test_an_import_inside_a_function_says_why_it_is_not_at_the_top():
    """By a comment at it, by the docstring, or by what is told where the package is missing."""
    found = []
    for name, path in MODULES.items():
        text = path.read_text(encoding="utf-8")
        lines = ["", *text.splitlines()]
        for function in ast.walk(ast.parse(text)):
            if name.startswith("benchmarks.") or not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            imports = [node for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]
            said = any("#" in lines[line] for node in imports for line in (node.lineno - 1, node.end_lineno))
            said |= any("import" in line.partition("#")[2] for line in lines[function.lineno : function.end_lineno])
            optional = any(isinstance(node, ast.ExceptHandler) and "ImportError" in ast.unparse(node.type or node)
                           for node in ast.walk(function))  # fmt: skip
            if imports and not (said or optional or "import" in (ast.get_docstring(function) or "")):
                found.append(f"{path.relative_to(ROOT)}:{imports[0].lineno}")
    assert found == []


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, dict]:
    """What each command answers to --help: its status, its text, and whether it had imported torch."""
    commands = [name.removesuffix(".__main__") for name, path in MODULES.items() if _is_command(name, path)]
    measurements = [name for name in commands if name.startswith(IMPORT_AT_ONCE)]
    folder, answers = tmp_path_factory.mktemp("help"), {}
    for first, names in (
        ("sys", [n for n in commands if n not in measurements]),
        ("torch, transformers, pipeline.model, matplotlib.figure", measurements),
    ):
        out, ask = folder / "answers.json", ASK_ALL.replace("FIRST", first)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", ask, str(out), *names], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        answers |= json.loads(out.read_text(encoding="utf-8"))
    return answers


def test_docs_commands_names_every_command(answers):
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    hidden = ("launch.demo.", "stages.")  # started by shell scripts that are named
    names = [name.removeprefix("benchmarks.") for name in answers if not name.startswith(hidden)]
    missing = [name for name in names if not re.search(f"`(python -m )?{re.escape(name)}[ `]", text)]
    assert missing == []


def test_every_command_explains_itself_with_an_example(answers):
    assert len(answers) > 15
    for name, answer in answers.items():
        assert answer["status"] == 0, f"{name} --help ended with {answer['status']}: {answer['text']}"
        assert "usage:" in answer["text"] and "example" in answer["text"].lower(), f"{name}: {answer['text']}"


def test_help_does_not_wait_for_torch(answers):
    slow = [name for name, answer in answers.items() if answer["torch"] and not name.startswith(IMPORT_AT_ONCE)]
    assert slow == []


# One process imports what all need and has a child for each command, which is quicker than starting each anew.
ASK_ALL = """
import FIRST
import contextlib, io, json, os, runpy, sys
out, commands, answers = sys.argv[1], sys.argv[2:], {}
for name in commands:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        sys.argv, text, status = [name, "--help"], io.StringIO(), 0
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            try:
                runpy.run_module(name, run_name="__main__", alter_sys=True)
            except SystemExit as end:
                status = end.code or 0
            except Exception as error:
                status = repr(error)
        with os.fdopen(writer, "w") as pipe:
            json.dump({"status": status, "text": text.getvalue(), "torch": "torch" in sys.modules}, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answers[name] = json.loads(pipe.read())
    os.waitpid(child, 0)
with open(out, "w", encoding="utf-8") as file:
    json.dump(answers, file)
"""


def _parser(function: str) -> str | None:
    """The parser that a call is of."""
    names = ("loads", "load", "JSONDecoder", "safe_load", "safe_load_all", "load_all", "full_load", "unsafe_load")
    module, _, name = function.rpartition(".")
    if module in ("json", "yaml", "pydantic_core", "pickle", "marshal"):
        return name if name in (*names, "from_json", "SafeLoader", "CSafeLoader") else None
    return name if not module and name in ("from_json", "JSONDecoder", "safe_load") else None


def _is_command(name: str, path: Path) -> bool:
    """A module that can be started: it has ``if __name__ == "__main__"``, or is a ``__main__``."""
    if name.endswith(".__main__"):
        return True
    text = path.read_text(encoding="utf-8")
    return "__name__ ==" in text and any(
        isinstance(node, ast.If) and isinstance(node.test, ast.Compare) and ast.unparse(node.test.left) == "__name__"
        for node in ast.parse(text).body
    )


@functools.cache
def _nodes() -> tuple[tuple[str, str, ast.AST], ...]:
    """Calls, constants and comparisons of all modules: ``(module, file:line, node)``."""
    return tuple(
        (name, f"{path.relative_to(ROOT)}:{node.lineno}", node)
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call | ast.Constant | ast.Compare)
    )


@functools.cache
def _outside_base() -> tuple[tuple[str, ast.AST], ...]:
    """``(file:line, node)`` without base, and without the model, which travels alone with an export."""
    travels = {name for name in MODULES if group_of(name) in ("pipeline.base", "pipeline.model")}
    return tuple((where, node) for name, where, node in _nodes() if name not in travels)


def _renames(node: ast.AST) -> bool:
    """``os.replace(…)``, ``shutil.move(…)``, or ``replace`` or ``rename`` with one argument, which is of a path."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    if node.func.attr not in ("replace", "rename", "renames", "move"):
        return False
    if ast.unparse(node.func) in ("os.replace", "os.rename", "os.renames", "shutil.move"):
        return True
    return node.func.attr in ("replace", "rename") and len(node.args) == 1 and not node.keywords


def _is_text(node: ast.AST, text: str) -> bool:
    return isinstance(node, ast.Constant) and node.value == text
