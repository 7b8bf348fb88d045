"""How every program ends: its own status, one line for refused input, 130 after Ctrl-C, a trace for defects."""

from __future__ import annotations

import pytest

from pipeline.base.commands import command_parser, run_command


def raising(error: BaseException):
    def work() -> int:
        raise error

    return work


def test_the_status_is_that_of_the_work():
    assert run_command(lambda: 3, (ValueError,)) == 3


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("第一行\n second  line"), "error: 第一行 second line\n"),
        (ValueError("\x1b[31mred"), "error: \\x1b[31mred\n"),
        (OSError(), "error: OSError\n"),
    ],
)
def test_refused_input_is_one_line_without_control_characters(capsys, error, line):
    assert run_command(raising(error), (ValueError, OSError)) == 2
    assert capsys.readouterr().err == line


def test_ctrl_c_says_how_to_go_on(capsys):
    assert run_command(raising(KeyboardInterrupt()), (ValueError,), interrupted="run it again") == 130
    assert capsys.readouterr().err == "run it again\n"


def test_a_defect_keeps_its_trace():
    with pytest.raises(TypeError):
        run_command(raising(TypeError("x")), (ValueError,))


def test_help_keeps_the_lines_of_the_examples():
    assert "examples:\n  one\n  two" in command_parser("python -m x", "What.", "examples:\n  one\n  two").format_help()
